"""The download stage: fetch a source's files into the raw cache and pin their content.

`check_upstream` compares each file with its pin and, if necessary, with the server. `fetch_missing` downloads the
missing ones, each completely or not at all. A file without a published hash is pinned with the hash of its first
download. If a pinned file changes upstream, it is an error, or the new file is fetched with `update`. A file that
shrank or is gone upstream never replaces the cached one without an explicit option. The same holds for local files
(local.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadConfig, InkstoneError, NotPermitted, ProtocolBroken, RemoteGone, UpstreamChanged
from pipeline.runtime.progress import Advance, Progress
from pipeline.runtime.redaction import redact_url
from pipeline.sources import cache, decompress, hashes, hub, local, origin, partial, transfer
from pipeline.sources.cache import RawFile
from pipeline.sources.catalogue import Source, SourceFile
from pipeline.sources.hashes import Stamp
from pipeline.sources.http import HTTPClient, Network, RemoteFile
from pipeline.store import files, locks

_SURVEY_THREADS = 8


@dataclass(frozen=True)
class FileStatus:
    """Status of one file: `state` is "there", "new", "changed", "damaged" or "refused" (see `error`).

    `bytes` is the number of bytes still to fetch (None: the server sends no size), `size` the size of the file, and
    `smallest` the minimum size that is accepted. `url` and `remote` describe where to fetch it; a local file has none.
    """

    file: SourceFile
    state: str
    reason: str = ""
    bytes: int | None = 0
    size: int | None = None
    url: str = ""
    remote: RemoteFile | None = None
    error: InkstoneError | None = None
    smallest: int = 0


@dataclass(frozen=True)
class DownloadResult:
    """Result for a source: how many of its files were fetched, how many were unchanged, and the bytes fetched."""

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
) -> DownloadResult:
    """Fetch every file of `source` that is missing or damaged in the raw cache.

    With `update` the other files are compared with the server too, and changed ones are fetched. Files fetched before
    an error are pinned. With `decompress_too` the plain files are written below `decompressed/` in the cache; no stage
    reads those.
    """
    network = network or Network()
    source = hub.list_source(root, origin.with_folder(root, source), network, progress, update=update)
    statuses = check_upstream(root, source, network, update=update, allow_shrink=allow_shrink)
    result = fetch_missing(root, source, statuses, progress, network, jobs=jobs, update=update)
    if decompress_too:
        fetched = {status.file.name for status in statuses if status.state != "there"}
        _decompress(result.path, list(result.names), fetched, progress)
    for status in statuses:
        if status.error:  # raised last, after the other files were fetched
            raise status.error
    return result


def check_upstream(
    root: Path, source: Source, network: Network, *, update: bool = False, allow_shrink: bool = False
) -> list[FileStatus]:
    """Return the status of each file of `source`, which is listed already. Sends requests and downloads nothing.

    A file is refused if it differs from its pin (unless `update`), shrank (unless `allow_shrink`), or is not on the
    server. A local file is refused if it lost text (unless `allow_shrink`). Raises TryAgain if the server cannot be
    reached, BadConfig for a name that the cache cannot store.
    """
    folder = cache.source_folder(root, source.name)
    for file in source.files:
        if problem := cache.name_problem(folder, file.name):
            raise BadConfig(f"{file.name[:100]!r} {problem}", hint="choose another name")
    pinned = cache.read_lock_file(root, source.name)
    hashed = local.digests(root, source, pinned)
    surveyor = _Surveyor(folder, network, update, allow_shrink, hashed)
    with _thread_pool(_SURVEY_THREADS, network) as pool:
        statuses = list(pool.map(lambda file: surveyor.status(file, pinned.get(file.name)), source.files))
    if source.dataset and not allow_shrink:
        statuses += [_gone(name, str(source.dataset)) for name in hub.removed_names(source, pinned)]
    if not allow_shrink and (lost := local.lost_files(source, pinned, hashed)):
        error = local.lost_error(lost)
        statuses = [status for status in statuses if status.file.name not in lost]
        statuses += [FileStatus(SourceFile(name), "refused", lost[name], error=error) for name in lost]
    return statuses


def _gone(name: str, dataset: str) -> FileStatus:
    """Return the status of a pinned file that a dataset no longer has."""
    error = UpstreamChanged(
        f"{name} was removed from {dataset}; the old file is kept",
        hint="use the old files with --locked, or leave this one out with --allow-shrink",
    )
    return FileStatus(SourceFile(name), "refused", error.message, error=error)


@contextmanager
def _thread_pool(count: int, network: Network) -> Iterator[ThreadPoolExecutor]:
    """Pool of threads that stop at their next piece of data on Ctrl-C."""
    with ThreadPoolExecutor(max(1, count)) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            network.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Surveyor:
    folder: Path
    network: Network
    update: bool
    allow_shrink: bool
    digests: Mapping[str, str]  # of local files, by name

    def status(self, file: SourceFile, pin: RawFile | None) -> FileStatus:
        try:
            return self._status(file, pin)
        except (UpstreamChanged, RemoteGone, NotPermitted, ProtocolBroken) as error:  # concerns this file only
            return FileStatus(file, "refused", error.message, error=error)

    def _status(self, file: SourceFile, pin: RawFile | None) -> FileStatus:
        is_cached = _is_cached(self.folder, file, pin, self.digests)
        if file.local:
            size = file.local.stat().st_size
            if is_cached:
                return FileStatus(file, "there", size=size)
            return FileStatus(file, "new" if pin is None else "changed", f"from {file.local}", size, size)
        if is_cached and not self.update:
            return FileStatus(file, "there", size=pin.size if pin else None)
        if pin and file.is_bare_url and pin.origin != redact_url(file.urls[0]):
            pin = None  # of a file with the same name at another URL
        url, remote = self._describe(file, pin if is_cached else None)
        if pin:
            self._check_pin(url, remote, pin)
        if not (pin and is_cached):
            return self._missing(file, pin, url, remote)
        if difference := _difference(remote, pin):
            return self._missing(file, pin, url, remote, state="changed", reason=difference)
        return FileStatus(file, "there", size=pin.size)

    def _describe(self, file: SourceFile, cached: RawFile | None) -> tuple[str, RemoteFile]:
        """Return the first URL that has the file, and its metadata: as listed, or else as the server describes it."""
        if file.sha256:
            return file.urls[0], RemoteFile(file.urls[0], file.size, file.sha256, commit=file.commit)
        with HTTPClient(self.network, file.token) as client:
            for url in file.urls:
                try:
                    return url, client.describe(url)
                except RemoteGone as error:
                    last_error = error
        if cached:
            raise UpstreamChanged(
                f"{file.name} was removed upstream ({last_error.message}); the old file is kept",
                hint="use the old file with --locked, or remove it from the source",
            )
        raise last_error

    def _check_pin(self, url: str, remote: RemoteFile, pin: RawFile) -> None:
        if remote.sha256 and remote.sha256 != pin.sha256 and not self.update:
            raise transfer.changed(redact_url(url), remote.sha256, pin.sha256)
        if remote.size is not None and remote.size < pin.size and not self.allow_shrink:
            raise transfer.shrank(redact_url(url), remote.size, pin.size)

    def _missing(
        self, file: SourceFile, pin: RawFile | None, url: str, remote: RemoteFile, state: str = "", reason: str = ""
    ) -> FileStatus:
        target, smallest = self.folder / file.name, 0 if self.allow_shrink or not pin else pin.size
        if partial.finished_sha256(target, remote):
            return FileStatus(file, "damaged", "complete, but not pinned yet", 0, remote.size, url, remote)
        if not state:
            state, reason = ("new", "not downloaded yet") if pin is None else ("damaged", "missing or damaged")
        size = None if remote.size is None else remote.size - partial.resumable_size(target, remote)
        return FileStatus(file, state, reason, size, remote.size, url, remote, smallest=smallest)


def _difference(remote: RemoteFile, pin: RawFile) -> str:
    """Return how the server's metadata differs from the pin, or "" if it does not, or if nothing can be compared."""
    if remote.sha256:
        return "" if remote.sha256 == pin.sha256 else f"sha256 {pin.sha256[:8]}… → {remote.sha256[:8]}…"
    if remote.size not in (None, pin.size):
        return f"{pin.size:,} → {remote.size:,} bytes"
    return f"{pin.etag} → {remote.etag}" if remote.etag and pin.etag and remote.etag != pin.etag else ""


def fetch_missing(
    root: Path,
    source: Source,
    statuses: Sequence[FileStatus],
    progress: Progress,
    network: Network,
    *,
    jobs: int,
    update: bool = False,
) -> DownloadResult:
    """Fetch and pin the files that `check_upstream` found missing, `jobs` at a time. Ctrl-C stops all of them.

    Pins of files that a local folder or a dataset no longer has are removed from its lock file, unless `statuses`
    refuse these files. The result names the folder of the raw cache: it is another one if another source claimed the
    folder since `check_upstream`.
    """
    folder, pinned = cache.source_folder(root, source.name), cache.read_lock_file(root, source.name)
    missing = [status for status in statuses if status.state not in ("there", "refused")]
    cached = [folder / status.file.name for status in statuses if status.state == "there"]
    names = tuple(status.file.name for status in statuses if not status.error)
    size = 0
    listed = {status.file.name for status in statuses}
    removed = [name for name in hub.removed_names(source, pinned) if name not in listed]
    if missing or removed or any(partial.has_leftover_state(path) for path in cached):
        source = origin.claim_folder(root, source, progress)
        folder = cache.source_folder(root, source.name)
        if missing:
            files.require_space(folder, sum(status.bytes or 0 for status in missing) + partial.RESERVE)
        with locks.lock(folder / ".lock", action=f"download {source.name}"):
            files.remove_temporaries(folder)
            pinned = cache.read_lock_file(root, source.name)
            hub.store_listing(root, source)
            for name in removed:
                pinned.pop(name, None)
            if removed:
                cache.write_lock_file(root, source.name, pinned)
            hashed = local.digests(root, source, pinned)
            missing = [status for status in missing if not _is_fetched(folder, status, pinned, hashed)]
            size = _fetch_all(root, source, missing, pinned, progress, network, jobs, update)
            for path in cached:
                if partial.has_leftover_state(path):
                    partial.delete_state(path)
    return DownloadResult(source.name, folder, names, len(missing), len(names) - len(missing), size)


def _is_fetched(folder: Path, status: FileStatus, pinned: Mapping[str, RawFile], digests: Mapping[str, str]) -> bool:
    """Return True if another process fetched and pinned the file between `check_upstream` and the lock."""
    pin = pinned.get(status.file.name)
    return (
        pin is not None
        and _is_cached(folder, status.file, pin, digests)
        and not (status.remote and _difference(status.remote, pin))
    )


def _fetch_all(
    root: Path,
    source: Source,
    missing: list[FileStatus],
    pinned: dict[str, RawFile],
    progress: Progress,
    network: Network,
    jobs: int,
    update: bool,
) -> int:
    """Fetch files, add them to the existing pins in `pinned`, and return the bytes of all."""
    folder = cache.source_folder(root, source.name)
    pins = cache.PinWriter(root, source.name, pinned)
    hashed: dict[Path, tuple[Stamp, str]] = {}

    def fetch_one(status: FileStatus) -> int:
        name, target = status.file.name, folder / status.file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if original := status.file.local:
            raw_file, stamp = local.copy(status.file, original, target, status.size, network, advance)
            hashed[original] = stamp, raw_file.sha256
        else:
            raw_file = _fetch_file(status, target, pinned.get(name) if not update else None, network, advance)
        pins.add(name, raw_file)
        return raw_file.size

    sizes = [status.bytes for status in missing]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    try:
        with progress.bar(f"download {source.name}", total) as advance, _thread_pool(jobs, network) as pool:
            return sum(pool.map(fetch_one, missing))
    finally:
        pins.write()
        hashes.store_hashes(root, hashed)
        unpublished = [status.file.name for status in missing if status.remote and not status.remote.sha256]
        _note_unpublished([name for name in unpublished if name in pins.added], pinned, progress)


def _note_unpublished(names: Sequence[str], pinned: Mapping[str, RawFile], progress: Progress) -> None:
    """Report in one line the files that were pinned by the hash of this download."""
    if len(names) == 1:
        (name,) = names
        digest = pinned[name].sha256[:12]
        progress.note(f"{name}: the server publishes no hash; pinned the sha256 of this download ({digest}…)")
    elif names:
        progress.note(f"{len(names):,} files: the server publishes no hashes; pinned the sha256 of this download")


def _fetch_file(status: FileStatus, target: Path, pin: RawFile | None, network: Network, advance: Advance) -> RawFile:
    file = status.file
    assert status.remote
    url = redact_url(status.url)
    if pin and file.is_bare_url and pin.origin != url:
        pin = None  # of a file with the same name at another URL
    if sha256 := partial.finished_sha256(target, status.remote):
        fetched = transfer.Fetched(target.stat().st_size, sha256, status.remote)
    else:
        fetched = transfer.fetch(
            status.url,
            file.token,
            status.remote,
            target,
            network,
            advance,
            pinned=pin.sha256 if pin else "",
            smallest=status.smallest,
        )
    remote, mtime_ns = fetched.remote, target.stat().st_mtime_ns
    return RawFile(fetched.size, fetched.sha256, mtime_ns, url, file.split, remote.etag, remote.commit, file.members)


def _decompress(folder: Path, names: list[str], fetched: set[str], progress: Progress) -> None:
    for name in names:
        if not name.endswith(decompress.COMPRESSED):
            continue
        target = (folder / "decompressed" / name).with_suffix("")
        if name in fetched:
            target.unlink(missing_ok=True)  # it is of the previous file
        if not target.exists():
            decompress.decompress([folder / name], target.parent, progress)


def list_files(root: Path, source: Source) -> Sequence[tuple[str, str, bool]]:
    """Return (name, origin, is_cached) of each file without sending a request, for --dry-run."""
    pinned = cache.read_lock_file(root, source.name)
    folder = cache.source_folder(root, source.name)
    hashed = local.digests(root, source, pinned)
    rows = []
    for file in source.files:
        shown = str(file.local) if file.local else redact_url(file.urls[0])
        rows.append((file.name, shown, _is_cached(folder, file, pinned.get(file.name), hashed)))
    return rows


def _is_cached(folder: Path, file: SourceFile, pin: RawFile | None, digests: Mapping[str, str]) -> bool:
    """Return True if the file is in the cache, intact, and from the same origin."""
    if pin is None or not cache.is_intact(folder / file.name, pin):
        return False
    if file.local:
        return digests.get(file.name) == pin.sha256 and origin.is_copy_of(pin, file.local)
    return not file.is_bare_url or pin.origin == redact_url(file.urls[0])
