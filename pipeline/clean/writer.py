"""Writer of a corpus: collect cleaned tasks in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.clean import dedup as duplicates
from pipeline.clean import filters, profiles
from pipeline.clean import worker as cleaning
from pipeline.clean.options import CleanOptions
from pipeline.clean.report import render as summary
from pipeline.clean.report import report
from pipeline.clean.report.report import Report
from pipeline.clean.tasks import Task, Texts
from pipeline.clean.utf16 import codes, join, text_of
from pipeline.clean.worker import Cleaned, Fragment, Row, Worker
from pipeline.errors import BadData
from pipeline.readers import documents, jsonl
from pipeline.readers.documents import Reject
from pipeline.runtime import workers as engines
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Advance, Progress
from pipeline.sources import inputs as raw
from pipeline.store.artifact import Content
from pipeline.store.files import HashingFile
from pipeline.store.manifest import FileRecord

REPORT = "report.json"
_LONG = 4 << 20  # characters at which a document is judged, though it goes on


@dataclass
class _Open:
    """The document that is longer than a piece, as far as it has come. `reason` is why it is dropped, "" where it is
    not, None before that is decided."""

    source: str = ""
    profile: str = "plain"
    title: str = ""
    meta: Any = None
    parts: list[Fragment] = field(default_factory=list)  # that are not written yet
    counts: np.ndarray = field(default_factory=lambda: np.zeros(filters.CLASSES, int))
    excerpt: str = ""
    characters: int = 0
    hash: Any = field(default_factory=hashlib.sha256)
    reason: str | None = None
    written: bool = False


class _Corpus:
    """What is being written: the files, the document that is open, and all that was counted."""

    def __init__(self, options: CleanOptions, draft: Path | None) -> None:
        self._options, self._draft = options, draft
        self.report, self._ledger, self._records = Report(), Ledger(), 0
        self._stack = ExitStack()
        self._open = _Open()
        self._glue = bytearray()
        self._known = duplicates.Exact()
        self._near = duplicates.Near() if options.dedup == "near" else None

    def __enter__(self) -> _Corpus:
        self._rejects = self._stack.enter_context(jsonl.ZstdLines(self._path("rejects.jsonl.zst")))
        self._documents, self._sentences = self._file("documents.jsonl.zst"), self._file("sentences.txt")
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _file(self, name: str) -> HashingFile:
        return HashingFile(self._stack.enter_context(open(self._path(name), "wb")), self._path(name))

    def _path(self, name: str) -> Path:
        return self._draft / name if self._draft else Path("/dev/null")

    def fill(self, inputs: Sequence[raw.InputFile], progress: Progress, jobs: int) -> None:
        """Clean all inputs, in their order."""
        total = sum(entry.path.stat().st_size for entry in inputs)
        with progress.bar("clean", total) as advance:
            work = engines.stream(Worker(self._options), self._tasks(inputs, advance), jobs=jobs)
            try:
                for task, done in work:
                    progress.safe_point("nothing was published")
                    self._take(task, done)
            finally:
                work.close()

    def _tasks(self, inputs: Sequence[raw.InputFile], advance: Advance) -> Iterator[Task]:
        for entry in inputs:
            texts = Texts(entry, self._options, self._ledger, self._rejects.write_reject)
            for task in texts.tasks(advance):
                self._records += not task.continues and len(task.lines)
                yield task
            raw.require_unchanged(entry)
            file = self.report.file(entry.name)
            file.encoding, file.profile = texts.facts.encoding, texts.profile
            file.bytes += entry.stamp[0]
            file.chinese = profiles.PROFILES[texts.profile or "plain"].chinese

    def _take(self, task: Task, done: Cleaned) -> None:
        """Write what a task gave. Its parts come in the order of the text."""
        self.report.add(done.report)
        for reject in done.rejects:
            self._rejects.write_reject(reject)
        if done.head:
            self._extend(done.head)
        if done.closed:
            self._close()
        self._write(done.frame, done.sentences)
        self._decide(task, done.rows)
        for digest in done.digests:
            self.report.duplicates += self._known.has(digest)
        if done.tail:
            self._open = _Open(task.file, task.profile, done.title, done.meta)
            self._extend(done.tail)

    def _decide(self, task: Task, rows: Sequence[Row]) -> None:
        """Write those documents that are no duplicates of ones before them."""
        kept = []
        for row in rows:
            again = self._known.has(row.fingerprint)
            self.report.duplicates += again
            reason = "duplicate" if again else ""
            if not reason and self._near is not None and self._near.has(row.sketch, len(self._near)):
                reason = "near-duplicate"
            if reason:
                self._drop(reason, task.file, row.text, len(row.text), row.place)
            else:
                kept.append(row)
        if kept:
            page = join([row.text for row in kept])
            lines = cleaning.published(page, text_of(page).encode(), task, len(kept), self._options, self.report)
            self._write(cleaning.frame(b"".join(row.line for row in kept)), lines)

    def _extend(self, part: Fragment) -> None:
        """The document that is open goes on."""
        current = self._open
        if not part.characters:
            return
        current.parts.append(part)
        current.counts += part.counts
        current.hash.update(codes(part.joint).units.tobytes() if current.characters else b"")
        current.hash.update(part.raw)
        current.excerpt = current.excerpt or part.excerpt
        current.characters += part.characters
        if current.characters >= max(_LONG, 2 * self._options.min_chars):
            self._judge()

    def _judge(self) -> None:
        """Decide whether the document that is open stays, if it is not yet decided, and write what came of it."""
        current = self._open
        if current.reason is None:
            wanted = cleaning.filter_of(current.profile, self._options)
            current.reason = filters.verdict_on(current.counts.tolist(), wanted)
            if not current.reason:
                self._glue += jsonl.LINE_BEGINS
        if not current.reason:
            for part in current.parts:
                if current.written:
                    self._join(part.joint)
                self._write(part.frame, part.sentences)
                self.report.add(part.report)
                current.written = True
            current.parts = []
        elif len(current.parts) > 1:
            current.parts = current.parts[:1]

    def _join(self, joint: str) -> None:
        """Between two pieces of a document stands the line end at which it was cut, which counted as removed."""
        if not joint:
            return
        self._glue += b"\\n"
        rule = self.report.rule("blank-lines")
        rule.removed -= 1
        rule.out += 1
        self.report.file(self._open.source).measure(self.report.measure(codes(joint)))

    def _close(self) -> None:
        """The document that is open ends here."""
        current = self._open
        self._judge()
        if current.reason:
            self._drop(current.reason, current.source, current.excerpt, current.characters)
        else:
            self._glue += jsonl.line_end(current.title, current.source, current.meta)
            self.report.documents += 1
            self.report.file(current.source).documents += 1
            self.report.duplicates += self._known.has(current.hash.digest()[: duplicates.DIGEST])
        self._open = _Open()

    def _drop(self, reason: str, source: str, text: str, characters: int, place: tuple[int, int] = (1, 0)) -> None:
        self.report.drop(reason, 1, characters)
        self._rejects.write_reject(Reject(source, *place, reason, text[: documents.EXCERPT]))

    def _write(self, frame: bytes, lines: bytes) -> None:
        if frame and self._glue:
            self._documents.write(cleaning.frame(bytes(self._glue)))
            self._glue.clear()
        self._documents.write(frame)
        self._sentences.write(lines)

    def content(self, inputs: Sequence[raw.InputFile]) -> Content:
        """What was written, once it is proven that nothing went uncounted."""
        if self._glue:
            self._documents.write(cleaning.frame(bytes(self._glue)))
            self._glue.clear()
        found = self.report
        report.check(found)
        ledger, bad = self._ledger, sum(self._ledger.documents.dropped.values())
        records = self._records + ledger.documents.bad
        ledger.documents.came = bad + found.documents + sum(each.documents for each in found.dropped.values())
        ledger.documents.out, ledger.characters.out = found.documents, found.out
        ledger.characters.came = sum(ledger.characters.dropped.values()) + found.came
        for name, rule in found.rules.items():
            ledger.characters.drop(name, rule.removed)
            ledger.characters.bring(name, rule.added)
        for reason, dropped in found.dropped.items():
            ledger.documents.drop(reason, dropped.documents)
            ledger.characters.drop(reason, dropped.characters)
        closed = ledger.close(max_bad=self._options.max_bad, of=records)
        if not found.documents:
            names = ", ".join(entry.name for entry in inputs)
            raise BadData(f"{names}: no text is left after cleaning", hint="is it empty, or not a text?")
        assert self._draft
        told = summary.to_json(found)
        (self._draft / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=2))
        counts = {
            "documents": found.documents,
            "characters": found.out,
            "sentences": found.sentences.count,
            "headings": sum(found.headings.values()),
            "input_bytes": sum(entry.stamp[0] for entry in inputs),
        }
        written = tuple(
            FileRecord(file.path.name, file.size, file.sha256) for file in (self._documents, self._sentences)
        )
        return Content(counts, closed, written)
