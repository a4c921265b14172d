"""Passages of GBK that were read from the second byte of a character on: `即令□烤隽胶又□2鼙`. Each becomes one □.

A lost byte shifts all later bytes, up to the next ASCII character. The shifted passage has rare characters, symbols and
private-use characters; shifted back by one byte, its characters are common. A character counts +1 if it is common when
it is shifted back, and −1 if it is common unshifted. A passage is a stretch with a high sum. Undamaged text of any
style has a falling sum, because shifting makes its characters rare.

Only stretches that have, among 24 characters, three isolated symbols, letters, digits or private-use characters are
examined: these are a fifth of the characters of a shifted passage.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np

from pipeline.clean.rule import Counts, Rule, units
from pipeline.clean.utf16 import (
    LACUNA,
    LINE_ENDS,
    Utf16Text,
    class_table,
    decode_utf16,
    delete_units,
    positions_of,
    replace_units,
)

NAME = "shifted"
CASE, PASSAGES = "characters of passages", f"passages → {LACUNA}"
_WINDOW, _LEAST_SYMBOLS = 24, 3  # units, and symbols among them, that make a passage possible
_REACH = 400  # units around such a window that are scored
_LEAST_SCORE = 8
_MAX_DROP = 5  # of the score before a passage ends
_NEAR = 2  # a lost character at most so many characters beside a passage belongs to it
_MAX_AMBIGUOUS = 8  # characters without a score between a passage and a lost one or the end of its line
_LOST = f"?{LACUNA}\ufffd"  # what readers write for bytes that they cannot decode
_MARKS = "，。！？：；、“”‘’《》…—（）"
_ASCII = ((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A))
_SYMBOLS = (  # ?, private use, and the rows of symbols of GB2312
    *((0x3F, 0x3F), (0xE000, 0xF8FF), (0xFFFD, 0xFFFD), (0x0391, 0x0451), (0x2160, 0x216B), (0x2460, 0x2490)),
    *((0x2500, 0x254B), (0x3041, 0x30F6), (0x3105, 0x3129), (0x3220, 0x3229)),
)
_WORD, _SYMBOL, _LACUNA = 1, 2, 3
_NO_CODE, _HAN_ROWS = (0, 0), range(0xB0, 0xF8)  # bytes of a character that GB2312 lacks; first bytes of its Han
_FULL_WIDTH = 0xFEE0  # from an ASCII character to its full-width form, as which GBK encodes it here


def _apply(page: Utf16Text, counts: Counts) -> Utf16Text:
    starts, deleted = list[int](), list[np.ndarray]()
    for start, end in _stretches(page):
        for first, last in find_passages(_as_text(page.units[start:end])):
            starts.append(start + first)
            deleted.append(np.arange(start + first + 1, start + last))
            counts[PASSAGES] += 1
            counts[CASE] += last - first
    if not starts:
        return page
    return delete_units(replace_units(page, np.array(starts), ord(LACUNA)), np.concatenate(deleted))


RULE = Rule(NAME, _apply, (*units(LACUNA), *_ASCII, *_SYMBOLS), produces=LACUNA)


def _as_text(line: np.ndarray) -> str:
    """Decode units one by one: a surrogate becomes U+FFFF."""
    return decode_utf16(Utf16Text(np.where((line & 0xF800) == 0xD800, np.uint16(0xFFFF), line)))


def find_passages(text: str) -> list[tuple[int, int]]:
    """Return the start and the end (exclusive) of the shifted passages of a line."""
    passages, scores = [], _scores(text)
    start = best = 0
    total = highest = 0
    for index, score in enumerate([*scores, -_LEAST_SCORE]):
        total += score
        if total > highest:
            highest, best = total, index + 1
        if total <= 0 or highest - total > _MAX_DROP or index == len(scores):
            if highest >= _LEAST_SCORE:
                passages.append(_extend(text, scores, start, best))
            start, total, highest = index + 1, 0, 0
    return passages


def _extend(text: str, scores: list[int], start: int, end: int) -> tuple[int, int]:
    """Extend a passage by the lost characters near it, and by a few characters without a score up to a lost one."""
    while lost := [index for index in range(max(start - _NEAR, 0), start) if text[index] in _LOST]:
        start = lost[0]
    end = min(end + 1, len(text))  # the score of the last character includes a byte of the next one
    while lost := [index for index in range(end, min(end + _NEAR, len(text))) if text[index] in _LOST]:
        end = lost[-1] + 1
    before = _count_ambiguous(text[:start][::-1], scores[:start][::-1])
    return start - before, end + _count_ambiguous(text[end:], scores[end:])


def _count_ambiguous(text: str, scores: list[int]) -> int:
    """Count the characters up to a lost one or the end of `text`: 0 if they are many, or if one has a score."""
    for index, character in enumerate(text[: _MAX_AMBIGUOUS + 1]):
        if character in _LOST:
            return index + 1
        if scores[index] or character in _MARKS:
            return 0
    return len(text) if len(text) <= _MAX_AMBIGUOUS else 0


def _scores(text: str) -> list[int]:
    """Return the score of each character, 1, 0 or -1.

    The second byte of a character and the first byte of the next one are the character when it is shifted back. The
    score is 1 if only that one is common, -1 if only the unshifted one is. Adjacent symbols of one row of GBK are a
    number or a word, and no evidence of damage.
    """
    codes, is_common = _tables()
    rows = [codes.get(character, _NO_CODE) for character in text]
    scores = list[int]()
    for lead, group in itertools.groupby(zip(text, rows, [*rows[1:], _NO_CODE], strict=True), lambda item: item[1][0]):
        run = list(group)
        is_word = len(run) > 1 and lead not in _HAN_ROWS
        for character, code, following in run:
            if character in _LOST:
                scores.append(0)
            elif is_word or code is _NO_CODE:
                scores.append(-int(len(run) > 2 or code is _NO_CODE))
            else:
                scores.append(int(is_common[code[1], following[0]]) - int(is_common[code]))
    return scores


@cache
def _tables() -> tuple[dict[str, tuple[int, int]], np.ndarray]:
    """Return the two bytes of each character of GB2312's area, and a mask over bytes: True for common characters."""
    codes, is_common = {}, np.zeros((256, 256), bool)
    for lead in range(0xA1, 0xFF):
        for trail in range(0xA1, 0xFF):
            character = bytes((lead, trail)).decode("gb18030", "replace")
            if len(character) == 1:
                codes[character] = lead, trail
                is_common[lead, trail] = 0xB0 <= lead <= 0xD7 or character in _MARKS
    for code in range(0x21, 0x7F):
        if chr(code + _FULL_WIDTH) in codes:
            codes[chr(code)] = codes[chr(code + _FULL_WIDTH)]
    return codes, is_common


def _stretches(page: Utf16Text) -> list[tuple[int, int]]:
    """Return the bounds of the parts of lines that may hold a shifted passage."""
    kinds = _kinds().take(page.special_units)
    at, kinds = page.special_positions[kinds > 0], kinds[kinds > 0]
    is_beside = np.diff(at) == 1
    is_word = (kinds == _WORD) & (
        np.append(is_beside & (kinds[1:] == _WORD), False) | np.append(False, is_beside & (kinds[:-1] == _WORD))
    )
    at, kinds = at[~is_word], kinds[~is_word]
    if len(at) < _LEAST_SYMBOLS:
        return []
    is_dense = at[_LEAST_SYMBOLS - 1 :] - at[: 1 - _LEAST_SYMBOLS] < _WINDOW
    is_dense &= (kinds[:-2] != _LACUNA) | (kinds[1:-1] != _LACUNA) | (kinds[2:] != _LACUNA)
    if not is_dense.any():
        return []
    line_ends = np.append(positions_of(page, LINE_ENDS), len(page))
    bounds: list[tuple[int, int]] = []
    for position in at[: 1 - _LEAST_SYMBOLS][is_dense].tolist():
        line = int(np.searchsorted(line_ends, position))
        line_start = int(line_ends[line - 1]) + 1 if line else 0
        start = max(line_start, position - _REACH)
        end = min(int(line_ends[line]), position + _REACH)
        if bounds and start <= bounds[-1][1] and bounds[-1][0] >= line_start:
            start = bounds.pop()[0]
        bounds.append((start, end))
    return bounds


@cache
def _kinds() -> np.ndarray:
    """Return the kind of each unit: a letter or digit, which is a symbol if it stands alone, a symbol, or a lacuna."""
    return class_table((_WORD, _ASCII), (_SYMBOL, _SYMBOLS), (_LACUNA, LACUNA))
