"""Readers: any file that has texts as a stream of documents, or of JSON lines.

`read` gives documents one by one, for cleaning. `json_lines` gives JSON lines, the one form that tokenizing cuts into
pieces of work.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import msgspec

from pipeline import documents
from pipeline.compression import blocks
from pipeline.documents import Document, OnReject
from pipeline.errors import BadConfig, BadData
from pipeline.ledger import Ledger
from pipeline.progress import Advance

KINDS = (".jsonl", ".json", ".txt", ".parquet")
SUFFIXES = (*(kind + packed for kind in KINDS[:3] for packed in ("", ".zst", ".gz")), ".parquet")
_BOM = b"\xef\xbb\xbf"


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
            yield documents.json_line(document.text, document.title, "", document.meta)


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


def _read_json_lines(path: Path, ledger: Ledger, on_reject: OnReject, advance: Advance) -> Iterator[Document]:
    for number, (offset, line, whole) in enumerate(documents.lines(json_lines(path, advance)), start=1):
        found = documents.parse(line) if whole else "bad-too-long"
        if isinstance(found, str):
            documents.reject_line(ledger, on_reject, found, line, path.name, number, offset)
            continue
        ledger.documents.came += 1
        ledger.characters.came += len(found.text)
        yield Document(found.text, found.title, found.meta, path.name, number, offset)


class _Poem(msgspec.Struct):
    """One entry of a chinese-poetry file: poems have a title, ci a tune (rhythmic), the classics a chapter."""

    paragraphs: list[str]
    title: str = ""
    rhythmic: str = ""
    chapter: str = ""
    author: str = ""


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
