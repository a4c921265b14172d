"""Download one file over HTTP and verify it; resume where an earlier process stopped.

A file is complete if it has the announced size, and verified if its sha256 is the published or pinned one. If the
server announces neither, a `.zst` must end at the end of a frame. `partial.py` holds the bytes received until then.
docs/design/reliability.md, 3.4.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from pipeline.errors import BadData, ProtocolBroken, TryAgain, UpstreamChanged
from pipeline.readers import compression
from pipeline.readers.compression import ZSTD_MAGIC
from pipeline.runtime.progress import Advance
from pipeline.runtime.redaction import redact_url
from pipeline.sources.http import (
    TRANSIENT,
    HTTPClient,
    Network,
    RemoteFile,
    Retry,
    RetryPolicy,
    Stalled,
    forbidden,
    not_found,
    parse_count,
    published_sha256,
    raise_if_busy,
    raise_if_page,
    wrong_content,
)
from pipeline.sources.partial import QUARANTINE, PartialFile, part_path
from pipeline.sources.pointers import refuse_pointer
from pipeline.store import files

DURABLE_EVERY = 256 << 20  # bytes that a power cut can lose
_CHUNK = 1 << 20
_SLOW_BYTES, _SLOW_SECONDS = 30 << 10, 30.0  # a response with fewer bytes in that time counts as stalled
_MAX_REPLACEMENTS = 3  # times that a file may change during the download
_TRY_MIRROR = "try another --mirror"


class _ReplacedError(Exception):
    """The server sends a different file than it described."""


@dataclass(frozen=True)
class Fetched:
    """A complete file, and the metadata with which it was fetched."""

    size: int
    sha256: str
    remote: RemoteFile


def fetch(
    url: str,
    token: str,
    remote: RemoteFile,
    target: Path,
    network: Network,
    advance: Advance,
    *,
    pinned: str = "",
    smallest: int = 0,
) -> Fetched:
    """Download the file at `url`, which the server described as `remote`, to `target`.

    `pinned` is its expected sha256, or "", and `smallest` its minimum size in bytes. After pinning the result, call
    `partial.delete_state`. Raises UpstreamChanged if the file differs from the pin or is smaller, BadData if the
    content differs twice from what the server published or is a pointer in the place of a file, TryAgain if a later
    attempt may succeed, ProtocolBroken if the server violates the protocol.
    """
    with HTTPClient(network, token) as client, files.open_partial(part_path(target)) as out:
        part = PartialFile(target, out)
        fetched = _Transfer(client, url, remote, target, part, network, advance, pinned, smallest).run()
        refuse_pointer(url, part)
        out.publish(target)
    return fetched


class _Transfer:
    """One download: request the missing bytes until the part is complete and verified.

    Each turn of the loop in `run` makes one request, in `_receive`. It ends with the bytes received, or with one of
    these exceptions:

        TRANSIENT, Retry     wait, then request the rest
        _ReplacedError       describe the file again, then start over
        any InkstoneError    give up; the part is kept if it can be resumed
    """

    def __init__(
        self,
        client: HTTPClient,
        url: str,
        remote: RemoteFile,
        target: Path,
        part: PartialFile,
        network: Network,
        advance: Advance,
        pinned: str,
        smallest: int,
    ) -> None:
        self._client, self._network, self._advance = client, network, advance
        self._url, self._shown_url, self._remote = url, redact_url(url), remote
        self._part, self._is_zstd = part, target.suffix == ".zst"
        self._pinned, self._smallest = pinned, smallest
        self._has_ended = False  # True after a complete response of unannounced length
        self._progress_size = 0  # size of the part when the retries were last reset
        self._violations = self._replacements = self._mismatches = 0

    def run(self) -> Fetched:
        """Make requests until the file is complete and verified, or no retry can succeed."""
        self._part.resume(self._remote)
        self._progress_size = self._part.size
        retries = RetryPolicy(self._network, self._url)
        try:
            while True:
                # First, because the deadline may have ended the last response.
                self._network.raise_if_stopped(self._shown_url)
                try:
                    if self._is_complete() and self._is_verified():
                        return self._finish()
                    self._receive()
                except _ReplacedError:
                    self._start_over()
                except (*TRANSIENT, Retry) as error:
                    if self._part.size - self._progress_size >= self._least_progress():
                        self._progress_size = self._part.size
                        retries.reset()
                    retries.wait(error)
        except OSError:  # of the disk: only the bytes that were durable before count
            raise
        except BaseException:
            if self._remote.can_resume:
                self._part.save(self._remote)
            else:
                self._truncate()
            raise

    def _least_progress(self) -> int:
        """Return the number of new bytes that reset the retries; with fewer, a very slow server is retried forever."""
        return max(1, min(_SLOW_BYTES, (self._remote.size or _SLOW_BYTES) // 4))

    def _finish(self) -> Fetched:
        if self._part.size < self._smallest:
            raise shrank(self._shown_url, self._part.size, self._smallest)
        if not self._remote.sha256 and self._remote.can_resume:
            self._part.save(self._remote, self._part.sha256)  # for a process that ends between publishing and pinning
        return Fetched(self._part.size, self._part.sha256, self._remote)

    def _truncate(self, size: int = 0) -> None:
        self._part.truncate(size)
        self._has_ended = False

    def _start_over(self) -> None:
        """After the file was replaced: describe the new one and fetch it, unless another one is pinned."""
        self._replacements += 1
        if self._replacements > _MAX_REPLACEMENTS:
            raise TryAgain(
                f"{self._shown_url}: the file keeps changing during the download", hint="run the same command later"
            )
        old, self._progress_size = self._remote, 0
        self._remote = self._client.describe(self._url)
        self._refuse_change(self._remote.sha256)
        is_same_commit = bool(old.commit) and self._remote.commit in ("", old.commit)
        if is_same_commit and old.sha256 and self._remote.sha256 not in ("", old.sha256):
            raise BadData(
                f"{self._shown_url}: expected sha256 {old.sha256[:12]}…, the server sends {self._remote.sha256[:12]}… "
                "for the same commit",
                hint=_TRY_MIRROR,
            )
        self._truncate()

    # One request

    def _receive(self) -> None:
        """Request the missing bytes and write them to the part."""
        if self._part.size and not self._remote.can_resume:
            self._truncate()
        headers = {}
        if self._part.size:
            headers["Range"] = f"bytes={self._part.size}-"
            if not self._remote.sha256:  # a known hash identifies the file; servers disagree about ETags
                headers["If-Range"] = self._remote.strong_etag
        with (
            self._client.get(self._remote.url, headers) as response,
            self._network.watch(response),
        ):
            self._check_status(response)
            if response.status_code == 416:
                self._range_not_satisfiable(response)
                return
            self._check_same_file(response)
            pieces = self._read_pieces(response)
            for piece in pieces if self._continues_part(response) else self._skip_known(pieces):
                self._write(piece)
        self._has_ended = self._remote.size is None
        if self._remote.size is not None and self._part.size < self._remote.size:
            raise Retry(f"received {self._part.size:,} of {self._remote.size:,} bytes")

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status in (200, 206, 416):
            return
        if status in (404, 410):
            raise not_found(self._url, status)
        if status in (401, 403):
            if response.history:  # the hub's signed link has expired: request a new one
                raise Retry(f"the server answered {status}")
            raise forbidden(self._url, status)
        raise_if_busy(response)
        raise ProtocolBroken(f"{self._shown_url}: the server answered {status}", hint=_TRY_MIRROR)

    def _check_same_file(self, response: requests.Response) -> None:
        """Raise unless the response is of the described file, without a Content-Encoding."""
        if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise ProtocolBroken(
                f"{self._shown_url}: the server compressed the response ({encoding[:20]})", hint=_TRY_MIRROR
            )
        sha256 = published_sha256(response)
        old_etag, etag = self._remote.etag.removeprefix("W/"), response.headers.get("ETag", "").removeprefix("W/")
        if self._remote.sha256:
            if sha256 and sha256 != self._remote.sha256:
                raise _ReplacedError
        elif sha256:  # a server that rejects HEAD sends the hash only now
            self._remote = dataclasses.replace(self._remote, sha256=sha256)
            self._refuse_change(sha256)
        elif etag and etag != old_etag and old_etag.startswith('"'):
            raise _ReplacedError
        raise_if_page(self._url, response)

    def _continues_part(self, response: requests.Response) -> bool:
        """Return True if the response begins at the end of the part, False if at the beginning of the file.

        The size of the file is taken from the response if it was unknown.
        """
        if response.status_code == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
            start, total = (parse_count(match[1]), parse_count(match[2])) if match else (None, None)
            if start != self._part.size or (total is not None and self._remote.size not in (None, total)):
                raise self._violation("it sent a different range than requested")
            if total is not None:
                self._remote = dataclasses.replace(self._remote, size=total)
            return True
        if (length := parse_count(response.headers.get("Content-Length", ""))) is not None:
            if self._remote.size not in (None, length):
                problem = f"it sends {length:,} bytes but announced {self._remote.size:,}"
                raise self._violation(problem, first=_ReplacedError())
            self._remote = dataclasses.replace(self._remote, size=length)
        return not self._part.size

    def _range_not_satisfiable(self, response: requests.Response) -> None:
        """Handle status 416: the part is complete if the size was unknown and the server reports the part's size."""
        match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", "").strip())
        if self._remote.size is None and match and parse_count(match[1]) == self._part.size:
            self._has_ended = True
            return
        self._truncate()
        raise self._violation("it has fewer bytes than it announced (416)")

    def _violation(self, problem: str, first: Exception | None = None) -> Exception:
        """Return the exception for a protocol violation: `first` or Retry for the first one, then ProtocolBroken."""
        self._violations += 1
        if self._violations < 2:
            return first or Retry(problem)
        return ProtocolBroken(f"{self._shown_url}: the server violates the protocol: {problem}", hint=_TRY_MIRROR)

    # The body of a response

    def _read_pieces(self, response: requests.Response) -> Iterator[bytes]:
        """Yield the body as it arrives, within the bandwidth limit. Raises Stalled if it is too slow."""
        read: Callable[[int], bytes] = response.raw.read1
        bandwidth = self._network.bandwidth
        size = min(_CHUNK, bandwidth.chunk_size) if bandwidth else _CHUNK
        seconds, received = 0.0, 0
        while True:
            start = time.monotonic()
            piece = read(size)
            seconds, received = seconds + time.monotonic() - start, received + len(piece)
            if not piece:
                return
            yield piece
            if seconds > _SLOW_SECONDS:
                if received < _SLOW_BYTES:
                    raise Stalled(f"received only {received:,} bytes in {seconds:.0f} seconds")
                seconds, received = 0.0, 0
            self._network.raise_if_stopped(self._shown_url)
            if bandwidth:
                self._network.sleep(bandwidth.delay(len(piece)), self._shown_url)

    def _skip_known(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the bytes that the part lacks, from a response that begins at the beginning of the file.

        Where the part differs from the response it is truncated.
        """
        position, end = 0, self._part.size
        with open(self._part.flushed(), "rb") as part_file:
            for piece in pieces:
                old_piece = part_file.read(max(0, min(len(piece), end - position)))
                if piece[: len(old_piece)] != old_piece:
                    common = next(i for i, old in enumerate(old_piece) if piece[i] != old)
                    end = position + common
                    self._truncate(end)
                    old_piece = old_piece[:common]
                position += len(piece)
                if new_bytes := piece[len(old_piece) :]:
                    yield new_bytes
        if position < end and self._remote.size is None:  # the file ends here; with a known size it was interrupted
            self._truncate(position)

    def _write(self, piece: bytes) -> None:
        size = self._remote.size
        if size is not None and self._part.size + len(piece) > size:
            self._truncate()
            raise self._violation(f"it sends more than the {size:,} bytes that it announced")
        if self._is_zstd and self._part.size < len(ZSTD_MAGIC):
            self._check_magic(piece)
        if size is None:
            self._part.require_space()
        self._part.write(piece)
        self._advance(len(piece))
        if self._part.size - self._part.durable_size >= DURABLE_EVERY:
            self._part.save(self._remote)

    def _check_magic(self, piece: bytes) -> None:
        """Refuse data that is not zstd before its first bytes are written."""
        head = self._part.flushed().read_bytes() + piece
        if len(head) >= len(ZSTD_MAGIC) and not compression.has_zstd_magic(head[: len(ZSTD_MAGIC)]):
            self._refuse_content(f"data that is not zstd (it begins with {head[:16]!r})")

    def _refuse_content(self, content: str) -> None:
        self._truncate()
        raise wrong_content(self._url, content)

    # Verification

    def _is_complete(self) -> bool:
        return self._has_ended if self._remote.size is None else self._part.size == self._remote.size

    def _is_verified(self) -> bool:
        """Return True if the complete part is the expected file. After the first mismatch, empty it and return False.

        Raises BadData or UpstreamChanged after the second mismatch, Retry if a `.zst` is truncated.
        """
        part, expected = self._part, self._remote.sha256 or self._pinned
        if self._is_zstd and part.size < len(ZSTD_MAGIC):
            self._refuse_content(f"data that is not zstd ({part.size} bytes)")
        if not expected and self._is_zstd and self._has_ended:
            try:
                compression.check_zstd(part.flushed())
            except BadData:
                size = part.size
                self._truncate()
                raise Retry(f"the response ended inside a zstd frame, after {size:,} bytes") from None
        if not expected or part.sha256 == expected:
            return True
        self._mismatches += 1
        if not self._remote.sha256 and self._mismatches == 2:
            self._refuse_change(part.sha256)
        part.quarantine()
        self._has_ended, self._progress_size = False, 0
        if self._mismatches == 2:
            raise BadData(
                f"{self._shown_url}: expected sha256 {expected[:12]}…, received different content twice",
                hint=f"{_TRY_MIRROR}; the received file is in {QUARANTINE}/",
            )
        return False

    def _refuse_change(self, sha256: str) -> None:
        if self._pinned and sha256 and sha256 != self._pinned:
            raise changed(self._shown_url, sha256, self._pinned)


def changed(where: str, sha256: str, pinned: str) -> UpstreamChanged:
    return UpstreamChanged(
        f"{where}: sha256 changed from {pinned[:12]}… (pinned) to {sha256[:12]}…; the old file is kept",
        hint="to accept the new file, run `download --update-lock`, or `refresh` without --locked",
    )


def shrank(where: str, size: int, old_size: int) -> UpstreamChanged:
    return UpstreamChanged(
        f"{where}: the file shrank from {old_size:,} to {size:,} bytes; the old file is kept",
        hint="if this is expected, run the command once with --allow-shrink",
    )
