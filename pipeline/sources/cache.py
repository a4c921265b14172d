"""The raw cache: downloaded files pinned by sha256."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import msgspec

from pipeline.errors import BadData
from pipeline.sources.catalogue import LOCK_FILE
from pipeline.store import files

_LONGEST = 255  # bytes of a name, as far as file systems go


class RawFile(msgspec.Struct, frozen=True):
    """A cached file. `origin` is its URL, or for a local file its size and time at the origin when it was copied.

    `etag` and `commit` are what the server said of it: by the one a change is seen where no hash is published, the
    other is the state of the repository that it is from.
    """

    size: int
    sha256: str
    mtime_ns: int
    origin: str
    split: str = ""
    etag: str = ""
    commit: str = ""


def folder(root: Path, source: str) -> Path:
    return root / "raw" / source


def read_lock(root: Path, source: str) -> dict[str, RawFile]:
    """What `sources.lock.json` pins, by file name; empty when the source was never downloaded."""
    path = folder(root, source) / LOCK_FILE
    try:
        pinned = msgspec.json.decode(path.read_bytes(), type=dict[str, RawFile])
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(f"{path}: {error}", hint="delete it and download again") from None
    for name in pinned:
        if why := why_no_name(path.parent, name):
            raise BadData(f"{path}: {name[:100]!r} {why}", hint="delete it and download again")
    return pinned


def why_no_name(cache: Path, name: str) -> str:
    """Why no file of this name can be in a cache, as that it leads out of it; "" for one that can."""
    parts = PurePosixPath(name).parts
    if any(ord(each) < 32 or ord(each) == 127 or "\ud800" <= each <= "\udfff" for each in name):
        return "holds characters that no name should"
    if not parts or ".." in parts or not (cache / name).resolve().is_relative_to(cache.resolve()):
        return "leads out of the cache"
    if name in (LOCK_FILE, ".lock") or any(part.startswith((files.TEMPORARY, files.TRASH)) for part in parts):
        return "is a name that the cache keeps for itself"
    if any(len(part.encode()) > _LONGEST for part in parts):
        return "is longer than a name on a disk can be"
    return ""


def write_lock(root: Path, source: str, pinned: dict[str, RawFile]) -> None:
    data = msgspec.json.format(msgspec.json.encode(pinned, order="deterministic"), indent=2)
    files.write_file(folder(root, source) / LOCK_FILE, data)


def is_whole(path: Path, pin: RawFile) -> bool:
    """Whether the cached file is the one that was verified: by size and time, by its hash if only the time differs."""
    if not path.is_file() or path.stat().st_size != pin.size:
        return False
    return path.stat().st_mtime_ns == pin.mtime_ns or files.sha256_of(path) == pin.sha256
