"""ASCII quotes in Chinese text become “ ” ‘ ’ by what stands before them; quotes of any other kind stay as they are.

A quote opens at the head of a line and behind ：; otherwise it is the other half of the one before it in its line.
Curly quotes say themselves what they are, and count as such.
"""

from __future__ import annotations

import numpy as np

from pipeline.clean.rule import Rule, Seen, units
from pipeline.clean.utf16 import (
    BLANKS,
    LINE_ENDS,
    LINE_KIND,
    Codes,
    is_chinese,
    is_one_of,
    kind_at,
    places,
    replaced,
    runs,
    unit_at,
    without,
)

_KINDS = (('"', "“", "”"), ("'", "‘", "’"))
_HEADS = "：“‘"
_CURLY, _CORNER = "“”‘’", "「」『』"


def curl(text: Codes, seen: Seen) -> Codes:
    """The page with its ASCII quotes that touch Chinese text, with or without spaces between, as curly ones."""
    for own, opener, closer in _KINDS:
        text = _curl(text, own, opener, closer, seen)
    return text


def _curl(text: Codes, own: str, opener: str, closer: str, seen: Seen) -> Codes:
    quotes = places(text, own)
    if not len(quotes):
        return text
    first, after = runs(places(text, own + BLANKS))
    before = kind_at(text, first - 1)
    heads = (before == LINE_KIND) | is_one_of(unit_at(text, first - 1), _HEADS)
    near = is_chinese(before) | is_chinese(kind_at(text, after))
    foremost = np.append(quotes, len(text))[np.searchsorted(quotes, first)]  # the first quote of each run

    # The state behind a mark: what says itself what it is sets it, any other is the opposite of the one before.
    at = places(text, own + LINE_ENDS + opener + closer)
    unit = text.units[at]
    run = np.maximum(np.searchsorted(first, at, side="right") - 1, 0)
    touches = (unit == ord(own)) & near[run]
    opens = touches & heads[run] & (at == foremost[run])
    sets = (unit != ord(own)) | opens
    order = np.arange(len(at))
    latest = np.maximum.accumulate(np.where(sets, order, -1))
    turns = np.cumsum(touches & ~opens)
    since = turns - np.where(latest >= 0, turns[latest], 0)
    begins = (latest >= 0) & (opens | (unit == ord(opener)))[latest]
    is_open = begins ^ (since % 2 == 1)
    seen[f"{own} → {opener}"] += int(is_open[touches].sum())
    seen[f"{own} → {closer}"] += int((~is_open[touches]).sum())
    return replaced(text, at[touches], np.where(is_open[touches], ord(opener), ord(closer)))


RULE = Rule("quotes", curl, units("\"'"), makes=_CURLY)


def faults(text: Codes) -> dict[str, int]:
    """Outer quotes that are no pairs, as they often are in books: opened again before they were closed, closed without
    having been opened."""
    unit = text.units[places(text, "“”「」" + LINE_ENDS)]
    opens, closes = (unit == ord("“")) | (unit == ord("「")), (unit == ord("”")) | (unit == ord("」"))
    follows_open = np.concatenate(([False], opens[:-1]))
    return {
        "reopened": int((opens & follows_open).sum()),
        "orphans": int((closes & ~follows_open).sum()),
    }


def style(name: str) -> Rule:
    """Quotes in one style: curly “ ” ‘ ’, corner 「 」 『 』, or strip them all."""
    if name == "strip":
        return Rule("quote-style", _strip, units(_CURLY + _CORNER))
    old, new = (_CORNER, _CURLY) if name == "curly" else (_CURLY, _CORNER)

    def restyle(text: Codes, seen: Seen) -> Codes:
        for one, other in zip(old, new, strict=True):
            found = places(text, one)
            text = replaced(text, found, ord(other))
            seen[f"{one} → {other}"] += len(found)
        return text

    return Rule("quote-style", restyle, units(old), makes=new)


def _strip(text: Codes, seen: Seen) -> Codes:
    found = places(text, _CURLY + _CORNER)
    seen["stripped"] += len(found)
    return without(text, found)
