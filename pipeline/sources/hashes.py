"""Hashes of local files, cached in `artifacts/.hashes.json` by size, times and inode.

The time of modification alone proves nothing: `cp -p`, `rsync -t` and `touch -r` set it to that of another file. The
kernel sets the time of the last status change (ctime) at every write, and no program can set it back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.store import files

_HASHES = ".hashes.json"
_SETTLED = 2_000_000_000  # ns; a younger file may change again without a new time, within the clock's resolution


class Stamp(NamedTuple):
    """State of a file by which a change is detected: size in bytes, times in ns, and inode."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class _Hashed(msgspec.Struct, frozen=True):
    """Cached hash of a local file, valid for this state of it."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: str

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.size, self.mtime_ns, self.ctime_ns, self.inode)


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp in the result of a `stat` call."""
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def file_stamp(path: Path) -> Stamp:
    """Return the stamp of a file; links are followed."""
    return stamp_of(path.stat())


def local_hashes(root: Path, paths: Sequence[Path], *, deep: bool = False) -> list[str]:
    """Return the sha256 of local files. Cached ones are hashed again if their stamp changed, or if `deep`."""
    cached = _read(root)
    digests = []
    updates: dict[Path, tuple[Stamp, str]] = {}
    for path in paths:
        stamp, entry = file_stamp(path), cached.get(_cache_key(path))
        if deep or entry is None or entry.stamp != stamp:
            digests.append(files.sha256_of(path))
            updates[path] = stamp, digests[-1]
        else:
            digests.append(entry.sha256)
    store_hashes(root, updates)
    return digests


def store_hashes(root: Path, hashed: Mapping[Path, tuple[Stamp, str]]) -> None:
    """Add hashes to the cache, each with the stamp that its file had before it was hashed.

    If the cache cannot be written, the files are hashed again next time.
    """
    now = time.time_ns()
    updates = {
        _cache_key(path): _Hashed(*stamp, sha256)
        for path, (stamp, sha256) in hashed.items()
        if now - max(stamp.mtime_ns, stamp.ctime_ns) > _SETTLED
    }
    if not updates:
        return
    entries = {name: entry for name, entry in (_read(root) | updates).items() if os.path.exists(name)}
    with suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        (root / _HASHES).write_bytes(msgspec.json.encode(entries, order="deterministic"))


def _read(root: Path) -> dict[str, _Hashed]:
    try:
        return msgspec.json.decode((root / _HASHES).read_bytes(), type=dict[str, _Hashed])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):  # only a cache: hash again
        return {}


def _cache_key(path: Path) -> str:
    return str(path.resolve()).encode(errors="backslashreplace").decode()
