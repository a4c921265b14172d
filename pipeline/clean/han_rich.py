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
    join_documents,
    letter_units,
)

MIN_HAN = 0.5  # of the letters of a Chinese document
_MIN_HIRAGANA = 0.15  # of the letters of a Japanese document; prose has 0.3 to 0.5
_HIRAGANA = (0x3041, 0x3096)
_OTHER, _HAN, _LETTER, _KANA, _SIGN, _SEPARATOR = range(6)


def han_rich_documents(page: Utf16Text) -> np.ndarray:
    """Return a mask over the documents of a page: True for Chinese ones."""
    classes = _classes().take(page.units)
    bounds = np.concatenate(([0], np.flatnonzero(classes == _SEPARATOR), [len(page)]))

    def count(kind: int) -> np.ndarray:
        """Count the units of a class in each document."""
        counts: np.ndarray = np.diff(np.searchsorted(np.flatnonzero(classes == kind), bounds))
        return counts

    han, signs = count(_HAN), count(_SIGN)
    if not han.any() and not signs.any():
        return np.zeros(len(han), bool)
    kana = count(_KANA)
    letters = han + kana + count(_LETTER)
    is_chinese: np.ndarray = (han > 0) & (han >= MIN_HAN * letters) & (kana <= _MIN_HIRAGANA * letters)
    is_chinese |= (letters == 0) & (signs > 0)
    return is_chinese


def is_han_rich(text: str) -> bool:
    """Return True if a text is Chinese."""
    return bool(han_rich_documents(join_documents([text]))[0])


def has_letters(text: str) -> bool:
    """Return True if a text contains a letter of any script."""
    return any(map(str.isalpha, text))


@cache
def _classes() -> np.ndarray:
    """Return the class of each unit."""
    table = np.zeros(UNIT_COUNT, np.uint8)
    table[letter_units()] = _LETTER
    first, last = _HIRAGANA
    table[first : last + 1] = _KANA
    for first, last in (*HAN_UNITS, HAN_HIGH_SURROGATES):
        table[first : last + 1] = _HAN
    table[[ord(mark) for mark in CHINESE_MARKS + LACUNA]] = _SIGN
    table[ord(SEPARATOR)] = _SEPARATOR
    return table
