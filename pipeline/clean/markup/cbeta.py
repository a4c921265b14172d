"""Sutras of CBETA as plain text: a header, and print lines that begin with their position, `T08n0251_p0848c07║`."""

from __future__ import annotations

import re

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.markup.parsed import Parsed, add_count, replace
from pipeline.clean.rule import Counts
from pipeline.clean.rules import headings
from pipeline.clean.utf16 import BLANKS, HAN

_MIN_LINES = 3  # with a head, in a text without a header
_FULL = 0.8  # Han of a full line, as a fraction of the median; stops take room too
_MIN_WIDTH = 10  # Han of a full line of prose; prints have 15 to 20, verse has fewer
_HEAD = lazy_pattern(
    r"""^[ \t]*
    (?: (?P<work>[A-Z]{1,3}[0-9]{2,3}n[A-Za-z]?[0-9]{3,4}[A-Za-z]?)_p[a-z]?[0-9]{4}[a-z][0-9]{2}
        (?:\([0-9]{2}\))? (?:[A-Za-z0-9_]?\#[A-Za-z0-9#])? [ \t]?[║│|‖∥]?
      | \[?p?[0-9]{4}[a-z][0-9]{2}\]?[ \t]?[║│‖∥] )""",
    re.MULTILINE | re.VERBOSE,
)
_ABOUT = "[經经]文[資资][訊讯]|版本[記记][錄录]|[編编][輯辑][說说]明|原始[資资]料|其[他它]事[項项]"
_HEADER = lazy_pattern(
    rf"^[ \t]*\#?[ \t]*【(?:{_ABOUT})】[^\n]*(?:\n|\Z)|^\#[^\n]*(?:\n|\Z)|^[=-]{{10,}}[ \t]*(?:\n|\Z)", re.M
)
_TITLE = lazy_pattern(
    r"【[經经]文[資资][訊讯]】[^\n]*?No\.[ \t]*(?P<number>[A-Za-z]?[0-9]+[A-Za-z]?)[ \t]*(?P<title>[^\n]*)"
)
_NUMBER = lazy_pattern(
    r"^[ \t\u3000]*No\.[ \t]*[A-Za-z]?[0-9]+(?:[-,A-Za-z0-9 ]*)(?:[\[(（][^\]\n]*[\])）])?[ \t\u3000]*(?:\n|\Z)",
    re.M,
)
_FOOTNOTE = lazy_pattern(r"\[(?:[A-Za-z]?[0-9]{1,7}[a-z]?|[*＊])\]|\[p?[0-9]{4}[a-z][0-9]{2}\][ \t]*")  # or a position
_HAN = lazy_pattern(f"[{HAN}]")


def is_cbeta(head: str) -> bool:
    """Return True if a text that begins with `head` has the header of CBETA, or heads of lines."""
    is_named = bool(_TITLE.match(head.lstrip("#- \n")))
    has_mark = any(mark in head for mark in ("_p", "║", "│", "‖", "∥"))
    return is_named or (has_mark and len(_HEAD.findall(head)) >= _MIN_LINES)


def cbeta(text: str, counts: Counts) -> Parsed:
    """Remove the header, the heads of lines, numbers of works and marks of footnotes, and join the print lines.

    A full line of prose is joined to the next one, unless that is blank, indented or a heading.
    """
    title, first_head = _TITLE.search(text), _HEAD.search(text)
    work = first_head["work"] if first_head else None
    work = work or (f"No. {title['number']}" if title else None)
    if title:
        text = replace(_HEADER, text, "", "header", counts)
    text = replace(_HEAD, text, "", "line head", counts)
    text = replace(_NUMBER, text, "", "No.", counts)
    text = replace(_FOOTNOTE, text, "", "[01]", counts) if title or first_head else text
    text = _join(text.split("\n"), counts) if first_head else text
    return Parsed(text, title["title"].strip(" 　《》") if title else "", {"id": work} if work else {})


def _join(lines: list[str], counts: Counts) -> str:
    lengths = [len(_HAN.findall(line)) for line in lines]
    is_prose = [bool(line) and not any(blank in line.rstrip() for blank in BLANKS) for line in lines]
    prose = [length for length, is_line in zip(lengths, is_prose, strict=True) if is_line]
    median = sorted(prose)[len(prose) // 2] if prose else 0
    full = max(_FULL * median, _MIN_WIDTH)
    pieces: list[str] = []
    goes_on = False
    for line, length, is_line in zip(lines, lengths, is_prose, strict=True):
        joins = goes_on and bool(line) and line[0] not in BLANKS and not headings.parse_heading(line)
        add_count(counts, "joined line", joins)
        pieces.append(line if joins or not pieces else f"\n{line}")
        goes_on = is_line and length >= full and not headings.parse_heading(line)
    return "".join(pieces)
