"""Text as an array of UTF-16 code units, on which a rule costs a millisecond a megabyte.

A page is such an array: documents one after another, parted by NUL, which no text holds after `join`. Every character
that a rule knows is in the first plane, so a rule that maps, deletes or cuts at single units never tears a surrogate
pair. Marks are few among the characters of a text: rules find those they are about by comparing, and look only at
what stands beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from pipeline.clean.alphabet import HAN_BEYOND, HAN_UNITS, LACUNA

SEPARATOR = "\0"
UNITS = 1 << 16
BLANKS = " \t\u00a0\u3000"
LINE_ENDS = "\n" + SEPARATOR
_FEW = 6  # characters up to which comparing with each is cheaper than a table

Codes = np.ndarray  # of <u2

OTHER, HAN, MARK, MARK_ONCE, DIGIT, LINE = range(6)
_KINDS = {
    HAN: LACUNA,
    MARK: "！？「」『』《》〈〉（）〔〕【】",  # those that only Chinese text has; “”‘’…— are everybody's
    MARK_ONCE: "，。；：、",
    DIGIT: "0123456789",
    LINE: LINE_ENDS,
}


@cache
def _kinds() -> np.ndarray:
    found = np.zeros(UNITS, np.uint8)
    for first, last in (*HAN_UNITS, HAN_BEYOND):
        found[first : last + 1] = HAN
    for kind, characters in _KINDS.items():
        found[[ord(character) for character in characters]] = kind
    return found


def kind_at(array: Codes, places: np.ndarray) -> np.ndarray:
    """The kinds of the units at `places`; before the first unit and after the last a line ends."""
    if not len(array):
        return np.full(len(places), LINE, np.uint8)
    units = array.take(places, mode="clip")
    found: np.ndarray = _kinds().take(units)
    if (second := (units & 0xFC00) == 0xDC00).any():  # of a character beyond the first plane: the first one tells
        found[second] = _kinds().take(array.take(places[second] - 1, mode="clip"))
    found[(places < 0) | (places >= len(array))] = LINE
    return found


def is_chinese(kind: np.ndarray) -> np.ndarray:
    return (kind >= HAN) & (kind <= MARK_ONCE)


def unit_at(array: Codes, places: np.ndarray) -> np.ndarray:
    """The units at `places`; NUL outside of the array."""
    if not len(array):
        return np.zeros(len(places), "<u2")
    found: np.ndarray = array.take(places, mode="clip")
    found[(places < 0) | (places >= len(array))] = 0
    return found


@cache
def _table(characters: str) -> np.ndarray:
    found = np.zeros(UNITS, bool)
    found[[ord(each) for each in characters]] = True
    return found


def is_one_of(units: np.ndarray, characters: str) -> np.ndarray:
    """Which of the units are one of the characters."""
    found: np.ndarray = _table(characters).take(units)
    return found


def places(array: Codes, characters: str) -> np.ndarray:
    """Where any of the characters stand, in order."""
    if len(characters) > _FEW:
        return np.flatnonzero(is_one_of(array, characters))
    mask = array == ord(characters[0])
    for each in characters[1:]:
        mask |= array == ord(each)
    return np.flatnonzero(mask)


def runs(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First index of each run of neighbours among the places `found`, and the index after its last."""
    if not len(found):
        return found, found
    gaps = np.flatnonzero(found[1:] - found[:-1] > 1)
    return found[np.concatenate(([0], gaps + 1))], found[np.concatenate((gaps, [len(found) - 1]))] + 1


def spread(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """All indices in the ranges from `starts` to before `ends`."""
    lengths = ends - starts
    if not len(lengths):
        return starts
    return np.repeat(starts - np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths) + np.arange(lengths.sum())


def without(array: Codes, gone: np.ndarray) -> Codes:
    """`array` without the units at the places `gone`."""
    if not len(gone):
        return array
    keep = np.ones(len(array), bool)
    keep[gone] = False
    return array[keep]


def inserted(array: Codes, before: np.ndarray, unit: str) -> Codes:
    """`array` with `unit` put in before each of the places `before`, which are in order."""
    made = np.empty(len(array) + len(before), "<u2")
    old = np.ones(len(made), bool)
    at = before + np.arange(len(before))
    old[at] = False
    made[at] = ord(unit)
    made[old] = array
    return made


def join(texts: Sequence[str]) -> Codes:
    """The texts as one array. A NUL in one of them is left out: it could not be told from what parts them."""
    return codes(SEPARATOR.join(text.replace(SEPARATOR, "") if SEPARATOR in text else text for text in texts))


def codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2")


def text_of(array: Codes) -> str:
    return array.tobytes().decode("utf-16-le", "surrogatepass")


def split(array: Codes) -> list[str]:
    """The documents of `join`."""
    return text_of(array).split(SEPARATOR)


def characters(array: Codes) -> int:
    """Number of code points, those that part documents not counted."""
    return len(array) - int(np.count_nonzero(array == 0)) - int(np.count_nonzero((array & 0xFC00) == 0xDC00))
