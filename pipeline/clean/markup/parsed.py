"""The result of a markup parser, the limits of markup, and helpers that replace markup and count it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.clean.rule import Counts

MAX_NOTE = 3_000  # characters inside of <ref>, a comment or a dropped template; a longer one was not closed
MAX_BLOCK = 30_000  # the same for a table, a header, and a note that stays in the text
MAX_DEPTH = 40  # of nested templates


@dataclass(frozen=True)
class Parsed:
    """A text without its markup. `meta` is what the markup says about the text, such as `author`."""

    text: str
    title: str = ""
    meta: dict[str, str] = field(default_factory=dict)


def replace(
    pattern: re.Pattern[str],
    text: str,
    replacement: str | Callable[[re.Match[str]], str],
    kind: str,
    counts: Counts,
) -> str:
    """Replace all matches, and count them as `kind`."""
    text, count = pattern.subn(replacement, text)
    add_count(counts, kind, count)
    return text


def add_count(counts: Counts, kind: str, count: int) -> None:
    """Add to a count, without creating it for 0."""
    if count:
        counts[kind] += count
