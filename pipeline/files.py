"""Durable file operations: what is published is whole, and stays after a power cut (as far as fsync is honest).

The only room that renames, syncs and locks. A file is written under a temporary name beside its target, synced,
renamed, and then its folder is synced: without the first sync the name may come back with no bytes, without the
last one the name itself may be lost (measured on ext4; reference/reliability.md, M13).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import StorageFailed, TryAgain

TEMPORARY = ".tmp."
_LOCK_PATIENCE = 0.2  # seconds: `status` holds a lock for an instant to see whether it is free


class HashingFile:
    """A binary file that keeps the sha256 and the length of what was written to it."""

    def __init__(self, handle: BinaryIO, path: Path) -> None:
        self._handle = handle
        self._path = path
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        self._handle.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def restart(self) -> None:
        """Forget everything written so far: the next byte written is the first."""
        self._handle.seek(0)
        self._handle.truncate()
        self._hash = hashlib.sha256()
        self.size = 0

    def flushed(self) -> Path:
        """Where all that was written so far can be read."""
        self._handle.flush()
        return self._path

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


@contextmanager
def new_file(target: Path) -> Iterator[HashingFile]:
    """Write `target` so that it is whole, or as it was before: nothing appears until the block has ended well."""
    # The name is cut: with what is added, one of 255 bytes would be too long for the file system.
    temporary = target.with_name(f"{TEMPORARY}{target.name[:60]}.{secrets.token_hex(4)}")
    handle = open(temporary, "xb")  # noqa: SIM115 - closed on both paths below
    try:
        yield HashingFile(handle, temporary)
        handle.flush()
        os.fsync(handle.fileno())
        handle.close()
        os.replace(temporary, target)
        sync_directory(target.parent)
    except BaseException:
        handle.close()
        temporary.unlink(missing_ok=True)
        raise


def write_file(target: Path, data: bytes) -> None:
    """Replace `target` by `data`, durably and all at once."""
    with new_file(target) as out:
        out.write(data)


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable. File systems that cannot are tolerated, as restic does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync(paths: Iterable[Path]) -> None:
    """Make the bytes of files durable, and then their names."""
    folders = set()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        folders.add(path.parent)
    for folder in folders:
        sync_directory(folder)


def start_writing(paths: Iterable[Path]) -> None:
    """Ask the system to bring files to the disk now, without waiting: a later sync then has little left to do."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Make every file and folder below `root` durable."""
    for folder, _, names in os.walk(root):
        sync(Path(folder, name) for name in names)
        sync_directory(Path(folder))


def size_of(path: Path) -> int | None:
    """Size of a file in bytes, None where there is none."""
    return path.stat().st_size if path.is_file() else None


def publish_directory(draft: Path, target: Path) -> bool:
    """Rename the folder `draft` to `target` for good. False, and `draft` is removed, when `target` already stands.

    rename(2) refuses to replace a folder that is not empty, and a published one never is.
    """
    sync_tree(draft)
    try:
        os.rename(draft, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        remove_tree(draft)
        return False
    sync_directory(target.parent)
    return True


def point(link: Path, target_name: str) -> None:
    """Make the symlink `link` name its sibling `target_name`, in one step that a reader cannot see half of."""
    temporary = link.with_name(f"{TEMPORARY}{link.name}.{secrets.token_hex(4)}")
    os.symlink(target_name, temporary)
    os.replace(temporary, link)
    sync_directory(link.parent)


def remove_tree(path: Path) -> None:
    """Delete a folder and all below it; a folder that is not there is no error."""
    if path.is_dir():
        shutil.rmtree(path)


def remove_temporaries(root: Path, *, below: bool = True) -> None:
    """Delete what killed writers left in `root` and `below` it. Only for one who holds the lock on it."""
    for path in list((root.rglob if below else root.glob)(f"{TEMPORARY}*")):
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_space(folder: Path, needed: int, *, option: str = "--artifacts") -> None:
    """Raise StorageFailed unless `needed` bytes are free where `folder` (or its nearest parent) lies."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageFailed(
            f"{folder}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free",
            hint=f"free some space or choose another disk with {option}",
        )


@contextmanager
def lock(path: Path, *, wait: float = 0.0, doing: str = "") -> Iterator[None]:
    """Hold the advisory lock file `path` exclusively; the kernel drops it when the process dies.

    The JSON inside is for people only. Raises TryAgain when another process holds it longer than `wait` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + max(wait, _LOCK_PATIENCE)
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() >= deadline:
            holder = path.read_text(errors="replace").strip() or "another process"
            raise TryAgain(
                f"{path.parent}: in use by {holder}", hint="wait for it to end, then run the same command again"
            )
        time.sleep(0.05)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "doing": doing}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None. A file that was deleted while held is no lock any more."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


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
