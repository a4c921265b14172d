"""Series of chapter numbers: evidence for headings whose shape alone proves nothing.

A number inside a line, `一 灭门`, `第1章灭门` or `學而第一` is a heading where such numbers rise by one in a text.
Numbers that rise and that no rule took are returned for the report.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.utf16 import (
    BLANKS,
    CLOSERS,
    ELLIPSIS,
    LINE_ENDS,
    OPENERS,
    SENTENCE_ENDS,
    SEPARATOR,
    Utf16Text,
    decode_utf16,
    is_member,
    is_one_of,
    positions_of,
    units_at,
)
from pipeline.sources.order import NUMERALS, parse_numeral

NUMBER = f"[{NUMERALS}]+"
KINDS = "回囘囬廻章节節卷段折摺出齣篇则則部集幕讲講"
MIN_RUN, MIN_MISSED = 3, 5  # numbers that rise by one: from which they are a series, and the report names them
MAX_DIGITS, MAX_INDENT, MAX_WEAK = 9, 8, 40  # units, the last of a line that a series makes a heading
_PAGE_NUMBER = lazy_pattern(f"(?: [-—·…(（]*|[-—·…(（]+) ?(?:[0-9]{{1,4}}|{NUMBER})[-—·)） ]*$")
_PAGE_MARK = lazy_pattern("[^\\w，、；：。！？…”’」』）》】〕]*(?:\n[^\\w\n]*(?:第?[0-9]{1,4}[页頁]?[^\\w\n]*)?)*$")
_MAX_PAGE_MARK, _MIN_PRINT_LINE = 100, 12  # units: of the last line of a page with its number; of that line
_EXAMPLE, _NEAR_START = 24, 12  # units: of an example; between the start of a line and a number that may head it
_BEFORE_INLINE = BLANKS + SENTENCE_ENDS + CLOSERS + ELLIPSIS  # a heading inside a line follows one of these
_REPORTED_KINDS = "回章卷"
_TEXT = "[^\\s，。！？：；“”「」…]"
_WEAK_SHAPES = (  # of each text, only the first shape with rising numbers counts
    ("第N", lazy_pattern(f"(?:正文)?第({NUMBER})[{KINDS}](?! )[^。：；“”「」…]{{1,30}}(?<![，、])")),
    ("…第N", lazy_pattern(f"{_TEXT}{{1,8}}第({NUMBER})")),
    ("N …", lazy_pattern(f"({NUMBER})[{BLANKS}]+{_TEXT}(?:[^，。！？：；“”「」…]{{0,20}})")),
)
_NUMBERED_TITLE = lazy_pattern(
    f"第[{BLANKS}]?{NUMBER}|卷[之第]?(?:{NUMBER}|[上中下])|^[A-Z]?[{NUMERALS}.]+(?:[{BLANKS}]|《)"
)
NUMBER_OF_WORK = lazy_pattern(f"[A-Z]?(?:[0-9]+[.])*([0-9]+)[{BLANKS}]?《")


def is_numbered(title: str) -> bool:
    """Return True for the title of a chapter: sections inside of it are not chapters of the book."""
    return bool(_NUMBERED_TITLE.search(title))


# Lines and numbers of a page


@dataclass(frozen=True)
class Lines:
    """Lines of a page: their starts, their ends (exclusive), and the position of the first unit after the indent."""

    starts: np.ndarray
    ends: np.ndarray
    first: np.ndarray

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the indices of the lines that hold `positions`."""
        indices: np.ndarray = np.searchsorted(self.starts, positions, side="right") - 1
        return indices


def lines_of(page: Utf16Text) -> Lines:
    """Return the lines of a page."""
    ends = np.append(positions_of(page, LINE_ENDS), len(page))
    starts = np.concatenate(([0], ends[:-1] + 1))
    return Lines(starts, ends, skip(page, starts, BLANKS, MAX_INDENT))


def skip(page: Utf16Text, positions: np.ndarray, characters: str, limit: int) -> np.ndarray:
    """Return `positions` moved behind at most `limit` of `characters`."""
    positions = positions.copy()
    for _ in range(limit):
        is_skipped = is_one_of(units_at(page, positions), characters)
        if not is_skipped.any():
            break
        positions += is_skipped
    return positions


class Ordinals(NamedTuple):
    """Numbers after 第 on a page: the positions of 第, of the end of the number, and of the unit after a blank.

    `has_kind` is a mask of those with a kind, such as 回, at `ends`. `volumes` are the positions of 卷.
    """

    starts: np.ndarray
    ends: np.ndarray
    has_kind: np.ndarray
    volumes: np.ndarray

    def of_kind(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the starts and the positions after the kind of those that have one."""
        return self.starts[self.has_kind], self.ends[self.has_kind] + 1


def ordinals(page: Utf16Text) -> Ordinals:
    """Return the numbers after 第 on a page. One blank is allowed on each side of a number."""
    starts, volumes = positions_of(page, "第"), positions_of(page, "卷")
    digits = skip(page, starts + 1, BLANKS, 1)
    starts, digits = (positions[is_one_of(units_at(page, digits), NUMERALS)] for positions in (starts, digits))
    ends = skip(page, digits, NUMERALS, MAX_DIGITS)
    after = skip(page, ends, BLANKS, 1)
    has_kind = is_one_of(units_at(page, after), KINDS)
    return Ordinals(starts, np.where(has_kind, after, ends), has_kind, volumes)


def text_of(page: Utf16Text, start: int, end: int) -> str:
    """Return the text from one position to another."""
    return decode_utf16(Utf16Text(page.units[start:end]))


def _numbers(page: Utf16Text, starts: np.ndarray, ends: np.ndarray) -> list[tuple[str, int]]:
    """Return kind and number of each ordinal."""
    texts = [text_of(page, start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return [(text[-1], parse_numeral(text[1:-1].strip(BLANKS))) for text in texts]


# Headings inside lines


def inline_headings(page: Utf16Text, lines: Lines, numbers: Ordinals) -> np.ndarray:
    """Return the positions inside lines where a chapter begins: `…下回分解。第二回 贾夫人…`.

    A sentence end or a blank is before such a position, a blank is after the number, and the numbers of a text, with
    those at line starts, rise by one. A word such as the title of the book may begin the line.
    """
    starts, ends = numbers.of_kind()
    is_open = is_one_of(units_at(page, ends), BLANKS)
    starts, ends = starts[is_open], ends[is_open]
    before_indent = lines.first[lines.at(starts)]
    is_first = starts - before_indent <= MAX_INDENT
    is_after = (starts > before_indent) & is_one_of(units_at(page, starts - 1), _BEFORE_INLINE)
    is_inside: np.ndarray = ~is_first & is_after
    if not is_inside.any() or len(starts) < MIN_RUN:
        return np.array([], int)
    is_cut = starts[is_after]
    chosen = is_first | is_inside
    starts, ends, is_inside = starts[chosen], ends[chosen], is_inside[chosen]
    documents = np.searchsorted(positions_of(page, SEPARATOR), starts).tolist()
    series: dict[tuple[int, str], list[tuple[int, int, bool]]] = {}
    for document, (kind, number), start, inside in zip(
        documents, _numbers(page, starts, ends), starts.tolist(), is_inside.tolist(), strict=True
    ):
        series.setdefault((document, kind), []).append((start, number, inside))
    positions = sorted(start for entries in series.values() for run in _runs(entries) for start, _, _ in run)
    return np.compress(is_member(is_cut, np.array(positions, int)), is_cut)


def _runs(entries: list[tuple[int, int, bool]]) -> Iterator[list[tuple[int, int, bool]]]:
    """Yield the runs of numbers that rise by one. A number inside a line that does not continue a run is left out."""
    run: list[tuple[int, int, bool]] = []
    for entry in entries:
        _, number, inside = entry
        if run and number == run[-1][1] + 1:
            run.append(entry)
        elif number == 1 or not inside:
            if len(run) >= MIN_RUN:
                yield run
            run = [entry]
    if len(run) >= MIN_RUN:
        yield run


# Lines that only a series makes headings


class WeakHeading(NamedTuple):
    """A line that is a heading because it is one of a series. `pattern` and `number` are for the report."""

    line: int
    title: str
    pattern: str
    number: int


def weak_headings(
    page: Utf16Text,
    lines: Lines,
    numbers: Ordinals,
    find_sections: Callable[[np.ndarray], np.ndarray],
    min_run: int = MIN_RUN,
) -> list[WeakHeading]:
    """Return the lines that a series of numbers makes headings.

    `find_sections` returns the sections of lines, -1 where none may be. The numbers of a section rise from 1 in at
    least `min_run` lines, and text stands between them, so that neither a table of contents nor a list is a series.
    """
    candidates: dict[tuple[int, int], list[WeakHeading]] = {}  # by section and shape
    weak_lines = _weak_lines(page, lines, numbers)
    if len(weak_lines) < min_run:
        return []
    sections = find_sections(weak_lines)
    for line, section in zip(weak_lines.tolist(), sections.tolist(), strict=True):
        text = text_of(page, int(lines.first[line]), int(lines.ends[line])).rstrip(BLANKS)
        for index, (pattern, shape) in enumerate(_WEAK_SHAPES) if section >= 0 else ():
            if match := shape.fullmatch(text):
                heading = WeakHeading(line, text, _pattern(pattern, text), parse_numeral(match[1]))
                candidates.setdefault((section, index), []).append(heading)
                break
    has_text = np.cumsum(lines.ends > lines.first)  # number of lines with text up to each line
    headings: dict[int, list[WeakHeading]] = {}  # by section
    for section, index in sorted(candidates):
        headings[section] = headings.get(section) or _rising(candidates[section, index], has_text, min_run)
    return [heading for run in headings.values() for heading in run]


def _pattern(pattern: str, text: str) -> str:
    kind = re.search(f"第{NUMBER}([{KINDS}])", text)
    return f"{pattern}{kind[1]}" if kind and pattern == "第N" else pattern


def _weak_lines(page: Utf16Text, lines: Lines, numbers: Ordinals) -> np.ndarray:
    """Return the indices of the short lines that may have one of the weak shapes."""
    is_digit = is_one_of(units_at(page, lines.first), NUMERALS)
    short = np.flatnonzero(is_digit & (lines.ends - lines.first <= MAX_WEAK))
    after = skip(page, lines.first[short], NUMERALS, MAX_DIGITS)
    short = short[is_one_of(units_at(page, after), BLANKS)]
    line = lines.at(numbers.starts)
    is_near = (numbers.starts - lines.first[line] <= MAX_INDENT) & (lines.ends[line] - lines.first[line] <= MAX_WEAK)
    is_last = is_one_of(units_at(page, numbers.ends), BLANKS + LINE_ENDS)
    near = line[is_near & (numbers.has_kind | is_last)]
    return np.array(sorted({*short.tolist(), *near.tolist()}), int)


def _rising(headings: list[WeakHeading], has_text: np.ndarray, min_run: int) -> list[WeakHeading]:
    """Return the headings from number 1 on if they are a series, else none."""
    ranks = [int(has_text[heading.line]) for heading in headings]
    with_text = [
        heading
        for heading, rank, following in zip(headings, ranks, [*ranks[1:], -1], strict=True)
        if following != rank + 1
    ]
    first = next((index for index, heading in enumerate(with_text) if heading.number == 1), len(with_text))
    series = with_text[first:]
    values = [heading.number for heading in series]
    is_rising = all(a < b for a, b in pairwise(values))
    return series if len(series) >= min_run and is_rising and 4 * values[-1] <= 5 * len(values) + 3 else []


# Running heads


class Heading(NamedTuple):
    """A heading on a page: its start, the end of what is removed, and its title; pattern and number for the report."""

    start: int
    end: int
    title: str
    pattern: str
    number: int
    has_body: bool = False  # on the same line


def chapter_headings(page: Utf16Text, headings: Sequence[Heading]) -> list[Heading]:
    """Return the headings without the running heads of pages, which repeat the chapter before them.

    Only a page number, as in `红楼梦　第一回　2`, may be added, and one of the running heads of a chapter interrupts a
    sentence. Chapters in parts repeat their number, too, but no sentence runs from one into the next.
    """
    starts = np.array([heading.start for heading in headings], int)
    documents = np.searchsorted(positions_of(page, SEPARATOR), starts).tolist()
    chapters: list[list[Heading]] = []  # with the headings that repeat them
    for previous, index, heading in zip([-1, *documents], documents, headings, strict=False):
        if previous == index and _repeats(heading, chapters[-1][0]):
            chapters[-1].append(heading)
        else:
            chapters.append([heading])
    chosen: list[Heading] = []
    for first, *repeated in chapters:
        if any(_is_interrupted(page, heading.start) for heading in repeated):
            chosen.append(first._replace(title=_PAGE_NUMBER.sub("", first.title)))
        else:
            chosen += [first, *repeated]
    return chosen


def _repeats(heading: Heading, first: Heading) -> bool:
    is_same = heading.number > 0 and (heading.pattern, heading.number) == (first.pattern, first.number)
    base = _PAGE_NUMBER.sub("", heading.title)
    return is_same and (base != heading.title or base == _PAGE_NUMBER.sub("", first.title))


def _is_interrupted(page: Utf16Text, position: int) -> bool:
    """Return True if a long line before this one is not a complete sentence. A page number may be between."""
    before = _PAGE_MARK.sub("", text_of(page, max(position - _MAX_PAGE_MARK, 0), position).rpartition(SEPARATOR)[2])
    line = before.rpartition("\n")[2]
    return len(line) >= _MIN_PRINT_LINE and line[-1] not in SENTENCE_ENDS + CLOSERS + ELLIPSIS


# Numbers that no heading took


class MissedNumber(NamedTuple):
    """A number that looks like that of a chapter and is part of no heading."""

    pattern: str
    number: int
    example: str


def missed_numbers(
    page: Utf16Text, lines: Lines, numbers: Ordinals, spans: tuple[np.ndarray, np.ndarray]
) -> list[MissedNumber]:
    """Return the numbers near a line start or after a sentence end that are part of no heading, if they rise.

    `spans` are the starts and ends of the headings.
    """
    starts, ends = numbers.of_kind()
    is_reported = is_one_of(units_at(page, ends - 1), _REPORTED_KINDS)
    starts, ends = starts[is_reported], ends[is_reported]
    line = lines.at(starts)
    is_near = starts - lines.first[line] <= _NEAR_START
    is_candidate = is_near | is_one_of(units_at(page, starts - 1), _BEFORE_INLINE + OPENERS)
    if len(spans[0]):
        heading = np.searchsorted(spans[0], starts, side="right") - 1
        is_candidate &= (heading < 0) | (starts >= spans[1][heading])
    origin = np.where(is_near, lines.first[line], starts)[is_candidate]
    stops = np.minimum(lines.ends[line][is_candidate], origin + _EXAMPLE)
    values = _numbers(page, starts[is_candidate], ends[is_candidate])
    entries = [
        (start, stop, f"第N{kind}", number)
        for (kind, number), start, stop in zip(values, origin.tolist(), stops.tolist(), strict=True)
    ]
    entries += _missed_titles(page, lines, spans)
    entries += _missed_lines(page, lines)
    nuls = positions_of(page, SEPARATOR)
    series: dict[tuple[int, str], list[MissedNumber]] = {}
    for start, stop, pattern, number in entries:
        missed = MissedNumber(pattern, number, text_of(page, start, stop).strip())
        series.setdefault((int(np.searchsorted(nuls, start)), pattern), []).append(missed)
    if len(nuls):  # a record is a complete text, other than a part of a file, which may hold a single chapter
        series = {key: run for key, run in series.items() if len(run) >= MIN_RUN}
    return [missed for run in series.values() for missed in _neighbours(run)]


def _neighbours(entries: list[MissedNumber]) -> list[MissedNumber]:
    """Return the numbers that follow the one before them, or that the next one follows, or a single number."""
    before = [0, *(entry.number for entry in entries[:-1])]
    after = [*(entry.number for entry in entries[1:]), 0]
    return [
        entry
        for entry, low, high in zip(entries, before, after, strict=True)
        if len(entries) == 1 or entry.number in (low + 1, high - 1)
    ]


def longest_run(numbers: Iterable[int]) -> list[int]:
    """Return the longest run of numbers that rise by one, if it has at least `MIN_MISSED`, else nothing."""
    ordered = sorted(numbers)
    breaks = [index for index in range(1, len(ordered)) if ordered[index] != ordered[index - 1] + 1]
    longest = max((ordered[start:end] for start, end in pairwise([0, *breaks, len(ordered)])), key=len)
    return longest if len(longest) >= MIN_MISSED else []


_NUMBERED_LINE = lazy_pattern(f"({NUMBER})[、．.] ?{_TEXT}[^，。！？：；“”「」…]*")


def _missed_titles(
    page: Utf16Text, lines: Lines, spans: tuple[np.ndarray, np.ndarray]
) -> Iterator[tuple[int, int, str, int]]:
    """Yield example, as start and end, pattern and number of lines that begin like `12《…》` and are not headings."""
    at = positions_of(page, "《")
    at = at[is_one_of(units_at(page, at - 1), "0123456789 \u3000")]
    line = lines.at(at)
    line = line[(at - lines.first[line] <= _NEAR_START) & ~is_member(lines.starts[line], spans[0])]
    for start, end in zip(lines.first[line].tolist(), lines.ends[line].tolist(), strict=True):
        if match := NUMBER_OF_WORK.match(text_of(page, start, min(end, start + _EXAMPLE))):
            yield start, min(end, start + _EXAMPLE), "N《…》", int(match[1])


def _missed_lines(page: Utf16Text, lines: Lines) -> Iterator[tuple[int, int, str, int]]:
    """Yield example, pattern and number of lines such as `一、灭门` if text stands between them, unlike in a list."""
    short = np.flatnonzero(is_one_of(units_at(page, lines.first), NUMERALS) & (lines.ends - lines.first <= MAX_WEAK))
    short = short[is_one_of(units_at(page, skip(page, lines.first[short], NUMERALS, MAX_DIGITS)), "、．.")]
    nuls, has_text = positions_of(page, SEPARATOR), np.cumsum(lines.ends > lines.first)
    by_document: dict[int, list[WeakHeading]] = {}
    for line in short.tolist():
        if match := _NUMBERED_LINE.fullmatch(text_of(page, int(lines.first[line]), int(lines.ends[line]))):
            heading = WeakHeading(line, match[0], "N、…", parse_numeral(match[1]))
            by_document.setdefault(int(np.searchsorted(nuls, lines.starts[line])), []).append(heading)
    for headings in by_document.values():
        for line, _, pattern, number in _rising(headings, has_text, MIN_MISSED):
            yield int(lines.first[line]), int(lines.ends[line]), pattern, number
