"""Durable file operations: a published file is complete and survives a power cut (as far as fsync is reliable).

Only this module renames and syncs. A file is written under a temporary name beside its target, synced and renamed, and
then its folder is synced. Without the first sync, the name may come back without its bytes; without the last one, the
name itself may be lost (measured on ext4; docs/design/reliability.md, M13).

Every operation that durability depends on is a method of `disk`. Tests replace it with another `Disk` that fails,
tears a write or kills the process at the N-th operation, or keeps a log from which the possible states after a power
cut are derived.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import CannotCreate, StorageFailed
from pipeline.store import locks

TEMPORARY = ".tmp."
TRASH = ".trash."
_TEMPORARY_STEM = 40  # characters of the target's name in that of its temporary
# errors of link: another disk, a file system without hard links, a kernel that refuses links to files of other users,
# too many links
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Disk:
    """The disk operations whose failure must not go unnoticed."""

    def create(self, path: Path) -> BinaryIO:
        return open(path, "x+b")

    def write(self, handle: BinaryIO, path: Path, data: bytes | memoryview) -> None:
        handle.write(data)

    def truncate(self, handle: BinaryIO, path: Path, size: int) -> None:
        handle.truncate(size)

    def sync(self, descriptor: int, path: Path) -> None:
        """Make the bytes of a file, or the names in a folder, durable.

        Never retried: after a failed fsync, the kernel may have dropped the data.
        """
        os.fsync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Rename `old` to `new`. Replaces a file at `new`, but never a folder that is not empty."""
        os.rename(old, new)

    def link(self, old: Path, new: Path) -> None:
        os.link(old, new)

    def symlink(self, target_name: str, link: Path) -> None:
        os.symlink(target_name, link)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)


disk = Disk()


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Add the file name to an OSError that lacks one, such as that of a write or a sync."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class HashingFile:
    """A binary file that keeps the sha256 and the size of the bytes written to it."""

    def __init__(self, handle: BinaryIO, path: Path) -> None:
        self._handle = handle
        self.path = path
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        with _naming_file(self.path):
            disk.write(self._handle, self.path, data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def truncate(self, size: int) -> None:
        """Truncate the file to `size` bytes, and hash those again from the disk."""
        with _naming_file(self.path):
            disk.truncate(self._handle, self.path, size)  # flushes first
        self._handle.seek(0)
        self._hash, self.size = hashlib.sha256(), 0
        while block := self._handle.read(1 << 20):
            self._hash.update(block)
            self.size += len(block)

    def rotate_to(self, other: Path) -> None:
        """Rename the file to `other`, and start again with an empty one."""
        self._handle.close()
        move(self.path, other)
        self._handle = disk.create(self.path)
        self._hash, self.size = hashlib.sha256(), 0

    def flushed_path(self) -> Path:
        """Flush the buffer, and return the path where all bytes written so far can be read."""
        self._handle.flush()
        return self.path

    def sync(self) -> None:
        """Make all bytes written so far durable."""
        with _naming_file(self.path):
            self._handle.flush()
            disk.sync(self._handle.fileno(), self.path)

    def publish(self, target: Path) -> None:
        """Atomically and durably rename the finished file to `target`."""
        self.sync()
        self.close()
        move(self.path, target)

    def close(self) -> None:
        self._handle.close()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


@contextmanager
def new_file(target: Path) -> Iterator[HashingFile]:
    """Write `target` atomically: it appears, or is replaced, only when the block ends without an error."""
    path = temporary_path(target)
    handle = disk.create(path)
    locks.hold(handle.fileno())
    out = HashingFile(handle, path)
    try:
        yield out
        out.publish(target)
    except BaseException:
        with suppress(OSError):  # closing flushes, and fails again on a full disk
            out.close()
        disk.unlink(path)
        raise


def temporary_path(target: Path, prefix: str = TEMPORARY) -> Path:
    """Return an unused name beside `target`. It contains the boot and process ids of its writer (`leftovers.py`)."""
    # The target's name is shortened: a name of 255 bytes plus the suffix would be too long for the file system.
    stem = target.name[:_TEMPORARY_STEM]
    return target.with_name(f"{prefix}{stem}.{locks.boot_id()[:8]}.{os.getpid()}.{secrets.token_hex(4)}")


@contextmanager
def open_partial(path: Path) -> Iterator[HashingFile]:
    """Open the unfinished file `path` to continue it. It is kept, however the block ends, unless it is empty."""
    try:
        handle = disk.create(path)
    except FileExistsError:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        handle = open(descriptor, "r+b")  # noqa: SIM115 - closed below
    file = HashingFile(handle, path)
    try:
        yield file
    finally:
        with suppress(OSError):  # bytes that are not durable do not count
            file.close()
        if not file.size:
            disk.unlink(path)


def write_file(target: Path, data: bytes) -> None:
    """Write `data` to `target`, atomically and durably."""
    with new_file(target) as out:
        out.write(data)


def move_unsynced(old: Path, new: Path) -> None:
    """Rename a file, which replaces a file at `new`. Its name is durable once the folder is synced."""
    disk.rename(old, new)


def move(old: Path, new: Path) -> None:
    """Rename a file or a folder, durably."""
    disk.rename(old, new)
    sync_directory(new.parent)
    if old.parent != new.parent:
        sync_directory(old.parent)


def link_or_copy(old: Path, new: Path) -> None:
    """Make `new` a hard link to `old`, or a copy where a link is not possible."""
    try:
        disk.link(old, new)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(old, new)


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable. File systems that cannot sync folders are tolerated, as in restic."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _naming_file(path):
            disk.sync(descriptor, path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync(paths: Iterable[Path]) -> None:
    """Make the bytes of files durable, then their names."""
    folders = set()
    for path in paths:
        _sync_file(path)
        folders.add(path.parent)
    for folder in folders:
        sync_directory(folder)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _naming_file(path):
            disk.sync(descriptor, path)
    finally:
        os.close(descriptor)


def start_writeback(paths: Iterable[Path]) -> None:
    """Ask the system to start writing files to the disk, without waiting, so that a later sync is quick."""
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
    for folder, names in walk(root):
        for name in names:
            _sync_file(Path(folder, name))
        sync_directory(Path(folder))


def walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, names of its files) for `root` and every folder below it.

    Raises OSError for a folder that cannot be opened, which os.walk by itself skips.
    """

    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(root, onerror=fail):
        yield folder, names


def folder_size(folder: Path) -> int:
    """Return the total size in bytes of the files below a folder; 0 if there is no such folder."""
    total = 0
    for top, _, names in os.walk(folder):  # skips folders that were deleted meanwhile
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(Path(top, name)).st_size
    return total


def file_size(path: Path) -> int | None:
    """Return the size of a file in bytes, None if there is no such file."""
    return path.stat().st_size if path.is_file() else None


def publish_directory(draft: Path, target: Path) -> bool:
    """Atomically and durably rename the folder `draft` to `target`.

    Returns False, and deletes `draft`, when `target` already exists: rename(2) does not replace a folder unless it is
    empty, and a published one never is.
    """
    sync_tree(draft)
    try:
        disk.rename(draft, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        remove_tree(draft)
        return False
    sync_directory(target.parent)
    return True


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`, under a temporary name. It is deleted when the block ends."""
    draft = temporary_path(target)
    draft.mkdir()
    descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY)
    try:
        locks.hold(descriptor)
        yield draft
    finally:
        os.close(descriptor)
        remove_tree(draft)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `target` when the block ends without an error, and deleted otherwise.

    Raises CannotCreate if `target` was created meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(target) as draft:
        yield draft
        if not publish_directory(draft, target):
            raise CannotCreate(f"{target}: created meanwhile", hint="choose another folder with --out")


def point_symlink(link: Path, target_name: str) -> None:
    """Atomically point the symlink `link` to its sibling `target_name`."""
    path = temporary_path(link)
    disk.symlink(target_name, path)
    disk.rename(path, link)
    sync_directory(link.parent)


def remove_tree(path: Path) -> None:
    """Delete a folder and everything below it, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)


def discard_folder(path: Path) -> None:
    """Delete a published folder. For readers it disappears in one step, however long its files take to delete."""
    trash = temporary_path(path, TRASH)
    move(path, trash)
    remove_tree(trash)


def remove_temporaries(root: Path, *, recursive: bool = True) -> None:
    """Delete the temporaries of killed writers in `root` and, with `recursive`, in its subfolders.

    The caller must hold the lock on `root`.
    """
    for prefix in (TEMPORARY, TRASH):
        for path in list((root.rglob if recursive else root.glob)(f"{prefix}*")):
            remove_any(path)


def remove_any(path: Path) -> None:
    """Delete a file, a link, or a folder and everything below it."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        disk.unlink(path)


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_space(folder: Path, needed: int, *, option: str = "--artifacts") -> None:
    """Raise StorageFailed unless `needed` bytes are free on the disk of `folder` or its nearest existing parent."""
    free = free_space(folder)
    if needed > free:
        raise StorageFailed(
            f"{folder}: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free",
            hint=f"free some space or choose another disk with {option}",
        )


def free_space(folder: Path) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
