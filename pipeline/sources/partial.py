"""State of an interrupted download, for resuming.

    NAME.part        the bytes received
    NAME.part.json   which file they belong to, and how many of them are durable

A part is resumed only if it belongs to the same content: by the sha256 that the hub publishes, or else by a strong
ETag. Without either nothing is kept. The bytes on the disk are read and hashed again first, so the published hash is
that of the bytes on the disk.
"""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pipeline.errors import StorageFailed
from pipeline.runtime.redaction import redact_url
from pipeline.store import files
from pipeline.store.files import HashingFile

if TYPE_CHECKING:  # `status` needs no requests
    from pipeline.sources.http import RemoteFile

QUARANTINE = "quarantine"
RESERVE = 64 << 20  # bytes to leave free on the disk
_CHECK_EVERY = 1 << 20  # bytes written between two checks of the free space
_MAX_NAME = 200  # bytes; with the suffixes a longer name would be too long for a file system


class PartialState(msgspec.Struct, frozen=True):
    """Content of `NAME.part.json`: the remote file, and how many bytes of `NAME.part` are durable.

    `came` is the sha256 of the complete file if the server publishes none. A later process recognizes NAME by it if
    this one ends after NAME is published and before it is pinned.
    """

    schema: int
    url: str
    sha256: str
    size: int | None
    etag: str
    durable: int
    came: str = ""


def part_path(target: Path) -> Path:
    """Return the path of the bytes received of `target`."""
    name = target.name
    if len(name.encode()) > _MAX_NAME:
        name = f"{name[:40]}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return target.with_name(f"{name}.part")


def state_path(target: Path) -> Path:
    """Return the path of the state of the part."""
    part = part_path(target)
    return part.with_name(f"{part.name}.json")


def _read_state(target: Path, remote: RemoteFile) -> PartialState | None:
    """Return the state that an earlier process left of this remote file, or None."""
    try:
        state = msgspec.json.decode(state_path(target).read_bytes(), type=PartialState)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    has_same_etag = bool(remote.strong_etag) and state.etag == remote.etag
    is_same = state.sha256 == remote.sha256 if remote.sha256 else has_same_etag
    return state if is_same and state.schema == 1 and remote.size in (None, state.size) else None


def resumable_size(target: Path, remote: RemoteFile) -> int:
    """Return the number of bytes of this remote file that an earlier process left. They are not fetched again."""
    state = _read_state(target, remote)
    size = files.file_size(part_path(target)) or 0
    return max(0, min(state.durable, size)) if state else 0


def finished_sha256(target: Path, remote: RemoteFile) -> str:
    """Return the sha256 of `target` if an earlier process finished this remote file without pinning it, else ""."""
    state, size = _read_state(target, remote), files.file_size(target)
    expected = remote.sha256 or (state.came if state else "")
    if not expected or size is None or remote.size not in (None, size):
        return ""
    return expected if files.sha256_of(target) == expected else ""


def delete_state(target: Path) -> None:
    """Delete the state of a download once its file is pinned."""
    files.disk.unlink(state_path(target))


def has_leftover_state(target: Path) -> bool:
    """Return True if the download is finished and only its state remains to be deleted."""
    return state_path(target).exists() and not part_path(target).exists()


class PartialFile:
    """`NAME.part` open for writing, together with its state.

    The state never claims more bytes than are on the disk, not even after a power cut.
    """

    def __init__(self, target: Path, out: HashingFile) -> None:
        self._target, self._out = target, out
        self.durable_size = 0
        self._checked_size = 0  # size at which the free space is checked again

    @property
    def size(self) -> int:
        return self._out.size

    @property
    def sha256(self) -> str:
        return self._out.sha256

    def resume(self, remote: RemoteFile) -> None:
        """Keep the bytes that an earlier process left of this remote file, and no others."""
        if size := resumable_size(self._target, remote):
            self._out.truncate(size)
        else:
            self.truncate(0)
        self.durable_size = self._out.size

    def write(self, piece: bytes) -> None:
        self._out.write(piece)

    def require_space(self) -> None:
        """Raise StorageFailed, and empty the part, if less than the reserve is free: the body may have any size."""
        if self._checked_size <= self.size:
            self._checked_size = self.size + _CHECK_EVERY
            try:
                files.require_space(self.flushed().parent, RESERVE)
            except StorageFailed:
                self.truncate(0)
                raise

    def flushed(self) -> Path:
        """Return the path at which all bytes written so far can be read."""
        return self._out.flushed_path()

    def save(self, remote: RemoteFile, sha256: str = "") -> None:
        """Make the bytes durable, then record them in the state; `sha256` records that they are complete."""
        if self._out.size <= self.durable_size and not sha256:
            return
        self._out.sync()
        self.durable_size = self._out.size
        state = PartialState(
            1, redact_url(remote.url), remote.sha256, remote.size, remote.etag, self.durable_size, sha256
        )
        files.write_file(state_path(self._target), msgspec.json.encode(state))

    def truncate(self, size: int) -> None:
        """Keep only the first `size` bytes."""
        self._revoke_state()
        self._out.truncate(size)
        self._checked_size = 0

    def quarantine(self) -> None:
        """Move the bytes to the quarantine folder, in place of older ones of this file, and start an empty part."""
        folder = self._target.parent / QUARANTINE
        folder.mkdir(exist_ok=True)
        stem = part_path(self._target).stem
        for old_path in folder.glob(f"{glob.escape(stem)}.*"):
            files.disk.unlink(old_path)
        self._revoke_state()
        self._out.rotate_to(folder / f"{stem}.{self._out.sha256[:12]}")

    def _revoke_state(self) -> None:
        """Delete the state durably."""
        if (path := state_path(self._target)).exists():
            files.disk.unlink(path)
            files.sync_directory(path.parent)
        self.durable_size = 0
