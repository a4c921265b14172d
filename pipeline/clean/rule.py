"""A rule of cleaning: a name, the characters without which it has nothing to do, and one small function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipeline.clean.utf16 import LINE_ENDS, UNITS, Codes, codes, places, replaced, spread, text_of

Seen = Counter[str]  # what a rule met, in words for the report: {"PUA → □": 47}
Ranges = tuple[tuple[int, int], ...]  # of UTF-16 code units, first and last


@dataclass
class Effect:
    """What a rule did to a page or more: characters (code points) that it took away and brought in, and what it met."""

    removed: int = 0
    added: int = 0
    seen: Seen = field(default_factory=Counter)

    def differ(self, before: int, after: int) -> None:
        """Count a change from so many characters to so many."""
        self.removed += max(0, before - after)
        self.added += max(0, after - before)


@dataclass(frozen=True)
class Rule:
    """`apply` takes a page (documents parted by NUL, see codes.py) and gives it back changed; it never adds, removes
    or moves a NUL. It is called only when the page has one of `triggers`; without triggers always.

    `makes` are characters that it can bring in and that may be triggers of a later rule.
    """

    name: str
    apply: Callable[[Codes, Seen], Codes]
    triggers: Ranges = ()
    makes: str = ""

    @cached_property
    def table(self) -> np.ndarray:
        """Of each unit whether it is a trigger."""
        found = np.zeros(UNITS, bool)
        for first, last in self.triggers:
            found[first : last + 1] = True
        return found


def textual(name: str, apply: Callable[[str, Seen], str], triggers: Ranges = (), makes: str = "") -> Rule:
    """A rule on the text of a page as a str: slower, so it should have triggers that are rare."""

    def on_codes(page: Codes, seen: Seen) -> Codes:
        text = text_of(page)
        made = apply(text, seen)
        return page if made == text else codes(made)

    return Rule(name, on_codes, triggers, makes)


def on_lines(apply: Callable[[Codes], Codes], page: Codes, at: np.ndarray) -> Codes:
    """`page` with `apply` done to the lines that hold the places `at`. It leaves line ends as they are."""
    start, end = _lines(page, at)
    if not len(start):
        return page
    chosen = spread(start, np.minimum(end + 1, len(page)))
    lines = Codes(page.units[chosen])
    made = apply(lines)
    if len(made) == len(lines):
        changed = np.flatnonzero(made.units != lines.units)
        return replaced(page, chosen[changed], made.units[changed])
    bounds = np.append(places(made, LINE_ENDS), len(made))
    pieces, done, begin = [], 0, 0
    for first, last, bound in zip(start.tolist(), end.tolist(), bounds.tolist(), strict=False):
        pieces += [page.units[done:first], made.units[begin:bound]]
        done, begin = last, bound + 1
    return Codes(np.concatenate([*pieces, page.units[done:]]))


def lines_with(page: Codes, at: np.ndarray) -> Codes:
    """The lines that hold the places `at`, with their ends."""
    start, end = _lines(page, at)
    return Codes(page.units[spread(start, np.minimum(end + 1, len(page)))])


def _lines(page: Codes, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the lines begin and end that hold the places `at`, which are in order."""
    ends = np.append(places(page, LINE_ENDS), len(page))
    line = np.searchsorted(ends, at)
    line = line[np.append(True, line[1:] != line[:-1])[: len(line)]]
    return np.where(line > 0, ends[line - 1] + 1, 0), ends[line]


def units(characters: str, *ranges: tuple[int, int]) -> Ranges:
    """Triggers: single characters of the first plane, and ranges of units."""
    return (*((ord(each), ord(each)) for each in characters), *ranges)
