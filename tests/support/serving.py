"""Helpers for tests of serving: a small Chinese run, its server process, and HTTP clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import cli

ROOT = Path(__file__).resolve().parents[2]
NAME = "inkling"
_DRIVER = """
import importlib, json, sys
for name, value in json.loads(sys.argv[1]).items():
    module, _, constant = name.rpartition(".")
    setattr(importlib.import_module(module), constant, value)
import cli
sys.exit(cli.main(sys.argv[2:]))
"""


def train(root: Path, preset: str = "mini", **settings: object) -> None:
    """Train a small character model on the sample novel."""
    pairs = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    for words in (
        ("clean", ROOT / "pipeline" / "sample" / "yanshan.txt", "--name", NAME, "--unit", "paragraph"),
        ("train-tokenizer", NAME, "--kind", "char"),
        ("tokenize", NAME, "--val-fraction", "0.1", "--jobs", "1"),
        ("train", "--tokens", NAME, "--preset", preset, "--name", NAME, "--set", "vocab_size=0", *pairs),
    ):
        assert cli.main(["--artifacts", str(root), "-q", *map(str, words)]) == 0, words


def train_chat(root: Path) -> None:
    """Train a small model on sums, and tune it on conversations about them. Its block holds about five short turns."""
    turns = [(f"{number}+1?", f"{number + 1}!") for number in range(200)]
    talks = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in turns]
    text, path = root / "sums.txt", root / "conversations.jsonl"
    text.write_text("".join(f"{question} {answer}\n" for question, answer in turns), encoding="utf-8")
    path.write_text("".join(f"{json.dumps(talk)}\n" for talk in talks), encoding="utf-8")
    base = [word for pair in ("vocab_size=0", "block_size=96", "steps=100") for word in ("--set", pair)]
    tuning = [word for pair in ("learning_rate=3e-3", "batch_size=16") for word in ("--set", pair)]
    for words in (
        ("clean", text, "--name", "sums"),
        ("train-tokenizer", "sums", "--kind", "bpe", "--vocab-size", "280"),
        ("tokenize", "sums", "--val-fraction", "0.1", "--jobs", "1"),
        ("train", "--tokens", "sums", "--preset", "mini", "--name", "sums", *base),
        ("clean", path, "--name", NAME, "--profile", "chat"),
        ("tokenize", NAME, "--tokenizer", "sums", "--val-fraction", "0.1", "--jobs", "1"),
        ("train", NAME, "--from", "sums", "--steps", "150", *tuning),
    ):
        assert cli.main(["--artifacts", str(root), "-q", *map(str, words)]) == 0, words


@dataclass
class Server:
    """Process of `cli.py serve` and its URL."""

    process: subprocess.Popen[str]
    url: str
    stderr_lines: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def memory(self) -> float:
        """Resident memory of the process in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmRSS:"))

    def health(self) -> dict[str, Any]:
        return ask(self, "/health").json()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal and wait. Return exit code, stdout and stderr."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, "".join(self.stderr_lines) + err


def command(root: Path, *options: object, constants: Mapping[str, object] | None = None) -> list[str]:
    words = ("--artifacts", root, "serve", NAME, *options)
    return [sys.executable, "-c", _DRIVER, json.dumps(constants or {}), *map(str, words)]


@contextmanager
def serving(root: Path, *options: object, constants: Mapping[str, object] | None = None) -> Iterator[Server]:
    """Serve the run on a free port while the block runs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(root, "--port", 0, *options, constants=constants),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line)
            if line.startswith("serving "):
                yield Server(process, line.split(" at ")[1].split()[0], lines)
                break
        else:
            raise AssertionError(f"the server did not start: {lines}")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json()["error"]

    @property
    def text(self) -> str:
        return self.json()["choices"][0]["text"]


def ask(server: Server, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Reply:
    """GET a path, or POST a body: bytes as they are, anything else as JSON."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    all_headers = {"Content-Type": "application/json", **(headers or {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, data, all_headers), timeout=60) as reply:
            return Reply(reply.status, reply.headers, reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.headers, error.read())


def complete(server: Server, **fields: object) -> Reply:
    return ask(server, "/v1/completions", {"model": NAME, "prompt": "话说", **fields})


def exchange(server: Server, data: bytes, seconds: float = 20.0) -> bytes:
    """Send bytes and read until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        reply = b""
        try:
            connection.sendall(data)
            while part := connection.recv(1 << 16):
                reply += part
        except ConnectionResetError:
            pass
        return reply


def posted(body: bytes, *headers: str) -> bytes:
    """Raw bytes of a completion request."""
    lines = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


def begin(server: Server, buffer: int = 0, **fields: object) -> socket.socket:
    """Send a completion request and read nothing yet; `buffer` limits the receive buffer, in bytes."""
    body = json.dumps({"model": NAME, "prompt": "话说", **fields}).encode()
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(posted(body, f"Content-Length: {len(body)}"))
    return connection


def wait_for_health(server: Server, seconds: float = 60.0, **expected: object) -> None:
    """Wait until /health has the expected fields."""
    deadline = time.monotonic() + seconds
    while {name: server.health()[name] for name in expected} != expected:
        assert time.monotonic() < deadline, f"{server.health()} never became {expected}"
        time.sleep(0.02)
