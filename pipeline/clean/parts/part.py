"""A part of a corpus: the input files that it is made from, and the record of a complete one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.clean.options import CleanOptions
from pipeline.clean.report.report import CleaningReport
from pipeline.readers.documents import Reject
from pipeline.runtime.ledger import Ledger
from pipeline.sources.inputs import InputFile
from pipeline.store import files
from pipeline.store.files import HashingFile
from pipeline.store.manifest import FileRecord

PART_BYTES = 64 << 20  # of input files, as they are on disk
DOCUMENTS, SENTENCES, REJECTS, DIGESTS = "documents.jsonl.zst", "sentences.txt", "rejects.jsonl.zst", "digests.bin"
CANDIDATES, SIGNATURES = "candidates", "signatures"  # with --dedup, instead of the first three
_RECORD = "part.json"


class PartTask(msgspec.Struct, frozen=True):
    """The input of `builder.make_part`.

    The folder of the part, `folder`, is None if nothing is to be written. `held_out` is the folder with the index of
    held-out text, if there is such text.
    """

    number: int
    inputs: tuple[InputFile, ...]
    options: CleanOptions
    folder: Path | None
    held_out: Path | None = None

    @property
    def size(self) -> int:
        """Bytes of the input files."""
        return sum(entry.stamp[0] for entry in self.inputs)

    def path(self, name: str) -> Path:
        """Return the path of a file of the part, which has a folder."""
        assert self.folder
        return self.folder / name


class PartRecord(msgspec.Struct, frozen=True):
    """The content of a complete part.

    `records` were read, for the fraction of bad ones; `first_bad` is the first of these. `ledger` is that of reading,
    `report` counts the rest.
    """

    number: int
    records: int
    ledger: Ledger
    report: CleaningReport
    files: tuple[FileRecord, ...]
    first_bad: Reject | None = None

    def file(self, name: str) -> FileRecord:
        return next(record for record in self.files if record.name == name)


def divide(
    inputs: Sequence[InputFile],
    options: CleanOptions,
    scratch: Path | None,
    part_bytes: int = PART_BYTES,
    held_out: Path | None = None,
) -> list[PartTask]:
    """Return the tasks of all parts: as many consecutive files as fit into `part_bytes`, at least one."""
    groups: list[list[InputFile]] = []
    size = 0
    for entry in inputs:
        size += entry.stamp[0]
        if not groups or size > part_bytes:
            groups.append([])
            size = entry.stamp[0]
        groups[-1].append(entry)
    return [
        PartTask(number, tuple(group), options, scratch / f"part-{number:05d}" if scratch else None, held_out)
        for number, group in enumerate(groups)
    ]


def write_record(folder: Path, record: PartRecord) -> None:
    (folder / _RECORD).write_bytes(msgspec.json.encode(record, enc_hook=_as_list))


def read_record(task: PartTask) -> PartRecord | None:
    """Return the record of a part that an earlier run completed; None if there is none or a file differs from it."""
    if task.folder is None:
        return None
    try:
        data = (task.folder / _RECORD).read_bytes()
        record = msgspec.json.decode(data, type=PartRecord, dec_hook=_as_array)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return record if all(_is_intact(task.folder / file.name, file) for file in record.files) else None


def record_of(file: HashingFile) -> FileRecord:
    """Return the record of a file that was written."""
    return FileRecord(file.path.name, file.size, file.sha256)


def _is_intact(path: Path, record: FileRecord) -> bool:
    return files.file_size(path) == record.size and files.sha256_of(path) == record.sha256


def _as_list(value: Any) -> Any:
    """Encode an array for msgspec, which requires NotImplementedError for other types."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise NotImplementedError(type(value))


def _as_array(kind: type, value: Any) -> Any:
    """Decode an array for msgspec, which requires NotImplementedError for other types."""
    if kind is np.ndarray:
        return np.array(value, np.int64)
    raise NotImplementedError(kind)
