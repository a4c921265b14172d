"""The interface of a cleaning rule: a name, the characters that trigger it, and one function on a page.

To add a rule, start with `textual`: it turns a function of a str into a rule. Rewrite it on UTF-16 units only if it is
slow. Then list the rule in `rules/order.py`, and its name in `RULES` of options.py so that `--without` accepts it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipeline.clean.utf16 import LINE_ENDS, Codes, class_table, codes, places, replaced, spread, text_of

Seen = Counter[str]  # changes by their description in the report: {"PUA → □": 47}
Ranges = tuple[tuple[int, int], ...]  # of UTF-16 code units, both ends inclusive


@dataclass
class Effect:
    """Code points that a rule removed from and added to one or more pages, and its changes by description."""

    removed: int = 0
    added: int = 0
    seen: Seen = field(default_factory=Counter)

    def differ(self, before: int, after: int) -> None:
        """Count a change of size, in code points."""
        self.removed += max(0, before - after)
        self.added += max(0, after - before)


@dataclass(frozen=True)
class Rule:
    """A cleaning rule.

    `apply` takes a page (documents joined by NUL, see utf16.py) and a counter of changes for the report, and returns
    the changed page. It must not add, remove or move a NUL. It is called only for a page that contains a unit of
    `triggers`, or for every page if there are no triggers.

    `makes` are the characters that it may insert and that may trigger a later rule.
    """

    name: str
    apply: Callable[[Codes, Seen], Codes]
    triggers: Ranges = ()
    makes: str = ""

    @cached_property
    def table(self) -> np.ndarray:
        """Mask over all code units: True for triggers."""
        return class_table((1, self.triggers)).astype(bool)


def textual(name: str, apply: Callable[[str, Seen], str], triggers: Ranges = (), makes: str = "") -> Rule:
    r"""Return a rule that works on text as a str. This is where to start with a new rule.

    `apply` gets the text of a page and the counter for the report. It returns the new text:

        def remove_stars(text: str, counts: Counter[str]) -> str:
            text, count = re.subn(r"[*＊]{3,}", "", text)
            counts["*** removed"] += count
            return text

        RULE = textual("stars", remove_stars, units("*＊"))

    A page holds several documents, joined by NUL. Treat NUL as a line end, as in `[^\n\0]`, and keep every one of them:
    then each document comes out as it would alone. Removed and added characters are counted by the caller.

    Converting a page to str and back takes longer than most rules, so give `triggers` that are rare.
    """

    def apply_to_page(page: Codes, counts: Seen) -> Codes:
        text = text_of(page)
        new_text = apply(text, counts)
        return page if new_text == text else codes(new_text)

    return Rule(name, apply_to_page, triggers, makes)


def units(characters: str, *ranges: tuple[int, int]) -> Ranges:
    """Return triggers: single characters of the BMP, and ranges of code units."""
    return (*((ord(character), ord(character)) for character in characters), *ranges)


def on_lines(apply: Callable[[Codes], Codes], page: Codes, at: np.ndarray) -> Codes:
    """Apply a function only to the lines that contain the sorted positions `at`.

    `apply` gets these lines, joined, and must not change their line ends.
    """
    starts, ends = _lines(page, at)
    if not len(starts):
        return page
    positions = spread(starts, np.minimum(ends + 1, len(page)))
    lines = Codes(page.units[positions])
    result = apply(lines)
    if len(result) == len(lines):
        changed = np.flatnonzero(result.units != lines.units)
        return replaced(page, positions[changed], result.units[changed])
    result_ends = np.append(places(result, LINE_ENDS), len(result))
    pieces, copied, result_start = [], 0, 0
    for start, end, result_end in zip(starts.tolist(), ends.tolist(), result_ends.tolist(), strict=False):
        pieces += [page.units[copied:start], result.units[result_start:result_end]]
        copied, result_start = end, result_end + 1
    return Codes(np.concatenate([*pieces, page.units[copied:]]))


def lines_with(page: Codes, at: np.ndarray) -> Codes:
    """Return the lines that contain the sorted positions `at`, with their line ends."""
    starts, ends = _lines(page, at)
    return Codes(page.units[spread(starts, np.minimum(ends + 1, len(page)))])


def _lines(page: Codes, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and the end (exclusive) of each line that contains one of the sorted positions `at`."""
    ends = np.append(places(page, LINE_ENDS), len(page))
    lines = np.searchsorted(ends, at)
    lines = lines[np.append(True, lines[1:] != lines[:-1])[: len(lines)]]
    return np.where(lines > 0, ends[lines - 1] + 1, 0), ends[lines]
