"""Document filters. A document that is not text of the language is rejected with one of these reasons:

    empty       only white space
    too-short   fewer than `min_chars` characters, without 。！？

if `min_han` is not None also

    no-han      no Han character, unless `min_han` is 0
    few-han     less than `min_han` of its letters are Han

and in Chinese sources also

    no-han      neither Han characters nor other letters, if `min_han` is None
    lacunae     more than `max_lacunae` of its Han characters are □
    mojibake    more than `max_mojibake` of all its characters stem from a wrong encoding

Letters are letters of the BMP and Han characters of any plane. Digits and gaiji (private use) are not letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.clean.utf16 import (
    HAN_HIGH_SURROGATES,
    HAN_UNITS,
    LACUNA,
    SENTENCE_ENDS,
    UNIT_COUNT,
    Utf16Text,
    common_units,
    is_common_han,
    is_one_of,
    letter_units,
)
from pipeline.errors import BadConfig

REASONS = ("empty", "too-short", "no-han", "lacunae", "mojibake", "few-han")
# The result of a wrong encoding: replacement characters, C1 controls, box drawing, half-width kana; and kana, bopomofo
# and Cyrillic, which are rows of symbols in GBK. Not の, which modern Chinese writes for 的.
_MOJIBAKE_RANGES = (
    *((0xFFFD, 0xFFFD), (0x80, 0x9F), (0x2500, 0x257F), (0xFF61, 0xFF9F)),
    *((0x3041, 0x306D), (0x306F, 0x30FF), (0x3105, 0x312F), (0x0400, 0x04FF)),
)
CLASSES = 10  # number of unit classes
_LAST_SPACE = 0x3000  # the space with the highest code
# From these numbers of units per document on, documents are counted faster one by one than together.
_LONG_DOCUMENT = 128  # special units
_LONG_RANGE = 1024  # units of a mask
_OTHER, _HAN, _LETTER, _LACUNA, _MOJIBAKE, _MOJIBAKE_LETTER, _SPACE, _END, _LOW_SURROGATE, _SEPARATOR = range(CLASSES)


@dataclass(frozen=True)
class Filter:
    """Requirements on a document. Fractions are from 0 to 1. The last two apply only if `chinese` is true."""

    chinese: bool = True
    min_chars: int = 1
    min_han: float | None = 0.5
    max_lacunae: float = 0.3
    max_mojibake: float = 0.1

    def __post_init__(self) -> None:
        for name in ("min_han", "max_lacunae", "max_mojibake"):
            fraction = getattr(self, name)
            if fraction is not None and not 0 <= fraction <= 1:
                raise BadConfig(f"{name} must be in [0, 1], got {fraction}", hint="pass a fraction of the characters")
        if self.min_chars < 0:
            raise BadConfig(f"min_chars must be 0 or more, got {self.min_chars}", hint="pass 0 for no limit")


DEFAULT = Filter()


def reject_reasons(page: Utf16Text, requirements: Filter = DEFAULT) -> list[str]:
    """Return the reason to reject each document of a page, "" to keep it."""
    return [reject_reason(counts, requirements) for counts in class_counts(page).tolist()]


def class_counts(page: Utf16Text) -> np.ndarray:
    """Count the units of each class in each document of a page, as an array of (documents, CLASSES).

    The counts of a document in parts are the sum of the counts of its parts.
    """
    classes = _classes().take(page.special_units)
    separators = np.flatnonzero(classes == _SEPARATOR)
    ends = np.append(page.special_positions[separators], len(page))
    if len(classes) < _LONG_DOCUMENT * len(ends):
        cells = np.cumsum(classes == _SEPARATOR) * CLASSES + classes
        counts = np.bincount(cells, minlength=len(ends) * CLASSES).reshape(len(ends), CLASSES)
    else:
        counts = np.array([np.bincount(part, minlength=CLASSES) for part in np.split(classes, separators)])
    # Common units are Han, 。！？ and other marks, which have no class above.
    starts = np.append(0, ends[:-1] + 1)
    is_han, is_end = is_common_han(page.units), is_one_of(page.units, SENTENCE_ENDS)
    counts[:, _HAN] += _count_between(is_han, starts, ends)
    counts[:, _END] = _count_between(is_end, starts, ends)
    counts[:, _SEPARATOR] = counts[:, _OTHER] = 0
    counts[:, _OTHER] = ends - starts - counts.sum(axis=1)
    return counts


def _count_between(mask: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Count the true values of each range from `starts` to `ends` (exclusive)."""
    if len(mask) > _LONG_RANGE * len(starts):
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        return np.array([np.count_nonzero(mask[start:end]) for start, end in pairs])
    before = np.append(0, np.cumsum(mask))
    counts: np.ndarray = before[ends] - before[starts]
    return counts


def reject_reason(counts: list[int], requirements: Filter = DEFAULT) -> str:
    """Return the reason to reject a document with these class counts, "" to keep it."""
    han, lacunae = counts[_HAN], counts[_LACUNA]
    mojibake = counts[_MOJIBAKE] + counts[_MOJIBAKE_LETTER]
    visible = sum(counts) - counts[_SPACE] - counts[_LOW_SURROGATE] - counts[_SEPARATOR]
    if not visible:
        return "empty"
    if visible - counts[_END] < requirements.min_chars:
        return "too-short"
    letters, min_han = han + counts[_LETTER] + counts[_MOJIBAKE_LETTER], requirements.min_han
    if not han and (min_han or (min_han is None and requirements.chinese and not letters)):
        return "no-han"
    if requirements.chinese and lacunae > requirements.max_lacunae * (han + lacunae):
        return "lacunae"
    if requirements.chinese and mojibake > requirements.max_mojibake * visible:
        return "mojibake"
    if min_han is not None and han < min_han * letters:
        return "few-han"
    return ""


@cache
def _classes() -> np.ndarray:
    """Return the class of each unit. Common units are _OTHER, because they are counted separately."""
    table = np.zeros(UNIT_COUNT, np.uint8)
    table[[unit for unit in range(_LAST_SPACE + 1) if chr(unit).isspace()]] = _SPACE
    table[letter_units()] = _LETTER
    for first, last in _MOJIBAKE_RANGES:
        part = table[first : last + 1]
        part[part == _OTHER] = _MOJIBAKE
        part[part == _LETTER] = _MOJIBAKE_LETTER
    for first, last in (*HAN_UNITS, HAN_HIGH_SURROGATES):
        table[first : last + 1] = _HAN
    table[ord(LACUNA)] = _LACUNA
    table[[ord(mark) for mark in SENTENCE_ENDS]] = _END
    table[common_units()] = _OTHER
    table[0xDC00:0xE000] = _LOW_SURROGATE
    table[0] = _SEPARATOR
    return table
