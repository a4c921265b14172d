"""A corpus of several parts: the same bytes for any number of jobs, after any kill, and what one part would hold."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from pipeline import api
from pipeline.clean import stage, tasks
from pipeline.clean.options import CleanOptions
from pipeline.clean.parts import builder, part
from pipeline.clean.parts.assembly import CorpusAssembly
from pipeline.clean.report import render
from pipeline.errors import BadData, TooManyRejects
from pipeline.readers import compression
from pipeline.refresh.plan import _digests
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.inputs import corpus_inputs, resolve_inputs
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.manifest import Identity
from pipeline.tokens.locate import locate

PART_BYTES = 9_000
MERGED = ("documents.jsonl.zst", "sentences.txt", "rejects.jsonl.zst")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Four files, of which the first two fit into a part: a book, records with rejects and duplicates, and a novel."""
    folder = tmp_path / "texts"
    folder.mkdir()
    book = "引首的话。\n" + "".join(f"第{number}回　得宝\n" + f"林冲走了{number}回。\n" * 9 for number in "一二三四五")
    (folder / "a.txt").write_text(book, encoding="utf-8")
    for name, numbers in (("b", range(60)), ("c", range(40, 200))):
        lines = [json.dumps({"text": f"宋江说了{number}句话。", "meta": {"n": number}}) for number in numbers]
        lines[3:3] = ['{"text":"   "}', '{"text":"cut']
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "d.txt").write_text("".join(f"武松又打了{number}回虎。\n" for number in range(900)), encoding="utf-8")
    return folder


def clean(
    root: Path, texts: Path, name: str, *, jobs: int = 1, part_bytes: int = PART_BYTES, **options: Any
) -> Artifact:
    inputs = resolve_inputs(root, str(texts), corpora=False)
    chosen = CleanOptions(max_bad=0.5, **options)
    return stage.clean(root, name, inputs, chosen, SilentProgress(), jobs=jobs, part_bytes=part_bytes).artifact


def content(corpus: Artifact, name: str) -> bytes:
    """Return the bytes of the files that hold the parts of `name`, decompressed and joined."""
    stem = name.partition(".")[0]
    names = sorted(record.name for record in corpus.manifest.files if record.name.startswith(stem))
    return b"".join(b"".join(compression.read_blocks(corpus.file(name))) for name in names)


def file_names(corpus: Artifact) -> list[str]:
    return [record.name for record in corpus.manifest.files]


@pytest.mark.parametrize("dedup", ["no", "exact", "near"])
def test_parts_together_hold_what_one_part_would(root: Path, texts: Path, dedup: str) -> None:
    parts = clean(root, texts, "parts", dedup=dedup)
    one = clean(root, texts, "one", part_bytes=1 << 30, dedup=dedup)
    assert file_names(one) == ["documents.jsonl.zst", "rejects.jsonl.zst", "report.json", "sentences.txt"]
    assert file_names(parts) == [
        *(f"documents-0000{number}.jsonl.zst" for number in range(3)),
        *("rejects.jsonl.zst", "report.json"),
        *(f"sentences-0000{number}.txt" for number in range(3)),
    ]
    assert [content(parts, name) for name in MERGED] == [content(one, name) for name in MERGED]
    assert parts.file("report.json").read_bytes() == one.file("report.json").read_bytes()
    assert (parts.manifest.counts, parts.manifest.ledger) == (one.manifest.counts, one.manifest.ledger)
    assert json.loads(parts.file("report.json").read_bytes())["documents"]["duplicates"] == 20
    assert parts.manifest.ledger["documents"]["dropped"].get("duplicate", 0) == (20 if dedup != "no" else 0)
    assert [*api.load_corpus("parts", root)] == [*api.load_corpus("one", root)]


@pytest.mark.parametrize("dedup", ["no", "exact", "near"])
def test_two_jobs_and_parts_made_alone_give_the_same_bytes(
    root: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dedup: str
) -> None:
    monkeypatch.setattr(tasks, "TASK_CHARACTERS", 300)
    one = clean(root, texts, "one", dedup=dedup)
    assert clean(tmp_path / "other", texts, "one", jobs=2, dedup=dedup).manifest == one.manifest
    divided = part.divide(
        resolve_inputs(root, str(texts), corpora=False), CleanOptions(dedup=dedup), tmp_path / "scratch", PART_BYTES
    )
    for task in reversed(divided):
        record = builder.make_part(task)
        assert dedup != "no" or record.file("documents.jsonl.zst").sha256 == one.manifest.files[task.number].sha256
        assert msgspec.json.encode(builder.make_part(task), enc_hook=lambda value: value.tolist()) == (
            msgspec.json.encode(record, enc_hook=lambda value: value.tolist())
        )


class _KillAt(files.Disk):
    """A disk that kills the process before or after the first operation on a path that ends with `name`.

    Of writes, the second one to a file of the second part counts.
    """

    def __init__(self, operation: str, name: str, *, after: bool) -> None:
        self._kill = (operation, name, after)

    def _kill_at(self, operation: str, path: Path, *, after: bool) -> None:
        if self._kill == (operation, path.name, after) or self._kill == (operation, path.parent.name, after):
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, handle: Any, path: Path, data: bytes | memoryview) -> None:
        if handle.tell() > 0 and "part-00001" in str(path.parent):
            self._kill_at("second write", path, after=False)
        super().write(handle, path, data)

    def rename(self, old: Path, new: Path) -> None:
        self._kill_at("rename", new, after=False)
        super().rename(old, new)
        self._kill_at("rename", new, after=True)


def _clean_until(disk: files.Disk, root: Path, texts: Path, dedup: str) -> None:
    files.disk = disk
    clean(root, texts, "killed", dedup=dedup)


KILLS = [  # and the complete parts after each, with --dedup
    ("rename", "part-00000", False, 0),
    ("rename", "part-00000", True, 1),
    ("second write", "candidates", False, 1),
    ("rename", "part-00001", True, 2),
    ("rename", "part-00002", True, 3),
    ("second write", "documents.jsonl.zst", False, 3),
    ("rename", "manifest.json", False, 3),
]


@pytest.mark.parametrize("dedup", ["no", "exact", "near"])
def test_killed_and_resumed_equals_uninterrupted(
    root: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, dedup: str
) -> None:
    monkeypatch.setattr(tasks, "TASK_CHARACTERS", 300)
    context = multiprocessing.get_context("fork")
    kills = KILLS
    if dedup == "no":  # documents are written at once
        kills = [*KILLS[:2], ("second write", "documents.jsonl.zst", False, 1), KILLS[3], KILLS[4], KILLS[6]]
    for operation, name, after, complete in kills:
        process = context.Process(target=_clean_until, args=(_KillAt(operation, name, after=after), root, texts, dedup))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, name
        assert len([*root.glob("corpora/killed/.draft-*/.work/part-*/part.json")]) == complete
    killed, whole = clean(root, texts, "killed", dedup=dedup), clean(root, texts, "whole", dedup=dedup)
    assert killed.manifest.files == whole.manifest.files
    assert not artifact.find_problems(killed, deep=True)
    assert not killed.file(artifact.SCRATCH).exists()


@pytest.mark.parametrize("dedup", ["no", "exact", "near"])
def test_trial_counts_what_is_published_and_writes_nothing(root: Path, texts: Path, dedup: str) -> None:
    corpus = clean(root, texts, "some", dedup=dedup)
    held = sorted(root.rglob("*"))
    inputs = resolve_inputs(root, str(texts), corpora=False)
    report = stage.build_report(inputs, CleanOptions(max_bad=0.5, dedup=dedup), SilentProgress(), jobs=2)
    assert render.to_json(report) == json.loads(corpus.file("report.json").read_bytes())
    assert sorted(root.rglob("*")) == held


def test_held_out_text_is_dropped_from_every_part(root: Path, texts: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.txt"
    held.write_text("".join(f"武松又打了{number}回虎。" for number in range(40)) + "宋江说了41句话。", encoding="utf-8")
    inputs, held_out = (resolve_inputs(root, str(path), corpora=False) for path in (texts, held))
    options = CleanOptions(max_bad=0.5, decontaminate=("held",), dedup="exact")
    parts, one = (
        stage.clean(root, name, inputs, options, SilentProgress(), held_out=held_out, part_bytes=size).artifact
        for name, size in (("parts", PART_BYTES), ("one", 1 << 30))
    )
    assert parts.manifest.ledger["documents"]["dropped"]["contaminated"] == 1
    assert parts.file("report.json").read_bytes() == one.file("report.json").read_bytes()
    assert [content(parts, name) for name in MERGED] == [content(one, name) for name in MERGED]


def test_damaged_part_of_a_draft_is_made_again(root: Path, texts: Path) -> None:
    with pytest.raises(TooManyRejects):
        stage.clean(
            root, "some", resolve_inputs(root, str(texts), corpora=False), CleanOptions(), SilentProgress(),
            part_bytes=PART_BYTES,
        )  # fmt: skip
    parts = sorted(root.glob("corpora/some/.draft-*/.work/part-*"))
    unchanged = parts[0].joinpath("part.json").stat().st_mtime_ns
    parts[1].joinpath("documents.jsonl.zst").write_bytes(b"x")
    assert len(parts) == 3
    stamps: list[int] = []
    finish = CorpusAssembly.finish

    def watch(assembly: Any, draft: Path, inputs: Any) -> Any:
        stamps.extend(path.stat().st_mtime_ns for path in sorted(draft.glob(".work/part-*/part.json")))
        return finish(assembly, draft, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CorpusAssembly, "finish", watch)
        some = clean(root, texts, "some")
    assert stamps[0] == unchanged < stamps[1]
    assert some.manifest.files == clean(root, texts, "other").manifest.files


def test_bad_file_leaves_no_draft(root: Path, texts: Path) -> None:
    (texts / "e.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00")
    with pytest.raises(BadData):
        clean(root, texts, "some")
    assert not [*root.glob("corpora/some/.draft-*")]


def test_part_without_documents_has_no_file(root: Path, texts: Path) -> None:
    (texts / "b.jsonl").write_text('{"text":" "}\n' * 900, encoding="utf-8")
    corpus = clean(root, texts, "some")
    assert [name for name in file_names(corpus) if name.startswith("documents")] == [
        f"documents-0000{number}.jsonl.zst" for number in (0, 2, 3)
    ]
    assert len(corpus_inputs(corpus)) == 3


def test_corpus_of_an_older_version_is_read_as_before(root: Path) -> None:
    lines = [{"text": "山水", "meta": {"author": "甲"}}, {"text": "一石", "title": "乙", "source": "a.txt"}]

    def write(draft: Path) -> StageOutput:
        data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        draft.joinpath("documents.jsonl.zst").write_bytes(zstandard.compress(data))
        draft.joinpath("sentences.txt").write_text("山水\n一石\n", encoding="utf-8")
        return StageOutput({"documents": 2})

    old = artifact.build(root, Identity("corpora", "old", {"stage": 5}, ()), write).artifact
    first, second = api.load_corpus("old", root)
    assert (first.meta, second.title, second.source) == ({"author": "甲"}, "乙", "a.txt")
    [entry] = corpus_inputs(old)
    assert (entry.name, entry.digest) == (old.ref, old.digest), "so the keys of its tokens stay"
    assert api.train_tokenizer("old", kind="char", root=root).encode("山水") != []


def test_parts_are_tokenized_as_files_and_a_token_leads_to_its_document(root: Path, texts: Path) -> None:
    parts = clean(root, texts, "parts")
    tokenizer = api.train_tokenizer("parts", kind="char", root=root)
    clean(root, texts, "one", part_bytes=1 << 30)
    assert api.train_tokenizer("one", kind="char", root=root).fingerprint == tokenizer.fingerprint
    tokens, expected = (
        api.tokenize([name], name, tokenizer="parts", val_fraction=0.0, root=root) for name in ("parts", "one")
    )
    assert tokens.train.read(0, len(tokens.train)).tolist() == expected.train.read(0, len(expected.train)).tolist()
    built = artifact.find(root, "tokens", "parts")
    assert [entry.name for entry in built.manifest.inputs if entry.role == "train"] == [parts.ref] * 3
    location = locate(built, len(tokens.train) - 2)
    assert location.path == str(parts.file("documents-00002.jsonl.zst"))
    assert location.before.endswith("武松又打了899回虎")
    [(name, digest), *_] = _digests(built.manifest.inputs).items()
    assert (name, len(digest)) == ("corpora/parts", 3 * 64)
