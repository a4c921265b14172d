"""Collect encoded tasks in input order and write them as segments, unit by unit.

    <split>-FFFFF-UUUU.bin .idx .src      a segment: the documents of one split from unit UUUU of input file FFFFF
    <split>-FFFFF-UUUU.mask               of conversations: a byte for each id, 1 if it has a loss
    val-FFFFF-UUUU.text.zst               the original texts of validation documents that decode to another text
    units.jsonl                           the records of all units, which let a later generation reuse them
    .work/unit-FFFFF-UUUU.json            the record of a unit, written after its files
    .work/rejects-FFFFF-UUUU.jsonl.zst    its dropped documents, with the reasons
    .work/digests-FFFFF-UUUU              with --dedup: the hashes of its documents
    .work/open-FFFFF-UUUU-*/              a unit that is being written; its files are renamed when it is complete

Duplicates and `--max-documents` depend on the documents before, so they are decided here and not in the workers.

A killed run resumes after its last complete unit. Nothing is synced to disk before the end: a record holds the sha256
of the unit's files, and a resumed run reads the files again and trusts only those that match. That holds after a power
cut too. The published files are synced once, at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
import numpy as np

from pipeline.readers.documents import Reject
from pipeline.readers.jsonl import ZstdWriter
from pipeline.store import artifact, files
from pipeline.tokens.overlap import Overlap
from pipeline.tokens.resume import REJECTS, UNITS, UnitRecord, complete_units
from pipeline.tokens.segments import SPLITS
from pipeline.tokens.split import DIGEST_BYTES
from pipeline.tokens.tasks import LongDocument, TokenizeTask
from pipeline.tokens.units.open_unit import OpenUnit, path_of
from pipeline.tokens.worker import Batch, Encoded


class TokenWriter:
    """Writes encoded tasks in input order. Use it in a `with` block, which closes the files on failure.

    `verified` are the stems of units in the draft whose files need not be read again. With `file`, it writes the units
    of that file only, while writers of other files, or another one of this file, may share the draft. `earlier` is then
    a file with the hashes of documents of the files before it.
    """

    def __init__(
        self,
        draft: Path,
        dtype: str,
        *,
        keep_bins: bool = True,
        dedup: bool = False,
        max_documents: int = 0,
        overlap: Overlap | None = None,
        verified: Collection[str] = (),
        file: int | None = None,
        earlier: Path | None = None,
    ) -> None:
        self._draft, self._dtype = draft, np.dtype(dtype).str
        self._scratch = draft / artifact.SCRATCH
        self._bins = draft if keep_bins else self._scratch
        self._dedup, self._file, self._earlier = dedup, file, earlier
        self._overlap = overlap
        self._max_documents = max_documents
        self._document_counts: dict[str, int] = {}  # written so far, by the split of their file
        self._unit: OpenUnit | None = None
        self._scratch.mkdir(exist_ok=True)
        self.records = [*complete_units(self._scratch, lambda name: path_of(name, draft, self._bins), verified, file)]
        if file is None:
            self._delete_incomplete()
        self._count_records()

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._unit:
            self._unit.discard()

    def _delete_incomplete(self) -> None:
        """Delete the files of units that are not complete."""
        complete = {file.name for record in self.records for file in (*record.files, *record.scratch)}
        complete |= {record.name for record in self.records}
        paths = [*self._scratch.iterdir(), *(path for split in SPLITS for path in self._draft.glob(f"{split}-*"))]
        for path in paths:
            if path.name not in complete:
                files.remove_any(path)

    def _count_records(self) -> None:
        """Count the documents of the complete units, and those among them that are validation documents too."""
        for record in self.records:
            self._count_documents(record.split, record.ledger.documents.out)
            if self._overlap:
                self._overlap.add(record.overlap)

    @functools.cached_property
    def _digests(self) -> set[bytes]:
        """The hashes of the documents so far and of earlier files, read before the first document is written."""
        paths = [self._scratch / f"digests-{record.stem}" for record in self.records]
        contents = (path.read_bytes() for path in [*([self._earlier] if self._earlier else []), *paths])
        return {data[start : start + DIGEST_BYTES] for data in contents for start in range(0, len(data), DIGEST_BYTES)}

    def _count_documents(self, split: str, count: int) -> None:
        self._document_counts[split] = self._document_counts.get(split, 0) + count

    def is_full(self, split: str) -> bool:
        """Return True if `max_documents` documents of the files of a split ("": files to be divided) are written."""
        if not self._max_documents or (self._unit and self._unit.long_tokens is not None):
            return False
        return self._document_counts.get(split, 0) >= self._max_documents

    def next_unit(self, file: int) -> int | None:
        """Return the first unit to do of an input file, None if the file is complete."""
        records = self._records_of(file)
        if not records:
            return 0
        return None if records[-1].last else records[-1].unit + 1

    def _records_of(self, file: int) -> list[UnitRecord]:
        return [record for record in self.records if record.file == file]

    def add(self, task: TokenizeTask, encoded: Encoded) -> bool:
        """Add the next task; a task beyond `max_documents` changes nothing. Raises the fault of the task.

        Returns True if this completed a unit, so that a run stopped now has only this task to repeat.
        """
        if self.is_full(task.spec.split):  # encoded ahead of time
            return False
        if encoded.fault:
            raise encoded.fault
        unit, completed = self._unit, False
        if unit and (task.file, task.unit) != (unit.record.file, unit.record.unit):
            self._complete(unit, last=task.file != unit.record.file)
            unit, completed = None, True
        if not unit:
            unit = self._unit = self._open(task)
        record = unit.record
        record.ledger.add(encoded.ledger)
        record.compared += encoded.compared
        record.input_bytes += task.size
        for reject in encoded.rejects:
            unit.write_reject(reject)
        if encoded.parts and task.long:
            self._add_parts(unit, task, task.long, encoded)
        self._add_batches(unit, task, encoded.batches)
        record.lines += encoded.lines
        return completed

    def _open(self, task: TokenizeTask) -> OpenUnit:
        is_independent = self._file is not None and not self._dedup
        record = UnitRecord(task.file, task.unit, taken_over=is_independent, split=task.spec.split)
        record.after = max((earlier.stem for earlier in self.records if earlier.stem < record.stem), default="")
        lines_before = sum(earlier.lines for earlier in self._records_of(task.file))
        has_mask = bool(task.spec.chat)
        return OpenUnit(record, self._draft, self._bins, self._dtype, lines_before, has_mask=has_mask)

    def _complete(self, unit: OpenUnit, *, last: bool) -> None:
        unit.record.last = last
        self.records.append(unit.close(with_digests=self._dedup))
        self.records.sort(key=lambda record: record.stem)  # units that were taken over may follow this one

    def _add_batches(self, unit: OpenUnit, task: TokenizeTask, batches: list[Batch]) -> None:
        dropped = self._dropped(unit, batches)
        for index, batch in enumerate(batches):
            keep = np.ones(len(batch.lengths), bool)
            for row, reason in dropped.get(index, {}).items():
                keep[row] = False
                self._drop_row(unit, task, batch, row, reason)
            lengths = batch.lengths[keep]
            if len(lengths):
                ids = batch.ids if keep.all() else batch.ids[np.repeat(keep, batch.lengths)]
                segment = unit.segment(batch.split)
                self._add_differences(unit, batch, keep, segment.tokens)
                mask = batch.mask
                if mask is not None:
                    mask = mask[np.repeat(keep, batch.lengths)]
                    unit.count_losses(batch.split, mask)
                segment.append(ids, lengths, batch.offsets[keep], mask)
                unit.count_rows(batch.split, lengths, int(batch.stretches[keep].sum()))
                unit.count_characters(batch.split, int(batch.characters[keep].sum()))
                firsts = np.flatnonzero(keep & (batch.documents > 0)).tolist()
                unit.count_documents([batch.sets[row] for row in firsts])
                self._count_overlap(unit, [batch.digests[row] for row in firsts])

    def _add_differences(self, unit: OpenUnit, batch: Batch, keep: np.ndarray, start: int) -> None:
        """Add the differences of the rows to keep. The first row begins at id `start` of the segment."""
        stops = start + np.cumsum(np.where(keep, batch.lengths, 0))
        for row, difference in batch.differences.items():
            if keep[row]:
                stop = int(stops[row])
                unit.add_difference(batch.split, difference, stop - int(batch.lengths[row]), stop - 1)

    def _drop_row(self, unit: OpenUnit, task: TokenizeTask, batch: Batch, row: int, reason: str) -> None:
        tally = unit.record.ledger
        tally.characters.record_dropped(reason, int(batch.characters[row]))
        if not batch.documents[row]:
            return
        tally.documents.record_dropped(reason, 1)
        if reason == "duplicate":
            line, offset = int(batch.lines[row]), int(batch.offsets[row])
            unit.write_reject(Reject(task.spec.file, line, offset, reason, ""))

    def _count_overlap(self, unit: OpenUnit, digests: Sequence[bytes]) -> None:
        """Count the documents of a training file that are validation documents too."""
        if self._overlap and unit.record.split == "train":
            numbers = self._overlap.numbers_of(digests)
            unit.record.overlap += numbers
            self._overlap.add(numbers)

    def _dropped(self, unit: OpenUnit, batches: list[Batch]) -> dict[int, dict[int, str]]:
        """Return batch → row → reason of the duplicates and of the documents beyond `max_documents`.

        Of equal documents the first in input order is kept, whichever batch it is in. The rows of a document have the
        same offset, and are dropped or kept together.
        """
        dropped: dict[int, dict[int, str]] = {}
        if not self._dedup and not self._max_documents:
            return dropped
        rows = [(offset, index, row) for index, batch in enumerate(batches) for row, offset in enumerate(batch.offsets)]
        previous, reason = -1, ""
        for offset, index, row in sorted(rows):
            if offset != previous:
                previous, reason = offset, self._drop_reason(unit, batches[index].digests[row])
            if reason:
                dropped.setdefault(index, {})[row] = reason
        return dropped

    def _drop_reason(self, unit: OpenUnit, digest: bytes) -> str:
        """Return the reason to drop the next document, "" to keep it. The digest of a kept document is recorded."""
        split = unit.record.split
        if self.is_full(split):
            return "over-max-documents"
        if self._dedup:
            if digest in self._digests:
                return "duplicate"
            self._digests.add(digest)
            unit.digests += digest
        if self._max_documents:
            self._count_documents(split, 1)
        return ""

    def _add_parts(self, unit: OpenUnit, task: TokenizeTask, long: LongDocument, encoded: Encoded) -> None:
        """Add parts of a long document; the length of a row is known with its last part."""
        if task.is_first:
            unit.record.ledger.documents.came += 1
            unit.record.ledger.characters.came += long.characters
            if reason := self._drop_reason(unit, long.digest):
                unit.drop(Reject(task.spec.file, 0, task.offset, reason, ""), long.characters)
            else:
                unit.long_tokens = 0
        if unit.long_tokens is None:  # dropped at its first part
            return
        for index, (part, part_ids) in enumerate(zip(task.parts, encoded.parts, strict=True)):
            if difference := encoded.differences.get(index):
                start = unit.segment(part.split).tokens
                stop = start + len(part_ids) - part.ends_row
                unit.add_difference(part.split, difference, start, stop)
            unit.long_tokens += len(part_ids)
            lengths = np.array([unit.long_tokens] if part.ends_row else [], np.int64)
            unit.segment(part.split).append(part_ids, lengths, np.full(len(lengths), task.offset, np.int64))
            unit.count_characters(part.split, len(part.text))
            if part.ends_row:
                unit.count_rows(part.split, lengths, part.stretches)
                unit.long_tokens = 0
        if task.is_last:
            unit.count_documents([long.set_name])
            self._count_overlap(unit, [long.digest])
            unit.long_tokens = None

    def complete(self) -> list[UnitRecord]:
        """Complete the last unit. Returns the records of all units."""
        if self._unit:
            self._complete(self._unit, last=True)
            self._unit = None
        return self.records

    def finish(self) -> list[UnitRecord]:
        """Complete the last unit, write the records and rejects of all units, and return the records."""
        self.complete()
        published = (msgspec.structs.replace(record, after="", taken_over=False) for record in self.records)
        (self._draft / UNITS).write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in published))
        with ZstdWriter(self._draft / REJECTS):  # an empty frame, so that the file is valid without any reject
            pass
        with open(self._draft / REJECTS, "ab") as out:  # concatenated zstd frames are a valid zstd file
            for record in self.records:
                path = self._scratch / f"rejects-{record.stem}.jsonl.zst"
                if path.exists():
                    out.write(path.read_bytes())
        return self.records

    def bins(self, split: str) -> list[Path]:
        """Return the token files of a split, in order."""
        return sorted(self._bins.glob(f"{split}-*.bin"))
