"""Leftovers: the temporary files and folders of commands that were killed.

The next run of the same command removes them, `status` lists them and `prune` deletes them. A temporary is in use while
the process in its name lives on this machine, or any process holds a lock on it.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from pipeline.errors import CannotCreate
from pipeline.store import files, locks
from pipeline.store.manifest import KINDS

_WRITER = re.compile(r"\.([0-9a-f]{0,8})\.([0-9]+)\.[0-9a-f]{8}$")  # boot and process id in `files.temporary_path`
_FOLDERS = ("exports", "reports", ".state", *(f"{kind}/*" for kind in KINDS))


def leftovers(root: Path) -> list[Path]:
    """Return the temporaries in a store that no process uses, sorted. Those inside a draft belong to the draft."""
    inputs = chain(os.walk(root / "raw"), os.walk(root / "objects"))
    raw = (Path(top, name) for top, folders, names in inputs for name in (*folders, *names))
    folders = [root, *chain.from_iterable(root.glob(pattern) for pattern in _FOLDERS)]
    paths = chain(raw, chain.from_iterable(map(_entries, folders)))
    return sorted(path for path in paths if path.name.startswith((files.TEMPORARY, files.TRASH)) and is_abandoned(path))


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() and not folder.is_symlink() else iter(())


def is_abandoned(path: Path) -> bool:
    """Return True if no process uses the temporary `path`."""
    if (writer := _WRITER.search(path.name)) and writer[1] == locks.boot_id()[:8] and locks.start_ticks(int(writer[2])):
        return False
    try:
        return not locks.is_held(path)
    except OSError:  # a link cannot be held; what vanished or may not be read is not this user's to delete
        return path.is_symlink()


def remove_leftovers_of(*targets: Path) -> None:
    """Delete the temporaries that killed writers of these files or folders left beside them."""
    for target in targets:
        stem = glob.escape(files.temporary_path(target).name.rsplit(".", 3)[0])
        for path in list(target.parent.glob(f"{stem}.*")):
            if is_abandoned(path):
                files.remove_any(path)


def require_new(target: Path, outside: Path) -> None:
    """Raise CannotCreate if `target` already exists, or would lie inside the folder `outside`.

    Temporaries that killed writers of the same target left are deleted.
    """
    if os.path.lexists(target):
        raise CannotCreate(
            f"{target}: already exists", hint="choose another folder with --out, or move the existing one away"
        )
    if outside.resolve() in target.resolve().parents:
        raise CannotCreate(f"{target}: inside the artifact itself", hint="choose another folder with --out")
    remove_leftovers_of(target)
