"""Spread the input files over the nodes of an engine, and check that the units that they make are in the draft."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.runtime.progress import Advance
from pipeline.runtime.spread import Engine, spread
from pipeline.sources.inputs import InputFile
from pipeline.sources.nodes.check import PATIENCE, versions_of, wait_for_files
from pipeline.store import artifact
from pipeline.tokens import reuse
from pipeline.tokens.overlap import Overlap
from pipeline.tokens.resume import UnitRecord
from pipeline.tokens.tasks import FileSpec
from pipeline.tokens.units import duplicates
from pipeline.tokens.units.make import OVERLAP, FileTask, make


def spread_files(engine: Engine, tasks: Sequence[FileTask], overlap: Overlap | None, advance: Advance) -> list[str]:
    """Make the units of all tasks on the nodes of `engine`. Returns the stems of the units.

    Raises the errors of `spread` and `make`, BadConfig if a unit is not in the draft, and BadData if more than half of
    the validation documents are trained on, unless `overlap` allows it.
    """
    if not tasks:
        return []
    if overlap:
        overlap.save(tasks[0].scratch / OVERLAP)
    if tasks[0].spec.digests:
        for _ in spread(engine, duplicates.list_texts, tasks):
            pass
        duplicates.merge(tasks)
    stems = []
    for task, records in spread(engine, make, tasks):
        stems += adopt(task.draft, records)
        if overlap:
            overlap.add(number for record in records for number in record.overlap)
        advance(task.size)
    return stems


def adopt(draft: Path, records: Iterable[UnitRecord], patience: float = PATIENCE) -> list[str]:
    """Return the stems of units that a node made, after checking that their files are in the draft.

    Raises BadConfig for a missing file.
    """
    records = list(records)
    for record in records:
        paths = [(draft / file.name, file.size) for file in record.files]
        paths += [(draft / artifact.SCRATCH / file.name, file.size) for file in record.scratch]
        wait_for_files(paths, patience)
    return [record.stem for record in records]


def file_tasks(
    draft: Path,
    sources: Sequence[tuple[int, InputFile, FileSpec]],
    reused: Sequence[UnitRecord],
    libraries: Iterable[str],
    encoder: str,
    text_fields: tuple[str, ...],
    cores: int,
) -> list[FileTask]:
    """Return the tasks of the files whose units are not all in `reused`."""
    complete = {record.file for record in reused if record.last}
    versions = versions_of(reuse.CODE, libraries)
    return [
        FileTask(
            number,
            dataclasses.replace(entry, path=entry.path.absolute(), digest=_sha256_of(entry), corpus=None),
            spec,
            draft.absolute(),
            encoder,
            text_fields,
            cores,
            duplicates.earlier_name(number) if spec.digests else "",
            versions,
        )
        for number, entry, spec in sources
        if number not in complete
    ]


def _sha256_of(entry: InputFile) -> str:
    """Return the sha256 of the bytes of a file; the digest of a corpus is that of its manifest."""
    if not entry.corpus:
        return entry.digest
    return next(record.sha256 for record in entry.corpus.manifest.files if record.name == entry.path.name)
