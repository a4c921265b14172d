"""Unwrapping: text that was broken into print lines is joined into paragraphs.

A line continues in the next one unless it ends a sentence (。！？：… or a closing mark), or the next line is blank,
starts with a space or is a heading. A heading on a line of its own is not joined.
`余乆擬西南遊\\n遷延` becomes `余乆擬西南遊遷延`.
"""

from __future__ import annotations

import re

from pipeline.clean.rule import Counts, textual, units
from pipeline.clean.rules import headings
from pipeline.clean.utf16 import (
    BLANKS,
    CHINESE_MARKS,
    CLAUSE_MARKS,
    CLOSERS,
    ELLIPSIS,
    HAN,
    LACUNA,
    OPENERS,
    SENTENCE_ENDS,
    SEPARATOR,
)

# ASCII marks included: this rule runs before they are widened.
_SENTENCE_ENDS = tuple(SENTENCE_ENDS + "：" + ELLIPSIS + CLOSERS + ".!?:" + "\"')]")
_CHINESE = re.compile(f"[{HAN}{LACUNA}{CHINESE_MARKS}{CLAUSE_MARKS}{OPENERS}{CLOSERS}—・·]")


def unwrap(text: str, counts: Counts) -> str:
    """Join the print lines of the documents of `text`, which NUL separates, and count the joins.

    Between two words that are not Chinese the newline becomes a space.
    """
    return SEPARATOR.join(_join_lines(document, counts) for document in text.split(SEPARATOR))


def _join_lines(document: str, counts: Counts) -> str:
    previous, *following = document.split("\n")
    pieces = [previous]
    previous_is_heading: bool | None = None  # None: not checked yet, because parsing a heading is slow
    for line in following:
        separator, is_heading = "\n", None
        if _is_open(previous) and line and line[0] not in BLANKS:
            heading = headings.parse_heading(line)
            is_heading = _is_own_line(heading)
            if not heading and previous_is_heading is None:
                previous_is_heading = _is_own_line(headings.parse_heading(previous))
            if not heading and not previous_is_heading:
                separator = (
                    "" if previous[-1] in BLANKS or _CHINESE.match(previous[-1]) or _CHINESE.match(line) else " "
                )
                counts["joins"] += 1
        pieces += (separator, line)
        previous, previous_is_heading = line, is_heading
    return "".join(pieces)


def _is_open(line: str) -> bool:
    """Return True if a line has text and does not end a sentence."""
    text = line.rstrip(BLANKS)
    return bool(text) and not text.endswith(_SENTENCE_ENDS)


def _is_own_line(heading: tuple[str, str] | None) -> bool:
    return heading is not None and not heading[1]


UNWRAP = textual("unwrap", unwrap, units("\n"))
