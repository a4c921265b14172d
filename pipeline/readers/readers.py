"""Read a file as a stream of documents or of JSON lines; the end of its name selects the reader.

`read_documents` yields documents one by one, for cleaning. `read_json_lines` yields JSON lines, the format that
tokenizing splits into chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pipeline.errors import BadData
from pipeline.readers import chinese_poetry, jsonl, parquet
from pipeline.readers import encoding as encodings
from pipeline.readers.compression import read_blocks
from pipeline.readers.documents import Document, OnReject, Reject
from pipeline.readers.encoding import EncodingStats
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Advance

PLAIN_SUFFIXES = (".jsonl", ".json", ".txt", ".parquet")
SUFFIXES = (*(kind + packed for kind in PLAIN_SUFFIXES[:3] for packed in ("", ".zst", ".gz")), ".parquet")
_BOM = b"\xef\xbb\xbf"


def read_documents(
    path: Path,
    ledger: Ledger,
    on_reject: OnReject,
    *,
    encoding: str = encodings.AUTO,
    advance: Advance = lambda count: None,
) -> Iterator[Document]:
    """Yield the documents of one file in order. SUFFIXES lists the names that are known; others are read as text.

    Input and rejects are counted in `ledger`; the caller counts as output or dropped every document it receives.
    `encoding` applies to text files. Raises BadData if the file is truncated, corrupt or not text.
    """
    kind = _kind(path)
    if kind == ".jsonl":
        yield from _read_jsonl(path, ledger, on_reject, advance)
        return
    if kind == ".txt":
        documents = iter([_read_text(path, ledger, on_reject, encoding, advance)])
    else:
        documents = _read_container(path, kind, advance)
    for document in documents:
        ledger.documents.came += 1
        ledger.characters.came += len(document.text)
        yield document


def read_json_lines(
    path: Path, advance: Advance = lambda count: None, *, encoding: str = encodings.AUTO
) -> Iterator[bytes]:
    """Yield a file as blocks of JSON lines: a .jsonl unchanged, each document of any other file as one line.

    Raises BadData if the file is truncated, corrupt or not text, also if a text ends within a character.
    """
    kind = _kind(path)
    if kind == ".jsonl":
        file_blocks = _with_joined_head(read_blocks(path, advance))
        yield next(file_blocks, b"").removeprefix(_BOM)  # JSON does not allow a byte order mark
        yield from file_blocks
    elif kind == ".txt":  # streamed: a text file is one document of any length
        stats = EncodingStats()
        yield b'{"text":"'
        for text in encodings.read_text(path, stats, encoding=encoding, advance=advance):
            yield msgspec.json.encode(text)[1:-1]
        if stats.truncated_bytes:  # there is no ledger here to count it in
            raise BadData(
                f"{path}: the file ends within a character "
                f"(bytes {stats.truncated_bytes.hex(' ')} at offset {stats.truncated_offset:,})",
                hint="download it again, or run `clean` on it, which keeps the rest and counts the lost bytes",
            )
        yield b'"}\n'
    else:
        for document in _read_container(path, kind, advance):
            yield jsonl.encode_line(document.text, document.title, "", document.meta)


def has_many_documents(path: Path) -> bool:
    """Return True if a file may hold more than one document."""
    return _kind(path) != ".txt"


def _kind(path: Path) -> str:
    name = path.name.removesuffix(".zst").removesuffix(".gz")
    return next((kind for kind in PLAIN_SUFFIXES if name.endswith(kind)), ".txt")


def _with_joined_head(file_blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes, with the first block long enough to hold a byte order mark."""
    head = b""
    for block in file_blocks:
        head += block
        if len(head) >= 4:
            break
    yield head
    yield from file_blocks


def _read_container(path: Path, kind: str, advance: Advance) -> Iterator[Document]:
    yield from chinese_poetry.read(path, advance) if kind == ".json" else parquet.read(path, advance)


def _read_text(path: Path, ledger: Ledger, on_reject: OnReject, encoding: str, advance: Advance) -> Document:
    """Read a text file as one document. The bytes of a truncated last character are counted as a reject."""
    stats = EncodingStats()
    text = "".join(encodings.read_text(path, stats, encoding=encoding, advance=advance))
    if stats.truncated_bytes:
        ledger.documents.came += 1
        ledger.documents.record_dropped("truncated-end", 1)
        on_reject(Reject(path.name, 0, stats.truncated_offset, "truncated-end", stats.truncated_bytes.hex(" ")))
    return Document(text, file=path.name)


def _read_jsonl(path: Path, ledger: Ledger, on_reject: OnReject, advance: Advance) -> Iterator[Document]:
    for number, (offset, line, is_complete) in enumerate(jsonl.split_lines(read_json_lines(path, advance)), start=1):
        record = jsonl.parse_line(line) if is_complete else "bad-too-long"
        if isinstance(record, str):
            jsonl.reject_line(ledger, on_reject, record, line, path.name, number, offset)
            continue
        ledger.documents.came += 1
        ledger.characters.came += len(record.text)
        yield Document(record.text, record.title, record.meta, path.name, number, offset)
