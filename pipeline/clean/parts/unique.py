"""The second pass with --dedup: the candidates of all parts without the duplicates become the files of the parts."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.clean.duplicates.near import FINGERPRINT, NEAR_REASON, Duplicates, equal_to_earlier, find_duplicates
from pipeline.clean.options import CleanOptions
from pipeline.clean.parts.candidates import Frame, read_batch, read_frames
from pipeline.clean.parts.part import CANDIDATES, DIGESTS, SIGNATURES, PartTask
from pipeline.clean.parts.writer import PartWriter
from pipeline.clean.report.report import EXAMPLE_CHARACTERS, CleaningReport
from pipeline.clean.serialize import publish_rows
from pipeline.clean.worker import CleanResult
from pipeline.readers.documents import EXCERPT_CHARACTERS, Reject
from pipeline.runtime import workers
from pipeline.runtime.progress import Progress
from pipeline.store import files
from pipeline.store.manifest import FileRecord

_UNIQUE = "unique"  # folder in that of a part
_KEPT = "all parts are kept; only duplicates are compared again"


class BatchTask(NamedTuple):
    """A batch of candidates of a part: the number of its first document, and the reason to drop each, "" for none.

    `shown` are the numbers of its documents that are shown in the report.
    """

    part: int
    frame: Frame
    start: int
    reasons: list[str]
    shown: list[int]


@dataclass
class UniqueResult(CleanResult):
    """The documents of a batch that stay, and by number those that are shown in the report."""

    shown: dict[int, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class UniqueWorker:
    """Callable that serializes the documents of a batch that stay, and rejects the others."""

    options: CleanOptions

    def __call__(self, task: BatchTask) -> UniqueResult:
        source, rows, rejects = read_batch(task.frame)
        result = UniqueResult(rejects=rejects)
        unique = []
        for row, reason in zip(rows, task.reasons, strict=True):
            if reason:
                result.report.drop(reason, 1, len(row.text))
                rejects.append(Reject(source, *row.location, reason, row.text[:EXCERPT_CHARACTERS]))
            else:
                unique.append(row)
        if unique:
            result.frame, result.sentences = publish_rows(unique, source, self.options, result.report)
        for number in task.shown:
            row = rows[number - task.start]
            text = row.text[:EXAMPLE_CHARACTERS]
            result.shown[number] = {"source": source, "line": row.location[0], "text": text}
        return result


def drop_duplicates(
    tasks: Sequence[PartTask], report: CleaningReport, progress: Progress, jobs: int, *, writes: bool
) -> Iterator[tuple[Path | None, tuple[FileRecord, ...]]]:
    """Yield the folder and the files of each part without duplicates, in order; with `writes` false only count them.

    The counts are added to `report`.
    """
    duplicates = _duplicates(tasks, progress, jobs)
    report.near_pairs = duplicates.counts() if tasks[0].options.dedup == "near" else {}
    shown: dict[int, dict[str, Any]] = {}
    batches = workers.map_ordered(UniqueWorker(tasks[0].options), _batches(tasks, duplicates), jobs=jobs)
    with closing(batches), progress.wait("writing the documents that are not duplicates"):
        for number, results in itertools.groupby(batches, key=lambda pair: pair[0].part):
            folder = _empty_folder(tasks[number].path(_UNIQUE)) if writes else None
            with PartWriter(tasks[number].options, folder) as writer:
                for _, result in results:
                    progress.safe_point(_KEPT)
                    writer.add_documents(result)
                    shown |= result.shown
                records = writer.finish(())
            report.add(writer.report)
            yield folder, records
    for original, duplicate, similarity in duplicates.examples:
        example = {"similarity": round(similarity, 3), "original": shown[original], "duplicate": shown[duplicate]}
        report.add_examples(NEAR_REASON, [example])


def _duplicates(tasks: Sequence[PartTask], progress: Progress, jobs: int) -> Duplicates:
    fingerprints, signatures = ([task.path(name) for task in tasks] for name in (DIGESTS, SIGNATURES))
    if tasks[0].options.dedup == "exact":
        exact = equal_to_earlier(np.concatenate([np.fromfile(path, FINGERPRINT) for path in fingerprints]))
        return Duplicates(exact, np.zeros(len(exact), bool))
    with (
        tempfile.TemporaryDirectory(dir=tasks[0].path(".."), prefix="groups-") as scratch,
        progress.bar("near duplicates", sum(path.stat().st_size for path in signatures)) as advance,
    ):
        return find_duplicates(fingerprints, signatures, Path(scratch), jobs=jobs, advance=advance)


def _empty_folder(path: Path) -> Path:
    files.remove_tree(path)
    path.mkdir()
    return path


def _batches(tasks: Sequence[PartTask], duplicates: Duplicates) -> Iterator[BatchTask]:
    examples = sorted({number for match in duplicates.examples for number in match[:2]})
    start = 0
    for task in tasks:
        for frame in read_frames(task.path(CANDIDATES)):
            stop = start + frame.documents
            shown = [number for number in examples if start <= number < stop]
            yield BatchTask(task.number, frame, start, duplicates.reasons(start, stop), shown)
            start = stop
