"""Options that would be ignored are refused, and accepted where they have an effect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cli


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "corpus", "book", "--to", "jsonl", "--checkpoint", "best"), "--checkpoint is for `export model`"),
        (("export", "tokens", "book", "--to", "llmc", "--checkpoint", "last"), "--checkpoint is for `export model`"),
        (("status", "--max-age", "7d"), "--max-age has no effect without --check"),
        (("inspect", "tokens", "book", "--split", "val"), "--split has no effect without --locate"),
        (("presets", "--settings", "--device", "cpu"), "--device has no effect beside --settings"),
        (("download", "tokenizer:r50k_base", "--decompress"), "--decompress has no effect on the ranks"),
        (("download", "tokenizer:r50k_base", "--include", "*.txt"), "--include has no effect on the ranks"),
    ],
)
def test_option_without_effect_is_refused(
    root: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] == "inspect":
        tokenize(root)
    capsys.readouterr()
    assert run(root, *words) == 78
    assert message in json.loads(capsys.readouterr().out)["error"]


def test_inspecting_a_file_names_the_command_for_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "inspect", "in/gbk.txt") == 78
    refused = json.loads(capsys.readouterr().out)
    assert refused["error"] == "inspect must be followed by tokens, got in/gbk.txt"
    assert refused["hint"] == "`inspect tokens NAME` summarizes tokens; text files: `clean FILE --dry-run`"


def test_the_same_options_are_accepted_where_they_have_an_effect(root: Path) -> None:
    tokenize(root)
    assert run(root, "inspect", "tokens", "book", "--locate", 3, "--split", "train") == 0
    assert run(root, "presets", "--settings") == 0
    assert run(root, "export", "tokens", "book", "--to", "llmc") == 0


def run(root: Path, *words: object) -> int:
    return cli.main(["--artifacts", str(root), "--json", *map(str, words)])


def tokenize(root: Path) -> None:
    text = root.parent / "book.txt"
    text.write_text("The inkstone and the brush.\n" * 40, encoding="utf-8")
    assert run(root, "clean", text) == 0
    assert run(root, "train-tokenizer", "book", "--kind", "char") == 0
    assert run(root, "tokenize", "book", "--val-fraction", 0, "--jobs", 1) == 0
