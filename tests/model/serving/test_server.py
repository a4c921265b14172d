"""The server: OpenAI's answers, bounds to everything, and an end when it is asked for."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

import cli
from model.generation.engine import Continuation, Engine
from model.generation.sampling import SampleOptions, Token
from model.serving.scheduler import Closing, Desk, Full, Unfinished
from model.serving.server import listen
from pipeline.errors import BadConfig
from pipeline.tokenizers import Integers
from tests.model.generation.test_engine import model as small_model
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
    train,
    wait_for_health,
)

LONG = 4096  # tokens


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serving")
    train(root, steps=30, evaluations=1)
    return root


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Server]:
    with serving(trained) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


# What OpenAI's own client is told


def test_a_completion_has_text_a_reason_and_usage(client: openai.OpenAI) -> None:
    made = client.completions.create(model=NAME, prompt="话说", max_tokens=12, temperature=0.8, seed=3)
    assert made.object == "text_completion"
    assert made.model == NAME
    assert made.choices[0].finish_reason in ("stop", "length")
    assert 0 < len(made.choices[0].text) <= 12
    assert made.usage
    assert made.usage.prompt_tokens == 2
    assert made.usage.total_tokens == 2 + made.usage.completion_tokens


def test_a_stream_has_the_same_text_in_pieces_and_usage_where_asked_for(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": NAME, "prompt": "话说", "max_tokens": 30, "seed": 3}
    whole = client.completions.create(**asked)
    events = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    pieces = [event.choices[0] for event in events if event.choices]
    assert len(pieces) > 5
    assert "".join(piece.text for piece in pieces) == whole.choices[0].text
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [whole.choices[0].finish_reason]
    assert [event.usage for event in events if event.usage] == [whole.usage]


def test_prompts_may_be_texts_or_ids_and_each_gets_n_texts(client: openai.OpenAI, trained: Path) -> None:
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


def test_a_stop_ends_a_text_and_is_no_part_of_it(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": NAME, "prompt": "话说", "max_tokens": 60, "seed": 3}
    free = client.completions.create(**asked).choices[0].text
    stop = free[4:6]
    told = client.completions.create(**asked, stop=["没有的话", stop]).choices[0]
    streamed = client.completions.create(**asked, stop=stop, stream=True)
    assert told.text == free[: free.index(stop)]
    assert told.finish_reason == "stop"
    assert "".join(event.choices[0].text for event in streamed) == told.text


def test_echo_puts_the_prompt_before_its_text(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": NAME, "prompt": "话说", "max_tokens": 9, "seed": 3}
    plain = client.completions.create(**asked).choices[0].text
    assert client.completions.create(**asked, echo=True).choices[0].text == f"话说{plain}"
    events = client.completions.create(**asked, echo=True, stream=True)
    assert "".join(event.choices[0].text for event in events) == f"话说{plain}"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_of_the_tokens_that_are_told(client: openai.OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"model": NAME, "prompt": "话说", "max_tokens": 40, "seed": 3, "logprobs": 3}
    free = client.completions.create(**asked).choices[0].text
    made = client.completions.create(**asked, stop=free[5:7], stream=stream)
    choices = [event.choices[0] for event in made] if stream else [made.choices[0]]
    text = "".join(choice.text for choice in choices)
    parts = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for part in parts for token in part.tokens]
    assert "".join(tokens) == text == free[: free.index(free[5:7])]
    assert [offset for part in parts for offset in part.text_offset] == list(range(len(text)))
    for chosen, likely, token in (
        each for part in parts for each in zip(part.token_logprobs, part.top_logprobs, part.tokens, strict=True)
    ):
        assert chosen == likely[token] < 0
        assert 3 <= len(likely) <= 4
        assert sum(map(math.exp, likely.values())) <= 1.0001


def test_mistakes_are_the_client_s_own_errors_and_name_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model=NAME, prompt="话说", temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-7", prompt="话说")
    assert unknown.value.code == "model_not_found"
    assert [each.id for each in client.models.list()] == [NAME]


# Seeds


def test_a_seed_gives_one_text_alone_among_others_and_with_sample(
    server: Server, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = complete(server, max_tokens=60, temperature=0.9, seed=7).text
    with ThreadPoolExecutor(20) as pool:
        others = [pool.submit(complete, server, max_tokens=60, prompt=f"却说{n}") for n in range(10)]
        same = [pool.submit(complete, server, max_tokens=60, temperature=0.9, seed=7) for _ in range(10)]
        assert {each.result().text for each in same} == {alone}
        assert len({each.result().text for each in others}) > 5
    options = ("--prompt", "话说", "--max-tokens", "60", "--temperature", "0.9", "--seed", "7")
    assert cli.main(["--artifacts", str(trained), "--json", "sample", NAME, *options]) == 0
    assert json.loads(capsys.readouterr().out)["samples"][0]["text"] == alone


def test_without_a_seed_each_text_is_another(server: Server) -> None:
    assert len({complete(server, max_tokens=40).text for _ in range(3)}) == 3


# Many, slow and rude clients


def test_two_hundred_clients_get_a_whole_answer_or_are_told_to_come_again(server: Server) -> None:
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
    for told in (first, second):
        assert set(told) <= {(200, "length"), (200, "stop"), (429, "queue_full")}
        assert told[200, "length"] + told[200, "stop"] >= 72
    assert after - before < 16
    wait_for_health(server, active=0, waiting=0)


def test_who_hangs_up_frees_the_row_at_once(trained: Path) -> None:
    with serving(trained, "--rows", 1) as server:
        for stream in (True, False):
            client = begin(server, max_tokens=LONG, temperature=0, stream=stream)
            if stream:
                client.recv(200)
            wait_for_health(server, active=1)
            waits = begin(server, max_tokens=LONG, stream=stream)
            wait_for_health(server, waiting=1)
            waits.close()
            wait_for_health(server, seconds=1, waiting=0)
            client.close()
            wait_for_health(server, seconds=1, active=0)
        assert complete(server, max_tokens=5).status == 200
        assert server.health()["places"] == 65


def test_who_never_reads_holds_no_row_and_is_let_go(trained: Path) -> None:
    constants = {"model.serving.timeouts._TAKING": 1.0}
    with serving(trained, "--rows", 2, "--queue", 2, constants=constants) as server:
        asked = {"max_tokens": LONG // 2, "temperature": 0, "stream": True, "logprobs": 5}
        rude = [begin(server, buffer=2048, **asked) for _ in range(2)]
        wait_for_health(server, active=2)
        assert complete(server, max_tokens=5).status == 200  # when a row is free
        wait_for_health(server, seconds=20, active=0)
        wait_for(lambda: complete(server, n=4, max_tokens=5).status == 200)  # and all places, though nobody has read
        for connection in rude:  # which were open until now
            connection.close()


def test_who_says_nothing_is_hung_up_on(trained: Path) -> None:
    with serving(
        trained, constants={"model.serving.timeouts._ASKING": 0.3, "model.serving.app._PATIENCE": 0.5}
    ) as server:
        assert exchange(server, b"") == b""
        assert exchange(server, b"GET /health HTTP/1.1\r\nHost: local") == b""
        told = exchange(server, posted(b'{"prompt"', "Content-Length: 99"))
        assert told.startswith(b"HTTP/1.1 408 ")
        assert server.health()["ok"]


def test_places_that_are_taken_mean_429_and_more_than_there_are_400(trained: Path) -> None:
    with serving(trained, "--rows", 1, "--queue", 1) as server:
        first, second = (begin(server, max_tokens=LONG, temperature=0) for _ in range(2))
        wait_for_health(server, active=1, waiting=1)
        refused = complete(server, max_tokens=1)
        assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
        assert (complete(server, n=3).status, complete(server, n=3).error["param"]) == (400, "n")
        first.close()
        second.close()


# What is not answered

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
    (b'{"max_tokens": 0}', "max_tokens"),
    (b'{"max_tokens": 4097}', "max_tokens"),
    (b'{"max_tokens": "9"}', "max_tokens"),
    (b'{"max_tokens": 1.5}', "max_tokens"),
    (b'{"temperature": -0.1}', "temperature"),
    (b'{"temperature": 1e999}', None),
    (b'{"top_p": 0}', "top_p"),
    (b'{"top_p": 1.1}', "top_p"),
    (b'{"top_k": -1}', "top_k"),
    (b'{"min_p": 2}', "min_p"),
    (b'{"repetition_penalty": 0}', "repetition_penalty"),
    (b'{"n": 17}', "n"),
    (b'{"n": 8, "prompt": ["a", "b", "c"]}', "n"),
    (b'{"logprobs": 6}', "logprobs"),
    (b'{"logprobs": 1, "echo": true}', "logprobs"),
    (b'{"stop": ["a", "b", "c", "d", "e"]}', "stop"),
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
    (b'{"prompts": "a"}', "prompts"),
    (b'{"best_of": 3}', "best_of"),
    (b'{"suffix": "."}', "suffix"),
    (b'{"logit_bias": {"5": 1}}', "logit_bias"),
    (b'{"presence_penalty": 0.5}', "presence_penalty"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[body[:30].decode(errors="replace") for body, _ in WRONG])
def test_a_body_that_cannot_be_is_400_and_says_why(server: Server, body: bytes, param: str | None) -> None:
    reply = ask(server, "/v1/completions", body)
    assert reply.status == 400, reply.body
    assert reply.error.keys() == {"message", "type", "param", "code"}
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["param"] == param, reply.error
    assert reply.error["message"]


def test_null_is_as_nothing_and_odd_numbers_are_taken(server: Server) -> None:
    assert complete(server, seed=None, stop=None, logprobs=None, max_tokens=3, n=None).status == 200
    for temperature in (0, 1e-300, 100):
        assert complete(server, temperature=temperature, max_tokens=3, min_p=1, top_k=1 << 31).status == 200
    assert complete(server, seed=-(2**63), n=2, max_tokens=3).status == 200
    assert complete(server, prompt="", max_tokens=3).status == 200
    assert complete(server, prompt="\0\n" + "话" * 49_000, max_tokens=3).status == 200


def test_what_is_no_json_is_415(server: Server) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        reply = ask(server, "/v1/completions", b'{"prompt": "a"}', {"Content-Type": kind})
        assert reply.status == 415, kind
    assert ask(server, "/v1/completions", {}, {"Content-Type": "Application/JSON; charset=utf-8"}).status == 200


def test_a_body_that_is_too_large_is_413_however_it_comes(server: Server) -> None:
    before = server.memory()
    large = b'{"prompt": "' + b"a" * (3 << 20) + b'"}'
    assert ask(server, "/v1/completions", large).status == 413
    chunk = b"100000\r\n" + b"a" * (1 << 20) + b"\r\n"
    for count, end in ((3, b"0\r\n\r\n"), (18, b"")):  # the second never ends
        told = exchange(server, posted(b"", "Transfer-Encoding: chunked") + chunk * count + end)
        assert told.startswith(b"HTTP/1.1 413 ")
        assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["message"]
    expecting = exchange(server, posted(b"", f"Content-Length: {5 << 20}", "Expect: 100-continue"))
    assert expecting.startswith(b"HTTP/1.1 413 ")
    assert server.memory() - before < 16


PATHS = ("/nothing", "/v1", "/v1/completions/", "/curve.svg/", "/docs", "/openapi.json", "/page.html", "/%00")
OUTSIDE = ("/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/etc/passwd", "/curve.svg/../x", "//etc/passwd")


@pytest.mark.parametrize("path", PATHS + OUTSIDE)
def test_no_path_but_the_few_that_there_are_is_answered(server: Server, path: str) -> None:
    told = exchange(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert told.startswith(b"HTTP/1.1 404 "), told
    assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_another_method_is_405(server: Server) -> None:
    for path, method in (
        ("/v1/completions", "GET"),
        ("/", "POST"),
        ("/health", "DELETE"),
        ("/v1/completions", "OPTIONS"),
    ):
        told = exchange(server, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert told.startswith(b"HTTP/1.1 405 ")
        assert b"allow: " in told.lower()
        assert b"access-control" not in told.lower()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "localhost.", "10.0.0.1"]
)
def test_another_host_is_turned_away(server: Server, host: str) -> None:
    for path in ("/", "/health"):
        told = exchange(server, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert told.startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "127.3.2.1", "[::1]:8000"])
def test_every_name_of_this_machine_is_answered(server: Server, host: str) -> None:
    told = exchange(server, f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert told.startswith(b"HTTP/1.1 200 ")


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
def test_what_is_no_http_is_refused_and_the_server_goes_on(server: Server, nonsense: bytes) -> None:
    told = exchange(server, nonsense)
    assert b"HTTP/1.1 400 " in told or told == b"", told[-300:]
    assert complete(server, max_tokens=2).status == 200


# The page, and what browsers are told


def test_the_page_may_run_its_own_script_and_nothing_else(server: Server) -> None:
    page = ask(server, "/")
    policy = page.headers["Content-Security-Policy"]
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe-eval" not in policy
    assert b"http://" not in page.body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in page.body
    for path in ("/", "/health", "/curve.svg", "/nothing"):
        headers = ask(server, path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert not [name for name in headers if name.lower().startswith("access-control")]


def test_health_says_what_is_served_and_how_busy_it_is(server: Server) -> None:
    told = server.health()
    assert told["ok"]
    assert told["model"] == NAME
    assert told["run"].startswith(f"runs/{NAME}/")
    assert told["trained_on"].startswith(f"tokens/{NAME}/")
    assert told["steps"] == 30
    assert told.keys() >= {"parameters", "bits_per_char", "tokenizer", "active", "waiting", "rows", "places"}
    curve = ask(server, "/curve.svg")
    assert curve.headers["Content-Type"] == "image/svg+xml"
    assert b"<svg" in curve.body


# How it begins and ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_streams_with_a_word_and_the_server_with_0(trained: Path, number: int) -> None:
    with serving(trained, "--rows", 1, "--json", constants={"model.serving.scheduler._GRACE": 0.2}) as server:
        stream = begin(server, max_tokens=LONG, temperature=0, stream=True)
        told = stream.recv(1 << 16)
        waits = begin(server, max_tokens=5)
        wait_for_health(server, active=1, waiting=1)
        server.process.send_signal(number)
        while part := stream.recv(1 << 16):
            told += part
        refused = waits.recv(1 << 16)
        code, out, err = server.wait()
    assert told.endswith(b"0\r\n\r\n")  # the last chunk: the stream is whole as such
    events = [line for line in told.split(b"\n") if line.startswith(b"data: ")]
    assert events[-1] == b"data: [DONE]"
    assert json.loads(events[-2][6:])["error"]["type"] == "server_error"
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert code == 0, err
    printed = json.loads(out)
    assert printed["url"] == server.url
    assert printed["counts"]["tokens"] > 0
    assert err.count("\n") == 1, err


def test_a_text_that_is_almost_there_is_written_to_its_end(trained: Path) -> None:
    with serving(trained) as server:
        stream = begin(server, max_tokens=400, temperature=0, stream=True)
        told = stream.recv(1 << 16)
        code, out, _ = server.end()
        while part := stream.recv(1 << 16):
            told += part
    assert b'"finish_reason":"length"' in told or b'"finish_reason":"stop"' in told
    assert code == 0
    assert out.startswith("served 1 texts")


def failed(*words: object) -> tuple[int, str]:
    done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_a_port_in_use_is_one_line_and_75(server: Server, trained: Path) -> None:
    code, said = failed(*command(trained, "--port", server.port))
    assert code == 75
    assert said.count("\n") == 1
    assert f"port {server.port} of 127.0.0.1 is in use" in said


@pytest.mark.parametrize("host", ["192.0.2.7", "no such host", "é" * 300, "127.0.0.1:80"])
def test_a_host_that_is_not_here_is_refused(host: str) -> None:
    with pytest.raises(BadConfig, match="an address of this machine"):
        listen(host, 0)


def test_without_the_extra_the_command_to_install_it_is_told(trained: Path) -> None:
    hidden = "import sys; sys.modules['fastapi'] = None; import cli; sys.exit(cli.main(sys.argv[1:]))"
    code, said = failed(sys.executable, "-c", hidden, "--artifacts", trained, "serve", NAME)
    assert (code, said.count("\n")) == (78, 1)
    assert "pip install 'inkstone[serve]'" in said


def test_an_address_that_others_reach_is_said_and_then_any_name_is_answered(trained: Path) -> None:
    with serving(trained, "--host", "0.0.0.0") as server:
        assert "no authentication" in server.said[0]
        told = exchange(server, b"GET /health HTTP/1.1\r\nHost: my.machine\r\nConnection: close\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 200 ")


# The desk by itself


class Failing(Engine):
    """An engine that fails at its first step."""

    steps = 0

    def step(self) -> list[tuple[Continuation, Token]]:
        self.steps += 1
        if self.steps == 1:
            raise RuntimeError("out of memory")
        return super().step()


async def written(desk: Desk, texts: list[Continuation]) -> int:
    order = desk.order(texts)
    try:
        return len([news async for news in order.news()])
    finally:
        desk.leave(order)


def text(tokens: int) -> Continuation:
    return Continuation(Integers(40), [1, 2], SampleOptions(max_tokens=tokens), 1)


def test_a_step_that_fails_ends_its_texts_and_no_others() -> None:
    said: list[str] = []

    async def run() -> None:
        desk = Desk(Failing(small_model(40), 2), 2, 2, said.append)
        desk.open(asyncio.get_running_loop())
        with pytest.raises(Unfinished, match="out of memory"):
            await written(desk, [text(5)])
        assert said == ["warning: 1 texts are given up: out of memory"]
        assert await written(desk, [text(1), text(1)]) == 2
        with pytest.raises(Full):
            desk.order([text(1)] * 5)
        desk.close()
        with pytest.raises(Closing):
            desk.order([text(1)])
        await asyncio.to_thread(desk.result)

    asyncio.run(run())


def test_who_reads_too_slowly_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.serving.scheduler._READING", 0.05)

    async def run() -> None:
        desk = Desk(Engine(small_model(40), 1), 1, 0, print)
        desk.open(asyncio.get_running_loop())
        news = desk.order([text(5)]).news()
        await anext(news)
        await asyncio.sleep(0.2)
        with pytest.raises(Unfinished, match="not read in time"):
            await anext(news)
        desk.close()
        await asyncio.to_thread(desk.result)

    asyncio.run(run())


def test_a_bug_in_the_thread_ends_every_order_and_is_told() -> None:
    class Broken(Engine):
        def step(self) -> list[tuple[Continuation, Token]]:
            raise KeyError("a bug")

    async def run() -> None:
        desk = Desk(Broken(small_model(40), 1), 1, 2, print)
        desk.open(asyncio.get_running_loop())
        with pytest.raises(Unfinished):
            await written(desk, [text(5), text(5)])
        with pytest.raises(KeyError):
            await asyncio.to_thread(desk.result)
        assert desk.ended

    asyncio.run(run())
