"""Split a stream of JSON lines into units and chunks by byte offset alone.

A *unit* is the lines that begin in one 256 MiB range of a file's decompressed text. It is written as one segment; a
killed run loses at most one unit. A *chunk* is the lines that begin in one 4 MiB range; a worker encodes one at a time.
Both boundaries depend only on the input, and no JSON is parsed to find them.

A line above 8 MiB is a chunk of its own. Its text is decoded and encoded in parts that end at a boundary of the
tokenizer, so that the complete decoded text is never in memory (benchmarks/NOTES.md has the figures).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from pipeline.readers.jsonl import MAX_LINE_BYTES, decode_field

UNIT_BYTES = 256 << 20
CHUNK_BYTES = 4 << 20
LONG_LINE = 8 << 20
PART_BYTES = 4 << 20  # minimum of JSON from which a part of a long text is decoded
MAX_UNBROKEN = 32 << 20  # maximum number of consecutive characters without a boundary
_EXCERPT = 1 << 10


@dataclass(frozen=True, slots=True)
class Chunk:
    """Complete lines that begin at byte `offset` of a text; of an `overlong` line only the beginning."""

    offset: int
    data: bytes | bytearray
    long: bool = False
    overlong: bool = False

    @property
    def unit(self) -> int:
        return self.offset // UNIT_BYTES


def split_chunks(blocks: Iterator[bytes]) -> Iterator[Chunk]:
    """Yield the chunks of a text that arrives in blocks of any size. One chunk or long line is in memory at a time."""
    buffer = bytearray()
    start = 0  # offset of buffer[0] in the text
    searched = 0  # bytes of the buffer already searched for the end of the chunk
    for block in blocks:
        buffer += block
        while len(buffer) >= (border := CHUNK_BYTES - start % CHUNK_BYTES):
            # A line that begins before the boundary belongs to this chunk, so the chunk ends at the next newline.
            if end := buffer.find(b"\n", max(border - 1, searched)) + 1:
                remainder = buffer[end:]
                del buffer[end:]
                yield from _split_long_line(buffer, start)
                buffer, start, searched = remainder, start + end, 0
                continue
            searched = len(buffer)
            if len(buffer) <= MAX_LINE_BYTES or len(buffer) - (line := buffer.rfind(b"\n") + 1) <= MAX_LINE_BYTES:
                break
            del buffer[line + _EXCERPT :]
            remainder, skipped = _skip_line(blocks)
            yield from _split_long_line(buffer, start, overlong=True)
            buffer, start, searched = remainder, start + searched + skipped, 0
    if buffer:
        yield from _split_long_line(buffer, start)


def _skip_line(blocks: Iterator[bytes]) -> tuple[bytearray, int]:
    """Read up to the next newline. Return the bytes after it in its block, and the number of bytes skipped."""
    skipped = 0
    for block in blocks:
        if end := block.find(b"\n") + 1:
            return bytearray(block[end:]), skipped + end
        skipped += len(block)
    return bytearray(), skipped


def _split_long_line(buffer: bytearray, start: int, *, overlong: bool = False) -> Iterator[Chunk]:
    """Yield the buffer as one chunk, or its last line as a second one if it is long. Consumes the buffer."""
    last = buffer.rfind(b"\n", 0, len(buffer) - 1) + 1
    size = len(buffer) - last
    if size <= LONG_LINE and not overlong:
        yield Chunk(start, bytes(buffer))
        return
    if last:
        yield Chunk(start, bytes(buffer[:last]))
    del buffer[:last]
    if size > MAX_LINE_BYTES:
        del buffer[_EXCERPT:]
        overlong = True
    yield Chunk(start + last, buffer, long=not overlong, overlong=overlong)


# Where the inside of a JSON string may be cut: never within an escape, a surrogate pair or a character.
_JSON_CUT = re.compile(
    rb"(?<=[^\\]{12})(?=[^\x80-\xbf])"  # no escape nearby
    rb"|(?<=[^\\]\\[nrt\"/bf])"  # after a short escape whose backslash is not itself escaped
    rb"|(?<=[0-9a-fA-F]{4})(?=\\u(?![dD][c-fC-F]))"  # before a \u that is not the second half of a pair
)


class Unbroken(Exception):
    """More than MAX_UNBROKEN characters of a long text without a boundary."""


class _LongLine(msgspec.Struct):
    text: msgspec.Raw
    meta: msgspec.Raw = msgspec.Raw(b"null")


class LongText:
    """The text of one long line, decoded part by part. Raises msgspec.DecodeError if the line is not a record."""

    def __init__(self, line: bytes | bytearray) -> None:
        if line.startswith(codecs.BOM_UTF8):
            line = line[len(codecs.BOM_UTF8) :]
        record = msgspec.json.decode(line, type=_LongLine)
        self.meta = decode_field(record.meta)
        self._raw = memoryview(record.text)
        if bytes(self._raw[:1]) != b'"':
            raise msgspec.ValidationError("`text` is not a string")

    def parts(self, boundary: re.Pattern[str] | None) -> Iterator[str]:
        """Yield the text in parts that end where `boundary` matches, or as one part without a `boundary`.

        Raises Unbroken, and msgspec.DecodeError or UnicodeDecodeError for an invalid string.
        """
        text = ""
        for decoded in self.blocks():
            text += decoded
            if boundary and (end := last_boundary(boundary, text)):
                yield text[:end]
                text = text[end:]
            elif len(text) > MAX_UNBROKEN:
                raise Unbroken
        if text:
            yield text

    def blocks(self) -> Iterator[str]:
        """Yield the text in blocks that end anywhere between two characters."""
        raw, start = self._raw[1:-1], 0
        while start < len(raw):
            match = _JSON_CUT.search(raw, min(start + PART_BYTES, len(raw)))
            end = match.start() if match else len(raw)
            yield msgspec.json.decode(b'"%b"' % bytes(raw[start:end]), type=str)
            start = end


def last_boundary(boundary: re.Pattern[str], text: str) -> int:
    """Return the last position strictly inside `text` where `boundary` matches, 0 if there is none."""
    window = 1 << 12
    while True:
        start = max(len(text) - window, 0)
        ends = [match.start() for match in boundary.finditer(text, start) if 0 < match.start() < len(text)]
        if ends or not start:
            return ends[-1] if ends else 0
        window *= 16
