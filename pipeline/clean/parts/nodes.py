"""Make parts on the nodes of an engine: each node cleans the files of a part into its folder in the draft."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

import msgspec

from pipeline.clean.options import TABLE_FILES, CleanOptions
from pipeline.clean.parts.builder import Part, make_part
from pipeline.clean.parts.part import DIGESTS, PartRecord, PartTask
from pipeline.runtime.progress import Advance
from pipeline.runtime.spread import Engine, TaskProgress, spread
from pipeline.sources.nodes.check import local_file, require_draft, require_versions, versions_of, wait_for_files
from pipeline.store import code

CODE = code.Code(
    ("pipeline/clean", "pipeline/readers", "pipeline/runtime/ledger.py", "pipeline/runtime/workers.py"),
    code.HARMLESS
    | {
        "pipeline/clean/report/examples.py": "finds examples for people",
        "pipeline/clean/report/problems.py": "words the warnings of the report",
        "pipeline/clean/report/render.py": "prints the report",
    },
)
_OPTIONS = "options and tables"


class NodeTask(msgspec.Struct, frozen=True):
    """A part for any node to make, in `cores` processes. All paths are absolute.

    `versions` are those of Inkstone, of the libraries that decide bytes, and of the options with their tables.
    """

    part: PartTask
    cores: int
    versions: dict[str, str]

    @property
    def name(self) -> str:
        return self.part.inputs[0].name

    @property
    def size(self) -> int:
        return self.part.size

    def progress(self) -> TaskProgress:
        """Return the progress of the part. Each byte of its unfinished files counts as a begun unit."""
        folder = self.part.path("")
        written = 0
        with suppress(FileNotFoundError):  # a folder that was listed, and renamed before its files were
            written = sum(_size(path) for path in folder.parent.glob(f".*{folder.name}.*/*"))
        return TaskProgress(int((folder / "part.json").exists()), written)


def make_on_node(task: NodeTask) -> PartRecord:
    """Make a part and return its record. Raises BadConfig on a node with other versions or without the draft."""
    part = task.part
    require_versions(task.versions, CODE, {_OPTIONS: _digest_of(part.options)})
    require_draft(part.path("").parents[1])
    inputs = tuple(local_file(entry) for entry in part.inputs)
    return make_part(msgspec.structs.replace(part, inputs=inputs), task.cores)


def make_spread(
    engine: Engine, tasks: Sequence[PartTask], libraries: Sequence[str], advance: Advance
) -> Iterator[Part]:
    """Make parts on the nodes of an engine, and yield each as it ends. Raises as `spread` and `make_on_node`."""
    versions = versions_of(CODE, libraries) | ({_OPTIONS: _digest_of(tasks[0].options)} if tasks else {})
    todo = [NodeTask(_absolute(task), engine.cores, versions) for task in tasks]
    for task, record in spread(engine, make_on_node, todo):
        wait_for_files((task.part.path(file.name), file.size) for file in record.files)
        advance(task.size)
        yield Part(record, task.part.path(DIGESTS).read_bytes())


def _absolute(task: PartTask) -> PartTask:
    tables = {name: os.path.abspath(path) for name in TABLE_FILES if (path := getattr(task.options, name))}
    return PartTask(
        task.number,
        tuple(dataclasses.replace(entry, path=entry.path.absolute()) for entry in task.inputs),
        msgspec.structs.replace(task.options, **tables),
        task.path("").absolute(),
        task.held_out and task.held_out.absolute(),
    )


def _digest_of(options: CleanOptions) -> str:
    return hashlib.sha256(msgspec.json.encode(options.identity())).hexdigest()[:16]


def _size(path: os.PathLike[str]) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # renamed meanwhile
        return 0
