"""A rule of cleaning: a name, the characters without which it has nothing to do, and one small function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.clean.codes import Codes, codes, text_of

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

    def add(self, other: Effect) -> None:
        self.removed += other.removed
        self.added += other.added
        self.seen.update(other.seen)


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


def textual(name: str, apply: Callable[[str, Seen], str], triggers: Ranges = (), makes: str = "") -> Rule:
    """A rule on the text of a page as a str: slower, so it should have triggers that are rare."""
    return Rule(name, lambda array, seen: codes(apply(text_of(array), seen)), triggers, makes)


def units(characters: str, *ranges: tuple[int, int]) -> Ranges:
    """Triggers: single characters of the first plane, and ranges of units."""
    return (*((ord(each), ord(each)) for each in characters), *ranges)
