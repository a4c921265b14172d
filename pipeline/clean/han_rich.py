"""Chinese documents: those of which at least half of the letters are Han. They get the rules for Chinese text.

Letters are letters of the BMP and Han characters of any plane, as in filters.py. A document without any letter is
Chinese if it contains □ or a mark that only Chinese text has. Japanese is not Chinese, however many kanji it has: it is
recognised by its hiragana.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pipeline.clean.utf16 import (
    CHINESE_MARKS,
    HAN_HIGH_SURROGATES,
    HAN_UNITS,
    LACUNA,
    SEPARATOR,
    UNIT_COUNT,
    Utf16Text,
    common_units,
    is_common_han,
    join_documents,
)

MIN_HAN = 0.5  # of the letters of a Chinese document
_MIN_HIRAGANA = 0.15  # of the letters of a Japanese document; prose has 0.3 to 0.5
_HIRAGANA = (0x3041, 0x3096)
_CLASSES = 6
_OTHER, _HAN, _LETTER, _KANA, _SIGN, _SEPARATOR = range(_CLASSES)


def han_rich_documents(page: Utf16Text) -> np.ndarray:
    """Return a mask over the documents of a page: True for Chinese ones."""
    classes = _classes().take(page.special_units)
    is_separator = classes == _SEPARATOR
    separators = page.special_positions[is_separator]
    document = np.cumsum(is_separator)
    count = len(separators) + 1
    cells = document * _CLASSES + classes
    counts = np.bincount(cells, minlength=count * _CLASSES).reshape(count, _CLASSES)
    common_han = np.concatenate(([0], np.cumsum(is_common_han(page.units), dtype=np.int64)))
    bounds = np.concatenate(([0], separators, [len(page)]))
    han = np.diff(common_han[bounds]) + counts[:, _HAN]
    letters = counts[:, _LETTER] + counts[:, _KANA]
    is_japanese = counts[:, _KANA] > _MIN_HIRAGANA * (han + letters)
    without_letters = (han + letters == 0) & ((counts[:, _SIGN] > 0) | _has_common_marks(page, bounds))
    mask: np.ndarray = without_letters | ((han > 0) & (han >= MIN_HAN * (han + letters)) & ~is_japanese)
    return mask


def is_han_rich(text: str) -> bool:
    """Return True if a text is Chinese."""
    return bool(han_rich_documents(join_documents([text]))[0])


def has_letters(text: str) -> bool:
    """Return True if a text contains a letter of any script."""
    return any(map(str.isalpha, text))


def _has_common_marks(page: Utf16Text, bounds: np.ndarray) -> np.ndarray:
    """Return a mask of the documents with a mark among the common units; exact for those without common Han."""
    special = np.searchsorted(page.special_positions, bounds)
    mask: np.ndarray = np.diff(bounds) > np.diff(special)
    return mask


@cache
def _classes() -> np.ndarray:
    """Return the class of each unit. Common units are _OTHER, because they are counted separately."""
    table = np.zeros(UNIT_COUNT, np.uint8)
    table[np.fromiter(map(str.isalpha, map(chr, range(UNIT_COUNT))), bool)] = _LETTER
    first, last = _HIRAGANA
    table[first : last + 1] = _KANA
    for first, last in (*HAN_UNITS, HAN_HIGH_SURROGATES):
        table[first : last + 1] = _HAN
    table[[ord(mark) for mark in CHINESE_MARKS + LACUNA]] = _SIGN
    table[common_units()] = _OTHER
    table[ord(SEPARATOR)] = _SEPARATOR
    return table
