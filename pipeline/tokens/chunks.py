"""Cut a stream of JSON lines into pieces of work, by the place of a line in the text alone.

A *unit* is the lines whose first byte lies in one stretch of 256 MiB of a file's decompressed text: what is written
as one segment, and what a killed run loses at most. A *piece* is the same by 4 MiB: what a worker encodes at once.
So the borders of both depend on the input only, and no byte is parsed to find them.

A line above 8 MiB is a piece of its own, and its text is encoded in parts, each cut where the tokenizer would cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from pipeline.readers.jsonl import MAX_LINE, value_of

UNIT_BYTES = 256 << 20
PIECE_BYTES = 4 << 20
LONG_LINE = 8 << 20
PART = 4 << 20  # bytes of JSON that one part of a long document is made from, at least
MAX_UNBROKEN = 32 << 20  # characters without a single place where a text may be cut
_EXCERPT = 1 << 10


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines of a text that begin at byte `offset`; of an `overlong` line only the beginning."""

    offset: int
    data: bytes | bytearray
    long: bool = False
    overlong: bool = False

    @property
    def unit(self) -> int:
        return self.offset // UNIT_BYTES


def cut(blocks: Iterator[bytes]) -> Iterator[Piece]:
    """The pieces of a text that comes in blocks of any size. Holds one piece, or one long line, at a time."""
    held = bytearray()
    start, searched = 0, 0  # place of held[0] in the text; how far `held` is known to hold no end of the piece
    for block in blocks:
        held += block
        while len(held) >= (border := PIECE_BYTES - start % PIECE_BYTES):
            # A line that begins before the border belongs to this piece, so it ends with the first newline after.
            if end := held.find(b"\n", max(border - 1, searched)) + 1:
                rest = held[end:]
                del held[end:]
                yield from _pieces(held, start)
                held, start, searched = rest, start + end, 0
                continue
            searched = len(held)
            if len(held) <= MAX_LINE or len(held) - (line := held.rfind(b"\n") + 1) <= MAX_LINE:
                break
            del held[line + _EXCERPT :]
            rest, skipped = _after_newline(blocks)
            yield from _pieces(held, start, overlong=True)
            held, start, searched = rest, start + searched + skipped, 0
    if held:
        yield from _pieces(held, start)


def _after_newline(blocks: Iterator[bytes]) -> tuple[bytearray, int]:
    """What follows the next newline in its block, and how many bytes were passed over."""
    skipped = 0
    for block in blocks:
        if end := block.find(b"\n") + 1:
            return bytearray(block[end:]), skipped + end
        skipped += len(block)
    return bytearray(), skipped


def _pieces(held: bytearray, start: int, *, overlong: bool = False) -> Iterator[Piece]:
    """All of `held` as a piece, but a long last line as one of its own. Takes `held`: it may be 512 MiB."""
    last = held.rfind(b"\n", 0, len(held) - 1) + 1
    size = len(held) - last
    if size <= LONG_LINE and not overlong:
        yield Piece(start, bytes(held))
        return
    if last:
        yield Piece(start, bytes(held[:last]))
    del held[:last]
    if size > MAX_LINE:
        del held[_EXCERPT:]
        overlong = True
    yield Piece(start + last, held, long=not overlong, overlong=overlong)


# Where the inside of a JSON string may be cut: never within an escape, a surrogate pair or a character.
_JSON_CUT = re.compile(
    rb"(?<=[^\\]{12})(?=[^\x80-\xbf])"  # no escape near
    rb"|(?<=[^\\]\\[nrt\"/bf])"  # after a short escape whose backslash is not itself escaped
    rb"|(?<=[0-9a-fA-F]{4})(?=\\u(?![dD][c-fC-F]))"  # before a \u that is no second half
)


class Unbroken(Exception):
    """A long text has no place where it may be cut."""


class _LongLine(msgspec.Struct):
    text: msgspec.Raw
    meta: msgspec.Raw = msgspec.Raw(b"null")


class LongText:
    """The text of one long line, decoded part by part. Raises msgspec.DecodeError when the line is no record."""

    def __init__(self, line: bytes | bytearray) -> None:
        found = msgspec.json.decode(line, type=_LongLine)
        self.meta = value_of(found.meta)
        self._raw = memoryview(found.text)
        if self._raw[:1] != b'"':
            raise msgspec.ValidationError("`text` is not a string")

    def parts(self, boundary: re.Pattern[str] | None) -> Iterator[str]:
        """The text in parts that end where `boundary` matches, in one where there is no `boundary`.

        Raises Unbroken, and what a bad string raises.
        """
        held = ""
        for text in self._decoded():
            held += text
            if boundary and (place := last_boundary(boundary, held)):
                yield held[:place]
                held = held[place:]
            elif len(held) > MAX_UNBROKEN:
                raise Unbroken
        if held:
            yield held

    def _decoded(self) -> Iterator[str]:
        raw, place = self._raw[1:-1], 0
        while place < len(raw):
            found = _JSON_CUT.search(raw, min(place + PART, len(raw)))
            end = found.start() if found else len(raw)
            yield msgspec.json.decode(b'"%b"' % bytes(raw[place:end]), type=str)
            place = end


def last_boundary(boundary: re.Pattern[str], text: str) -> int:
    """The last place above 0 in `text` where `boundary` matches, 0 where there is none."""
    window = 1 << 12
    while True:
        first = max(len(text) - window, 0)
        places = [found.start() for found in boundary.finditer(text, first) if 0 < found.start() < len(text)]
        if places or not first:
            return places[-1] if places else 0
        window *= 16
