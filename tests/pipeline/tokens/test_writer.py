"""Pieces become segments in the order of the input: what is chosen, what is known again, and where a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from pipeline.errors import BadConfig, BadData
from pipeline.store import artifact
from pipeline.store.artifact import Built
from pipeline.tokens import segments, tasks
from pipeline.tokens import stage as tokenize
from pipeline.tokens import units as tokens_units
from pipeline.tokens.stage import Inputs, TokenizeOptions
from pipeline.tokens.writer import Assembly
from tests.support.chaos import left_behind, stamp
from tests.support.tokenizing import (
    TEXTS,
    all_train,
    dropped,
    given,
    lines,
    no_draft,
    nothing_published,
    rejects,
    run,
    small_pieces,
    some,
    sums,
    texts_of,
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces in a unit, and several units in a file."""
    small_pieces(monkeypatch, 600, 150)


def kept(made: artifact.Artifact) -> set[str]:
    return {text for split in segments.SPLITS for text in texts_of(made, split)}


# Which documents are kept


def of_sets(folder: Path) -> Inputs:
    """A file of each of two sets and one of none, to be divided by hash."""
    sets = {"Pile-CC": "crawled", "USPTO": "known", "": "anywhere"}
    texts = {name: [f"{what} {number}" for number in range(60)] for name, what in sets.items()}
    return Inputs(tuple(lines(folder / f"{len(name)}.jsonl", texts[name], name) for name in sets), ())


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
def test_documents_are_chosen_by_their_set_and_length_and_counted_by_set_and_reason(
    tmp_path: Path, root: Path, options: dict[str, Any], sets: dict[str, int], reasons: dict[str, int]
) -> None:
    made = run(root, of_sets(tmp_path), **options).artifact
    assert made.manifest.counts["sets"] == sets
    assert dropped(made) == reasons
    assert len(rejects(made)) == sum(reasons.values())
    assert len(kept(made)) == made.manifest.counts["documents"] == 180 - sum(reasons.values())


def test_a_set_cannot_be_both_included_and_excluded() -> None:
    with pytest.raises(BadConfig, match="b is both included and excluded"):
        TokenizeOptions(include_sets=("a", "b"), exclude_sets=("b", "c"))


def test_the_command_line_chooses_too(inkstone: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    paths = [file.path for file in of_sets(tmp_path).train]
    asked = ("tokenize", *paths, "--tokenizer", "r50k_base")
    said = inkstone(*asked, "--exclude-set", "Pile-CC", "--min-chars", "7", "--max-documents", "99", "--dedup", "exact")
    assert said["sets"] == {"USPTO": 60}
    assert said["documents"] == 99
    assert said["ledger"]["documents"]["dropped"] == {"over-max-documents": 21, "set-excluded": 60}
    refused = inkstone(*asked, "--exclude-set", "Pile-CC", "--include-set", "Pile-CC", code=78)
    assert "both included and excluded" in refused["error"]
    assert "no --dedup" in inkstone(*asked, "--dedup", "fuzzy", code=78)["error"]


@pytest.mark.usefixtures("small")
def test_of_equal_texts_the_first_in_the_order_of_the_input_stays(tmp_path: Path, root: Path) -> None:
    first = [*TEXTS[:60], TEXTS[0], TEXTS[1]]  # known again in its piece or another unit,
    second = [TEXTS[59], *TEXTS[60:80], TEXTS[60]]  # in another file,
    val = [TEXTS[3], "held out", TEXTS[70], "held out"]  # and in what is held out
    given = {"a": first, "b": second, "c": val}
    files = {name: lines(tmp_path / f"{name}.jsonl", texts) for name, texts in given.items()}
    made = run(root, Inputs((files["a"], files["b"]), (files["c"],)), dedup="exact").artifact
    assert texts_of(made, "train") == TEXTS[:80]
    assert texts_of(made, "val") == ["held out"]
    assert dropped(made) == {"duplicate": 7}
    lost = [("a", 61), ("a", 62), ("b", 1), ("b", 22), ("c", 1), ("c", 3), ("c", 4)]
    starts = [offset_of_line(files[name].path, line) for name, line in lost]
    expected = [(f"{name}.jsonl", line, at, "duplicate") for (name, line), at in zip(lost, starts, strict=True)]
    assert rejects(made) == expected


def offset_of_line(path: Path, line: int) -> int:
    return len(b"".join(path.read_bytes().splitlines(keepends=True)[: line - 1]))


@pytest.mark.usefixtures("small")
def test_without_dedup_equal_texts_stay(tmp_path: Path, root: Path) -> None:
    made = run(root, all_train(tmp_path, "same", "same", "same")).artifact
    assert texts_of(made, "train") == ["same"] * 3


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("most", [37, 77, 120])
@pytest.mark.usefixtures("small")
def test_the_first_documents_in_the_order_of_the_input_are_kept_and_no_more(
    tmp_path: Path, root: Path, most: int, jobs: int
) -> None:
    files = [lines(tmp_path / f"{n}.jsonl", TEXTS[n * 50 : n * 50 + 50]) for n in range(4)]
    made = run(root, Inputs(tuple(files), ()), max_documents=most, min_chars=15, val_fraction=0.3, jobs=jobs).artifact
    chosen = [text for text in TEXTS if len(text) >= 15][:most]
    held_out = [text for text in chosen if tasks.is_validation(tasks.digest_of(text), 0.3)]
    assert texts_of(made, "val") == held_out
    assert texts_of(made, "train") == [text for text in chosen if text not in held_out]
    assert set(dropped(made)) <= {"over-max-documents"}
    assert made.manifest.counts["input_bytes"] < sum(file.path.stat().st_size for file in files)  # it stopped reading


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("most", [60, 200])
def test_what_lies_after_the_last_document_that_is_wanted_is_no_concern_and_what_lies_before_it_is(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, most: int, jobs: int
) -> None:
    small_pieces(monkeypatch, 4000, 1000)
    cut = compressed(lines(tmp_path / "a.jsonl", TEXTS).path)
    cut.write_bytes(cut.read_bytes()[:-1])
    inputs = Inputs((given(cut),), (lines(tmp_path / "val.jsonl", ["held out"]),))
    if most < 200:
        assert run(root, inputs, max_documents=most, jobs=jobs).artifact.manifest.counts["train_documents"] == most
    else:
        with pytest.raises(BadData, match="truncated"):
            run(root, inputs, max_documents=200, jobs=jobs)


def compressed(path: Path) -> Path:
    """A file of frames, one for every few lines."""
    found = path.read_bytes().splitlines(keepends=True)
    frames = [zstandard.compress(b"".join(found[start : start + 20])) for start in range(0, len(found), 20)]
    packed = path.with_name(f"{path.name}.zst")
    packed.write_bytes(b"".join(frames))
    return packed


def test_as_many_as_there_are_is_all_of_them(tmp_path: Path, root: Path) -> None:
    assert dropped(run(root, some(tmp_path), max_documents=len(TEXTS)).artifact) == {}


@pytest.mark.usefixtures("small")
def test_duplicates_do_not_count_towards_the_most(tmp_path: Path, root: Path) -> None:
    inputs = some(tmp_path, [text for text in TEXTS for _ in range(2)], files=1)
    made = run(root, inputs, max_documents=60, dedup="exact").artifact
    assert kept(made) == set(TEXTS[:60])


def test_a_long_document_that_is_the_last_to_be_kept_is_whole(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch, 600, 150, long_line=200)
    texts = [*TEXTS[:40], "a long one " * 100]
    made = run(root, some(tmp_path, [*texts, *TEXTS[40:]], files=1), max_documents=41).artifact
    assert kept(made) == set(texts)


def test_the_most_leaves_room_for_the_files_to_validate_on(tmp_path: Path, root: Path) -> None:
    made = run(root, all_train(tmp_path, *TEXTS), max_documents=10).artifact
    assert texts_of(made, "val") == ["held out"]


# What is set aside


@pytest.mark.usefixtures("small")
def test_rejects_of_all_units_lie_in_one_file_with_the_lines_of_their_inputs(tmp_path: Path, root: Path) -> None:
    expected = []
    for name in ("a", "b"):
        found = [b"[]" if number % 10 == 3 else b'{"text":"number %d"}' % number for number in range(1, 101)]
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(found))
        for line in range(3, 101, 10):
            at = offset_of_line(tmp_path / f"{name}.jsonl", line)
            expected.append((f"{name}.jsonl", line, at, "bad-record"))
    inputs = tokenize.gather(root, [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], [])
    made = run(root, inputs, max_bad=0.5, val_fraction=0.3).artifact
    assert rejects(made) == expected
    assert made.manifest.counts["units"] > 6


@pytest.mark.usefixtures("small")
def test_a_line_over_several_units_belongs_to_the_one_where_it_begins(tmp_path: Path, root: Path) -> None:
    texts = ["short", "long " * 1000, "short again"]
    made = run(root, all_train(tmp_path, *texts)).artifact
    assert texts_of(made, "train") == texts
    units = [name[12:16] for name in sums(made) if name.startswith("train-") and name.endswith(".bin")]
    assert units == ["0000", f"{offset_of_line(tmp_path / 'train.jsonl', 3) // 600:04d}"]


# Where a run goes on


class Stopped(Exception):
    """What ends a run here as a kill would, without a word."""


def run_until(patch: pytest.MonkeyPatch, count: int, root: Path, inputs: Inputs, **options: Any) -> Built | None:
    """A run that is stopped once `count` pieces have been put together: what it made, None if it did not get there."""
    added, real = 0, Assembly.add

    def add(self: Assembly, *arguments: Any) -> None:
        nonlocal added
        if added == count:
            raise Stopped
        added += 1
        real(self, *arguments)

    with patch.context() as inner:
        inner.setattr(Assembly, "add", add)
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
def test_a_run_that_was_stopped_anywhere_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    inputs = some(tmp_path, [*TEXTS[:120], *TEXTS[:30], *TEXTS[120:]])
    whole = run(tmp_path / "whole", inputs, **options).artifact
    for count in (5, 14) if "format" in options else (0, 1, 3, 7, 12, 16):
        root = tmp_path / f"stopped-{count}"
        assert not run_until(monkeypatch, count, root, inputs, **options)
        assert nothing_published(root)
        resumed = run(root, inputs, **options).artifact
        assert (resumed.manifest, resumed.digest) == (whole.manifest, whole.digest)
        assert rejects(resumed) == rejects(whole)
        assert no_draft(root)
        assert not list(root.rglob(artifact.SCRATCH))


@pytest.mark.usefixtures("small")
def test_a_run_that_is_stopped_again_and_again_gets_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = some(tmp_path)
    whole = run(tmp_path / "whole", inputs, dedup="exact").artifact
    stops = 0
    while not (made := run_until(monkeypatch, 6, tmp_path / "stopped", inputs, dedup="exact")):
        stops += 1
    assert stops > 3
    assert made.artifact.digest == whole.digest


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> tuple[Path, Inputs, Path]:
    """A root with the draft of a run that was stopped in the middle, its inputs, and the draft."""
    inputs, root = some(tmp_path), tmp_path / "stopped"
    assert not run_until(monkeypatch, 18, root, inputs, dedup="exact")
    (draft,) = root.glob("tokens/some/.draft-*")
    return root, inputs, draft


def test_units_that_were_finished_are_not_done_again(stopped: tuple[Path, Inputs, Path]) -> None:
    root, inputs, _ = stopped
    before = left_behind(root)
    assert len(before.finished) >= 3
    assert before.begun == 1
    made = run(root, inputs, dedup="exact").artifact
    assert {name: stamp(made.file(name)) for name in before.finished} == before.finished


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
def test_what_is_not_as_it_was_left_is_done_again(
    tmp_path: Path, stopped: tuple[Path, Inputs, Path], spoil: Callable[[Path], None]
) -> None:
    root, inputs, draft = stopped
    spoil(draft)
    whole = run(tmp_path / "whole", inputs, dedup="exact").artifact
    assert run(root, inputs, dedup="exact").artifact.digest == whole.digest
    assert no_draft(root)


@pytest.mark.usefixtures("small")
def test_a_published_generation_that_was_damaged_is_made_again(tmp_path: Path, root: Path) -> None:
    inputs = some(tmp_path)
    first = run(root, inputs).artifact
    first.file("train-00001-0001.bin").unlink()
    again = run(root, inputs)
    assert again.result == "built"
    assert again.artifact.digest == first.digest
    assert not artifact.problems(again.artifact, deep=True)


def test_every_file_of_a_unit_is_in_its_record(stopped: tuple[Path, Inputs, Path]) -> None:
    *_, draft = stopped
    record = msgspec.json.decode(
        (draft / artifact.SCRATCH / "unit-00000-0001.json").read_bytes(), type=tokens_units.UnitRecord
    )
    assert sum(record.documents.values()) == record.ledger.documents.out
    assert {each.name for each in record.files} == {path.name for path in draft.glob("*-00000-0001.*")}
    assert {each.name for each in record.scratch} == {"digests-00000-0001"}
