"""One file over HTTP, verified: the bytes that were promised, or an error.

A transfer that breaks goes on at the byte where it stopped, as long as the server still has the same file. Whole
means: the announced size came, the sha256 is the one that was promised or pinned, and a `.zst` begins like one, and
ends like one where the server announced neither size nor hash.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3

from pipeline import compression
from pipeline.compression import ZSTD_MAGIC
from pipeline.errors import BadData, NotPermitted, ProtocolBroken, RemoteGone, TryAgain, UpstreamChanged
from pipeline.files import HashingFile
from pipeline.progress import Advance
from pipeline.sources import SourceFile

ATTEMPTS = 5  # in a row without a new byte
_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer
_CHUNK = 1 << 20
_RETRY_STATUS = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
_MAX_WAIT = 60  # seconds, however long a server asks to wait
_PERMANENT = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidHeader,
    requests.exceptions.MissingSchema,
    requests.exceptions.TooManyRedirects,
)


@dataclass(frozen=True)
class _Promise:
    """What a server says of a file: its size (None: nothing), sha256 and strong ETag ("": nothing)."""

    size: int | None
    sha256: str
    etag: str


class _Retry(Exception):
    """An answer that may be better the next time."""


def fetch(file: SourceFile, out: HashingFile, pinned: str, advance: Advance) -> str:
    """Write the bytes of `file` to `out` from the first of its URLs that has it; returns that URL.

    `pinned` is the sha256 that the file had before, or "". Raises UpstreamChanged when it has another one now.
    """
    with requests.Session() as session:
        session.trust_env = False  # no credentials from .netrc; proxies are passed on explicitly
        session.headers["Accept-Encoding"] = "identity"  # the bytes as they are stored: they are what is hashed
        if file.token:
            session.headers["Authorization"] = f"Bearer {file.token}"  # requests drops it when the host changes
        for url in file.urls:
            try:
                _Transfer(session, url, file, out, pinned, advance).run()
                return without_credentials(url)
            except RemoteGone as error:
                gone = error
    raise gone


def without_credentials(url: str) -> str:
    """`url` as it may be shown and stored: without a user and password in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class _Transfer:
    def __init__(
        self, session: requests.Session, url: str, file: SourceFile, out: HashingFile, pinned: str, advance: Advance
    ) -> None:
        self._session, self._url, self._file, self._out = session, url, file, out
        self._pinned, self._advance = pinned, advance
        self._shown = without_credentials(url)
        self._proxies = requests.utils.get_environ_proxies(url, no_proxy=None)
        self._promise: _Promise | None = None
        self._mismatches = 0

    def run(self) -> None:
        """Go on after every break, until the file is whole or `ATTEMPTS` in a row brought nothing."""
        barren = 0
        while True:
            before = self._out.size
            try:
                with self._ask() as answer:
                    self._receive(answer)
                if self._is_whole():
                    return
                problem = "the file came damaged"
            except _PERMANENT as error:
                raise ProtocolBroken(f"{self._shown}: {self._short(error)}", hint="check the URL or --mirror") from None
            except (requests.RequestException, urllib3.exceptions.HTTPError, _Retry) as error:
                problem = self._short(error)
            barren = 0 if self._out.size > before else barren + 1
            if barren >= ATTEMPTS:
                raise TryAgain(
                    f"{self._shown}: {problem}", hint="check the network or give a --mirror, then run it again"
                )
            time.sleep(min(0.2 * 2**barren, 10.0))

    def _ask(self) -> requests.Response:
        headers = {}
        if self._out.size:
            headers["Range"] = f"bytes={self._out.size}-"
            if self._promise and self._promise.etag and not self._promise.sha256:
                headers["If-Range"] = self._promise.etag  # where the hash is known, it is the identity
        return self._session.get(self._url, headers=headers, proxies=self._proxies, stream=True, timeout=_TIMEOUT)

    def _receive(self, answer: requests.Response) -> None:
        """Write the answer's bytes to `out`, from its beginning or where they stopped."""
        self._check_status(answer)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise ProtocolBroken(f"{self._shown}: the server compresses on the way", hint="try another --mirror")
        start = 0
        if answer.status_code == 206:
            span = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            start = int(span[1]) if span else -1
        promise = _promise(answer, start)
        if start != self._out.size or (self._promise and promise != self._promise):
            self._out.restart()
            self._promise = None
            if answer.status_code == 206:
                raise _Retry("the server answered with another range, or the file changed meanwhile")
        self._promise = promise
        if self._pinned and promise.sha256 and promise.sha256 != self._pinned:
            self._refuse_change(promise.sha256)
        head = b""
        for piece in answer.raw.stream(_CHUNK, decode_content=False):
            if self._out.size == 0 and self._file.name.endswith(".zst"):
                head += piece
                if len(head) < len(ZSTD_MAGIC):
                    continue
                self._check_magic(head)
                piece, head = head, b""
            self._out.write(piece)
            self._advance(len(piece))
        if self._out.size == 0 and self._file.name.endswith(".zst"):
            self._check_magic(head)

    def _is_whole(self) -> bool:
        """Whether `out` is the file that was promised. False asks for another try, with `out` emptied."""
        out, promise = self._out, self._promise
        assert promise
        if promise.size is not None and out.size != promise.size:
            raise _Retry(f"{out.size:,} of {promise.size:,} bytes came")
        wanted = promise.sha256 or self._pinned
        if wanted and out.sha256 != wanted:
            self._mismatches += 1
            if self._mismatches < 2:
                out.restart()
                return False
            if not promise.sha256:
                self._refuse_change(out.sha256)
            raise BadData(
                f"{self._shown}: sha256 {out.sha256[:12]}… where {wanted[:12]}… was promised, twice",
                hint="try another --mirror; nothing was kept",
            )
        if promise.size is None and not wanted and self._file.name.endswith(".zst"):
            try:
                compression.check_zstd(out.flushed())
            except BadData:
                raise _Retry(f"the answer ended inside a zstd frame, after {out.size:,} bytes") from None
        return True

    def _refuse_change(self, sha256: str) -> None:
        raise UpstreamChanged(
            f"{self._shown}: sha256 {sha256[:12]}… now, {self._pinned[:12]}… when it was pinned",
            hint="to accept the new file, delete its entry in sources.lock.json",
        )

    def _check_magic(self, head: bytes) -> None:
        if not compression.begins_zstd(head):
            raise TryAgain(
                f"{self._shown}: the answer is not a zstd file (it begins {head[:16]!r})",
                hint="a login page of the network, or a wrong --mirror?",
            )

    def _check_status(self, answer: requests.Response) -> None:
        status = answer.status_code
        if status in (200, 206):
            return
        if status in (404, 410):
            raise RemoteGone(f"{self._shown}: no such file there ({status})", hint="check the name or the --mirror")
        if status in (401, 403):
            raise NotPermitted(f"{self._shown}: not permitted ({status})", hint="set HF_TOKEN, or try another --mirror")
        if status in _RETRY_STATUS:
            if status == 416:
                self._out.restart()
            wait = answer.headers.get("Retry-After", "")
            time.sleep(min(int(wait), _MAX_WAIT) if wait.isdigit() else 0)
            raise _Retry(f"the server answered {status}")
        raise ProtocolBroken(f"{self._shown}: the server answered {status}", hint="try another --mirror")

    def _short(self, error: Exception) -> str:
        """The error in a line, with nothing in it that is secret."""
        if isinstance(error, requests.exceptions.InvalidHeader):
            return "HF_TOKEN is not a token"
        if isinstance(error, requests.exceptions.ConnectionError) and "read" not in str(error).lower():
            return f"no connection to {urlsplit(self._url).netloc.rpartition('@')[2]}"
        return " ".join(str(error).replace(self._url, self._shown).split())[:200] or type(error).__name__


def _promise(answer: requests.Response, start: int) -> _Promise:
    """What the answer, or a redirect on the way to it, says of the whole file.

    The hub says size and sha256 in the answer that redirects to where the bytes lie.
    """
    length = answer.headers.get("Content-Length", "")
    size = start + int(length) if length.isdigit() else None
    sha256 = ""
    for hop in (*answer.history, answer):
        if (linked := hop.headers.get("X-Linked-Size", "")).isdigit():
            size = int(linked)
        if re.fullmatch(r'"?[0-9a-f]{64}"?', etag := hop.headers.get("X-Linked-Etag", "")):
            sha256 = etag.strip('"')
    etag = answer.headers.get("ETag", "")
    return _Promise(size, sha256, etag if etag.startswith('"') else "")
