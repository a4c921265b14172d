"""The interface of a cleaning rule: a name, the characters that trigger it, and one function on a page.

To add a rule, start with `textual`: it turns a function of a str into a rule. Rewrite it on UTF-16 units only if it is
slow. Then list the rule in `rules/order.py`, and its name in `rule_names.py` so that `--without` accepts it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipeline.clean.utf16 import (
    LINE_ENDS,
    Utf16Text,
    class_table,
    decode_utf16,
    encode_utf16,
    expand_ranges,
    positions_of,
    replace_units,
)
from pipeline.errors import BadConfig

Counts = Counter[str]  # changes by their description in the report: {"PUA → □": 47}
Ranges = tuple[tuple[int, int], ...]  # of UTF-16 code units, both ends inclusive
ANY = "any"  # produced by a rule that may insert every character


@dataclass
class Effect:
    """Code points that a rule removed from and added to one or more pages, and its changes by description."""

    removed: int = 0
    added: int = 0
    counts: Counts = field(default_factory=Counter)

    def count_change(self, before: int, after: int) -> None:
        """Count a change of size, in code points."""
        self.removed += max(0, before - after)
        self.added += max(0, after - before)


@dataclass(frozen=True)
class Rule:
    """A cleaning rule.

    `apply` takes a page (documents joined by NUL, see utf16.py) and a counter of changes for the report, and returns
    the changed page. It must not add, remove or move a NUL. It is called only for a page that contains a unit of
    `triggers`, or for every page if there are no triggers.

    `produces` are the characters that it may insert and that may trigger a later rule, or `ANY`.
    """

    name: str
    apply: Callable[[Utf16Text, Counts], Utf16Text]
    triggers: Ranges = ()
    produces: str = ""

    @cached_property
    def trigger_table(self) -> np.ndarray:
        """Mask over all code units: True for triggers."""
        return class_table((1, self.triggers)).astype(bool)


def textual(name: str, apply: Callable[[str, Counts], str], triggers: Ranges = (), produces: str = "") -> Rule:
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

    def apply_to_page(page: Utf16Text, counts: Counts) -> Utf16Text:
        text = decode_utf16(page)
        new_text = apply(text, counts)
        return page if new_text == text else encode_utf16(new_text)

    return Rule(name, apply_to_page, triggers, produces)


def units(characters: str, *ranges: tuple[int, int]) -> Ranges:
    """Return triggers: single characters of the BMP, and ranges of code units."""
    return (*((ord(character), ord(character)) for character in characters), *ranges)


def compile_pattern(option: str, pattern: str) -> re.Pattern[str]:
    """Compile a regular expression of the user. Raises BadConfig if it is invalid or matches the empty string."""
    try:
        pattern.encode()
        compiled = re.compile(pattern)
    except (re.error, UnicodeEncodeError, RecursionError) as error:
        raise BadConfig(f"{option} {pattern!r}: {error}", hint="write a Python regular expression") from error
    if compiled.search(""):
        raise BadConfig(
            f"{option} {pattern!r} matches the empty string", hint="write a pattern that needs at least one character"
        )
    return compiled


def apply_to_lines(apply: Callable[[Utf16Text], Utf16Text], page: Utf16Text, at: np.ndarray) -> Utf16Text:
    """Apply a function only to the lines that contain the sorted positions `at`.

    `apply` gets these lines, joined, and must not change their line ends.
    """
    starts, ends = _lines(page, at)
    if not len(starts):
        return page
    positions = expand_ranges(starts, np.minimum(ends + 1, len(page)))
    lines = Utf16Text(page.units[positions])
    result = apply(lines)
    if len(result) == len(lines):
        changed = np.flatnonzero(result.units != lines.units)
        return replace_units(page, positions[changed], result.units[changed])
    result_ends = np.append(positions_of(result, LINE_ENDS), len(result))
    pieces, copied, result_start = [], 0, 0
    for start, end, result_end in zip(starts.tolist(), ends.tolist(), result_ends.tolist(), strict=False):
        pieces += [page.units[copied:start], result.units[result_start:result_end]]
        copied, result_start = end, result_end + 1
    return Utf16Text(np.concatenate([*pieces, page.units[copied:]]))


def lines_containing(page: Utf16Text, at: np.ndarray) -> Utf16Text:
    """Return the lines that contain the sorted positions `at`, with their line ends."""
    starts, ends = _lines(page, at)
    return Utf16Text(page.units[expand_ranges(starts, np.minimum(ends + 1, len(page)))])


def _lines(page: Utf16Text, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and the end (exclusive) of each line that contains one of the sorted positions `at`."""
    ends = np.append(positions_of(page, LINE_ENDS), len(page))
    lines = np.searchsorted(ends, at)
    lines = lines[np.append(True, lines[1:] != lines[:-1])[: len(lines)]]
    return np.where(lines > 0, ends[lines - 1] + 1, 0), ends[lines]
