"""Turn records (JSON objects, rows of a table) into documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from pipeline.errors import BadData
from pipeline.readers import fields
from pipeline.readers.content import ReadOptions
from pipeline.readers.documents import EXCERPT_CHARACTERS, Document, Reject
from pipeline.readers.fields import FieldChoice


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file: an object, or a text. `line` counts from 1."""

    value: Any
    line: int
    offset: int = 0


def choose_fields(values: Iterable[Any], label: str, options: ReadOptions) -> FieldChoice:
    """Return the fields that hold the text, and report the choice unless it is obvious. Raises BadData if none does."""
    records = [value for value in values if isinstance(value, Mapping)]
    try:
        choice = fields.choose(records, options.text_fields)
    except BadData as error:
        raise BadData(f"{label}: {error.message}", hint=error.hint) from None
    if not choice.is_plain and not options.text_fields:
        options.note(fields.note_on(choice, records))
    return choice


def to_documents(rows: Iterator[Row], label: str, file: str, options: ReadOptions) -> Iterator[Document | Reject]:
    """Yield a document for each record, or a reject for one without text."""
    sample = list(islice(rows, fields.SAMPLE))
    choice = choose_fields((row.value for row in sample), label, options)
    for row in chain(sample, rows):
        if isinstance(row.value, str):
            yield Document(row.value, file=file, line=row.line, offset=row.offset)
        else:
            yield to_document(row, choice, file)


def to_document(row: Row, choice: FieldChoice, file: str) -> Document | Reject:
    """Return the document of a record, or a reject if it has no text."""
    if not isinstance(row.value, Mapping) or (text := choice.text_of(row.value)) is None:
        return Reject(file, row.line, row.offset, "bad-record", str(row.value)[:EXCERPT_CHARACTERS])
    title, meta = fields.title_of(row.value, choice), fields.meta_of(row.value, choice)
    return Document(text, title, meta, file, row.line, row.offset)
