"""From files to documents: decompress, decode, parse; count and set aside what is bad.

zstd is read frame by frame, and every frame must end: the library's own readers accept a truncated file in silence
(reference/reliability.md, M1 to M3).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import zstandard

from pipeline.errors import BadConfig, BadData
from pipeline.ledger import Ledger
from pipeline.progress import Advance

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_FIRST, _SKIPPABLE_MAGIC = bytes(range(0x50, 0x60)), b"\x2a\x4d\x18"  # RFC 8878, section 3.1.2
_SLICE = 1 << 14  # a frame can expand 32,768 times: this bounds one call's output at 512 MiB
_BLOCK = 1 << 20
_MAX_WINDOW = 1 << 27
SUFFIXES = tuple(kind + packed for kind in (".jsonl", ".json", ".txt") for packed in ("", ".zst", ".gz"))


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
        return Reject(self.file, self.line, self.offset, reason, self.text[:200])


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that could not become a document, or did not stay one."""

    file: str
    line: int
    offset: int
    reason: str
    excerpt: str


OnReject = Callable[[Reject], None]


class _JSONLine(msgspec.Struct):
    text: str
    title: Any = ""
    meta: Any = None


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
    plain = path.name.removesuffix(".zst").removesuffix(".gz")
    if plain.endswith(".jsonl"):
        yield from _read_json_lines(path, ledger, on_reject, advance)
    elif plain.endswith(".json"):
        yield from _read_poems(path, ledger, advance)
    else:
        text = _decode(path, b"".join(blocks(path, advance)), encoding)
        ledger.documents.came += 1
        ledger.characters.came += len(text)
        yield Document(text, file=path.name)


def blocks(path: Path, advance: Advance = lambda count: None) -> Iterator[bytes]:
    """The decompressed bytes of a file in pieces; `advance` hears how many bytes of the file itself were read."""
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
    frame, position, start = 0, 0, 0
    reader: Any = None
    pending = b""
    while data := pending or handle.read(_SLICE):
        if reader is None and len(data) < 4:  # a magic number split over two slices
            data += handle.read(4 - len(data))
        advance(handle.tell() - position)
        position = handle.tell()
        pending = b""
        if reader is None:
            if not begins_zstd(data):
                raise BadData(
                    f"{path}: {_what_it_is(data)} where zstd frame {frame + 1} should begin, at byte {start:,}",
                    hint="download the file again",
                )
            reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
        try:
            out = reader.decompress(data)
        except zstandard.ZstdError as error:
            raise BadData(
                f"{path}: zstd frame {frame + 1} is broken near byte {position:,}: {error}",
                hint="download the file again",
            ) from None
        if out:
            yield out
        if reader.eof:
            pending = reader.unused_data
            frame, start, reader = frame + 1, position - len(pending), None
    if reader is not None:
        raise BadData(
            f"{path}: zstd frame {frame + 1} is cut short, the file ends at byte {position:,}",
            hint="download the file again",
        )
    if frame == 0:
        raise BadData(f"{path}: the file is empty", hint="download the file again")


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
        raise BadData(f"{path}: not whole gzip data: {error}", hint="download the file again") from None
    if empty and not handle.tell():
        raise BadData(f"{path}: the file is empty", hint="download the file again")


def lines(pieces: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Byte offset and bytes of each line, split on b"\\n" alone (str.splitlines also splits at U+2028 and others)."""
    offset = 0
    held: list[bytes] = []
    for piece in pieces:
        head, newline, rest = piece.partition(b"\n")
        held.append(head)
        if not newline:
            continue
        line = b"".join(held)
        yield offset, line
        offset += len(line) + 1
        *whole, last = rest.split(b"\n")
        for line in whole:
            yield offset, line
            offset += len(line) + 1
        held = [last]
    if tail := b"".join(held):
        yield offset, tail


def _read_json_lines(path: Path, ledger: Ledger, on_reject: OnReject, advance: Advance) -> Iterator[Document]:
    decode = msgspec.json.Decoder(_JSONLine).decode
    for number, (offset, line) in enumerate(lines(blocks(path, advance)), start=1):
        ledger.documents.came += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which JSON does not know
        try:
            entry = decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            shown = line[: 1 << 20].decode(errors="replace")
            if not line.strip():
                reason = "blank-line"
            elif isinstance(error, msgspec.ValidationError):
                reason = "bad-record"
            else:
                reason = "bad-json"
            ledger.documents.drop(reason, 1)
            ledger.characters.came += len(shown)
            ledger.characters.drop(reason, len(shown))
            on_reject(Reject(path.name, number, offset, reason, shown[:200]))
            continue
        ledger.characters.came += len(entry.text)
        title = entry.title if isinstance(entry.title, str) else ""
        yield Document(entry.text, title, entry.meta, path.name, number, offset)


def _read_poems(path: Path, ledger: Ledger, advance: Advance) -> Iterator[Document]:
    try:
        poems = msgspec.json.decode(b"".join(blocks(path, advance)), type=list[_Poem])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(
            f"{path}: not a chinese-poetry file (a JSON list of objects with `paragraphs`): {error}",
            hint="give JSON lines with `text` as .jsonl, or plain text as .txt",
        ) from None
    for number, poem in enumerate(poems, start=1):
        text = "\n".join(poem.paragraphs)
        ledger.documents.came += 1
        ledger.characters.came += len(text)
        meta = {"author": poem.author} if poem.author else None
        yield Document(text, poem.title or poem.rhythmic or poem.chapter, meta, path.name, number)


_BOMS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_NOT_TEXT = {b"PK\x03\x04": "a Word file or another archive", b"%PDF": "a PDF", b"\xd0\xcf\x11\xe0": "an old Word file"}


def _decode(path: Path, data: bytes, encoding: str) -> str:
    """The text of a file. A byte order mark is proof of its encoding, whatever `encoding` says."""
    if kind := next((kind for magic, kind in _NOT_TEXT.items() if data.startswith(magic)), ""):
        raise BadData(f"{path}: {kind}, not a text", hint="save it as plain text (.txt) first")
    encoding = next((name for mark, name in _BOMS.items() if data.startswith(mark)), encoding)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadData(
            f"{path}: not {encoding} text: byte {data[error.start]:#04x} at offset {error.start:,}",
            hint="name the right one with --encoding (gb18030, big5, utf-16), or check that it is a text",
        ) from None
    except LookupError:
        raise BadConfig(f"there is no encoding {encoding!r}", hint="for example utf-8, gb18030, big5") from None


def json_line(text: str, title: str, source: str, meta: Any) -> bytes:
    """A document as one line of a corpus; fields that are empty are left out."""
    fields = {"text": text, "title": title, "source": source, "meta": meta}
    return msgspec.json.encode({name: value for name, value in fields.items() if value}) + b"\n"


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
