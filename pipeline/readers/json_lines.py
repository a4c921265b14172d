"""Read JSON lines whose text is in any field.

Lines with `text` are passed on unchanged, so that offsets in tokens are those of the file. Every other line is replaced
by a line with `text`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec

from pipeline.readers import fields, jsonl
from pipeline.readers.content import Content, ReadOptions
from pipeline.readers.documents import Document, OnReject, Reject
from pipeline.readers.fields import FieldChoice
from pipeline.readers.records import Row, choose_fields, to_document
from pipeline.runtime.ledger import Ledger

_SAMPLE_BYTES = 16 << 20  # from which the field is chosen
_NOT_JSON = object()


def read_blocks(content: Content, options: ReadOptions) -> Iterator[bytes]:
    """Yield the file as blocks of JSON lines with `text`."""
    choice, blocks = _choose(content, options)
    if choice.is_plain:
        yield from blocks
        return
    for row, line in _rows(blocks):
        if row.value is _NOT_JSON:
            yield line + b"\n"
        else:
            yield encode(to_document(row, choice, content.file))


def read_documents(content: Content, options: ReadOptions, ledger: Ledger, on_reject: OnReject) -> Iterator[Document]:
    """Yield a document for each line; count in `ledger` what was read and rejected."""
    choice, blocks = _choose(content, options)
    documents = _plain_documents(blocks, content.file) if choice.is_plain else _documents(blocks, choice, content.file)
    for document, line in documents:
        if isinstance(document, Reject):
            reject = document
            jsonl.reject_line(ledger, on_reject, reject.reason, line, reject.file, reject.line, reject.offset)
            continue
        ledger.documents.came += 1
        ledger.characters.came += len(document.text)
        yield document


def encode(item: Document | Reject) -> bytes:
    """Return a document as one line. A reject becomes a line that tokenizing rejects, with the same excerpt."""
    if isinstance(item, Reject):
        return msgspec.json.encode(item.excerpt) + b"\n"
    return jsonl.encode_line(item.text, item.title, "", item.meta)


def _plain_documents(blocks: Iterator[bytes], file: str) -> Iterator[tuple[Document | Reject, bytes]]:
    for number, (offset, line, is_complete) in enumerate(jsonl.split_lines(blocks), start=1):
        record = jsonl.parse_line(line) if is_complete else "bad-too-long"
        if isinstance(record, str):
            yield Reject(file, number, offset, record, ""), line
        else:
            yield Document(record.text, record.title, record.meta, file, number, offset), line


def _documents(blocks: Iterator[bytes], choice: FieldChoice, file: str) -> Iterator[tuple[Document | Reject, bytes]]:
    for row, line in _rows(blocks):
        if row.value is _NOT_JSON:
            reason = "blank-line" if not line or line.isspace() else "bad-json"
            yield Reject(file, row.line, row.offset, reason, ""), line
        else:
            yield to_document(row, choice, file), line


def _rows(blocks: Iterator[bytes]) -> Iterator[tuple[Row, bytes]]:
    """Yield each line decoded (`_NOT_JSON` if it is not valid), and its bytes."""
    for number, (offset, line, is_complete) in enumerate(jsonl.split_lines(blocks), start=1):
        yield Row(_decode(line) if is_complete else line.decode(errors="replace"), number, offset), line


def _decode(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line.removeprefix(codecs.BOM_UTF8))
    except jsonl.DECODE_ERRORS:
        return _NOT_JSON


def _choose(content: Content, options: ReadOptions) -> tuple[FieldChoice, Iterator[bytes]]:
    """Return the fields that hold the text, and all blocks of the file."""
    blocks = content.utf8_blocks()
    head: list[bytes] = []
    if not options.text_fields:
        _gather(blocks, head, lines=1)
        data = b"".join(head)
        end = data.find(b"\n")
        if isinstance(jsonl.parse_line(data if end < 0 else data[:end]), jsonl.Record):
            return FieldChoice(), chain(head, blocks)
    _gather(blocks, head, lines=fields.SAMPLE)
    lines = b"".join(head).split(b"\n", fields.SAMPLE)[: fields.SAMPLE]
    choice = choose_fields(map(_decode, lines), content.label, options)
    return choice, chain(head, blocks)


def _gather(blocks: Iterator[bytes], head: list[bytes], *, lines: int) -> None:
    """Move blocks to `head` until it has `lines` complete lines, or is long."""
    count, size = sum(block.count(b"\n") for block in head), sum(map(len, head))
    while count < lines and size < _SAMPLE_BYTES and (block := next(blocks, b"")):
        head.append(block)
        count, size = count + block.count(b"\n"), size + len(block)
