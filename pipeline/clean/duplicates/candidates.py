"""Candidates: cleaned documents that wait in files until it is known which of them are duplicates.

A folder of candidates has `documents`, batches that are compressed one by one, and `fingerprints` and `signatures`, one
of each for every document. Several folders can follow each other, such as those of the parts of a corpus: documents are
numbered over all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from pipeline.clean.duplicates.near import Match
from pipeline.clean.report.report import EXAMPLE_CHARACTERS
from pipeline.clean.serialize import CorpusRow, compress
from pipeline.readers.jsonl import Record

_SIZE_BYTES = 8


@dataclass(frozen=True)
class CandidateFolder:
    """The files of a folder of candidates."""

    path: Path

    @property
    def documents(self) -> Path:
        return self.path / "documents"

    @property
    def fingerprints(self) -> Path:
        return self.path / "fingerprints"

    @property
    def signatures(self) -> Path:
        return self.path / "signatures"


class CandidateWriter:
    """Writes a folder of candidates."""

    def __init__(self, folder: CandidateFolder) -> None:
        self._stack = ExitStack()
        self._documents, self._fingerprints, self._signatures = (
            self._stack.enter_context(open(path, "wb"))  # noqa: SIM115 - closed in close()
            for path in (folder.documents, folder.fingerprints, folder.signatures)
        )

    def add(self, source: str, rows: Sequence[CorpusRow]) -> None:
        """Add a batch of documents of one file."""
        fields = [(row.json_line, row.profile, row.location) for row in rows]
        frame = compress(msgspec.msgpack.encode((source, fields)))
        self._documents.write(len(frame).to_bytes(_SIZE_BYTES, "little") + frame)
        self._fingerprints.write(b"".join(row.fingerprint for row in rows))
        self._signatures.write(b"".join(row.signature for row in rows))

    def close(self) -> None:
        self._stack.close()


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    source: str
    rows: list[tuple[bytes, str, tuple[int, int]]]


def read_candidates(paths: Sequence[Path]) -> Iterator[tuple[str, list[CorpusRow]]]:
    """Yield the batches of some files of documents in order, each with the name of its source."""
    decode, decompress = msgspec.msgpack.Decoder(_Batch).decode, zstandard.ZstdDecompressor().decompress
    for path in paths:
        with open(path, "rb") as file:
            while size := file.read(_SIZE_BYTES):
                batch = decode(decompress(file.read(int.from_bytes(size, "little"))))
                yield batch.source, list(itertools.starmap(_row, batch.rows))


class ExampleTexts:
    """The beginnings of the documents of some matches, collected while all documents are read again."""

    def __init__(self, matches: Sequence[Match]) -> None:
        self._matches = matches
        self._texts: dict[int, dict[str, Any]] = {number: {} for match in matches for number in match[:2]}

    def add(self, start: int, source: str, rows: Sequence[CorpusRow]) -> None:
        """Add a batch whose first document has the number `start`."""
        for number in self._texts.keys() & range(start, start + len(rows)):
            row = rows[number - start]
            self._texts[number] = {"source": source, "line": row.location[0], "text": row.text[:EXAMPLE_CHARACTERS]}

    def examples(self) -> list[dict[str, Any]]:
        """Return each match with its similarity and both documents, after all batches."""
        return [
            {"similarity": round(similarity, 3), "original": self._texts[original], "duplicate": self._texts[duplicate]}
            for original, duplicate, similarity in self._matches
        ]


def _row(json_line: bytes, profile: str, location: tuple[int, int]) -> CorpusRow:
    return CorpusRow(json_line, msgspec.json.decode(json_line, type=Record).text, profile, b"", location)
