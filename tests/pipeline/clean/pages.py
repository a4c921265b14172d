"""Helpers that apply rules, sentence splitting and cleaning to a single text."""

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
from pipeline.clean.rules import characters, headings, whitespace
from pipeline.clean.utf16 import decode_utf16, encode_utf16, join_documents, split_documents


def apply_rule(rule: Rule, text: str) -> str:
    """Return a text after one rule."""
    return decode_utf16(rule.apply(encode_utf16(text), Counter()))


def normalise(text: str, *, chinese: bool = True) -> str:
    return decode_utf16(characters.normalise(join_documents([text]), chinese=chinese)[0])


def remove_blank_lines(text: str) -> str:
    return decode_utf16(whitespace.split_documents(encode_utf16(text), "document")[0])


def split_sentences(text: str, *, inside_quotes: bool = False) -> list[str]:
    """Return the sentences of a text. Joined, they are the text without its newlines."""
    array = encode_utf16(text)
    ends = sentences.end_positions(array, inside_quotes=inside_quotes)
    newlines = np.flatnonzero(array.units == ord("\n"))
    cuts = np.unique(np.concatenate(([0], ends, newlines, newlines + 1, [len(array)]))).astype(int)
    pieces = [decode_utf16(array[start:end]) for start, end in pairwise(cuts.tolist())]
    return [piece for piece in pieces if piece != "\n"]


class Section(NamedTuple):
    title: str
    text: str
    headed: bool


def cut_sections(text: str) -> list[Section]:
    """Cut a text at its headings."""
    result = headings.split_at_headings(encode_utf16(text), "boundary")
    return [
        Section(result.titles.get(index, ""), part, index in result.titles)
        for index, part in enumerate(split_documents(result.page))
    ]


def clean_page(text: str, profile: str = "plain", **options: Any) -> Page:
    return Cleaner(PROFILES[profile], CleanOptions(**options)).clean([text])


def clean_documents(text: str, *, profile: str = "plain", title: str = "", **options: Any) -> list[tuple[str, str]]:
    """Return the titles and texts of the documents of a text. `title` is the title of the text."""
    page = clean_page(text, profile, **options)
    documents = zip(page.titles, split_documents(page.array), strict=True)
    return [(heading or title, part) for heading, part in documents if part]
