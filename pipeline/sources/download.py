"""The download stage: bring a source's files into the raw cache, each whole or not at all, and pin their content.

First a survey says of every file whether it is there, and otherwise what the server says of it; then what is missing
is fetched, exactly that. What a source does not publish a hash for is pinned in `sources.lock.json` as it came the
first time. A pinned file that changed upstream is refused, or taken where the pins may move (`update`); one that
shrank or is gone never replaces what is there by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadConfig, InkstoneError, NotPermitted, ProtocolBroken, RemoteGone, UpstreamChanged
from pipeline.runtime.progress import Advance, Progress
from pipeline.runtime.redaction import shown
from pipeline.sources import cache, decompress, transfer
from pipeline.sources import partial as parts
from pipeline.sources.cache import RawFile
from pipeline.sources.catalogue import Source, SourceFile
from pipeline.sources.http import Connection, Facts, Network
from pipeline.store import files, locks

_CHUNK = 1 << 20
_ASKING = 8  # files asked about at the same time
_RESERVE = 64 << 20  # bytes that stay free on the disk


@dataclass(frozen=True)
class Found:
    """What the survey found of one file: `state` is "there", "new", "changed", "damaged" or "refused" (see `error`).

    `bytes` are still to be fetched (None: the server does not say), `size` is the file's, and `smallest` what it must
    not be below. `url` and `facts` are those to fetch it by; a local file has none.
    """

    file: SourceFile
    state: str
    why: str = ""
    bytes: int | None = 0
    size: int | None = None
    url: str = ""
    facts: Facts | None = None
    error: InkstoneError | None = None
    smallest: int = 0


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
    root: Path,
    source: Source,
    progress: Progress,
    *,
    network: Network | None = None,
    jobs: int = 2,
    decompress_too: bool = False,
    update: bool = False,
    allow_shrink: bool = False,
) -> Downloaded:
    """Bring every file of `source` into the raw cache; those that are there and whole are left alone.

    With `update` the server is asked about those too, and what changed there is fetched. What was fetched before an
    error is kept and pinned. With `decompress_too` the plain files are put below `decompressed/` in the cache; no
    stage reads those.
    """
    network = network or Network()
    found = survey(root, source, network, update=update, allow_shrink=allow_shrink)
    done = fetch(root, source, found, progress, network, jobs=jobs, update=update)
    if decompress_too:
        fetched = {each.file.name for each in found if each.state != "there"}
        _decompress(done.path, list(done.names), fetched, progress)
    for each in found:
        if each.error:  # after what could be fetched was
            raise each.error
    return done


def survey(
    root: Path, source: Source, network: Network, *, update: bool = False, allow_shrink: bool = False
) -> list[Found]:
    """What there is of `source`, and what is to be fetched. Asks the server, and writes nothing.

    A file is refused that differs from its pin (unless `update`), that shrank (unless `allow_shrink`), that is lost
    upstream, or that was never there. Raises TryAgain when the server cannot be reached.
    """
    folder = cache.folder(root, source.name)
    for file in source.files:
        if why := cache.why_no_name(folder, file.name):
            raise BadConfig(f"{file.name[:100]!r} {why}", hint="choose another name")
    pinned = cache.read_lock(root, source.name)
    look = _Look(folder, network, update, allow_shrink)
    with _workers(_ASKING, network) as pool:
        return list(pool.map(lambda file: look.safely(file, pinned.get(file.name)), source.files))


@contextmanager
def _workers(count: int, network: Network) -> Iterator[ThreadPoolExecutor]:
    """Threads that end at their next piece when Ctrl-C does."""
    with ThreadPoolExecutor(max(1, count)) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            network.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Look:
    folder: Path
    network: Network
    update: bool
    allow_shrink: bool

    def safely(self, file: SourceFile, pin: RawFile | None) -> Found:
        try:
            return self._at(file, pin)
        except (UpstreamChanged, RemoteGone, NotPermitted, ProtocolBroken) as error:  # of this file: others may do
            return Found(file, "refused", error.what, error=error)

    def _at(self, file: SourceFile, pin: RawFile | None) -> Found:
        there = _is_there(self.folder, file, pin)
        if file.local:
            size = file.local.stat().st_size
            state = "there" if there else "new" if pin is None else "changed"
            return Found(file, state, "" if there else f"from {file.local}", 0 if there else size, size)
        if there and not self.update:
            return Found(file, "there", size=pin.size if pin else None)
        if pin and file.plain and pin.origin != shown(file.urls[0]):
            pin = None  # of another URL, whose file has the same name
        url, facts = self._ask(file, pin if there else None)
        if pin:
            self._guard(url, facts, pin)
        if pin and there and not (why := _difference(facts, pin)):
            return Found(file, "there", size=pin.size)
        return self._missing(file, pin, url, facts, "changed" if there else "", why if there else "")

    def _ask(self, file: SourceFile, kept: RawFile | None) -> tuple[str, Facts]:
        """The first URL that has the file, and what its server says of it."""
        with Connection(self.network, file.token) as connection:
            for url in file.urls:
                try:
                    return url, connection.facts(url)
                except RemoteGone as error:
                    gone = error
        if kept:
            raise UpstreamChanged(
                f"{file.name} is no longer there upstream ({gone.what}); the old one is kept",
                hint="go on without asking by --locked, or take it out of the source",
            )
        raise gone

    def _guard(self, url: str, facts: Facts, pin: RawFile) -> None:
        if facts.sha256 and facts.sha256 != pin.sha256 and not self.update:
            raise transfer.changed(shown(url), facts.sha256, pin.sha256)
        if facts.size is not None and facts.size < pin.size and not self.allow_shrink:
            raise transfer.shrank(shown(url), facts.size, pin.size)

    def _missing(self, file: SourceFile, pin: RawFile | None, url: str, facts: Facts, state: str, why: str) -> Found:
        target, smallest = self.folder / file.name, 0 if self.allow_shrink or not pin else pin.size
        if parts.arrived(target, facts):
            return Found(file, "damaged", "whole, but not pinned yet", 0, facts.size, url, facts)
        if not state:
            state, why = ("new", "not here yet") if pin is None else ("damaged", "missing or damaged")
        size = None if facts.size is None else facts.size - parts.durable(target, facts)
        return Found(file, state, why, size, facts.size, url, facts, smallest=smallest)


def _difference(facts: Facts, pin: RawFile) -> str:
    """How what the server says differs from what is pinned; "" where it does not, or the server does not say."""
    if facts.sha256:
        return "" if facts.sha256 == pin.sha256 else f"sha256 {pin.sha256[:8]}… → {facts.sha256[:8]}…"
    if facts.size not in (None, pin.size):
        return f"{pin.size:,} → {facts.size:,} bytes"
    return f"{pin.etag} → {facts.etag}" if facts.etag and pin.etag and facts.etag != pin.etag else ""


def fetch(
    root: Path,
    source: Source,
    found: Sequence[Found],
    progress: Progress,
    network: Network,
    *,
    jobs: int,
    update: bool = False,
) -> Downloaded:
    """Fetch and pin what the survey found missing, `jobs` files at a time. Ctrl-C ends all at their next piece."""
    folder, pinned = cache.folder(root, source.name), cache.read_lock(root, source.name)
    missing = [each for each in found if each.state not in ("there", "refused")]
    there = [each for each in found if each.state == "there"]
    names = tuple(each.file.name for each in found if not each.error)
    size = 0
    if missing or _dropped(source, pinned) or any(parts.is_remembered(folder / each.file.name) for each in there):
        if missing:
            files.require_space(folder, sum(each.bytes or 0 for each in missing) + _RESERVE)
        with locks.lock(folder / ".lock", doing=f"download {source.name}"):
            files.remove_temporaries(folder)
            pinned = cache.read_lock(root, source.name)
            for name in _dropped(source, pinned):
                del pinned[name]
                cache.write_lock(root, source.name, pinned)
            missing = [each for each in missing if not _came_meanwhile(folder, each, pinned.get(each.file.name))]
            size = _fetch_all(root, source, missing, pinned, progress, network, jobs, update)
            for each in there:
                if parts.is_remembered(folder / each.file.name):
                    parts.forget(folder / each.file.name)
    return Downloaded(source.name, folder, names, len(missing), len(names) - len(missing), size)


def _came_meanwhile(folder: Path, found: Found, pin: RawFile | None) -> bool:
    """Whether another process has fetched and pinned the file between the survey and the lock."""
    return (
        pin is not None and _is_there(folder, found.file, pin) and not (found.facts and _difference(found.facts, pin))
    )


def _dropped(source: Source, pinned: Mapping[str, RawFile]) -> set[str]:
    """Files that left the folder that the source is: they are no longer part of it."""
    ours = all(file.local for file in source.files)
    return pinned.keys() - {file.name for file in source.files} if ours else set()


def _fetch_all(
    root: Path,
    source: Source,
    missing: list[Found],
    pinned: dict[str, RawFile],
    progress: Progress,
    network: Network,
    jobs: int,
    update: bool,
) -> int:
    """Fetch and pin files; their bytes. `pinned` is what was there before, to which they are added."""
    folder = cache.folder(root, source.name)
    pinning = threading.Lock()

    def fetch_one(found: Found) -> int:
        name, target = found.file.name, folder / found.file.name
        made = _fetch_file(found, target, pinned.get(name) if not update else None, network, advance)
        with pinning:
            pinned[name] = made
            cache.write_lock(root, source.name, pinned)
        parts.forget(target)
        if found.facts and not found.facts.sha256:
            progress.note(f"{name}: no hash is published; it is pinned as it came ({made.sha256[:12]}…)")
        return made.size

    sizes = [each.bytes for each in missing]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    with progress.bar(f"download {source.name}", total) as advance, _workers(jobs, network) as pool:
        return sum(pool.map(fetch_one, missing))


def _fetch_file(found: Found, target: Path, pin: RawFile | None, network: Network, advance: Advance) -> RawFile:
    file = found.file
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.local:
        return _copy(file, file.local, target, network, advance)
    assert found.facts
    origin = shown(found.url)
    kept = pin if pin and not (file.plain and pin.origin != origin) else None
    if sha256 := parts.arrived(target, found.facts):
        done = transfer.Fetched(target.stat().st_size, sha256, found.facts)
    else:
        done = transfer.fetch(
            found.url,
            file.token,
            found.facts,
            target,
            network,
            advance,
            pinned=kept.sha256 if kept else "",
            smallest=found.smallest,
        )
    facts = done.facts
    return RawFile(done.size, done.sha256, target.stat().st_mtime_ns, origin, file.split, facts.etag, facts.commit)


def _copy(file: SourceFile, local: Path, target: Path, network: Network, advance: Advance) -> RawFile:
    origin = _origin(local)
    with files.new_file(target) as out, open(local, "rb") as original:
        while block := original.read(_CHUNK):
            network.check(str(local))
            out.write(block)
            advance(len(block))
    return RawFile(out.size, out.sha256, target.stat().st_mtime_ns, origin, file.split)


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
    """(name, origin, whether it is there and whole) of each file, without asking a server: what --dry-run shows."""
    pinned = cache.read_lock(root, source.name)
    folder = cache.folder(root, source.name)
    rows = []
    for file in source.files:
        origin = str(file.local) if file.local else shown(file.urls[0])
        rows.append((file.name, origin, _is_there(folder, file, pinned.get(file.name))))
    return rows


def _is_there(folder: Path, file: SourceFile, pin: RawFile | None) -> bool:
    if pin is None or not cache.is_whole(folder / file.name, pin):
        return False
    if file.local:
        return pin.origin == _origin(file.local)
    return not file.plain or pin.origin == shown(file.urls[0])


def _origin(local: Path) -> str:
    """What tells whether a local file is another one, or was changed, since it was copied."""
    status = local.stat()
    return f"{local.resolve()}:{status.st_size}:{status.st_mtime_ns}"
