"""Read CSV and TSV: one document per row, from the column that holds the text.

The first rows decide how cells are separated and quoted, and whether the first row names the columns. A table without
such a row has the columns `column1`, `column2` and so on. A table of one column is a list of texts.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from pipeline.errors import BadData
from pipeline.readers.content import Content, ReadOptions
from pipeline.readers.documents import Document, Reject
from pipeline.readers.encoding import EncodingStats, decode_blocks
from pipeline.readers.jsonl import MAX_LINE_BYTES
from pipeline.readers.records import Row, to_documents

_SEPARATORS = (",", "\t", ";", "|")
_NO_SEPARATOR = "\x1f"  # of a table with one column
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 200, 1 << 18
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$")
_LONGEST_NAME = 40  # characters of the name of a column
_NUMBER = re.compile(r"[-+]?[\d.,:/ -]*\d%?$")
_SENTENCE_END = (".", "。", "！", "？", "!", "?", "，", ",")


@dataclass(frozen=True)
class _Dialect:
    """Separator of the cells of a row, and the mark that quotes a cell; None if marks belong to the text."""

    separator: str
    quote: str | None = '"'

    def rows(self, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of the first line of each row, from 1, and its cells. Raises csv.Error with the line."""
        source = _Lines(lines)
        reader = csv.reader(source, delimiter=self.separator, quotechar=self.quote, quoting=0 if self.quote else 3)
        first_line = 1
        try:
            for cells in reader:
                if source.is_exhausted:
                    raise csv.Error("a quotation mark that is not closed")
                if cells:
                    yield first_line, cells
                first_line = reader.line_num + 1
        except csv.Error as error:
            raise csv.Error(f"line {first_line:,}: {error}") from None


class _Lines:
    """Iterator that records if a line after the last was requested: the csv module does so within a quoted cell."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self.is_exhausted = lines, False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            return next(self._lines)
        except StopIteration:
            self.is_exhausted = True
            raise


def read(content: Content, options: ReadOptions) -> Iterator[Document | Reject]:
    """Yield a document for each row, or a reject for a row without text.

    Raises BadData if the file is empty, ends within a quoted cell or has no column of text.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _lines(
        decode_blocks(content.blocks, content.label, EncodingStats(), encoding=options.encoding, strict=True)
    )
    sample = list(_take(lines))
    dialect = _Dialect("\t") if content.kind.format == "tsv" else _Dialect(",")
    dialect = _sniff(sample, dialect)
    try:
        rows = dialect.rows(chain(sample, lines))
        head = list(islice(rows, _SAMPLE_LINES))
        columns = [cell.strip() for cell in head[0][1]] if _has_header(head) else []
        body = chain(head[1:] if columns else head, rows)
        yield from to_documents(_records(body, columns, len(head[0][1])), content.label, content.file, options)
    except csv.Error as error:
        raise BadData(
            f"{content.label}: {error}",
            hint="repair the table there, or name the file .txt to read it as one text",
        ) from None


def _records(rows: Iterator[tuple[int, list[str]]], columns: Sequence[str], width: int) -> Iterator[Row]:
    """Yield the rows as records; the text itself if there is one column, without a name."""
    if not columns and width == 1:
        yield from (Row(cells[0], line) for line, cells in rows)
        return
    names = columns or [f"column{number + 1}" for number in range(width)]
    for line, cells in rows:
        record: dict[str, Any] = dict(zip(names, cells, strict=False))
        yield Row(record if len(cells) == len(names) else cells, line)


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    """Yield lines with their line ends: \\n, \\r\\n or \\r."""
    rest = ""
    for piece in pieces:
        *lines, rest = _LINE.findall(rest + piece) or [""]
        if rest.endswith("\n"):
            lines, rest = [*lines, rest], ""
        yield from lines
    if rest:
        yield rest


def _take(lines: Iterator[str]) -> Iterator[str]:
    """Yield the first lines, from which the dialect is chosen."""
    size = 0
    for line in islice(lines, _SAMPLE_LINES):
        yield line
        size += len(line)
        if size > _SAMPLE_CHARACTERS:
            return


def _sniff(sample: Sequence[str], expected: _Dialect) -> _Dialect:
    """Return the dialect by which most rows have the same number of cells, two or more; one column if there is none.

    If no dialect can read the complete sample, only the rows before an error count: `read` then reports the damage.
    """
    separators = (expected.separator, *(separator for separator in _SEPARATORS if separator != expected.separator))
    dialects = [_Dialect(separator, quote) for quote in ('"', None) for separator in separators]
    for may_break_off in (False, True):
        best, best_score = _Dialect(_NO_SEPARATOR), 0.75
        for dialect in dialects:
            score = _consistency(sample, dialect, may_break_off=may_break_off)
            if score > best_score:
                best, best_score = dialect, score
        if best.separator != _NO_SEPARATOR:
            break
    return best


def _consistency(sample: Sequence[str], dialect: _Dialect, *, may_break_off: bool) -> float:
    """Return the fraction of rows with the commonest number of cells, 0 if that is one.

    After an error, the rows before it count if `may_break_off`, or if the sample is not the complete file and so may
    end within a cell; otherwise the result is 0.
    """
    widths: list[int] = []
    try:
        for _, cells in dialect.rows(iter(sample)):
            widths.append(len(cells))
    except csv.Error:
        is_whole = len(sample) < _SAMPLE_LINES and sum(map(len, sample)) <= _SAMPLE_CHARACTERS
        if is_whole and not may_break_off:
            return 0.0
    commonest = max(set(widths), key=lambda width: (widths.count(width), width), default=1)
    return widths.count(commonest) / len(widths) if commonest > 1 else 0.0


def _has_header(rows: Sequence[tuple[int, list[str]]]) -> bool:
    """Return True if the first row looks like names of columns: short, different, no numbers and no sentences."""
    if len(rows) < 2:
        return False
    names = [cell.strip() for cell in rows[0][1]]
    if len({*names}) < len(names) or not all(map(_may_be_name, names)):
        return False
    longest = max(len(cell) for _, cells in rows[1:] for cell in cells)
    if len(names) == 1:
        return " " not in names[0] and longest > 2 * len(names[0])
    return True


def _may_be_name(cell: str) -> bool:
    return 0 < len(cell) <= _LONGEST_NAME and not cell.endswith(_SENTENCE_END) and not _NUMBER.match(cell)
