"""Filters: what is no text of the language is rejected, with the reason, and never silently.

    empty       nothing but spaces
    too-short   fewer than `min_chars` characters (。！？ not counted)
and of Chinese sources
    no-han      no Chinese character at all, unless `min_han` is 0
    lacunae     more than `max_lacunae` of its Chinese characters are □
    mojibake    more than `max_mojibake` of all its characters come of a wrong encoding
    few-han     less than `min_han` of its letters are Chinese

A letter is one of the first plane, or a Chinese character of any; digits are none, and gaiji (private use) neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.clean.utf16 import ENDS, HAN_BEYOND, HAN_UNITS, LACUNA, UNITS, Codes, any_of, codes, is_plain_han, plain
from pipeline.errors import BadConfig

REASONS = ("empty", "too-short", "no-han", "lacunae", "mojibake", "few-han")
# What a wrong encoding leaves: replacement characters, C1, box drawing, half-width kana; and kana, bopomofo and
# Cyrillic, which are rows of symbols in GBK.
_MOJIBAKE = (
    *((0xFFFD, 0xFFFD), (0x80, 0x9F), (0x2500, 0x257F), (0xFF61, 0xFF9F)),
    *((0x3041, 0x30FF), (0x3105, 0x312F), (0x0400, 0x04FF)),
)
CLASSES = 10
_REST, _HAN_CLASS, _LETTER, _LACUNA, _MOJIBAKE_CLASS, _MOJIBAKE_LETTER, _SPACE, _END, _SECOND, _PARTS = range(CLASSES)


@dataclass(frozen=True)
class Filter:
    """What a document must have. The shares are from 0 to 1; `chinese` says whether the last four of them count."""

    chinese: bool = True
    min_chars: int = 1
    min_han: float = 0.5
    max_lacunae: float = 0.3
    max_mojibake: float = 0.1

    def __post_init__(self) -> None:
        for name in ("min_han", "max_lacunae", "max_mojibake"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise BadConfig(f"{name} is {share}", hint="a share, from 0 to 1")
        if self.min_chars < 0:
            raise BadConfig(f"min_chars is {self.min_chars}", hint="0 or more")


DEFAULT = Filter()


def verdict(text: str, wanted: Filter = DEFAULT) -> str:
    """Why a document is rejected, one of REASONS; "" for none."""
    return verdicts(codes(text), wanted)[0]


def verdicts(page: Codes, wanted: Filter = DEFAULT) -> list[str]:
    """The verdict on every document of a page (parted by NUL), in order."""
    return [verdict_on(count, wanted) for count in counts(page).tolist()]


def counts(page: Codes) -> np.ndarray:
    """How many units of each class every document of a page has. Those of its parts add up to those of the whole."""
    kind = _classes().take(page.odd_units)
    parts = kind == _PARTS
    number = np.cumsum(parts) * CLASSES + kind
    ends = np.append(page.odd[parts], len(page))
    found = np.bincount(number, minlength=len(ends) * CLASSES).reshape(len(ends), CLASSES)
    # Plain ones are Han, 。！？ and other marks, and are counted a document at a time.
    starts = np.append(0, ends[:-1] + 1)
    is_han, is_end = is_plain_han(page.units), any_of(page.units, ENDS)
    for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        found[number, _HAN_CLASS] += np.count_nonzero(is_han[start:end])
        found[number, _END] = np.count_nonzero(is_end[start:end])
    found[:, _PARTS] = found[:, _REST] = 0
    found[:, _REST] = ends - starts - found.sum(axis=1)
    return found


def verdict_on(count: list[int], wanted: Filter = DEFAULT) -> str:
    """The verdict on a document that has so many units of each class."""
    han, lacunae = count[_HAN_CLASS], count[_LACUNA]
    wrong = count[_MOJIBAKE_CLASS] + count[_MOJIBAKE_LETTER]
    solid = sum(count) - count[_SPACE] - count[_SECOND] - count[_PARTS]
    if not solid:
        return "empty"
    if solid - count[_END] < wanted.min_chars:
        return "too-short"
    if not wanted.chinese:
        return ""
    if not han and wanted.min_han:
        return "no-han"
    if lacunae > wanted.max_lacunae * (han + lacunae):
        return "lacunae"
    if wrong > wanted.max_mojibake * solid:
        return "mojibake"
    if han < wanted.min_han * (han + count[_LETTER] + count[_MOJIBAKE_LETTER]):
        return "few-han"
    return ""


@cache
def _classes() -> np.ndarray:
    table = np.zeros(UNITS, np.uint8)
    characters = [*map(chr, range(UNITS))]
    table[np.fromiter(map(str.isspace, characters), bool)] = _SPACE
    table[np.fromiter(map(str.isalpha, characters), bool)] = _LETTER
    for first, last in _MOJIBAKE:
        part = table[first : last + 1]
        part[part == _REST] = _MOJIBAKE_CLASS
        part[part == _LETTER] = _MOJIBAKE_LETTER
    for first, last in (*HAN_UNITS, HAN_BEYOND):
        table[first : last + 1] = _HAN_CLASS
    table[ord(LACUNA)] = _LACUNA
    table[[ord(mark) for mark in ENDS]] = _END
    table[plain()] = _REST
    table[0xDC00:0xE000] = _SECOND
    table[0] = _PARTS
    return table
