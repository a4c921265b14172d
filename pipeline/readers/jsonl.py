"""JSON lines: split, parse and reject lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from pipeline.readers.documents import EXCERPT, OnReject, Reject
from pipeline.runtime.ledger import Ledger

SHOWN = 1 << 20  # bytes of a line that is no document, of which the characters are counted
MAX_LINE = 512 << 20  # bytes; what is longer is no document, and would not fit a small machine's memory
UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)  # what decoding a line may raise
LINE_BEGINS = b'{"text":"'
# Offset of the line in its file's text, the document's text, and the set it comes from; a text of None was rejected.
Row = tuple[int, str | None, str]


class Record(msgspec.Struct):
    """One JSON line. Only its text must be right: what else it holds is looked at when it is asked for."""

    text: str
    raw_title: msgspec.Raw = msgspec.field(default=msgspec.Raw(b'""'), name="title")
    raw_meta: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"null"), name="meta")

    @property
    def title(self) -> str:
        """The title where it is a string, else ""."""
        title = value_of(self.raw_title)
        return title if isinstance(title, str) else ""

    @property
    def meta(self) -> Any:
        return value_of(self.raw_meta)


_decode_record = msgspec.json.Decoder(Record).decode


def value_of(raw: msgspec.Raw) -> Any:
    """What a field says that need not be right, None where it cannot be read."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):  # a number beyond all bounds, broken UTF-8
        return None


def lines(pieces: Iterator[bytes]) -> Iterator[tuple[int, bytes, bool]]:
    """Byte offset and bytes of each line, and whether that is all of it: of one above MAX_LINE the beginning is given.

    Split on b"\\n" alone: str.splitlines also splits at U+2028 and others.
    """
    offset, size = 0, 0
    held: list[bytes] = []
    for piece in pieces:
        head, newline, rest = piece.partition(b"\n")
        size += len(head)
        if size <= MAX_LINE:
            held.append(head)
        elif sum(map(len, held)) > EXCERPT:
            held = [b"".join(held)[:EXCERPT]]
        if not newline:
            continue
        yield offset, b"".join(held), size <= MAX_LINE
        offset += size + 1
        *whole, last = rest.split(b"\n")
        for line in whole:
            yield offset, line, len(line) <= MAX_LINE
            offset += len(line) + 1
        held, size = [last], len(last)
    if size:
        yield offset, b"".join(held), size <= MAX_LINE


def parse(line: bytes) -> Record | str:
    """The record in one line, or the reason why there is none."""
    try:
        return _decode_record(line)
    except UNREADABLE as error:
        return reason_of(error, line)


def reason_of(error: Exception, line: bytes | bytearray) -> str:
    """The reason to reject a line, from what decoding it raised."""
    if isinstance(error, msgspec.ValidationError):
        return "bad-record"
    return "blank-line" if not line or line.isspace() else "bad-json"


def reject_line(
    ledger: Ledger, on_reject: OnReject, reason: str, line: bytes, file: str, number: int, offset: int
) -> None:
    """Account for a line that is no document. Its characters are those of its first MiB, read as well as can be."""
    shown = line[:SHOWN].decode(errors="replace")
    ledger.documents.came += 1
    ledger.documents.drop(reason, 1)
    ledger.characters.came += len(shown)
    ledger.characters.drop(reason, len(shown))
    on_reject(Reject(file, number, offset, reason, shown[:EXCERPT]))


def json_line(text: str, title: str, source: str, meta: Any) -> bytes:
    """A document as one line of a corpus; fields that are empty are left out."""
    fields = {"title": title, "source": source, "meta": meta}
    return msgspec.json.encode({"text": text} | {name: value for name, value in fields.items() if value}) + b"\n"


def line_end(title: str, source: str, meta: Any) -> bytes:
    """What stands behind the text in such a line, from the quote that closes it."""
    return json_line("", title, source, meta).removeprefix(LINE_BEGINS)


class ZstdLines:
    """Writes bytes to a zstd file with a checksum in its frame (the library's default has none)."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed in close()
        self._zstd = zstandard.ZstdCompressor(level=6, write_checksum=True).stream_writer(self._file)
        self.write = self._zstd.write

    def write_reject(self, reject: Reject) -> None:
        self.write(msgspec.json.encode(reject) + b"\n")

    def close(self) -> None:
        self._zstd.close()
        self._file.close()

    def __enter__(self) -> ZstdLines:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Meta(msgspec.Struct, gc=False):
    pile_set_name: str = ""


class _Line(msgspec.Struct, gc=False):
    text: str
    meta: _Meta | None = None


_decode_lines = msgspec.json.Decoder(_Line).decode_lines


def decode(data: bytes, file: str, offset: int, ledger: Ledger, on_reject: OnReject) -> list[Row]:
    """A row for each line of `data`, which begins at byte `offset` of the text of `file`.

    What came in, and what was dropped as bad, goes to `ledger`; the lines of rejects count from 0. All lines are
    decoded at once, as nearly all pieces allow. Where one is not a record of the usual kind, or where a line might
    not be exactly one record, each is decoded by itself.
    """
    starts = _line_starts(data)
    if _one_object_a_line(data, starts):
        try:
            rows = _decode_lines(data)
        except UNREADABLE:
            rows = []
        if len(rows) == len(starts):
            ledger.documents.came += len(rows)
            ledger.characters.came += sum(len(row.text) for row in rows)
            named = [row.meta.pile_set_name if row.meta else "" for row in rows]
            return [(offset + start, row.text, name) for start, row, name in zip(starts, rows, named, strict=True)]
    ends = [*(start - 1 for start in starts[1:]), len(data.removesuffix(b"\n"))]
    return [
        _decode_one(data[start:end], file, number, offset + start, ledger, on_reject)
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _decode_one(line: bytes, file: str, number: int, offset: int, ledger: Ledger, on_reject: OnReject) -> Row:
    found = parse(line)
    if isinstance(found, str):
        reject_line(ledger, on_reject, found, line, file, number, offset)
        return offset, None, ""
    ledger.documents.came += 1
    ledger.characters.came += len(found.text)
    return offset, found.text, set_name(found.meta)


def set_name(meta: object) -> str:
    """The Pile's name of the set that a document comes from, "" where there is none."""
    name = meta.get("pile_set_name") if isinstance(meta, dict) else ""
    return name if isinstance(name, str) else ""


def _line_starts(data: bytes) -> list[int]:
    starts, place = [0], data.find(b"\n")
    while 0 <= place < len(data) - 1:
        starts.append(place + 1)
        place = data.find(b"\n", place + 1)
    return starts


def _one_object_a_line(data: bytes, starts: list[int]) -> bool:
    """Whether every line begins with { and ends with }. A stream of as many objects as lines is then one on each: an
    object that went on in the next line would need a comma or a colon between its } and {."""
    opening, closing = b"{}"
    return data.endswith((b"}\n", b"}")) and all(
        data[start] == opening and (not start or data[start - 2] == closing) for start in starts
    )
