"""The bytes inside a packed file: zstd and gzip, read to their very end or not accepted at all.

zstd is read frame by frame, and every frame must end: the library's own readers accept a truncated file in silence
(reference/reliability.md, M1 to M3). What comes out is bounded, whatever went in.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from pipeline.errors import BadData
from pipeline.progress import Advance

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_FIRST, _SKIPPABLE_MAGIC = bytes(range(0x50, 0x60)), b"\x2a\x4d\x18"  # RFC 8878, section 3.1.2
_BLOCK = 1 << 20
_MAX_WINDOW = 1 << 27

# One block of zstd expands at most 32,768 times. Text reaches 4 to 10, one line repeated for ever about 11,000:
# what lies above that is no text. Slices stay small until a file has shown that it expands like text.
_MAX_RATIO = 1 << 14
_SLICE, _FIRST_SLICE, _CALM_RATIO = 1 << 13, 1 << 10, 64

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
            while block := handle.read(_BLOCK):
                advance(len(block))
                yield block


def _zstd_blocks(path: Path, handle: BinaryIO, advance: Advance) -> Iterator[bytes]:
    frame, position, start, total = 0, 0, 0, 0
    reader: Any = None
    pending, size = b"", _FIRST_SLICE
    while data := pending or handle.read(size):
        if reader is None and len(data) < 4:  # a magic number split over two slices
            data += handle.read(4 - len(data))
        advance(handle.tell() - position)
        position = handle.tell()
        pending = b""
        if reader is None:
            if not begins_zstd(data):
                what = f"{_what_it_is(data)} where zstd frame {frame + 1} should begin, at byte {start:,}"
                raise BadData(f"{path}: {what}", hint=_AGAIN)
            reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
        try:
            out = reader.decompress(data)
        except zstandard.ZstdError as error:
            raise _broken(path, frame + 1, position, error) from None
        total += len(out)
        if total > max(_BLOCK, position * _MAX_RATIO):
            raise BadData(
                f"{path}: its first {position:,} bytes expand to {total:,}, as no text does",
                hint="a decompression bomb? Look at where it comes from",
            )
        size = _FIRST_SLICE if len(out) > _CALM_RATIO * len(data) else _SLICE
        if out:
            yield out
        if reader.eof:
            pending = reader.unused_data
            frame, start, reader = frame + 1, position - len(pending), None
    if reader is not None:
        raise BadData(f"{path}: zstd frame {frame + 1} is cut short, the file ends at byte {position:,}", hint=_AGAIN)
    if frame == 0:
        raise BadData(f"{path}: the file is empty", hint=_AGAIN)


def _broken(path: Path, frame: int, position: int, error: zstandard.ZstdError) -> BadData:
    if "requires too much memory" in str(error):
        return BadData(
            f"{path}: zstd frame {frame} needs a window of more than {_MAX_WINDOW >> 20} MiB",
            hint="made with zstd --long? `zstd -d --long=31` and a plain `zstd` give one that any machine can read",
        )
    return BadData(f"{path}: zstd frame {frame} is broken near byte {position:,}: {error}", hint=_AGAIN)


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
