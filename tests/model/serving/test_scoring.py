"""Scoring over HTTP: log probabilities of prompts, as evaluation harnesses ask for them."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from model.generation.session import Session
from model.network.gpt import GPT
from pipeline.store import artifact
from tests.support.serving import NAME, Server, ask, complete, serving

TEXT = "却说阿渊离了山门，径往东行"


@pytest.fixture(scope="module")
def session(trained: Path) -> Session:
    return Session(artifact.find(trained, "runs", NAME), "best", "cpu", "fp32", print)


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def expected_logprobs(model: GPT, ids: list[int], vocab_size: int) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0, :, :vocab_size].log_softmax(-1)


def scored(server: Server, **fields: object) -> dict[str, Any]:
    reply = complete(server, **{"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, **fields})
    assert reply.status == 200, reply.body
    choice: dict[str, Any] = reply.json()["choices"][0]
    return choice


def test_prompt_logprobs_equal_the_network_and_begin_with_null(server: Server, session: Session) -> None:
    ids = session.tokenizer.encode(TEXT)
    logprobs = expected_logprobs(session.model, ids, session.tokenizer.vocab_size)
    choice = scored(server, prompt=ids, logprobs=3)
    entry = choice["logprobs"]
    assert choice["text"].startswith(TEXT)
    assert entry["token_logprobs"][0] is entry["top_logprobs"][0] is None
    assert entry["tokens"][: len(ids)] == list(TEXT)
    assert entry["text_offset"] == list(range(len(ids) + 1))
    for index in range(1, len(ids)):
        assert entry["token_logprobs"][index] == pytest.approx(float(logprobs[index - 1, ids[index]]), abs=1e-4)
        top = entry["top_logprobs"][index]
        assert top[TEXT[index]] == entry["token_logprobs"][index]  # the very same float
        assert max(top.values()) == pytest.approx(float(logprobs[index - 1].max()), abs=1e-4)
        assert len(top) in (3, 4)
    assert entry["token_logprobs"][-1] == pytest.approx(float(logprobs[-1].max()), abs=1e-4)
    assert {len(values) for values in entry.values()} == {len(ids) + 1}


@pytest.mark.parametrize("logprobs", [0, 1, 10])
def test_an_evaluation_harness_finds_the_greedy_tokens(server: Server, session: Session, logprobs: int) -> None:
    body = {"prompt": session.tokenizer.encode("话说"), "max_tokens": 8, "temperature": 0}
    continued = session.tokenizer.encode("话说" + complete(server, **body).text)
    entry = scored(server, prompt=continued, logprobs=logprobs)["logprobs"]
    tokens, tops = entry["token_logprobs"][2:-1], entry["top_logprobs"][2:-1]  # as lm_eval cuts them
    assert all(token == max(top.values()) for token, top in zip(tokens, tops, strict=True))
    assert {len(top) for top in tops} == {max(logprobs, 1)}


def test_texts_are_scored_in_a_batch_as_alone(server: Server) -> None:
    prompts = [TEXT[: 1 + index % 11] for index in range(32)]
    choices = complete(server, prompt=prompts, echo=True, logprobs=2, max_tokens=1, temperature=0).json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(32))
    for prompt, choice in zip(prompts, choices, strict=True):
        alone = scored(server, prompt=prompt, logprobs=2)["logprobs"]["token_logprobs"]
        assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(alone[1:], abs=1e-4)
        assert choice["logprobs"]["token_logprobs"][0] is None


def test_no_token_is_generated_with_max_tokens_0(server: Server) -> None:
    choice = scored(server, prompt=TEXT, max_tokens=0)
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert len(choice["logprobs"]["tokens"]) == len(TEXT)
    for echo in (True, False):
        reply = complete(server, prompt=TEXT, max_tokens=0, echo=echo).json()
        assert reply["choices"][0]["text"] == (TEXT if echo else "")
        assert reply["usage"]["completion_tokens"] == 0
    assert complete(server, max_tokens=0, logprobs=2).json()["choices"][0]["logprobs"]["tokens"] == []


def test_an_end_of_text_has_an_entry(trained: Path) -> None:
    """The end-of-text token ends the text, and its log probability is reported like that of any token."""
    with serving(trained) as server:
        for seed in range(200):
            choice = scored(server, prompt="。", max_tokens=400, temperature=1.5, seed=seed, logprobs=2)
            if choice["finish_reason"] == "stop":
                break
        entry = choice["logprobs"]
        assert entry["tokens"][-1] == "<|endoftext|>"
        assert entry["top_logprobs"][-1]["<|endoftext|>"] == entry["token_logprobs"][-1] < 0
        assert entry["text_offset"][-1] == len(choice["text"])
        assert "".join(entry["tokens"][:-1]) == choice["text"]
        streamed = ask(
            server,
            "/v1/completions",
            {
                "prompt": "。",
                "max_tokens": 400,
                "temperature": 1.5,
                "seed": seed,
                "logprobs": 2,
                "echo": True,
                "stream": True,
            },
        )
        assert streamed.body.count(b"<|endoftext|>") == 2


def test_a_stream_has_the_same_logprobs(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": NAME, "prompt": [TEXT, "话说"], "max_tokens": 20, "seed": 3, "logprobs": 2}
    complete_choices = client.completions.create(**body, echo=True).choices
    events = list(client.completions.create(**body, echo=True, stream=True))
    for choice in complete_choices:
        parts = [event.choices[0] for event in events if event.choices[0].index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert choice.logprobs
        for name in ("tokens", "text_offset"):
            joined = [value for part in parts for value in getattr(part.logprobs, name)]
            assert joined == getattr(choice.logprobs, name)


def test_a_prompt_as_long_as_the_block_is_scored_and_a_longer_one_refused(server: Server, session: Session) -> None:
    size = session.model.config.block_size
    ids = (session.tokenizer.encode(TEXT) * size)[: size + 1]
    for max_tokens in (0, 1, 3):
        entry = scored(server, prompt=ids[:size], max_tokens=max_tokens)["logprobs"]
        assert len(entry["tokens"]) == size + max_tokens
    logprobs = expected_logprobs(session.model, ids[:size], session.tokenizer.vocab_size)
    expected = math.fsum(float(logprobs[index, ids[index + 1]]) for index in range(size - 1))
    assert math.fsum(entry["token_logprobs"][1:size]) == pytest.approx(expected, rel=1e-4)
    refused = complete(server, prompt=ids, echo=True, logprobs=1, max_tokens=1)
    assert (refused.status, refused.error["param"]) == (400, "prompt")
    assert refused.error["code"] == "context_length_exceeded"
    assert str(size) in refused.error["message"]
    assert complete(server, prompt=ids, logprobs=1, max_tokens=1).status == 200  # without its scores it slides


def test_an_empty_prompt_has_no_scores(server: Server) -> None:
    choice = scored(server, prompt="", max_tokens=2)
    assert len(choice["logprobs"]["tokens"]) == 2
    assert choice["logprobs"]["text_offset"][0] == 0


def test_more_than_32_texts_are_refused(server: Server) -> None:
    assert complete(server, prompt=["话"] * 32, max_tokens=1).status == 200
    assert complete(server, prompt=["话"] * 33, max_tokens=1).error["param"] == "prompt"


def test_scoring_does_not_stop_the_generation_of_others(server: Server) -> None:
    done = threading.Event()

    def score() -> None:
        while not done.is_set():
            scored(server, prompt=TEXT)

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert len(complete(server, max_tokens=60, temperature=0, stop=["没有"]).text) > 5
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_top_p_0_takes_the_likeliest_token(server: Server) -> None:
    greedy = complete(server, max_tokens=20, temperature=0).text
    assert complete(server, max_tokens=20, top_p=0, seed=5).text == greedy


def test_penalties_make_a_text_repeat_less(server: Server) -> None:
    def distinct(**fields: object) -> int:
        return len(set(complete(server, max_tokens=60, temperature=0, **fields).text))

    assert distinct(frequency_penalty=2) > distinct()
    assert distinct(presence_penalty=2) > distinct()
    assert distinct(presence_penalty=-2, frequency_penalty=-2) <= distinct()
