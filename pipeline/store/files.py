"""Durable file operations: what is published is whole, and stays after a power cut (as far as fsync is honest).

The only room that renames and syncs. A file is written under a temporary name beside its target, synced,
renamed, and then its folder is synced: without the first sync the name may come back with no bytes, without the
last one the name itself may be lost (measured on ext4; reference/reliability.md, M13).

Every operation that durability hangs on goes through `disk`, one method each. Tests put another `Disk` there, which
fails, tears or kills at the N-th operation, or keeps a log from which the states after a power cut are made.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import CannotCreate, StorageFailed

TEMPORARY = ".tmp."
TRASH = ".trash."
_SHOWN = 40  # characters of a name in that of its temporary
# other disks, file systems without hard links, kernels that refuse links to others' files, files with too many links
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Disk:
    """The operations on the disk that must not go wrong unnoticed."""

    def create(self, path: Path) -> BinaryIO:
        return open(path, "x+b")

    def write(self, handle: BinaryIO, path: Path, data: bytes | memoryview) -> None:
        handle.write(data)

    def truncate(self, handle: BinaryIO, path: Path, size: int) -> None:
        handle.truncate(size)

    def sync(self, descriptor: int, path: Path) -> None:
        """Make the bytes of a file, or the names in a folder, durable. Not tried again: a failed one lost them."""
        os.fsync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Replaces a file at `new`, but never a folder that holds anything."""
        os.rename(old, new)

    def link(self, old: Path, new: Path) -> None:
        os.link(old, new)

    def symlink(self, target_name: str, link: Path) -> None:
        os.symlink(target_name, link)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error of the system say which file it is about, also where the system does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


disk = Disk()


class HashingFile:
    """A binary file that keeps the sha256 and the length of what was written to it."""

    def __init__(self, handle: BinaryIO, path: Path) -> None:
        self._handle = handle
        self.path = path
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        with _named(self.path):
            disk.write(self._handle, self.path, data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes of the file, and read them again: they are what is on the disk."""
        with _named(self.path):
            self._handle.flush()
            disk.truncate(self._handle, self.path, size)
        self._handle.seek(0)
        self._hash, self.size = hashlib.sha256(), 0
        while block := self._handle.read(1 << 20):
            self._hash.update(block)
            self.size += len(block)
        self._handle.seek(self.size)

    def set_aside(self, other: Path) -> None:
        """Leave what was written under another name, and begin again with an empty file."""
        self._handle.close()
        move(self.path, other)
        self._handle = disk.create(self.path)
        self._hash, self.size = hashlib.sha256(), 0

    def flushed(self) -> Path:
        """Where all that was written so far can be read."""
        self._handle.flush()
        return self.path

    def sync(self) -> None:
        """Make what was written so far durable."""
        with _named(self.path):
            self._handle.flush()
            disk.sync(self._handle.fileno(), self.path)

    def publish(self, target: Path) -> None:
        """Let the file, which is whole, appear as `target`, durably."""
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
    """Write `target` so that it is whole, or as it was before: nothing appears until the block has ended well."""
    path = temporary(target)
    out = HashingFile(disk.create(path), path)
    try:
        yield out
        out.publish(target)
    except BaseException:
        with suppress(OSError):  # a full disk, at which this failed already
            out.close()
        disk.unlink(path)
        raise


def temporary(target: Path) -> Path:
    """A name beside `target` that nobody else uses, and that says who did when it is found left over."""
    # The name is cut: with what is added, one of 255 bytes would be too long for the file system.
    return target.with_name(f"{TEMPORARY}{target.name[:_SHOWN]}.{boot_id()[:8]}.{os.getpid()}.{secrets.token_hex(4)}")


def remove_temporaries_of(target: Path) -> None:
    """Delete what killed writers of one file left. Only for one who holds the lock on it."""
    for path in list(target.parent.glob(f"{TEMPORARY}{glob.escape(target.name[:_SHOWN])}.*")):
        disk.unlink(path)


def boot_id() -> str:
    """What changes with every start of the system; "" where the system does not say."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


@contextmanager
def part_file(path: Path) -> Iterator[HashingFile]:
    """Open the unfinished file `path` to go on with it. It stays, however the block ends, unless it is empty."""
    try:
        handle = disk.create(path)
    except FileExistsError:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        handle = open(descriptor, "r+b")  # noqa: SIM115 - closed below
    file = HashingFile(handle, path)
    try:
        yield file
    finally:
        with suppress(OSError):  # what was not durable does not count
            file.close()
        if not file.size:
            disk.unlink(path)


def write_file(target: Path, data: bytes) -> None:
    """Replace `target` by `data`, durably and all at once."""
    with new_file(target) as out:
        out.write(data)


def move(old: Path, new: Path) -> None:
    """Give a file or a folder another name, durably."""
    disk.rename(old, new)
    sync_directory(new.parent)
    if old.parent != new.parent:
        sync_directory(old.parent)


def link_or_copy(old: Path, new: Path) -> None:
    """Make `new` a hard link to `old`, or a copy of it where the file system has no such links."""
    try:
        disk.link(old, new)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(old, new)


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable. File systems that cannot are tolerated, as restic does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _named(path):
            disk.sync(descriptor, path)
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
            with _named(path):
                disk.sync(descriptor, path)
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

    def fail(error: OSError) -> None:
        raise error  # os.walk else leaves out, without a word, what it cannot open

    for folder, _, names in os.walk(root, onerror=fail):
        sync(Path(folder, name) for name in names)
        sync_directory(Path(folder))


def bytes_below(folder: Path) -> int:
    """What the files in a folder hold together; 0 where there is no such folder."""
    total = 0
    for top, _, names in os.walk(folder):  # which passes over what went away
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(Path(top, name)).st_size
    return total


def size_of(path: Path) -> int | None:
    """Size of a file in bytes, None where there is none."""
    return path.stat().st_size if path.is_file() else None


def publish_directory(draft: Path, target: Path) -> bool:
    """Rename the folder `draft` to `target` for good. False, and `draft` is removed, when `target` already stands.

    rename(2) refuses to replace a folder that is not empty, and a published one never is.
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
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target` once the block has ended well, and of which else nothing is left.

    Raises CannotCreate where something appeared under that name meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{TEMPORARY}{target.name[:60]}.{secrets.token_hex(4)}")
    draft.mkdir()
    try:
        yield draft
        if not publish_directory(draft, target):
            raise CannotCreate(f"{target}: appeared meanwhile", hint="choose another folder with --out")
    except BaseException:
        remove_tree(draft)
        raise


def require_new(target: Path, besides: Path) -> None:
    """Raise CannotCreate where `target` stands already, or would lie inside the folder `besides`."""
    if os.path.lexists(target):
        raise CannotCreate(
            f"{target}: exists already", hint="choose another folder with --out, or move what is there away"
        )
    if besides.resolve() in target.resolve().parents:
        raise CannotCreate(f"{target}: lies inside the artifact itself", hint="choose another folder with --out")


def point(link: Path, target_name: str) -> None:
    """Make the symlink `link` name its sibling `target_name`, in one step that a reader cannot see half of."""
    path = temporary(link)
    disk.symlink(target_name, path)
    disk.rename(path, link)
    sync_directory(link.parent)


def remove_tree(path: Path) -> None:
    """Delete a folder and all below it; a folder that is not there is no error."""
    if path.is_dir():
        shutil.rmtree(path)


def throw_away(path: Path) -> None:
    """Delete a published folder: in one step for whoever looks, however long its files take."""
    trash = path.with_name(f"{TRASH}{path.name}.{secrets.token_hex(4)}")
    move(path, trash)
    remove_tree(trash)


def remove_temporaries(root: Path, *, below: bool = True) -> None:
    """Delete what killed writers left in `root` and `below` it. Only for one who holds the lock on it."""
    for prefix in (TEMPORARY, TRASH):
        for path in list((root.rglob if below else root.glob)(f"{prefix}*")):
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                disk.unlink(path)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_space(folder: Path, needed: int, *, option: str = "--artifacts") -> None:
    """Raise StorageFailed unless `needed` bytes are free where `folder` (or its nearest parent) lies."""
    free = free_space(folder)
    if needed > free:
        raise StorageFailed(
            f"{folder}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free",
            hint=f"free some space or choose another disk with {option}",
        )


def free_space(folder: Path) -> int:
    """Bytes that are free where `folder` lies, or will lie."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
