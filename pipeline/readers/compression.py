"""The bytes inside a packed file: zstd and gzip, read to their very end or not accepted at all.

zstd's own readers take the end of a file for the end of its last frame, so a truncated file passes in silence
(reference/reliability.md, M1 to M3). Here the structure of the frames is followed beside the decompression: a frame
that has begun must end. What comes out is bounded, whatever went in.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from pipeline.errors import BadData
from pipeline.runtime.progress import Advance

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_FIRST, _SKIPPABLE_MAGIC = bytes(range(0x50, 0x60)), b"\x2a\x4d\x18"  # RFC 8878, section 3.1.2
_REPEATED_BYTE = 1  # a block of this kind holds one byte, whatever its size
_BLOCK = 1 << 22
_READ, _FIRST_READ = 1 << 20, 1 << 10  # reads grow with what was read, so that a bomb is known before it is large
_MAX_WINDOW = 1 << 27

# One block of zstd expands at most 32,768 times. Text reaches 4 to 10, one line repeated for ever about 11,000:
# what lies above that is no text.
_MAX_RATIO = 1 << 14

_AGAIN = "download the file again"


def blocks(path: Path, advance: Advance = lambda count: None) -> Iterator[bytes]:
    """The decompressed bytes of a file in pieces; `advance` hears how many bytes of the file itself were read.

    Raises BadData when a .zst or .gz file is broken, cut short, or expands beyond all reason.
    """
    with open(path, "rb") as handle:
        if path.name.endswith(".zst"):
            yield from _zstd_blocks(path, handle, advance)
        elif path.name.endswith(".gz"):
            yield from _gzip_blocks(path, handle, advance)
        else:
            while block := handle.read(_READ):
                advance(len(block))
                yield block


class _Frames:
    """A zstd file, read from its beginning: `read` passes its bytes on, and follows where its frames begin and end.

    Only sizes are looked at (RFC 8878, section 3.1): what the blocks hold is the decompressor's to judge.
    """

    def __init__(self, path: Path, handle: BinaryIO, advance: Advance) -> None:
        self._path, self._handle, self._advance = path, handle, advance
        self.position = 0  # bytes read
        self.count, self.start = 0, 0  # frames that have begun, and where the last of them does
        self._whole = True  # whether it has ended
        self._skip, self._head = 0, b""  # bytes to pass over, and what has come of the header after them
        self._lost = False  # whether something else stood where a frame should begin
        self._headers = self._walk()
        self._wanted = next(self._headers)

    def read(self, size: int) -> bytes:
        data = self._handle.read(min(size, max(_FIRST_READ, self.position)))
        self._advance(len(data))
        start, self.position = self.position, self.position + len(data)
        place = 0
        while place < len(data) and not self._lost:
            if self._skip:
                step = min(self._skip, len(data) - place)
                self._skip -= step
            else:
                if self._whole:
                    self._whole, self.start, self.count = False, start + place, self.count + 1
                step = self._wanted - len(self._head)
                self._head += data[place : place + step]
            place += step
            if not self._skip and len(self._head) == self._wanted:
                head, self._head = self._head, b""
                self._wanted = self._headers.send(head)
        return data

    def check_end(self) -> None:
        """Raises BadData when the last frame has not ended, or there was none."""
        if not self.count:
            raise BadData(f"{self._path}: the file is empty", hint=_AGAIN)
        if self._lost or self.position - self.start < 4:
            raise self.no_frame()
        if self._skip or not self._whole:
            what = f"zstd frame {self.count} is cut short, the file ends at byte {self.position:,}"
            raise BadData(f"{self._path}: {what}", hint=_AGAIN)

    def no_frame(self) -> BadData:
        """What to say where a frame should begin and does not."""
        what = f"{_what_it_is(self._head)} where zstd frame {self.count} should begin, at byte {self.start:,}"
        return BadData(f"{self._path}: {what}", hint=_AGAIN)

    def _walk(self) -> Generator[int, bytes, None]:
        """Asks for each header by its size, and sets how many bytes to skip after it."""
        while True:
            head = yield 4
            if not begins_zstd(head):
                self._lost, self._head = True, head
                yield 0  # and is not asked again
            if head != ZSTD_MAGIC:  # a skippable frame: its size, and that many bytes
                self._skip = int.from_bytes((yield 4), "little")
            else:
                head += yield 1
                head += yield zstandard.frame_header_size(head) - len(head)
                last = False
                while not last:
                    block = int.from_bytes((yield 3), "little")
                    last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
                    self._skip = 1 if kind == _REPEATED_BYTE else size
                if zstandard.get_frame_parameters(head).has_checksum:
                    self._skip += 4
            self._whole = True


def _zstd_blocks(path: Path, handle: BinaryIO, advance: Advance) -> Iterator[bytes]:
    frames, total = _Frames(path, handle, advance), 0
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    reader = decompressor.stream_reader(frames, read_size=_READ, read_across_frames=True)  # type: ignore[arg-type]
    try:
        while block := reader.read(_BLOCK):
            total += len(block)
            if total > max(_BLOCK, frames.position * _MAX_RATIO):
                raise BadData(
                    f"{path}: its first {frames.position:,} bytes expand to {total:,} and more, as no text does",
                    hint="a decompression bomb? Look at where it comes from",
                )
            yield block
    except zstandard.ZstdError as error:
        raise _broken(path, frames, error) from None
    frames.check_end()


def _broken(path: Path, frames: _Frames, error: zstandard.ZstdError) -> BadData:
    if "requires too much memory" in str(error):
        return BadData(
            f"{path}: a zstd frame needs a window of more than {_MAX_WINDOW >> 20} MiB",
            hint="made with zstd --long? `zstd -d --long=31` and a plain `zstd` give one that any machine can read",
        )
    if "Dictionary" in str(error):
        return BadData(
            f"{path}: zstd with a dictionary", hint="`zstd -d -D DICTIONARY` and a plain `zstd` give one without"
        )
    if "Unknown frame descriptor" in str(error):
        return frames.no_frame()
    return BadData(f"{path}: zstd is broken near byte {frames.position:,}: {error}", hint=_AGAIN)


def check_zstd(path: Path) -> None:
    """Read a zstd file to its end, whatever its name. Raises BadData when a frame of it is broken or cut short."""
    with open(path, "rb") as handle:
        for _ in _zstd_blocks(path, handle, lambda count: None):
            pass


def begins_zstd(head: bytes) -> bool:
    """Whether bytes begin like a zstd frame, or like a skippable one."""
    return head.startswith(ZSTD_MAGIC) or (head[:1] in _SKIPPABLE_FIRST and head[1:4] == _SKIPPABLE_MAGIC)


def _what_it_is(data: bytes) -> str:
    if data[:2] == b"\x1f\x8b":
        return "gzip data"
    if data.lstrip()[:1] == b"<":
        return "a web page"
    return "something that is not zstd"


def _gzip_blocks(path: Path, handle: BinaryIO, advance: Advance) -> Iterator[bytes]:
    read, empty = 0, True
    try:
        with gzip.GzipFile(fileobj=handle) as unzipped:
            while block := unzipped.read(_BLOCK):
                advance(handle.tell() - read)
                read, empty = handle.tell(), False
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadData(f"{path}: not whole gzip data: {error}", hint=_AGAIN) from None
    if empty and not handle.tell():
        raise BadData(f"{path}: the file is empty", hint=_AGAIN)
