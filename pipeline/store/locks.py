"""Locks and leases: one writer at a time, and readers whose generation nobody deletes.

A lock is the kernel's (flock), so it ends with the process, however that ends. The JSON in the lock file is for
people, and for file systems whose flock does nothing: there a holder that is seen to live is believed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from pipeline.errors import TryAgain
from pipeline.store import files

_PATIENCE = 0.2  # seconds: `status` holds a lock for an instant to see whether it is free


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lock. `started` is the process's start in ticks since boot: it tells a pid used again apart."""

    pid: int
    started: int
    boot: str
    host: str
    doing: str
    since: str  # UTC, ISO 8601
    stage: str = ""
    run_id: str = ""

    def __str__(self) -> str:
        what = f"{self.doing}, at {self.stage}" if self.stage else self.doing
        return f"process {self.pid} ({what}, since {self.since})"


class Held:
    """A lock that this process holds."""

    def __init__(self, descriptor: int, holder: Holder) -> None:
        self._descriptor, self._holder = descriptor, holder

    def say(self, stage: str) -> None:
        """Write into the lock file, for people, how far the work is."""
        self._holder = msgspec.structs.replace(self._holder, stage=stage)
        _write(self._descriptor, msgspec.json.encode(self._holder))


@contextmanager
def lock(
    path: Path, *, wait: float = 0.0, doing: str = "", run_id: str = "", stop: threading.Event | None = None
) -> Iterator[Held]:
    """Hold the lock file `path` exclusively. Raises TryAgain when another process holds it longer than `wait` seconds,
    or until `stop` is set.

    The file is never deleted, and never believed to be stale for its age.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline, stop = time.monotonic() + max(wait, _PATIENCE), stop or threading.Event()
    while (descriptor := _try_lock(path)) is None:
        if stop.wait(0.05) or time.monotonic() >= deadline:
            raise TryAgain(
                f"{path.parent}: in use by {_read(path) or 'another process'}",
                hint="wait for it to end, then run the same command again",
            )
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    pid = os.getpid()
    holder = Holder(pid, _start_of(pid), files.boot_id(), platform.node(), doing, now, run_id=run_id)
    try:
        _write(descriptor, msgspec.json.encode(holder))
        yield Held(descriptor, holder)
    finally:
        _write(descriptor, b"")
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None. A file that was deleted while held is no lock any more."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)  # `status` is for all
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)) and not _lives(_read(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _lives(holder: Holder | None) -> bool:
    """Whether the holder that a lock file names is a process that lives: only where flock does nothing can it be."""
    return (
        holder is not None
        and holder.started > 0
        and (holder.boot, holder.host) == (files.boot_id(), platform.node())
        and holder.pid != os.getpid()
        and _start_of(holder.pid) == holder.started
    )


def _start_of(pid: int) -> int:
    """When a process started, in ticks since boot; 0 when it has ended, or there is no /proc."""
    with suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        fields = stat.rpartition(")")[2].split()  # the name in parentheses may hold anything
        if fields[0] not in "ZX":  # a killed one is listed until its parent asks: in some containers for ever
            return int(fields[19])
    return 0


def _write(descriptor: int, data: bytes) -> None:
    with suppress(OSError):  # what it says is for people: a full disk holds nobody up
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)


def _read(path: Path) -> Holder | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Holder)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def holder(path: Path) -> Holder | None:
    """Who holds the lock `path` now; None when nobody does, or the file does not say."""
    return _read(path) if is_locked(path) else None


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock; asking takes it for an instant, shared, so two askers never collide."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def lease(path: Path) -> Iterator[None]:
    """Keep the published file `path` from being pruned while the block runs. Any number of readers may.

    Raises FileNotFoundError when it went away meanwhile.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise FileNotFoundError(errno.ENOENT, "it was replaced", str(path))
        yield
    finally:
        os.close(descriptor)


@contextmanager
def if_unleased(path: Path) -> Iterator[bool]:
    """Whether nobody has a lease on `path`; if so, nobody gets one until the block has ended."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)
