"""Make parts: read their files into tasks, clean these in worker processes, and write each part into its folder.

The same workers clean the tasks of all parts, so they start only once. The folder of a part gets its name when the part
is complete.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.clean.parts import part as parts
from pipeline.clean.parts.candidates import CandidateWriter
from pipeline.clean.parts.part import PartRecord, PartTask
from pipeline.clean.parts.writer import PartWriter
from pipeline.clean.report.report import CleaningReport
from pipeline.clean.tasks import CleanTask, TaskReader
from pipeline.clean.worker import CleanWorker
from pipeline.errors import CannotCreate
from pipeline.readers.documents import Note, Reject
from pipeline.runtime import workers
from pipeline.runtime.ledger import BAD, Ledger
from pipeline.runtime.progress import Advance, Progress, SilentProgress
from pipeline.runtime.terminal import counted
from pipeline.sources.inputs import require_unchanged
from pipeline.store import files


class Part(NamedTuple):
    """A complete part: its record, and 16 bytes for each of its documents, duplicates included."""

    record: PartRecord
    digests: bytes


@dataclass
class PartReading:
    """The counts of reading a part. `rejects` are those since the last task, `first_bad` counts towards --max-bad."""

    task: PartTask
    ledger: Ledger = field(default_factory=Ledger)
    report: CleaningReport = field(default_factory=CleaningReport)
    records: int = 0
    rejects: list[Reject] = field(default_factory=list)
    first_bad: Reject | None = None

    def tasks(self, advance: Advance, note: Note) -> Iterator[CleanTask]:
        for entry in self.task.inputs:
            reader = TaskReader(entry, self.task.options, self.ledger, self._add_reject, note)
            for task in reader.tasks(advance):
                self.records += task.records
                yield task
            require_unchanged(entry)
            file = self.report.file(entry.name)
            file.encoding = reader.stats.encoding
            file.bytes += entry.stamp[0]
            file.invalid_bytes, file.invalid_offset = reader.stats.errors, reader.stats.error_offset

    def _add_reject(self, reject: Reject) -> None:
        self.rejects.append(reject)
        if not self.first_bad and reject.reason.startswith(BAD):
            self.first_bad = reject

    def take_rejects(self) -> list[Reject]:
        rejects, self.rejects = self.rejects, []
        return rejects


def make_part(task: PartTask, jobs: int = 1) -> PartRecord:
    """Make one part by itself, in its folder, and return its record; one that is complete already is not made again."""
    if record := parts.read_record(task):
        return record
    [part] = make_parts([task], lambda count: None, SilentProgress(), jobs)
    return part.record


def make_parts(
    tasks: Sequence[PartTask], advance: Advance, progress: Progress, jobs: int, complete: int = 0
) -> Iterator[Part]:
    """Make parts in `jobs` processes, and yield each, in order, when it is complete; `complete` others are already."""
    if not tasks:
        return
    readings = [PartReading(task) for task in tasks]
    steps: deque[tuple[PartReading, list[Reject]]] = deque()  # of tasks whose results are due
    note = functools.cache(progress.note)  # the same field of many files is noted once

    def read() -> Iterator[CleanTask]:
        for reading in readings:
            for task in reading.tasks(advance, note):
                steps.append((reading, reading.take_rejects()))
                yield task

    results = workers.map_ordered(CleanWorker(tasks[0].options, tasks[0].held_out), read(), jobs=jobs)
    with contextlib.closing(results):
        due = next(results, None)
        for number, reading in enumerate(readings, complete):
            try:
                with _open_part(reading) as writer:
                    while due and steps[0][0] is reading:
                        progress.safe_point(
                            f"kept {counted(number, 'complete parts')}" if number else "nothing was published"
                        )
                        writer.add(*due, steps.popleft()[1])
                        due = next(results, None)
                    part = _finish_part(reading, writer)
            except CannotCreate:  # a node, perhaps of a killed command, has just made it from the same input
                if not parts.read_record(reading.task):
                    raise
            yield part


@contextlib.contextmanager
def _open_part(reading: PartReading) -> Iterator[PartWriter | CandidateWriter]:
    """Open the writer of a part in a temporary folder, which gets its name when the block ends without an error."""
    task = reading.task
    with contextlib.ExitStack() as stack:
        folder = None
        if task.folder:
            folder = stack.enter_context(files.new_folder(task.folder))
        if task.options.dedup == "no":
            yield stack.enter_context(PartWriter(task.options, folder))
        else:
            assert folder
            yield stack.enter_context(CandidateWriter(folder))


def _finish_part(reading: PartReading, writer: PartWriter | CandidateWriter) -> Part:
    written = writer.finish(reading.take_rejects())
    reading.report.add(writer.report)  # so that the files are in input order
    record = PartRecord(
        reading.task.number, reading.records, reading.ledger, reading.report, written, reading.first_bad
    )
    if writer.folder:
        parts.write_record(writer.folder, record)
    return Part(record, bytes(writer.digests))
