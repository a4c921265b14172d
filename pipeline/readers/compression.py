"""Decompress zstd, gzip, bzip2 and xz files, and raise an error unless they are complete.

The first bytes of a file decide how it is compressed, not its name. zstd's own readers treat the end of a file as the
end of its last frame, so a truncated file passes without an error (docs/design/reliability.md, M1 to M3).
`_FrameReader` therefore parses the sizes of frames and blocks beside the decompressor. A `decompressobj` per frame
would report a truncated frame too, but it ran at 0.80x to 0.89x the speed (218 MB, 45 frames) and has no limit on what
one call returns. The output is bounded for any input.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from pipeline.errors import BadData
from pipeline.runtime.progress import Advance

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_FIRST, _SKIPPABLE_MAGIC = bytes(range(0x50, 0x60)), b"\x2a\x4d\x18"  # RFC 8878, section 3.1.2
_MAX_HEADER = 18  # bytes: magic number and frame header, RFC 8878, section 3.1.1.1
_RLE_BLOCK = 1  # block type: one byte in the file, whatever its size
_BLOCK = 1 << 22
_READ, _FIRST_READ = 1 << 20, 1 << 10  # reads grow with the bytes read, so that a bomb is detected early
_MAX_WINDOW = 1 << 27
_COMPARED = 1 << 24  # bytes of two files
_MAX_XZ_MEMORY = 1 << 28  # bytes that the decompressor may use; `xz -9` needs 65 MiB

COMPRESSIONS = ("zst", "gz", "bz2", "xz")
_MAGIC = {
    "gz": re.compile(rb"\x1f\x8b\x08"),
    "bz2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", re.DOTALL),
    "xz": re.compile(rb"\xfd7zXZ\0"),
}
_MAGIC_BYTES = 10  # of the longest magic number

# A zstd block expands at most 32,768 times. Text reaches 4 to 10, and one line repeated without end about 11,000.
_MAX_RATIO = 1 << 14

_DOWNLOAD_AGAIN = "download the file again"


def read_blocks(path: Path, advance: Advance = lambda count: None) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file in blocks; call `advance` with the count of compressed bytes read.

    A file that is not compressed is read as it is, unless its name ends like that of a compressed one. Raises BadData
    if compressed data is corrupt, truncated, or expands more than `_MAX_RATIO` times.
    """
    with open(path, "rb") as file:
        yield from decompress(file, str(path), advance)


def decompress(
    file: io.BufferedReader,
    label: str,
    advance: Advance = lambda count: None,
    *,
    by_name: bool = True,
    block_size: int = _BLOCK,
) -> Iterator[bytes]:
    """Yield the decompressed bytes of an open file, like `read_blocks`; `label` is its name in errors."""
    compression = detect_compression(file.peek(_MAGIC_BYTES)[:_MAGIC_BYTES])
    match compression or (compression_suffix(label) if by_name else ""):
        case "zst":
            yield from _zstd_blocks(label, file, advance, block_size)
        case "gz":
            yield from _gzip_blocks(label, file, advance, block_size)
        case "bz2" | "xz" as name:
            yield from _StreamReader(label, name, file, advance).blocks()
        case _:
            while block := file.read(_READ):
                advance(len(block))
                yield block


def detect_compression(head: bytes) -> str:
    """Return "zst", "gz", "bz2" or "xz" for the first bytes of a compressed file, "" for others."""
    if has_zstd_magic(head):
        return "zst"
    return next((name for name, magic in _MAGIC.items() if magic.match(head)), "")


def compression_suffix(name: str) -> str:
    """Return "zst", "gz", "bz2" or "xz" if a file name ends so, in any case, else ""."""
    suffix = name.lower().rpartition(".")[2] if "." in name else ""
    return suffix if suffix in COMPRESSIONS else ""


class _FrameReader:
    """File object from which the decompressor reads a zstd file. It tracks where frames begin and end.

    It parses sizes only (RFC 8878, section 3.1), one element at a time: a frame header, a block (with the checksum, if
    the frame ends with one) or a skippable frame. The decompressor checks what the blocks contain.
    """

    def __init__(self, label: str, file: BinaryIO, advance: Advance) -> None:
        self._label, self._file, self._advance = label, file, advance
        self.bytes_read = 0
        self._frame_count, self._frame_start = 0, 0  # frames that began, and the offset of the last one
        self._next_element = 0  # offset
        self._partial_header = b""  # bytes of the next element, if they do not give its size yet
        self._in_frame = self._has_checksum = False
        self._is_lost = False  # True once a frame should begin and other data was found

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, max(_FIRST_READ, self.bytes_read)))
        self._advance(len(data))
        if not self._is_lost:
            self._follow(data)
        self.bytes_read += len(data)
        return data

    def _follow(self, data: bytes) -> None:
        """Move to the last element that begins in `data`, which starts at offset `bytes_read`."""
        buffer = self._partial_header + data
        start = self.bytes_read - len(self._partial_header)
        position = self._next_element - start
        while position < len(buffer):
            if not self._in_frame and start + position >= self.bytes_read:  # the first byte of a new frame
                self._frame_count, self._frame_start = self._frame_count + 1, start + position
            size = self._enter_element(buffer[position : position + _MAX_HEADER])
            if not size:
                break
            position += size
        self._next_element = start + position
        self._partial_header = buffer[position : position + _MAX_HEADER]

    def _enter_element(self, header: bytes) -> int:
        """Return the size of the element that begins with `header`, or 0 if `header` is too short or not zstd."""
        if self._in_frame:
            if len(header) < 3:
                return 0
            block = int.from_bytes(header[:3], "little")
            is_last, kind, size = block & 1, block >> 1 & 3, block >> 3
            self._in_frame = not is_last
            return 3 + (1 if kind == _RLE_BLOCK else size) + (4 if is_last and self._has_checksum else 0)
        if len(header) >= 4 and not has_zstd_magic(header):
            self._is_lost = True
            return 0
        if not header.startswith(ZSTD_MAGIC):  # a skippable frame
            return 8 + int.from_bytes(header[4:8], "little") if len(header) >= 8 else 0
        if len(header) < 5 or len(header) < (size := zstandard.frame_header_size(header)):
            return 0
        self._in_frame, self._has_checksum = True, bool(header[4] & 4)
        return size

    def check_end(self) -> None:
        """Raise BadData if the last frame is truncated, or if there is no frame."""
        if not self._frame_count:
            raise BadData(f"{self._label}: the file is empty", hint=_DOWNLOAD_AGAIN)
        if self._is_lost or self.bytes_read - self._frame_start < len(ZSTD_MAGIC):
            raise self.not_a_frame()
        if self._in_frame or self._next_element != self.bytes_read:
            frame = f"zstd frame {self._frame_count}"
            raise BadData(
                f"{self._label}: {frame} is truncated, the file ends at byte {self.bytes_read:,}",
                hint=_DOWNLOAD_AGAIN,
            )

    def not_a_frame(self) -> BadData:
        """Return the error for data that is not a frame where one should begin."""
        content = _describe(self._partial_header[: len(ZSTD_MAGIC)])
        return BadData(
            f"{self._label}: found {content} where zstd frame {self._frame_count} should begin, "
            f"at byte {self._frame_start:,}",
            hint=_DOWNLOAD_AGAIN,
        )


def _zstd_blocks(label: str, file: BinaryIO, advance: Advance, block_size: int = _BLOCK) -> Iterator[bytes]:
    frames, total = _FrameReader(label, file, advance), 0
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    reader = decompressor.stream_reader(frames, read_size=_READ, read_across_frames=True)  # type: ignore[arg-type]
    try:
        while block := reader.read(block_size):
            total += len(block)
            check_ratio(label, frames.bytes_read, total)
            yield block
    except zstandard.ZstdError as error:
        raise _zstd_error(label, frames, error) from None
    frames.check_end()


def _zstd_error(label: str, frames: _FrameReader, error: zstandard.ZstdError) -> BadData:
    if "requires too much memory" in str(error):
        return BadData(
            f"{label}: a zstd frame needs a window of more than {_MAX_WINDOW >> 20} MiB",
            hint="compressed with zstd --long? Decompress it with `zstd -d --long=31` and compress it without --long",
        )
    if "Dictionary" in str(error):
        return BadData(
            f"{label}: compressed with a zstd dictionary",
            hint="decompress it with `zstd -d -D DICTIONARY` and compress it without one",
        )
    if "Unknown frame descriptor" in str(error):
        return frames.not_a_frame()
    return BadData(f"{label}: corrupt zstd data near byte {frames.bytes_read:,}: {error}", hint=_DOWNLOAD_AGAIN)


def check_zstd(path: Path) -> None:
    """Read a zstd file of any name to its end. Raises BadData if a frame is corrupt or truncated."""
    with open(path, "rb") as file:
        for _ in _zstd_blocks(str(path), file, lambda count: None):
            pass


def has_zstd_magic(head: bytes) -> bool:
    """Return True if `head` begins with the magic number of a zstd frame or of a skippable frame."""
    return head.startswith(ZSTD_MAGIC) or (head[:1] in _SKIPPABLE_FIRST and head[1:4] == _SKIPPABLE_MAGIC)


def _describe(data: bytes) -> str:
    if data[:2] == b"\x1f\x8b":
        return "gzip data"
    if data.lstrip()[:1] == b"<":
        return "a web page"
    return "data that is not zstd"


def check_ratio(label: str, bytes_read: int, total: int) -> None:
    """Raise BadData if `bytes_read` compressed bytes expanded to too many bytes."""
    if total > max(_BLOCK, bytes_read * _MAX_RATIO):
        raise BadData(
            f"{label}: its first {bytes_read:,} bytes expand to {total:,} bytes or more, "
            f"over the limit of {_MAX_RATIO:,} to 1",
            hint="a decompression bomb? Check where the file comes from",
        )


def _gzip_blocks(label: str, file: BinaryIO, advance: Advance, block_size: int) -> Iterator[bytes]:
    counted, total = _CountedFile(file, advance), 0
    try:
        with gzip.GzipFile(fileobj=counted) as decompressed:  # type: ignore[call-overload]
            while block := decompressed.read(block_size):
                total += len(block)
                check_ratio(label, counted.bytes_read, total)
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadData(f"{label}: truncated or corrupt gzip data: {error}", hint=_DOWNLOAD_AGAIN) from None
    if not counted.bytes_read:
        raise BadData(f"{label}: the file is empty", hint=_DOWNLOAD_AGAIN)


class _CountedFile:
    """File object that counts the bytes read."""

    def __init__(self, file: BinaryIO, advance: Advance) -> None:
        self._file, self._advance, self.bytes_read = file, advance, 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.bytes_read += len(data)
        self._advance(len(data))
        return data


_FULL_NAMES = {"bz2": "bzip2", "xz": "xz"}


class _StreamReader:
    """Decompressor of bzip2 and xz: any number of streams, one after another, and zeros between and after them."""

    def __init__(self, label: str, compression: str, file: BinaryIO, advance: Advance) -> None:
        self._label, self._compression, self._file = label, compression, _CountedFile(file, advance)

    def blocks(self) -> Iterator[bytes]:
        total, decoder, data = 0, self._decoder(), b""
        try:
            while True:
                if decoder.eof:
                    if not (data := self._next_stream(decoder.unused_data)):
                        return
                    decoder = self._decoder()
                elif decoder.needs_input and not (data := self._read()):
                    break
                block = decoder.decompress(data, _BLOCK)
                data, total = b"", total + len(block)
                check_ratio(self._label, self._file.bytes_read, total)
                if block:
                    yield block
        except (OSError, EOFError, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise self._error(f"corrupt {{}} data near byte {self._file.bytes_read:,}: {error}") from None
        if not self._file.bytes_read:
            raise self._error("the file is empty")
        raise self._error(f"{{}} data is truncated, the file ends at byte {self._file.bytes_read:,}")

    def _decoder(self) -> bz2.BZ2Decompressor | lzma.LZMADecompressor:
        if self._compression == "bz2":
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_XZ_MEMORY)

    def _read(self) -> bytes:
        return self._file.read(min(_READ, max(_FIRST_READ, self._file.bytes_read)))

    def _next_stream(self, data: bytes) -> bytes:
        """Return the beginning of the next stream, b"" at the end of the file; `data` follows the last stream."""
        while not data.lstrip(b"\0"):
            if not (data := self._read()):
                return b""
        data = data.lstrip(b"\0")
        while len(data) < _MAGIC_BYTES and (more := self._read()):
            data += more
        if detect_compression(data) != self._compression:
            raise self._error(f"data that is not {{}} after a stream, before byte {self._file.bytes_read:,}")
        return data

    def _error(self, problem: str) -> BadData:
        return BadData(f"{self._label}: {problem.format(_FULL_NAMES[self._compression])}", hint=_DOWNLOAD_AGAIN)


def is_same_text(first: Path, second: Path) -> bool:
    """Return True if both files hold the same bytes once decompressed, as far as they are compared."""
    digests = []
    for path in (first, second):
        digest, remaining = hashlib.sha256(), _COMPARED
        try:
            for block in read_blocks(path):
                digest.update(block[:remaining])
                remaining -= len(block)
                if remaining <= 0:
                    break
        except BadData:
            return False
        digests.append(digest.digest())
    return digests[0] == digests[1]
