"""Verse inside prose: 正是：黑甜一枕古祠中，梦里分明见鬼雄。

Verse is whole sentences of clauses that are all 5 or all 7 characters long: two clauses or more behind words that
announce it (正是：), four or more elsewhere. Clauses of 4 characters are what classical prose is made of: of
the 457 runs of four and more of them in 水浒 hardly one is verse. So they count only where they are announced, and two
of them only behind 正是：, because with 但见： prose in pairs begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from pipeline.clean.rule import Rule, Seen, units
from pipeline.clean.utf16 import (
    HAN_BEYOND,
    HAN_UNITS,
    UNITS,
    Codes,
    codes,
    distinct,
    inserted,
    is_one_of,
    places,
    spread,
    unit_at,
    without,
)
from pipeline.errors import BadConfig

POLICIES = ("inline", "own-unit", "drop")
_HAN = (*HAN_UNITS, HAN_BEYOND, (0xE000, 0xF8FF), (0xDC00, 0xDFFF))  # with gaiji, and second units
_HAN_SIGNS = "〇□"
_MARKS, _ENDS = "，。！？；", "。！？"  # that end a clause, a sentence
_OPENERS, _CLOSERS = "“‘「『\"'", "”’」』\"'"
_GOES_ON = "，、；："
_COUPLET = "正是"
_ANNOUNCE = (_COUPLET, "诗曰", "詩曰", "但见", "但見", "为证", "為證", "爲證", "偈曰", "赋曰", "賦曰", "词曰", "詞曰")
_BEFORE_COLON = "".join(each[-1] for each in _ANNOUNCE)
_IN_FRONT = {"为证": "有诗", "為證": "有詩", "爲證": "有詩"}
_SENTENCE_STARTS = "\0\n。！？：" + _OPENERS + _CLOSERS


@dataclass(frozen=True)
class Run:
    """Verse from `start` to `end` (with its last mark), in code points: `clauses` of `length` characters each."""

    start: int
    end: int
    clauses: int
    length: int
    announced: bool


@dataclass(frozen=True)
class _Found:
    """The same for all verse of a page, as arrays, in units. `lead` is where the words that announce it begin, `start`
    where nothing does."""

    start: np.ndarray
    end: np.ndarray
    clauses: np.ndarray
    length: np.ndarray
    announced: np.ndarray
    lead: np.ndarray


def rule(policy: str) -> Rule:
    """inline: verse is counted and stays; own-unit: it has a line of its own, with what announces it; drop: it goes.

    It counts runs by the length of their clauses, those that are announced, and their characters.
    """
    if policy not in POLICIES:
        raise BadConfig(f"no such policy for verse: {policy!r}", hint=f"one of {', '.join(POLICIES)}")
    return Rule("verse", partial(_page, policy), triggers=units(_ENDS), makes="\n" if policy == "own-unit" else "")


def find(text: str) -> list[Run]:
    """The verse in `text`, in order."""
    array = codes(text)
    found = _find(array)
    low = np.concatenate(([0], np.cumsum((array.units & 0xFC00) == 0xDC00)))
    columns = (found.start - low[found.start], found.end - low[found.end], found.clauses, found.length, found.announced)
    return [Run(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _page(policy: str, array: Codes, seen: Seen) -> Codes:
    if policy == "inline":
        _count(_find(_behind_announcements(array)), seen)
        return array
    found = _find(array)
    while len(found.start):
        _count(found, seen)
        if policy == "own-unit":
            return _on_lines(array, found)
        array = _dropped(array, found)
        found = _find(array)  # what verse parted may be verse together
    return array


def _count(found: _Found, seen: Seen) -> None:
    for length, count in zip(*distinct(found.length), strict=True):
        seen[f"runs of {length} characters a clause"] += int(count)
    seen["runs that are announced"] += int(np.count_nonzero(found.announced))
    seen["characters of verse"] += int((found.clauses * found.length).sum())


def _behind_announcements(array: Codes) -> Codes:
    """What may be announced verse, so that a book of prose need not be searched all through only to count."""
    colon = places(array, "：")
    colon = colon[is_one_of(unit_at(array, colon - 1), _BEFORE_COLON)]
    pair = (unit_at(array, colon - 2).astype(np.uint32) << 16) | unit_at(array, colon - 1)
    colon = colon[_is_pair(pair, _ANNOUNCE)]
    if not len(colon):
        return array[:0]
    start = np.maximum(colon - _BEFORE, 0)
    end = np.minimum(np.append(colon[1:] - _BEFORE, len(array)), colon + _FAR)
    end = np.maximum(end, start)
    pieces = [
        piece
        for first, last in zip(start.tolist(), end.tolist(), strict=True)
        for piece in (array.units[first:last], _PART)
    ]
    return Codes(np.concatenate(pieces))


_BEFORE, _FAR = 4, 600  # units before a colon, and behind it: the longest of songs
_PART = np.zeros(1, "<u2")


def _on_lines(array: Codes, found: _Found) -> Codes:
    start = found.lead - _is(array, found.lead - 1, _OPENERS)
    end = found.end
    while (more := _is(array, end, _CLOSERS)).any():
        end = end + more
    whole = ~_is(array, end, _GOES_ON)
    cut = np.zeros(len(array) + 1, bool)
    cut[start[whole]] = cut[end[whole]] = True
    cuts = np.flatnonzero(cut)
    return inserted(array, cuts[~_is(array, cuts - 1, "\0\n") & ~_is(array, cuts, "\0\n")], "\n")


def _dropped(array: Codes, found: _Found) -> Codes:
    """`array` without verse and the words that announce it; of quotes both go, or none."""
    opened, closed = _is(array, found.start - 1, _OPENERS), _is(array, found.end, _CLOSERS)
    inside = opened & ~closed
    start = np.where(inside, found.start, found.lead - (opened & (found.lead == found.start)))
    end = found.end + (opened & closed)
    alone = _is(array, start - 1, "\0\n") & _is(array, end, "\n")  # a line of nothing else goes with its end
    return without(array, spread(start, end + alone))


def _find(array: Codes) -> _Found:
    """All verse of a page. A character is one unit here: the second ones of pairs are left out for the while."""
    if not ((array.odd_units & 0xFC00) == 0xDC00).any():
        return _found(array)
    whole = np.flatnonzero((array.units & 0xFC00) != 0xDC00)
    found = _found(Codes(array.units[whole]))
    return _Found(
        whole[found.start], whole[found.end - 1] + 1, found.clauses, found.length, found.announced, whole[found.lead]
    )


def _found(array: Codes) -> _Found:
    marks = places(array, _MARKS)
    link, length = _links(array, marks)
    breaks = np.flatnonzero((np.diff(link) > 1) | (np.diff(length) != 0))
    first, final = np.append(0, breaks + 1)[: len(link)], np.append(breaks, len(link) - 1)[: len(link)]
    # Groups of equal clauses: the first ends with the mark `one`, the last with the mark `last`.
    one, last, length = link[first], link[final] + 1, length[first]
    long = (last - one > 2) & (length > 4)
    likely = long | _is(array, marks[one] - length - 1, "：\n" + _OPENERS)
    one, last, length = one[likely], last[likely], length[likely]
    lead, kind = _announcements(array, marks[one] - length)

    # Each is cut down to whole sentences.
    ending = np.flatnonzero(_is(array, marks, _ENDS))
    bounds = np.concatenate(([-1], ending, [len(marks)]))
    starts = (kind > 0) | _is(array, marks[one] - length - 1, _SENTENCE_STARTS)
    begin = np.where(starts, one, bounds[np.searchsorted(ending, one) + 1] + 1)
    finish = bounds[np.searchsorted(ending, last, side="right")]
    count = finish - begin + 1

    least = np.where(kind > 0, np.where((length > 4) | (kind == 1), 2, 4), np.where(length > 4, 4, len(array) + 1))
    verse = count >= least
    begin, finish, length, announced = begin[verse], finish[verse], length[verse], kind[verse] > 0
    start = marks[begin] - length
    return _Found(start, marks[finish] + 1, count[verse], length, announced, np.where(announced, lead[verse], start))


def _links(array: Codes, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which marks stand between two clauses of the same length, 4, 5 or 7 characters, and that length.

    The second clause ends with the next mark; a line may end between the two.
    """
    if len(marks) < 2:
        return marks[:0], marks[:0]
    broken = unit_at(array, marks[:-1] + 1) == ord("\n")
    size = np.diff(marks) - 1 - broken
    link = np.flatnonzero(((size > 3) & (size < 6)) | (size == 7))
    link = link[~_han().take(unit_at(array, marks[link] - size[link] - 1))]
    good = np.zeros(len(link), bool)
    for length in (4, 5, 7):
        which = np.flatnonzero(size[link] == length)
        at = marks[link[which]]
        beside = np.arange(length)
        before = _han().take(unit_at(array, at[:, None] - length + beside)).all(axis=1)
        behind = _han().take(unit_at(array, (at + 1 + broken[link[which]])[:, None] + beside)).all(axis=1)
        good[which] = before & behind
    return link[good], size[link[good]]


def _announcements(array: Codes, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the words begin that announce what begins at `begin`; and 1 for 正是, 2 for others, 0 for none."""
    colon = begin - 1
    colon = colon - _is(array, colon, "\n" + _OPENERS)
    colon = colon - _is(array, colon, "\n" + _OPENERS)
    pair = (unit_at(array, colon - 2).astype(np.uint32) << 16) | unit_at(array, colon - 1)
    pair[~_is(array, colon, "：")] = 0
    kind = np.where(pair == _pair(_COUPLET), 1, np.where(_is_pair(pair, _ANNOUNCE), 2, 0))
    longer = np.zeros(len(begin), bool)
    before = (unit_at(array, colon - 4).astype(np.uint32) << 16) | unit_at(array, colon - 3)
    for behind, front in _IN_FRONT.items():
        longer |= (pair == _pair(behind)) & (before == _pair(front))
    kind[_is_pair(pair, _IN_FRONT) & ~longer] = 0
    return colon - 2 - 2 * longer, kind


def _pair(two: str) -> int:
    return ord(two[0]) << 16 | ord(two[1])


def _is_pair(pairs: np.ndarray, words: Iterable[str]) -> np.ndarray:
    """Which of the pairs are one of the words."""
    found: np.ndarray = (pairs[:, None] == np.array([_pair(each) for each in words], np.uint32)).any(axis=1)
    return found


def _is(array: Codes, at: np.ndarray, characters: str) -> np.ndarray:
    """Whether one of `characters` stands at each of the places; NUL stands outside of the array."""
    return is_one_of(unit_at(array, at), characters)


@cache
def _han() -> np.ndarray:
    table = np.zeros(UNITS, bool)
    for first, last in _HAN:
        table[first : last + 1] = True
    table[[ord(sign) for sign in _HAN_SIGNS]] = True
    return table
