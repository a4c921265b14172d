"""From files to documents: decode, parse; count and set aside what is bad.

`read` gives documents one by one, for cleaning. `json_lines` gives any file as a stream of JSON lines, the one form
that tokenizing cuts into pieces of work.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from pipeline.compression import blocks
from pipeline.errors import BadConfig, BadData
from pipeline.ledger import Ledger
from pipeline.progress import Advance

KINDS = (".jsonl", ".json", ".txt", ".parquet")
SUFFIXES = (*(kind + packed for kind in KINDS[:3] for packed in ("", ".zst", ".gz")), ".parquet")
SHOWN = 1 << 20  # bytes of a line that is no document, of which the characters are counted
MAX_LINE = 512 << 20  # bytes; what is longer is no document, and would not fit a small machine's memory
_EXCERPT = 200
_BOM = b"\xef\xbb\xbf"


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
        return Reject(self.file, self.line, self.offset, reason, self.text[:_EXCERPT])


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


class _Poem(msgspec.Struct):
    """One entry of a chinese-poetry file: poems have a title, ci a tune (rhythmic), the classics a chapter."""

    paragraphs: list[str]
    title: str = ""
    rhythmic: str = ""
    chapter: str = ""
    author: str = ""


def read(
    path: Path,
    ledger: Ledger,
    on_reject: OnReject,
    *,
    encoding: str = "utf-8",
    advance: Advance = lambda count: None,
) -> Iterator[Document]:
    """Documents of one file in order, by the end of its name (see SUFFIXES).

    What came in and what was dropped as bad goes to `ledger`; the caller accounts for every document it is given.
    Raises BadData when the file as a whole cannot be trusted.
    """
    kind = _kind(path)
    if kind == ".jsonl":
        yield from _read_json_lines(path, ledger, on_reject, advance)
        return
    for document in _whole_documents(path, kind, encoding, advance):
        ledger.documents.came += 1
        ledger.characters.came += len(document.text)
        yield document


def json_lines(path: Path, advance: Advance = lambda count: None) -> Iterator[bytes]:
    """Any file as blocks of JSON lines: those of a .jsonl as they are, every other document as a line of its own."""
    kind = _kind(path)
    if kind == ".jsonl":
        found = _with_head(blocks(path, advance))
        yield next(found, b"").removeprefix(_BOM)  # a byte order mark, which JSON does not know
        yield from found
    elif kind == ".txt":  # as it is read: a text file is one document, however long
        yield b'{"text":"'
        for number, text in enumerate(_text(path, "utf-8", advance)):
            yield msgspec.json.encode(text if number else text.removeprefix("\ufeff"))[1:-1]
        yield b'"}\n'
    else:
        for document in _whole_documents(path, kind, "utf-8", advance):
            yield json_line(document.text, document.title, "", document.meta)


def has_lines(path: Path) -> bool:
    """Whether a file may hold more than one document."""
    return _kind(path) != ".txt"


def _kind(path: Path) -> str:
    plain = path.name.removesuffix(".zst").removesuffix(".gz")
    return next((kind for kind in KINDS if plain.endswith(kind)), ".txt")


def _with_head(found: Iterator[bytes]) -> Iterator[bytes]:
    """The same blocks, the first of them long enough to tell by it what the file is."""
    head = b""
    for block in found:
        head += block
        if len(head) >= 4:
            break
    yield head
    yield from found


def _whole_documents(path: Path, kind: str, encoding: str, advance: Advance) -> Iterator[Document]:
    if kind == ".json":
        yield from _poems(path, advance)
    elif kind == ".parquet":
        yield from _rows(path, advance)
    else:
        yield Document("".join(_text(path, encoding, advance)), file=path.name)


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
        elif sum(map(len, held)) > _EXCERPT:
            held = [b"".join(held)[:_EXCERPT]]
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


def _read_json_lines(path: Path, ledger: Ledger, on_reject: OnReject, advance: Advance) -> Iterator[Document]:
    for number, (offset, line, whole) in enumerate(lines(json_lines(path, advance)), start=1):
        found = parse(line) if whole else "bad-too-long"
        if isinstance(found, str):
            reject_line(ledger, on_reject, found, line, path.name, number, offset)
            continue
        ledger.documents.came += 1
        ledger.characters.came += len(found.text)
        yield Document(found.text, found.title, found.meta, path.name, number, offset)


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
    on_reject(Reject(file, number, offset, reason, shown[:_EXCERPT]))


def _poems(path: Path, advance: Advance) -> Iterator[Document]:
    try:
        poems = msgspec.json.decode(b"".join(blocks(path, advance)), type=list[_Poem])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(
            f"{path}: not a chinese-poetry file (a JSON list of objects with `paragraphs`): {error}",
            hint="give JSON lines with `text` as .jsonl, or plain text as .txt",
        ) from None
    for number, poem in enumerate(poems, start=1):
        meta = {"author": poem.author} if poem.author else None
        title = poem.title or poem.rhythmic or poem.chapter
        yield Document("\n".join(poem.paragraphs), title, meta, path.name, number)


def _rows(path: Path, advance: Advance) -> Iterator[Document]:
    """Rows of a Parquet file with a column `text`; `title` and `meta` are taken where they are. Null is no text."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BadConfig(f"{path}: Parquet needs pyarrow", hint="pip install 'inkstone[parquet]'") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise BadData(f"{path}: no column `text`", hint=f"its columns: {', '.join(names)}")
            kind = file.schema_arrow.field("text").type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise BadData(f"{path}: its column `text` is {kind}, not string", hint="write it as strings")
            wanted = [name for name in ("text", "title", "meta") if name in names]
            for batch in file.iter_batches(batch_size=256, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    text = row["text"] if isinstance(row["text"], str) else ""
                    title = row.get("title")
                    yield Document(text, title if isinstance(title, str) else "", row.get("meta"), path.name, number)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk, not of what is on it
            raise
        raise BadData(f"{path}: not a whole Parquet file: {error}", hint="download the file again") from None
    advance(path.stat().st_size)


_BOMS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_NOT_TEXT = {b"PK\x03\x04": "a Word file or another archive", b"%PDF": "a PDF", b"\xd0\xcf\x11\xe0": "an old Word file"}


def _text(path: Path, encoding: str, advance: Advance) -> Iterator[str]:
    """The text of a file in pieces. A byte order mark is proof of its encoding, whatever `encoding` says."""
    decoder: codecs.IncrementalDecoder | None = None
    offset = 0
    for block in chain(_with_head(blocks(path, advance)), [b""]):
        if decoder is None:
            if kind := next((kind for magic, kind in _NOT_TEXT.items() if block.startswith(magic)), ""):
                raise BadData(f"{path}: {kind}, not a text", hint="save it as plain text (.txt) first")
            encoding = next((name for mark, name in _BOMS.items() if block.startswith(mark)), encoding)
            try:
                "".encode(encoding)  # refuses what is no encoding of text, as base64
                decoder = codecs.getincrementaldecoder(encoding)()
            except LookupError:
                raise BadConfig(f"there is no encoding {encoding!r}", hint="for example utf-8, gb18030, big5") from None
        held = len(decoder.getstate()[0])
        try:
            yield decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = offset - held + error.start
            raise BadData(
                f"{path}: not {encoding} text: byte {error.object[error.start]:#04x} at offset {at:,}",
                hint="name the right one with --encoding (gb18030, big5, utf-16), or check that it is a text",
            ) from None
        offset += len(block)


def json_line(text: str, title: str, source: str, meta: Any) -> bytes:
    """A document as one line of a corpus; fields that are empty are left out."""
    fields = {"title": title, "source": source, "meta": meta}
    return msgspec.json.encode({"text": text} | {name: value for name, value in fields.items() if value}) + b"\n"


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
