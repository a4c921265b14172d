"""Punctuation: three rules on the marks of Chinese text.

    widen   ASCII marks that touch Chinese text become full width: 好,快 → 好，快
    marks   repeated marks become one; dots and dashes after Chinese text become …… and ——
    punct   punctuation is stripped, all of it or all but some marks

For `punct`, marks that only Chinese text has are always punctuation. Those it shares with other scripts (“”…— and
ASCII) are if their run of marks touches a Chinese character, contains a Chinese mark or fills its line. Letters,
digits, spaces, □ and the marks of English text are never stripped.
"""

from __future__ import annotations

import string
from functools import cache, partial

import numpy as np

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rule import Counts, Rule, units
from pipeline.clean.utf16 import (
    BLANKS,
    HAN_HIGH_SURROGATES,
    HAN_UNITS,
    LINE_ENDS,
    LINE_KIND,
    MARK_ONCE_KIND,
    UNIT_COUNT,
    Utf16Text,
    contains_any,
    count_distinct,
    decode_utf16,
    delete_units,
    expand_ranges,
    is_chinese,
    is_one_of,
    kinds_at,
    merge_sorted,
    positions_of,
    replace_units,
    run_bounds,
    units_at,
)
from pipeline.errors import BadConfig

# Units of Chinese letters: Han, private use characters (gaiji), and the low surrogates of either.
LETTER_RANGES = (*HAN_UNITS, HAN_HIGH_SURROGATES, (0xE000, 0xF8FF), (0xDC00, 0xDFFF))
LETTER_SIGNS = "〇□"

_NARROW, _WIDE = ",!?;:()", "，！？；：（）"
_REFERENCE, _MAX_REFERENCE = lazy_pattern("&#?[0-9A-Za-z+-]{2,};"), 24  # its units
_DIGITS, _LETTERS = string.digits, string.ascii_letters
_BEFORE_LABEL = BLANKS + "。；，？！（:："
_MAX_NESTING = 16  # of brackets in pairs; outer ones are widened alone
_CLOSING_QUOTES = "”’\"'"  # after a stop they end the sentence with it

_DOTS = (("…⋯", 1), (".", 3), ("。", 3))  # characters, and how many in a row make an ellipsis
_DASHES = (("—", 1), ("-", 2))

_CHINESE_MARKS = "，。！？；：、「」『』《》〈〉（）〔〕【】〖〗［］｛｝．～﹏＿﹃﹄﹁﹂︽︾︵︶"
_SHARED_MARKS = "“”‘’…⋯—–·・‧•～!\"'(),-./:;?[]{}"
_OTHER, _LETTER, _LINE_END, _CHINESE_MARK, _SHARED_MARK = range(5)


# widen


@cache
def _full_width() -> np.ndarray:
    table = np.arange(UNIT_COUNT, dtype="<u2")
    table[[ord(mark) for mark in _NARROW]] = [ord(mark) for mark in _WIDE]
    return table


def _widen(text: Utf16Text, counts: Counts) -> Utf16Text:
    """Widen ASCII marks that touch Chinese text, with or without spaces between; ． becomes 。.

    Brackets are widened in pairs, (1)第一条 → （1）第一条, but not those of formulae: f(x)是函数. The ; of a reference,
    such as &KR0869;, stays. ． becomes . between letters or digits, a．b → a.b, and after a label, 1．张三 → 1.张三.
    """
    full_stops = positions_of(text, "．")
    is_point = np.ones(len(full_stops), bool)
    for neighbours in (full_stops - 1, full_stops + 1):
        is_point &= is_one_of(units_at(text, neighbours), _LETTERS + _DIGITS)
    is_point |= _ends_label(text, full_stops)
    text = replace_units(text, full_stops, np.where(is_point, ord("."), ord("。")))
    counts["． → 。"] += int((~is_point).sum())

    marks = positions_of(text, _NARROW + BLANKS)
    opening = closing = marks[:0]
    if contains_any(text, "()"):
        opening, closing = _bracket_pairs(text)
        is_formula = _are_formulae(text, opening, closing)
        marks = np.setdiff1d(marks, np.concatenate((opening[is_formula], closing[is_formula])), assume_unique=True)
        opening, closing = opening[~is_formula], closing[~is_formula]
    first, after = run_bounds(marks)
    is_near_chinese = is_chinese(kinds_at(text, first - 1)) | is_chinese(kinds_at(text, after))
    if len(opening):
        is_near_chinese = _spread_over_pairs(text, first, is_near_chinese, opening, closing)
    positions = expand_ranges(first[is_near_chinese], after[is_near_chinese])
    if contains_any(text, "&"):
        positions = np.setdiff1d(positions, _reference_ends(text), assume_unique=True)
    old_units = text.units[positions]
    for narrow, wide in zip(_NARROW, _WIDE, strict=True):
        counts[f"{narrow} → {wide}"] += int((old_units == ord(narrow)).sum())
    new_units = _full_width()[old_units]
    text = replace_units(text, positions[new_units != old_units], new_units[new_units != old_units])

    stops = positions_of(text, ".")
    if len(stops):
        first, after = run_bounds(positions_of(text, "." + BLANKS))
        kind_before, kind_after = kinds_at(text, first - 1), kinds_at(text, after)
        is_single = np.searchsorted(stops, after) - np.searchsorted(stops, first) == 1
        is_closed = is_one_of(units_at(text, after), _CLOSING_QUOTES)
        ends_text = is_chinese(kind_after) | (kind_after == LINE_KIND) | is_closed
        is_stop = is_single & is_chinese(kind_before) & ends_text
        text = replace_units(text, stops[np.searchsorted(stops, first[is_stop])], ord("。"))
        counts[". → 。"] += int(is_stop.sum())
    return text


def _reference_ends(text: Utf16Text) -> np.ndarray:
    """Return the positions of the ; that end references, which a policy has kept."""
    ampersands, semicolons = positions_of(text, "&"), positions_of(text, ";")
    after = np.searchsorted(semicolons, ampersands)
    ends = semicolons[after[after < len(semicolons)]].tolist()
    spans = zip(ampersands[: len(ends)].tolist(), ends, strict=True)
    return np.array([end for start, end in spans if _is_reference(text, start, end)], int)


def _is_reference(text: Utf16Text, start: int, end: int) -> bool:
    is_short = end - start <= _MAX_REFERENCE
    return is_short and bool(_REFERENCE.fullmatch(decode_utf16(Utf16Text(text.units[start : end + 1]))))


def _ends_label(text: Utf16Text, stops: np.ndarray) -> np.ndarray:
    """Return a mask of the stops after the number or the letter of an item: one to three digits, or one letter.

    A label begins a line, or follows a blank or a mark: A．甲；B．乙.
    """
    is_label = np.zeros(len(stops), bool)
    for length in (1, 2, 3) if len(stops) else ():
        labels = _LETTERS + _DIGITS if length == 1 else _DIGITS
        is_inside = [is_one_of(units_at(text, stops - offset), labels) for offset in range(1, length + 1)]
        before = stops - length - 1
        begins = (kinds_at(text, before) == LINE_KIND) | is_one_of(units_at(text, before), _BEFORE_LABEL)
        is_label |= np.all(is_inside, axis=0) & begins
    return is_label


def _are_formulae(text: Utf16Text, opening: np.ndarray, closing: np.ndarray) -> np.ndarray:
    """Return a mask of the pairs of ASCII brackets that follow a letter or digit and hold nothing but ASCII."""
    is_formula: np.ndarray = is_one_of(units_at(text, opening - 1), _LETTERS + _DIGITS) & (
        text.units[closing] == ord(")")
    )
    for pair in np.flatnonzero(is_formula).tolist():
        is_formula[pair] = bool((text.units[opening[pair] : closing[pair]] < 0x80).all())
    return is_formula


def _spread_over_pairs(
    text: Utf16Text, first: np.ndarray, is_near_chinese: np.ndarray, opening: np.ndarray, closing: np.ndarray
) -> np.ndarray:
    """Widen both brackets of a pair or none: a run of marks also counts as near Chinese if a bracket of it has a wide
    partner, or one in a run that counts.

    `first` are the starts of the runs, `opening` and `closing` the brackets.
    """
    opens_narrow, closes_narrow = text.units[opening] == ord("("), text.units[closing] == ord(")")
    opening_run, closing_run = (np.searchsorted(first, at, side="right") - 1 for at in (opening, closing))
    is_near_chinese = is_near_chinese.copy()
    is_near_chinese[opening_run[opens_narrow & ~closes_narrow]] = True
    is_near_chinese[closing_run[closes_narrow & ~opens_narrow]] = True
    is_narrow = opens_narrow & closes_narrow
    opening_run, closing_run = opening_run[is_narrow], closing_run[is_narrow]
    if not (is_near_chinese[opening_run] != is_near_chinese[closing_run]).any():
        return is_near_chinese
    group = np.arange(len(first))  # of runs joined by pairs, as its first run
    while ((left := group[opening_run]) != (right := group[closing_run])).any():
        for joined in (left, right):
            np.minimum.at(group, joined, np.minimum(left, right))
        group = group[group]
    is_near_group = np.zeros(len(first), bool)
    is_near_group[group[is_near_chinese]] = True
    spread: np.ndarray = is_near_group[group]
    return spread


def _bracket_pairs(text: Utf16Text) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the opening and of the closing brackets of the pairs within lines, nested ones too."""
    positions = positions_of(text, "()（）" + LINE_ENDS)
    mark_units = text.units[positions]
    direction = is_one_of(mark_units, "(（").astype(np.int8) - is_one_of(mark_units, ")）")
    opening, closing = [positions[:0]], [positions[:0]]
    for _ in range(_MAX_NESTING):
        pairs = np.flatnonzero((direction[:-1] == 1) & (direction[1:] == -1))
        if not len(pairs):
            break
        opening.append(positions[pairs])
        closing.append(positions[pairs + 1])
        is_left = np.ones(len(positions), bool)
        is_left[pairs] = is_left[pairs + 1] = False
        positions, direction = positions[is_left], direction[is_left]
    return np.concatenate(opening), np.concatenate(closing)


# marks


def _collapse(text: Utf16Text, counts: Counts) -> Utf16Text:
    """Make repeated marks one, and dots and dashes that follow Chinese text …… and ——."""
    repeats = _repeats(text)
    stops = repeats[text.units[repeats] == ord("。")]
    if len(stops) or is_one_of(text.units[repeats], ".-").any() or contains_any(text, "…⋯—"):
        changed = _double(text, "…", _DOTS, count_distinct(np.append(stops, stops - 1))[0], counts)
        changed = _double(changed, "—", _DASHES, stops[:0], counts)
        if changed is not text:
            text, repeats = changed, _repeats(changed)
    removed = repeats[kinds_at(text, repeats) == MARK_ONCE_KIND]
    for unit, count in zip(*count_distinct(text.units[removed]), strict=True):
        counts[f"{chr(unit)}{chr(unit)} → {chr(unit)}"] += int(count)
    return delete_units(text, removed)


def _repeats(text: Utf16Text) -> np.ndarray:
    """Return the positions of units that equal the unit before them."""
    return np.flatnonzero(text.units[1:] == text.units[:-1]) + 1


def _double(
    text: Utf16Text, mark: str, kinds: tuple[tuple[str, int], ...], stops: np.ndarray, counts: Counts
) -> Utf16Text:
    """Write `mark` twice for every run of dots or dashes that follows Chinese text.

    `kinds` are sets of characters, and how many in a row make a run; adjacent runs of different kinds count as one.
    `stops` are the positions of 。 beside another 。: others are not part of a run.
    """
    positions = positions_of(text, "".join(characters for characters, _ in kinds).replace("。", ""))
    positions = merge_sorted(positions, stops)
    if not len(positions):
        return text
    kind = np.zeros(len(positions), np.int8)
    for index, (characters, _) in enumerate(kinds):
        kind[is_one_of(text.units[positions], characters)] = index
    is_first = np.concatenate(([True], (positions[1:] - positions[:-1] > 1) | (kind[1:] != kind[:-1])))
    first = np.flatnonzero(is_first)
    length = np.diff(np.append(first, len(positions)))
    is_long = length >= np.array([min_length for _, min_length in kinds])[kind[first]]
    start = positions[first[is_long]]
    end = start + length[is_long]
    follows_chinese = is_chinese(kinds_at(text, start - 1))
    # A run that joins the one before it is changed if that one is.
    order = np.arange(len(start))
    joins = np.concatenate(([False], start[1:] == end[:-1])) if len(start) else follows_chinese
    latest_chinese = np.maximum.accumulate(np.where(follows_chinese, order, -1))
    latest_separate = np.maximum.accumulate(np.where(joins, -1, order))
    is_changed = latest_chinese >= latest_separate
    start, end = run_bounds(expand_ranges(start[is_changed], end[is_changed]))
    kept_end = np.minimum(start + 2, end)
    changed = expand_ranges(start, kept_end)
    for unit, count in zip(*count_distinct(text.units[changed]), strict=True):
        counts[f"{chr(unit)} → {mark}"] += int(count) * (chr(unit) != mark)
    return delete_units(replace_units(text, changed, ord(mark)), expand_ranges(kept_end, end))


WIDEN = Rule("widen", _widen, units(_NARROW + ".．"), produces=_WIDE + "。.")
COLLAPSE = Rule("marks", _collapse)


# punct


def rule(policy: str) -> Rule | None:
    """Return the rule for "strip" or for "only:" and the marks to keep, as in "only:。，！？"; None for "keep".

    The rule counts every mark that it removes. Raises BadConfig.
    """
    if policy == "keep":
        return None
    kept_marks = policy.removeprefix("only:") if policy.startswith("only:") else ""
    if policy != "strip" and not kept_marks:
        raise BadConfig(
            f"--punct must be keep, strip or only:MARKS, got {policy!r}", hint="name the marks, as in only:。，！？"
        )
    for mark in kept_marks:
        if mark not in _CHINESE_MARKS + _SHARED_MARKS:
            raise BadConfig(f"--punct: {mark!r} is not a punctuation mark", hint="name marks such as 。，！？")
    return Rule("punct", partial(_strip, kept_marks), triggers=units(_CHINESE_MARKS + _SHARED_MARKS))


def _strip(kept_marks: str, page: Utf16Text, counts: Counts) -> Utf16Text:
    positions = _punctuation(page)
    mark_units = page.units[positions]
    is_removed = np.ones(len(positions), bool)
    if kept_marks:
        is_removed = ~is_one_of(mark_units, kept_marks)
        is_removed |= _would_repeat(mark_units, positions, is_removed)
    for unit, count in zip(*count_distinct(mark_units[is_removed]), strict=True):
        counts[chr(unit)] += int(count)
    return delete_units(page, positions[is_removed])


def _punctuation(page: Utf16Text) -> np.ndarray:
    """Return the positions of the punctuation of Chinese text."""
    marks = np.flatnonzero(_kinds().take(page.units) >= _CHINESE_MARK)
    if not len(marks):
        return marks
    first, after = run_bounds(marks)
    chinese_before = np.concatenate(([0], np.cumsum(_kinds().take(page.units[marks]) == _CHINESE_MARK)))
    run_ends = np.cumsum(after - first)  # indices into `marks`
    is_chinese_run = chinese_before[run_ends] > chinese_before[run_ends - (after - first)]
    kind_before, kind_after = _kinds().take(units_at(page, first - 1)), _kinds().take(units_at(page, after))
    is_chinese_run |= (kind_before == _LETTER) | (kind_after == _LETTER)
    is_chinese_run |= (kind_before == _LINE_END) & (kind_after == _LINE_END)
    positions: np.ndarray = marks[np.repeat(is_chinese_run, after - first)]
    return positions


@cache
def _kinds() -> np.ndarray:
    table = np.full(UNIT_COUNT, _OTHER, np.uint8)
    for first, last in LETTER_RANGES:
        table[first : last + 1] = _LETTER
    characters_of = {
        _LETTER: LETTER_SIGNS,
        _LINE_END: LINE_ENDS,
        _CHINESE_MARK: _CHINESE_MARKS,
        _SHARED_MARK: _SHARED_MARKS,
    }
    for kind, characters in characters_of.items():
        table[[ord(character) for character in characters]] = kind
    return table


def _would_repeat(mark_units: np.ndarray, positions: np.ndarray, is_removed: np.ndarray) -> np.ndarray:
    """Return True for kept marks that would repeat because the marks between are removed: 好。”。 → 好。, not 好。。"""
    would_repeat = np.zeros(len(mark_units), bool)
    kept = np.flatnonzero(~is_removed)
    if len(kept) > 1:
        is_adjacent = np.diff(positions[kept]) == np.diff(kept)  # nothing but removed marks between the two
        is_same = is_adjacent & (mark_units[kept[1:]] == mark_units[kept[:-1]])
        joints = np.concatenate(([0], np.cumsum(is_same & (np.diff(kept) > 1))))
        chain_starts = np.concatenate(([True], ~is_same))
        chain_start = np.maximum.accumulate(np.where(chain_starts, np.arange(len(kept)), 0))
        would_repeat[kept] = joints > joints[chain_start]  # in …”… both dots after the joint
    return would_repeat
