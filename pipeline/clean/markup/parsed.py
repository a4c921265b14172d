"""What the containers share: what they give, how they take markup out and count it, and how far it may reach."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.clean.rule import Seen

NOTE = 3_000  # characters that <ref>, a comment or a dropped template may hold; what is longer was not closed
BLOCK = 30_000  # the same of a table, a header and a note that stays in the text
DEPTH = 40  # of templates in templates


@dataclass(frozen=True)
class Parsed:
    """A text without its container; `meta` holds what the container says of it, `author` among it."""

    text: str
    title: str = ""
    meta: dict[str, str] = field(default_factory=dict)


def drop(pattern: re.Pattern[str], text: str, kind: Callable[[str], str], seen: Seen) -> str:
    def drop(found: re.Match[str]) -> str:
        seen[kind(found[0])] += 1
        return ""

    return pattern.sub(drop, text)


def replace(
    pattern: re.Pattern[str], text: str, becomes: str | Callable[[re.Match[str]], str], kind: str, seen: Seen
) -> str:
    text, number = pattern.subn(becomes, text)
    count(seen, kind, number)
    return text


def count(seen: Seen, kind: str, number: int) -> None:
    if number:
        seen[kind] += number
