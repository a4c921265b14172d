"""Regular files: a pipe, a socket or a device in the place of a file could keep a command waiting for ever."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

from pipeline.errors import InputMissing

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def regular_file(path: Path) -> Path:
    """Return `path`. Raises InputMissing if it is a pipe, a socket or a device; other errors are left to its reader."""
    with suppress(OSError, ValueError):
        mode = path.stat().st_mode
        for is_kind, kind in _KINDS:
            if is_kind(mode):
                raise InputMissing(f"{path}: {kind}, not a file", hint="save its content in a file, and name that")
    return path
