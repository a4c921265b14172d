"""Regular files: a FIFO, a socket, a device or a folder in the place of a file is an error, and never blocks."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from pipeline.errors import BadConfig, BadData, InputMissing

_BLOCKING = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_KINDS = ((stat.S_ISDIR, "a folder"), *_BLOCKING)


def regular_file(path: Path) -> Path:
    """Return the path of an input. Raises InputMissing if it is a FIFO, a socket or a device.

    Other errors are raised when it is read.
    """
    with suppress(OSError, ValueError):
        mode = path.stat().st_mode
        for is_kind, kind in _BLOCKING:
            if is_kind(mode):
                raise InputMissing(f"{path}: {kind}, not a file", hint="save its content in a file, and name that")
    return path


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file and return its descriptor. Raises BadData if `path` is anything else, OSError as os.open."""
    try:
        # Without O_NONBLOCK, opening a FIFO blocks until another process opens its other end.
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ENXIO):  # ENXIO: a socket, or a FIFO that nothing reads
            raise not_regular(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_regular(path)
    return descriptor


def read_regular(path: Path, *, at_most: int = -1) -> bytes:
    """Return the bytes of a regular file.

    Raises BadData if `path` is anything else or has more than `at_most` bytes, OSError as `open`.
    """
    with open(open_regular(path), "rb") as file:
        data = file.read(at_most + 1 if at_most >= 0 else -1)
    if 0 <= at_most < len(data):
        raise BadData(f"{path}: more than {at_most:,} bytes", hint="move it away, then run the same command again")
    return data


def not_regular(path: Path, expected: str = "a file") -> BadData:
    """Return the error for a `path` that exists and is not what was expected there."""
    mode = path.stat().st_mode
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a file")
    return BadData(f"{path}: expected {expected}, got {kind}", hint="move it away, then run the same command again")


def require_utf8(path: str) -> None:
    """Raise BadConfig if a path, which is going to be recorded, is not valid UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise BadConfig(f"{path!r}: the file name is not valid UTF-8", hint="rename the file or folder") from None
