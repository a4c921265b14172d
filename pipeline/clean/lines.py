"""Lines: documents that stay, their sentences one a line, as UTF-8; and how long each line is.

A text is encoded once. Where a line begins in its bytes follows from where it begins in its units: three bytes each,
but for those of its odd ones that have fewer.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.clean import sentences
from pipeline.clean.utf16 import (
    CLOSERS,
    CONTINUES,
    DOTS,
    ENDS,
    LINE_ENDS,
    OPENERS,
    SEPARATOR,
    UNITS,
    Codes,
    is_one_of,
    merged,
    places,
    text_of,
    unit_at,
)
from pipeline.errors import BadConfig

_TERMINATORS = ENDS + DOTS + CLOSERS


@dataclass(frozen=True)
class Lines:
    """`data` has a line end behind each line, which neither its `characters` nor its `sizes` in bytes count."""

    data: bytes
    characters: np.ndarray
    sizes: np.ndarray
    unterminated: int  # lines that no mark ends
    resplit: Counter[str]  # cuts in lines that were too long, by where


def of_sentences(page: Codes, encoded: bytes, max_bytes: int, *, inside_quotes: bool = False) -> Lines:
    """The sentences of Chinese documents, which have no blank lines, none longer than `max_bytes`; `encoded` is the
    page as UTF-8."""
    ends = sentences.ends(page, inside_quotes=inside_quotes)
    ends = ends[~is_one_of(unit_at(page, ends), LINE_ENDS)]
    breaks = places(page, LINE_ENDS)
    behind = merged(ends, breaks + 1)  # where the next lines begin
    is_broken = is_one_of(page.units[behind - 1], LINE_ENDS)
    behind_bytes = 3 * behind - 2 * np.cumsum(is_broken)
    saved = _saved().take(page.odd_units)
    if len(narrow := np.flatnonzero(saved)):
        of = np.searchsorted(behind, page.odd[narrow], side="right")
        behind_bytes -= np.cumsum(np.bincount(of, saved[narrow], len(behind) + 1)[:-1]).astype(int)
    start, start_bytes = np.append(0, behind), np.append(0, behind_bytes)
    stop, stop_bytes = np.append(behind - is_broken, len(page)), np.append(behind_bytes - is_broken, len(encoded))

    cuts, cuts_bytes, resplit = [], [], Counter[str]()
    for line in np.flatnonzero(stop_bytes - start_bytes > max_bytes).tolist():
        pieces, level = limit(text_of(page[start[line] : stop[line]]), max_bytes)
        resplit[level] += len(pieces) - 1
        place, place_bytes = start[line], start_bytes[line]
        for piece in pieces[:-1]:
            place += len(piece.encode("utf-16-le")) // 2
            place_bytes += len(piece.encode())
            cuts.append(place)
            cuts_bytes.append(place_bytes)
    if cuts:
        start, stop = (np.sort(np.append(each, cuts)) for each in (start, stop))
        start_bytes, stop_bytes = (np.sort(np.append(each, cuts_bytes)) for each in (start_bytes, stop_bytes))

    second = page.odd[(page.odd_units & 0xFC00) == 0xDC00]
    characters = stop - start
    if len(second):
        characters -= np.bincount(np.searchsorted(stop, second), minlength=len(stop))
    unterminated = int(np.count_nonzero(~is_one_of(page.units[stop - 1], _TERMINATORS)))
    data = _broken(encoded, start_bytes[1:][start[1:] == stop[:-1]])
    return Lines(data, characters, stop_bytes - start_bytes, unterminated, resplit)


def _broken(encoded: bytes, before: np.ndarray) -> bytes:
    """The bytes of a page with line ends before these places, between its documents and at its end."""
    whole = encoded.replace(SEPARATOR.encode(), b"\n") + b"\n"
    if len(before) * _APART < len(whole):
        cuts = before.tolist()
        return b"\n".join([whole[start:end] for start, end in zip((0, *cuts), (*cuts, len(whole)), strict=True)])
    made = np.empty(len(whole) + len(before), np.uint8)
    old = np.ones(len(made), bool)
    at = before + np.arange(len(before))
    old[at] = False
    made[at] = ord("\n")
    made[old] = np.frombuffer(whole, np.uint8)
    return made.tobytes()


_APART = 256  # bytes between two places from which on it is cheaper to take the pieces one by one


@cache
def _saved() -> np.ndarray:
    """Of each unit that ends no line how many of three bytes it does not need; a pair of units needs four."""
    found = np.zeros(UNITS, np.uint8)
    found[:0x800] = 1
    found[:0x80] = 2
    found[0xDC00:0xE000] = 2
    found[[ord(each) for each in LINE_ENDS]] = 0
    return found


def of_any(page: Codes, max_bytes: int) -> Lines:
    """The lines of any documents, those left out that have nothing but spaces."""
    kept, resplit = list[str](), Counter[str]()
    for line in text_of(page).replace(SEPARATOR, "\n").split("\n"):
        pieces = [line]
        if len(line) * WIDEST > max_bytes:
            pieces, level = limit(line, max_bytes)
            resplit[level] += len(pieces) - 1
        kept += [piece for piece in pieces if piece and not piece.isspace()]
    data = "".join([line + "\n" for line in kept]).encode()
    sizes = np.diff(np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")), prepend=-1) - 1
    unterminated = sum(line[-1] not in _TERMINATORS for line in kept)
    return Lines(data, np.array([*map(len, kept)], int), sizes, unterminated, resplit)


WIDEST = 4  # bytes that one character may need
LEVELS = ("", "sentence", "semicolon", "comma", "space", "hard")  # from what is no cut at all to the roughest one
_NOT_FIRST = ENDS + CONTINUES + CLOSERS + DOTS + "—"  # no piece begins with one of these if it can be helped
_NOT_LAST = OPENERS
_TAIL = f"[{_NOT_FIRST}]*+"
_GENTLE = {
    "sentence": re.compile(f"[{ENDS}]{_TAIL}"),
    "semicolon": re.compile(f"[；;]{_TAIL}"),
    "comma": re.compile(f"[，,]{_TAIL}"),
    "space": re.compile(f"[ \u3000]++(?![{_NOT_FIRST}])"),
}
_BACK = 16  # characters by which a hard cut may go back for the sake of the marks


def limit(unit: str, max_bytes: int) -> tuple[list[str], str]:
    """`unit` in pieces of at most `max_bytes` of UTF-8, and the roughest of the LEVELS that it took.

    It is cut behind sentences, what is still too long behind ；, then ，, then spaces, then anywhere; each piece takes
    all that fits. Joined, the pieces are the unit. Raises BadConfig where `max_bytes` cannot hold one character.
    """
    if max_bytes < WIDEST:
        raise BadConfig(f"max_bytes is {max_bytes}", hint=f"{WIDEST} or more: one character has to fit")
    pieces, used = [unit], ""
    for level in LEVELS[1:]:
        if all(_fits(piece, max_bytes) for piece in pieces):
            break
        cut: list[str] = []
        for piece in pieces:
            if _fits(piece, max_bytes):
                cut.append(piece)
            elif level == "hard":
                cut += _hard(piece, max_bytes)
            else:
                cut += _packed(piece, _GENTLE[level], max_bytes)
        if len(cut) > len(pieces):
            pieces, used = cut, level
    return pieces, used


def _fits(piece: str, max_bytes: int) -> bool:
    return len(piece) * WIDEST <= max_bytes or _bytes(piece) <= max_bytes


def _bytes(piece: str) -> int:
    return len(piece.encode("utf-8", "surrogatepass"))


def _packed(piece: str, gentle: re.Pattern[str], max_bytes: int) -> list[str]:
    """`piece` cut behind what `gentle` matches, and neighbours joined again while they fit."""
    packed: list[str] = []
    start = end = size = 0  # piece[start:end] is held, and is so many bytes
    for stop in (*(found.end() for found in gentle.finditer(piece)), len(piece)):
        more = _bytes(piece[end:stop])
        if end > start and more and size + more > max_bytes:
            packed.append(piece[start:end])
            start, size = end, 0
        end, size = stop, size + more
    return [*packed, piece[start:]]


def _hard(piece: str, max_bytes: int) -> list[str]:
    """`piece` cut between any two characters, but not at marks where a few characters less avoid it."""
    pieces: list[str] = []
    start = 0
    while start < len(piece):
        window = piece[start : start + max_bytes].encode("utf-8", "surrogatepass")  # no more characters than bytes fit
        cut = min(max_bytes, len(window))
        while cut < len(window) and window[cut] & 0xC0 == 0x80:  # inside a character
            cut -= 1
        end = full = start + len(window[:cut].decode("utf-8", "surrogatepass"))
        if full < len(piece):
            while end > max(start + 1, full - _BACK) and (piece[end] in _NOT_FIRST or piece[end - 1] in _NOT_LAST):
                end -= 1
            if piece[end] in _NOT_FIRST or piece[end - 1] in _NOT_LAST:
                end = full
        pieces.append(piece[start:end])
        start = end
    return pieces
