"""Tokenizing and its tokenizers under faults: cases 36 to 41 of docs/design/reliability.md, section 2, truncated
shards, and kill -9.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData
from pipeline.export import export as token_export
from pipeline.sources import inputs
from pipeline.store import artifact, files
from pipeline.store.manifest import Identity
from pipeline.tokenizers import Characters, SentencePiece, Tiktoken
from pipeline.tokenizers import stage as tokenizers_stage
from pipeline.tokens import segments
from pipeline.tokens.stage import TokenizeInputs
from pipeline.tokens.store import open_store
from tests.support import chaos
from tests.support.chaos import Trial
from tests.support.tokenizing import (
    LETTERS,
    TEXTS,
    input_file,
    lines,
    no_draft,
    nothing_published,
    rows,
    run,
    some,
    texts_of,
    train_inputs,
)

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "pipeline" / "sample" / "yanshan.txt"
Inkstone = Callable[..., dict[str, Any]]


def assert_refused(message: dict[str, Any], root: Path) -> None:
    """Check for one error line with a hint on stderr, and nothing published or left as a draft."""
    assert message["result"] == "failed"
    assert message["hint"]
    assert [line for line in message["stderr"].splitlines() if line.startswith("error: ")] == [
        message["stderr"].rstrip().splitlines()[-1]
    ]
    assert "Traceback" not in message["stderr"]
    assert not [path for path in root.glob("tokens/*/*") if path.name != ".lock"]


# Damaged tokenizer files


@pytest.fixture(params=["bpe", "char"])
def trained(request: pytest.FixtureRequest, root: Path) -> artifact.Artifact:
    """A tokenizer trained on the sample, and published."""
    texts = tokenizers_stage.find_sentences(root, [str(SAMPLE)])
    size = 2500 if request.param == "bpe" else 0
    return tokenizers_stage.train(root, "book", texts, request.param, size).artifact


def main_file(made: artifact.Artifact) -> Path:
    """The file that holds the vocabulary."""
    (name,) = (record.name for record in made.manifest.files if record.name != "tokenizer.json")
    return made.file(name)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [truncate, flip, fill_with_zeros])
@pytest.mark.parametrize("card", [False, True])
def test_damaged_trained_tokenizer_raises_bad_data(
    root: Path, trained: artifact.Artifact, damage: Callable[[Path], None], card: bool
) -> None:
    """Case 36 of docs/design/reliability.md."""
    damage(trained.file("tokenizer.json") if card else main_file(trained))
    with pytest.raises(BadData, match="book"):
        tokenizers.find(root, "book")


@pytest.mark.parametrize("trained", ["bpe"], indirect=True)
def test_damaged_tokenizer_ends_the_command_before_any_work(
    inkstone: Inkstone, root: Path, tmp_path: Path, trained: artifact.Artifact
) -> None:
    """Case 36 of docs/design/reliability.md."""
    flip(main_file(trained))
    message = inkstone("tokenize", lines(tmp_path / "a.jsonl", TEXTS).path, "--tokenizer", "book", code=65)
    assert_refused(message, root)
    assert not (root / "tokens").exists()


@pytest.mark.parametrize("trained", ["char"], indirect=True)
def test_tokenizer_that_differs_from_its_manifest_is_refused(root: Path, trained: artifact.Artifact) -> None:
    """Case 36 of docs/design/reliability.md."""
    tokenizer, _ = tokenizers.find(root, "book")
    characters = main_file(trained).read_text(encoding="utf-8")
    Characters(characters[::-1], tokenizer.name).save(trained.path)  # valid in itself, and of the same sizes
    assert len(artifact.find_problems(trained, deep=True)) == 2
    for record in trained.manifest.files:  # as after bit rot: the times do not reveal the change
        os.utime(trained.file(record.name), (1e9, 1e9))
    assert artifact.find_problems(trained) == []
    with pytest.raises(BadData):
        tokenizers.find(root, "book")


@pytest.mark.parametrize("damage", [truncate, flip])
def test_damaged_ranks_in_the_tiktoken_cache_are_never_used(
    inkstone: Inkstone,
    shared: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    """Case 36 of docs/design/reliability.md."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for path in (shared / "tiktoken").iterdir():
        (cache / path.name).write_bytes(path.read_bytes())
        damage(cache / path.name)
    go_offline(monkeypatch, cache)
    # tiktoken checks the hash and downloads the ranks again, so the error is the missing network.
    message = inkstone("tokenize", lines(tmp_path / "a.jsonl", TEXTS).path, "--tokenizer", "r50k_base", code=75)
    assert_refused(message, root)


def go_offline(patch: pytest.MonkeyPatch, cache: Path) -> None:
    patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    patch.setenv("XDG_CACHE_HOME", str(cache))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        patch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        patch.delenv(name, raising=False)


# Hostile models


def varint(number: int) -> bytes:
    number, out = number % (1 << 64), b""
    while number > 127:
        number, out = number >> 7, out + bytes([number & 127 | 128])
    return out + bytes([number])


def field(number: int, value: bytes | int | float) -> bytes:
    """Encode one field of a protobuf message."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 5) + struct.pack("<f", value)


def model(*pieces: bytes, charsmap: bytes = b"", extra: bytes = b"") -> bytes:
    """Return a SentencePiece model of single letters and `pieces`, field by field (sentencepiece_model.proto)."""
    letters = [letter.encode() for letter in "abcdefghijklmnopqrstuvwxyz0123456789▁"]
    normal = [field(1, piece) + field(2, -1.0 - rank) for rank, piece in enumerate([*letters, *pieces])]
    special = [field(1, b"<unk>") + field(3, 2), field(1, b"</s>") + field(3, 3)]
    trainer = field(3, 2) + field(40, 0) + field(41, -1) + field(42, 1) + field(43, -1)  # BPE; unk, bos, eos, pad
    normalizer = field(1, b"identity") + field(3, 0) + field(4, 0) + (field(2, charsmap) if charsmap else b"")
    return b"".join(field(1, piece) for piece in [*special, *normal]) + field(2, trainer) + field(3, normalizer) + extra


TRIE = struct.pack("<I", 1024) + struct.pack("<256I", *[0x7FFFFFFF] * 256) + b"x\0"  # its nodes lie far outside

HOSTILE = {
    "empty": b"",
    "random": random.Random(37).randbytes(100_000),
    "truncated": model()[:-20],
    "one-byte-short": model()[:-1],
    "a-piece-of-100-kb": model(b"a" * 100_000),  # google/sentencepiece#1263: a stack overflow before 0.2.2
    "a-piece-of-nothing": model(b""),
    "a-nul": model(b"a\0b"),
    "the-same-piece-twice": model(b"ab", b"ab"),
    "charsmap": model(charsmap=TRIE),  # google/sentencepiece#1269: a read out of bounds before 0.2.2
    "charsmap-too-short": model(charsmap=b"\xff\xff\xff\xff"),
    "groups-without-end": model(extra=varint(500 << 3 | 3) * 100_000),
}


def test_base_of_the_hostile_models_is_valid(inkstone: Inkstone, tmp_path: Path) -> None:
    """Case 37 of docs/design/reliability.md."""
    (tmp_path / "good.model").write_bytes(model(b"ab"))
    path = lines(tmp_path / "a.jsonl", TEXTS).path
    assert inkstone("tokenize", path, "--tokenizer", tmp_path / "good.model")["result"] == "built"


# Runs the command once per model and prints each exit code and error.
_EACH = """
import contextlib, io, json, sys, cli
root, text, *models = sys.argv[1:]
for model in models:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = cli.main(["--artifacts", root, "tokenize", text, "--tokenizer", model])
    print(json.dumps([code, said.getvalue()]), flush=True)
"""


def try_models(root: Path, text: Path, models: Iterable[object]) -> list[tuple[int, str]]:
    """Return exit code and stderr of tokenizing with each model, all in one process that must survive."""
    command = [sys.executable, "-c", _EACH, *map(str, (root, text, *models))]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    results = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0, f"died with {process.returncode} after {len(results)} models: {process.stderr}"
    return [(code, message) for code, message in results]


def test_hostile_model_is_refused_without_a_crash(root: Path, tmp_path: Path) -> None:
    """Case 37 of docs/design/reliability.md."""
    for kind, data in HOSTILE.items():
        (tmp_path / f"{kind}.model").write_bytes(data)
    text = lines(tmp_path / "a.jsonl", TEXTS).path
    results = try_models(root, text, (tmp_path / f"{kind}.model" for kind in HOSTILE))
    assert [code for code, _ in results] == [65] * len(HOSTILE)
    for kind, (_, message) in zip(HOSTILE, results, strict=True):
        assert message.startswith(f"error: {kind}: ")
        assert message.count("\n") == 1
    assert not (root / "tokens").exists()


@pytest.mark.parametrize("trained", ["bpe"], indirect=True)
def test_hostile_model_in_a_trained_artifact_is_refused(root: Path, tmp_path: Path, trained: artifact.Artifact) -> None:
    """Case 37 of docs/design/reliability.md."""
    text, shelves = lines(tmp_path / "a.jsonl", TEXTS).path, []
    for kind, data in HOSTILE.items():  # of the size in the manifest, where that is possible
        shelves.append(shutil.copytree(trained.path, tmp_path / kind))
        (shelves[-1] / "tokenizer.model").write_bytes(data.ljust(main_file(trained).stat().st_size, b"\0"))
    results = try_models(root, text, shelves)
    assert [code for code, _ in results] == [65] * len(HOSTILE)
    assert all(message.startswith("error: ") and message.count("\n") == 1 for _, message in results)


def test_too_large_a_model_is_never_read_in_this_process(root: Path, tmp_path: Path) -> None:
    """Case 37 of docs/design/reliability.md."""
    with open(tmp_path / "large.model", "wb") as file:
        file.truncate(5 << 30)  # a sparse file, which takes no disk space
    ((code, message),) = try_models(root, lines(tmp_path / "a.jsonl", TEXTS).path, [tmp_path / "large.model"])
    assert code == 65
    assert "needs more than 4 GiB" in message


_CRASHES = """
import os, signal
class SentencePieceProcessor:
    def __init__(self, **_):
        os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_model_that_crashes_the_library_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 37 of docs/design/reliability.md."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "sentencepiece.py").write_text(_CRASHES, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'library'}")
    (tmp_path / "deadly.model").write_bytes(model())
    ((code, message),) = try_models(root, lines(tmp_path / "a.jsonl", TEXTS).path, [tmp_path / "deadly.model"])
    assert code == 65
    assert "deadly.model: loading this model crashes the process" in message


def test_model_with_a_piece_that_is_not_utf_8_is_refused(inkstone: Inkstone, root: Path, tmp_path: Path) -> None:
    """Case 37 of docs/design/reliability.md."""
    (tmp_path / "bytes.model").write_bytes(model(b"a\xff"))
    path = lines(tmp_path / "a.jsonl", [*TEXTS, "a long one " * 10_000]).path
    message = inkstone("tokenize", path, "--tokenizer", tmp_path / "bytes.model", code=65)
    assert_refused(message, root)


# No network


def test_missing_network_and_cache_error_says_what_to_provide(
    inkstone: Inkstone, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 38 of docs/design/reliability.md."""
    go_offline(monkeypatch, tmp_path / "empty")
    start = time.monotonic()
    message = inkstone("tokenize", lines(tmp_path / "a.jsonl", TEXTS).path, "--tokenizer", "cl100k_base", code=75)
    assert time.monotonic() - start < 30
    assert "cl100k_base" in message["error"]
    assert "TIKTOKEN_CACHE_DIR" in message["hint"]
    assert_refused(message, root)


def test_tokens_open_offline_with_their_own_tokenizer(
    shared: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 38 of docs/design/reliability.md."""
    tokens = run(root, some(tmp_path), tokenizer=Tiktoken.named("r50k_base")).artifact
    go_offline(monkeypatch, tmp_path / "empty")
    assert set(texts_of(tokens, "train", open_store(tokens).tokenizer)) < set(TEXTS)


# Text that spells a special token

SPELLED = ["<|endoftext|>", "<|endofprompt|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
SPELLED += ["<s>", "</s>", "<pad>", "<unk>", "<0x0A>"]
SPELLING = [
    *SPELLED,
    *(f"one{spelling}two" for spelling in SPELLED),
    "".join(SPELLED),
    "<|endoftext|>" * 500,
    "<|endoftext|",
]


@pytest.mark.parametrize(
    ("encoding", "special"),
    [("r50k_base", {50256}), ("cl100k_base", set(range(100257, 100277))), ("o200k_base", {199999, 200018})],
)
@pytest.mark.parametrize("encoder", ["gigatoken", "tiktoken"])
def test_text_never_becomes_a_special_token_of_an_encoding(
    shared: Path, tmp_path: Path, root: Path, encoding: str, special: set[int], encoder: str
) -> None:
    """Case 39 of docs/design/reliability.md."""
    tokenizer = Tiktoken.named(encoding, encoder)
    tokens = run(root, train_inputs(tmp_path, *SPELLING), tokenizer=tokenizer).artifact
    assert_ends_only(tokens, special)
    assert texts_of(tokens, "train", tokenizer) == SPELLING


@pytest.mark.parametrize("trained", ["bpe"], indirect=True)
def test_text_never_becomes_a_control_piece_of_a_trained_model(
    tmp_path: Path, root: Path, trained: artifact.Artifact
) -> None:
    """Case 39 of docs/design/reliability.md."""
    tokenizer, _ = tokenizers.find(root, "book")
    tokens = run(root, train_inputs(tmp_path, *SPELLING), tokenizer=tokenizer, trained=trained).artifact
    assert_ends_only(tokens, {0, 1})
    assert texts_of(tokens, "train", tokenizer) == SPELLING


def test_text_never_becomes_end_of_text_of_an_untrusted_model(tmp_path: Path, root: Path) -> None:
    """Case 39 of docs/design/reliability.md."""
    tokenizer = SentencePiece(model(b"</", b"s>"), "elsewhere")
    tokens = run(root, train_inputs(tmp_path, *SPELLING), tokenizer=tokenizer, allow_unknown=True).artifact
    assert_ends_only(tokens, {1})


def assert_ends_only(made: artifact.Artifact, special: set[int]) -> None:
    end = made.manifest.counts["end_of_text"]
    assert end in special
    for row in rows(made, "train"):
        assert row[-1] == end
        assert not special & set(row[:-1])


# Wide vocabularies


@pytest.mark.parametrize(("extra", "dtype"), [(0, "<u2"), (1, "<u4")])
@pytest.mark.parametrize("layout", segments.FORMATS)
def test_ids_above_65535_take_four_bytes(tmp_path: Path, root: Path, extra: int, dtype: str, layout: str) -> None:
    """Case 40 of docs/design/reliability.md."""
    wide = "".join(map(chr, range(0x10000, 0x20000 - 2 + extra)))
    tokenizer = Characters(wide, "wide")
    assert tokenizer.vocab_size == 65_536 + extra
    tokens = run(
        root, train_inputs(tmp_path, wide[-3:]), tokenizer=tokenizer, format=layout, allow_unknown=True
    ).artifact
    assert tokens.manifest.counts["dtype"] == dtype
    array = open_store(tokens).train
    assert array.read(0, 4).tolist() == [*range(tokenizer.vocab_size - 3, tokenizer.vocab_size), 0]
    assert {segment.dtype for segment in array.segments} == {np.dtype(dtype)}


def test_two_byte_format_refuses_a_wide_vocabulary(shared: Path, tmp_path: Path, root: Path) -> None:
    """Case 40 of docs/design/reliability.md."""
    tokens = run(root, train_inputs(tmp_path, *TEXTS), tokenizer=Tiktoken.named("cl100k_base")).artifact
    with pytest.raises(BadConfig, match="nanogpt holds ids below 65,536"):
        token_export.export(tokens, "nanogpt", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


# Training a tokenizer


def test_killed_training_leaves_no_partial_model_and_repeats(shared: Path, tmp_path: Path) -> None:
    """Case 41 of docs/design/reliability.md."""
    book = tmp_path / "book.txt"
    book.write_bytes((shared / "data" / "shuihu_raw.txt").read_bytes()[:600_000].rpartition(b"\n")[0])
    start = time.monotonic()
    assert train(tmp_path / "quiet", book).wait() == 0
    seconds, expected = time.monotonic() - start, models(tmp_path / "quiet")
    draw = random.Random(41)
    for number in range(4):
        root = tmp_path / str(number)
        first = train(root, book)
        time.sleep(draw.uniform(0.3, 0.95) * seconds)
        first.kill()
        first.wait()
        paths = list(root.glob("tokenizers/book/[!.]*"))
        assert not paths or models(root) == expected  # it may have been complete
        assert [path for path in root.rglob("*.model") if not path.parent.name.startswith(".draft-")] == [
            path / "tokenizer.model" for path in paths if not path.is_symlink()
        ]
        assert train(root, book).wait() == 0
        assert models(root) == expected
        assert not chaos.leftovers(root)


def train(root: Path, book: Path) -> subprocess.Popen[bytes]:
    arguments = ("--artifacts", root, "-q", "train-tokenizer", book, "--name", "book", "--vocab-size", 4000)
    return subprocess.Popen([sys.executable, "cli.py", *map(str, arguments)], cwd=ROOT)


def models(root: Path) -> dict[str, str]:
    """Return the sha256 of every file of the current tokenizer, its manifest included."""
    folder = (root / "tokenizers" / "book" / "current").resolve()
    return {path.name: files.sha256_of(path) for path in folder.iterdir() if path.name != "run.json"}


# Truncated shards


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of one zstd frame, as in the Pile; any truncation of such a frame is detectable."""
    text = SAMPLE.read_text(encoding="utf-8")
    path = tmp_path_factory.mktemp("shard") / "00.jsonl.zst"
    packed = b"".join(b"%b\n" % json.dumps({"text": f"{n} {text[n:]}"}).encode() for n in range(50))
    path.write_bytes(zstandard.ZstdCompressor(level=3).compress(packed))
    return path


def cuts(shard: Path, count: int, seed: int) -> list[int]:
    draw, size = random.Random(seed), shard.stat().st_size
    return [0, 1, 4, size - 1, *(draw.randrange(5, size) for _ in range(count - 4))]


def test_truncated_shard_publishes_nothing(tmp_path: Path, root: Path, shard: Path) -> None:
    val = lines(tmp_path / "val.jsonl", ["held out"])
    complete = run(tmp_path / "whole", beside(shard, val), allow_unknown=True).artifact
    path = tmp_path / "00.jsonl.zst"
    for size in cuts(shard, 50, 24):
        path.write_bytes(shard.read_bytes()[:size])
        with pytest.raises(BadData, match=r"00\.jsonl\.zst: "):
            run(root, beside(path, val), allow_unknown=True)
        assert nothing_published(root)
        assert no_draft(root)
    path.write_bytes(shard.read_bytes())
    assert run(root, beside(path, val), allow_unknown=True).artifact.digest == complete.digest


def beside(path: Path, val: inputs.InputFile) -> TokenizeInputs:
    return TokenizeInputs((input_file(path),), (val,))


def test_truncated_shard_exits_65_and_ends_the_workers(tmp_path: Path, root: Path, shard: Path) -> None:
    val = lines(tmp_path / "val.jsonl", ["held out"]).path
    path = tmp_path / "00.jsonl.zst"
    for size in cuts(shard, 6, 65)[-3:]:
        path.write_bytes(shard.read_bytes()[:size])
        arguments = ("tokenize", path, "--val", val, "--tokenizer", letters(root).path, "--jobs", 2)
        command = chaos.command("--artifacts", root, *arguments, unit=100_000, chunk=20_000)
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        message = process.communicate()[1]
        assert process.returncode == 65, message
        assert "truncated" in message.splitlines()[-1]
        assert "Traceback" not in message
        assert chaos.survivors(process.pid) == []
        assert [entry.name for entry in (root / "tokens" / "00").iterdir()] == [".lock"]


def letters(root: Path) -> artifact.Artifact:
    def write(draft: Path) -> artifact.StageOutput:
        LETTERS.save(draft)
        return artifact.StageOutput({})

    return artifact.build(root, Identity("tokenizers", "letters", {}, ()), write).artifact


# kill -9

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which processes live")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return chaos.prepare(tmp_path_factory.mktemp("trial"), megabytes=10)


@linux
def test_20_random_kills_end_in_the_bytes_of_one_run(trial: Trial, tmp_path: Path) -> None:
    rounds = chaos.rounds(trial, tmp_path, 20, seed=20)
    assert [outcome.problems for outcome in rounds if outcome.problems] == []
    print(chaos.summary(rounds))


def until_units(first: subprocess.Popen[str], root: Path, count: int) -> None:
    """Wait until `count` units are recorded as complete."""
    while len(chaos.left_behind(root).finished) < count:
        assert first.poll() is None
        time.sleep(0.005)


@linux
def test_killed_run_resumes_after_its_last_complete_unit(trial: Trial, tmp_path: Path) -> None:
    first = trial.start(tmp_path)
    until_units(first, tmp_path, 4)
    first.kill()
    first.communicate()
    assert chaos.survivors(first.pid) == []
    before = chaos.left_behind(tmp_path)
    assert len(before.finished) >= 4
    assert before.started <= 1
    second = trial.start(tmp_path)
    second.communicate()
    assert second.returncode == 0
    current = tmp_path / "tokens" / "chaos" / "current"
    assert {name: chaos.stamp(current / name) for name in before.finished} == before.finished
    assert chaos.published(tmp_path) == trial.expected


@linux
def test_killed_worker_exits_71_and_the_next_run_resumes(trial: Trial, tmp_path: Path) -> None:
    """Case 34 of docs/design/reliability.md."""
    first = trial.start(tmp_path)
    until_units(first, tmp_path, 2)
    os.kill(chaos.workers_of(first.pid)[0], signal.SIGKILL)
    printed, message = first.communicate()
    assert first.returncode == 71
    assert json.loads(printed)["exit_code"] == 71
    assert message.splitlines()[-1].startswith("error: a worker process was killed")
    assert "Traceback" not in message
    assert chaos.survivors(first.pid) == []
    assert len(chaos.left_behind(tmp_path).finished) >= 2
    second = trial.start(tmp_path)
    second.communicate()
    assert second.returncode == 0
    assert chaos.published(tmp_path) == trial.expected


@pytest.fixture
def crumbs(root: Path, tmp_path: Path) -> list[Path]:
    """Leftovers of a run killed while it moved `current`."""
    link = root / "tokens" / "some" / ".tmp.current.0a1b2c3d"
    link.parent.mkdir(parents=True)
    link.symlink_to("0123456789abcdef")
    return [link]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path, root: Path, crumbs: list[Path]) -> None:
    run(root, some(tmp_path))
    assert [path for path in crumbs if path.is_symlink() or path.exists()] == []
