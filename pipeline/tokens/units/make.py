"""Make the units of one input file on any node, in the draft, whose folder all nodes share.

A node reads text from files and writes ids to files. Only the task and the records of its units, a few kilobytes, are
sent between nodes. A unit is written in a folder of its own and then renamed, so several attempts at one file may run
at once: they write the same bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline import tokenizers
from pipeline.readers.documents import Note, log_note
from pipeline.runtime import workers
from pipeline.runtime.progress import Advance, Progress
from pipeline.runtime.spread import TaskProgress
from pipeline.runtime.terminal import counted
from pipeline.sources.inputs import InputFile, require_unchanged
from pipeline.sources.nodes import check
from pipeline.sources.nodes.check import require_draft, require_versions
from pipeline.store import artifact
from pipeline.tokenizers import Tokenizer
from pipeline.tokens import reuse
from pipeline.tokens.overlap import Overlap
from pipeline.tokens.resume import OPEN, UnitRecord
from pipeline.tokens.tasks import FileSpec, tasks
from pipeline.tokens.worker import encode
from pipeline.tokens.writer import TokenWriter

OVERLAP = "overlap.msgpack"  # in the scratch folder, with --val: what `Overlap.save` wrote


@dataclass(frozen=True)
class FileTask:
    """One input file for any node to encode. Its path and `draft` are absolute.

    The `digest` of `entry` is the sha256 of the file's bytes. With `--dedup exact`, `earlier` names the file in the
    scratch folder with the hashes of documents of earlier files. `versions` are those of Inkstone and of the libraries
    that decide bytes.
    """

    number: int
    entry: InputFile
    spec: FileSpec
    draft: Path
    encoder: str
    text_fields: tuple[str, ...]
    jobs: int
    earlier: str
    versions: dict[str, str]

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def size(self) -> int:
        return self.entry.stamp.size

    @property
    def scratch(self) -> Path:
        return self.draft / artifact.SCRATCH

    def progress(self) -> TaskProgress:
        names = [path.name for path in self.scratch.glob(f"*-{self.number:05d}-*")]
        return TaskProgress(
            sum(name.startswith("unit-") for name in names), sum(name.startswith(OPEN) for name in names)
        )


def make(task: FileTask) -> list[UnitRecord]:
    """Encode one input file and return the records of its units. Units that are already in the draft are not repeated.

    Raises BadConfig on a node with other versions or without the draft, InputMissing or BadData for the file.
    """
    entry = local_file(task)
    tokenizer = _tokenizer(task.draft, task.encoder)
    overlap = Overlap.load(task.scratch / OVERLAP) if (task.scratch / OVERLAP).exists() else None
    with TokenWriter(
        task.draft,
        task.spec.dtype,
        dedup=bool(task.earlier),
        overlap=overlap,
        file=task.number,
        earlier=task.scratch / task.earlier if task.earlier else None,
    ) as writer:
        encode_files(writer, [(task.number, entry, task.spec)], tokenizer, overlap, task.text_fields, task.jobs)
        return writer.complete()


def encode_files(
    writer: TokenWriter,
    sources: Sequence[tuple[int, InputFile, FileSpec]],
    tokenizer: Tokenizer,
    overlap: Overlap | None,
    text_fields: tuple[str, ...],
    jobs: int,
    advance: Advance = lambda count: None,
    note: Note = log_note,
    progress: Progress | None = None,
) -> None:
    """Encode the units of `sources` (number, file, settings) that `writer` lacks, in order, with `jobs` processes."""
    todo = tasks(sources, tokenizer.boundary, writer.next_unit, writer.is_full, advance, text_fields, note)
    function = functools.partial(encode, tokenizer, val_checksums=overlap.checksums if overlap else frozenset())
    with closing(workers.map_ordered(function, todo, jobs=jobs)) as results:
        for task, encoded in results:
            if writer.add(task, encoded) and progress:
                progress.safe_point(f"kept {counted(len(writer.records), 'complete units')}")
    for _, entry, _ in sources:
        require_unchanged(entry)


def local_file(task: FileTask) -> InputFile:
    """Return the file of a task on this node, after checking that the node can make its units. Raises as `make`."""
    require_versions(task.versions, reuse.CODE)
    require_draft(task.draft)
    return check.local_file(task.entry)


@functools.lru_cache(1)
def _tokenizer(folder: Path, encoder: str) -> Tokenizer:
    """Open the tokenizer of a draft. A process opens it once."""
    tokenizer = tokenizers.open_folder(folder)
    if tokenizer.encoder != encoder:
        tokenizer.encoder = encoder  # tiktoken, although this node has gigatoken
    return tokenizer
