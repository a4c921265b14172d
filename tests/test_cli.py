"""The command line: one JSON object, exit codes, one-line errors with a next step, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

ROOT = Path(__file__).resolve().parent.parent
Inkstone = Callable[..., dict[str, Any]]
FIELDS = {"result", "artifact", "path", "counts", "ledger", "seconds"}
COMMANDS = ("download", "decompress", "clean", "train-tokenizer", "tokenize", "train", "sample")
COMMANDS += ("serve", "refresh", "demo", "status", "verify")


def plain(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120, check=False
    )


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    chapters = (f"第{n}回　某回\n　　话说{n}日天明，众人“起身”。行了{n}里，到了一处！\n" for n in "一二三四五六七八九")
    path.write_text("".join(chapters), encoding="utf-8")
    return path


def test_help_answers_at_once() -> None:
    plain("--help")
    start = time.monotonic()
    done = plain("--help")
    assert time.monotonic() - start < 0.3
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_the_global_options(command: str) -> None:
    done = plain(command, "--help")
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--artifacts", "--json", "--quiet", "--log-json", "--debug"))


def test_every_stage_prints_one_object_with_the_promised_fields(inkstone: Inkstone, book: Path, tmp_path: Path) -> None:
    packed = tmp_path / "book.txt.zst"
    packed.write_bytes(zstandard.compress(book.read_bytes()))
    said = {
        "download": inkstone("download", book),
        "decompress": inkstone("decompress", packed, "--out", tmp_path / "out"),
        "clean": inkstone("clean", "book"),
        "train-tokenizer": inkstone("train-tokenizer", "book", "--kind", "char"),
        "tokenize": inkstone("tokenize", "book", "--val-fraction", "0.3"),
        "train": inkstone("train", "--tokens", "book", "--preset", "mini", "--set", "vocab_size=0", "--steps", "3"),
        "sample": inkstone("sample", "mini", "--prompt", "话说", "--max-tokens", "5"),
        "status": inkstone("status"),
        "verify": inkstone("verify", "--deep"),
    }
    for command, fields in said.items():
        assert fields.keys() >= FIELDS, command
        assert fields["result"] in ("built", "unchanged"), command
    assert said["clean"]["counts"]["headings"] == 9
    assert said["clean"]["artifact"].startswith("corpora/book/")
    assert {"tokens", "documents", "input_bytes", "dtype", "tokenizer"} <= said["tokenize"].keys()
    trained = {
        "steps",
        "tokens",
        "tokens_per_second",
        "val_loss",
        "bits_per_char",
        "bits_per_byte",
        "mfu",
        "checkpoint",
    }
    assert trained <= said["train"].keys()
    assert said["sample"]["samples"][0].keys() >= {"prompt", "text", "token_ids", "seconds"}
    assert inkstone("tokenize", "book", "--val-fraction", "0.3")["result"] == "unchanged"


def test_global_options_work_before_and_after_the_command(book: Path, tmp_path: Path) -> None:
    root = tmp_path / "a"
    before = plain("--artifacts", root, "--json", "-q", "clean", book)
    after = plain("clean", book, "--artifacts", root, "--json", "-q")
    named = plain("clean", book, "--json", INKSTONE_ARTIFACTS=str(root))
    assert [json.loads(done.stdout)["result"] for done in (before, after, named)] == ["built", "unchanged", "unchanged"]
    assert before.stderr == after.stderr == ""


def test_quiet_says_nothing_on_success_and_the_log_has_it(book: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    done = plain("-q", "--log-json", log, "--artifacts", tmp_path / "a", "clean", book)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert {"start", "done"} <= {event["event"] for event in events}


@pytest.fixture
def shelf(inkstone: Inkstone, book: Path) -> Path:
    """An artifacts folder with a cleaned book, its tokenizer and its tokens."""
    inkstone("clean", book)
    inkstone("train-tokenizer", "book", "--kind", "char")
    inkstone("tokenize", "book", "--val-fraction", "0.3")
    return book


def made(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def broken(folder: Path) -> dict[str, Path]:
    line = b'{"text": "one"}\n'
    return {
        "missing": folder / "none.txt",
        "not-zstd": made(folder, "not.jsonl.zst", b"<html>please log in</html>"),
        "truncated": made(folder, "cut.jsonl.zst", zstandard.compress(line * 5000)[:-9]),
        "bad-line": made(folder, "bad.jsonl", line * 9 + b'{"text": \n'),
        "empty": made(folder, "empty.txt", b""),
        "empty-lines": made(folder, "empty.jsonl", b""),
        "not-utf8": made(folder, "gbk.txt", "话说".encode("gbk")),
        "one": made(folder, "one.jsonl", line),
        "recipe": made(folder, "recipe.toml", b"name = 3"),
        "same-name": made(folder, "empty.jsonl.gz", b""),
    }


BAD_INPUT = [
    (("download", "{missing}"), 66, "neither a source nor a path"),
    (("download", "pile"), 78, "--shards"),
    (("download", "pile", "--shards", "44"), 78, "got '44'"),
    (("download", "sample", "--shards", "0"), 78, "--shards"),
    (("download", "http://127.0.0.1:9/x.jsonl.zst", "--jobs", "1"), 75, "check the network"),
    (("decompress", "{missing}"), 66, "no such file"),
    (("decompress", "{empty}"), 78, "not a compressed file"),
    (("decompress", "{not-zstd}"), 65, "a web page where zstd frame 1 should begin"),
    (("decompress", "{truncated}"), 65, "truncated"),
    (("clean", "{missing}"), 66, "no downloaded source"),
    (("clean", "pile"), 66, "run `download pile --shards 0,val` first"),
    (("clean", "{truncated}"), 65, "truncated"),
    (("clean", "{not-zstd}"), 65, "a web page"),
    (("clean", "{bad-line}"), 11, "1 bad-json"),
    (("clean", "{empty}"), 65, "the file is empty"),
    (("clean", "{empty-lines}"), 65, "no text is left"),
    (("clean", "{not-utf8}"), 65, "--encoding"),
    (("clean", "{one}", "--unit", "verse"), 78, "one of chapter"),
    (("clean", "{one}", "--profile", "poetry"), 78, "one of auto"),
    (("clean", "{one}", "--name", "../one"), 78, "is not a valid artifact name"),
    (("train-tokenizer", "nothing"), 66, "available: book"),
    (("train-tokenizer", "book", "--vocab-size", "8000"), 65, "at most"),
    (("train-tokenizer", "book", "--kind", "wordpiece"), 78, "kinds:"),
    (("tokenize", "nothing"), 66, "no corpus"),
    (("tokenize", "book", "--tokenizer", "nothing"), 66, "ready ones: gpt2, r50k_base"),
    (("tokenize", "book", "--val-fraction", "1.5"), 78, "must be in [0, 1)"),
    (("tokenize", "book", "--val-fraction", "0"), 65, "the val split is empty"),
    (("tokenize", "book", "--val", "book"), 78, "both trained on and validated on"),
    (("tokenize", "book", "--format", "parquet"), 78, "formats:"),
    (("tokenize", "{bad-line}", "--tokenizer", "book"), 11, "1 bad-json"),
    (("tokenize", "{truncated}", "--tokenizer", "book"), 65, "truncated"),
    (("train", "--tokens", "nothing"), 66, "available: book"),
    (("train", "--tokens", "book", "--preset", "gpt5"), 78, "presets:"),
    (("train", "--tokens", "book", "--preset", "gpt2-124m"), 65, "too few for a block of 1024"),
    (("train", "--tokens", "book", "--set", "width"), 78, "key=value"),
    (("train", "--tokens", "book", "--steps", "3", "--minutes", "1"), 78, "exclude each other"),
    (("train", "--tokens", "book", "--minutes", "0"), 78, "must be greater than 0"),
    (("train", "--tokens", "book", "--minutes", "nan"), 78, "must be greater than 0"),
    (("train", "--tokens", "book", "--set", "beta1=2"), 78, "beta1"),
    (("train", "--tokens", "book", "--set", "seed=-1"), 78, "seed"),
    (("train", "--tokens", "book", "--counting"), 78, "exclude each other"),
    (("download", "{empty}", "{same-name}"), 78, "two of these would become raw/empty"),
    (("train", "--tokens", "book", "--set", "block_size=16", "--device", "tpu"), 78, "no device"),
    (("sample", "nothing", "--prompt", "x"), 66, "`train` creates one"),
    (("sample",), 66, "`train` creates one"),
    (("refresh", "{missing}"), 66, "no such recipe"),
    (("refresh", "{recipe}"), 78, "Expected `str`"),
    (("refresh", ROOT / "pipeline" / "recipes" / "sample.toml", "--through", "nowhere"), 78, "stages:"),
    (("verify", "nothing"), 66, "no artifact here"),
    (("clean",), 2, "Missing argument"),
    (("clean", "{one}", "--min-chars", "many"), 2, "not a valid integer"),
    (("clena",), 2, "No such command"),
]


@pytest.mark.usefixtures("shelf")
def test_bad_input_gets_one_line_with_a_next_step_the_right_code_and_publishes_nothing(
    inkstone: Inkstone, root: Path, tmp_path: Path
) -> None:
    files = {f"{{{name}}}": path for name, path in broken(tmp_path).items()}
    before = published(root)
    for arguments, code, message in BAD_INPUT:
        said = inkstone(*(files.get(str(each), each) for each in arguments), code=code)
        assert said["result"] == "failed", arguments
        assert said["exit_code"] == code
        assert message in f"{said['error']} {said['hint']}", (arguments, said)
        assert said["hint"], arguments
        last = said["stderr"].strip().splitlines()[-1]
        assert last.startswith("error: "), arguments
        assert "Traceback" not in said["stderr"]
        assert published(root) == before, arguments


def published(root: Path) -> set[str]:
    return {str(path) for path in root.rglob("manifest.json")}


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in plain("--debug", "clean", tmp_path / "none.txt").stderr


@pytest.mark.usefixtures("shelf")
def test_rejects_of_a_refused_corpus_are_kept_where_the_message_says(inkstone: Inkstone, tmp_path: Path) -> None:
    said = inkstone("clean", broken(tmp_path)["bad-line"], code=11)
    folder = Path(said["error"].split(": ")[0])
    rejected = json.loads(
        zstandard.ZstdDecompressor().stream_reader((folder / "rejects.jsonl.zst").read_bytes()).read()
    )
    assert (rejected["file"], rejected["line"], rejected["reason"]) == ("bad.jsonl", 10, "bad-json")


@pytest.mark.usefixtures("shelf")
def test_a_damaged_artifact_is_named_and_not_used(inkstone: Inkstone, root: Path) -> None:
    victim = next((root / "tokens" / "book").glob("*/train-00000-0000.bin"))
    victim.write_bytes(victim.read_bytes()[:-2])
    said = inkstone("verify", code=65)
    assert str(victim.parent.name) in said["error"]
    inkstone("train", "--tokens", "book", "--preset", "mini", "--set", "vocab_size=0", "--steps", "1", code=65)
    assert inkstone("tokenize", "book", "--val-fraction", "0.3")["result"] == "built"
    assert inkstone("verify", "--deep")["result"] == "unchanged"


def test_the_reader_of_a_pipe_may_go_away(inkstone: Inkstone, root: Path) -> None:
    inkstone("train", "--preset", "mini", "--counting", "--steps", "2")
    command = f"{sys.executable} {ROOT / 'cli.py'} --artifacts {root} sample mini --prompt-ids 1 --num-samples 50"
    piped = ["bash", "-o", "pipefail", "-c", f"{command} | true"]
    done = subprocess.run(piped, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_command_there_is_help() -> None:
    done = plain()
    assert (done.returncode, done.stderr) == (0, "")
    assert "tokenize" in done.stdout
