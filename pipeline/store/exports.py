"""Publishing of an export: a new folder, or one file if the user named a file.

An export is not an artifact: it appears complete or not at all, and the store does not refer to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import CannotCreate
from pipeline.store import files


@contextmanager
def new_export(out: Path, suffix: str = "") -> Iterator[Path]:
    """Yield an empty folder that becomes `out` when the block ends without an error, and is deleted otherwise.

    If `out` ends in `suffix`, the one file of the folder with that suffix becomes `out` instead, and the others are
    deleted. Raises CannotCreate if `out` was created meanwhile.
    """
    if not is_file(out, suffix):
        with files.new_folder(out) as draft:
            yield draft
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.temporary_folder(out) as draft:
        yield draft
        (path,) = draft.glob(f"*{suffix}")
        files.sync([path])
        if os.path.lexists(out):
            raise CannotCreate(f"{out}: created meanwhile", hint="choose another file with --out")
        files.move(path, out)


def is_file(out: Path, suffix: str) -> bool:
    """Return True if `out` names the file of a format with that suffix, "" for a format of several files."""
    return bool(suffix) and out.suffix == suffix


def files_of(out: Path) -> tuple[tuple[str, ...], int]:
    """Return the sorted paths of the files of an export, relative to its folder, and their total size in bytes."""
    if out.is_file():
        return (out.name,), out.stat().st_size
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    return tuple(str(path.relative_to(out)) for path in paths), sum(path.stat().st_size for path in paths)
