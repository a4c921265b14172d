"""Text as arrays of UTF-16 code units, on which a rule costs a fraction of a millisecond per megabyte.

A page is several documents joined by NUL; `join` removes NULs inside a document. Every character that a rule handles
is in the Basic Multilingual Plane (BMP), so a rule that maps, deletes or cuts at single units never splits a surrogate
pair.

Nearly all units of a Chinese text are common: Han and the most frequent marks, which few rules handle. The positions
of all other units, the special ones, are computed once per page. Rules search only these, and edits update them.

In order: character classes, the text class, tests of units, positions, edits, and conversion from and to str.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np

# Characters. HAN is for the inside of a regular expression.
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇"
LACUNA = "□"  # a character that is lost or cannot be displayed
CHINESE_MARKS = "，。！？：；、「」『』《》〈〉（）〔〕【】"  # only in Chinese text, unlike “”‘’…—
SENTENCE_ENDS = "。！？"
ELLIPSIS = "…"
CLAUSE_MARKS = "，、；："
OPENERS = "“‘「『（《〈【〔〖"
CLOSERS = "”’」』）》〉】〕〗"
BLANKS = " \t\u00a0\u3000"
SEPARATOR = "\0"  # between the documents of a page
LINE_ENDS = "\n" + SEPARATOR

# Units. HAN as units: BMP characters, and the high surrogates of planes 2 and 3, which contain only Han.
UNIT_COUNT = 1 << 16  # number of code units
HAN_UNITS = ((0x3007, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
HAN_HIGH_SURROGATES = (0xD840, 0xD8BF)
_COMMON_HAN, _COMMON_MARKS = (0x4E00, 0x9FFF), SENTENCE_ENDS + CLAUSE_MARKS
_MAX_COMPARED = 4  # characters up to which comparing is faster than a table lookup
_MAX_SLICES = 256  # cuts up to which joining slices is faster than a boolean mask

# Kinds of units, for rules that depend on the neighbours of a character.
OTHER_KIND, HAN_KIND, MARK_KIND, MARK_ONCE_KIND, DIGIT_KIND, LINE_KIND = range(6)


class Utf16Text:
    """A text as `units`, an array of <u2. Never write to it: an edit returns a new text.

    `positions` are the special positions, if they follow from those of another text.
    """

    def __init__(self, units: np.ndarray, positions: np.ndarray | None = None) -> None:
        self.units = units
        self._positions = positions

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, part: slice) -> Utf16Text:
        """Return the text from `part.start` to `part.stop`. The step must be 1."""
        start, stop, _ = part.indices(len(self))
        if (start, stop) == (0, len(self)):
            return self
        positions = None
        if self.has_positions:
            first, last = np.searchsorted(self.special_positions, (start, stop))
            positions = self.special_positions[first:last] - start
        return Utf16Text(self.units[start:stop], positions)

    @property
    def special_positions(self) -> np.ndarray:
        """Sorted positions of special units. After edits they may include a few common ones."""
        if self._positions is None:
            self._positions = np.flatnonzero(_is_special(self.units))
        return self._positions

    @cached_property
    def special_units(self) -> np.ndarray:
        """Special units, in the order of their positions."""
        units: np.ndarray = self.units[self.special_positions]
        return units

    @property
    def has_positions(self) -> bool:
        """True if the special positions are known without another scan of the text."""
        return self._positions is not None


# Tests of units


def class_table(*classes: tuple[int, str | Sequence[tuple[int, int]]]) -> np.ndarray:
    """Return the class of each code unit as uint8, 0 by default.

    The members of a class are characters of the BMP, or inclusive ranges of units. Later classes override earlier ones.
    """
    table = np.zeros(UNIT_COUNT, np.uint8)
    for value, members in classes:
        ranges = [(ord(member), ord(member)) for member in members] if isinstance(members, str) else members
        for first, last in ranges:
            table[first : last + 1] = value
    return table


def is_common_han(units: np.ndarray) -> np.ndarray:
    """Return a mask of the Han characters among the common units."""
    first, last = _COMMON_HAN
    mask: np.ndarray = units - np.uint16(first) <= last - first  # smaller units wrap around
    return mask


def _is_special(units: np.ndarray) -> np.ndarray:
    mask = ~is_common_han(units)
    for mark in _COMMON_MARKS:
        mask &= units != ord(mark)
    return mask


@cache
def common_units() -> np.ndarray:
    """Return a mask over all code units: True for common ones."""
    return ~_is_special(np.arange(UNIT_COUNT, dtype="<u2"))


@cache
def letter_units() -> np.ndarray:
    """Return a mask over all code units: True for letters of the BMP, Han included."""
    return np.fromiter(map(str.isalpha, map(chr, range(UNIT_COUNT))), bool)


def is_one_of(units: np.ndarray, characters: str) -> np.ndarray:
    """Return a mask of the units that are one of `characters`."""
    mask: np.ndarray
    if not 0 < len(characters) <= _MAX_COMPARED:
        mask = _membership(characters).take(units)
        return mask
    mask = units == ord(characters[0])
    for character in characters[1:]:
        mask |= units == ord(character)
    return mask


@cache
def _membership(characters: str) -> np.ndarray:
    return class_table((1, characters)).astype(bool)


def contains_any(text: Utf16Text, characters: str) -> bool:
    """Return True if the text contains any of `characters`, all of which must be special."""
    return bool(is_one_of(text.special_units, characters).any())


@cache
def _kinds() -> np.ndarray:
    return class_table(
        (HAN_KIND, (*HAN_UNITS, HAN_HIGH_SURROGATES)),
        (HAN_KIND, LACUNA),
        (MARK_KIND, "！？「」『』《》〈〉（）〔〕【】"),
        (MARK_ONCE_KIND, "，。；：、"),  # the marks that punctuation.py reduces when repeated
        (DIGIT_KIND, "0123456789"),
        (LINE_KIND, LINE_ENDS),
    )


def kinds_at(text: Utf16Text, at: np.ndarray) -> np.ndarray:
    """Return the kinds of the units at positions `at`: LINE_KIND before the first unit and after the last one."""
    if not len(text):
        return np.full(len(at), LINE_KIND, np.uint8)
    units = text.units.take(at, mode="clip")
    kinds: np.ndarray = _kinds().take(units)
    if (is_low := (units & 0xFC00) == 0xDC00).any():  # a low surrogate has the kind of its high surrogate
        kinds[is_low] = _kinds().take(text.units.take(at[is_low] - 1, mode="clip"))
    kinds[(at < 0) | (at >= len(text))] = LINE_KIND
    return kinds


def is_chinese(kind: np.ndarray) -> np.ndarray:
    """Return a mask of the kinds that only Chinese text has: Han and Chinese marks."""
    return (kind >= HAN_KIND) & (kind <= MARK_ONCE_KIND)


def units_at(text: Utf16Text, at: np.ndarray) -> np.ndarray:
    """Return the units at positions `at`: NUL outside of the text."""
    if not len(text):
        return np.zeros(len(at), "<u2")
    units: np.ndarray = text.units.take(at, mode="clip")
    units[(at < 0) | (at >= len(text))] = 0
    return units


# Positions


def positions_of(text: Utf16Text, characters: str) -> np.ndarray:
    """Return the sorted positions of all `characters`."""
    special, common = _by_frequency(characters)
    positions: np.ndarray = (
        text.special_positions[is_one_of(text.special_units, special)] if special else text.special_positions[:0]
    )
    if not common:
        return positions
    common_positions = np.flatnonzero(is_one_of(text.units, common))
    return merge_sorted(positions, common_positions) if special else common_positions


@cache
def _by_frequency(characters: str) -> tuple[str, str]:
    """Split `characters` into special and common ones."""
    special = "".join(character for character in characters if not common_units()[ord(character)])
    return special, "".join(character for character in characters if character not in special)


def merge_sorted(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Merge two sorted arrays of positions."""
    return np.sort(np.concatenate((one, other)), kind="stable")  # a stable sort is fast on sorted parts


def is_member(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return a mask of the values that are one of the sorted `members`, like np.isin, which is slow to import."""
    if not len(members):
        return np.zeros(len(values), bool)
    mask: np.ndarray = members.take(np.searchsorted(members, values), mode="clip") == values
    return mask


def count_distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted distinct values and their counts, like np.unique, which is slow to import."""
    values = np.sort(values)
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
    return values[starts], np.diff(np.append(starts, len(values)))


def run_bounds(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and the end (exclusive) of each run of adjacent positions."""
    if not len(positions):
        return positions, positions
    gaps = np.flatnonzero(positions[1:] - positions[:-1] > 1)
    starts = np.concatenate(([0], gaps + 1))
    return positions[starts], positions[np.concatenate((gaps, [len(positions) - 1]))] + 1


def expand_ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return all positions in the ranges from `starts` to `ends` (exclusive)."""
    lengths = ends - starts
    if not len(lengths):
        return starts
    return np.repeat(starts - np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths) + np.arange(lengths.sum())


# Edits


def replace_units(text: Utf16Text, at: np.ndarray, units: np.ndarray | int) -> Utf16Text:
    """Return `text` with the units at positions `at` replaced by `units`."""
    if not len(at):
        return text
    new_units = text.units.copy()
    new_units[at] = units
    if not text.has_positions:
        return Utf16Text(new_units)
    special = text.special_positions
    if len(special):
        at = at[special.take(np.searchsorted(special, at), mode="clip") != at]
    return Utf16Text(new_units, merge_sorted(special, at) if len(at) else special)


def delete_units(text: Utf16Text, at: np.ndarray) -> Utf16Text:
    """Return `text` without the units at the sorted positions `at`."""
    if not len(at):
        return text
    special = _shift(text.special_positions, at) if text.has_positions and len(text.special_positions) else None
    return Utf16Text(_delete(text.units, at), special)


def _shift(positions: np.ndarray, deleted: np.ndarray) -> np.ndarray:
    """Return `positions` as they are after `deleted` units are removed. Both are sorted."""
    indices = np.searchsorted(positions, deleted)
    deleted_before = np.cumsum(np.bincount(indices, minlength=len(positions) + 1)[: len(positions)])
    return _delete(positions - deleted_before, indices[positions.take(indices, mode="clip") == deleted])


def _delete(array: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return `array` without the elements at the sorted positions `at`."""
    starts, ends = run_bounds(at)
    if len(starts) > _MAX_SLICES:
        keep = np.ones(len(array), bool)
        keep[at] = False
        return np.compress(keep, array)
    remaining = zip((0, *ends.tolist()), (*starts.tolist(), len(array)), strict=True)
    return np.concatenate([array[start:end] for start, end in remaining])


def insert_unit(text: Utf16Text, before: np.ndarray, unit: str) -> Utf16Text:
    """Return `text` with `unit` inserted before each of the sorted positions `before`."""
    return Utf16Text(insert(text.units, before, ord(unit)))


def insert(array: np.ndarray, before: np.ndarray, value: int) -> np.ndarray:
    """Return `array` with `value` inserted before each of the sorted positions `before`."""
    result = np.empty(len(array) + len(before), array.dtype)
    is_old = np.ones(len(result), bool)
    at = before + np.arange(len(before))
    is_old[at] = False
    result[at] = value
    result[is_old] = array
    return result


# Conversion


def join_documents(texts: Sequence[str]) -> Utf16Text:
    """Join documents to a page. NULs inside a document are removed, because NUL separates the documents of a page."""
    page = encode_utf16(SEPARATOR.join(texts))
    if np.count_nonzero(page.units == 0) >= max(len(texts), 1):
        page = encode_utf16(SEPARATOR.join([text.replace(SEPARATOR, "") for text in texts]))
    return page


def split_documents(page: Utf16Text) -> list[str]:
    """Return the documents of a page."""
    return decode_utf16(page).split(SEPARATOR)


def document_bounds(page: Utf16Text) -> list[tuple[int, int]]:
    """Return the start and the end (exclusive) of each document of a page."""
    separators = positions_of(page, SEPARATOR).tolist()
    return list(zip((0, *(position + 1 for position in separators)), (*separators, len(page)), strict=True))


def encode_utf16(text: str) -> Utf16Text:
    """Encode a str. Lone surrogates are kept."""
    return Utf16Text(np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2"))


def decode_utf16(text: Utf16Text) -> str:
    """Decode to a str."""
    return str(text.units.data, "utf-16-le", "surrogatepass")


def count_characters(text: Utf16Text) -> int:
    """Count code points, without document separators."""
    units = text.special_units if text.has_positions else text.units
    return len(text) - int(np.count_nonzero(units == 0)) - int(np.count_nonzero((units & 0xFC00) == 0xDC00))
