"""One file over HTTP, verified: the bytes that were promised, or an error. It goes on where a killed process stopped.

Whole means: the announced size came and the sha256 is the promised or pinned one; where the server announced
neither, a `.zst` ends like one. What is kept for a later process is in `parts.py`. reference/reliability.md, 3.4.
"""

from __future__ import annotations

import dataclasses
import glob
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
from pipeline.runtime.redaction import shown
from pipeline.sources import partial as parts
from pipeline.sources.http import (
    TRANSIENT,
    Connection,
    Facts,
    Network,
    Patience,
    Retry,
    Stalled,
    forbidden,
    gone,
    not_the_file,
    number,
    published_hash,
    raise_if_busy,
    raise_if_page,
)
from pipeline.store import files
from pipeline.store.files import HashingFile

DURABLE_EVERY = 256 << 20  # bytes: what a power cut can cost
QUARANTINE = "quarantine"
_CHUNK = 1 << 20
_SLOW_BYTES, _SLOW_SECONDS = 30 << 10, 30.0  # less than this in that time is as good as nothing
_REPLACED = 3  # times that a file may change while it is fetched


class _Replaced(Exception):
    """The server has another file now than it said."""


@dataclass(frozen=True)
class Fetched:
    """A file that came whole. `facts` are those that it was fetched by."""

    size: int
    sha256: str
    facts: Facts


def fetch(
    url: str,
    token: str,
    facts: Facts,
    target: Path,
    network: Network,
    advance: Advance,
    *,
    pinned: str = "",
    smallest: int = 0,
) -> Fetched:
    """Bring the file at `url`, of which the server said `facts`, to `target`. `forget` it once it is pinned.

    `pinned` is the sha256 that it must have, or "", and `smallest` the least size. Raises UpstreamChanged when it has
    another, BadData when other bytes than promised came twice, TryAgain when time may help, ProtocolBroken when the
    server cannot be trusted.
    """
    with Connection(network, token) as connection, files.part_file(parts.path_of(target)) as out:
        done = _Transfer(connection, url, facts, target, out, network, advance, pinned, smallest).run()
        out.publish(target)
    return done


class _Transfer:
    def __init__(
        self,
        connection: Connection,
        url: str,
        facts: Facts,
        target: Path,
        out: HashingFile,
        network: Network,
        advance: Advance,
        pinned: str,
        smallest: int,
    ) -> None:
        self._connection, self._url, self._facts, self._target = connection, url, facts, target
        self._out, self._network, self._advance = out, network, advance
        self._pinned, self._smallest = pinned, smallest
        self._shown = shown(url)
        self._durable = 0
        self._furthest = 0  # bytes at the last break that brought something
        self._ended = False  # an answer of unknown length came to its end
        self._broken = self._replaced = self._mismatches = 0

    def run(self) -> Fetched:
        """Go on after every break until the file is whole, or there is no hope."""
        if kept := parts.durable(self._target, self._facts):
            self._out.cut(kept)
        else:
            self._cut()
        self._durable = self._furthest = self._out.size
        patience = Patience(self._network, self._url)
        try:
            while True:
                self._network.check(self._shown)  # before an answer is whole: it may be we who ended it
                try:
                    if self._is_complete() and self._is_right():
                        return self._done()
                    self._receive()
                except _Replaced:
                    self._start_anew()
                except (*TRANSIENT, Retry) as error:
                    if self._out.size - self._furthest >= self._worth_a_break():
                        self._furthest = self._out.size
                        patience.renew()
                    patience.again(error)
        except OSError:  # of the disk: what was durable before is what counts
            raise
        except BaseException:
            if self._can_go_on():
                self._save()
            else:
                self._cut()
            raise

    def _worth_a_break(self) -> int:
        """How many new bytes make up for a break. With fewer, a server that trickles would be asked for ever."""
        return max(1, min(_SLOW_BYTES, (self._facts.size or _SLOW_BYTES) // 4))

    def _done(self) -> Fetched:
        out, facts = self._out, self._facts
        if out.size < self._smallest:
            raise shrank(self._shown, out.size, self._smallest)
        if not facts.sha256 and self._can_go_on():
            self._save(came=out.sha256)  # for a process that ends between publishing and pinning
        return Fetched(out.size, out.sha256, facts)

    def _can_go_on(self) -> bool:
        """Whether another answer can be known to be of the same file."""
        return bool(self._facts.sha256 or self._facts.strong_etag)

    def _save(self, came: str = "") -> None:
        """Make what came so far durable, then say so."""
        if self._out.size <= self._durable and not came:
            return
        self._out.sync()
        self._durable = self._out.size
        parts.remember(self._target, self._facts, self._durable, came)

    def _cut(self, size: int = 0) -> None:
        """Keep only the first `size` bytes. No state may say meanwhile, or after a power cut, that there are more."""
        self._unsay()
        self._out.cut(size)

    def _unsay(self) -> None:
        parts.unsay(self._target)
        self._durable, self._ended = 0, False

    def _receive(self) -> None:
        """Ask for what is missing, and write what comes."""
        headers = {}
        if self._out.size and not self._can_go_on():
            self._cut()
        if self._out.size:
            headers["Range"] = f"bytes={self._out.size}-"
            if not self._facts.sha256:  # where the hash is known, it is the identity: servers disagree about ETags
                headers["If-Range"] = self._facts.strong_etag
        with self._connection.get(self._facts.url, headers) as answer, self._network.watching(answer):
            self._check_status(answer)
            if answer.status_code == 416:
                self._out_of_range(answer)
                return
            self._check_same(answer)
            pieces = self._pieces(answer)
            for piece in pieces if self._continues(answer) else self._unknown_of(pieces):
                self._write(piece)
        self._ended = self._facts.size is None
        if self._facts.size is not None and self._out.size < self._facts.size:
            raise Retry(f"{self._out.size:,} of {self._facts.size:,} bytes came")

    def _check_status(self, answer: requests.Response) -> None:
        status = answer.status_code
        if status in (200, 206, 416):
            return
        if status in (404, 410):
            raise gone(self._url, status)
        if status in (401, 403):
            if answer.history:  # the link that the hub gave us has expired: ask it for another
                raise Retry(f"the server answered {status}")
            raise forbidden(self._url, status)
        raise_if_busy(answer)
        raise ProtocolBroken(f"{self._shown}: the server answered {status}", hint="try another --mirror")

    def _check_same(self, answer: requests.Response) -> None:
        """Raise unless the answer is of the file that the server spoke of, in its own bytes."""
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise ProtocolBroken(f"{self._shown}: the server compresses on the way", hint="try another --mirror")
        promised = published_hash(answer)
        before, now = self._facts.etag.removeprefix("W/"), answer.headers.get("ETag", "").removeprefix("W/")
        if self._facts.sha256:
            if promised and promised != self._facts.sha256:
                raise _Replaced
        elif promised:  # a server that does not know HEAD says it only now
            self._facts = dataclasses.replace(self._facts, sha256=promised)
            self._refuse_change(promised)
        elif now and now != before and before.startswith('"'):
            raise _Replaced
        raise_if_page(self._url, answer)

    def _continues(self, answer: requests.Response) -> bool:
        """Whether the answer begins where `out` ends; if not, at the beginning. Learns the size, if it was unknown."""
        if answer.status_code == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
            start, total = (number(span[1]), number(span[2])) if span else (None, None)
            if start != self._out.size or (total is not None and self._facts.size not in (None, total)):
                raise self._violation("it answered with another range than was asked for")
            if total is not None:
                self._facts = dataclasses.replace(self._facts, size=total)
            return True
        if (length := number(answer.headers.get("Content-Length", ""))) is not None:
            if self._facts.size not in (None, length):
                what = f"it sends {length:,} bytes where it announced {self._facts.size:,}"
                raise self._violation(what, first=_Replaced())
            self._facts = dataclasses.replace(self._facts, size=length)
        return not self._out.size

    def _violation(self, what: str, first: Exception | None = None) -> Exception:
        """A second answer that breaks the protocol is the last."""
        self._broken += 1
        if self._broken < 2:
            return first or Retry(what)
        return ProtocolBroken(f"{self._shown}: the server cannot be trusted: {what}", hint="try another --mirror")

    def _out_of_range(self, answer: requests.Response) -> None:
        """The server says that it has no more bytes: perhaps because these are all."""
        span = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", "").strip())
        if self._facts.size is None and span and number(span[1]) == self._out.size:
            self._ended = True
            return
        self._cut()
        raise self._violation("it has fewer bytes than it announced (416)")

    def _unknown_of(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Of an answer that begins at the beginning, what `out` does not have. Where they differ, `out` is wrong."""
        place, end = 0, self._out.size
        with open(self._out.flushed(), "rb") as mine:
            for piece in pieces:
                known = mine.read(max(0, min(len(piece), end - place)))
                if piece[: len(known)] != known:
                    same = next(at for at, (one, other) in enumerate(zip(piece, known, strict=False)) if one != other)
                    end = place + same
                    self._cut(end)
                    known = known[:same]
                place += len(piece)
                if rest := piece[len(known) :]:
                    yield rest
        if place < end and self._facts.size is None:  # this is its end; otherwise it was only cut short
            self._cut(place)

    def _pieces(self, answer: requests.Response) -> Iterator[bytes]:
        """The bytes of the answer as they come, at the pace that is allowed. Raises Retry when they hardly come."""
        read: Callable[[int], bytes] = answer.raw.read1
        bandwidth = self._network.bandwidth
        size = min(_CHUNK, bandwidth.piece) if bandwidth else _CHUNK
        waited, came = 0.0, 0
        while True:
            start = time.monotonic()
            piece = read(size)
            waited, came = waited + time.monotonic() - start, came + len(piece)
            if not piece:
                return
            yield piece
            if waited > _SLOW_SECONDS:
                if came < _SLOW_BYTES:
                    raise Stalled(f"only {came:,} bytes came in {waited:.0f} seconds")
                waited, came = 0.0, 0
            self._network.check(self._shown)
            if bandwidth:
                self._network.sleep(bandwidth.delay(len(piece)), self._shown)

    def _write(self, piece: bytes) -> None:
        size = self._facts.size
        if size is not None and self._out.size + len(piece) > size:
            self._cut()
            raise self._violation(f"it sends more than the {size:,} bytes that it announced")
        if self._out.size < len(ZSTD_MAGIC) and self._target.suffix == ".zst":
            self._check_magic(piece)
        self._out.write(piece)
        self._advance(len(piece))
        if self._out.size - self._durable >= DURABLE_EVERY:
            self._save()

    def _check_magic(self, piece: bytes) -> None:
        """Refuse what does not begin like zstd, before the first bytes of it are kept."""
        head = self._out.flushed().read_bytes() + piece
        if not compression.has_zstd_magic(head[: len(ZSTD_MAGIC)]) and len(head) >= len(ZSTD_MAGIC):
            self._refuse(f"not a zstd file (it begins {head[:16]!r})")

    def _refuse(self, what: str) -> None:
        self._cut()
        raise not_the_file(self._url, what)

    def _is_complete(self) -> bool:
        return self._ended if self._facts.size is None else self._out.size == self._facts.size

    def _is_right(self) -> bool:
        """Whether `out`, which is complete, is the file that was promised. False asks for another try."""
        out, wanted = self._out, self._facts.sha256 or self._pinned
        if self._target.suffix == ".zst" and out.size < len(ZSTD_MAGIC):
            self._refuse(f"not a zstd file ({out.size} bytes)")
        if not wanted and self._target.suffix == ".zst" and self._ended:
            try:
                compression.check_zstd(out.flushed())
            except BadData:
                size = out.size
                self._cut()
                raise Retry(f"the answer ended inside a zstd frame, after {size:,} bytes") from None
        if not wanted or out.sha256 == wanted:
            return True
        self._mismatches += 1
        if not self._facts.sha256 and self._mismatches == 2:
            self._refuse_change(out.sha256)
        self._set_aside()
        if self._mismatches == 2:
            raise BadData(
                f"{self._shown}: sha256 differs from the {wanted[:12]}… that was promised, twice",
                hint=f"try another --mirror; what came is in {QUARANTINE}/",
            )
        return False

    def _set_aside(self) -> None:
        """Keep a copy of what came instead of the file, for whoever wants to know, and begin again."""
        folder = self._target.parent / QUARANTINE
        folder.mkdir(exist_ok=True)
        aside = folder / f"{parts.path_of(self._target).stem}.{self._out.sha256[:12]}"
        for older in folder.glob(f"{glob.escape(parts.path_of(self._target).stem)}.*"):
            files.disk.unlink(older)
        self._unsay()
        self._out.set_aside(aside)
        self._furthest = 0

    def _start_anew(self) -> None:
        """The file was replaced: ask what it is now, and fetch that, unless it is pinned."""
        self._replaced += 1
        if self._replaced > _REPLACED:
            raise TryAgain(f"{self._shown}: it changes while it is fetched", hint="run it again later")
        self._facts, self._furthest = self._connection.facts(self._url), 0
        self._refuse_change(self._facts.sha256)
        self._cut()

    def _refuse_change(self, sha256: str) -> None:
        if self._pinned and sha256 and sha256 != self._pinned:
            raise changed(self._shown, sha256, self._pinned)


def changed(where: str, now: str, pinned: str) -> UpstreamChanged:
    return UpstreamChanged(
        f"{where}: sha256 {now[:12]}… now, {pinned[:12]}… when it was pinned; the old file is kept",
        hint="to accept the new one, `download --update-lock` or `refresh` without --locked",
    )


def shrank(where: str, now: int, before: int) -> UpstreamChanged:
    return UpstreamChanged(
        f"{where}: {now:,} bytes now, {before:,} before; the old file is kept",
        hint="if that is right, run it once with --allow-shrink",
    )
