"""Read the rows of Parquet and Arrow files; datasets of Hugging Face are kept in both.

A page of Parquet and a batch of Arrow are decompressed at once, and many rows can refer to one entry of a dictionary.
So a small file can hold more text than fits into memory: sizes are read and checked before the text.
https://parquet.apache.org/docs/file-format/ and https://arrow.apache.org/docs/format/Columnar.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

from pipeline.errors import BadData
from pipeline.readers import fields
from pipeline.readers.content import Content, ReadOptions
from pipeline.readers.documents import Document
from pipeline.readers.fields import FieldChoice
from pipeline.readers.jsonl import MAX_LINE_BYTES
from pipeline.readers.records import choose_fields

_BATCH_ROWS = 256
_SLICE_BYTES = 8 << 20  # of rows that are converted at once; a single row may have more
_BATCH_BYTES = 64 << 20  # of rows that are read at once; a single row may have more
_SMALL = 256 << 20  # bytes that any page, batch or file may expand to
_MAX_RATIO = 100  # bytes out per byte in, above _SMALL; text reaches 4 to 10
_MAX_TEXT_RATIO = 1 << 14  # bytes of text per byte of a file, as for other compressed files
_PAGE_HEADER = 64  # bytes of a page header that are read
_VALUE_BYTES = 4  # minimum size of a value in a list
_DICTIONARY_PAGE = 2
_ARROW_FILE = b"ARROW1"
_CONTINUATION, _DICTIONARY_BATCH, _RECORD_BATCH = 0xFFFF_FFFF, 2, 3
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
            rows = _rows_at_once(table, names, file, content.label, limit=fields.SAMPLE)
            choice = _choose(table.iter_batches(batch_size=rows), names, content.label, options)
        columns = _columns(choice, names, content.label)
        rows = _rows_at_once(table, columns, file, content.label, limit=_BATCH_ROWS)
        batches, size = table.iter_batches(batch_size=rows, columns=columns), file.seek(0, 2)
        yield from _documents(batches, choice, content, size)


def read_arrow(content: Content, options: ReadOptions) -> Iterator[Document]:
    """Yield a document for each row of an Arrow file or stream, like `read_parquet`."""
    import pyarrow

    with _errors(content, "Arrow"), content.seekable() as file:
        is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        if not is_file:
            _require_end_of_stream(file)
        _check_arrow_batches(file, 8 if is_file else 0, content.label)
        size = file.seek(0, 2)
        file.seek(0)
        reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
        choice = _column_text(reader.schema, content.label, options)
        if not choice:
            first = next(batches, None)
            choice = _choose([first] if first else [], reader.schema.names, content.label, options)
            batches = chain([first] if first else [], batches)
        columns = _columns(choice, reader.schema.names, content.label)
        yield from _documents((batch.select(columns) for batch in batches), choice, content, size)


def _slices(batch: Any, label: str) -> Iterator[Any]:
    """Yield a batch in slices of at most `_BATCH_ROWS` rows that decode to `_SLICE_BYTES`, or of a single row.

    Raises BadData for a row that is longer than a JSON line may be.
    """
    pending = [batch.slice(start, _BATCH_ROWS) for start in reversed(range(0, batch.num_rows, _BATCH_ROWS))]
    while pending:
        part = pending.pop()
        size = sum(map(_decoded_bytes, part.columns))
        if part.num_rows > 1 and size > _SLICE_BYTES:
            half = part.num_rows // 2
            pending += [part.slice(half), part.slice(0, half)]
        elif size > MAX_LINE_BYTES:
            raise BadData(
                f"{label}: a row of {size:,} bytes; the limit is {MAX_LINE_BYTES:,}", hint="split its text into rows"
            )
        else:
            yield part


def _decoded_bytes(array: Any) -> int:
    """Return the size of the values of an array in bytes. An entry of a dictionary counts each time that it is used."""
    from pyarrow import compute, types

    kind = array.type
    if types.is_struct(kind):
        return sum(map(_decoded_bytes, array.flatten()))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _decoded_bytes(array.flatten())
    if types.is_dictionary(kind) and (types.is_string(kind.value_type) or types.is_large_string(kind.value_type)):
        lengths = compute.binary_length(array.dictionary).cast("int64")
        return int(compute.sum(lengths.take(array.indices)).as_py() or 0)
    if types.is_run_end_encoded(kind) or types.is_dictionary(kind) or types.is_string_view(kind):
        return len(array) * array.nbytes if len(array) > 1 else 0  # values that are shared: row by row
    return int(array.nbytes)


def _column_text(schema: Any, label: str, options: ReadOptions) -> FieldChoice | None:
    """Return the column `text` if it is of strings, even if the first ones are null; None if there is none."""
    import pyarrow

    names = schema.names
    _require_one_each((fields.TEXT, "title", "meta", *fields.split_names(options.text_fields)), names, label)
    if fields.TEXT not in names or options.text_fields:
        return None
    kind = schema.field(fields.TEXT).type
    if pyarrow.types.is_dictionary(kind):  # categories of pandas
        kind = kind.value_type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)):
        columns = [name for name in names if name != fields.TEXT]
        raise BadData(
            f"{label}: the column `text` must be of type string, got {kind}",
            hint="convert it to strings"
            + (f", or pass --text-field with another of the columns: {', '.join(columns)}" if columns else ""),
        )
    return FieldChoice()


def _choose(batches: Iterable[Any], names: Sequence[str], label: str, options: ReadOptions) -> FieldChoice:
    """Return the columns that hold the text in the first rows."""
    rows: list[Any] = []
    size = 0
    for part in (part for batch in batches for part in _slices(batch.slice(0, fields.SAMPLE), label)):
        rows += part.to_pylist()
        size += sum(map(_decoded_bytes, part.columns))
        if len(rows) >= fields.SAMPLE or size > _SLICE_BYTES:
            break
    return choose_fields(rows[: fields.SAMPLE] or [dict.fromkeys(names)], label, options)


def _columns(choice: FieldChoice, names: Sequence[str], label: str) -> list[str]:
    """Return the columns to read, in the order of the file. Raises BadData if two have the same name."""
    if choice.is_record:
        _require_one_each(names, names, label)
        return list(names)
    wanted = {name for field in choice.names for name in names if field == name or field.startswith(f"{name}.")}
    _require_one_each(wanted, names, label)
    return [name for name in names if name in wanted | fields.BESIDE_TEXT]


def _require_one_each(wanted: Iterable[str], names: Sequence[str], label: str) -> None:
    for name in wanted:
        if names.count(name) > 1:
            raise BadData(f"{label}: {names.count(name)} columns are named {name}", hint="rename all but one")


def _documents(batches: Iterator[Any], choice: FieldChoice, content: Content, size: int) -> Iterator[Document]:
    """Yield the rows of a file of `size` bytes. Raises BadData if their text exceeds _MAX_TEXT_RATIO times that."""
    line = total = 0
    for part in (part for batch in batches for part in _slices(batch, content.label)):
        total += sum(map(_decoded_bytes, part.columns))
        if total > max(_SMALL, _MAX_TEXT_RATIO * size):
            raise BadData(
                f"{content.label}: {size:,} bytes hold {total:,} bytes of text or more, over the limit of "
                f"{_MAX_TEXT_RATIO:,} to 1",
                hint="a decompression bomb? Check where the file comes from",
            )
        for row in part.to_pylist():
            line += 1
            title, meta = fields.title_of(row, choice), fields.meta_of(row, choice)
            yield Document(choice.text_of(row) or "", title, meta, content.file, line)


def _rows_at_once(table: Any, columns: Sequence[str], file: BinaryIO, label: str, *, limit: int) -> int:
    """Return how many rows of `columns` decode to about 64 MiB: at least one, at most `limit`.

    Raises BadData for a chunk that expands to more than 256 MiB and 100 times its size.
    """
    rows = limit
    for group in range(table.metadata.num_row_groups):
        metadata = table.metadata.row_group(group)
        for index in range(metadata.num_columns):
            chunk = metadata.column(index)
            if chunk.path_in_schema.partition(".")[0] not in columns or not metadata.num_rows:
                continue
            out = chunk.total_uncompressed_size
            dictionary = min(_dictionary_bytes(chunk, file), out)
            if table.schema.column(index).max_repetition_level:
                out = max(out, chunk.num_values * _VALUE_BYTES)
            _check_expansion(f"{label}: column {chunk.path_in_schema}", chunk.total_compressed_size, out)
            row_bytes = max(out, dictionary * chunk.num_values) // metadata.num_rows
            rows = min(rows, max(1, _BATCH_BYTES // max(row_bytes, 1)))
    return rows


def _dictionary_bytes(chunk: Any, file: BinaryIO) -> int:
    """Return the decompressed size of the dictionary of a chunk, which may be a single entry; 0 if it has none."""
    start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)), default=0)
    file.seek(start)
    numbers = _first_numbers(file.read(_PAGE_HEADER))
    return size if next(numbers, 0) == _DICTIONARY_PAGE and (size := next(numbers, 0)) > 0 else 0


def _first_numbers(header: bytes) -> Iterator[int]:
    """Yield the first fields of a page header in Thrift's compact protocol: its type, its decompressed size, ..."""
    position = 0
    while header[position : position + 1] == b"\x15":  # the next field, an i32
        number = shift = 0
        while (position := position + 1) < len(header):
            number |= (header[position] & 0x7F) << shift
            shift += 7
            if header[position] < 0x80:
                break
        position += 1
        yield number >> 1 ^ -(number & 1)


def _check_expansion(label: str, size: int, out: int) -> None:
    """Raise BadData if `size` bytes, which are decompressed at once, expand to too many."""
    if out > max(_SMALL, _MAX_RATIO * size):
        raise BadData(
            f"{label}: {size:,} bytes expand to {out:,} bytes at once, over the limit of {_MAX_RATIO} to 1",
            hint="write it again as JSON lines, or in groups of fewer rows",
        )


def _check_arrow_batches(file: BinaryIO, start: int, label: str) -> None:
    """Raise BadData if a batch of an Arrow file or stream, whose messages begin at `start`, expands to too many bytes.

    A message is described by a table of FlatBuffers; a compressed buffer begins with its decompressed size.
    """
    file.seek(start)
    while len(prefix := file.read(8)) == 8:
        mark, size = struct.unpack("<Ii", prefix)
        if mark != _CONTINUATION or size <= 0:
            break
        message = _Table.root(file.read(size))
        body, length = file.tell(), message.integer(3, "<q")
        batch = message.table(2)
        if message.integer(1, "<B") == _DICTIONARY_BATCH:
            batch = batch and batch.table(1)
        if batch and message.integer(1, "<B") in (_DICTIONARY_BATCH, _RECORD_BATCH) and batch.table(3):
            out = 0
            for offset, buffer_size in batch.pairs(2):
                file.seek(body + offset)
                out += max(struct.unpack("<q", file.read(8))[0], 0) if buffer_size >= 8 else 0
            _check_expansion(label, length, out)
        file.seek(body + length)


@dataclass(frozen=True)
class _Table:
    """A table of FlatBuffers: the fields of an object by their number. https://flatbuffers.dev/internals/"""

    data: bytes
    position: int

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, struct.unpack_from("<I", data)[0])

    def _field(self, number: int) -> int:
        """Return where a field begins, 0 if it is absent."""
        fields_at = self.position - int(struct.unpack_from("<i", self.data, self.position)[0])
        entry = 4 + 2 * number
        if entry >= struct.unpack_from("<H", self.data, fields_at)[0]:
            return 0
        offset = int(struct.unpack_from("<H", self.data, fields_at + entry)[0])
        return self.position + offset if offset else 0

    def integer(self, number: int, form: str) -> int:
        position = self._field(number)
        return int(struct.unpack_from(form, self.data, position)[0]) if position else 0

    def table(self, number: int) -> _Table | None:
        position = self._field(number)
        return _Table(self.data, position + self.integer(number, "<I")) if position else None

    def pairs(self, number: int) -> list[tuple[int, int]]:
        """Return a list of structs of two int64."""
        if not (position := self._field(number)):
            return []
        start = position + self.integer(number, "<I")
        count = struct.unpack_from("<I", self.data, start)[0]
        return [struct.unpack_from("<qq", self.data, start + 4 + 16 * index) for index in range(count)]


def _require_end_of_stream(file: BinaryIO) -> None:
    """Raise ValueError unless an Arrow stream ends with its end mark: pyarrow accepts a stream without one."""
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
    except (pyarrow.ArrowException, LookupError, OverflowError, OSError, ValueError, struct.error) as error:
        if isinstance(error, OSError) and error.errno:  # a failure of the disk, not of the file's content
            raise
        raise BadData(
            f"{content.label}: truncated or corrupt {name} file: {error}", hint="download the file again"
        ) from None
