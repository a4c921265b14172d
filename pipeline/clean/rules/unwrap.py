"""Print lines: a text that was broken where a page was full is put together again.

A line goes on in the next one unless it ends a sentence (。！？：… or a closer), or the next line is blank, begins with
a space or is a heading; and a heading that has its line for itself stays alone. 余乆擬西南遊\\n遷延 → 余乆擬西南遊遷延
"""

from __future__ import annotations

import re

from pipeline.clean.rule import Seen, textual, units
from pipeline.clean.rules import headings
from pipeline.clean.utf16 import BLANKS, CLOSERS, CONTINUES, DOTS, ENDS, HAN, LACUNA, MARKS, OPENERS, SEPARATOR

_LAST = tuple(ENDS + "：" + DOTS + CLOSERS + ".!?:" + "\"')]")  # the ASCII marks are not full width yet
_CHINESE = re.compile(f"[{HAN}{LACUNA}{MARKS}{CONTINUES}{OPENERS}{CLOSERS}—・·]")


def unwrap(text: str, seen: Seen) -> str:
    """The documents of `text` (parted by NUL) with their print lines joined; `seen` counts the joins.

    Between two words that are not Chinese the newline becomes a space.
    """
    return SEPARATOR.join(_joined(document, seen) for document in text.split(SEPARATOR))


def _joined(document: str, seen: Seen) -> str:
    before, *rest = document.split("\n")
    out = [before]
    alone: bool | None = None  # whether `before` is a heading on a line of its own; None while nobody asked
    for line in rest:
        gap, line_alone = "\n", None
        if _is_open(before) and line and line[0] not in BLANKS:
            heading = headings.match(line)
            line_alone = _stands_alone(heading)
            if not heading and not (_stands_alone(headings.match(before)) if alone is None else alone):
                gap = "" if before[-1] in BLANKS or _CHINESE.match(before[-1]) or _CHINESE.match(line) else " "
                seen["joins"] += 1
        out += (gap, line)
        before, alone = line, line_alone
    return "".join(out)


def _is_open(line: str) -> bool:
    """Whether a line has text, and does not end as a sentence does."""
    end = line.rstrip(BLANKS)
    return bool(end) and not end.endswith(_LAST)


def _stands_alone(heading: tuple[str, str] | None) -> bool:
    return heading is not None and not heading[1]


RULE = textual("unwrap", unwrap, units("\n"))
