"""Encoded pieces become segments: in order, unit by unit, so that a killed run goes on after its last whole unit.

    <split>-FFFFF-UUUU.bin .idx .src      a segment: what one split got from unit UUUU of input file FFFFF
    units.jsonl                           what was done of each unit, so that a later generation can take it over
    .work/unit-FFFFF-UUUU.json            the record of a unit, written when all its files are
    .work/rejects-FFFFF-UUUU.jsonl.zst    what was dropped from it, and why
    .work/digests-FFFFF-UUUU              with --dedup: the hashes of its documents

What one piece cannot know is decided here: whether a document came before, and whether there are enough.

Nothing waits for the disk on the way: a record holds the sha256 of its files, and a run that goes on reads them again
before it believes it, so after a power cut, too, only whole units count. What is published is synced once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from pipeline.errors import InternalError
from pipeline.readers.documents import Reject
from pipeline.readers.jsonl import ZstdLines
from pipeline.store import artifact, files
from pipeline.store.manifest import FileRecord
from pipeline.tokens.segments import SPLITS, SegmentWriter
from pipeline.tokens.tasks import DIGEST_BYTES, Long, Task
from pipeline.tokens.units import REJECTS, UNITS, UnitRecord
from pipeline.tokens.worker import Batch, Encoded


@dataclass
class _Open:
    """The unit that is being written, and the long document in it of which only some parts have come."""

    record: UnitRecord
    writers: dict[str, SegmentWriter]
    digests: bytearray
    rejects: ZstdLines | None = None
    part_tokens: int = 0
    parts_left: bool = False
    skips_parts: bool = False


class Assembly:
    """Takes encoded pieces in the order of the input. Use it in a `with` block: files are closed when one fails."""

    def __init__(
        self, draft: Path, dtype: str, *, keep_bins: bool = True, dedup: bool = False, max_documents: int = 0
    ) -> None:
        self._draft, self._dtype = draft, np.dtype(dtype)
        self._scratch = draft / artifact.SCRATCH
        self._bins = draft if keep_bins else self._scratch
        self._seen: set[bytes] | None = set() if dedup else None
        self._most = max_documents
        self._kept: dict[str, int] = {}  # documents so far, by the split of their file
        self._open: _Open | None = None
        self._lines = 0  # of the file so far
        self._scratch.mkdir(exist_ok=True)
        self.records = list(self._done_before())
        self._take_up()

    def __enter__(self) -> Assembly:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._open:
            for writer in self._open.writers.values():
                writer.discard()
            if self._open.rejects:
                self._open.rejects.close()

    def _done_before(self) -> Iterator[UnitRecord]:
        """Records of the units that an earlier run finished, up to the first that is not as it was left.

        Those that were taken over do not depend on any before them, and so not on where that is.
        """
        before, unbroken = UnitRecord(-1, -1), True
        for path in sorted(self._scratch.glob("unit-*.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=UnitRecord)
            except (msgspec.DecodeError, UnicodeDecodeError):
                unbroken = False
                continue
            kept = [(self._place(each.name), each) for each in record.files]
            kept += [(self._scratch / each.name, each) for each in record.scratch]
            whole = all(files.size_of(at) == each.size and files.sha256_of(at) == each.sha256 for at, each in kept)
            follows = record.unit == 0 or (record.file, record.unit) == (before.file, before.unit + 1)
            unbroken = unbroken and (record.taken_over or record.after == (before.stem if before.file >= 0 else ""))
            if whole and follows and (unbroken or record.taken_over):
                before = record
                yield record
            else:
                unbroken = False

    def _take_up(self) -> None:
        """Go on after the units that are done: forget what was begun after them, remember what they remembered."""
        kept = {each.name for record in self.records for each in (*record.files, *record.scratch)}
        kept |= {f"unit-{record.stem}.json" for record in self.records}
        begun = [*self._scratch.iterdir(), *(path for split in SPLITS for path in self._draft.glob(f"{split}-*"))]
        for path in begun:
            if path.name not in kept:
                path.unlink()
        for record in self.records:
            self._take(record.split, sum(record.documents.values()))
        if self._seen is not None:
            for record in self.records:
                data = (self._scratch / f"digests-{record.stem}").read_bytes()
                self._seen |= {data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)}

    @property
    def _unit(self) -> _Open:
        assert self._open is not None
        return self._open

    def _place(self, name: str) -> Path:
        return (self._bins if name.endswith(".bin") else self._draft) / name

    def is_full(self, split: str) -> bool:
        """Whether there are as many documents as were asked for of the files of a split ("": those to be divided)."""
        return self._most > 0 and self._kept.get(split, 0) >= self._most and not (self._open and self._open.parts_left)

    def _take(self, split: str, documents: int) -> None:
        self._kept[split] = self._kept.get(split, 0) + documents

    def next_unit(self, file: int) -> int | None:
        """The first unit of an input file that is still to do, None where all of it is done."""
        done = [record for record in self.records if record.file == file]
        return None if done and done[-1].last else done[-1].unit + 1 if done else 0

    def add(self, task: Task, encoded: Encoded) -> bool:
        """Add the next piece; one that comes after there is enough changes nothing. Raises the fault of a piece.

        Returns whether a unit was finished, so that a run that stops now has nothing to do again but this piece.
        """
        if self.is_full(task.job.split):  # it was encoded ahead
            return False
        before = len(self.records)
        if encoded.fault:
            raise encoded.fault
        if self._open and (task.file, task.unit) != (self._open.record.file, self._open.record.unit):
            self._commit(last=task.file != self._open.record.file)
        if not self._open:
            self._begin(task)
        record = self._unit.record
        record.ledger.add(encoded.ledger)
        record.compared += encoded.compared
        record.input_bytes += task.size
        for reject in encoded.rejects:
            self._reject(reject, reject.line)
        if encoded.part is not None and task.long:
            self._add_part(task, task.long, encoded.part)
        self._add_batches(encoded.batches, task)
        self._lines += encoded.lines
        record.lines += encoded.lines
        return len(self.records) > before

    def finish(self) -> list[UnitRecord]:
        """The records of all units, once the last is done."""
        if self._open:
            self._commit(last=True)
        return self.records

    def _begin(self, task: Task) -> None:
        done = [record for record in self.records if record.file == task.file]
        self._lines = sum(record.lines for record in done)
        record = UnitRecord(task.file, task.unit, split=task.job.split)
        record.after = max((each.stem for each in self.records if each.stem < record.stem), default="")
        self._open = _Open(record, {}, bytearray())

    def _add_batches(self, batches: list[Batch], task: Task) -> None:
        record = self._unit.record
        dropped = self._dropped(batches)
        for place, batch in enumerate(batches):
            keep = np.ones(len(batch.lengths), bool)
            for row, reason in dropped.get(place, {}).items():
                keep[row] = False
                record.ledger.documents.drop(reason, 1)
                record.ledger.characters.drop(reason, int(batch.characters[row]))
                if reason == "duplicate":
                    line, offset = int(batch.numbers[row]), int(batch.offsets[row])
                    self._reject(Reject(task.job.file, line, offset, reason, ""), line)
            lengths = batch.lengths[keep]
            if len(lengths):
                ids = batch.ids if keep.all() else batch.ids[np.repeat(keep, batch.lengths)]
                self._writer(batch.split).append(ids, lengths, batch.offsets[keep])
                names = [name for name, kept in zip(batch.sets, keep, strict=True) if kept]
                self._count(batch.split, lengths, int(batch.characters[keep].sum()), names)

    def _dropped(self, batches: list[Batch]) -> dict[int, dict[int, str]]:
        """Batch → row → reason, for what is a duplicate or too much: the first in the order of the input stays."""
        dropped: dict[int, dict[int, str]] = {}
        if self._seen is None and not self._most:
            return dropped
        rows = [(offset, place, row) for place, each in enumerate(batches) for row, offset in enumerate(each.offsets)]
        for _, place, row in sorted(rows):
            if reason := self._refuses(batches[place].digests[row]):
                dropped.setdefault(place, {})[row] = reason
        return dropped

    def _refuses(self, digest: bytes) -> str:
        """The reason to drop a document that comes now, "" for none; one that is kept is remembered."""
        split = self._unit.record.split
        if self.is_full(split):
            return "over-max-documents"
        if self._seen is not None:
            if digest in self._seen:
                return "duplicate"
            self._seen.add(digest)
            self._unit.digests += digest
        if self._most:
            self._take(split, 1)
        return ""

    def _add_part(self, task: Task, long: Long, ids: np.ndarray) -> None:
        """Add a part of a long document; its length is known with the last."""
        unit, ledger = self._unit, self._unit.record.ledger
        if task.first:
            ledger.documents.came += 1
            ledger.characters.came += long.characters
            reason = self._refuses(long.digest)
            unit.part_tokens, unit.skips_parts = 0, bool(reason)
            if reason:
                ledger.documents.drop(reason, 1)
                ledger.characters.drop(reason, long.characters)
                self._reject(Reject(task.job.file, 0, task.offset, reason, ""), 0)
        unit.parts_left = not (task.final or unit.skips_parts)
        if unit.skips_parts:
            return
        unit.part_tokens += len(ids)
        lengths = np.array([unit.part_tokens] if task.final else [], np.int64)
        offsets = np.array([task.offset] if task.final else [], np.int64)
        self._writer(long.split).append(ids, lengths, offsets)
        if task.final:
            self._count(long.split, lengths, long.characters, [long.set_name])

    def _count(self, split: str, lengths: np.ndarray, characters: int, set_names: list[str]) -> None:
        record = self._unit.record
        record.ledger.documents.out += len(lengths)
        record.ledger.characters.out += characters
        record.longest = max(record.longest, int(lengths.max()))
        record.documents[split] = record.documents.get(split, 0) + len(lengths)
        record.characters[split] = record.characters.get(split, 0) + characters
        for name in set_names:
            if name:
                record.sets[name] = record.sets.get(name, 0) + 1

    def _writer(self, split: str) -> SegmentWriter:
        writers = self._unit.writers
        if split not in writers:
            name = f"{split}-{self._unit.record.stem}"
            writers[split] = SegmentWriter(self._draft, name, self._dtype.str, ids_folder=self._bins)
        return writers[split]

    def _reject(self, reject: Reject, line: int) -> None:
        """Set a document aside; `line` counts from 0 in the piece that comes now."""
        unit = self._unit
        if unit.rejects is None:
            unit.rejects = ZstdLines(self._scratch / f"rejects-{unit.record.stem}.jsonl.zst")
        unit.rejects.write_reject(
            Reject(reject.file, self._lines + line + 1, reject.offset, reject.reason, reject.excerpt)
        )

    def _commit(self, *, last: bool) -> None:
        """Finish the files of the open unit, then say in its record what they are."""
        unit, record = self._unit, self._unit.record
        record.last = last
        for split, writer in unit.writers.items():
            record.files += writer.close()
            record.tokens[split] = writer.tokens
            if writer.documents != record.documents[split]:
                raise InternalError(f"{split}-{record.stem}: documents were counted and written differently")
        if unit.rejects:
            unit.rejects.close()
            record.scratch.append(_on_disk(self._scratch / f"rejects-{record.stem}.jsonl.zst"))
        if self._seen is not None:
            path = self._scratch / f"digests-{record.stem}"
            path.write_bytes(unit.digests)
            record.scratch.append(_on_disk(path))
        files.start_writing(self._place(each.name) for each in record.files)
        (self._scratch / f"unit-{record.stem}.json").write_bytes(msgspec.json.encode(record))
        self.records.append(record)
        self.records.sort(key=lambda each: each.stem)  # those that were taken over may come after it
        self._open = None

    def write_units(self) -> None:
        """What was done of each unit, and all rejects as one file: zstd frames one after the other are a zstd file."""
        told = (msgspec.structs.replace(record, after="", taken_over=False) for record in self.records)
        (self._draft / UNITS).write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in told))
        with ZstdLines(self._draft / REJECTS):  # so that it is one, also where nothing was rejected
            pass
        with open(self._draft / REJECTS, "ab") as out:
            for record in self.records:
                path = self._scratch / f"rejects-{record.stem}.jsonl.zst"
                if path.exists():
                    out.write(path.read_bytes())

    def bins(self, split: str) -> list[Path]:
        """The segments of a split, in order."""
        return sorted(self._bins.glob(f"{split}-*.bin"))


def _on_disk(path: Path) -> FileRecord:
    return FileRecord(path.name, path.stat().st_size, files.sha256_of(path))
