"""Chapter headings of Chinese books: where a new document begins.

A heading stands on a line of its own, or at the head of the line that holds the whole chapter
(`第二段  高俅奸佞虽堪恨，…`). In the second case only the heading goes; the body of the line stays.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from pipeline.clean.utf16 import (
    BLANKS,
    LINE_ENDS,
    SEPARATOR,
    Codes,
    codes,
    is_one_of,
    places,
    replaced,
    spread,
    text_of,
    unit_at,
    without,
)

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
_INDENT, _PREFIX = 8, 8  # most blanks before a heading, and characters of a book's name before its number
_ENOUGH = 200  # units of a line by which a heading is known
_HEADS, _MARKS = "卷楔引序自跋凡附", "◎#*="  # how a heading without 第 begins, and what follows the first of these
_SECONDS = _NUMERALS + "之上中下子首言序例录" + BLANKS + LINE_ENDS
_DIGITS = str.maketrans("〇零一二三四五六七八九两０１２３４５６７８９", "001234567892" + "0123456789")
_POWERS = {"十": 10, "百": 100, "千": 1000}


@dataclass
class Found:
    """The headings of a page: the documents they begin, by their number on the new page, and what was taken out."""

    array: Codes
    origin: np.ndarray  # of each document on the new page, the number of the one that it is from
    titles: dict[int, str]
    numbers: list[tuple[str, int]]  # kind and number of each, as ("回", 12); 0 of one without a number
    unheaded: int = 0  # lines without a heading, where headings stand on the lines of their chapters


def cut(page: Codes, policy: str) -> Found:
    """Take the headings out of a page. With "boundary" each begins a document, whose title it is; with "drop" it only
    goes; with "keep" it stays, and is only counted."""
    nuls = places(page, SEPARATOR)
    found = Found(page, np.arange(len(nuls) + 1), {}, [])
    gone_from: list[int] = []
    gone_to: list[int] = []
    parts: list[int] = []
    inline = 0
    ends = np.append(places(page, LINE_ENDS), len(page))
    for start, end in _candidates(page, ends):
        line = text_of(Codes(page.units[start : min(end, start + _ENOUGH)]))
        heading = match(line, whole=end - start <= _ENOUGH)
        if not heading:
            continue
        title, body = heading
        found.numbers.append(_number(title))
        inline += bool(body)
        if policy == "keep":
            continue
        removed = line[: len(line) - len(body)]
        gone_from.append(start)
        gone_to.append(start + len(codes(removed)))
        if policy == "boundary":
            if start and page.units[start - 1]:
                parts.append(start - 1)
            found.titles[int(np.searchsorted(nuls, start)) + len(parts)] = title
    if inline:
        found.unheaded = int(np.count_nonzero(np.diff(ends, prepend=-1) > 1)) - inline
    if gone_from:
        at = np.array(parts, int)
        found.origin = np.sort(np.concatenate((found.origin, np.searchsorted(nuls, at))))
        found.array = without(replaced(page, at, 0), spread(np.array(gone_from), np.array(gone_to)))
    return found


def _candidates(page: Codes, ends: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of the lines that may begin with a heading; `ends` are those of all lines."""
    starts = np.concatenate(([0], ends[:-1] + 1))
    first = starts.copy()
    for _ in range(_INDENT):
        blank = is_one_of(unit_at(page, first), BLANKS)
        if not blank.any():
            break
        first += blank
    wanted = is_one_of(unit_at(page, first), _HEADS)
    likely = np.flatnonzero(wanted)
    wanted[likely] = is_one_of(unit_at(page, first[likely] + 1), _SECONDS)
    wanted |= is_one_of(unit_at(page, first), _MARKS)
    numbered = places(page, "第")
    numbered = numbered[is_one_of(unit_at(page, numbered + 1), _NUMERALS)]
    line = np.searchsorted(starts, numbered, side="right") - 1
    wanted[line[numbered - first[line] <= _PREFIX]] = True
    return list(zip(starts[wanted].tolist(), ends[wanted].tolist(), strict=True))


def _number(title: str) -> tuple[str, int]:
    found = _NUMBERED.search(title)
    return (found[2], value_of(found[1])) if found else (title.split()[0][:4], 0)


def value_of(numeral: str) -> int:
    """The value of a Chinese or Arabic numeral: 一百零八, 一〇八, 108, １０８ → 108."""
    digits = numeral.translate(_DIGITS)
    if digits.isdigit():
        return int(digits)
    total = held = 0
    for each in digits:
        if each in _POWERS:
            total += (held or 1) * _POWERS[each]
            held = 0
        else:
            held = held * 10 + int(each)
    return total + held


def match(line: str, *, whole: bool = True) -> tuple[str, str] | None:
    """(title, body) when `line` begins with a heading, else None. The body of an own-line heading is "".

    Not `whole`: it is the beginning of a line that is longer than any title."""
    if _MARKED.match(line) and whole and len(line) <= MAX_TITLE and not re.search("[。！？，]", line):
        title = _tidy(line.strip(BLANKS + "◎#*="))
        return (title, "") if title else None
    heading = _HEADING.match(line)
    if not heading:
        return None
    name = heading.group().strip(BLANKS)
    start = _end(_BLANKS.match(line, heading.end()))
    rest = line[start:]
    if whole and len(rest) <= MAX_TITLE and not re.search("[。！？，]", rest):
        return _tidy(f"{name} {rest}"), ""
    # The title, if there is one, ends at a gap that comes before any punctuation.
    stop = _STOP.search(rest)
    limit = min(stop.start() if stop else len(rest), MAX_TITLE)
    gap = _TITLE_END.search(rest, 0, limit) or _TITLE_END_SINGLE.search(rest, 0, limit)
    if gap:
        return _tidy(f"{name} {rest[: gap.start()]}"), rest[gap.end() :]
    return name, rest


def _end(found: re.Match[str] | None) -> int:
    return found.end() if found else 0


def _tidy(title: str) -> str:
    return " ".join(title.split())
