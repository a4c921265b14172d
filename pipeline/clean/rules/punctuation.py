"""Punctuation: kept, stripped, all but some marks stripped, or taken off as labels from which it can be put back.

What is punctuation: the marks that only Chinese text has, always; those that it shares with other scripts (“”…— and
ASCII) where a run of marks touches a Chinese character, holds a Chinese mark or has its line for itself. Letters,
digits, spaces, □ and the marks of English text always stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from pipeline.clean.rule import Rule, Seen, units
from pipeline.clean.utf16 import (
    BLANKS,
    DIGIT_KIND,
    HAN_BEYOND,
    HAN_UNITS,
    LINE_ENDS,
    LINE_KIND,
    MARK_ONCE_KIND,
    UNITS,
    Codes,
    codes,
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
    text_of,
    unit_at,
    without,
)
from pipeline.errors import BadConfig

_CHINESE = "，。！？；：、「」『』《》〈〉（）〔〕【】〖〗［］｛｝．～﹏＿﹃﹄﹁﹂︽︾︵︶"
_SHARED = "“”‘’…⋯—–·・‧•～!\"'(),-./:;?[]{}"
_HAN = (*HAN_UNITS, HAN_BEYOND, (0xE000, 0xF8FF), (0xDC00, 0xDFFF))  # with gaiji, and second units
_HAN_SIGNS = "〇□"
_IS_HAN, _IS_LINE, _IS_CHINESE, _IS_SHARED = range(1, 5)  # 0: all else


@cache
def _kinds() -> np.ndarray:
    table = np.zeros(UNITS, np.uint8)
    for first, last in _HAN:
        table[first : last + 1] = _IS_HAN
    signs = {_IS_HAN: _HAN_SIGNS, _IS_LINE: LINE_ENDS, _IS_CHINESE: _CHINESE, _IS_SHARED: _SHARED}
    for kind, characters in signs.items():
        table[[ord(character) for character in characters]] = kind
    return table


def rule(policy: str) -> Rule | None:
    """The rule for "keep" (none), "strip", or "only:" and the marks that stay, as in "only:。，！？".

    It counts every mark that it took away.
    """
    if policy == "keep":
        return None
    kept = policy.removeprefix("only:") if policy.startswith("only:") else ""
    if policy != "strip" and not kept:
        raise BadConfig(f"no such policy for punctuation: {policy!r}", hint="keep, strip, or as in only:。，！？")
    for mark in kept:
        if mark not in _CHINESE + _SHARED:
            raise BadConfig(f"not a mark of punctuation: {mark!r}", hint="name marks such as 。，！？")
    return Rule("punct", partial(_strip, kept), triggers=units(_CHINESE + _SHARED))


def _strip(kept: str, page: Codes, seen: Seen) -> Codes:
    marks = _marks(page)
    mark = page.units[marks]
    goes = np.ones(len(marks), bool)
    if kept:
        goes = ~is_one_of(mark, kept)
        goes |= _again(mark, marks, goes)
    gone, counts = distinct(mark[goes])
    for unit, count in zip(gone.tolist(), counts.tolist(), strict=True):
        seen[chr(unit)] += count
    return without(page, marks[goes])


def _marks(page: Codes) -> np.ndarray:
    """Where the punctuation of Chinese text stands."""
    marks = np.flatnonzero(_kinds().take(page.units) >= _IS_CHINESE)
    if not len(marks):
        return marks
    first, after = runs(marks)
    chinese = np.concatenate(([0], np.cumsum(_kinds().take(page.units[marks]) == _IS_CHINESE)))
    ends = np.cumsum(after - first)
    goes = chinese[ends] > chinese[ends - (after - first)]
    before, behind = _kinds().take(unit_at(page, first - 1)), _kinds().take(unit_at(page, after))
    goes |= (before == _IS_HAN) | (behind == _IS_HAN) | ((before == _IS_LINE) & (behind == _IS_LINE))
    chosen: np.ndarray = marks[np.repeat(goes, after - first)]
    return chosen


def _again(mark: np.ndarray, places: np.ndarray, goes: np.ndarray) -> np.ndarray:
    """Which marks stay, and would be doubled because what parted them goes: 好。”。 → 好。 and not 好。。"""
    again = np.zeros(len(mark), bool)
    stay = np.flatnonzero(~goes)
    if len(stay) > 1:
        joined = np.diff(places[stay]) == np.diff(stay)  # there are only marks between the two, and those go
        same = joined & (mark[stay[1:]] == mark[stay[:-1]])
        joints = np.concatenate(([0], np.cumsum(same & (np.diff(stay) > 1))))
        chain = np.maximum.accumulate(np.where(np.concatenate(([False], same)), 0, np.arange(len(stay))))
        again[stay] = joints > joints[chain]  # of …”… both dots behind the joint
    return again


@dataclass(frozen=True)
class Labelled:
    """A text without its punctuation, and for each of its characters the marks that followed it: "" for none.

    `head` are the marks before the first character. len(labels) == len(text), in code points.
    """

    text: str
    labels: list[str]
    head: str = ""

    def punctuated(self) -> str:
        """The text with its punctuation again."""
        pairs = zip(self.text, self.labels, strict=True)
        return self.head + "".join(character + marks for character, marks in pairs)


def labels(text: str) -> Labelled:
    """`text` without what "strip" takes away, and that as labels of its characters; nothing is lost."""
    page = codes(text)
    marks = _marks(page)
    bare = text_of(without(page, marks))
    # Places in the bare text are counted in characters: the second unit of a pair begins none.
    begins = (page.units & 0xFC00) != 0xDC00
    begins[marks] = False
    before = np.concatenate(([0], np.cumsum(begins, dtype=np.int64)))
    found = [""] * (len(bare) + 1)
    first, after = runs(marks)
    taken, ends = text_of(Codes(page.units[marks])), np.cumsum(after - first)
    for place, start, end in zip(before[first].tolist(), (ends - (after - first)).tolist(), ends.tolist(), strict=True):
        found[place] = taken[start:end]
    return Labelled(bare, found[1:], found[0])


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
    in_number = (kind_at(text, wide - 1) == DIGIT_KIND) & (kind_at(text, wide + 1) == DIGIT_KIND)
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
        ends = alone & is_chinese(before) & (is_chinese(behind) | (behind == LINE_KIND) | closed)
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
    again = double[kind_at(text, double) == MARK_ONCE_KIND]
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
