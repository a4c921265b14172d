"""Documents, and the JSON lines that they are read from and written to; what is bad is counted and set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from pipeline.runtime.ledger import Ledger

SHOWN = 1 << 20  # bytes of a line that is no document, of which the characters are counted
MAX_LINE = 512 << 20  # bytes; what is longer is no document, and would not fit a small machine's memory
EXCERPT = 200  # characters of a reject that are kept


@dataclass(frozen=True, slots=True)
class Document:
    """One text with where it came from. `line` counts from 1, `offset` in bytes of the decompressed file."""

    text: str
    title: str = ""
    meta: Any = None
    file: str = ""
    line: int = 1
    offset: int = 0

    def as_reject(self, reason: str) -> Reject:
        """The record of this document, or of a part of it, having been dropped."""
        return Reject(self.file, self.line, self.offset, reason, self.text[:EXCERPT])


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that could not become a document, or did not stay one."""

    file: str
    line: int
    offset: int
    reason: str
    excerpt: str


OnReject = Callable[[Reject], None]


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


_decode_record = msgspec.json.Decoder(Record).decode
UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)  # what decoding a line may raise


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


LINE_BEGINS = b'{"text":"'


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
