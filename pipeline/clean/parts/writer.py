"""The writer of a part: collects the results of tasks in input order into its files.

A document longer than a task is held as an `OpenDocument` until the filter accepts or rejects it: at its end, or once
it has 4 M characters. From then on its fragments are written as they arrive, so that memory use does not grow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.clean import filters, serialize, worker
from pipeline.clean.duplicates.fingerprints import DIGEST_BYTES
from pipeline.clean.options import CleanOptions
from pipeline.clean.parts.part import DIGESTS, DOCUMENTS, REJECTS, SENTENCES, record_of
from pipeline.clean.report.report import CleaningReport
from pipeline.clean.tasks import CleanTask
from pipeline.clean.utf16 import encode_utf16
from pipeline.clean.worker import CleanResult, Fragment
from pipeline.readers import documents, jsonl
from pipeline.readers.documents import Reject
from pipeline.store import files
from pipeline.store.files import HashingFile
from pipeline.store.manifest import FileRecord

_DECIDED_AT = 4 << 20  # characters of an open document after which it is filtered by what was read so far


@dataclass
class OpenDocument:
    """A document that is longer than a task, up to the part read so far.

    fragments  not written yet
    counts     class counts, for the filter
    hash       of its text, for the count of duplicates
    reason     why it is rejected, "" if it is kept, None if undecided
    """

    source: str = ""
    profile: str = "plain"
    title: str = ""
    meta: Any = None
    fragments: list[Fragment] = field(default_factory=list)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(filters.CLASSES, int))
    excerpt: str = ""
    characters: int = 0
    hash: Any = field(default_factory=hashlib.sha256)
    reason: str | None = None
    is_written: bool = False  # in part


class PartWriter:
    """Writes documents, sentences and rejects of a part into `folder`, or counts them only if `folder` is None.

    `digests` has 16 bytes for each document, unless duplicates were removed before.
    """

    def __init__(self, options: CleanOptions, folder: Path | None) -> None:
        self._options, self.folder = options, folder
        self.report, self.digests = CleaningReport(), bytearray()
        self._stack = ExitStack()
        self._open = OpenDocument()
        self._pending_json = bytearray()  # uncompressed JSON between two frames

    def __enter__(self) -> PartWriter:
        self._rejects = self._stack.enter_context(jsonl.ZstdWriter(self._path(REJECTS)))
        self._documents, self._sentences = self._file(DOCUMENTS), self._file(SENTENCES)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _file(self, name: str) -> HashingFile:
        return HashingFile(self._stack.enter_context(open(self._path(name), "wb")), self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / name if self.folder else Path("/dev/null")

    def add(self, task: CleanTask, result: CleanResult, rejects: Sequence[Reject]) -> None:
        """Write the result of a task, after the `rejects` of reading it."""
        self._write_rejects(rejects)
        self.add_documents(result)
        self.digests += b"".join(result.digests)
        if result.tail:
            self._open = OpenDocument(task.file, task.profile, result.title, result.meta)
            self._extend(result.tail)

    def add_documents(self, result: CleanResult) -> None:
        """Write the result of a task without the document that it leaves open."""
        self.report.add(result.report)
        self._write_rejects(result.rejects)
        if result.head:
            self._extend(result.head)
        if result.closes:
            self._close()
        self._write(result.frame, result.sentences)

    def _write_rejects(self, rejects: Sequence[Reject]) -> None:
        for reject in rejects:
            self._rejects.write_reject(reject)

    def _extend(self, fragment: Fragment) -> None:
        """Add a fragment to the open document."""
        document = self._open
        if not fragment.characters:
            return
        document.fragments.append(fragment)
        document.counts += fragment.counts
        document.hash.update(encode_utf16(fragment.separator).units.tobytes() if document.characters else b"")
        document.hash.update(fragment.raw)
        document.excerpt = document.excerpt or fragment.excerpt
        document.characters += fragment.characters
        if document.characters >= max(_DECIDED_AT, 2 * self._options.min_chars):
            self._flush()

    def _flush(self) -> None:
        """Filter the open document unless that is done, and write its fragments if it is kept."""
        document = self._open
        if document.reason is None:
            requirements = worker.filter_for(document.profile, self._options)
            document.reason = filters.reject_reason(document.counts.tolist(), requirements)
            if not document.reason:
                self._pending_json += jsonl.LINE_PREFIX
        if not document.reason:
            for fragment in document.fragments:
                if document.is_written:
                    self._write_separator(fragment.separator)
                self._write(fragment.frame, fragment.sentences)
                self.report.add(fragment.report)
                document.is_written = True
            document.fragments = []
        elif len(document.fragments) > 1:
            document.fragments = document.fragments[:1]

    def _write_separator(self, separator: str) -> None:
        """Write the line end between two fragments, which was counted as removed when they were cleaned."""
        if not separator:
            return
        self._pending_json += b"\\n"
        rule = self.report.rule("blank-lines")
        rule.removed -= 1
        rule.characters_out += 1
        histogram = self.report.add_text(encode_utf16(separator))
        self.report.file(self._open.source).add_text(histogram, self._open.profile)

    def _close(self) -> None:
        """Write the rest of the open document, or reject it."""
        document = self._open
        self._flush()
        if document.reason:
            self._reject(document.reason, document.source, document.excerpt, document.characters)
        else:
            self._pending_json += jsonl.line_suffix(document.title, document.source, document.meta)
            self.report.documents += 1
            self.report.file(document.source).add_documents(1, document.profile)
            self.digests += document.hash.digest()[:DIGEST_BYTES]
        self._open = OpenDocument()

    def _reject(self, reason: str, source: str, text: str, characters: int, location: tuple[int, int] = (1, 0)) -> None:
        self.report.drop(reason, 1, characters)
        self._rejects.write_reject(Reject(source, *location, reason, text[: documents.EXCERPT_CHARACTERS]))

    def _write(self, frame: bytes, sentences: bytes) -> None:
        if frame:
            self._write_pending_json()
        self._documents.write(frame)
        self._sentences.write(sentences)

    def _write_pending_json(self) -> None:
        if self._pending_json:
            self._documents.write(serialize.compress(bytes(self._pending_json)))
            self._pending_json.clear()

    def finish(self, rejects: Sequence[Reject]) -> tuple[FileRecord, ...]:
        """Write the last `rejects`, complete the files, and return their records."""
        self._write_rejects(rejects)
        self._write_pending_json()
        self._stack.close()
        if not self.folder:
            return ()
        (self.folder / DIGESTS).write_bytes(self.digests)
        others = [self.folder / name for name in (REJECTS, DIGESTS)]
        return (
            *map(record_of, (self._documents, self._sentences)),
            *(FileRecord(path.name, path.stat().st_size, files.sha256_of(path)) for path in others),
        )
