"""Chapter headings of Chinese books.

A heading is a line of its own, or the start of the line that holds the complete chapter
(`第二段  高俅奸佞虽堪恨，…`). In the second case only the heading is removed; the remainder of the line is the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from pipeline.clean.utf16 import (
    BLANKS,
    LINE_ENDS,
    SEPARATOR,
    Utf16Text,
    decode_utf16,
    delete_units,
    encode_utf16,
    expand_ranges,
    is_one_of,
    positions_of,
    replace_units,
    units_at,
)
from pipeline.sources.order import parse_numeral

_NUMERALS = "〇零一二三四五六七八九十百千两0123456789０１２３４５６７８９"
_NUMBER = f"[{_NUMERALS}]+"
_HEADING = re.compile(
    rf"""[ \t\u00a0\u3000]*
    (?: [^\s，。！？：；“”‘’「」、]{{0,8}} 第{_NUMBER}[回章节卷段折出篇则部集]
      | 卷之?(?:{_NUMBER}|[上中下])
      | 楔子 | 引首 | 序言? | 自序 | 跋 | 凡例 | 附录 )
    (?= [ \t\u00a0\u3000] | $ )""",
    re.VERBOSE,
)
_MARKED = re.compile(r"[ \t\u00a0\u3000]*(?:◎|\#+[ \t]|\*\*[ \t]|==)")
_BLANKS = re.compile(r"[ \t\u00a0\u3000]*")
_STOP = re.compile("[，。！？：；、“”‘’「」…—]")
_TITLE_END = re.compile(r"[ \t\u00a0\u3000]{2,}")
_TITLE_END_SINGLE = re.compile(r"\u3000")
_NUMBERED = re.compile(f"第({_NUMBER})([回章节卷段折出篇则部集])")
MAX_TITLE = 40
_MAX_INDENT, _MAX_PREFIX = 8, 8  # blanks before a heading, and characters of a book title before its number
_SCANNED_UNITS = 200  # of a line: enough to recognise a heading
_FIRST_UNITS, _MARKUP_UNITS = "卷楔引序自跋凡附", "◎#*="  # that start a heading without 第
_SECOND_UNITS = _NUMERALS + "之上中下子首言序例录" + BLANKS + LINE_ENDS  # that may follow one of _FIRST_UNITS


@dataclass
class HeadingSplit:
    """A page split at its headings. Documents are identified by their index on the page."""

    page: Utf16Text
    origin: np.ndarray  # of each document, the index of the document on the old page that it is part of
    titles: dict[int, str]  # by document, for those that start with a heading
    numbers: list[tuple[str, int]]  # kind and number of each heading, as ("回", 12); the number is 0 if it has none
    lines_without_heading: int = 0  # lines without a heading, in texts whose headings share the line of their chapter


def split_at_headings(page: Utf16Text, policy: str) -> HeadingSplit:
    """Remove the headings of a page.

    With the policy "boundary" each heading starts a new document, and becomes its title. With "drop" it is only
    removed. With "keep" it stays and is only counted.
    """
    nuls = positions_of(page, SEPARATOR)
    split = HeadingSplit(page, np.arange(len(nuls) + 1), {}, [])
    heading_starts: list[int] = []
    heading_ends: list[int] = []
    boundaries: list[int] = []
    inline_count = 0
    line_ends = np.append(positions_of(page, LINE_ENDS), len(page))
    for start, end in _candidate_lines(page, line_ends):
        line = decode_utf16(Utf16Text(page.units[start : min(end, start + _SCANNED_UNITS)]))
        heading = parse_heading(line, is_complete=end - start <= _SCANNED_UNITS)
        if not heading:
            continue
        title, body = heading
        split.numbers.append(_kind_and_number(title))
        inline_count += bool(body)
        if policy == "keep":
            continue
        removed = line[: len(line) - len(body)]
        heading_starts.append(start)
        heading_ends.append(start + len(encode_utf16(removed)))
        if policy == "boundary":
            if start and page.units[start - 1]:
                boundaries.append(start - 1)
            split.titles[int(np.searchsorted(nuls, start)) + len(boundaries)] = title
    if inline_count:
        split.lines_without_heading = int(np.count_nonzero(np.diff(line_ends, prepend=-1) > 1)) - inline_count
    if heading_starts:
        positions = np.array(boundaries, int)
        split.origin = np.sort(np.concatenate((split.origin, np.searchsorted(nuls, positions))))
        removed_units = expand_ranges(np.array(heading_starts), np.array(heading_ends))
        split.page = delete_units(replace_units(page, positions, 0), removed_units)
    return split


def _candidate_lines(page: Utf16Text, line_ends: np.ndarray) -> list[tuple[int, int]]:
    """Return start and end of the lines whose first units allow a heading. `line_ends` are those of all lines."""
    starts = np.concatenate(([0], line_ends[:-1] + 1))
    first = starts.copy()
    for _ in range(_MAX_INDENT):
        is_blank = is_one_of(units_at(page, first), BLANKS)
        if not is_blank.any():
            break
        first += is_blank
    is_candidate = is_one_of(units_at(page, first), _FIRST_UNITS)
    lines = np.flatnonzero(is_candidate)
    is_candidate[lines] = is_one_of(units_at(page, first[lines] + 1), _SECOND_UNITS)
    is_candidate |= is_one_of(units_at(page, first), _MARKUP_UNITS)
    numbered = positions_of(page, "第")
    numbered = numbered[is_one_of(units_at(page, numbered + 1), _NUMERALS)]
    line = np.searchsorted(starts, numbered, side="right") - 1
    is_candidate[line[numbered - first[line] <= _MAX_PREFIX]] = True
    return list(zip(starts[is_candidate].tolist(), line_ends[is_candidate].tolist(), strict=True))


def _kind_and_number(title: str) -> tuple[str, int]:
    numbered = _NUMBERED.search(title)
    return (numbered[2], parse_numeral(numbered[1])) if numbered else (title.split()[0][:4], 0)


def parse_heading(line: str, *, is_complete: bool = True) -> tuple[str, str] | None:
    """Return (title, body) if `line` starts with a heading, else None. The body of an own-line heading is "".

    `is_complete` is False for the start of a line that is longer than any title.
    """
    if _MARKED.match(line) and is_complete and len(line) <= MAX_TITLE and not re.search("[。！？，]", line):
        title = _join_blanks(line.strip(BLANKS + "◎#*="))
        return (title, "") if title else None
    heading = _HEADING.match(line)
    if not heading:
        return None
    name = heading.group().strip(BLANKS)
    blanks = _BLANKS.match(line, heading.end())
    remainder = line[blanks.end() if blanks else 0 :]
    if is_complete and len(remainder) <= MAX_TITLE and not re.search("[。！？，]", remainder):
        return _join_blanks(f"{name} {remainder}"), ""
    # The title, if there is one, ends at a gap that comes before any punctuation.
    stop = _STOP.search(remainder)
    limit = min(stop.start() if stop else len(remainder), MAX_TITLE)
    gap = _TITLE_END.search(remainder, 0, limit) or _TITLE_END_SINGLE.search(remainder, 0, limit)
    if gap:
        return _join_blanks(f"{name} {remainder[: gap.start()]}"), remainder[gap.end() :]
    return name, remainder


def _join_blanks(title: str) -> str:
    return " ".join(title.split())
