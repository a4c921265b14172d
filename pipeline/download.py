"""The download stage: verified transfer of a source's files into the raw cache.

A file appears under its name only when it is whole: its size is the one that was announced, its sha256 the one that
is known, and a `.zst` begins like one. A transfer that breaks goes on at the byte where it stopped. What a source
does not publish a hash for is pinned in `sources.lock.json` as it came the first time.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3

from pipeline import files, raw
from pipeline.documents import ZSTD_MAGIC
from pipeline.errors import (
    BadConfig,
    BadData,
    NotPermitted,
    ProtocolBroken,
    RemoteGone,
    TryAgain,
)
from pipeline.progress import Advance, Progress
from pipeline.sources import Source, SourceFile

ATTEMPTS = 5  # in a row without a new byte
_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer
_CHUNK = 1 << 20
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


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


def download(root: Path, source: Source, progress: Progress, *, jobs: int = 2) -> Downloaded:
    """Bring every file of `source` into the raw cache; those that are there and whole are left alone.

    What was fetched before an error is kept and pinned, so the next run does not fetch it again.
    """
    folder = raw.folder(root, source.name)
    for file in source.files:
        if not (folder / file.name).resolve().is_relative_to(folder.resolve()):
            raise BadConfig(f"{file.name!r} leads out of the cache", hint="choose another name")
    with files.lock(folder / ".lock", doing=f"download {source.name}"):
        pinned = raw.read_lock(root, source.name)
        missing = [file for file in source.files if not _is_there(folder, file, pinned)]
        known = sum(file.local.stat().st_size for file in missing if file.local)
        files.require_space(folder, known)
        pinning = threading.Lock()

        def fetch(file: SourceFile) -> int:
            pin = _fetch(file, folder / file.name, pinned.get(file.name), advance)
            with pinning:
                pinned[file.name] = pin
                raw.write_lock(root, source.name, pinned)
            return pin.size

        if missing:
            total = known if all(file.local for file in missing) else None
            with progress.bar(f"download {source.name}", total) as advance, ThreadPoolExecutor(max(1, jobs)) as pool:
                size = sum(pool.map(fetch, missing))
        else:
            size = 0
    names = tuple(file.name for file in source.files)
    return Downloaded(source.name, folder, names, len(missing), len(names) - len(missing), size)


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
    return file.local is None or pin.origin == _origin(file.local)


def _origin(local: Path) -> str:
    """What tells whether a local file was changed since it was copied. Its path may move with the machine."""
    status = local.stat()
    return f"local:{status.st_size}:{status.st_mtime_ns}"


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
            origin = _fetch_first_that_exists(file, out, pin, advance)
    return raw.RawFile(out.size, out.sha256, target.stat().st_mtime_ns, origin, file.split)


def _fetch_first_that_exists(
    file: SourceFile, out: files.HashingFile, pin: raw.RawFile | None, advance: Advance
) -> str:
    with requests.Session() as session:
        session.trust_env = False  # no credentials from .netrc; proxies are passed on explicitly below
        session.headers["Accept-Encoding"] = "identity"  # the bytes as they are stored: they are what is hashed
        for url in file.urls:
            try:
                _fetch_url(session, url, file, out, pin, advance)
                return url
            except RemoteGone as error:
                gone = error
    raise gone


def _fetch_url(
    session: requests.Session,
    url: str,
    file: SourceFile,
    out: files.HashingFile,
    pin: raw.RawFile | None,
    advance: Advance,
) -> None:
    """Fetch one URL into `out`, going on after every break, until it is whole or `ATTEMPTS` brought nothing."""
    headers = {"Authorization": f"Bearer {file.token}"} if file.token else {}
    proxies = requests.utils.get_environ_proxies(url, no_proxy=None)
    barren, mismatches = 0, 0
    while True:
        before = out.size
        if out.size:
            headers["Range"] = f"bytes={out.size}-"
        else:
            headers.pop("Range", None)
        try:
            with session.get(url, headers=headers, proxies=proxies, stream=True, timeout=_TIMEOUT) as answer:
                size, sha256 = _receive(answer, file, out, advance)
            if size is None or out.size == size:
                wanted = sha256 or (pin.sha256 if pin else "")
                if not wanted or out.sha256 == wanted:
                    return
                mismatches += 1
                if mismatches == 2:
                    raise BadData(
                        f"{url}: sha256 {out.sha256[:12]}… where {wanted[:12]}… was promised, twice",
                        hint="try another --mirror; nothing was kept",
                    )
                out.restart()
                continue
            problem = f"{out.size:,} of {size:,} bytes came"
        except (requests.RequestException, urllib3.exceptions.HTTPError, _Retry) as error:
            problem = _short(error)
        barren = 0 if out.size > before else barren + 1
        if barren >= ATTEMPTS:
            raise TryAgain(f"{url}: {problem}", hint="check the network or give a --mirror, then run it again")
        time.sleep(min(0.2 * 2**barren, 10.0))


class _Retry(Exception):
    """An answer that may be better the next time."""


def _receive(
    answer: requests.Response, file: SourceFile, out: files.HashingFile, advance: Advance
) -> tuple[int | None, str]:
    """Write the answer's bytes to `out`; return the size and sha256 that the server promised (None, "": it did not)."""
    _check_status(answer, file)
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise ProtocolBroken(f"{answer.url}: the server compresses on the way", hint="try another --mirror")
    start = 0
    if answer.status_code == 206:
        span = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        start = int(span[1]) if span else -1
    if start != out.size:
        out.restart()
        if answer.status_code == 206:
            raise _Retry("the server answered with another range than was asked for")
    promised = answer.headers.get("Content-Length")
    size = start + int(promised) if promised and promised.isdigit() else None
    sha256 = ""
    for hop in (*answer.history, answer):  # the hub says what a file is before it redirects to where it lies
        if (linked := hop.headers.get("X-Linked-Size", "")).isdigit():
            size = int(linked)
        if re.fullmatch(r'"?[0-9a-f]{64}"?', etag := hop.headers.get("X-Linked-Etag", "")):
            sha256 = etag.strip('"')
    for piece in answer.raw.stream(_CHUNK, decode_content=False):
        if out.size == 0 and file.name.endswith(".zst") and not piece.startswith(ZSTD_MAGIC):
            raise TryAgain(
                f"{answer.url}: the answer is not a zstd file (it begins {piece[:16]!r})",
                hint="a login page of the network, or a wrong --mirror?",
            )
        out.write(piece)
        advance(len(piece))
    return size, sha256


def _check_status(answer: requests.Response, file: SourceFile) -> None:
    status = answer.status_code
    if status in (200, 206):
        return
    if status in (404, 410):
        raise RemoteGone(f"{answer.url}: the server has no such file ({status})", hint="check the name or the --mirror")
    if status in (401, 403):
        raise NotPermitted(f"{answer.url}: not permitted ({status})", hint="set HF_TOKEN, or try another --mirror")
    if status in _RETRY_STATUS or status == 416:
        wait = answer.headers.get("Retry-After", "")
        time.sleep(min(int(wait), 60) if wait.isdigit() else 0)
        raise _Retry(f"the server answered {status}")
    raise ProtocolBroken(f"{answer.url}: the server answered {status}", hint="try another --mirror")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
