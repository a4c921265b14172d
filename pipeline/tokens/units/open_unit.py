"""The unit that is being written."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from pipeline.errors import InternalError
from pipeline.readers.documents import Reject
from pipeline.readers.jsonl import ZstdWriter
from pipeline.store import artifact, files
from pipeline.store.manifest import FileRecord
from pipeline.tokens import originals
from pipeline.tokens.resume import OPEN, UnitDifferences, UnitRecord
from pipeline.tokens.roundtrip import Difference
from pipeline.tokens.segments import MASK, SegmentWriter


class OpenUnit:
    """The unit being written: its record, its segments by split, its rejects and the digests of its documents.

    `lines_before` is the number of lines in the file's earlier units. With `has_mask` its documents are conversations.
    """

    def __init__(
        self, record: UnitRecord, draft: Path, bins: Path, dtype: str, lines_before: int, *, has_mask: bool = False
    ) -> None:
        self.record = record
        self.digests = bytearray()
        self.long_tokens: int | None = None  # tokens so far of a long document's open row, None if there is none
        self._draft, self._bins, self._scratch = draft, bins, draft / artifact.SCRATCH
        self._folder = Path(tempfile.mkdtemp(prefix=f"{OPEN}{record.stem}-", dir=self._scratch))
        self._dtype, self._has_mask = dtype, has_mask
        self._lines_before = lines_before
        self._segments: dict[str, SegmentWriter] = {}
        self._rejects: ZstdWriter | None = None
        self._originals: dict[str, ZstdWriter] = {}

    def segment(self, split: str) -> SegmentWriter:
        """Return the segment of a split, opened at its first use."""
        if split not in self._segments:
            name = f"{split}-{self.record.stem}"
            self._segments[split] = SegmentWriter(self._folder, name, self._dtype, has_mask=self._has_mask)
        return self._segments[split]

    def count_rows(self, split: str, lengths: np.ndarray, stretches: int) -> None:
        """Count rows written to a split, of `lengths` in tokens."""
        record = self.record
        record.longest = max(record.longest, int(lengths.max()))
        record.documents[split] = record.documents.get(split, 0) + len(lengths)
        record.stretches[split] = record.stretches.get(split, 0) + stretches

    def count_losses(self, split: str, mask: np.ndarray) -> None:
        """Count the ids with a loss among those written to a split."""
        losses = {} if self.record.losses is msgspec.UNSET else self.record.losses
        self.record.losses = losses | {split: losses.get(split, 0) + int(mask.sum())}

    def count_characters(self, split: str, characters: int) -> None:
        """Count characters written to a split."""
        self.record.ledger.characters.out += characters
        self.record.characters[split] = self.record.characters.get(split, 0) + characters

    def add_difference(self, split: str, difference: Difference, start: int, stop: int) -> None:
        """Count how a text differs from what the ids `[start, stop)` of its segment decode to; keep the text if needed.

        The end-of-text id is not among these ids.
        """
        own = UnitDifferences({split: difference.unknown} if difference.unknown else {}, difference.rewritten)
        if difference.text is not None:
            if split not in self._originals:
                self._originals[split] = ZstdWriter(self._folder / f"{split}-{self.record.stem}{originals.SUFFIX}")
            self._originals[split].write(originals.encode_original(start, stop, difference.text))
            own.changed = 1
        if self.record.differences is msgspec.UNSET:
            self.record.differences = UnitDifferences({}, {})
        self.record.differences.add(own)

    def count_documents(self, set_names: Sequence[str]) -> None:
        """Count complete documents, each with the name of its set."""
        self.record.ledger.documents.out += len(set_names)
        for name in filter(None, set_names):
            self.record.sets[name] = self.record.sets.get(name, 0) + 1

    def drop(self, reject: Reject, characters: int) -> None:
        """Count a document as dropped and write its reject."""
        self.record.ledger.documents.record_dropped(reject.reason, 1)
        self.record.ledger.characters.record_dropped(reject.reason, characters)
        self.write_reject(reject)

    def write_reject(self, reject: Reject) -> None:
        """Write the reject of a document; its `line` counts from 0 in the current task."""
        if self._rejects is None:
            self._rejects = ZstdWriter(self._folder / f"rejects-{self.record.stem}.jsonl.zst")
        line = self._lines_before + self.record.lines + reject.line + 1
        self._rejects.write_reject(Reject(reject.file, line, reject.offset, reject.reason, reject.excerpt))

    def close(self, *, with_digests: bool) -> UnitRecord:
        """Finish the files of the unit and rename them, its record last. Returns the record."""
        record = self.record
        for split, segment in self._segments.items():
            record.files += segment.close()
            record.tokens[split] = segment.tokens
            if segment.documents != record.documents[split]:
                raise InternalError(f"{split}-{record.stem}: documents were counted and written differently")
        for split, texts in self._originals.items():
            texts.close()
            record.files.append(_file_record(self._folder / f"{split}-{record.stem}{originals.SUFFIX}"))
        if self._rejects:
            self._rejects.close()
            record.scratch.append(_file_record(self._folder / f"rejects-{record.stem}.jsonl.zst"))
        if with_digests:
            path = self._folder / f"digests-{record.stem}"
            path.write_bytes(self.digests)
            record.scratch.append(_file_record(path))
        (self._folder / record.name).write_bytes(msgspec.json.encode(record))
        targets = [path_of(file.name, self._draft, self._bins) for file in record.files]
        moved = [*targets, *(self._scratch / file.name for file in record.scratch), self._scratch / record.name]
        for path in moved:
            files.move_unsynced(self._folder / path.name, path)
        self._folder.rmdir()
        files.start_writeback(targets)
        return record

    def discard(self) -> None:
        """Close and delete the files of a unit that will not be finished."""
        for segment in self._segments.values():
            segment.discard()
        for texts in self._originals.values():
            texts.close()
        if self._rejects:
            self._rejects.close()
        files.remove_tree(self._folder)


def path_of(name: str, draft: Path, bins: Path) -> Path:
    """Return the path of a published file in the draft; those of ids and masks are in the folder `bins`."""
    return (bins if name.endswith((".bin", MASK)) else draft) / name


def _file_record(path: Path) -> FileRecord:
    return FileRecord(path.name, path.stat().st_size, files.sha256_of(path))
