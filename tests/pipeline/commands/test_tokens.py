"""What the commands take where nothing is named: the tokenizer of a text, and the newest artifact."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cli
from pipeline.store import artifact
from tests.conftest import ROOT

Run = Callable[..., str]

TEXTS = {
    "river": "".join(f"第{number}日，阿渊携砚来到江边，见一老渔翁收网归家。\n" for number in range(90)),
    "hills": "".join(f"{number} hills rose behind the old town, and the road went on.\n" for number in range(90)),
}


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process and return what it prints; it must exit with `code`, by default 0."""

    def run_command(*arguments: object, code: int = 0) -> str:
        assert cli.main(["--artifacts", str(root), *map(str, arguments)]) == code
        output = capsys.readouterr()
        return output.out + output.err

    return run_command


@pytest.fixture
def corpora(run: Run, tmp_path: Path) -> None:
    for name, text in TEXTS.items():
        path = tmp_path / f"{name}.txt"
        path.write_text(text, encoding="utf-8")
        run("clean", path)


def test_inspect_counts_the_lengths_of_documents_by_powers_of_two(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": "山" * count}) + "\n" for count in (1, 1, 2, 3, 9, 40)))
    run("clean", path)
    run("train-tokenizer", "lines", "--kind", "char")
    run("tokenize", path, "--val-fraction", "0", "--tokenizer", "lines", "--name", "lines")
    lengths = [2, 2, 3, 4, 10, 41]  # with end-of-text
    expected = [sum(1 << power <= length < 2 << power for length in lengths) for power in range(6)]
    output = run("inspect", "tokens", "lines")
    assert json.loads(run("--json", "inspect", "tokens", "lines"))["lengths"] == expected == [0, 3, 1, 1, 0, 1]
    histogram = output.splitlines()[output.splitlines().index("longest    41 tokens") + 1 :][:5]
    assert [line[11:].split()[0] for line in histogram] == ["2–3", "4–7", "8–15", "16–31", "32–63"]
    assert [int(line.split()[-1]) for line in histogram] == expected[1:]


def test_histogram_is_ascii_on_a_terminal_without_unicode(run: Run, tmp_path: Path, root: Path) -> None:
    (tmp_path / "lines.txt").write_text("One line of ASCII text.\n" * 9)
    run("clean", tmp_path / "lines.txt")
    run("train-tokenizer", "lines", "--kind", "char")
    run("tokenize", "lines", "--val-fraction", "0")
    command = [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "inspect", "tokens", "lines"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    output = subprocess.run(command, env=environment, capture_output=True, check=True).stdout.decode()
    assert re.search(r"lengths +128-255 #+ 1$", output, re.MULTILINE), output


def tokenizer_of(root: Path, tokens: str) -> str:
    """Return the tokenizer artifact that some tokens were made with, as kind/name."""
    manifest = artifact.find(root, "tokens", tokens).manifest
    (name,) = (entry.name for entry in manifest.inputs if entry.role == "tokenizer")
    return name.rpartition("/")[0]


@pytest.mark.usefixtures("corpora")
def test_tokenizer_trained_on_the_corpus_comes_before_its_namesake_and_a_newer_one(root: Path, run: Run) -> None:
    run("train-tokenizer", "river", "--kind", "char", "--name", "signs")
    run("train-tokenizer", "hills", "--kind", "char", "--name", "river")
    run("train-tokenizer", "hills", "--kind", "char")
    output = run("tokenize", "river", "--val-fraction", "0.2")
    assert tokenizer_of(root, "river") == "tokenizers/signs"
    assert f"using {artifact.find(root, 'tokenizers', 'signs').ref}, trained on river\n" in output


@pytest.mark.usefixtures("corpora")
def test_namesake_is_used_if_none_was_trained_on_the_corpus(root: Path, run: Run) -> None:
    for name in ("other", "river", "newest"):
        run("train-tokenizer", "hills", "--kind", "char", "--name", name)
    assert "of the same name, trained on hills\n" in run(
        "tokenize", "river", "--val-fraction", "0.2", "--allow-unknown"
    )
    assert tokenizer_of(root, "river") == "tokenizers/river"
    output = run("tokenize", "hills", "--val-fraction", "0.2")
    assert "trained on hills, the newest of 3: newest, other, river\n" in output
    assert tokenizer_of(root, "hills") == "tokenizers/newest"


@pytest.mark.usefixtures("corpora")
def test_only_tokenizer_is_used_and_named_and_several_are_an_error(root: Path, run: Run, tmp_path: Path) -> None:
    error = run("tokenize", "river", code=66)
    assert "no tokenizers in" in error
    assert "--tokenizer r50k_base" in error
    run("train-tokenizer", "hills", "--kind", "char", "--name", "one")
    assert "the only one, trained on hills\n" in run("tokenize", "river", "--val-fraction", "0.2", "--allow-unknown")
    run("train-tokenizer", tmp_path / "hills.txt", "--kind", "char", "--name", "two")
    error = run("tokenize", "river", code=78)
    assert "none of the 2 tokenizers was trained on river: one, two" in error
    assert "--tokenizer two" in error
    assert "of the same name" not in run("tokenize", tmp_path / "hills.txt", "--val-fraction", "0.2", "--name", "two")


@pytest.mark.usefixtures("corpora")
def test_tokenizer_that_does_not_fit_is_told_with_its_figure(run: Run) -> None:
    run("train-tokenizer", "hills", "--vocab-size", "300")
    output = json.loads(run("--json", "-q", "tokenize", "river", "--val-fraction", "0.2"))
    assert 0.3 < output["characters_per_token"] < 0.5  # a Chinese character is three bytes
    warning = f"warning: {output['characters_per_token']:.2f} characters per token: hills does not fit this text"
    assert warning in run("tokenize", "river", "--val-fraction", "0.2", "--allow-unknown")
    assert "warning" not in run("tokenize", "hills", "--val-fraction", "0.2")
    run("train-tokenizer", "river", "--kind", "char")
    assert "warning" not in run("tokenize", "river", "--val-fraction", "0.2", "--allow-unknown")


@pytest.mark.usefixtures("corpora")
def test_newest_is_by_publication_and_the_others_are_named(root: Path, run: Run) -> None:
    for name, second in (("river", 10), ("hills", 20)):
        path = artifact.find(root, "corpora", name).file("run.json")
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**fields, "finished": f"2026-11-01T00:00:{second}Z"}), encoding="utf-8")
    link = root / "corpora" / "river" / "current"
    target = os.readlink(link)
    link.unlink()
    link.symlink_to(target)  # as a rollback or a copy of the store does
    assert f"using {artifact.find(root, 'corpora', 'hills').ref}, the newest; others: river\n" in run(
        "train-tokenizer", "--kind", "char"
    )
