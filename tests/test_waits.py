"""A command that reports nothing for two seconds says what it waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cli
from pipeline.runtime import progress
from pipeline.runtime.progress import JsonLogProgress, LineProgress, SilentProgress

WAIT = "pipeline.runtime.progress.LineProgress.wait"


class Reported(LineProgress):
    """Progress that collects its lines, and sets an event at each."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.has_reported = threading.Event()

    def note(self, text: str) -> None:
        super().note(text)
        self.lines.append(text)
        self.has_reported.set()


def test_long_wait_is_explained_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.01)
    reporter = Reported()
    with JsonLogProgress(reporter, tmp_path / "log", "1").wait("loading book"):
        assert reporter.has_reported.wait(10)
    assert reporter.lines == ["loading book …"]


@pytest.mark.parametrize("report", [lambda reporter: reporter.note("a line"), lambda reporter: enter_bar(reporter)])
def test_wait_with_other_reports_is_not_explained(report: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.05)
    reporter = Reported()
    with reporter.wait("loading book"):
        report(reporter)  # type: ignore[operator]
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join(10)
    assert not [line for line in reporter.lines if "loading" in line]


def enter_bar(reporter: LineProgress) -> None:
    with reporter.bar("hash", 1):
        pass


def test_short_wait_and_a_quiet_one_report_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = Reported()
    with reporter.wait("loading book"):
        pass
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with SilentProgress().wait("loading book"):
        pass
    assert reporter.lines == []


def test_commands_explain_what_takes_long(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles: list[str] = []

    @contextmanager
    def wait(self: LineProgress, title: str) -> Iterator[None]:
        titles.append(title.partition(" runs/")[0].partition(" /")[0])
        yield

    monkeypatch.setattr(WAIT, wait)
    bucket, text = tmp_path / "bucket", tmp_path / "book.txt"
    bucket.mkdir()
    text.write_text("山高水长。\n" * 300, encoding="utf-8")
    commands = {
        ("clean", text): "hashing the files of",
        ("train-tokenizer", "book", "--kind", "char"): "training the tokenizer book",
        ("train", "--preset", "mini", "--counting", "--steps", 1): "measuring the baselines and the time of a step",
        ("sample", "mini", "--prompt-ids", "1", "--max-tokens", 1): "writing 1 text of up to 1 token",
        ("export", "model", "mini", "--to", "hf"): "exporting",
        ("verify", "--deep"): "checking",
        ("prune",): "finding the generations that nothing needs",
        ("status",): "adding up the sizes of all files",
        ("push", "runs/mini", f"file://{bucket}"): "copying",
        ("doctor", "--offline"): "checking this machine",
    }
    for words, title in commands.items():
        titles.clear()
        assert cli.main(["--artifacts", str(root), *map(str, words)]) == 0, capsys.readouterr().err
        assert [line for line in titles if line.startswith(title)], (words, titles)
