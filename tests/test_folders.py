"""Commands on a folder with all sorts of files: one line says what is left out, and names come from the input."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands.options import name_of
from tests.conftest import Inkstone

LEFT_OUT = [{"name": ".git/", "reason": "hidden"}, {"name": "empty.txt", "reason": "empty"}]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "my notes"
    (folder / ".git").mkdir(parents=True)
    (folder / "empty.txt").touch()
    for number in range(1, 31):
        (folder / f"{number}.txt").write_text(f"第{number}日，阿渊携砚来到江边，见一老渔翁。\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("words", [("clean", "."), ("clean", ".", "--dry-run"), ("start", ".", "--plan")])
def test_broken_file_of_a_folder_can_be_left_out(words: tuple[str, ...], inkstone: Inkstone, notes: Path) -> None:
    (notes / "bad.json").write_text('{"text": "a')
    outcome = inkstone(*words, cwd=notes, code=65)
    assert outcome["hint"] == "repair it, or save plain text as .txt, or leave it out: --exclude bad.json"
    assert "--exclude" not in inkstone("clean", "1.txt", "bad.json", cwd=notes, code=65)["hint"]


def test_clean_of_the_current_folder_says_what_is_left_out(inkstone: Inkstone, notes: Path) -> None:
    for result in ("built", "unchanged"):
        outcome = inkstone("clean", ".", cwd=notes)
        assert (outcome["result"], outcome["left_out"]) == (result, LEFT_OUT)
        assert "left out 1 of 31 files: 1 empty; folder .git/ (hidden) (--json lists all)\n" in outcome["stderr"]
        assert outcome["artifact"].split("/")[1] == "my-notes"
        assert outcome["counts"]["documents"] == 30


def test_artifacts_in_the_folder_are_never_read(inkstone: Inkstone, notes: Path) -> None:
    first = inkstone("clean", ".", "--artifacts", "store", cwd=notes)
    for arguments in (("--artifacts", "store"), ()):
        again = inkstone("clean", ".", *arguments, cwd=notes)
        assert again["artifact"] == first["artifact"]
        assert {"name": "store/", "reason": "artifacts"} in again["left_out"]


def test_download_and_tokenize_choose_the_same_files(inkstone: Inkstone, notes: Path) -> None:
    chosen = ("--include", "*.txt", "--exclude", "2?.txt")
    outcome = inkstone("download", notes, *chosen)
    assert outcome["counts"]["files"] == 20
    assert [entry for entry in outcome["left_out"] if entry["reason"] != "excluded"] == LEFT_OUT
    inkstone("clean", notes, "--name", "all")
    inkstone("train-tokenizer", "all", "--kind", "char")
    tokens = inkstone("tokenize", notes, "--tokenizer", "all", "--val-fraction", "0.3", *chosen)
    assert (tokens["counts"]["documents"], tokens["left_out"]) == (20, outcome["left_out"])
    assert tokens["artifact"].split("/")[1] == "my-notes"


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("corpora/book/0123456789abcdef", "book"),
        ("book", "book"),
        ("pile/train", "pile"),
        ("novel.txt", "novel"),
        ("texts/a b.JSONL", "a-b"),
        (".", "here"),
    ],
)
def test_name_of_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, name: str) -> None:
    (tmp_path / "here" / "texts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for path in ("novel.txt", "texts/a b.JSONL"):
        Path(path).touch()
    assert name_of(reference, "corpora") == name
