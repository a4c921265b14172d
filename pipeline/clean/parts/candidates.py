"""Candidates: cleaned documents that are stored until it is known which of them are duplicates.

With --dedup, a part first has `candidates`, batches of documents that are compressed one by one, and for each document
a fingerprint in `digests.bin` and with --dedup near a signature in `signatures`. Documents are numbered over all parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec
import zstandard

from pipeline.clean.parts.part import CANDIDATES, DIGESTS, SIGNATURES, record_of
from pipeline.clean.report.report import CleaningReport
from pipeline.clean.serialize import CorpusRow, compress
from pipeline.clean.tasks import CleanTask
from pipeline.clean.worker import CleanResult
from pipeline.readers.documents import Reject
from pipeline.store.files import HashingFile
from pipeline.store.manifest import FileRecord

_SIZE_BYTES = 8


class Frame(NamedTuple):
    """A compressed batch, and the number of its documents."""

    documents: int
    data: bytes


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    source: str
    rows: list[CorpusRow]
    rejects: list[Reject]


class CandidateWriter:
    """Writes the candidates of a part into `folder`. Has the interface of `PartWriter`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report, self.digests = CleaningReport(), bytearray()
        self._stack = ExitStack()

    def __enter__(self) -> CandidateWriter:
        self._candidates, self._signatures = self._file(CANDIDATES), self._file(SIGNATURES)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _file(self, name: str) -> HashingFile:
        path = self.folder / name
        return HashingFile(self._stack.enter_context(open(path, "wb")), path)

    def add(self, task: CleanTask, result: CleanResult, rejects: Sequence[Reject]) -> None:
        """Write the result of a task, after the `rejects` of reading it."""
        self.report.add(result.report)
        self._write(task.file, result.rows, [*rejects, *result.rejects])
        self.digests += b"".join(result.digests)
        self._signatures.write(b"".join(result.signatures))

    def _write(self, source: str, rows: list[CorpusRow], rejects: list[Reject]) -> None:
        frame = compress(msgspec.msgpack.encode(_Batch(source, rows, rejects)))
        for number in (len(rows), len(frame)):
            self._candidates.write(number.to_bytes(_SIZE_BYTES, "little"))
        self._candidates.write(frame)

    def finish(self, rejects: Sequence[Reject]) -> tuple[FileRecord, ...]:
        """Write the last `rejects`, complete the files, and return their records. There is at least one batch."""
        self._write("", [], list(rejects))
        digests = self._file(DIGESTS)
        digests.write(bytes(self.digests))
        self._stack.close()
        return tuple(map(record_of, (self._candidates, self._signatures, digests)))


def read_frames(path: Path) -> Iterator[Frame]:
    """Yield the batches of a file of candidates, compressed, in order."""
    with open(path, "rb") as file:
        while sizes := file.read(2 * _SIZE_BYTES):
            count, size = (int.from_bytes(sizes[start:][:_SIZE_BYTES], "little") for start in (0, _SIZE_BYTES))
            yield Frame(count, file.read(size))


def read_batch(frame: Frame) -> tuple[str, list[CorpusRow], list[Reject]]:
    """Return the name of the source of a batch, its documents, and the rejects before them."""
    batch = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(frame.data), type=_Batch)
    return batch.source, batch.rows, batch.rejects
