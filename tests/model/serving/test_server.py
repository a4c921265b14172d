"""Server: OpenAI's format, bounds on every input, orderly shutdown."""

from __future__ import annotations

import asyncio
import csv
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

import cli
from model.generation.engine import Engine, TokenSequence
from model.generation.sampling import SampledToken, SampleOptions
from model.runs.run import read_result
from model.serving.scheduler import GenerationFailed, QueueFull, Scheduler, ShuttingDown
from model.serving.server import addresses, listen
from pipeline.errors import BadConfig
from pipeline.report.languages import language_of
from pipeline.report.reports import render
from pipeline.store.artifact import find
from pipeline.tokenizers import Integers
from tests.model.generation.test_engine import small_network
from tests.support.bad_server import wait_for
from tests.support.serving import (
    NAME,
    ROOT,
    Server,
    ask,
    begin,
    command,
    complete,
    exchange,
    posted,
    serving,
    wait_for_health,
)

LONG = 4096  # tokens


# OpenAI's own client


def test_completion_has_text_finish_reason_and_usage(client: openai.OpenAI) -> None:
    completion = client.completions.create(model=NAME, prompt="话说", max_tokens=12, temperature=0.8, seed=3)
    assert completion.object == "text_completion"
    assert completion.model == NAME
    assert completion.choices[0].finish_reason in ("stop", "length")
    assert 0 < len(completion.choices[0].text) <= 12
    assert completion.usage
    assert completion.usage.prompt_tokens == 2
    assert completion.usage.total_tokens == 2 + completion.usage.completion_tokens


def test_stream_has_the_same_text_in_chunks_and_usage_on_request(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": NAME, "prompt": "话说", "max_tokens": 30, "seed": 3}
    whole = client.completions.create(**body)
    events = list(client.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    pieces = [event.choices[0] for event in events if event.choices]
    assert len(pieces) > 5
    assert "".join(piece.text for piece in pieces) == whole.choices[0].text
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [whole.choices[0].finish_reason]
    assert [event.usage for event in events if event.usage] == [whole.usage]


def test_prompts_are_texts_or_ids_and_each_gets_n_choices(client: openai.OpenAI, trained: Path) -> None:
    from model.runs import run
    from pipeline.store import artifact

    ids = run.open_tokenizer(artifact.find(trained, "runs", NAME)).encode("话说")
    by_text = client.completions.create(model=NAME, prompt=["话说", "却说"], n=2, max_tokens=8, seed=1)
    by_ids = client.completions.create(model=NAME, prompt=[ids, ids], n=2, max_tokens=8, seed=1)
    single = client.completions.create(model=NAME, prompt=ids, n=2, max_tokens=8, seed=1)
    assert [choice.index for choice in by_text.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in by_ids.choices[:2]] == [choice.text for choice in by_text.choices[:2]]
    assert [choice.text for choice in single.choices] == [choice.text for choice in by_text.choices[:2]]
    assert single.usage
    assert single.usage.prompt_tokens == 2


def test_stop_text_ends_a_choice_and_is_not_part_of_it(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": NAME, "prompt": "话说", "max_tokens": 60, "seed": 3}
    free = client.completions.create(**body).choices[0].text
    stop = free[4:6]
    reply = client.completions.create(**body, stop=["没有的话", stop]).choices[0]
    streamed = client.completions.create(**body, stop=stop, stream=True)
    assert reply.text == free[: free.index(stop)]
    assert reply.finish_reason == "stop"
    assert "".join(event.choices[0].text for event in streamed) == reply.text


def test_echo_puts_the_prompt_before_the_text(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": NAME, "prompt": "话说", "max_tokens": 9, "seed": 3}
    plain = client.completions.create(**body).choices[0].text
    assert client.completions.create(**body, echo=True).choices[0].text == f"话说{plain}"
    events = client.completions.create(**body, echo=True, stream=True)
    assert "".join(event.choices[0].text for event in events) == f"话说{plain}"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_cover_exactly_the_sent_tokens(client: openai.OpenAI, stream: bool) -> None:
    body: dict[str, Any] = {"model": NAME, "prompt": "话说", "max_tokens": 40, "seed": 3, "logprobs": 3}
    free = client.completions.create(**body).choices[0].text
    completion: Any = client.completions.create(**body, stop=free[5:7], stream=stream)
    choices = [event.choices[0] for event in completion] if stream else [completion.choices[0]]
    text = "".join(choice.text for choice in choices)
    parts = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for part in parts for token in part.tokens]
    assert "".join(tokens) == text == free[: free.index(free[5:7])]
    assert [offset for part in parts for offset in part.text_offset] == list(range(len(text)))
    for chosen, likely, token in (
        entry for part in parts for entry in zip(part.token_logprobs, part.top_logprobs, part.tokens, strict=True)
    ):
        assert chosen == likely[token] < 0
        assert 3 <= len(likely) <= 4
        assert sum(map(math.exp, likely.values())) <= 1.0001


def test_openai_client_raises_its_own_errors_with_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model=NAME, prompt="话说", temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-7", prompt="话说")
    assert unknown.value.code == "model_not_found"
    assert [model.id for model in client.models.list()] == [NAME]


# Seeds


def test_seed_gives_one_text_alone_in_a_batch_and_with_sample(
    server: Server, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = complete(server, max_tokens=60, temperature=0.9, seed=7).text
    with ThreadPoolExecutor(20) as pool:
        others = [pool.submit(complete, server, max_tokens=60, prompt=f"却说{n}") for n in range(10)]
        same = [pool.submit(complete, server, max_tokens=60, temperature=0.9, seed=7) for _ in range(10)]
        assert {future.result().text for future in same} == {alone}
        assert len({future.result().text for future in others}) > 5
    options = ("--prompt", "话说", "--max-tokens", "60", "--temperature", "0.9", "--min-p", "0", "--seed", "7")
    assert cli.main(["--artifacts", str(trained), "--json", "sample", NAME, *options]) == 0
    assert json.loads(capsys.readouterr().out)["samples"][0]["text"] == alone


def test_without_a_seed_texts_differ(server: Server) -> None:
    assert len({complete(server, max_tokens=40).text for _ in range(3)}) == 3


# Many, slow and misbehaving clients


def test_two_hundred_clients_get_a_complete_response_or_429(server: Server) -> None:
    def one(number: int) -> tuple[int, str]:
        reply = complete(server, max_tokens=40, seed=number)
        if reply.status == 429:
            assert reply.headers["Retry-After"] == "1"
            return 429, reply.error["code"]
        return reply.status, reply.json()["choices"][0]["finish_reason"]

    def round() -> Counter[tuple[int, str]]:
        with ThreadPoolExecutor(200) as pool:
            return Counter(pool.map(one, range(200)))

    first, before = round(), server.memory()
    second, after = round(), server.memory()
    for counts in (first, second):
        assert set(counts) <= {(200, "length"), (200, "stop"), (429, "queue_full")}
        assert counts[200, "length"] + counts[200, "stop"] >= 72
    assert after - before < 16
    wait_for_health(server, active=0, waiting=0)


def test_disconnected_client_frees_its_row_at_once(trained: Path) -> None:
    with serving(trained, "--rows", 1) as server:
        for stream in (True, False):
            client = begin(server, max_tokens=LONG, temperature=0, stream=stream)
            if stream:
                client.recv(200)
            wait_for_health(server, active=1)
            waiting_client = begin(server, max_tokens=LONG, stream=stream)
            wait_for_health(server, waiting=1)
            waiting_client.close()
            wait_for_health(server, seconds=1, waiting=0)
            client.close()
            wait_for_health(server, seconds=1, active=0)
        assert complete(server, max_tokens=5).status == 200
        assert server.health()["places"] == 65


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_has_finished_sending_gets_its_completion(server: Server, stream: bool) -> None:
    body: dict[str, Any] = {"max_tokens": 100, "temperature": 0, "stream": stream}
    with begin(server, **body) as client:
        client.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    text = complete(server, **{**body, "stream": False}).text
    if stream:
        lines = [line for line in reply.split(b"\n") if line.startswith(b"data: {")]
        assert "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines) == text
    else:
        assert json.loads(reply.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == text


def test_client_that_never_reads_is_disconnected(trained: Path) -> None:
    constants = {"model.serving.timeouts._WRITE_SECONDS": 1.0}
    with serving(trained, "--rows", 2, "--queue", 2, constants=constants) as server:
        body = {"max_tokens": LONG // 2, "temperature": 0, "stream": True, "logprobs": 5}
        clients = [begin(server, buffer=2048, **body) for _ in range(2)]
        wait_for_health(server, active=2)
        assert complete(server, max_tokens=5).status == 200  # when a row is free
        wait_for_health(server, seconds=20, active=0)
        wait_for(
            lambda: complete(server, n=4, max_tokens=5).status == 200
        )  # and the complete queue, although no client has read
        for connection in clients:  # open until here
            connection.close()


def test_silent_client_is_disconnected(trained: Path) -> None:
    with serving(
        trained, constants={"model.serving.timeouts._REQUEST_SECONDS": 0.3, "model.serving.app._BODY_SECONDS": 0.5}
    ) as server:
        assert exchange(server, b"") == b""
        assert exchange(server, b"GET /health HTTP/1.1\r\nHost: local") == b""
        reply = exchange(server, posted(b'{"prompt"', "Content-Length: 99"))
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert server.health()["ok"]


def test_full_queue_is_429_and_more_than_its_capacity_is_400(trained: Path) -> None:
    with serving(trained, "--rows", 1, "--queue", 1) as server:
        first, second = (begin(server, max_tokens=LONG, temperature=0) for _ in range(2))
        wait_for_health(server, active=1, waiting=1)
        refused = complete(server, max_tokens=1)
        assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
        assert (complete(server, n=3).status, complete(server, n=3).error["param"]) == (400, "n")
        first.close()
        second.close()


# Invalid requests

WRONG = [
    (b"{", None),
    (b"[]", None),
    (b'"text"', None),
    (b"\xff\xfe", None),
    (b'{"prompt": "\\ud800"}', None),
    (b'{"prompt": "\xff"}', None),
    (b"[" * 100_000, None),
    (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    (b'{"seed": ' + b"9" * 5000 + b"}", None),
    (b'{"max_tokens": NaN}', None),
    (b'{"max_tokens": -1}', "max_tokens"),
    (b'{"max_tokens": 4097}', "max_tokens"),
    (b'{"max_tokens": "9"}', "max_tokens"),
    (b'{"max_tokens": 1.5}', "max_tokens"),
    (b'{"temperature": -0.1}', "temperature"),
    (b'{"temperature": 1e999}', None),
    (b'{"top_p": -0.1}', "top_p"),
    (b'{"top_p": 1.1}', "top_p"),
    (b'{"top_k": -1}', "top_k"),
    (b'{"min_p": 2}', "min_p"),
    (b'{"repetition_penalty": 0}', "repetition_penalty"),
    (b'{"n": 33}', "n"),
    (b'{"n": 11, "prompt": ["a", "b", "c"]}', "n"),
    (b'{"logprobs": 11}', "logprobs"),
    (b'{"stop": ' + json.dumps(list("abcdefghijklmnopq")).encode() + b"}", "stop"),
    (b'{"stop": ""}', "stop"),
    (b'{"stop": [1]}', "stop"),
    (b'{"seed": 9223372036854775808}', "seed"),
    (b'{"stream": "yes"}', "stream"),
    (b'{"prompt": []}', "prompt"),
    (b'{"prompt": 7}', "prompt"),
    (b'{"prompt": ["a", 1]}', "prompt"),
    (b'{"prompt": [-1]}', "prompt"),
    (b'{"prompt": [99999999]}', "prompt"),
    (b'{"prompt": [99999999999999999999999]}', "prompt"),
    (b'{"prompt": [true]}', "prompt"),
    (b'{"prompt": "' + b"a" * 50_001 + b'"}', "prompt"),
    (b'{"best_of": 3}', "best_of"),
    (b'{"suffix": "."}', "suffix"),
    (b'{"logit_bias": {"5": 1}}', "logit_bias"),
    (b'{"presence_penalty": 2.5}', "presence_penalty"),
    (b'{"frequency_penalty": -2.5}', "frequency_penalty"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[body[:30].decode(errors="replace") for body, _ in WRONG])
def test_invalid_body_is_400_with_the_reason(server: Server, body: bytes, param: str | None) -> None:
    reply = ask(server, "/v1/completions", body)
    assert reply.status == 400, reply.body
    assert reply.error.keys() == {"message", "type", "param", "code"}
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["param"] == param, reply.error
    assert reply.error["message"]


def test_null_counts_as_absent_and_extreme_numbers_are_accepted(server: Server) -> None:
    assert complete(server, seed=None, stop=None, logprobs=None, max_tokens=3, n=None).status == 200
    for temperature in (0, 1e-300, 100):
        assert complete(server, temperature=temperature, max_tokens=3, min_p=1, top_k=1 << 31).status == 200
    assert complete(server, seed=-(2**63), n=2, max_tokens=3).status == 200
    assert complete(server, prompt="", max_tokens=3).status == 200
    assert complete(server, prompt="\0\n" + "话" * 49_000, max_tokens=3).status == 200


def test_other_content_types_are_415(server: Server) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        reply = ask(server, "/v1/completions", b'{"prompt": "a"}', {"Content-Type": kind})
        assert reply.status == 415, kind
    assert ask(server, "/v1/completions", {}, {"Content-Type": "Application/JSON; charset=utf-8"}).status == 200


def test_oversized_body_is_413_in_every_transfer_encoding(server: Server) -> None:
    before = server.memory()
    large = b'{"prompt": "' + b"a" * (3 << 20) + b'"}'
    assert ask(server, "/v1/completions", large).status == 413
    chunk = b"100000\r\n" + b"a" * (1 << 20) + b"\r\n"
    for count, end in ((3, b"0\r\n\r\n"), (17, b"")):  # the second never ends
        reply = exchange(server, posted(b"", "Transfer-Encoding: chunked") + chunk * count + end)
        assert reply.startswith(b"HTTP/1.1 413 ")
        assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["message"]
    expecting = exchange(server, posted(b"", f"Content-Length: {5 << 20}", "Expect: 100-continue"))
    assert expecting.startswith(b"HTTP/1.1 413 ")
    assert server.memory() - before < 16


PATHS = ("/nothing", "/v1", "/v1/completions/", "/run/", "/report/", "/docs", "/page.html", "/page/page.css", "/%00")
OUTSIDE = ("/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/etc/passwd", "/run/../x", "//etc/passwd")


@pytest.mark.parametrize("path", PATHS + OUTSIDE)
def test_unknown_paths_are_404(server: Server, path: str) -> None:
    reply = exchange(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 404 "), reply
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_other_methods_are_405(server: Server) -> None:
    for path, method in (
        ("/v1/completions", "GET"),
        ("/", "POST"),
        ("/health", "DELETE"),
        ("/v1/completions", "OPTIONS"),
    ):
        reply = exchange(server, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert reply.startswith(b"HTTP/1.1 405 ")
        assert b"allow: " in reply.lower()
        assert b"access-control" not in reply.lower()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "localhost.", "10.0.0.1", "localhost@a.b", ""]
)
def test_foreign_host_name_is_rejected(server: Server, host: str) -> None:
    for version in ("1.0", "1.1"):
        reply = exchange(server, f"GET / HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert reply.startswith(b"HTTP/1.1 400 ")
        assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["message"].startswith(
            f"this server is not {host!r}"
        )


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "127.0.0.2:8000", "[::1]:8000"])
def test_loopback_host_names_are_accepted(server: Server, host: str) -> None:
    reply = exchange(server, f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost/health", "localhost", 200),
        ("HTTP://127.0.0.1:8000/health?a=/b", "127.0.0.1:8000", 200),
        ("http://[::1]/%68ealth", "localhost", 200),
        ("http://localhost", "localhost", 200),
        ("http://localhost?a", "localhost", 200),
        ("http://localhost/http://localhost/health", "localhost", 404),
        ("http://localhost:80/nothing", "localhost", 404),
        ("http:///health", "localhost", 404),
        ("http://a@localhost/health", "localhost", 404),
        ("https://localhost/health", "localhost", 404),
        ("http://evil.example/health", "localhost", 400),
        ("http://localhost.evil.example/health", "localhost", 400),
        ("http://localhost/health", "evil.example", 400),
    ],
)
def test_target_may_be_a_url_of_this_server(server: Server, target: str, host: str, status: int) -> None:
    reply = exchange(server, f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert reply.startswith(f"HTTP/1.1 {status} ".encode()), reply
    if status == 200:
        assert reply.partition(b"\r\n\r\n")[2] == ask(server, "/health" if "ealth" in target else "/").body


def test_http_1_0_needs_no_host(server: Server) -> None:
    assert exchange(server, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert exchange(server, b"GET http://localhost/health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert exchange(server, b"GET http://evil.example/health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    body = b'{"prompt": "a", "max_tokens": 2, "stream": true}'
    head = b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert exchange(server, head + body).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n\0\0\0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * (1 << 20) + b"\r\n\r\n",
        posted(b"zz\r\n", "Transfer-Encoding: chunked"),
        posted(b"{}", "Content-Length: 2", "Content-Length: 3"),
        posted(b"{}", "Content-Length: -2"),
        posted(b'{"prompt": "a", "max_tokens": 2}\r\n\r\nGARBAGE\r\n\r\n', "Content-Length: 32"),
        b"GET /none HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50 + b"\xff\r\n\r\n",
    ],
)
def test_invalid_http_is_refused_and_the_server_keeps_serving(server: Server, nonsense: bytes) -> None:
    reply = exchange(server, nonsense)
    assert b"HTTP/1.1 400 " in reply or reply == b"", reply[-300:]
    assert complete(server, max_tokens=2).status == 200


# The page, and browser security


def test_the_page_begins_with_the_defaults_of_sample(server: Server) -> None:
    sliders = re.findall(rb'type="range" id="(\w+)".* value="([^"]+)"', ask(server, "/").body)
    values = {name.decode(): float(value) for name, value in sliders}
    assert values.pop("max_tokens") == 200
    assert values == {name: getattr(SampleOptions(), name) for name in ("temperature", "top_p", "min_p")}


def test_the_page_may_run_its_own_script_and_nothing_else(server: Server) -> None:
    page = ask(server, "/")
    policy = page.headers["Content-Security-Policy"]
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "style-src 'sha256-" in policy
    assert "unsafe-" not in policy
    assert b"http://" not in page.body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in page.body
    for path in ("/", "/health", "/run", "/nothing"):
        headers = ask(server, path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert not [name for name in headers if name.lower().startswith("access-control")]


def test_health_describes_the_run_and_the_load(server: Server) -> None:
    reply = server.health()
    assert reply["ok"]
    assert reply["model"] == NAME
    assert reply["run"].startswith(f"runs/{NAME}/")
    assert reply["trained_on"].startswith(f"tokens/{NAME}/")
    assert reply["steps"] == 30
    assert reply.keys() >= {"parameters", "bits_per_char", "tokenizer", "active", "waiting", "rows", "places"}


def test_the_page_gets_numbers_and_texts_of_the_run(server: Server, trained: Path) -> None:
    about = ask(server, "/run").json()
    run = find(trained, "runs", NAME)
    rows = list(csv.DictReader(run.file("metrics.csv").read_text("utf-8").splitlines()))
    expected = [[int(row["step"]), float(row["bits_per_char"])] for row in rows if row["bits_per_char"]]
    assert about["curve"]["validation"] == expected
    assert about["baselines"] == read_result(run.path).baselines
    assert about["sample"] == json.loads(run.file("samples.jsonl").read_text("utf-8").splitlines()[-1])
    assert about["characters"] > 20_000
    assert len(set(about["beginnings"])) == 3
    text = (ROOT / "pipeline" / "sample" / "yanshan.txt").read_text("utf-8")
    assert all(beginning in text for beginning in about["beginnings"])


def test_the_report_of_the_run_is_served_in_both_languages(server: Server, trained: Path) -> None:
    run = find(trained, "runs", NAME)
    for language, tag in (("en", b'lang="en"'), ("zh", b'lang="zh-Hans"'), ("fr", b'lang="en"')):
        reply = ask(server, f"/report?language={language}")
        assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "script-src" not in reply.headers["Content-Security-Policy"]
        assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert tag in reply.body
        assert reply.body == render(NAME, [run], language_of("zh" if language == "zh" else "en"))


def test_the_report_of_a_damaged_or_deleted_run_is_one_line_with_the_reason(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs", symlinks=True)
    run = find(tmp_path, "runs", NAME)
    with serving(tmp_path) as server:
        content = run.file("metrics.csv").read_bytes()
        run.file("metrics.csv").write_bytes(b"step\n")
        damaged = ask(server, "/report")
        run.file("metrics.csv").write_bytes(content)
        repaired = ask(server, "/report")
        shutil.rmtree(run.path)
        deleted = ask(server, "/report?language=zh")
        code, _, stderr = server.end()
    assert (damaged.status, repaired.status, deleted.status) == (503, 200, 410)
    for reply in (damaged, deleted):
        assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert reply.body.startswith(f"no report of this run: {run.ref}".encode())
        assert reply.body.count(b"\n") == 1
        assert str(tmp_path).encode() not in reply.body
    assert b"metrics.csv" in damaged.body
    assert (code, "Traceback" in stderr) == (0, False)


def test_a_run_whose_tokens_were_deleted_is_served_without_beginnings(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs", symlinks=True)
    with serving(tmp_path) as server:
        about = ask(server, "/run").json()
    assert about["characters"] == 0
    assert about["beginnings"] == [about["sample"]["prompt"]] * bool(about["sample"]["prompt"])


# Start and shutdown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_streams_with_an_error_event_and_exit_0(trained: Path, number: int) -> None:
    with serving(trained, "--rows", 1, "--json", constants={"model.serving.scheduler._GRACE_SECONDS": 0.2}) as server:
        stream = begin(server, max_tokens=LONG, temperature=0, stream=True)
        reply = stream.recv(1 << 16)
        waiting_client = begin(server, max_tokens=5)
        wait_for_health(server, active=1, waiting=1)
        server.process.send_signal(number)
        while part := stream.recv(1 << 16):
            reply += part
        refused = waiting_client.recv(1 << 16)
        code, out, err = server.wait()
    assert reply.endswith(b"0\r\n\r\n")  # the last chunk: the chunked encoding is complete
    events = [line for line in reply.split(b"\n") if line.startswith(b"data: ")]
    assert events[-1] == b"data: [DONE]"
    assert json.loads(events[-2][6:])["error"]["type"] == "server_error"
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert code == 0, err
    printed = json.loads(out)
    assert printed["url"] == server.url
    assert printed["counts"]["tokens"] > 0
    assert err.count("\n") == 1 + err.count("loading "), err  # which is said of a slow start only


def test_nearly_finished_text_is_completed_on_shutdown(trained: Path) -> None:
    with serving(trained) as server:
        stream = begin(server, max_tokens=400, temperature=0, stream=True)
        reply = stream.recv(1 << 16)
        code, out, _ = server.end()
        while part := stream.recv(1 << 16):
            reply += part
    assert b'"finish_reason":"length"' in reply or b'"finish_reason":"stop"' in reply
    assert code == 0
    assert out.startswith("served 1 text,")


def failed(*words: object) -> tuple[int, str]:
    done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_port_in_use_is_one_line_and_exit_75(server: Server, trained: Path) -> None:
    code, stderr = failed(*command(trained, "--port", server.port))
    assert code == 75
    assert stderr.count("\n") == 1 + stderr.count("loading ")
    assert f"port {server.port} of 127.0.0.1 is in use" in stderr


@pytest.mark.parametrize("host", ["192.0.2.7", "no such host", "é" * 300, "127.0.0.1:80"])
def test_foreign_address_is_rejected(host: str) -> None:
    with pytest.raises(BadConfig, match="--host"):
        listen(host, 0)


def test_missing_extra_names_the_install_command(trained: Path) -> None:
    hidden = "import sys; sys.modules['starlette'] = None; import cli; sys.exit(cli.main(sys.argv[1:]))"
    code, stderr = failed(sys.executable, "-c", hidden, "--artifacts", trained, "serve", NAME)
    assert (code, stderr.count("\n")) == (78, 1)
    assert "pip install -e '.[serve]'" in stderr


def test_public_address_warns_and_accepts_any_host_name(trained: Path) -> None:
    with serving(trained, "--host", "0.0.0.0") as server:
        assert "no authentication" in "".join(server.stderr_lines)
        assert server.url == f"http://127.0.0.1:{server.port}"
        reply = exchange(server, b"GET /health HTTP/1.1\r\nHost: my.machine\r\nConnection: close\r\n\r\n")
        assert reply.startswith(b"HTTP/1.1 200 ")


def test_an_address_for_other_machines_is_one_of_this_machine() -> None:
    local, others = addresses("0.0.0.0", 8000)
    assert local == "http://127.0.0.1:8000"
    name = others.removeprefix("http://").removesuffix(":8000")
    with socket.socket() as listener:
        listener.bind((name, 0))  # fails for a foreign address
    assert addresses("127.0.0.1", 80) == ("http://127.0.0.1:80", "")
    assert addresses("::1", 80) == ("http://[::1]:80", "")


# The scheduler alone


class FailsOnce(Engine):
    """Engine that fails at its first step."""

    steps = 0

    def step(self) -> list[tuple[TokenSequence, SampledToken]]:
        self.steps += 1
        if self.steps == 1:
            raise RuntimeError("out of memory")
        return super().step()


async def count_events(scheduler: Scheduler, sequences: list[TokenSequence]) -> int:
    request = scheduler.submit(sequences)
    try:
        return len([event async for event in request.events()])
    finally:
        scheduler.release(request)


def sequence(tokens: int) -> TokenSequence:
    return TokenSequence(Integers(40), [1, 2], SampleOptions(max_tokens=tokens), 1)


def test_failed_step_fails_only_its_own_sequences() -> None:
    messages: list[str] = []

    async def run() -> None:
        scheduler = Scheduler(FailsOnce(small_network(40), 2), 2, 2, messages.append)
        scheduler.start(asyncio.get_running_loop())
        with pytest.raises(GenerationFailed, match="out of memory"):
            await count_events(scheduler, [sequence(5)])
        assert messages == ["warning: 1 sequence failed: out of memory"]
        assert await count_events(scheduler, [sequence(1), sequence(1)]) == 2
        with pytest.raises(QueueFull):
            scheduler.submit([sequence(1)] * 5)
        scheduler.shutdown()
        with pytest.raises(ShuttingDown):
            scheduler.submit([sequence(1)])
        await asyncio.to_thread(scheduler.result)

    asyncio.run(run())


def test_slow_reader_gets_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.serving.scheduler._READ_SECONDS", 0.05)

    async def run() -> None:
        scheduler = Scheduler(Engine(small_network(40), 1), 1, 0, print)
        scheduler.start(asyncio.get_running_loop())
        events = scheduler.submit([sequence(5)]).events()
        await anext(events)
        await asyncio.sleep(0.2)
        with pytest.raises(GenerationFailed, match="did not read"):
            await anext(events)
        scheduler.shutdown()
        await asyncio.to_thread(scheduler.result)

    asyncio.run(run())


def test_bug_in_the_generation_thread_fails_every_request() -> None:
    class Broken(Engine):
        def step(self) -> list[tuple[TokenSequence, SampledToken]]:
            raise KeyError("a bug")

    async def run() -> None:
        scheduler = Scheduler(Broken(small_network(40), 1), 1, 2, print)
        scheduler.start(asyncio.get_running_loop())
        with pytest.raises(GenerationFailed):
            await count_events(scheduler, [sequence(5), sequence(5)])
        with pytest.raises(KeyError):
            await asyncio.to_thread(scheduler.result)
        assert scheduler.stopped

    asyncio.run(run())
