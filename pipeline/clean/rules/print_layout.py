"""Print layout: the width of hard-wrapped lines, and the page numbers and running heads between them.

A text is hard-wrapped if its lines that do not end a sentence have nearly equal lengths, and hardly any line is longer.
Widths are in half-width columns: a Chinese character has two of them. Verse is not hard-wrapped: its clauses are equal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rules import headings
from pipeline.clean.rules.footnotes import NOTE_LINE, NOTE_RULE, TRAILING_MARKS
from pipeline.clean.utf16 import BLANKS, LINE_ENDS, SEPARATOR, Utf16Text, is_one_of, positions_of, units_at
from pipeline.sources.order import parse_numeral

MIN_WIDTH = 16  # characters of a print line: shorter ones are verse
_MIN_LINES, _CLEAR_LINES = 4, 8  # open lines of full width: to report a text, and to join its lines by default
_SPREAD = 8  # columns between the shortest and the longest full line: marks do not begin a line
_MAX_WIDTH = 1000  # units: longer lines count as lines of this length
_SLACK = 4  # columns by which a full line may also be shorter, because of a long word after it, or longer
_MIN_EVEN, _CLEAR_EVEN = 0.7, 0.85  # of the long open lines that are full
_MIN_SHARE, _CLEAR_SHARE = 0.3, 0.5  # of all open lines that are full
_MAX_LONGER = 0.02  # of all lines
_MIN_MID = 0.2  # of the full open lines end between two words, not after a mark: otherwise the lines are clauses
_MIN_ENDS = 0.004  # sentence ends per character: a text without them may be verse
_MIN_INDENTED = 3  # lines with another indent, from which paragraphs are recognised
_MIN_BROKEN = 0.25  # of the page numbers or running heads that interrupt a sentence
_MIN_BROKEN_OF_SERIES = 0.1  # of three or more that are decorated or equal but for the number
_SERIES = 3
_MAX_DISTANCE = 16  # lines from the first to the last of such lines, if a blank line follows each
_SAMPLE = 60  # lines that decide whether a text is verse or a list of headings

_ENDS = "。！？…．.!?"
_CLOSERS = "”’」』）》〉】〕〗\"')"
_SENTENCE_END = lazy_pattern(f"[{re.escape(_ENDS)}][{re.escape(_CLOSERS)}]*$")
_LAST_UNITS = _ENDS + "”」』"
_CLAUSE_MARKS = lazy_pattern(rf"[，。！？：；、,.!?:;{BLANKS}]+")
_LAST_MARK = lazy_pattern("[，；、：,;:—]$")
_PUNCTUATION = lazy_pattern("[，。！？；：、“”‘’「」『』—…]")
_NUMERAL = "(?:[0-9]{1,4}|[〇一二三四五六七八九十百]{1,5})"
_SIGNS = "-—–－─~～=＝·•・.*◆●☆★"
_OPENING, _CLOSING = rf"[{_SIGNS}〔\[(（<《【第]{{1,12}}", rf"[{_SIGNS}〕\])）>》】页頁]{{1,12}}"
_B = f"[{BLANKS}]*"
_DECORATED = lazy_pattern(
    rf"""{_OPENING}{_B}({_NUMERAL}){_B}{_CLOSING}
    | (?:{_OPENING})?{_B} [Pp](?:age|AGE)?[.:]?{_B}([0-9]{{1,4}}) (?:{_B}(?:of|/){_B}[0-9]{{1,4}})? {_B}(?:{_CLOSING})?
    | (?:{_OPENING})?{_B} ({_NUMERAL}){_B}[页頁]?{_B} (?:[/／|,，]|共|of)+{_B}共?{_B}{_NUMERAL} {_B}(?:{_CLOSING})?""",
    re.VERBOSE,
)
_BARE = lazy_pattern(r"([0-9]{1,4})")
_GAP = rf"(?:[{BLANKS}]+[-—·•・.…|│/／(（]*{_B}|[-—·•・…|│/／(（]+{_B})"  # before a page number in a running head
_HEAD_WITH_NUMBER = lazy_pattern(rf"(\S.{{0,30}}?){_GAP}({_NUMERAL}){_B}[-—·•・.)）]*|({_NUMERAL}){_GAP}(\S.{{0,30}})")
_MAX_MARK = 80  # characters of a running head, blanks and page number
_MAX_HEAD = 20  # characters of a running head without a number


@dataclass(frozen=True)
class Layout:
    """The print layout of a document.

    width      columns of its longest full lines
    indent     columns of blanks before a line that continues a paragraph
    characters of most full lines, for messages
    is_clear   True if the evidence is enough to join lines
    is_double_spaced  True if a blank line follows nearly every line
    marks_paragraphs  True if paragraphs begin with another indent, or a blank line is before them
    """

    width: int
    indent: int
    characters: int
    is_clear: bool
    is_double_spaced: bool
    marks_paragraphs: bool

    def is_full(self, line: str) -> bool:
        """Return True if a line has about the full width."""
        return columns(line) >= self.width - _SPREAD - _SLACK


def suspects(page: Utf16Text) -> dict[int, bool]:
    """Return the indices of the documents that may be hard-wrapped, from the lengths of their lines in units alone.

    In such a document three long lines that do not end a sentence are near each other and have nearly equal lengths.
    The value is False if only a part of the document may be hard-wrapped.
    """
    ends = np.append(positions_of(page, LINE_ENDS), len(page))
    lengths = np.diff(ends, prepend=-1) - 1
    long_lines = np.flatnonzero(lengths >= MIN_WIDTH)
    if len(long_lines) < _MIN_LINES:
        return {}
    last = ends[long_lines]
    is_open = ~is_one_of(page.units[last - 1], _LAST_UNITS)
    is_open &= units_at(page, last) == ord("\n")
    long_lines, last = long_lines[is_open], last[is_open]
    if len(last) < _MIN_LINES:
        return {}
    is_even = np.abs(np.diff(lengths[long_lines])) <= _SPREAD
    is_run = is_even[1:] & is_even[:-1] & (long_lines[2:] - long_lines[:-2] <= _MAX_DISTANCE)
    if not is_run.any():
        return {}
    separators = np.searchsorted(ends, positions_of(page, SEPARATOR))
    documents = np.searchsorted(separators, long_lines)
    is_run &= documents[2:] == documents[:-2]
    bounds = np.concatenate(([-1], separators, [len(ends) - 1]))
    entire = {}
    for index in sorted({*documents[2:][is_run].tolist()}):
        lines = slice(bounds[index] + 1, bounds[index + 1])
        is_text = lengths[lines] > 0
        open_count = int(np.count_nonzero(~is_one_of(page.units[ends[lines][is_text] - 1], _LAST_UNITS)))
        entire[index] = _may_be_wrapped(lengths[long_lines[documents == index]], open_count, lengths[lines][is_text])
    return entire


def _may_be_wrapped(open_lengths: np.ndarray, open_count: int, lengths: np.ndarray) -> bool:
    """Return False if a document is clearly not hard-wrapped: `measure` is exact, but slow.

    `open_lengths` are those of long lines that do not end a sentence, of which there are `open_count` with short ones.
    """
    top = _densest(np.minimum(open_lengths, _MAX_WIDTH))
    even = np.count_nonzero((open_lengths >= top - _SPREAD) & (open_lengths <= top))
    longer = np.count_nonzero(lengths > top + _SPREAD)
    return bool(
        2 * even >= len(open_lengths)
        and even >= 0.5 * _MIN_SHARE * open_count
        and longer <= max(2, 2 * _MAX_LONGER * len(lengths))
    )


def _is_mark(text: str) -> bool:
    """Return True for a footnote, and for what looks like a page number or running head."""
    if NOTE_LINE.match(text):
        return True
    return len(text) <= _MAX_MARK and any(mark.fullmatch(text) for mark in (_DECORATED, _BARE, _HEAD_WITH_NUMBER))


def columns(line: str) -> int:
    """Return the width of a line without the blanks at its end."""
    line = line.rstrip(BLANKS)
    return 2 * len(line) - len(line.encode("ascii", "ignore"))


def indent(line: str) -> int:
    """Return the columns of the blanks before a line."""
    if line[:1] not in BLANKS:
        return 0
    return columns(line[: len(line) - len(line.lstrip(BLANKS))] + "|") - 1


def is_open(line: str) -> bool:
    """Return True if a line has text and does not end a sentence. Footnote marks at its end do not count."""
    text = TRAILING_MARKS.sub("", line.rstrip(BLANKS))
    return bool(text) and not _SENTENCE_END.search(text)


def measure(text: str) -> Layout | None:
    """Return the layout of a document, or None if it is not hard-wrapped."""
    rows = text.strip().split("\n")
    repeated = _repeated_lines(rows)
    rows = [row for row in rows if not _is_mark(row.strip(BLANKS)) and row.strip(BLANKS) not in repeated]
    lines = [row for row in rows if row.strip(BLANKS)]
    open_lines = [index for index, line in enumerate(lines[:-1]) if is_open(line)]
    long_lines = [index for index in open_lines if columns(lines[index].lstrip(BLANKS)) >= 2 * MIN_WIDTH]
    if len(long_lines) < _MIN_LINES:
        return None
    widths = np.array([columns(lines[index]) for index in long_lines])
    top = _densest(widths)
    full = [index for index, width in zip(long_lines, widths.tolist(), strict=True) if top - _SPREAD <= width <= top]
    longer = sum(columns(line) > top + _SLACK for line in lines)
    even, share = len(full) / len(long_lines), len(full) / len(open_lines)
    if len(full) < _MIN_LINES or even < _MIN_EVEN or share < _MIN_SHARE or longer > max(1, _MAX_LONGER * len(lines)):
        return None
    if _are_units([lines[index] for index in full[:_SAMPLE]]):
        return None
    mid = sum(not _LAST_MARK.search(lines[index].rstrip(BLANKS)) for index in full)
    ends = sum(text.count(mark) for mark in _ENDS)
    following = Counter(indent(lines[index + 1]) for index in full)
    common = following.most_common(1)[0][0]
    return Layout(
        width=top,
        indent=common,
        characters=Counter(columns(lines[index]) for index in full).most_common(1)[0][0] // 2,
        is_clear=len(full) >= _CLEAR_LINES
        and even >= _CLEAR_EVEN
        and share >= _CLEAR_SHARE
        and longer <= _MAX_LONGER * len(lines)
        and mid >= _MIN_MID * len(full)
        and ends >= _MIN_ENDS * len(text),
        is_double_spaced=_is_double_spaced(rows),
        marks_paragraphs=_has_indents(lines, common) or _has_blank_lines(rows, top),
    )


def _densest(widths: np.ndarray) -> int:
    """Return the largest width in the range of `_SPREAD` columns that contains most of the widths."""
    counts = np.append(np.zeros(_SPREAD, int), np.bincount(widths))
    sums = np.convolve(counts, np.ones(_SPREAD + 1, int), "valid")  # that end at each width
    return int(np.argmax(sums))


def _are_units(lines: Sequence[str]) -> bool:
    """Return True if half of the lines are headings, or verse: clauses of one length."""
    count = 0
    for line in lines:
        lengths = [len(clause) for clause in _CLAUSE_MARKS.split(line) if clause]
        is_verse = len(lengths) > 1 and len({*lengths}) == 1
        count += is_verse or headings.parse_heading(line) is not None
    return 2 * count >= len(lines)


def _has_indents(lines: Sequence[str], common: int) -> bool:
    """Return True if some lines are indented by more than those that continue a paragraph."""
    return sum(indent(line) > common for line in lines) >= max(_MIN_INDENTED, 0.03 * len(lines))


def _has_blank_lines(rows: Sequence[str], width: int) -> bool:
    """Return True if a blank line follows nearly every line that ends a sentence before the full width."""
    last = [
        not following.strip(BLANKS)
        for line, following in pairwise(rows)
        if line.strip(BLANKS) and not is_open(line) and columns(line) < width - _SPREAD - _SLACK
    ]
    return len(last) >= _MIN_INDENTED and sum(last) >= 0.8 * len(last) and not _is_double_spaced(rows)


def _is_double_spaced(rows: Sequence[str]) -> bool:
    """Return True if a blank line follows nearly every line."""
    lines = [bool(row.strip(BLANKS)) for row in rows]
    adjacent = sum(one and other for one, other in pairwise(lines))
    return adjacent <= 0.1 * sum(lines)


# Page numbers and running heads


def page_marks(lines: Sequence[str], layout: Layout | None) -> dict[int, str]:
    """Return the lines that a print repeats on its pages, by index, and what remains of each.

    Page numbers rise by one, running heads are equal, and some of them interrupt a sentence. Nothing remains of them,
    except of the first running head that is the heading of its chapter.
    """
    numbers: dict[int, int] = {}
    heads: dict[str, list[tuple[int, int | None]]] = {}
    short = _repeated_lines(lines)
    decorated = set[int]()
    pages: dict[int, int] = {}  # the numbers of running heads
    for index, line in enumerate(lines):
        text = line.strip(BLANKS)
        if not text or len(text) > _MAX_MARK:
            continue
        if number := _DECORATED.fullmatch(text):
            decorated.add(index)
        if number := number or _BARE.fullmatch(text):
            numbers[index] = parse_numeral(next(filter(None, number.groups())))
        elif text in short:
            heads.setdefault(text, []).append((index, None))
        elif head := _HEAD_WITH_NUMBER.fullmatch(text):
            pages[index] = parse_numeral(head[2] or head[3])
            heads.setdefault(head[1] or head[4], []).append((index, pages[index]))
    if not numbers and not heads:
        return {}
    candidates = {*numbers, *(index for lines_of in heads.values() for index, _ in lines_of)}
    broken = _broken_sentences(lines, candidates, layout)
    marks = dict.fromkeys(_page_numbers(numbers, decorated, broken), "")
    book = _page_series(pages, broken, lines)
    for name, occurrences in heads.items():
        if book.issuperset(index for index, _ in occurrences) or _is_running_head(occurrences, broken, marks, lines):
            marks |= dict.fromkeys([index for index, _ in occurrences], "")
            first = occurrences[0][0]
            if first not in broken and headings.parse_heading(name) and not _is_repeated(name, lines[:first]):
                marks[first] = name
    return marks


def _repeated_lines(lines: Sequence[str]) -> set[str]:
    """Return short lines without punctuation that occur more than once."""
    counts = Counter(text for line in lines if 0 < len(text := line.strip(BLANKS)) <= _MAX_HEAD)
    return {text for text, count in counts.items() if count > 1 and not _PUNCTUATION.search(text)}


def _broken_sentences(lines: Sequence[str], candidates: set[int], layout: Layout | None) -> set[int]:
    """Return the candidates before which a sentence is not ended."""
    broken, is_broken = set(), False
    for index, line in enumerate(lines):
        if index in candidates:
            if is_broken:
                broken.add(index)
        elif line.strip(BLANKS) and not NOTE_LINE.match(line) and not NOTE_RULE.match(line):
            is_broken = is_open(line) and (layout is None or layout.is_full(line))
    return broken


def _page_numbers(numbers: dict[int, int], decorated: set[int], broken: set[int]) -> list[int]:
    """Return the indices of the numbers that follow each other, if enough of them interrupt a sentence."""
    chain = set[int]()
    for (index, number), (following, next_number) in pairwise(numbers.items()):
        if number < next_number <= number + 2:
            chain |= {index, following}
    if not _interrupt(chain, broken, is_series=len(chain & decorated) >= max(_SERIES, 0.9 * len(chain))):
        chain.clear()
    return sorted(chain | (decorated & broken))


def _page_series(pages: dict[int, int], broken: set[int], lines: Sequence[str]) -> set[int]:
    """Return the indices of running heads whose page numbers rise through the book, whatever their names.

    The running heads of left and right pages differ, and those of chapters too. There is text between them, unlike in a
    table.
    """
    chain = set[int]()
    for (index, number), (following, next_number) in pairwise(pages.items()):
        has_text = sum(len(line) >= MIN_WIDTH for line in lines[index + 1 : following]) >= _SERIES
        if number < next_number <= number + 2 and has_text:
            chain |= {index, following}
    return chain if len(chain) >= _SERIES and _interrupt(chain, broken, is_series=True) else set()


def _interrupt(indices: set[int], broken: set[int], *, is_series: bool) -> bool:
    """Return True if enough of the lines interrupt a sentence."""
    return len(indices & broken) >= max(1, (_MIN_BROKEN_OF_SERIES if is_series else _MIN_BROKEN) * len(indices))


def _is_running_head(
    occurrences: Sequence[tuple[int, int | None]], broken: set[int], marks: dict[int, str], lines: Sequence[str]
) -> bool:
    indices = [index for index, _ in occurrences]
    numbers = [number for _, number in occurrences if number is not None]
    if len(indices) < 2:
        return False
    if marks and all(_is_beside_mark(index, marks, lines) for index in indices):
        return True
    if not _interrupt({*indices}, broken, is_series=len(numbers) >= _SERIES):
        return False
    if len(numbers) == len(indices):
        return all(one < other for one, other in pairwise(numbers))
    return len(indices) > 2 or all(_is_beside_mark(index, marks, lines) for index in indices)


def _is_beside_mark(index: int, marks: dict[int, str], lines: Sequence[str]) -> bool:
    """Return True if only blank lines are between a line and a page number, or an end of the text."""
    for step in (-1, 1):
        at = index + step
        while 0 <= at < len(lines) and not lines[at].strip(BLANKS):
            at += step
        if at in marks or not 0 <= at < len(lines):
            return True
    return False


def _is_repeated(name: str, lines: Sequence[str]) -> bool:
    """Return True if a heading among the lines has the number of this one."""
    number = re.search("第[^ 　]+", name)
    return number is not None and any(number[0] in line and headings.parse_heading(line) for line in lines)
