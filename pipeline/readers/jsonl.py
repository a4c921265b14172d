"""JSON lines: the format of corpora, of the Pile and of reject lists.

A line is an object with the string `text`, and optionally `title`, `source` and `meta`. The lines of a corpus have all
four as strings, `meta` as JSON, because other programs infer the fields and types of a file from its first lines. In
the order of this file:

    encode_line               a document of a file of another kind
    LINE_PREFIX, line_suffix  a document of a corpus
    ZstdWriter                writes rejects
    parse_turns               the messages of a line, for tokenizing a corpus of conversations
    split_lines, parse_line   split bytes into lines and decode one, for cleaning
    decode_lines              decode a chunk of lines at once, for tokenizing

A line that is not a document is a reject: it is counted in the ledger under its reason, and reading continues.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import zstandard

from pipeline.readers.documents import EXCERPT_CHARACTERS, OnReject, Reject
from pipeline.runtime.ledger import Ledger

COUNTED_BYTES = 1 << 20  # bytes of a reject in which characters are counted
MAX_LINE_BYTES = 512 << 20  # bytes; a longer line would not fit in the memory of a small machine
DECODE_ERRORS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)  # the errors of decoding a line
LINE_PREFIX = b'{"text":"'


# Write


def encode_line(text: str, title: str, source: str, meta: Any) -> bytes:
    """Return a document as one line without empty fields."""
    fields = {"title": title, "source": source, "meta": meta}
    return msgspec.json.encode({"text": text} | {name: value for name, value in fields.items() if value}) + b"\n"


def line_suffix(title: str, source: str, meta: Any, turns: bytes = b"") -> bytes:
    """Return the line of a corpus after its text, from the closing quote. Every field is a string, "" if empty.

    `turns` are the fields with the messages of a conversation, as JSON without brackets.
    """
    fields = {"title": title, "source": source, "meta": pack_meta(meta)}
    end = b"," + turns + b"}" if turns else b"}"
    return b'",' + msgspec.json.encode(fields).removeprefix(b"{").removesuffix(b"}") + end + b"\n"


def pack_meta(meta: Any) -> str:
    """Return metadata as a corpus holds it: a string of JSON, "" without any. The inverse is `unpack_meta`."""
    if isinstance(meta, str):
        return meta
    return msgspec.json.encode(meta).decode() if meta else ""


class ZstdWriter:
    """Zstd file writer that adds a checksum to its frame (the library's default does not)."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed in close()
        self._zstd: BinaryIO = zstandard.ZstdCompressor(level=6, write_checksum=True).stream_writer(self._file)
        self.write = self._zstd.write

    def write_reject(self, reject: Reject) -> None:
        self.write(msgspec.json.encode(reject) + b"\n")

    def close(self) -> None:
        self._zstd.close()
        self._file.close()

    def __enter__(self) -> ZstdWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# Read line by line


class _Message(msgspec.Struct):
    role: str
    content: str


class _Conversation(msgspec.Struct):
    messages: list[_Message] = []
    chosen: list[_Message] = []
    rejected: list[_Message] = []
    raw_meta: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"null"), name="meta")


_decode_conversation = msgspec.json.Decoder(_Conversation).decode


class Turns(NamedTuple):
    """The messages of one conversation, or of the chosen and the rejected one of a preference pair.

    `is_held_out` is True if its record says that it is for validation.
    """

    conversations: list[list[dict[str, str]]]
    is_held_out: bool


def parse_turns(line: bytes) -> Turns:
    """Return the messages of a line. Raises one of DECODE_ERRORS for a line without any."""
    record = _decode_conversation(line)
    conversations = [record.messages] if record.messages else [record.chosen, record.rejected]
    if not all(conversations):
        raise msgspec.ValidationError("no messages")
    meta = unpack_meta(decode_field(record.raw_meta))
    return Turns(
        [[msgspec.structs.asdict(message) for message in messages] for messages in conversations],
        isinstance(meta, dict) and meta.get("held_out") is True,
    )


class Record(msgspec.Struct):
    """One decoded line. Only `text` must be valid; `title` and `meta` are decoded on access."""

    text: str
    raw_title: msgspec.Raw = msgspec.field(default=msgspec.Raw(b'""'), name="title")
    raw_meta: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"null"), name="meta")

    @property
    def title(self) -> str:
        """The title if it is a string, else ""."""
        title = decode_field(self.raw_title)
        return title if isinstance(title, str) else ""

    @property
    def meta(self) -> Any:
        """The decoded meta, or None if it cannot be decoded."""
        return unpack_meta(decode_field(self.raw_meta))


_decode_record = msgspec.json.Decoder(Record).decode


def decode_field(raw: msgspec.Raw) -> Any:
    """Decode an optional field; return None if it is not valid (a number out of range, broken UTF-8)."""
    try:
        return msgspec.json.decode(raw)
    except DECODE_ERRORS:
        return None


def unpack_meta(meta: Any) -> Any:
    """Return the object or list that a corpus holds as a string of JSON, None for "", and any other value as it is."""
    if not isinstance(meta, str) or not meta.startswith(("{", "[")):
        return None if meta == "" else meta
    try:
        return msgspec.json.decode(meta)
    except DECODE_ERRORS:
        return meta


def split_lines(blocks: Iterator[bytes]) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (byte offset, line, is_complete) for each line, without its line break.

    A line longer than MAX_LINE is not complete: only its beginning is returned, at least EXCERPT bytes. Lines are split
    at b"\\n" alone, because str.splitlines also splits at U+2028 and others.
    """
    offset, size = 0, 0
    parts: list[bytes] = []  # of the current line
    for block in blocks:
        head, newline, tail = block.partition(b"\n")
        size += len(head)
        if size <= MAX_LINE_BYTES:
            parts.append(head)
        elif sum(map(len, parts)) > EXCERPT_CHARACTERS:
            parts = [b"".join(parts)[:EXCERPT_CHARACTERS]]
        if not newline:
            continue
        yield offset, b"".join(parts), size <= MAX_LINE_BYTES
        offset += size + 1
        *complete_lines, last = tail.split(b"\n")
        for line in complete_lines:
            yield offset, line, len(line) <= MAX_LINE_BYTES
            offset += len(line) + 1
        parts, size = [last], len(last)
    if size:
        yield offset, b"".join(parts), size <= MAX_LINE_BYTES


def parse_line(line: bytes) -> Record | str:
    """Decode one line, after a byte order mark. Return the reason to reject it if it is not a document."""
    try:
        return _decode_record(line.removeprefix(codecs.BOM_UTF8))
    except DECODE_ERRORS as error:
        return reject_reason(error, line)


def reject_reason(error: Exception, line: bytes | bytearray) -> str:
    """Return the reason to reject `line`, given the error that decoding it raised."""
    if isinstance(error, msgspec.ValidationError):
        return "bad-record"
    return "blank-line" if not line or line.isspace() else "bad-json"


def reject_line(
    ledger: Ledger, on_reject: OnReject, reason: str, line: bytes, file: str, number: int, offset: int
) -> None:
    """Count a rejected line and report it to `on_reject`. Characters are counted in its first MiB only."""
    text = line[:COUNTED_BYTES].decode(errors="replace")
    ledger.documents.came += 1
    ledger.documents.record_dropped(reason, 1)
    ledger.characters.came += len(text)
    ledger.characters.record_dropped(reason, len(text))
    on_reject(Reject(file, number, offset, reason, text[:EXCERPT_CHARACTERS]))


# Read a chunk at once

# Offset of the line in its decompressed file, text of the document (None: rejected), name of its subset of the Pile.
DecodedLine = tuple[int, str | None, str]


class _PileMeta(msgspec.Struct, gc=False):
    pile_set_name: str = ""


class _PileLine(msgspec.Struct, gc=False):
    text: str
    meta: _PileMeta | str | None = None

    @property
    def set_name(self) -> str:
        if isinstance(self.meta, _PileMeta):
            return self.meta.pile_set_name
        return pile_set_name(self.meta) if self.meta and "pile_set_name" in self.meta else ""


_decode_objects = msgspec.json.Decoder(_PileLine).decode_lines


def decode_lines(data: bytes, file: str, offset: int, ledger: Ledger, on_reject: OnReject) -> list[DecodedLine]:
    """Decode a chunk of lines that starts at byte `offset` of the decompressed `file`; return a row for each line.

    Documents and rejects are counted in `ledger`; the line numbers of rejects count from 0 within the chunk. All lines
    are decoded in one call. If one fails, or might not be exactly one object, they are decoded one by one.
    """
    starts = _line_starts(data)
    if _has_one_object_per_line(data, starts):
        try:
            records = _decode_objects(data)
        except DECODE_ERRORS:
            records = []
        if len(records) == len(starts):
            ledger.documents.came += len(records)
            ledger.characters.came += sum(len(record.text) for record in records)
            return [
                (offset + start, record.text, record.set_name) for start, record in zip(starts, records, strict=True)
            ]
    ends = [*(start - 1 for start in starts[1:]), len(data.removesuffix(b"\n"))]
    return [
        _decode_one(data[start:end], file, number, offset + start, ledger, on_reject)
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _decode_one(line: bytes, file: str, number: int, offset: int, ledger: Ledger, on_reject: OnReject) -> DecodedLine:
    record = parse_line(line)
    if isinstance(record, str):
        reject_line(ledger, on_reject, record, line, file, number, offset)
        return offset, None, ""
    ledger.documents.came += 1
    ledger.characters.came += len(record.text)
    return offset, record.text, pile_set_name(record.meta)


def pile_set_name(meta: object) -> str:
    """Return the name of the subset of the Pile that a document belongs to, or ""."""
    meta = unpack_meta(meta)
    name = meta.get("pile_set_name") if isinstance(meta, dict) else ""
    return name if isinstance(name, str) else ""


def _line_starts(data: bytes) -> list[int]:
    starts, newline = [0], data.find(b"\n")
    while 0 <= newline < len(data) - 1:
        starts.append(newline + 1)
        newline = data.find(b"\n", newline + 1)
    return starts


def _has_one_object_per_line(data: bytes, starts: list[int]) -> bool:
    """Return True if every line begins with { and ends with }.

    If such data decodes to as many objects as lines, each line is one object: an object that spanned two lines would
    need a comma or a colon between the } and the {.
    """
    opening, closing = b"{}"
    return data.endswith((b"}\n", b"}")) and all(
        data[start] == opening and (not start or data[start - 2] == closing) for start in starts
    )
