"""Assembly: the parts of a corpus, in order, become its files, its report and its ledger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.clean.chat.turns import MARKED, RULE
from pipeline.clean.duplicates.near import FINGERPRINT, equal_to_earlier
from pipeline.clean.no_text import no_text_left
from pipeline.clean.options import CleanOptions
from pipeline.clean.parts.builder import Part
from pipeline.clean.parts.part import DOCUMENTS, REJECTS, SENTENCES, PartTask
from pipeline.clean.parts.unique import drop_duplicates
from pipeline.clean.report import render
from pipeline.clean.report.report import CleaningReport, check_balance
from pipeline.errors import TooManyRejects
from pipeline.readers.documents import Reject
from pipeline.readers.kinds import FORMATS, format_suffix
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Progress
from pipeline.sources.inputs import InputFile
from pipeline.store import files
from pipeline.store.artifact import StageOutput
from pipeline.store.manifest import FileRecord

REPORT = "report.json"


class CorpusAssembly:
    """The counts of all parts, which are added in order, and the folders of their files."""

    def __init__(self, options: CleanOptions) -> None:
        self._options = options
        self.report, self._ledger, self._records = CleaningReport(), Ledger(), 0
        self._digests: list[bytes] = []
        self._first_bad: Reject | None = None
        self._parts: list[tuple[Path | None, tuple[FileRecord, ...]]] = []

    def add(self, task: PartTask, part: Part) -> None:
        self.report.add(part.record.report)
        self._ledger.add(part.record.ledger)
        self._records += part.record.records
        self._digests.append(part.digests)
        self._first_bad = self._first_bad or part.record.first_bad
        self._parts.append((task.folder, part.record.files))

    def drop_duplicates(self, tasks: Sequence[PartTask], progress: Progress, jobs: int, *, writes: bool) -> None:
        """Replace candidates by their documents without duplicates, after all parts were added."""
        self._parts = list(drop_duplicates(tasks, self.report, progress, jobs, writes=writes))

    def check(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the ledger, after all parts were added. `names` are those of the input files.

        Raises InternalError if a character is not accounted for, TooManyRejects if more than `max_bad` of the documents
        are bad, BadData if no text is left.
        """
        digests = np.frombuffer(b"".join(self._digests), FINGERPRINT)
        self.report.duplicates = int(np.count_nonzero(equal_to_earlier(digests)))
        check_balance(self.report)
        ledger = self._close_ledger()
        if not self.report.documents:
            dropped = ledger["documents"]["dropped"]
            raise no_text_left(names, dropped, self._options, has_headings=bool(self.report.headings))
        return ledger

    def finish(self, draft: Path, inputs: Sequence[InputFile]) -> StageOutput:
        """Write the files of the corpus, and return the content of the artifact. Raises the errors of `check`."""
        parts = [(folder, records) for folder, records in self._parts if folder]
        with open(draft / REJECTS, "wb") as out:  # concatenated zstd frames are a valid zstd file
            for folder, _ in parts:
                out.write((folder / REJECTS).read_bytes())
        ledger = self.check([entry.name for entry in inputs])
        records = [record for name in (DOCUMENTS, SENTENCES) for record in _link(name, draft, parts)]
        encoded = msgspec.json.encode(render.to_json(self.report))
        (draft / REPORT).write_bytes(msgspec.json.format(encoded, indent=2))
        counts = {
            "documents": self.report.documents,
            "characters": self.report.characters_out,
            "sentences": self.report.sentences.count,
            "headings": sum(self.report.headings.values()),
            "input_bytes": sum(entry.stamp[0] for entry in inputs),
        }
        if self._options.is_chat and (marked := self.report.rule(RULE).cases.get(MARKED)):
            counts["held_out"] = marked  # `tokenize` validates on these
        return StageOutput(counts, ledger, records)

    def _close_ledger(self) -> dict[str, Any]:
        """Complete the ledger of reading by the counts of the report, and close it."""
        report, ledger = self.report, self._ledger
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
        try:
            return ledger.close(max_bad=self._options.max_bad, record_count=records)
        except TooManyRejects as error:
            first = self._first_bad
            start = f"{_location(first)}: {first.reason}; " if first else ""
            raise TooManyRejects(f"{start}{error.message}", hint=error.hint) from None


def _location(reject: Reject) -> str:
    is_record = FORMATS.get(format_suffix(reject.file)) in ("json", "parquet", "arrow")
    return f"{reject.file}, {'record' if is_record else 'line'} {reject.line:,}"


def _link(name: str, draft: Path, parts: Sequence[tuple[Path, tuple[FileRecord, ...]]]) -> list[FileRecord]:
    """Link one file of each part into the draft, numbered if there are several parts. Empty ones are left out."""
    linked = []
    for number, (folder, records) in enumerate(parts):
        part = next(record for record in records if record.name == name)
        if part.size or len(parts) == 1:
            record = msgspec.structs.replace(part, name=file_name(name, number, len(parts)))
            files.link_or_copy(folder / name, draft / record.name)
            linked.append(record)
    return linked


def file_name(name: str, number: int, count: int) -> str:
    """Return the name of a part's file in the corpus: documents-00017.jsonl.zst, or documents.jsonl.zst of only one."""
    stem, _, suffix = name.partition(".")
    return name if count == 1 else f"{stem}-{number:05d}.{suffix}"
