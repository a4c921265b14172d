"""The download stage: bring a source's files into the raw cache, each whole or not at all, and pin their content.

What a source does not publish a hash for is pinned in `sources.lock.json` as it came the first time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline import decompress, files, locks, raw, transfer
from pipeline.errors import BadConfig, TryAgain
from pipeline.progress import Advance, Progress
from pipeline.sources import Source, SourceFile

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Downloaded:
    """What became of a source: how many of its files were fetched and how many stood already, and their bytes."""

    source: str
    path: Path
    names: tuple[str, ...]
    fetched: int
    unchanged: int
    bytes: int

    @property
    def result(self) -> str:
        return "built" if self.fetched else "unchanged"


def download(
    root: Path, source: Source, progress: Progress, *, jobs: int = 2, decompress_too: bool = False
) -> Downloaded:
    """Bring every file of `source` into the raw cache; those that are there and whole are left alone.

    What was fetched before an error is kept and pinned, so the next run does not fetch it again. With
    `decompress_too` the plain files are put below `decompressed/` in the cache; no stage reads those.
    """
    folder = raw.folder(root, source.name)
    for file in source.files:
        if not (folder / file.name).resolve().is_relative_to(folder.resolve()):
            raise BadConfig(f"{file.name!r} leads out of the cache", hint="choose another name")
    with locks.lock(folder / ".lock", doing=f"download {source.name}"):
        files.remove_temporaries(folder)
        pinned = raw.read_lock(root, source.name)
        if all(file.local for file in source.files):  # a file that left the folder is no longer part of the source
            pinned = {file.name: pinned[file.name] for file in source.files if file.name in pinned}
        missing = [file for file in source.files if not _is_there(folder, file, pinned)]
        size = _fetch_all(root, source, missing, pinned, progress, jobs) if missing else 0
        if decompress_too:
            _decompress(folder, [file.name for file in source.files], {file.name for file in missing}, progress)
    names = tuple(file.name for file in source.files)
    return Downloaded(source.name, folder, names, len(missing), len(names) - len(missing), size)


def _fetch_all(
    root: Path, source: Source, missing: list[SourceFile], pinned: dict[str, raw.RawFile], progress: Progress, jobs: int
) -> int:
    """Fetch and pin files, `jobs` at a time; their bytes. Ctrl-C ends every transfer at its next piece."""
    folder = raw.folder(root, source.name)
    known = sum(file.local.stat().st_size for file in missing if file.local)
    files.require_space(folder, known)
    pinning, stopped = threading.Lock(), threading.Event()

    def fetch(file: SourceFile) -> int:
        def counted(count: int) -> None:
            if stopped.is_set():
                raise TryAgain("stopped", hint="run it again")
            advance(count)

        pin = _fetch(file, folder / file.name, pinned.get(file.name), counted)
        with pinning:
            pinned[file.name] = pin
            raw.write_lock(root, source.name, pinned)
        return pin.size

    total = known if all(file.local for file in missing) else None
    with progress.bar(f"download {source.name}", total) as advance, ThreadPoolExecutor(max(1, jobs)) as pool:
        try:
            return sum(pool.map(fetch, missing))
        except KeyboardInterrupt:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def _decompress(folder: Path, names: list[str], fetched: set[str], progress: Progress) -> None:
    for name in names:
        if not name.endswith(decompress.COMPRESSED):
            continue
        target = (folder / "decompressed" / name).with_suffix("")
        if name in fetched:
            target.unlink(missing_ok=True)  # what was there was made from another file
        if not target.exists():
            decompress.decompress([folder / name], target.parent, progress)


def plan(root: Path, source: Source) -> Sequence[tuple[str, str, bool]]:
    """(name, origin, whether it is there and whole) of each file: what --dry-run shows."""
    pinned = raw.read_lock(root, source.name)
    folder = raw.folder(root, source.name)
    return [
        (file.name, str(file.local) if file.local else file.urls[0], _is_there(folder, file, pinned))
        for file in source.files
    ]


def _is_there(folder: Path, file: SourceFile, pinned: dict[str, raw.RawFile]) -> bool:
    pin = pinned.get(file.name)
    if pin is None or not raw.is_whole(folder / file.name, pin):
        return False
    if file.local:
        return pin.origin == _origin(file.local)
    return not file.plain or pin.origin == transfer.without_credentials(file.urls[0])


def _origin(local: Path) -> str:
    """What tells whether a local file is another one, or was changed, since it was copied."""
    status = local.stat()
    return f"{local.resolve()}:{status.st_size}:{status.st_mtime_ns}"


def _fetch(file: SourceFile, target: Path, pin: raw.RawFile | None, advance: Advance) -> raw.RawFile:
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.new_file(target) as out:
        if file.local:
            origin = _origin(file.local)
            with open(file.local, "rb") as original:
                while block := original.read(_CHUNK):
                    out.write(block)
                    advance(len(block))
        else:
            is_known = pin is not None and not (file.plain and pin.origin != transfer.without_credentials(file.urls[0]))
            origin = transfer.fetch(file, out, pin.sha256 if pin and is_known else "", advance)
    return raw.RawFile(out.size, out.sha256, target.stat().st_mtime_ns, origin, file.split)
