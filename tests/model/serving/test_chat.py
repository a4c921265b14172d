"""Chats with a base model: OpenAI's format, a plain template, and warnings about what is ignored."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from model.serving.chat import BASE_MODEL, Message, plain_prompt
from pipeline.tokenizers import Characters
from tests.support.serving import NAME, Reply, Server, ask, begin, complete

USER = {"role": "user", "content": "话说"}


def chat(server: Server, **fields: object) -> Reply:
    return ask(
        server, "/v1/chat/completions", {"model": NAME, "messages": [USER], "max_tokens": 9, "seed": 3, **fields}
    )


def test_a_chat_continues_the_text_of_its_messages(client: openai.OpenAI, server: Server) -> None:
    reply = client.chat.completions.create(model=NAME, messages=[USER], max_tokens=9, seed=3)  # type: ignore[list-item]
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content == complete(server, prompt="话说", max_tokens=9, seed=3).text
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage
    assert reply.usage.total_tokens == 2 + reply.usage.completion_tokens
    assert (reply.model_extra or {})["warnings"] == [BASE_MODEL]
    assert "base model" in BASE_MODEL


def test_a_streamed_chat_has_the_same_text_and_names_the_role_once(client: openai.OpenAI, server: Server) -> None:
    body: dict[str, Any] = {"model": NAME, "messages": [USER], "max_tokens": 30, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**body)
    events = list(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        parts = [part for event in events for part in event.choices if part.index == choice.index]
        assert [part.delta.role for part in parts] == ["assistant", *[None] * (len(parts) - 1)]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
    assert {event.object for event in events} == {"chat.completion.chunk"}
    assert [event.usage for event in events if event.usage] == [whole.usage]
    assert [(event.model_extra or {}).get("warnings") for event in events] == [
        [BASE_MODEL],
        *[None] * (len(events) - 1),
    ]


def test_messages_are_joined_by_line_ends_where_the_tokenizer_knows_them() -> None:
    messages = [Message("system", "甲"), Message("user", None), Message("assistant", "乙")]
    assert plain_prompt(messages, Characters("甲乙\n", "test")) == "甲\n\n乙"
    assert plain_prompt(messages, Characters("甲乙", "test")) == "甲乙"


def test_contents_may_be_lists_of_text_parts(server: Server) -> None:
    parts = [{"type": "text", "text": "话"}, {"type": "text", "text": "说"}]
    reply = chat(server, messages=[{"role": "user", "content": parts}])
    assert reply.json()["choices"] == chat(server).json()["choices"]


def test_logprobs_of_a_chat_are_those_of_the_completion(server: Server) -> None:
    expected = complete(server, max_tokens=9, seed=3, logprobs=3).json()["choices"][0]["logprobs"]
    choice = chat(server, logprobs=True, top_logprobs=3).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == expected["tokens"]
    assert [entry["logprob"] for entry in entries] == expected["token_logprobs"]
    assert {len(entry["top_logprobs"]) for entry in entries} == {3}
    assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in entries)
    assert chat(server, logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_max_completion_tokens_is_the_newer_name_of_max_tokens(server: Server) -> None:
    assert chat(server, max_tokens=None, max_completion_tokens=4).json()["usage"]["completion_tokens"] <= 4
    assert chat(server, max_tokens=200, max_completion_tokens=4).json()["usage"]["completion_tokens"] <= 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, None),
        ({"messages": []}, "messages"),
        ({"messages": "话说"}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "a"}]}]}, "messages"),
        ({"messages": [{"content": "a"}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"n": 33}, "n"),
        ({"model": "gpt-7"}, "model"),
    ],
)
def test_an_invalid_chat_is_refused_with_the_field(server: Server, fields: dict[str, Any], param: str | None) -> None:
    reply = chat(server, **fields)
    assert reply.status == (404 if param == "model" else 400), reply.body
    assert reply.error["param"] == param


def test_values_that_change_nothing_are_accepted(server: Server) -> None:
    fields = {"tools": [], "response_format": {"type": "text"}, "logit_bias": {}, "logprobs": False, "top_logprobs": 0}
    assert chat(server, **fields).json()["warnings"] == [BASE_MODEL]


def test_unknown_fields_are_ignored_with_a_warning(server: Server) -> None:
    message = {**USER, "name": "阿渊", "tool_calls": None}
    warnings = chat(server, messages=[message], store=True, metadata={}, frequency=None).json()["warnings"]
    assert warnings[1:] == [f"{name}: unknown field, ignored" for name in ("store", "metadata", "messages.name")]
    reply = complete(server, prompts="a", stream_options={"include_obfuscation": False}, max_tokens=2).json()
    assert reply["warnings"] == [
        "prompts: unknown field, ignored",
        "stream_options.include_obfuscation: unknown field, ignored",
    ]
    assert "warnings" not in complete(server, max_tokens=2).json()


def test_warnings_stay_short(server: Server) -> None:
    names = [f"{index:03}" + "x" * 5000 for index in range(100)]
    warnings = complete(server, max_tokens=2, **dict.fromkeys(names, 1)).json()["warnings"]
    assert warnings[-1] == "92 more unknown fields, ignored"
    assert len(warnings) == 9
    assert max(map(len, warnings)) < 100


def test_a_stream_names_ignored_fields_once(server: Server) -> None:
    reply = ask(server, "/v1/completions", {"prompt": "话说", "max_tokens": 9, "stream": True, "prompts": 1})
    events = [json.loads(line[6:]) for line in reply.body.split(b"\n") if line.startswith(b"data: {")]
    assert len(events) > 1
    assert [event.get("warnings") is not None for event in events] == [True, *[False] * (len(events) - 1)]


def test_a_chat_needs_json_as_its_content_type(server: Server) -> None:
    assert ask(server, "/v1/chat/completions", b"{}", {"Content-Type": "text/plain"}).status == 415


def test_the_model_is_described_by_its_name_and_its_reference(client: openai.OpenAI, server: Server) -> None:
    (listed,) = client.models.list()
    assert client.models.retrieve(NAME) == listed
    assert ask(server, f"/v1/models/{server.health()['run']}").json()["id"] == NAME
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("gpt-7")
    assert unknown.value.code == "model_not_found"
    assert ask(server, "/v1/models/").status == 404


def test_a_closed_chat_frees_its_row(server: Server) -> None:
    with begin(server, max_tokens=4096, stream=True):
        pass
    assert chat(server).status == 200
