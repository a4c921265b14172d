"""Mojibake: characters that stand where a Chinese one was lost on the way. Each becomes □.

    U+FFFD                    what a decoder writes for bytes that it cannot read
    倚杖け然长啸               kana, Cyrillic, bopomofo and box drawing, which are where GBK keeps its symbols

Only one to three of the latter together count, and only inside Chinese text: with Chinese characters on both sides,
or on one side and a stop or a line's end on the other. Japanese, Russian and bopomofo that were meant stay: they have
longer words, more of them, or stand in brackets and quotes. Lines that are debris of HTTP and HTML are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import numpy as np

from pipeline.clean.rule import Rule, Seen, lines_with, on_lines, units
from pipeline.clean.utf16 import HAN, LACUNA, SEPARATOR, UNITS, Codes, bounds, codes, places, replaced, runs, text_of

_REPLACEMENT = "\ufffd"
# Not ・ and ー, which part and lengthen words, nor the straight lines ─ │, which are dashes and draw tables.
_KANA = "\u3041-\u3096\u309d\u309e\u30a1-\u30fa\u30fd\u30fe"
_CYRILLIC = "\u0400-\u052f"
_BOPOMOFO = "\u3105-\u312f\u31a0-\u31bf"
_BOX = "\u250c-\u254b\u2552-\u257f"
_ODD = _KANA + _CYRILLIC + _BOPOMOFO + _BOX
_TABLE = re.compile("[─━│┃═║]")

_RUN = re.compile(f"[{_ODD}]+")
_CHINESE = f"{HAN}{LACUNA}{_REPLACEMENT}"
_STOP = "，。！？：；、…,.!?:; \t\u3000"  # the ASCII ones are still to become wide
_LOST = re.compile(
    rf"(?<=[{_CHINESE}])[{_ODD}]{{1,3}}(?=[{_CHINESE}{_STOP}]|$)|(?:^|(?<=[{_STOP}]))[{_ODD}]{{1,3}}(?=[{_CHINESE}])"
)
_LETTERS = re.compile(f"[{_CHINESE}{_ODD}]+")
_FEW = 3  # runs, and characters of a run, that may be chance
_MUCH = 0.05  # of the letters of a document, or of a line with more than a few
_MOSTLY = 0.25  # of the letters of a line

_DEBRIS = re.compile(r"Connection=\[|Content-Type=|HTTP/1\.[01] \d{3}|charset=|<html|<head|<script|<!doctype", re.I)
_DEBRIS_HAS = "=/<"
_SIGNS_OF_DEBRIS = {  # of which str finds that there are none much faster than _DEBRIS does
    "=": ("onnection=[", "ontent-type=", "ontent-Type=", "harset=", "ONNECTION=[", "ONTENT-TYPE=", "HARSET="),
    "/": ("http/1.", "HTTP/1."),
    "<": ("<html", "<head", "<script", "<!doctype", "<HTML", "<HEAD", "<SCRIPT", "<!DOCTYPE"),
}
_LINES = re.compile("[^\n]*\n|[^\n]+")
_LINE_ENDS = re.compile("([\n\0])")
_LONGEST_DEBRIS = 4000  # characters: a longer line is a chapter that has debris in it


def rule() -> Rule:
    """Replaces what was lost by □, one for one, and drops lines of debris."""
    odd = [(ord(first), ord(last)) for first, last in re.findall("(.)-(.)", _ODD)]
    singles = re.sub("(.)-(.)", "", _ODD)
    return Rule("mojibake", _apply, units(_REPLACEMENT + singles + _DEBRIS_HAS, *odd), makes=LACUNA)


def _apply(page: Codes, seen: Seen) -> Codes:
    if len(at := places(page, _DEBRIS_HAS)) and _is_suspect(text_of(lines_with(page, at))):
        text = text_of(page)
        left = _parts_with(_DEBRIS, text, SEPARATOR, lambda document: _without_debris(document, seen))
        page = codes(left) if left != text else page
    odd = page.odd[_is(_RUN).take(page.odd_units)]
    if len(odd):
        page = on_lines(lambda lines: codes(_mended(text_of(lines), seen)), page, _chance(page, odd, seen))
    if len(lost := places(page, _REPLACEMENT)):
        seen[f"U+FFFD → {LACUNA}"] += len(lost)
        page = replaced(page, lost, ord(LACUNA))
    return page


def _chance(page: Codes, odd: np.ndarray, seen: Seen) -> np.ndarray:
    """Which of the odd characters of a page are in documents of Chinese text."""
    first, _ = runs(odd)
    chosen = [odd[:0]]
    for start, end in bounds(page):
        which = slice(*np.searchsorted(odd, (start, end)))
        many = np.searchsorted(first, end) - np.searchsorted(first, start) > _FEW
        count = which.stop - which.start
        if many and count > _MUCH * _letters(page[start:end]):
            seen["characters left: a document in another script"] += int(count)
        else:
            chosen.append(odd[which])
    return np.concatenate(chosen)


def _is_suspect(text: str) -> bool:
    return any(mark in text and any(sign in text for sign in signs) for mark, signs in _SIGNS_OF_DEBRIS.items())


def _letters(text: Codes) -> int:
    """Characters of `_LETTERS` in a text."""
    return int(np.count_nonzero(_is(_LETTERS).take(text.units)))


@cache
def _is(pattern: re.Pattern[str]) -> np.ndarray:
    """Of each unit whether it is, or begins, one of the characters of a pattern."""
    found = np.zeros(UNITS, bool)
    for run in pattern.finditer("".join(map(chr, range(UNITS)))):
        found[run.start() : run.end()] = True
    if pattern is _LETTERS:
        found[0xD840:0xD900] = True  # Han characters beyond the first plane
    return found


def _length(pattern: re.Pattern[str], text: str) -> int:
    return sum(map(len, pattern.findall(text)))


def _mended(lines: str, seen: Seen) -> str:
    parts = _LINE_ENDS.split(lines)
    parts[::2] = [_line(line, seen) if line else line for line in parts[::2]]
    return "".join(parts)


def _parts_with(pattern: re.Pattern[str], text: str, mark: str, change: Callable[[str], str]) -> str:
    """`text` with those parts between two `mark` changed in which `pattern` is found."""
    pieces, done = [], 0
    for found in pattern.finditer(text):
        if found.start() >= done:
            start = max(text.rfind(mark, done, found.start()) + 1, done)
            end = text.find(mark, found.end())
            end = len(text) if end < 0 else end
            pieces += [text[done:start], change(text[start:end])]
            done = end
    return "".join([*pieces, text[done:]]) if pieces else text


def _without_debris(text: str, seen: Seen) -> str:
    return "".join([line for line in _LINES.findall(text) if not _is_debris(line, seen)])


def _is_debris(line: str, seen: Seen) -> bool:
    if not _DEBRIS.search(line):
        return False
    if len(line) > _LONGEST_DEBRIS:
        seen["debris left in a long line"] += 1
        return False
    seen["lines of debris"] += 1
    seen["characters of debris"] += len(line)
    return True


def _line(line: str, seen: Seen) -> str:
    runs = _RUN.findall(line)
    odd = sum(map(len, runs))
    share = odd / _length(_LETTERS, line)
    other = share > _MUCH and (len(runs) > _FEW or max(map(len, runs)) > _FEW)
    if other or (share > _MOSTLY and odd >= _FEW) or _TABLE.search(line):
        seen["characters left: a line in another script"] += odd
        return line

    def lost(run: re.Match[str]) -> str:
        for character in run[0]:
            seen[f"{character} → {LACUNA}"] += 1
        return LACUNA * len(run[0])

    mended = _LOST.sub(lost, line)
    if left := _length(_RUN, mended):
        seen["characters left: a word of another script"] += left
    return mended
