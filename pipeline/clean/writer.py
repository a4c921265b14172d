"""The writer: collects the results of tasks in input order into the files of a corpus.

A document longer than a task is held as an `OpenDocument` until the filter accepts or rejects it: at its end, or once
it has 4 M characters. From then on its fragments are written as they arrive, so that memory use does not grow.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.clean import filters, serialize, worker
from pipeline.clean.duplicates.candidates import CandidateFolder, CandidateWriter, ExampleTexts, read_candidates
from pipeline.clean.duplicates.fingerprints import DIGEST_BYTES, ExactIndex
from pipeline.clean.duplicates.near import NEAR_REASON, find_duplicates
from pipeline.clean.duplicates.signatures import load_rensa
from pipeline.clean.no_text import no_text_left
from pipeline.clean.options import CleanOptions
from pipeline.clean.report import render
from pipeline.clean.report.report import CleaningReport, check_balance
from pipeline.clean.serialize import CorpusRow
from pipeline.clean.tasks import CleanTask, TaskReader
from pipeline.clean.utf16 import encode_utf16
from pipeline.clean.worker import CleanResult, Fragment
from pipeline.readers import documents, jsonl
from pipeline.readers.documents import Reject
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Progress
from pipeline.sources.inputs import InputFile
from pipeline.store.artifact import SCRATCH, StageOutput
from pipeline.store.files import HashingFile
from pipeline.store.manifest import FileRecord

REPORT = "report.json"
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


class CorpusWriter:
    """Writes documents, sentences, rejects and the report of a corpus into `draft`; nothing if `draft` is None."""

    def __init__(self, options: CleanOptions, draft: Path | None) -> None:
        self._options, self._draft = options, draft
        self.report, self.ledger, self._records = CleaningReport(), Ledger(), 0
        self._stack = ExitStack()
        self._open = OpenDocument()
        self._pending_json = bytearray()  # uncompressed JSON between two frames
        self._exact = ExactIndex()
        self._candidates: CandidateWriter | None = None

    def __enter__(self) -> CorpusWriter:
        if self._options.dedup == "near":
            load_rensa()
            scratch = self._stack.enter_context(tempfile.TemporaryDirectory(dir=self._draft, prefix=SCRATCH))
            self._folder = CandidateFolder(Path(scratch))
            self._candidates = CandidateWriter(self._folder)
            self._stack.callback(self._candidates.close)
        self._rejects = self._stack.enter_context(jsonl.ZstdWriter(self._path("rejects.jsonl.zst")))
        self._documents, self._sentences = self._file("documents.jsonl.zst"), self._file("sentences.txt")
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _file(self, name: str) -> HashingFile:
        return HashingFile(self._stack.enter_context(open(self._path(name), "wb")), self._path(name))

    def _path(self, name: str) -> Path:
        return self._draft / name if self._draft else Path("/dev/null")

    # Reading

    def write_reject(self, reject: Reject) -> None:
        self._rejects.write_reject(reject)

    def count_records(self, task: CleanTask) -> None:
        """Count the records of a task that was read, for the fraction of bad ones."""
        self._records += not task.continues and len(task.lines)

    def count_file(self, reader: TaskReader) -> None:
        """Add a file to the report, after all of its tasks were read."""
        file = self.report.file(reader.entry.name)
        file.encoding = reader.stats.encoding
        file.bytes += reader.entry.stamp[0]
        file.invalid_bytes, file.invalid_offset = reader.stats.errors, reader.stats.error_offset

    # Results, in input order

    def add(self, task: CleanTask, result: CleanResult) -> None:
        """Write the result of a task."""
        self.report.add(result.report)
        for reject in result.rejects:
            self._rejects.write_reject(reject)
        if result.head:
            self._extend(result.head)
        if result.closes:
            self._close()
        self._write(result.frame, result.sentences)
        if self._candidates:
            self._candidates.add(task.file, result.rows)
        elif result.rows:
            is_duplicate = [self._exact.add(row.fingerprint) for row in result.rows]
            self._write_distinct(task.file, result.rows, ["duplicate" if equal else "" for equal in is_duplicate])
        for digest in result.digests:
            self.report.duplicates += self._exact.add(digest)
        if result.tail:
            self._open = OpenDocument(task.file, task.profile, result.title, result.meta)
            self._extend(result.tail)

    def publish_candidates(self, progress: Progress, jobs: int) -> None:
        """Write the candidates of --dedup near, after all of them were added."""
        if not self._candidates:
            return
        self._candidates.close()
        folder = self._folder
        with progress.bar("near duplicates", folder.signatures.stat().st_size) as advance:
            duplicates = find_duplicates(
                [folder.fingerprints], [folder.signatures], folder.path, jobs=jobs, advance=advance
            )
        texts = ExampleTexts(duplicates.examples)
        number = 0
        for source, rows in read_candidates([folder.documents]):
            progress.safe_point("nothing was published")
            texts.add(number, source, rows)
            self._write_distinct(source, rows, duplicates.reasons(number, number + len(rows)))
            number += len(rows)
        self.report.near_pairs = duplicates.counts()
        self.report.add_examples(NEAR_REASON, texts.examples())

    def _write_distinct(self, source: str, rows: Sequence[CorpusRow], reasons: Sequence[str]) -> None:
        """Write the documents without a reason to drop them, and reject the others."""
        unique = []
        for row, reason in zip(rows, reasons, strict=True):
            self.report.duplicates += reason == "duplicate"
            if reason:
                self._reject(reason, source, row.text, len(row.text), row.location)
            else:
                unique.append(row)
        if unique:
            sentences = serialize.publish_rows(unique, source, self._options, self.report)
            self._write(serialize.compress(b"".join(row.json_line for row in unique)), sentences)

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
            self.report.duplicates += self._exact.add(document.hash.digest()[:DIGEST_BYTES])
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

    # The end

    def check(self, inputs: Sequence[InputFile]) -> dict[str, Any]:
        """Return the ledger, after all input was written.

        Raises InternalError if a character is not accounted for, TooManyRejects if more than `max_bad` of the documents
        are bad, BadData if no text is left.
        """
        check_balance(self.report)
        ledger = self._close_ledger()
        if not self.report.documents:
            names, dropped = [entry.name for entry in inputs], ledger["documents"]["dropped"]
            raise no_text_left(names, dropped, self._options, has_headings=bool(self.report.headings))
        return ledger

    def finish(self, inputs: Sequence[InputFile]) -> StageOutput:
        """Write the report and return the content of the artifact. Raises the errors of `check`."""
        assert self._draft
        self._write_pending_json()
        ledger = self.check(inputs)
        encoded = msgspec.json.encode(render.to_json(self.report))
        (self._draft / REPORT).write_bytes(msgspec.json.format(encoded, indent=2))
        counts = {
            "documents": self.report.documents,
            "characters": self.report.characters_out,
            "sentences": self.report.sentences.count,
            "headings": sum(self.report.headings.values()),
            "input_bytes": sum(entry.stamp[0] for entry in inputs),
        }
        files = tuple(FileRecord(file.path.name, file.size, file.sha256) for file in (self._documents, self._sentences))
        return StageOutput(counts, ledger, files)

    def _close_ledger(self) -> dict[str, Any]:
        """Complete the ledger of reading by the counts of the report, and close it."""
        report, ledger = self.report, self.ledger
        records = self._records + ledger.documents.bad
        dropped_documents = sum(dropped.documents for dropped in report.dropped.values())
        ledger.documents.came = sum(ledger.documents.dropped.values()) + report.documents + dropped_documents
        ledger.documents.out, ledger.characters.out = report.documents, report.characters_out
        ledger.characters.came = sum(ledger.characters.dropped.values()) + report.characters_in
        for name, tally in report.rules.items():
            ledger.characters.record_dropped(name, tally.removed)
            ledger.characters.record_added(name, tally.added)
        for reason, dropped in report.dropped.items():
            ledger.documents.record_dropped(reason, dropped.documents)
            ledger.characters.record_dropped(reason, dropped.characters)
        return ledger.close(max_bad=self._options.max_bad, record_count=records)
