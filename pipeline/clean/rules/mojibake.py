"""Mojibake: symbols that replaced a Chinese character in a faulty conversion. Each becomes □.

    U+FFFD                    written by decoders for bytes that they cannot read
    倚杖け然长啸               kana, Cyrillic, bopomofo and box drawing, which GBK encodes in its symbol area

One to three of the latter in a row count only inside Chinese text: between Chinese characters, or between one and a
stop or line end. Genuine Japanese, Russian and bopomofo are kept: their words are longer or more numerous, or are in
brackets and quotes. の stays: modern Chinese writes it for 的 (新鲜の). Debris of HTTP and HTML is dropped.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from pipeline.clean.damage import debris
from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rule import Counts, Rule, apply_to_lines, lines_containing, units
from pipeline.clean.utf16 import (
    HAN,
    LACUNA,
    UNIT_COUNT,
    Utf16Text,
    decode_utf16,
    document_bounds,
    encode_utf16,
    positions_of,
    replace_units,
    run_bounds,
)

_REPLACEMENT = "\ufffd"
# Without ・ and ー, which separate and lengthen words, の, and the lines ─ │, which are dashes or draw tables.
_KANA = "\u3041-\u306d\u306f-\u3096\u309d\u309e\u30a1-\u30fa\u30fd\u30fe"
_CYRILLIC = "\u0400-\u052f"
_BOPOMOFO = "\u3105-\u312f\u31a0-\u31bf"
_BOX = "\u250c-\u254b\u2552-\u257f"
_FOREIGN = _KANA + _CYRILLIC + _BOPOMOFO + _BOX
_TABLE = lazy_pattern("[─━│┃═║]")

_RUN = lazy_pattern(f"[{_FOREIGN}]+")
_RUN_WITH_NO = lazy_pattern(f"[{_FOREIGN}の]+")  # tells whether a line with other kana is Japanese
_CHINESE = f"{HAN}{LACUNA}{_REPLACEMENT}"
_STOP = "，。！？：；、…．,.!?:; \t\u3000"  # ASCII marks included: this rule runs before they are widened
_LOST = lazy_pattern(
    rf"(?<=[{_CHINESE}])[{_FOREIGN}]{{1,3}}(?=[{_CHINESE}{_STOP}]|$)"
    rf"|(?:^|(?<=[{_STOP}]))[{_FOREIGN}]{{1,3}}(?=[{_CHINESE}])"
)
_LETTERS = lazy_pattern(f"[{_CHINESE}{_FOREIGN}]+")
# A document or line with more foreign letters than this is written in another script:
_MAX_CHANCE = 3  # runs, and characters of a run, that may be mojibake
_MAX_RATIO = 0.05  # of the letters of a document, or of a line with more than _MAX_CHANCE
_MAX_RATIO_OF_LINE = 0.25  # of the letters of any line

_LINE_ENDS = lazy_pattern("([\n\0])")


def rule() -> Rule:
    """Return the rule that replaces lost characters by □, one for one, and drops lines of debris."""
    ranges = [(ord(first), ord(last)) for first, last in re.findall("(.)-(.)", _FOREIGN)]
    singles = re.sub("(.)-(.)", "", _FOREIGN)
    return Rule("mojibake", _apply, units(_REPLACEMENT + singles + debris.MARKS, *ranges), produces=LACUNA)


def _apply(page: Utf16Text, counts: Counts) -> Utf16Text:
    if len(marks := positions_of(page, debris.MARKS)) and debris.may_hold_debris(
        decode_utf16(lines_containing(page, marks))
    ):
        text = decode_utf16(page)
        cleaned = debris.drop_debris(text, counts)
        page = encode_utf16(cleaned) if cleaned != text else page
    foreign = page.special_positions[_is_in(_RUN).take(page.special_units)]
    if len(foreign):
        candidates = _in_chinese_documents(page, foreign, counts)
        page = apply_to_lines(lambda lines: encode_utf16(_repair_lines(decode_utf16(lines), counts)), page, candidates)
    if len(replacements := positions_of(page, _REPLACEMENT)):
        counts[f"U+FFFD → {LACUNA}"] += len(replacements)
        page = replace_units(page, replacements, ord(LACUNA))
    return page


def _in_chinese_documents(page: Utf16Text, foreign: np.ndarray, counts: Counts) -> np.ndarray:
    """Return the positions in `foreign` that are in documents of Chinese text."""
    run_starts, _ = run_bounds(foreign)
    parts = [foreign[:0]]
    for start, end in document_bounds(page):
        inside = slice(*np.searchsorted(foreign, (start, end)))
        has_many_runs = np.searchsorted(run_starts, end) - np.searchsorted(run_starts, start) > _MAX_CHANCE
        count = inside.stop - inside.start
        if has_many_runs and count > _MAX_RATIO * _count_letters(page[start:end]):
            counts["characters left: a document in another script"] += int(count)
        else:
            parts.append(foreign[inside])
    return np.concatenate(parts)


def _count_letters(text: Utf16Text) -> int:
    return int(np.count_nonzero(_is_in(_LETTERS).take(text.units)))


@cache
def _is_in(pattern: re.Pattern[str]) -> np.ndarray:
    """Table over units: those that are, or start, a character of the set that `pattern` repeats."""
    table = np.zeros(UNIT_COUNT, bool)
    for run in pattern.finditer("".join(map(chr, range(UNIT_COUNT)))):
        table[run.start() : run.end()] = True
    if pattern is _LETTERS:
        table[0xD840:0xD900] = True  # Han characters beyond the first plane
    return table


def _total_length(pattern: re.Pattern[str], text: str) -> int:
    return sum(map(len, pattern.findall(text)))


def _repair_lines(lines: str, counts: Counts) -> str:
    parts = _LINE_ENDS.split(lines)
    parts[::2] = [_repair_line(line, counts) if line else line for line in parts[::2]]
    return "".join(parts)


def _repair_line(line: str, counts: Counts) -> str:
    foreign_runs = _RUN_WITH_NO.findall(line)
    foreign_count = sum(map(len, foreign_runs))
    ratio = foreign_count / max(_total_length(_LETTERS, line), foreign_count)
    is_beyond_chance = len(foreign_runs) > _MAX_CHANCE or max(map(len, foreign_runs)) > _MAX_CHANCE
    is_foreign = (ratio > _MAX_RATIO and is_beyond_chance) or (
        ratio > _MAX_RATIO_OF_LINE and foreign_count >= _MAX_CHANCE
    )
    if is_foreign or _TABLE.search(line):
        counts["characters left: a line in another script"] += foreign_count
        return line

    def replace(run: re.Match[str]) -> str:
        for character in run[0]:
            counts[f"{character} → {LACUNA}"] += 1
        return LACUNA * len(run[0])

    repaired = _LOST.sub(replace, line)
    if remaining := _total_length(_RUN, repaired):
        counts["characters left: a word of another script"] += remaining
    return repaired
