"""Punctuation: that of Chinese text is full width, and stands once.

widen   连天.宋江 → 连天。宋江, 甲, 乙 → 甲，乙; 3.14 and Hello, world stay
marks   ...... and ⋯⋯ → ……, -- → ——, ，， → ，, 。。 → 。; ？！ stays
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pipeline.clean.rule import Rule, Seen, units
from pipeline.clean.utf16 import (
    BLANKS,
    DIGIT,
    LINE,
    MARK_ONCE,
    UNITS,
    Codes,
    distinct,
    has,
    is_chinese,
    is_one_of,
    kind_at,
    merged,
    places,
    replaced,
    runs,
    spread,
    unit_at,
    without,
)

_NARROW, _WIDE = ",!?;:()", "，！？；：（）"
_CLOSING = "”’\"'"  # behind a stop they close a sentence


@cache
def _full_width() -> np.ndarray:
    becomes = np.arange(UNITS, dtype="<u2")
    becomes[[ord(mark) for mark in _NARROW]] = [ord(mark) for mark in _WIDE]
    return becomes


def widen(text: Codes, seen: Seen) -> Codes:
    """ASCII marks that touch Chinese text, with or without spaces between, become full width; ． becomes 。."""
    wide = places(text, "．")
    in_number = (kind_at(text, wide - 1) == DIGIT) & (kind_at(text, wide + 1) == DIGIT)
    text = replaced(text, wide, np.where(in_number, ord("."), ord("。")))
    seen["． → 。"] += int((~in_number).sum())

    first, after = runs(places(text, _NARROW + BLANKS))
    near = is_chinese(kind_at(text, first - 1)) | is_chinese(kind_at(text, after))
    found = spread(first[near], after[near])
    units = text.units[found]
    for narrow, full in zip(_NARROW, _WIDE, strict=True):
        seen[f"{narrow} → {full}"] += int((units == ord(narrow)).sum())
    becomes = _full_width()[units]
    text = replaced(text, found[becomes != units], becomes[becomes != units])

    stops = places(text, ".")
    if len(stops):
        first, after = runs(places(text, "." + BLANKS))
        before, behind = kind_at(text, first - 1), kind_at(text, after)
        alone = np.searchsorted(stops, after) - np.searchsorted(stops, first) == 1
        closed = is_one_of(unit_at(text, after), _CLOSING)
        ends = alone & is_chinese(before) & (is_chinese(behind) | (behind == LINE) | closed)
        text = replaced(text, stops[np.searchsorted(stops, first[ends])], ord("。"))
        seen[". → 。"] += int(ends.sum())
    return text


def once(text: Codes, seen: Seen) -> Codes:
    """Doubled marks stand once; dots and dashes that follow Chinese text become …… and ——."""
    double = _doubled(text)
    stops = double[text.units[double] == ord("。")]
    if len(stops) or is_one_of(text.units[double], ".-").any() or has(text, "…⋯—"):
        changed = _pair(text, "…", _DOTS, distinct(np.append(stops, stops - 1))[0], seen)
        changed = _pair(changed, "—", _DASHES, stops[:0], seen)
        if changed is not text:
            text, double = changed, _doubled(changed)
    again = double[kind_at(text, double) == MARK_ONCE]
    for unit, count in zip(*distinct(text.units[again]), strict=True):
        seen[f"{chr(unit)}{chr(unit)} → {chr(unit)}"] += int(count)
    return without(text, again)


def _doubled(text: Codes) -> np.ndarray:
    """Units right behind an equal one."""
    return np.flatnonzero(text.units[1:] == text.units[:-1]) + 1


_DOTS = (("…⋯", 1), (".", 3), ("。", 3))  # of which so many in a row are dots that stand for something left out
_DASHES = (("—", 1), ("-", 2))


def _pair(text: Codes, becomes: str, kinds: tuple[tuple[str, int], ...], stops: np.ndarray, seen: Seen) -> Codes:
    """`text` with two of `becomes` for what follows Chinese text, and is so many of one kind or several such in a
    row. Of 。 only those at the places `stops` stand beside another."""
    at = places(text, "".join(characters for characters, _ in kinds).replace("。", ""))
    at = merged(at, stops)
    if not len(at):
        return text
    kind = np.zeros(len(at), np.int8)
    for number, (characters, _) in enumerate(kinds):
        kind[is_one_of(text.units[at], characters)] = number
    begins = np.concatenate(([True], (at[1:] - at[:-1] > 1) | (kind[1:] != kind[:-1])))
    first = np.flatnonzero(begins)
    length = np.diff(np.append(first, len(at)))
    enough = length >= np.array([least for _, least in kinds])[kind[first]]
    start, end = at[first[enough]], at[first[enough]] + length[enough]
    follows = is_chinese(kind_at(text, start - 1))
    order, joins = np.arange(len(start)), np.concatenate(([False], start[1:] == end[:-1])) if len(start) else follows
    chosen = np.maximum.accumulate(np.where(follows, order, -1)) >= np.maximum.accumulate(np.where(joins, -1, order))
    start, end = runs(spread(start[chosen], end[chosen]))
    kept = np.minimum(start + 2, end)
    changed = spread(start, kept)
    for unit, count in zip(*distinct(text.units[changed]), strict=True):
        seen[f"{chr(unit)} → {becomes}"] += int(count) * (chr(unit) != becomes)
    return without(replaced(text, changed, ord(becomes)), spread(kept, end))


WIDEN = Rule("widen", widen, units(_NARROW + ".．"), makes=_WIDE + "。.")
ONCE = Rule("marks", once)
