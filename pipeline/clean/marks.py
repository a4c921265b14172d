"""Punctuation: that of Chinese text is full width, and stands once.

widen   连天.宋江 → 连天。宋江, 甲, 乙 → 甲，乙; 3.14 and Hello, world stay
marks   ...... and ⋯⋯ → ……, -- → ——, ，， → ，, 。。 → 。; ？！ stays
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pipeline.clean.codes import (
    BLANKS,
    DIGIT,
    LINE,
    MARK_ONCE,
    UNITS,
    Codes,
    is_chinese,
    is_one_of,
    kind_at,
    places,
    runs,
    spread,
    unit_at,
    without,
)
from pipeline.clean.rule import Rule, Seen, units

_NARROW, _WIDE = ",!?;:()", "，！？；：（）"
_CLOSING = "”’\"'"  # behind a stop they close a sentence


@cache
def _full_width() -> np.ndarray:
    becomes = np.arange(UNITS, dtype="<u2")
    becomes[[ord(mark) for mark in _NARROW]] = [ord(mark) for mark in _WIDE]
    return becomes


def widen(array: Codes, seen: Seen) -> Codes:
    """ASCII marks that touch Chinese text, with or without spaces between, become full width; ． becomes 。."""
    array = array.copy()
    wide = places(array, "．")
    in_number = (kind_at(array, wide - 1) == DIGIT) & (kind_at(array, wide + 1) == DIGIT)
    array[wide] = np.where(in_number, ord("."), ord("。"))
    seen["． → 。"] += int((~in_number).sum())

    first, after = runs(places(array, _NARROW + BLANKS))
    near = is_chinese(kind_at(array, first - 1)) | is_chinese(kind_at(array, after))
    found = spread(first[near], after[near])
    for narrow, full in zip(_NARROW, _WIDE, strict=True):
        seen[f"{narrow} → {full}"] += int((array[found] == ord(narrow)).sum())
    array[found] = _full_width()[array[found]]

    stops = places(array, ".")
    if len(stops):
        first, after = runs(places(array, "." + BLANKS))
        before, behind = kind_at(array, first - 1), kind_at(array, after)
        alone = np.searchsorted(stops, after) - np.searchsorted(stops, first) == 1
        closed = is_one_of(unit_at(array, after), _CLOSING)
        ends = alone & is_chinese(before) & (is_chinese(behind) | (behind == LINE) | closed)
        array[stops[np.searchsorted(stops, first[ends])]] = ord("。")
        seen[". → 。"] += int(ends.sum())
    return array


def once(array: Codes, seen: Seen) -> Codes:
    """Doubled marks stand once; dots and dashes that follow Chinese text become …… and ——."""
    double = np.flatnonzero(array[1:] == array[:-1]) + 1
    units = array[double]
    if is_one_of(units, ".。-").any() or len(places(array, "…⋯—")):
        array = array.copy()
        array = without(array, _pair(array, "…", _DOTS, seen))
        array = without(array, _pair(array, "—", _DASHES, seen))
        double = np.flatnonzero(array[1:] == array[:-1]) + 1
    again = double[kind_at(array, double) == MARK_ONCE]
    if not len(again):
        return array
    for unit, count in zip(*np.unique(array[again], return_counts=True), strict=True):
        seen[f"{chr(unit)}{chr(unit)} → {chr(unit)}"] += int(count)
    return without(array, again)


_DOTS = (("…⋯", 1), (".", 3), ("。", 3))  # of which so many in a row are dots that stand for something left out
_DASHES = (("—", 1), ("-", 2))


def _pair(array: Codes, becomes: str, kinds: tuple[tuple[str, int], ...], seen: Seen) -> np.ndarray:
    """Turn what follows Chinese text, and is so many of one kind or several such in a row, into two of `becomes`, in
    place; returns the places that are left over."""
    at = places(array, "".join(characters for characters, _ in kinds))
    if not len(at):
        return at
    kind = np.zeros(len(at), np.int8)
    for number, (characters, _) in enumerate(kinds):
        kind[is_one_of(array[at], characters)] = number
    begins = np.concatenate(([True], (at[1:] - at[:-1] > 1) | (kind[1:] != kind[:-1])))
    first = np.flatnonzero(begins)
    length = np.diff(np.append(first, len(at)))
    enough = length >= np.array([least for _, least in kinds])[kind[first]]
    start, end = at[first[enough]], at[first[enough]] + length[enough]
    follows = is_chinese(kind_at(array, start - 1))
    order, joins = np.arange(len(start)), np.concatenate(([False], start[1:] == end[:-1])) if len(start) else follows
    chosen = np.maximum.accumulate(np.where(follows, order, -1)) >= np.maximum.accumulate(np.where(joins, -1, order))
    start, end = runs(spread(start[chosen], end[chosen]))
    kept = np.minimum(start + 2, end)
    changed = spread(start, kept)
    for unit, count in zip(*np.unique(array[changed], return_counts=True), strict=True):
        seen[f"{chr(unit)} → {becomes}"] += int(count) * (chr(unit) != becomes)
    array[changed] = ord(becomes)
    return spread(kept, end)


WIDEN = Rule("widen", widen, units(_NARROW + ".．"), makes=_WIDE + "。.")
ONCE = Rule("marks", once)
