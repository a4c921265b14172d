"""Locks and leases: one writer at a time, and generations that are not deleted while they are read.

Locks are kernel locks (flock): the kernel releases a lock when its process ends, even by a kill. The JSON in the lock
file tells users who holds the lock. On file systems where flock has no effect, a lock counts as held while the process
named in its file is alive. On a file system that refuses flock, a store can only be read.
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

from pipeline.errors import BadConfig, BadData, TryAgain
from pipeline.runtime.regular_file import open_regular, read_regular

_MIN_WAIT = 0.2  # seconds: `status` holds a lock for an instant to test it
# errors of flock on file systems without locks, such as NFS without its lock service and some FUSE file systems
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LockHolder(msgspec.Struct, frozen=True):
    """The process that holds a lock.

    `started` is its start in ticks since boot, which distinguishes it from a later process with the same pid.
    """

    pid: int
    started: int
    boot: str
    host: str
    doing: str
    since: str  # UTC, ISO 8601
    stage: str = ""
    run_id: str = ""

    def __str__(self) -> str:
        action = f"{self.doing}, at {self.stage}" if self.stage else self.doing
        return f"process {self.pid} ({action}, since {self.since})"


class HeldLock:
    """A lock that this process holds."""

    def __init__(self, descriptor: int, holder: LockHolder) -> None:
        self._descriptor, self._holder = descriptor, holder

    def set_stage(self, stage: str) -> None:
        """Record the current stage of the work in the lock file, for users."""
        self._holder = msgspec.structs.replace(self._holder, stage=stage)
        _write(self._descriptor, msgspec.json.encode(self._holder))


@contextmanager
def lock(
    path: Path, *, wait: float = 0.0, action: str = "", run_id: str = "", stop: threading.Event | None = None
) -> Iterator[HeldLock]:
    """Hold the lock file `path` exclusively; `action` describes the work to users.

    Raises TryAgain when another process still holds it after `wait` seconds, or when `stop` is set; BadConfig where the
    file system has no locks; BadData if `path` is not a regular file. The file is never deleted, and never considered
    stale because of its age.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline, stop = time.monotonic() + max(wait, _MIN_WAIT), stop or threading.Event()
    while (descriptor := _try_lock(path)) is None:
        if stop.wait(0.05) or time.monotonic() >= deadline:
            raise TryAgain(
                f"{path.parent}: in use by {_read(path) or 'another process'}",
                hint="wait for it to end, then run the same command again",
            )
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    pid = os.getpid()
    holder = LockHolder(pid, start_ticks(pid), boot_id(), platform.node(), action, since, run_id=run_id)
    try:
        _write(descriptor, msgspec.json.encode(holder))
        yield HeldLock(descriptor, holder)
    finally:
        _write(descriptor, b"")
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None.

    Checks that `path` still names the locked file: it may have been deleted and recreated meanwhile.
    """
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)) and not _is_alive(_read(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            raise _no_locks(path.parent, error) from None
        raise
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _open(path: Path) -> int:
    """Open a lock file, and create it for all whom the umask allows: users of one group may share a store."""
    try:
        return open_regular(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    except PermissionError:
        if not os.access(path.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise
        return open_regular(path, os.O_RDONLY | os.O_NOFOLLOW)  # another user's file: enough to lock it


def _no_locks(folder: Path, error: OSError) -> BadConfig:
    return BadConfig(
        f"{folder}: this file system has no locks: {(error.strerror or str(error)).lower()}",
        hint="choose a folder on a local disk with --artifacts; `doctor` checks one",
    )


def _is_alive(holder: LockHolder | None) -> bool:
    """Return True if `holder` is another live process of this machine.

    After a successful flock that is possible only where flock has no effect.
    """
    return (
        holder is not None
        and holder.started > 0
        and (holder.boot, holder.host) == (boot_id(), platform.node())
        and holder.pid != os.getpid()
        and start_ticks(holder.pid) == holder.started
    )


def boot_id() -> str:
    """Return an id that changes with every boot; "" where the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def start_ticks(pid: int) -> int:
    """Return the start of a process in ticks since boot; 0 if it has ended or there is no /proc."""
    with suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        fields = stat.rpartition(")")[2].split()  # the process name before it may contain anything
        if fields[0] not in "ZX":  # zombies have ended; some containers never reap them
            return int(fields[19])
    return 0


def _write(descriptor: int, data: bytes) -> None:
    with suppress(OSError):  # the content is informative only, so a full disk must not stop the work
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)


def _read(path: Path) -> LockHolder | None:
    try:
        return msgspec.json.decode(read_regular(path), type=LockHolder)
    except (OSError, BadData, msgspec.DecodeError, UnicodeDecodeError):
        return None


def current_holder(path: Path) -> LockHolder | None:
    """Return the holder of the lock `path`; None if it is free, or its file does not name one."""
    return _read(path) if is_locked(path) else None


def is_locked(path: Path) -> bool:
    """Return True if a live process holds the lock.

    The check takes the lock for an instant in shared mode, so that concurrent checks do not collide. What is not a
    regular file, or may not be read, counts as free.
    """
    try:
        descriptor = open_regular(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError, BadData):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return _is_alive(_read(path))
    finally:
        os.close(descriptor)
    return False


@contextmanager
def lease(path: Path) -> Iterator[None]:
    """Keep the published file `path` from being pruned while the block runs. Any number of readers may hold a lease.

    On a file system without locks nothing is held: `prune` refuses to work there. Raises FileNotFoundError if the file
    was deleted or replaced meanwhile.
    """
    descriptor = open_regular(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise FileNotFoundError(errno.ENOENT, "replaced meanwhile", str(path))
        yield
    finally:
        os.close(descriptor)


@contextmanager
def if_unleased(path: Path) -> Iterator[bool]:
    """Yield True if there is no lease on `path`. In that case, none can be taken until the block ends."""
    descriptor, free = open_regular(path), False
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        yield free
    finally:
        os.close(descriptor)


def hold(descriptor: int) -> None:
    """Mark a temporary as in use until its descriptor is closed. Unlike process ids, this works across containers."""
    with suppress(OSError):  # a file system without locks; the process id in the name remains
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def is_held(path: Path) -> bool:
    """Return True if a process holds the temporary file or folder `path`. Raises OSError if it cannot be opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NO_LOCKS
    finally:
        os.close(descriptor)
    return False
