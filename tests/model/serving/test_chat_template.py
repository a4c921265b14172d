"""Chats with a model that has a chat template: the prompt, the end of a turn, and turns that no longer fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from selenium.webdriver.common.keys import Keys

from model.generation.chat import Chat
from model.generation.sampling import SampleOptions
from model.generation.session import Session
from model.runs.run import open_tokenizer
from model.serving.chat import Message, template_prompt
from model.serving.requests import APIError
from pipeline.store.artifact import find
from pipeline.tokenizers import ChatTokenizer
from tests.support.browser import low_contrast, open_browser, prefer
from tests.support.page import Page
from tests.support.serving import NAME, Reply, Server, ask, complete, serving, train_chat

QUESTION = {"role": "user", "content": "7+1?"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    train_chat(folder)
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with serving(root) as started:
        yield started


@pytest.fixture(scope="module")
def tokenizer(root: Path) -> ChatTokenizer:
    tokenizer = open_tokenizer(find(root, "runs", NAME))
    assert isinstance(tokenizer, ChatTokenizer)
    return tokenizer


def chat(server: Server, messages: list[dict[str, str]], **fields: object) -> Reply:
    return ask(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 12, "seed": 3, **fields})


def fits_slowly(
    messages: list[Message], tokenizer: ChatTokenizer, block_size: int, max_tokens: int
) -> tuple[list[int], int] | None:
    """Leave out one turn after another until the rest fits."""
    turns = [{"role": message.role, "content": message.text} for message in messages]
    system = [turn for turn in turns[:1] if turn["role"] == "system"]
    turns, room = turns[len(system) :], block_size - min(max(max_tokens, 1), block_size // 2)
    for first, turn in enumerate(turns):
        if first and turn["role"] != "user":
            continue
        ids = tokenizer.encode_messages([*system, *turns[first:]], add_generation_prompt=True)
        is_last = not [later for later in turns[first + 1 :] if later["role"] == "user"]
        if len(ids) <= room or (is_last and len(ids) < block_size):
            return ids, first
    return None


@pytest.mark.parametrize("max_tokens", [0, 20, 500])
@pytest.mark.parametrize("has_system", [False, True])
def test_the_turns_that_are_left_out_are_those_of_one_by_one(
    tokenizer: ChatTokenizer, has_system: bool, max_tokens: int
) -> None:
    roles = ["user", "assistant"] * 6 + ["user"]
    for count in range(1, len(roles) + 1, 2):
        messages = [Message("system", "Add.")] * has_system
        messages += [Message(role, "1+1? " * (index % 5 + 1)) for index, role in enumerate(roles[:count])]  # type: ignore[arg-type]
        for block_size in range(8, 260, 9):
            expected = fits_slowly(messages, tokenizer, block_size, max_tokens)
            if expected is None:
                with pytest.raises(APIError, match="the last turn has"):
                    template_prompt(messages, tokenizer, block_size, max_tokens)
            else:
                assert template_prompt(messages, tokenizer, block_size, max_tokens) == expected


def test_the_prompt_is_that_of_the_template_and_the_answer_ends_with_its_turn(
    server: Server, tokenizer: ChatTokenizer
) -> None:
    ids = tokenizer.encode_messages([QUESTION], add_generation_prompt=True)
    reply = chat(server, [QUESTION], temperature=0).json()
    choice = reply["choices"][0]
    assert choice == {**choice, "finish_reason": "stop"}
    assert reply["usage"]["prompt_tokens"] == len(ids)
    assert reply["usage"]["completion_tokens"] == len(tokenizer.encode(choice["message"]["content"])) < 12
    assert complete(server, prompt=ids, max_tokens=12, temperature=0).text == choice["message"]["content"]
    assert "<|im" not in choice["message"]["content"]
    assert "warnings" not in reply
    assert "dropped_messages" not in reply


def test_the_openai_client_gets_the_answers_of_chat(server: Server, root: Path) -> None:
    session = Session(find(root, "runs", NAME), "best", "cpu", "auto", lambda line: None)
    talk = Chat(session, SampleOptions(temperature=0.0, max_tokens=12), "Add.")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    for question in ("7+1?", "What is <|im_end|>?", "  80 + 1?\n"):
        messages: Any = [*talk.messages, {"role": "user", "content": question}]
        reply = client.chat.completions.create(model=NAME, messages=messages, max_tokens=12, temperature=0)
        answer = talk.ask(question, lambda text: None)
        ended = {"stop": "end of turn"}.get(reply.choices[0].finish_reason, "length")
        assert (reply.choices[0].message.content, ended) == (answer.text, answer.ended)


def test_a_stream_has_the_same_answer(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    body: dict[str, Any] = {"model": NAME, "messages": [QUESTION], "max_tokens": 12, "seed": 3}
    content = client.chat.completions.create(**body).choices[0].message.content
    events = list(client.chat.completions.create(**body, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in events) == content
    assert events[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_chat_says_how_many_messages_were_left_out(server: Server, stream: bool) -> None:
    turns = [QUESTION, {"role": "assistant", "content": "8!"}] * 30
    reply = chat(server, [{"role": "developer", "content": "Add."}, *turns, QUESTION], stream=stream)
    events = [json.loads(line[6:]) for line in reply.body.split(b"\n") if line.startswith(b"data: {")]
    first, *others = events if stream else [reply.json()]
    assert 0 < first["dropped_messages"] < 60
    assert first["dropped_messages"] % 2 == 0
    assert f"left out {first['dropped_messages']} messages from the beginning" in first["warnings"][0]
    assert not any("dropped_messages" in event for event in others)


def test_a_last_turn_that_is_too_long_is_refused(server: Server) -> None:
    reply = chat(server, [QUESTION, {"role": "assistant", "content": "8!"}, {"role": "user", "content": "1+1?" * 500}])
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == ("messages", "context_length_exceeded")


def test_a_message_that_spells_a_special_token_stays_text(server: Server, tokenizer: ChatTokenizer) -> None:
    messages = [{"role": "user", "content": "<|im_end|>"}]
    ids = tokenizer.encode_messages(messages, add_generation_prompt=True)
    assert ids.count(tokenizer.end_of_turn) == 1
    assert chat(server, messages).json()["usage"]["prompt_tokens"] == len(ids)


def test_the_page_gets_questions_of_the_chats_and_no_sample(server: Server, tokenizer: ChatTokenizer) -> None:
    about = ask(server, "/run").json()
    assert about["tokenizer"]["kind"] == tokenizer.base.kind == "sentencepiece"
    assert about["has_chat"]
    assert about["sample"] is None
    assert len(about["beginnings"]) == 3
    assert all(question.endswith("+1?") for question in about["beginnings"])


# The chat view of the page


@pytest.mark.parametrize(("scheme", "size"), [("light", (1200, 900)), ("dark", (390, 844))])
def test_the_page_chats_and_marks_what_the_model_no_longer_reads(
    server: Server, tmp_path: Path, scheme: str, size: tuple[int, int]
) -> None:
    with open_browser(tmp_path / "profile") as browser:
        prefer(browser, scheme)
        page = Page(browser, server, *size)
        browser.execute_script("document.getElementById('seed').value = 3")
        page.set("temperature", 0)
        messages: list[dict[str, str]] = []
        for number in range(4):
            messages.append({"role": "user", "content": f"{number}+1?"})
            page["message"].send_keys(f"{number}+1?", Keys.CONTROL, Keys.ENTER)
            page.wait(lambda: page["send"].text == "Send" and "waiting" not in page["chat-pace"].text)
            assert "token" in page["chat-pace"].text
            reply = chat(server, messages, temperature=0, max_tokens=200).json()
            messages.append(reply["choices"][0]["message"] | {"role": "assistant"})
        turns = page.all("#turns .user p, #turns .assistant p")
        assert [turn.get_property("textContent") for turn in turns] == [turn["content"] for turn in messages]
        (border,) = page.all("#turns .note")
        assert "no longer sees what is above" in border.text
        above = page.all("#turns li:has(~ .note)")
        assert len(above) == reply["dropped_messages"]
        assert page.scroll_width() <= size[0]
        assert low_contrast(page.browser) == []
        page["new-chat"].click()
        assert page.all("#turns li") == []
        page["send"].click()
        page.wait(lambda: page["chat-pace"].text == "Write a message first.")
        page["tab-chat"].send_keys(Keys.ARROW_RIGHT)
        assert page["prompt"].is_displayed()
        assert not page["message"].is_displayed()
        assert page.browser_errors() == []


def test_a_base_model_has_no_chat_view(trained: Path, tmp_path: Path) -> None:
    with serving(trained) as server, open_browser(tmp_path / "profile") as browser:
        page = Page(browser, server)
        assert page["prompt"].is_displayed()
        assert not page["views"].is_displayed()
        assert not page["chat"].is_displayed()
