"""Readers: any file that has texts as a stream of documents, or of JSON lines.

`read` gives documents one by one, for cleaning. `json_lines` gives JSON lines, the one form that tokenizing cuts into
pieces of work.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pipeline.errors import BadData
from pipeline.readers import chinese_poetry as poems
from pipeline.readers import encoding as decoding
from pipeline.readers import jsonl
from pipeline.readers.compression import blocks
from pipeline.readers.documents import Document, OnReject, Reject
from pipeline.readers.encoding import Facts
from pipeline.readers.parquet import _rows
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Advance

KINDS = (".jsonl", ".json", ".txt", ".parquet")
SUFFIXES = (*(kind + packed for kind in KINDS[:3] for packed in ("", ".zst", ".gz")), ".parquet")
_BOM = b"\xef\xbb\xbf"


def read(
    path: Path,
    ledger: Ledger,
    on_reject: OnReject,
    *,
    encoding: str = decoding.AUTO,
    advance: Advance = lambda count: None,
) -> Iterator[Document]:
    """Documents of one file in order, by the end of its name (see SUFFIXES).

    What came in and what was dropped as bad goes to `ledger`; the caller accounts for every document it is given.
    `encoding` is that of a text file. Raises BadData when the file as a whole cannot be trusted.
    """
    kind = _kind(path)
    if kind == ".jsonl":
        yield from _read_json_lines(path, ledger, on_reject, advance)
        return
    if kind == ".txt":
        found = iter([_text(path, ledger, on_reject, encoding, advance)])
    else:
        found = _whole_documents(path, kind, advance)
    for document in found:
        ledger.documents.came += 1
        ledger.characters.came += len(document.text)
        yield document


def json_lines(path: Path, advance: Advance = lambda count: None, *, encoding: str = decoding.AUTO) -> Iterator[bytes]:
    """Any file as blocks of JSON lines: those of a .jsonl as they are, every other document as a line of its own.

    Raises BadData when the file as a whole cannot be trusted, also where a text ends within a character.
    """
    kind = _kind(path)
    if kind == ".jsonl":
        found = _with_head(blocks(path, advance))
        yield next(found, b"").removeprefix(_BOM)  # a byte order mark, which JSON does not know
        yield from found
    elif kind == ".txt":  # as it is read: a text file is one document, however long
        facts = Facts()
        yield b'{"text":"'
        for text in decoding.text(path, facts, encoding=encoding, advance=advance):
            yield msgspec.json.encode(text)[1:-1]
        if facts.cut:  # there is no ledger here that it could be counted in
            raise BadData(
                f"{path}: it ends within a character (bytes {facts.cut.hex(' ')} at offset {facts.cut_at:,})",
                hint="get the file again, or `clean` it: that keeps the rest, and counts what is lost",
            )
        yield b'"}\n'
    else:
        for document in _whole_documents(path, kind, advance):
            yield jsonl.json_line(document.text, document.title, "", document.meta)


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


def _whole_documents(path: Path, kind: str, advance: Advance) -> Iterator[Document]:
    yield from poems.read(path, advance) if kind == ".json" else _rows(path, advance)


def _text(path: Path, ledger: Ledger, on_reject: OnReject, encoding: str, advance: Advance) -> Document:
    """A text file as one document. What is left of a cut last character is counted and set aside."""
    facts = Facts()
    text = "".join(decoding.text(path, facts, encoding=encoding, advance=advance))
    if facts.cut:
        ledger.documents.came += 1
        ledger.documents.drop("truncated-end", 1)
        on_reject(Reject(path.name, 0, facts.cut_at, "truncated-end", facts.cut.hex(" ")))
    return Document(text, file=path.name)


def _read_json_lines(path: Path, ledger: Ledger, on_reject: OnReject, advance: Advance) -> Iterator[Document]:
    for number, (offset, line, whole) in enumerate(jsonl.lines(json_lines(path, advance)), start=1):
        found = jsonl.parse(line) if whole else "bad-too-long"
        if isinstance(found, str):
            jsonl.reject_line(ledger, on_reject, found, line, path.name, number, offset)
            continue
        ledger.documents.came += 1
        ledger.characters.came += len(found.text)
        yield Document(found.text, found.title, found.meta, path.name, number, offset)
