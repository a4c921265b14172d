"""The raw cache, `artifacts/raw/<source>/`: downloaded files beside one `sources.lock.json` that pins their content.

`download.py` fills it, `inputs.py` reads it. This module defines its layout and checks which of its files are intact.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path, PurePosixPath

import msgspec

from pipeline.errors import BadData
from pipeline.runtime.regular_file import read_regular
from pipeline.sources import partial
from pipeline.sources.walk import LOCK_FILE
from pipeline.store import files

ORIGIN_FILE = ".origin"  # names the source that the folder belongs to
_WRITE_SECONDS = 1.0  # between two writes of the lock file
_MAX_NAME = 255  # bytes, the limit of common file systems
_DOWNLOAD_AGAIN = "delete it and download again"


class RawFile(msgspec.Struct, frozen=True):
    """Pin of a cached file.

    `origin` is its URL, or for a local file its path, size and time there when it was copied. `etag` reveals a
    change upstream where no hash is published; `commit` is the commit of the repository that it comes from. `members`
    is the pattern of the files to read of an archive, "" for all.
    """

    size: int
    sha256: str
    mtime_ns: int
    origin: str
    split: str = ""
    etag: str = ""
    commit: str = ""
    members: str = ""


def source_folder(root: Path, source: str) -> Path:
    return root / "raw" / source


def read_lock_file(root: Path, source: str) -> dict[str, RawFile]:
    """Return the pins in `sources.lock.json` by file name; empty if the source was never downloaded.

    Raises BadData if the file is not regular, cannot be decoded, or pins a name that no cached file can have.
    """
    path = source_folder(root, source) / LOCK_FILE
    try:
        pins = msgspec.json.decode(read_regular(path), type=dict[str, RawFile])
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(f"{path}: {error}", hint=_DOWNLOAD_AGAIN) from None
    for name in pins:
        if problem := name_problem(path.parent, name):
            raise BadData(f"{path}: {name[:100]!r} {problem}", hint=_DOWNLOAD_AGAIN)
    return pins


def name_problem(cache: Path, name: str) -> str:
    """Return the reason why no file in `cache` can have this name, or ""."""
    parts = PurePosixPath(name).parts
    if any(ord(character) < 32 or ord(character) == 127 or "\ud800" <= character <= "\udfff" for character in name):
        return "contains control characters or invalid characters"
    if not parts or ".." in parts or not (cache / name).resolve().is_relative_to(cache.resolve()):
        return "points outside the cache"
    if name in (LOCK_FILE, ORIGIN_FILE, ".lock") or any(
        part.startswith((files.TEMPORARY, files.TRASH)) for part in parts
    ):
        return "is reserved by the cache"
    if any(len(part.encode()) > _MAX_NAME for part in parts):
        return f"is longer than {_MAX_NAME} bytes"
    return ""


def write_lock_file(root: Path, source: str, pinned: dict[str, RawFile]) -> None:
    data = msgspec.json.format(msgspec.json.encode(pinned, order="deterministic"), indent=2)
    files.write_file(source_folder(root, source) / LOCK_FILE, data)


class PinWriter:
    """Writer of the lock file while files are fetched: at most once a second, since a source may have many files.

    Until a fetched file is pinned, its download state is kept, so that it is not fetched again after a kill.
    """

    def __init__(self, root: Path, source: str, pinned: dict[str, RawFile]) -> None:
        self._root, self._source, self._pinned = root, source, pinned
        self._lock = threading.Lock()
        self._waiting: list[str] = []
        self._written = float("-inf")  # time of the last write
        self.added: set[str] = set()

    def add(self, name: str, pin: RawFile) -> None:
        with self._lock:
            self._pinned[name] = pin
            self._waiting.append(name)
            if time.monotonic() - self._written >= _WRITE_SECONDS:
                self._write()

    def write(self) -> None:
        """Write the pins that are not written yet."""
        with self._lock:
            if self._waiting:
                self._write()

    def _write(self) -> None:
        write_lock_file(self._root, self._source, self._pinned)
        for name in self._waiting:
            partial.delete_state(source_folder(self._root, self._source) / name)
        self.added.update(self._waiting)
        self._waiting.clear()
        self._written = time.monotonic()


def is_intact(path: Path, pin: RawFile) -> bool:
    """Return True if the cached file is the pinned one: by size and time, by its hash if only the time differs."""
    if not path.is_file() or path.stat().st_size != pin.size:
        return False
    return path.stat().st_mtime_ns == pin.mtime_ns or files.sha256_of(path) == pin.sha256
