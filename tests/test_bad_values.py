"""Every command with a bad value for every option, from the tree of commands: no exit code 70, no hang."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import zstandard
from click.testing import CliRunner

import cli
from model.config import GPTConfig, TrainConfig

MAX_SECONDS = 10  # of a command on one core; it may wait longer for a core
MAX_WAIT = 120
CODES = {0, 2, *range(10, 13), 65, 66, 69, *range(71, 79), 130, 143}
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")

NUMBERS = ("", "x", "-1", "9" * 25, "1.5", "nan", "inf", "-inf", "1e999", "1e-320", "0x10")
TEXTS = (
    *("", " ", "nonsense", "a=b", "=", "-1", "nan", "[/b]", "../x", "/dev/null/x", "x" * 300, "9" * 400, "(", "%s{0}"),
    *("\x1b[2J\u202e", "\udcff", "a\nb", "a\0b", "\ufeff", "http://[::1", "hf:", "tokens/", "corpora/book/0"),
)
SETTINGS = sorted({field.name for config in (GPTConfig, TrainConfig) for field in dataclasses.fields(config)})
SKIPPED = {  # a value that is valid makes them run for minutes, or measure memory for seconds
    ("presets", "artifacts"),
    ("presets", "log_json"),
    ("demo", "artifacts"),
    ("demo", "log_json"),
    ("demo", "jobs"),
}


@dataclass(frozen=True)
class Place:
    """Files and artifacts to name, below one folder."""

    folder: Path
    port: int

    @property
    def text(self) -> str:
        return str(self.folder / "book.txt")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("bad")
    text = "".join(f"第{n}回　某回\n　　话说{n}日天明，众人起身。行了{n}里，到了一处！\n" for n in "一二三四五六七八九")
    (folder / "book.txt").write_text(text, encoding="utf-8")
    (folder / "book.txt.zst").write_bytes(zstandard.compress(text.encode()))
    (folder / "recipe.toml").write_text('name = "book"\n[download]\nsource = "book.txt"\n', encoding="utf-8")
    os.mkfifo(folder / "fifo")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = Place(folder, taken.getsockname()[1])
        for arguments in (
            ["clean", place.text, "--jobs", "1"],
            ["train-tokenizer", "book", "--kind", "char"],
            ["tokenize", "book", "--val-fraction", "0.3", "--jobs", "1"],
            ["train", "--tokens", "book", *TINY, "--steps", "1", "--name", "run", "--device", "cpu"],
            ["export", "model", "run", "--to", "hf", "--out", str(folder / "hf")],
        ):
            code, output, _ = run(place, arguments)
            assert code == 0, output
        yield place


TINY = ("--preset", "mini", "--set", "vocab_size=0", "--set", "block_size=16", "--set", "evaluations=1")


def base(place: Place, option: str) -> dict[str, list[str]]:
    """Return the arguments of each command that works and does little, without those that exclude `option`."""
    length = [] if option in ("minutes", "steps") else ["--steps", "1"]
    jobs = [] if option == "jobs" else ["--jobs", "1"]
    return {
        "start": [place.text, "--plan", *jobs],
        "demo": ["--device", "nonsense"] if option != "device" else [],
        "download": [place.text],
        "decompress": [f"{place.text}.zst", "--out", "decompressed"],
        "clean": [place.text, "--dry-run", *jobs],
        "train-tokenizer": ["book", "--kind", "char"],
        "tokenize": ["book", "--tokenizer", "book", *jobs],
        "inspect": ["tokens", "book"],
        "train": ["--tokens", "book", *TINY, *length, "--dry-run", "--device", "cpu"],
        "presets": [],
        "sample": ["run", "--prompt", "话", "--max-tokens", "2", "--device", "cpu"],
        "chat": ["run", "--prompt", "话", "--max-tokens", "2", "--device", "cpu"],
        "serve": ["run", "--port", str(place.port), "--device", "cpu"],
        "import-model": [str(place.folder / "hf"), "--tokenizer", "book", "--name", "imported"],
        "export": ["tokens", "book", "--to", "nanogpt", "--out", "exported"],
        "refresh": [str(place.folder / "recipe.toml"), "--dry-run", *jobs],
        "recipe": ["tokens/book"],
        "report": ["tokens/book", "--out", "report.html"],
        "status": [],
        "verify": ["tokens/book"],
        "rollback": ["tokens/book"],
        "prune": ["--dry-run"],
        "schedule": [str(place.folder / "recipe.toml")],
        "doctor": ["--offline"],
        "bench": ["loss", "missing"],
        "push": ["tokens/book", "bucket"],
        "pull": ["bucket", "tokens/book"],
    }


def bad_values(command: str, parameter: click.Parameter, place: Place) -> Sequence[str]:
    """Return values that most options of this type do not accept."""
    if parameter.name == "overrides" or "--set" in parameter.opts:
        return [*TEXTS, *(f"{name}={value}" for name in SETTINGS for value in ("x", "nan", "9" * 25))]
    if isinstance(parameter.type, click.types.FuncParamType | click.types.IntParamType | click.types.FloatParamType):
        return NUMBERS
    if isinstance(parameter.type, click.IntRange | click.FloatRange):
        return NUMBERS
    paths = (str(place.folder), str(place.folder / "fifo"), f"{place.text}/x", "/dev/full", "/dev/null", place.text)
    if parameter.name in ("artifacts", "log_json"):  # the same for all commands
        return ("", "\udcff", "x" * 300, *paths[1:4])
    if (command, parameter.name) == ("demo", "device"):  # an empty one is that of the machine: it trains
        return TEXTS[1:]
    return (*TEXTS, *paths)


def arguments_with(command: str, parameter: click.Parameter, value: str, place: Place) -> list[str]:
    """Return the arguments of `command` with `value` for one option, or for its first argument."""
    words = base(place, str(parameter.name))[command]
    if isinstance(parameter, click.Argument):
        return [command, *words[1:], "--", value] if command != "train" else [command, "--dry-run", "--", value]
    option = max(parameter.opts, key=len)
    return [command, *words, f"{option}={value}"]


def run(place: Place, arguments: Sequence[str]) -> tuple[int, str, float]:
    """Run a command in this process; return its exit code, what it printed, and the seconds it took."""
    start = time.process_time()
    with CliRunner().isolation() as (_, _, output):
        code = cli.main(["--artifacts", str(place.folder / "artifacts"), *arguments])
        text = output.getvalue().decode()
    return code, text, time.process_time() - start


def problem(code: int, output: str, seconds: float) -> str:
    """Return what is wrong with the end of a command, or ""."""
    checks: dict[str, Any] = {
        f"exit {code}": code not in CODES,
        "traceback": "Traceback" in output,
        "control characters": RAW.search(output),
        f"{seconds:.0f} s": seconds > MAX_SECONDS,
        "no error line": code not in (0, 12) and not re.search("^(error: |fail )", output, re.MULTILINE),
    }
    return ", ".join(name for name, failed in checks.items() if failed)


class Hang(BaseException):
    """A command did not end. Nothing in the program handles this, so that the test shows where it waits."""


def raise_hang(*_: object) -> None:
    raise Hang


@pytest.fixture
def alarm() -> Iterator[None]:
    previous = signal.signal(signal.SIGALRM, raise_hang)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("command", sorted(cli.cli.commands))
def test_bad_values_end_in_an_error_of_the_user(
    command: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    problems = []
    for parameter in cli.cli.commands[command].params:
        if getattr(parameter, "is_flag", False) or (command, parameter.name) in SKIPPED:
            continue
        for value in bad_values(command, parameter, place):
            arguments = arguments_with(command, parameter, value, place)
            signal.setitimer(signal.ITIMER_REAL, MAX_WAIT)
            code, output, seconds = run(place, arguments)
            if wrong := problem(code, output, seconds):
                problems.append(f"{wrong}: {arguments} → {output[-300:]}")
    assert not problems, "\n".join(problems)
