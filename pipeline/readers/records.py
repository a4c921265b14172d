"""The JSON lines of one piece, decoded at once: as fast as the parser is, and as exact as line by line."""

from __future__ import annotations

import msgspec

from pipeline.readers import documents
from pipeline.readers.documents import OnReject
from pipeline.runtime.ledger import Ledger

# Offset of the line in its file's text, the document's text, and the set it comes from; a text of None was rejected.
Row = tuple[int, str | None, str]


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
        except documents.UNREADABLE:
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
    found = documents.parse(line)
    if isinstance(found, str):
        documents.reject_line(ledger, on_reject, found, line, file, number, offset)
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
