"""The writer: order, filters, duplicates, rejects, and resuming a stopped run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from pipeline.errors import BadConfig, BadData
from pipeline.store import artifact
from pipeline.store.artifact import BuildResult
from pipeline.tokenizers import stage as tokenizers_stage
from pipeline.tokens import resume, segments
from pipeline.tokens import stage as tokens_stage
from pipeline.tokens.options import TokenizeOptions
from pipeline.tokens.stage import TokenizeInputs
from pipeline.tokens.writer import TokenWriter
from tests.support.chaos import left_behind, stamp
from tests.support.tokenizing import (
    TEXTS,
    checksums,
    dropped,
    input_file,
    is_held_out,
    lines,
    no_draft,
    nothing_published,
    rejects,
    run,
    shrink_chunks,
    some,
    texts_of,
    train_inputs,
)


def kept(tokens: artifact.Artifact) -> set[str]:
    return {text for split in segments.SPLITS for text in texts_of(tokens, split)}


# Filters, duplicates and max_documents


def of_sets(folder: Path) -> TokenizeInputs:
    """One file of each of two sets and one without a set, to be divided by hash."""
    sets = {"Pile-CC": "crawled", "USPTO": "known", "": "anywhere"}
    texts = {name: [f"{word} {number}" for number in range(60)] for name, word in sets.items()}
    return TokenizeInputs(tuple(lines(folder / f"{len(name)}.jsonl", texts[name], name) for name in sets), ())


@pytest.mark.parametrize(
    ("options", "sets", "reasons"),
    [
        ({}, {"Pile-CC": 60, "USPTO": 60}, {}),
        ({"include_sets": ("Pile-CC",)}, {"Pile-CC": 60}, {"set-not-included": 120}),
        ({"include_sets": ("Pile-CC", "USPTO")}, {"Pile-CC": 60, "USPTO": 60}, {"set-not-included": 60}),
        ({"exclude_sets": ("Pile-CC",)}, {"USPTO": 60}, {"set-excluded": 60}),
        ({"exclude_sets": ("Pile-CC", "USPTO")}, {}, {"set-excluded": 120}),
        ({"include_sets": ("Pile-CC",), "exclude_sets": ("other",)}, {"Pile-CC": 60}, {"set-not-included": 120}),
        ({"min_chars": 10}, {"Pile-CC": 50}, {"too-short": 70}),
        ({"min_chars": 10, "exclude_sets": ("USPTO",)}, {"Pile-CC": 50}, {"set-excluded": 60, "too-short": 10}),
    ],
)
@pytest.mark.usefixtures("small")
def test_filtered_documents_are_counted_by_set_and_reason(
    tmp_path: Path, root: Path, options: dict[str, Any], sets: dict[str, int], reasons: dict[str, int]
) -> None:
    tokens = run(root, of_sets(tmp_path), **options).artifact
    assert tokens.manifest.counts["sets"] == sets
    assert dropped(tokens) == reasons
    assert len(rejects(tokens)) == sum(reasons.values())
    assert len(kept(tokens)) == tokens.manifest.counts["documents"] == 180 - sum(reasons.values())


def test_set_both_included_and_excluded_is_refused() -> None:
    with pytest.raises(BadConfig, match="b is both included and excluded"):
        TokenizeOptions(include_sets=("a", "b"), exclude_sets=("b", "c"))


def test_command_line_filters_documents(inkstone: Callable[..., dict[str, Any]], root: Path, tmp_path: Path) -> None:
    paths = [file.path for file in of_sets(tmp_path).train]
    tokenizers_stage.train(root, "letters", tokenizers_stage.find_sentences(root, [*map(str, paths)]), "char", 0)
    arguments = ("tokenize", *paths, "--tokenizer", "letters")
    outcome = inkstone(
        *arguments, "--exclude-set", "Pile-CC", "--min-chars", "7", "--max-documents", "99", "--dedup", "exact"
    )
    assert outcome["sets"] == {"USPTO": 60}
    assert outcome["documents"] == 99
    assert outcome["ledger"]["documents"]["dropped"] == {"over-max-documents": 21, "set-excluded": 60}
    refused = inkstone(*arguments, "--exclude-set", "Pile-CC", "--include-set", "Pile-CC", code=78)
    assert "both included and excluded" in refused["error"]
    assert "--dedup must be one of" in inkstone(*arguments, "--dedup", "fuzzy", code=78)["error"]


@pytest.mark.usefixtures("small")
def test_dedup_keeps_the_first_text_in_input_order(tmp_path: Path, root: Path) -> None:
    first = [*TEXTS[:60], TEXTS[0], TEXTS[1]]  # duplicates in the same chunk, another unit,
    second = [TEXTS[59], *TEXTS[60:80], TEXTS[60]]  # another file,
    val = [TEXTS[3], "held out", TEXTS[70], "held out"]  # and in the validation file
    texts_by_name = {"a": first, "b": second, "c": val}
    files = {name: lines(tmp_path / f"{name}.jsonl", texts) for name, texts in texts_by_name.items()}
    tokens = run(root, TokenizeInputs((files["a"], files["b"]), (files["c"],)), dedup="exact").artifact
    assert texts_of(tokens, "train") == TEXTS[:80]
    assert texts_of(tokens, "val") == ["held out"]
    assert dropped(tokens) == {"duplicate": 7}
    lost = [("a", 61), ("a", 62), ("b", 1), ("b", 22), ("c", 1), ("c", 3), ("c", 4)]
    starts = [offset_of_line(files[name].path, line) for name, line in lost]
    expected = [(f"{name}.jsonl", line, at, "duplicate") for (name, line), at in zip(lost, starts, strict=True)]
    assert rejects(tokens) == expected


def offset_of_line(path: Path, line: int) -> int:
    return len(b"".join(path.read_bytes().splitlines(keepends=True)[: line - 1]))


@pytest.mark.usefixtures("small")
def test_equal_texts_stay_without_dedup(tmp_path: Path, root: Path) -> None:
    tokens = run(root, train_inputs(tmp_path, "same", "same", "same")).artifact
    assert texts_of(tokens, "train") == ["same"] * 3


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("limit", [37, 77, 120])
@pytest.mark.usefixtures("small")
def test_max_documents_keeps_the_first_in_input_order(tmp_path: Path, root: Path, limit: int, jobs: int) -> None:
    files = [lines(tmp_path / f"{n}.jsonl", TEXTS[n * 50 : n * 50 + 50]) for n in range(4)]
    tokens = run(
        root, TokenizeInputs(tuple(files), ()), max_documents=limit, min_chars=15, val_fraction=0.3, jobs=jobs
    ).artifact
    expected = [text for text in TEXTS if len(text) >= 15][:limit]
    held_out = [text for text in expected if is_held_out(text, 0.3)]
    assert texts_of(tokens, "val") == held_out
    assert texts_of(tokens, "train") == [text for text in expected if text not in held_out]
    assert set(dropped(tokens)) <= {"over-max-documents"}
    assert tokens.manifest.counts["input_bytes"] < sum(file.path.stat().st_size for file in files)  # it stopped reading


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("limit", [60, 200])
def test_damage_after_the_last_wanted_document_is_ignored(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, limit: int, jobs: int
) -> None:
    shrink_chunks(monkeypatch, 4000, 1000)
    cut = compressed(lines(tmp_path / "a.jsonl", TEXTS).path)
    cut.write_bytes(cut.read_bytes()[:-1])
    inputs = TokenizeInputs((input_file(cut),), (lines(tmp_path / "val.jsonl", ["held out"]),))
    if limit < 200:
        assert run(root, inputs, max_documents=limit, jobs=jobs).artifact.manifest.counts["train_documents"] == limit
    else:
        with pytest.raises(BadData, match="truncated"):
            run(root, inputs, max_documents=200, jobs=jobs)


def compressed(path: Path) -> Path:
    """Compress a file into several zstd frames, one for every 20 lines."""
    file_lines = path.read_bytes().splitlines(keepends=True)
    frames = [zstandard.compress(b"".join(file_lines[start : start + 20])) for start in range(0, len(file_lines), 20)]
    packed = path.with_name(f"{path.name}.zst")
    packed.write_bytes(b"".join(frames))
    return packed


def test_max_documents_equal_to_the_input_drops_nothing(tmp_path: Path, root: Path) -> None:
    assert dropped(run(root, some(tmp_path), max_documents=len(TEXTS)).artifact) == {}


@pytest.mark.usefixtures("small")
def test_duplicates_do_not_count_towards_max_documents(tmp_path: Path, root: Path) -> None:
    inputs = some(tmp_path, [text for text in TEXTS for _ in range(2)], files=1)
    tokens = run(root, inputs, max_documents=60, dedup="exact").artifact
    assert kept(tokens) == set(TEXTS[:60])


def test_long_document_that_reaches_max_documents_is_complete(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_chunks(monkeypatch, 600, 150, long_line=200)
    texts = [*TEXTS[:40], "a long one " * 100]
    tokens = run(root, some(tmp_path, [*texts, *TEXTS[40:]], files=1), max_documents=41).artifact
    assert kept(tokens) == set(texts)


def test_max_documents_limits_validation_files_separately(tmp_path: Path, root: Path) -> None:
    tokens = run(root, train_inputs(tmp_path, *TEXTS), max_documents=10).artifact
    assert texts_of(tokens, "val") == ["held out"]


# Rejects


@pytest.mark.usefixtures("small")
def test_rejects_file_has_the_input_line_of_every_reject(tmp_path: Path, root: Path) -> None:
    expected = []
    for name in (b"a", b"b"):
        file_lines = [
            b"[]" if number % 10 == 3 else b'{"text":"%b %d"}' % (name * 6, number) for number in range(1, 101)
        ]
        path = tmp_path / f"{name.decode()}.jsonl"
        path.write_bytes(b"\n".join(file_lines))
        expected += [(path.name, line, offset_of_line(path, line), "bad-record") for line in range(3, 101, 10)]
    inputs = tokens_stage.gather_inputs(root, [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], [])
    tokens = run(root, inputs, max_bad=0.5, val_fraction=0.3).artifact
    assert rejects(tokens) == expected
    assert tokens.manifest.counts["units"] > 6


@pytest.mark.usefixtures("small")
def test_line_across_units_belongs_to_the_first(tmp_path: Path, root: Path) -> None:
    texts = ["short", "long " * 1000, "short again"]
    tokens = run(root, train_inputs(tmp_path, *texts)).artifact
    assert texts_of(tokens, "train") == texts
    units = [name[12:16] for name in checksums(tokens) if name.startswith("train-") and name.endswith(".bin")]
    assert units == ["0000", f"{offset_of_line(tmp_path / 'train.jsonl', 3) // 600:04d}"]


# Resuming


class Stopped(Exception):
    """Raised to end a run as abruptly as a kill."""


def run_until(
    patch: pytest.MonkeyPatch, count: int, root: Path, inputs: TokenizeInputs, **options: Any
) -> BuildResult | None:
    """Run until `count` tasks have been added. Returns the result, None if the run was stopped."""
    added, real = 0, TokenWriter.add

    def add(self: TokenWriter, *arguments: Any) -> None:
        nonlocal added
        if added == count:
            raise Stopped
        added += 1
        real(self, *arguments)

    with patch.context() as inner:
        inner.setattr(TokenWriter, "add", add)
        try:
            return run(root, inputs, **options)
        except Stopped:
            return None


RESUMED: list[dict[str, Any]] = [
    {},
    {"format": "hdf5"},
    {"dedup": "exact"},
    {"dedup": "exact", "max_documents": 90, "format": "both"},
    {"max_documents": 110, "min_chars": 12},
]


@pytest.mark.parametrize("options", RESUMED)
@pytest.mark.usefixtures("small")
def test_run_stopped_anywhere_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    inputs = some(tmp_path, [*TEXTS[:120], *TEXTS[:30], *TEXTS[120:]])
    uninterrupted = run(tmp_path / "whole", inputs, **options).artifact
    for count in (5, 14) if "format" in options else (0, 1, 3, 7, 12, 16):
        root = tmp_path / f"stopped-{count}"
        assert not run_until(monkeypatch, count, root, inputs, **options)
        assert nothing_published(root)
        resumed = run(root, inputs, **options).artifact
        assert (resumed.manifest, resumed.digest) == (uninterrupted.manifest, uninterrupted.digest)
        assert rejects(resumed) == rejects(uninterrupted)
        assert no_draft(root)
        assert not list(root.rglob(artifact.SCRATCH))


@pytest.mark.usefixtures("small")
def test_run_stopped_repeatedly_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = some(tmp_path)
    uninterrupted = run(tmp_path / "whole", inputs, dedup="exact").artifact
    stops = 0
    while not (tokens := run_until(monkeypatch, 6, tmp_path / "stopped", inputs, dedup="exact")):
        stops += 1
    assert stops > 3
    assert tokens.artifact.digest == uninterrupted.digest


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> tuple[Path, TokenizeInputs, Path]:
    """A root with the draft of a run stopped in the middle, its inputs, and the draft."""
    inputs, root = some(tmp_path), tmp_path / "stopped"
    assert not run_until(monkeypatch, 18, root, inputs, dedup="exact")
    (draft,) = root.glob("tokens/some/.draft-*")
    return root, inputs, draft


def test_complete_units_are_not_written_again(stopped: tuple[Path, TokenizeInputs, Path]) -> None:
    root, inputs, _ = stopped
    before = left_behind(root)
    assert len(before.finished) >= 3
    assert before.started == 0  # it was deleted
    tokens = run(root, inputs, dedup="exact").artifact
    assert {name: stamp(tokens.file(name)) for name in before.finished} == before.finished


def spoil_size(draft: Path) -> None:
    (draft / "train-00000-0001.bin").write_bytes(b"cut")


def spoil_content(draft: Path) -> None:
    path = draft / "train-00000-0001.bin"
    path.write_bytes(bytes(path.stat().st_size))


def spoil_index(draft: Path) -> None:
    (draft / "train-00000-0001.idx").unlink()


def spoil_sources(draft: Path) -> None:
    path = draft / "train-00000-0001.src"
    path.write_bytes(bytes(path.stat().st_size))


def spoil_record(draft: Path) -> None:
    path = draft / artifact.SCRATCH / "unit-00000-0001.json"
    path.write_bytes(path.read_bytes()[:-9])


def empty_record(draft: Path) -> None:
    (draft / artifact.SCRATCH / "unit-00000-0001.json").write_bytes(b"")


def lose_record(draft: Path) -> None:
    (draft / artifact.SCRATCH / "unit-00000-0001.json").unlink()


def spoil_digests(draft: Path) -> None:
    path = draft / artifact.SCRATCH / "digests-00000-0001"
    path.write_bytes(bytes(path.stat().st_size))


def lose_scratch(draft: Path) -> None:
    for path in (draft / artifact.SCRATCH).iterdir():
        path.unlink()
    (draft / artifact.SCRATCH).rmdir()


def leave_more(draft: Path) -> None:
    (draft / "train-00002-0000.bin").write_bytes(b"a unit that was begun")
    (draft / "val-00009-0009.idx").write_bytes(b"nobody knows what")
    (draft / artifact.SCRATCH / ".tmp.unit-00001-0003.json.0a1b2c3d").write_bytes(b'{"number":')
    (draft / ".tmp.tokenizer.json.0a1b2c3d").write_bytes(b"{")


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_size,
        spoil_content,
        spoil_index,
        spoil_sources,
        spoil_record,
        empty_record,
        lose_record,
        spoil_digests,
        lose_scratch,
        leave_more,
    ],
)
def test_damaged_draft_is_written_again(
    tmp_path: Path, stopped: tuple[Path, TokenizeInputs, Path], spoil: Callable[[Path], None]
) -> None:
    root, inputs, draft = stopped
    spoil(draft)
    uninterrupted = run(tmp_path / "whole", inputs, dedup="exact").artifact
    assert run(root, inputs, dedup="exact").artifact.digest == uninterrupted.digest
    assert no_draft(root)


@pytest.mark.usefixtures("small")
def test_damaged_generation_is_rebuilt(tmp_path: Path, root: Path) -> None:
    inputs = some(tmp_path)
    first = run(root, inputs).artifact
    first.file("train-00001-0001.bin").unlink()
    rebuilt = run(root, inputs)
    assert rebuilt.result == "built"
    assert rebuilt.artifact.digest == first.digest
    assert not artifact.find_problems(rebuilt.artifact, deep=True)


def test_record_lists_every_file_of_its_unit(stopped: tuple[Path, TokenizeInputs, Path]) -> None:
    *_, draft = stopped
    record = msgspec.json.decode(
        (draft / artifact.SCRATCH / "unit-00000-0001.json").read_bytes(), type=resume.UnitRecord
    )
    assert sum(record.documents.values()) == record.ledger.documents.out
    assert {file.name for file in record.files} == {path.name for path in draft.glob("*-00000-0001.*")}
    assert {file.name for file in record.scratch} == {"digests-00000-0001"}
