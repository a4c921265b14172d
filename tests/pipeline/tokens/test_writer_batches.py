"""The writer on encoded batches made by hand: what its records count, and which ids, texts and rejects are written."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
import pytest

from pipeline.errors import BadData, InternalError
from pipeline.readers import compression
from pipeline.readers.documents import Reject
from pipeline.runtime.ledger import Ledger, LedgerTally
from pipeline.store import artifact, files
from pipeline.tokens import segments
from pipeline.tokens.resume import UNITS, UnitDifferences, UnitRecord
from pipeline.tokens.roundtrip import Difference
from pipeline.tokens.tasks import DocumentFilter, FileSpec, LongDocument, Part, TokenizeTask
from pipeline.tokens.worker import Batch, Encoded
from pipeline.tokens.writer import TokenWriter


def task_of(file: int = 0, unit: int = 0, split: str = "", offset: int = 0, **fields: Any) -> TokenizeTask:
    return TokenizeTask(
        FileSpec("<u2", f"{file}.jsonl", split, None, DocumentFilter(), True), file, unit, offset, **fields
    )


def batch_of(
    *texts: str,
    split: str = "train",
    firsts: list[int] | None = None,
    differences: Mapping[int, Difference] | None = None,
) -> Batch:
    """One row for each text: its characters as ids, then 0. The digest is its first character."""
    numbers = np.arange(len(texts))
    ids = [[*map(ord, text), 0] for text in texts]
    return Batch(
        split=split,
        ids=np.array([*itertools.chain(*ids)], "<u2"),
        lengths=np.array([*map(len, ids)], np.int64),
        offsets=100 * numbers,
        lines=numbers,
        characters=np.array([*map(len, texts)], np.int64),
        sets=["odd" if number % 2 else "" for number in range(len(texts))],
        digests=[text[:1].encode() * 16 for text in texts],
        documents=np.array(firsts or [1] * len(texts), np.int64),
        stretches=numbers + 1,
        differences=dict(differences or {}),
    )


def encoded(*batches: Batch, lines: int = 0, compared: int = 0, rejects: Iterable[Reject] = ()) -> Encoded:
    came = Ledger(LedgerTally(sum(int(b.documents.sum()) for b in batches)))
    return Encoded([*batches], ledger=came, lines=lines, compared=compared, rejects=[*rejects])


def texts_in(draft: Path, name: str) -> list[str]:
    """Return the rows of a segment as texts."""
    ids = np.fromfile(draft / f"{name}.bin", "<u2")
    lengths = segments.read_index(draft / f"{name}.idx")
    rows = np.split(ids, np.cumsum(lengths)[:-1])
    assert all(row[-1] == 0 for row in rows)
    return ["".join(map(chr, row[:-1])) for row in rows]


def json_lines(path: Path) -> list[Any]:
    return [msgspec.json.decode(line) for line in b"".join(compression.read_blocks(path)).splitlines()]


def test_record_counts_what_was_written(tmp_path: Path) -> None:
    with TokenWriter(tmp_path, "uint16") as writer:
        writer.add(
            task_of(size=70), encoded(batch_of("abc", "de", "f"), batch_of("ghij", split="val"), lines=5, compared=2)
        )
        writer.add(task_of(size=8), encoded(batch_of("k", "lm"), lines=3, compared=1))
        (record,) = writer.finish()
    assert (record.lines, record.input_bytes, record.compared, record.longest) == (8, 78, 3, 5)
    assert record.tokens == {"train": 4 + 3 + 2 + 2 + 3, "val": 5}
    assert (record.documents, record.stretches) == ({"train": 5, "val": 1}, {"train": 1 + 2 + 3 + 1 + 2, "val": 1})
    assert record.characters == {"train": 9, "val": 4}
    assert record.sets == {"odd": 2}
    assert (record.ledger.documents.came, record.ledger.documents.out, record.ledger.characters.out) == (6, 6, 13)
    assert (record.split, record.last, record.after, record.differences) == ("", True, "", msgspec.UNSET)
    assert texts_in(tmp_path, "train-00000-0000") == ["abc", "de", "f", "k", "lm"]
    assert texts_in(tmp_path, "val-00000-0000") == ["ghij"]
    assert np.fromfile(tmp_path / "train-00000-0000.src", "<u8").tolist() == [0, 100, 200, 0, 100]


def test_duplicate_is_dropped_with_all_its_rows_and_its_line(tmp_path: Path) -> None:
    first, second = batch_of("abc", "de", "ax", "fg"), batch_of("dd", "de", firsts=[1, 0])
    second.offsets[:] = 400
    with TokenWriter(tmp_path, "uint16", dedup=True) as writer:
        writer.add(task_of(unit=0), encoded(batch_of("z"), lines=10))
        writer.add(task_of(unit=1), encoded(first, second, lines=6))
        _, record = writer.finish()
    assert texts_in(tmp_path, "train-00000-0001") == ["abc", "de", "fg"]
    assert (record.documents, record.ledger.documents.dropped) == ({"train": 3}, {"duplicate": 2})
    assert (record.ledger.characters.out, record.ledger.characters.dropped) == (7, {"duplicate": 6})
    rejects = json_lines(tmp_path / "rejects.jsonl.zst")
    assert [tuple(entry.values()) for entry in rejects] == [
        ("0.jsonl", 13, 200, "duplicate", ""),
        ("0.jsonl", 11, 400, "duplicate", ""),
    ]


def test_documents_beyond_the_limit_are_counted_by_the_split_of_their_file(tmp_path: Path) -> None:
    with TokenWriter(tmp_path, "uint16", max_documents=2) as writer:
        assert not writer.is_full("train")
        writer.add(task_of(split="train"), encoded(batch_of("a", "b", "c")))
        assert (writer.is_full("train"), writer.is_full("val")) == (True, False)
        assert writer.add(task_of(split="train", unit=1), encoded(batch_of("d"))) is False
        writer.add(task_of(1, split="val"), encoded(batch_of("e", split="val")))
        train, val = writer.finish()
    assert train.ledger.documents.dropped == {"over-max-documents": 1}
    assert (train.last, val.last, val.after) == (True, True, train.stem)
    assert texts_in(tmp_path, "train-00000-0000") == ["a", "b"]
    assert json_lines(tmp_path / "rejects.jsonl.zst") == []


def test_fault_of_a_task_beyond_the_limit_is_not_raised(tmp_path: Path) -> None:
    with TokenWriter(tmp_path, "uint16", max_documents=1) as writer:
        with pytest.raises(BadData):
            writer.add(task_of(), Encoded(fault=BadData("broken")))
        writer.add(task_of(), encoded(batch_of("a")))
        assert not writer.add(task_of(), Encoded(fault=BadData("broken")))


@pytest.mark.parametrize("dedup", [False, True])
def test_originals_have_the_span_of_their_ids_without_dropped_rows(tmp_path: Path, dedup: bool) -> None:
    known = {
        0: Difference(1, {}, None),
        1: Difference(2, {"， → ,": 3}, "DE"),
        2: Difference(4, {}, "DX"),
        3: Difference(0, {"， → ,": 1}, "FG"),
    }
    with TokenWriter(tmp_path, "uint16", dedup=dedup) as writer:
        writer.add(task_of(), encoded(batch_of("0", split="val"), batch_of("01", split="train")))
        writer.add(task_of(), encoded(batch_of("abc", "de", "dx", "fg", split="val", differences=known)))
        (record,) = writer.finish()
    start = 2 + 4 + 3
    dropped = [] if dedup else [{"start": start, "stop": start + 2, "text": "DX"}]
    shift = 0 if dedup else 3
    assert json_lines(tmp_path / "val-00000-0000.text.zst") == [
        {"start": 6, "stop": 8, "text": "DE"},
        *dropped,
        {"start": start + shift, "stop": start + shift + 2, "text": "FG"},
    ]
    assert record.differences == UnitDifferences({"val": 3 if dedup else 7}, {"， → ,": 4}, 2 if dedup else 3)
    path = tmp_path / "val-00000-0000.text.zst"
    assert record.files[-1].sha256 == files.sha256_of(path)


def long_tasks(offset: int, *parts: tuple[Part, ...], digest: bytes) -> list[TokenizeTask]:
    long = LongDocument(sum(len(part.text) for part in itertools.chain(*parts)), "big", digest)
    last = len(parts) - 1
    return [
        task_of(offset=offset, long=long, parts=part, is_first=index == 0, is_last=index == last)
        for index, part in enumerate(parts)
    ]


def test_parts_of_a_long_document_are_rows_and_a_second_one_is_dropped(tmp_path: Path) -> None:
    parts = (
        (Part("train", "abc"), Part("train", "de", ends_row=True, stretches=2)),
        (
            Part("val", "fgh"),
            Part("val", "ij", ends_row=True, stretches=1),
            Part("train", "k", ends_row=True, stretches=1),
        ),
    )
    tasks = [*long_tasks(40, *parts, digest=b"one"), *long_tasks(90, *parts, digest=b"one")]
    with TokenWriter(tmp_path, "uint16", dedup=True, max_documents=9) as writer:
        for task in tasks:
            ids = [np.array([*map(ord, part.text), *([0] if part.ends_row else [])], "<u2") for part in task.parts]
            differences = {1: Difference(1, {}, task.parts[1].text.upper() if task.parts[1].split == "val" else None)}
            writer.add(task, Encoded(parts=ids, differences=differences, lines=int(task.is_last)))
        (record,) = writer.finish()
    assert texts_in(tmp_path, "train-00000-0000") == ["abcde", "k"]
    assert texts_in(tmp_path, "val-00000-0000") == ["fghij"]
    assert np.fromfile(tmp_path / "train-00000-0000.src", "<u8").tolist() == [40, 40]
    assert json_lines(tmp_path / "val-00000-0000.text.zst") == [{"start": 3, "stop": 5, "text": "IJ"}]
    assert record.differences == UnitDifferences({"train": 1, "val": 1}, {}, 1)
    assert (record.documents, record.stretches, record.longest) == ({"train": 2, "val": 1}, {"train": 3, "val": 1}, 6)
    assert record.characters == {"train": 6, "val": 5}
    documents, characters = record.ledger.documents, record.ledger.characters
    assert (documents.came, documents.out, documents.dropped) == (2, 1, {"duplicate": 1})
    assert (characters.came, characters.out, characters.dropped) == (22, 11, {"duplicate": 11})
    assert (record.sets, record.lines) == ({"big": 1}, 2)
    (reject,) = json_lines(tmp_path / "rejects.jsonl.zst")
    assert (reject["line"], reject["offset"], reject["reason"]) == (2, 90, "duplicate")


def test_long_document_that_its_worker_dropped_is_not_counted_again(tmp_path: Path) -> None:
    (task,) = long_tasks(0, (Part("train", "abc", ends_row=True, stretches=1),), digest=b"one")
    result = Encoded(lines=1)
    result.drop(Reject("0.jsonl", 0, 0, "bad-characters", "abc"), 3)
    with TokenWriter(tmp_path, "uint16") as writer:
        writer.add(task, result)
        (record,) = writer.finish()
    assert (record.ledger, record.documents) == (result.ledger, {})


def test_units_of_the_file_are_completed_in_order(tmp_path: Path) -> None:
    rejects = [[Reject("0.jsonl", 1, 7, "bad-record", name)] for name in "xyz"]
    with TokenWriter(tmp_path, "uint16") as writer:
        assert writer.next_unit(0) == 0
        assert writer.add(task_of(0, 0), encoded(batch_of("a"), lines=4, rejects=rejects[0])) is False
        assert writer.add(task_of(0, 1), encoded(batch_of("b"), lines=2, rejects=rejects[1])) is True
        assert (writer.next_unit(0), writer.next_unit(1)) == (1, 0)
        assert writer.add(task_of(1, 0), encoded(batch_of("c"), rejects=rejects[2])) is True
        assert writer.next_unit(0) is None
        records = writer.finish()
    assert [(record.stem, record.last, record.after) for record in records] == [
        ("00000-0000", False, ""),
        ("00000-0001", True, "00000-0000"),
        ("00001-0000", True, "00000-0001"),
    ]
    entries = json_lines(tmp_path / "rejects.jsonl.zst")
    assert [(entry["line"], entry["excerpt"]) for entry in entries] == [(2, "x"), (6, "y"), (2, "z")]
    lines = (tmp_path / UNITS).read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=UnitRecord) for line in lines] == [
        msgspec.structs.replace(record, after="") for record in records
    ]
    assert writer.bins("train") == [tmp_path / f"train-{record.stem}.bin" for record in records]


@pytest.mark.parametrize("keep_bins", [True, False])
def test_files_of_a_complete_unit_are_on_their_way_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_bins: bool
) -> None:
    started: list[Path] = []
    monkeypatch.setattr(files, "start_writeback", started.extend)
    with TokenWriter(tmp_path, "uint16", keep_bins=keep_bins) as writer:
        writer.add(task_of(), encoded(batch_of("a")))
        writer.finish()
        assert writer.bins("train") == [started[0]]
    bins = tmp_path if keep_bins else tmp_path / artifact.SCRATCH
    name = "train-00000-0000"
    assert started == [bins / f"{name}.bin", tmp_path / f"{name}.idx", tmp_path / f"{name}.src"]
    assert all(path.exists() for path in started)


def test_resumed_writer_continues_after_the_complete_units(tmp_path: Path) -> None:
    def first(writer: TokenWriter) -> None:
        writer.add(task_of(0, 0), encoded(batch_of("a", "b"), lines=3))
        writer.add(task_of(0, 1), encoded(batch_of("c"), lines=1, rejects=[Reject("0.jsonl", 0, 0, "bad-record", "")]))

    with TokenWriter(tmp_path, "uint16", dedup=True, max_documents=5) as stopped:
        first(stopped)
    (tmp_path / "train-00009-0000.src").touch()
    (tmp_path / "other").touch()
    scratch = tmp_path / artifact.SCRATCH
    (scratch / "open-00000-0001-killed").mkdir()
    (scratch / "open-00000-0001-killed" / "rejects-00000-0001.jsonl.zst").touch()
    with TokenWriter(tmp_path, "uint16", dedup=True, max_documents=5) as writer:
        assert [record.stem for record in writer.records] == ["00000-0000"]
        assert sorted(os.listdir(scratch)) == ["digests-00000-0000", "unit-00000-0000.json"]
        names = [f"train-00000-0000.{suffix}" for suffix in ("bin", "idx", "src")]
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["other", *names]
        assert writer.next_unit(0) == 1
        writer.add(task_of(0, 1), encoded(batch_of("b", "c", "d", "e", "f"), lines=5))
        _, record = writer.finish()
    assert texts_in(tmp_path, "train-00000-0001") == ["c", "d", "e"]
    assert record.ledger.documents.dropped == {"duplicate": 1, "over-max-documents": 1}
    (reject,) = json_lines(tmp_path / "rejects.jsonl.zst")
    assert (reject["line"], reject["reason"]) == (4, "duplicate")


def test_files_of_verified_units_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TokenWriter(tmp_path, "uint16") as writer:
        for unit in range(3):
            writer.add(task_of(0, unit), encoded(batch_of("a")))
        writer.finish()
    (tmp_path / "train-00000-0001.bin").write_bytes(b"bbbb")
    sha256_of, read = files.sha256_of, set[str]()

    def hash_and_record(path: Path) -> str:
        read.add(path.stem)
        return sha256_of(path)

    monkeypatch.setattr(files, "sha256_of", hash_and_record)
    assert [record.unit for record in TokenWriter(tmp_path, "uint16", verified={"00000-0000"}).records] == [0]
    assert read == {"train-00000-0001"}


def test_documents_that_were_counted_and_not_written_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = segments.SegmentWriter.append

    def lose_the_count(writer: segments.SegmentWriter, *arguments: Any) -> None:
        append(writer, *arguments)
        writer.documents -= 1

    monkeypatch.setattr(segments.SegmentWriter, "append", lose_the_count)
    with TokenWriter(tmp_path, "uint16") as writer:
        writer.add(task_of(), encoded(batch_of("a")))
        with pytest.raises(InternalError, match="train-00000-0000: documents were counted"):
            writer.finish()


def open_files(folder: Path) -> list[str]:
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if link.is_symlink()]
    return sorted(Path(target).name for target in targets if target.startswith(str(folder)))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="NOT tested: no /proc here")
@pytest.mark.parametrize("completes", [False, True])
def test_files_are_closed_when_a_unit_ends_and_when_it_fails(tmp_path: Path, completes: bool) -> None:
    rejects = [Reject("0.jsonl", 0, 0, "bad-record", "")]
    batch = batch_of("a", split="val", differences={0: Difference(1, {}, "A")})
    with TokenWriter(tmp_path, "uint16") as writer:
        writer.add(task_of(), encoded(batch, rejects=rejects))
        unit = writer._unit
        names = ["rejects-00000-0000.jsonl.zst", "val-00000-0000.bin", "val-00000-0000.text.zst"]
        assert open_files(tmp_path) == names
        if completes:
            writer.finish()
    assert unit is not None, "it is not yet garbage"
    assert open_files(tmp_path) == []


class Numbers:
    """An overlap that remembers what it was given."""

    def __init__(self) -> None:
        self.added: list[list[int]] = []

    def numbers_of(self, digests: Iterable[bytes]) -> list[int]:
        return [digest[0] for digest in digests]

    def add(self, numbers: Iterable[int]) -> None:
        self.added.append([*numbers])


def test_overlap_counts_training_files_and_is_restored(tmp_path: Path) -> None:
    overlap: Any = Numbers()
    with TokenWriter(tmp_path, "uint16", overlap=overlap) as writer:
        writer.add(task_of(0, split="train"), encoded(batch_of("a", "bx", "b", firsts=[1, 1, 0])))
        writer.add(task_of(1, split="val"), encoded(batch_of("c", split="val")))
        (train, val) = writer.finish()
    assert (train.overlap, val.overlap) == ([97, 98], [])
    assert overlap.added == [[97, 98]]
    resumed: Any = Numbers()
    TokenWriter(tmp_path, "uint16", overlap=resumed)
    assert resumed.added == [[97, 98], []]


def test_dropped_rows_are_counted_when_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> NoReturn:
        pytest.fail("a segment without documents")

    with TokenWriter(tmp_path, "uint16", dedup=True) as writer:
        writer.add(task_of(), encoded(batch_of("a")))
        monkeypatch.setattr(segments.SegmentWriter, "append", fail)
        writer.add(task_of(), encoded(batch_of("a", "ab")))
        (record,) = writer.finish()
    assert record.ledger.documents.dropped == {"duplicate": 2}
