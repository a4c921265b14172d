"""Parts of a report: sections of blocks. Plain data; `page.py` turns it into HTML and escapes all of its text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from markupsafe import Markup

from pipeline.report.charts import Series
from pipeline.runtime.terminal import printable

_NUMBER = re.compile(r"[−+<≈×]?\s?\d[\d,.]*(?:[eE][+−-]?\d+)?(?:\s?(?:%|‰|\D{0,3}))?|[–-]?")

_SHORT, _LONG = 20, 36  # characters of a cell
_DIGITS = 4  # significant digits of a number
_MOST_DECIMALS = 9
_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\u3000": "␣ U+3000"})

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table: column titles, rows of cells, and an optional caption.

    Integers get thousands separators, the floats of a column the same number of decimals, None is a dash. `bars` is the
    index of a column of numbers that is also drawn as bars; `code` has the indexes of columns set in a fixed-width
    font. A folded table opens at a click on its caption.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    bars: int | None = None
    code: Sequence[int] = ()
    is_folded: bool = False

    def is_numeric(self, column: int) -> bool:
        """Return True if all cells of a column are numbers, so that it is aligned to the right."""
        return all(not isinstance(row[column], str) or _NUMBER.fullmatch(str(row[column])) for row in self.rows)

    @cached_property
    def _decimals(self) -> list[int | None]:
        return [decimals([row[column] for row in self.rows]) for column in range(len(self.columns))]

    def text(self, cell: Cell, column: int) -> str:
        """Return a cell as text, with the decimals of its column."""
        places = self._decimals[column]
        if places is None or isinstance(cell, (str, bool, type(None))):
            return cell_text(cell)
        return f"{cell:,.{places}f}".replace("-", "−")

    def width(self, cell: Cell) -> str:
        """Return the CSS class of a cell: short text does not wrap, long text wraps at any character."""
        length = len(cell) if isinstance(cell, str) else 0
        return " long" if length > _LONG else " short" if length <= _SHORT else ""

    def percent(self, row: Sequence[Cell]) -> str:
        """Return the length of a row's bar, in percent of the longest."""
        assert self.bars is not None
        longest = max((abs(_number(other[self.bars])) for other in self.rows), default=0.0) or 1.0
        return f"{100 * abs(_number(row[self.bars])) / longest:.2f}"


def _number(cell: Cell) -> float:
    return float(cell) if isinstance(cell, (int, float)) else 0.0


@dataclass(frozen=True)
class Figure:
    """A chart of `charts.py` with its caption, and the table of its numbers."""

    kind: ClassVar[str] = "figure"
    svg: Markup
    caption: str
    table: Table | None = None
    legend: Sequence[Series] = ()  # of the lines, in the order of their colours
    is_bare: bool = False  # without axes, so that no space is left for their labels


@dataclass(frozen=True)
class Span:
    """A part of a passage.

    `tint` is a CSS class of style.css: "t0" to "t4" to tell neighbours apart, "h0" to "h9" for a value from low to
    high, "" for none. `title` is the tooltip.
    """

    text: str
    tint: str = ""
    title: str = ""


@dataclass(frozen=True)
class Passage:
    """A text from the data with tinted spans. Line breaks stay. `scale` labels the tints h0 and h9.

    `table` has the values of the spans.
    """

    kind: ClassVar[str] = "passage"
    spans: Sequence[Span]
    caption: str = ""
    scale: tuple[str, str] | None = None
    table: Table | None = None


@dataclass(frozen=True)
class Pairs:
    """Texts before and after a change, with what they illustrate."""

    kind: ClassVar[str] = "pairs"
    caption: str
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Pre:
    """Text set as it is, in a fixed-width font: a command, a configuration."""

    kind: ClassVar[str] = "pre"
    text: str
    caption: str = ""


@dataclass(frozen=True)
class Facts:
    """Names with values, in two columns."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Note:
    """A remark that needs attention, such as a warning."""

    kind: ClassVar[str] = "note"
    text: str


Block = str | Table | Figure | Passage | Pairs | Pre | Facts | Note  # a string is a paragraph


@dataclass(frozen=True)
class Section:
    """A section of a report."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Chapter:
    """All sections about one artifact. `ref` is its kind/name/key, `facts` the few figures at its head."""

    title: str
    ref: str
    facts: Sequence[tuple[str, Cell]]
    sections: Sequence[Section]
    summary: str = ""


def cell_text(cell: Cell) -> str:
    """Return a cell as text: 12,345; 0.1234; a dash for None; escapes for control characters."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int):
        return f"{cell:,}".replace("-", "−")
    if isinstance(cell, float):
        return f"{cell:,.4g}".replace("-", "−")
    return printable(cell)


def decimals(cells: Sequence[Cell]) -> int | None:
    """Return the decimals that all numbers of a column get; None for a column without floats, or of extreme ones.

    They show `_DIGITS` significant digits of the smallest number, but at most two decimals more than of the largest,
    and no zeros that all numbers would end in.
    """
    values = [abs(cell) for cell in cells if isinstance(cell, float) and math.isfinite(cell) and cell]
    if not values:
        return None
    least, most = (_DIGITS - 1 - math.floor(math.log10(value)) for value in (max(values), min(values)))
    places = max(min(most, least + 2), 0)
    if places > _MOST_DECIMALS or max(values) >= 1e15:
        return None
    texts = [f"{value:.{places}f}".rstrip("0") for value in values]
    return max(len(text.partition(".")[2]) for text in texts)


def visible(text: str) -> str:
    """Return a text with signs for blanks and line ends."""
    return text.translate(_VISIBLE)
