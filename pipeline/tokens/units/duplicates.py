"""Documents whose text is in an earlier file, for `--dedup exact` over files that are encoded at the same time.

    .work/texts-FFFFF      the distinct hashes of the documents of input file FFFFF, sorted
    .work/earlier-FFFFF    those of them that are in an earlier file too

Of equal texts, the first in input order stays. A node with these hashes knows which of its texts are in an earlier
file, so it drops the same documents as a single process would.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import tokenizers
from pipeline.sources.inputs import require_unchanged
from pipeline.store import files
from pipeline.tokens.split import DIGEST_BYTES
from pipeline.tokens.tasks import tasks as read_tasks
from pipeline.tokens.units.make import FileTask, local_file
from pipeline.tokens.worker import document_digests

_DTYPE = f"S{DIGEST_BYTES}"  # compared as unsigned bytes; zeros at the end make no two hashes equal


def earlier_name(number: int) -> str:
    """Return the name, in the scratch folder, of the file with the hashes of a file that are in earlier files."""
    return f"earlier-{number:05d}"


def list_texts(task: FileTask) -> None:
    """Write the hashes of the documents of one input file, unless they are there. Raises as `make`."""
    entry = local_file(task)
    path = _texts_path(task)
    if path.exists():
        return
    boundary = tokenizers.open_folder(task.draft).boundary
    source = (task.number, entry, task.spec)
    parts = read_tasks([source], boundary, lambda file: 0, lambda split: False, lambda count: None, task.text_fields)
    hashes = b"".join(digest for part in parts for digest in document_digests(part))
    require_unchanged(entry)
    files.write_file(path, np.unique(np.frombuffer(hashes, _DTYPE)).tobytes())


def merge(tasks: Sequence[FileTask]) -> None:
    """Write, for each file, the hashes that are in the list of an earlier file. `tasks` are in input order.

    The hashes with one first byte are compared at a time, so that about 1/256 of all hashes is in memory.
    """
    targets = [task.scratch / earlier_name(task.number) for task in tasks]
    partial = [files.temporary_path(target) for target in targets]
    for path in partial:
        path.touch()
    for first in range(256):
        slices = [_with_first_byte(_mapped(_texts_path(task)), first) for task in tasks]
        joined = np.concatenate(slices)
        owners = np.repeat(np.arange(len(slices)), [len(part) for part in slices])
        order = np.argsort(joined, kind="stable")  # among equal hashes, the one of the earliest file comes first
        ranked = joined[order]
        repeated = order[1:][ranked[1:] == ranked[:-1]]
        for owner in np.unique(owners[repeated]).tolist():
            with open(partial[owner], "ab") as out:
                out.write(joined[repeated[owners[repeated] == owner]].tobytes())
    for path, target in zip(partial, targets, strict=True):
        files.move(path, target)


def _texts_path(task: FileTask) -> Path:
    return task.scratch / f"texts-{task.number:05d}"


def _mapped(path: Path) -> np.ndarray:
    return np.memmap(path, _DTYPE, "r") if path.stat().st_size else np.empty(0, _DTYPE)


def _with_first_byte(hashes: np.ndarray, first: int) -> np.ndarray:
    """Return the sorted hashes whose first byte is `first`."""
    start = np.searchsorted(hashes, np.array(bytes([first]), _DTYPE))
    stop = np.searchsorted(hashes, np.array(bytes([first + 1]), _DTYPE)) if first < 255 else len(hashes)
    return hashes[start:stop]
