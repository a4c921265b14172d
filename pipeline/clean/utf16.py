"""Text as UTF-16 code units, on which a rule costs a fraction of a millisecond a megabyte.

A page is documents one after another, parted by NUL, which no text holds after `join`. Every character that a rule
knows is in the first plane, so a rule that maps, deletes or cuts at single units never tears a surrogate pair.

Nearly all of a Chinese text are plain characters: Han and the commonest marks, which hardly any rule is about. So
where the others stand, its odd ones, is found once a page; rules look for theirs among them, and what changes a page
moves its odd ones along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇"
# The same as UTF-16 units: characters of the first plane, and the first units of those of planes 2 and 3, all Han.
HAN_UNITS = ((0x3007, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
HAN_BEYOND = (0xD840, 0xD8BF)
LACUNA = "□"  # stands for a character that is lost or cannot be shown
MARKS = "，。！？：；、「」『』《》〈〉（）〔〕【】"  # those that only Chinese text has; “”‘’…— are everybody's
ENDS = "。！？"
DOTS = "…"
CONTINUES = "，、；："
OPENERS = "“‘「『（《〈【〔〖"
CLOSERS = "”’」』）》〉】〕〗"

SEPARATOR = "\0"
UNITS = 1 << 16
BLANKS = " \t\u00a0\u3000"
LINE_ENDS = "\n" + SEPARATOR
_PLAIN_HAN, _PLAIN_MARKS = (0x4E00, 0x9FFF), ENDS + CONTINUES
_FEW = 256  # places up to which it is cheaper to go from one to the next than to make a mask


@dataclass(frozen=True, eq=False)
class Codes:
    """A text. `units` (of <u2) are never written to: what changes a text makes a new one."""

    units: np.ndarray
    known: np.ndarray | None = None  # its odd ones, where they follow from those of another text

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, part: slice) -> Codes:
        """A part of it; `slice` is of a first place and a last, no step."""
        start, stop, _ = part.indices(len(self))
        if (start, stop) == (0, len(self)):
            return self
        known = None
        if self.is_known:
            first, last = np.searchsorted(self.odd, (start, stop))
            known = self.odd[first:last] - start
        return Codes(self.units[start:stop], known)

    @cached_property
    def odd(self) -> np.ndarray:
        """Where all units stand that are not plain, in order; and some that are, where rules made such."""
        return np.flatnonzero(_is_odd(self.units)) if self.known is None else self.known

    @cached_property
    def odd_units(self) -> np.ndarray:
        """The units at these places."""
        return self.units[self.odd]

    @property
    def is_known(self) -> bool:
        """Whether the odd ones need not be looked for any more."""
        return self.known is not None or "odd" in self.__dict__


def is_plain_han(units: np.ndarray) -> np.ndarray:
    """Which of the units are the Han characters that count as plain."""
    found: np.ndarray = units - np.uint16(_PLAIN_HAN[0]) <= _PLAIN_HAN[1] - _PLAIN_HAN[0]  # what is less wraps round
    return found


def _is_odd(units: np.ndarray) -> np.ndarray:
    found = ~is_plain_han(units)
    for mark in _PLAIN_MARKS:
        found &= units != ord(mark)
    return found


@cache
def plain() -> np.ndarray:
    """Of each unit whether it is plain."""
    return ~_is_odd(np.arange(UNITS, dtype="<u2"))


OTHER_KIND, HAN_KIND, MARK_KIND, MARK_ONCE_KIND, DIGIT_KIND, LINE_KIND = range(6)
_KINDS = {
    HAN_KIND: LACUNA,
    MARK_KIND: "！？「」『』《》〈〉（）〔〕【】",  # those that only Chinese text has; “”‘’…— are everybody's
    MARK_ONCE_KIND: "，。；：、",
    DIGIT_KIND: "0123456789",
    LINE_KIND: LINE_ENDS,
}


@cache
def _kinds() -> np.ndarray:
    found = np.zeros(UNITS, np.uint8)
    for first, last in (*HAN_UNITS, HAN_BEYOND):
        found[first : last + 1] = HAN_KIND
    for kind, characters in _KINDS.items():
        found[[ord(character) for character in characters]] = kind
    return found


def kind_at(text: Codes, at: np.ndarray) -> np.ndarray:
    """The kinds of the units at these places; before the first unit and after the last a line ends."""
    if not len(text):
        return np.full(len(at), LINE_KIND, np.uint8)
    units = text.units.take(at, mode="clip")
    found: np.ndarray = _kinds().take(units)
    if (second := (units & 0xFC00) == 0xDC00).any():  # of a character beyond the first plane: the first one tells
        found[second] = _kinds().take(text.units.take(at[second] - 1, mode="clip"))
    found[(at < 0) | (at >= len(text))] = LINE_KIND
    return found


def is_chinese(kind: np.ndarray) -> np.ndarray:
    return (kind >= HAN_KIND) & (kind <= MARK_ONCE_KIND)


def unit_at(text: Codes, at: np.ndarray) -> np.ndarray:
    """The units at these places; NUL outside of the text."""
    if not len(text):
        return np.zeros(len(at), "<u2")
    found: np.ndarray = text.units.take(at, mode="clip")
    found[(at < 0) | (at >= len(text))] = 0
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


def places(text: Codes, characters: str) -> np.ndarray:
    """Where any of the characters stand, in order."""
    odd, others = _parted(characters)
    found: np.ndarray = text.odd[any_of(text.odd_units, odd)] if odd else text.odd[:0]
    if not others:
        return found
    among = np.flatnonzero(any_of(text.units, others))
    return merged(found, among) if odd else among


@cache
def _parted(characters: str) -> tuple[str, str]:
    """The odd ones of the characters, and the plain ones."""
    odd = "".join(each for each in characters if not plain()[ord(each)])
    return odd, "".join(each for each in characters if each not in odd)


def any_of(units: np.ndarray, characters: str) -> np.ndarray:
    """Which of the units are one of the characters: up to a few are compared with faster than looked up."""
    if len(characters) > 4:
        return is_one_of(units, characters)
    found: np.ndarray = units == ord(characters[0])
    for each in characters[1:]:
        found |= units == ord(each)
    return found


def has(text: Codes, characters: str) -> bool:
    """Whether any of the characters, all of them odd, is in a text."""
    return bool(is_one_of(text.odd_units, characters).any())


def merged(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The places in both, which are in order each, in order."""
    return np.sort(np.concatenate((one, other)), kind="stable")  # which is fast where much is in order


def distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ones of the values, in order, and how often each occurs; np.unique takes long to load first."""
    values = np.sort(values)
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
    return values[starts], np.diff(np.append(starts, len(values)))


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


def replaced(text: Codes, at: np.ndarray, units: np.ndarray | int) -> Codes:
    """`text` with other units at these places."""
    if not len(at):
        return text
    made = text.units.copy()
    made[at] = units
    if not text.is_known:
        return Codes(made)
    known = text.odd
    if len(known):
        at = at[known.take(np.searchsorted(known, at), mode="clip") != at]
    return Codes(made, merged(known, at) if len(at) else known)


def without(text: Codes, gone: np.ndarray) -> Codes:
    """`text` without the units at the places `gone`, which are in order."""
    if not len(gone):
        return text
    return Codes(_cut(text.units, gone), _moved(text.odd, gone) if text.is_known and len(text.odd) else None)


def _moved(odd: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The places `odd` when those of `gone` are taken out."""
    at = np.searchsorted(odd, gone)
    before = np.cumsum(np.bincount(at, minlength=len(odd) + 1)[: len(odd)])
    return _cut(odd - before, at[odd.take(at, mode="clip") == gone])


def _cut(array: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """`array` without what is at the places `gone`, which are in order."""
    first, after = runs(gone)
    if len(first) > _FEW:
        keep = np.ones(len(array), bool)
        keep[gone] = False
        return np.compress(keep, array)
    bounds = zip((0, *after.tolist()), (*first.tolist(), len(array)), strict=True)
    return np.concatenate([array[start:end] for start, end in bounds])


def inserted(text: Codes, before: np.ndarray, unit: str) -> Codes:
    """`text` with `unit` put in before each of the places `before`, which are in order."""
    made = np.empty(len(text) + len(before), "<u2")
    old = np.ones(len(made), bool)
    at = before + np.arange(len(before))
    old[at] = False
    made[at] = ord(unit)
    made[old] = text.units
    return Codes(made)


def join(texts: Sequence[str]) -> Codes:
    """The texts as one page. A NUL in one of them is left out: it could not be told from what parts them."""
    page = codes(SEPARATOR.join(texts))
    if np.count_nonzero(page.units == 0) >= max(len(texts), 1):
        page = codes(SEPARATOR.join([text.replace(SEPARATOR, "") for text in texts]))
    return page


def codes(text: str) -> Codes:
    return Codes(np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2"))


def text_of(text: Codes) -> str:
    return str(text.units.data, "utf-16-le", "surrogatepass")


def split(page: Codes) -> list[str]:
    """The documents of `join`."""
    return text_of(page).split(SEPARATOR)


def bounds(page: Codes) -> list[tuple[int, int]]:
    """Where the documents of a page begin and end."""
    parts = places(page, SEPARATOR).tolist()
    return list(zip((0, *(part + 1 for part in parts)), (*parts, len(page)), strict=True))


def characters(text: Codes) -> int:
    """Number of code points, those that part documents not counted."""
    units = text.odd_units if text.is_known else text.units
    return len(text) - int(np.count_nonzero(units == 0)) - int(np.count_nonzero((units & 0xFC00) == 0xDC00))
