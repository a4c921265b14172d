"""Rules and splitting on a single text, for the tests."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from pipeline.clean import sentences
from pipeline.clean.cleaner import Cleaner, Page
from pipeline.clean.options import CleanOptions
from pipeline.clean.profiles import PROFILES
from pipeline.clean.rule import Rule
from pipeline.clean.rules import characters, headings
from pipeline.clean.rules import whitespace as layout
from pipeline.clean.utf16 import codes, join, text_of
from pipeline.clean.utf16 import split as documents_of


def applied(rule: Rule, text: str) -> str:
    """What a rule makes of a text."""
    return text_of(rule.apply(codes(text), Counter()))


def normalised(text: str, *, chinese: bool = True) -> str:
    return text_of(characters.normalise(join([text]), chinese=chinese)[0])


def without_blank_lines(text: str) -> str:
    return text_of(layout.divide(codes(text), "document")[0])


def split(text: str, *, inside_quotes: bool = False) -> list[str]:
    """The sentences of a text; joined, they are the text without its newlines."""
    array = codes(text)
    ends = sentences.ends(array, inside_quotes=inside_quotes)
    lines = np.flatnonzero(array.units == ord("\n"))
    at = np.unique(np.concatenate(([0], ends, lines, lines + 1, [len(array)]))).astype(int)
    pieces = [text_of(array[start:end]) for start, end in pairwise(at.tolist())]
    return [piece for piece in pieces if piece != "\n"]


class Section(NamedTuple):
    title: str
    text: str
    headed: bool


def sections(text: str) -> list[Section]:
    """A text cut at its headings."""
    found = headings.cut(codes(text), "boundary")
    return [
        Section(found.titles.get(number, ""), part, number in found.titles)
        for number, part in enumerate(documents_of(found.array))
    ]


def page(text: str, profile: str = "plain", **options: Any) -> Page:
    return Cleaner(PROFILES[profile], CleanOptions(**options)).clean([text])


def cleaned(text: str, *, profile: str = "plain", title: str = "", **options: Any) -> list[tuple[str, str]]:
    """Titles and texts of the documents that a text becomes."""
    found = page(text, profile, **options)
    return [(own or title, part) for own, part in zip(found.titles, documents_of(found.array), strict=True) if part]
