"""Read the rows of Parquet and Arrow files; datasets of Hugging Face are kept in both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, BinaryIO

from pipeline.errors import BadData
from pipeline.readers import fields
from pipeline.readers.content import Content, ReadOptions
from pipeline.readers.documents import Document
from pipeline.readers.fields import FieldChoice
from pipeline.readers.records import choose_fields

_BATCH_ROWS = 256
_ARROW_FILE = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_parquet(content: Content, options: ReadOptions) -> Iterator[Document]:
    """Yield a document for each row, from the columns that hold its text and, if present, `title` and `meta`.

    A row whose text is null is an empty document. Raises BadData if the file is truncated or corrupt, or has no column
    of text.
    """
    from pyarrow import parquet

    with _errors(content, "Parquet"), content.seekable() as file, parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        choice = _column_text(table.schema_arrow, content.label, options)
        if not choice:
            sample = next(table.iter_batches(batch_size=fields.SAMPLE), None)
            choice = _choose(sample, names, content.label, options)
        batches = table.iter_batches(batch_size=_BATCH_ROWS, columns=_columns(choice, names))
        yield from _documents(batches, choice, content.file)


def read_arrow(content: Content, options: ReadOptions) -> Iterator[Document]:
    """Yield a document for each row of an Arrow file or stream, like `read_parquet`."""
    import pyarrow

    with _errors(content, "Arrow"), content.seekable() as file:
        is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        if not is_file:
            _require_end_of_stream(file)
        file.seek(0)
        reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
        choice = _column_text(reader.schema, content.label, options)
        if not choice:
            first = next(batches, None)
            choice = _choose(first, reader.schema.names, content.label, options)
            batches = chain([first] if first else [], batches)
        columns = _columns(choice, reader.schema.names)
        yield from _documents(
            (part for batch in batches for part in _slices(batch.select(columns))), choice, content.file
        )


def _slices(batch: Any) -> Iterator[Any]:
    """Yield a batch of any size in small ones."""
    return (batch.slice(start, _BATCH_ROWS) for start in range(0, batch.num_rows, _BATCH_ROWS))


def _column_text(schema: Any, label: str, options: ReadOptions) -> FieldChoice | None:
    """Return the column `text` if it is of strings, even if the first ones are null; None if there is none."""
    import pyarrow

    names = schema.names
    for name in (fields.TEXT, "title", "meta", *fields.split_names(options.text_fields)):
        if names.count(name) > 1:
            raise BadData(f"{label}: {names.count(name)} columns are named {name}", hint="rename all but one")
    if fields.TEXT not in names or options.text_fields:
        return None
    kind = schema.field(fields.TEXT).type
    if pyarrow.types.is_dictionary(kind):  # categories of pandas
        kind = kind.value_type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)):
        others = [name for name in names if name != fields.TEXT]
        raise BadData(
            f"{label}: the column `text` must be of type string, got {kind}",
            hint="convert it to strings"
            + (f", or pass --text-field with another of the columns: {', '.join(others)}" if others else ""),
        )
    return FieldChoice()


def _choose(batch: Any, names: Sequence[str], label: str, options: ReadOptions) -> FieldChoice:
    """Return the columns that hold the text in the first rows."""
    rows = batch.slice(0, fields.SAMPLE).to_pylist() if batch else []
    return choose_fields(rows or [dict.fromkeys(names)], label, options)


def _columns(choice: FieldChoice, names: Sequence[str]) -> list[str]:
    """Return the columns to read, in the order of the file."""
    wanted = {name for field in choice.names for name in names if field == name or field.startswith(f"{name}.")}
    return [name for name in names if name in wanted | {"title", "meta"}]


def _documents(batches: Iterator[Any], choice: FieldChoice, file: str) -> Iterator[Document]:
    line = 0
    for batch in batches:
        for row in batch.to_pylist():
            line += 1
            meta = None if "meta" in choice.names else row.get("meta")
            yield Document(choice.text_of(row) or "", fields.title_of(row, choice), meta, file, line)


def _require_end_of_stream(file: BinaryIO) -> None:
    """Raise ValueError unless an Arrow stream ends with its mark: pyarrow takes any end after a batch for one."""
    file.seek(0, 2)
    file.seek(max(0, file.tell() - len(_END_OF_STREAM)))
    if file.read() != _END_OF_STREAM:
        raise ValueError("the stream has no end mark")


@contextmanager
def _errors(content: Content, name: str) -> Iterator[None]:
    """Convert the errors of pyarrow to BadData."""
    import pyarrow

    try:
        yield
    except BadData:
        raise
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:  # a failure of the disk, not of the file's content
            raise
        raise BadData(
            f"{content.label}: truncated or corrupt {name} file: {error}", hint="download the file again"
        ) from None
