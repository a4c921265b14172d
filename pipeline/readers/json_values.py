"""Read .json files: a list of texts or of records, an object that holds one, JSON lines in brackets, or poems.

Poems are the shapes of chinese-poetry, which its own reader turns into documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from pipeline.errors import BadData
from pipeline.readers import chinese_poetry, fields
from pipeline.readers.content import Content, ReadOptions
from pipeline.readers.documents import Document, Reject
from pipeline.readers.fields import FieldChoice
from pipeline.readers.jsonl import DECODE_ERRORS
from pipeline.readers.records import Row, choose_fields, to_documents


def read(content: Content, options: ReadOptions) -> Iterator[Document | Reject]:
    """Yield the documents of one file. Raises BadData if it is not JSON or if no field holds text."""
    data = b"".join(content.utf8_blocks())
    try:
        value = _decode(data)
        entries = fields.entries(value)
        if line := fields.note_on_entries(value):
            options.note(line)
        if not options.text_fields and chinese_poetry.has_poems(entries):
            try:
                poems = chinese_poetry.documents(entries, content.file)
                options.note(fields.note_on(FieldChoice(chinese_poetry.text_fields(entries)), entries))
                yield from poems
                return
            except chinese_poetry.UnknownShapeError as error:
                choose_fields(entries, f"{content.label}: not a chinese-poetry file, {error}", options)
    except (*DECODE_ERRORS, ValueError) as error:
        raise BadData(f"{content.label}: not JSON: {error}", hint="repair it, or save plain text as .txt") from None
    if entries and not any(isinstance(entry, dict | str) for entry in entries):
        raise BadData(
            f"{content.label}: no field text: its values are neither objects nor texts", hint="remove it from the input"
        )
    rows = (Row(entry, line) for line, entry in enumerate(entries, start=1))
    yield from to_documents(rows, content.label, content.file, options)


def _decode(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except DECODE_ERRORS:
        if (values := _bracketed_lines(data)) is not None:
            return values
        raise


def _bracketed_lines(data: bytes) -> list[Any] | None:
    """Return the values of JSON lines in brackets or with commas at their ends, None if they are not all valid."""
    values = []
    for line in data.splitlines():
        line = line.strip().removesuffix(b",")
        if line in (b"", b"[", b"]"):
            continue
        try:
            values.append(msgspec.json.decode(line))
        except DECODE_ERRORS:
            return None
    return values if len(values) > 1 else None
