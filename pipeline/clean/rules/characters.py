"""One pass over single characters, for the rules that need no context.

    newlines   CRLF, CR, NEL, U+2028, U+2029, VT and FF become LF
    controls   C0 and C1, byte order marks, zero-width and direction marks, soft hyphens, tags: dropped
    unicode    NFC; compatibility ideographs and radicals become unified characters, variation selectors are dropped;
               never NFKC, which would turn ，！？ into ASCII
    width      full-width digits and letters become ASCII, vertical brackets become horizontal ones; em spaces become
               ideographic ones, with which paragraphs are indented, and narrower ones ASCII

None of these characters is in the table of common ones (utf16.py), so a text whose other characters include none of
them is returned unchanged.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache
from typing import NamedTuple

import numpy as np

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rule import Counts, Effect, Ranges
from pipeline.clean.utf16 import (
    UNIT_COUNT,
    Utf16Text,
    contains_any,
    decode_utf16,
    delete_units,
    encode_utf16,
    positions_of,
    replace_units,
    units_at,
)

_DROPPED = 0xFFFF  # a noncharacter: marks dropped units in the replacement table
_NEWLINES = "\r\x0b\x0c\x85\u2028\u2029"
_CONTROLS: Ranges = (
    *((0x01, 0x08), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD), (0x200B, 0x200F), (0x202A, 0x202E)),
    *((0x2060, 0x2069), (0xFEFF, 0xFEFF), (0xFFFE, 0xFFFF)),
)
# Those that no language needs: all that is dropped from text that is not Chinese.
_UNIVERSAL_CONTROLS: Ranges = ((0x01, 0x08), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F), (0xFEFF, 0xFEFF))
_SELECTORS: Ranges = ((0xFE00, 0xFE0F),)
_KANGXI: Ranges = ((0x2F00, 0x2FD5),)
_COMPATIBILITY: Ranges = ((0xF900, 0xFAD9),)
_FULL_WIDTH: Ranges = ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A))
_COMPOSABLE: Ranges = ((0x300, 0x33FF), (0xA000, 0xABFF), (0xFA00, 0xFB4F))  # blocks that NFC may change
_VERTICAL = dict(zip("︽︾﹁﹂﹃﹄︵︶︻︼︿﹀", "《》「」『』（）【】〈〉", strict=True))
_SPACES = {**dict.fromkeys("\u2001\u2003", "\u3000"), **dict.fromkeys("\u2000\u2002\u202f\u205f", " ")}
_SPACES |= dict.fromkeys(map(chr, range(0x2004, 0x200B)), " ")
# Radicals of the supplement that are characters too. Unicode's own NFKC maps the Kangxi radicals.
_RADICALS = dict(
    zip(
        "⺁⺅⺆⺉⺊⺎⺐⺒⺓⺔⺕⺖⺗⺘⺙⺛⺝⺞⺟⺠⺡⺢⺣⺤⺦⺨⺩⺪⺬⺭⺯⺰⺶⺹⺺⺼⺽⺾⺿⻀⻁⻂⻃⻄⻅⻆⻈⻉⻊⻋⻌⻍⻎⻑⻒⻓⻔⻗⻘⻙⻚⻛⻜⻝⻟⻠⻢⻣⻤⻥⻦⻧⻨⻩⻪⻫⻬⻭⻮⻯⻰⻱⻲⻳",
        "厂亻冂刂卜兀尢巳幺彑彐忄㣺扌攵旡月歺母民氵氺灬爫丬犭王疋示礻糹纟羊耂肀月臼艹艹艹虎衤覀西见角讠贝足车辶辶辶長镸长门雨青韦页风飞食飠饣马骨鬼鱼鸟卤麦黄黾斉齐歯齿竜龙龜亀龟",
        strict=True,
    )
)
_TAGS = lazy_pattern("[\U000e0000-\U000e007f]")
_SUPPLEMENTARY_SELECTORS = lazy_pattern("[\U000e0100-\U000e01ef]")
_TAG_OR_SELECTOR = 0xDB40  # the high surrogate of both
_COMPATIBILITY_SUPPLEMENT = 0xD87E  # the high surrogate of U+2F800 to U+2FA1F


class _Tables(NamedTuple):
    """Tables over UTF-16 units."""

    replacement: np.ndarray  # the unit that replaces each unit, or _DROPPED
    units_of_rule: dict[str, np.ndarray]  # the units that each rule changes
    needs_work: np.ndarray  # bool: the unit is replaced or dropped, or text that holds it may not be in NFC
    needs_nfc: np.ndarray  # bool: text that holds the unit may not be in NFC


@cache
def _tables(chinese: bool) -> _Tables:
    identity = np.arange(UNIT_COUNT, dtype="<u2")
    if not chinese:
        replacement = _with_drops(identity, _UNIVERSAL_CONTROLS)
        changed = np.flatnonzero(replacement != identity)
        units_of_rule = {"newlines": _code_points(_NEWLINES), "controls": _within(changed, _UNIVERSAL_CONTROLS)}
        return _Tables(replacement, units_of_rule, replacement != identity, np.zeros(UNIT_COUNT, bool))
    replacement = _with_drops(identity, (*_CONTROLS, *_SELECTORS))
    for first, last in (*_KANGXI, *_FULL_WIDTH):
        for unit in range(first, last + 1):
            replacement[unit] = ord(unicodedata.normalize("NFKC", chr(unit)))
    for unit in range(_COMPATIBILITY[0][0], _COMPATIBILITY[0][1] + 1):
        unified = unicodedata.normalize("NFC", chr(unit))
        if len(unified) == 1 and ord(unified) < UNIT_COUNT:
            replacement[unit] = ord(unified)
    for old, new in (_VERTICAL | _SPACES | _RADICALS).items():
        replacement[ord(old)] = ord(new)
    is_changed = (replacement != identity) | (replacement == _DROPPED)  # U+FFFF maps to itself, and is dropped
    changed = np.flatnonzero(is_changed)
    units_of_rule = {
        "newlines": _code_points(_NEWLINES),
        "controls": _within(changed, _CONTROLS),
        "unicode": np.concatenate(
            (_within(changed, (*_SELECTORS, *_KANGXI, *_COMPATIBILITY)), _code_points("".join(_RADICALS)))
        ),
        "width": np.concatenate((_within(changed, _FULL_WIDTH), _code_points("".join(_VERTICAL | _SPACES)))),
    }
    needs_nfc = np.zeros(UNIT_COUNT, bool)
    for first, last in _COMPOSABLE:
        needs_nfc[first : last + 1] = _may_change_in_nfc([*map(chr, range(first, last + 1))])
    needs_nfc[0x1161:0x1200] = True  # Hangul vowels and finals, which compose with the letter before them
    needs_nfc[[_TAG_OR_SELECTOR, _COMPATIBILITY_SUPPLEMENT]] = True
    needs_nfc &= ~is_changed
    return _Tables(replacement, units_of_rule, needs_nfc | is_changed, needs_nfc)


def _with_drops(identity: np.ndarray, dropped: Ranges) -> np.ndarray:
    """Copy the table, drop these ranges and map all newlines to LF."""
    replacement = identity.copy()
    for first, last in dropped:
        replacement[first : last + 1] = _DROPPED
    replacement[_code_points(_NEWLINES)] = ord("\n")
    return replacement


def _code_points(characters: str) -> np.ndarray:
    return np.array([ord(character) for character in characters])


def _within(values: np.ndarray, ranges: Ranges) -> np.ndarray:
    inside: np.ndarray = values[np.any([(values >= first) & (values <= last) for first, last in ranges], axis=0)]
    return inside


def _may_change_in_nfc(characters: list[str]) -> list[bool]:
    """For each character, return True if it combines with others or has another canonical form."""
    return [
        unicodedata.normalize("NFC", character) != character or unicodedata.combining(character) > 0
        for character in characters
    ]


def normalise(text: Utf16Text, *, chinese: bool = True) -> tuple[Utf16Text, dict[str, Effect]]:
    """Return the page after these rules, and the effect of each rule by name.

    If the text is not Chinese, only newlines and control characters are changed.
    """
    replacement, units_of_rule, needs_work, needs_nfc = _tables(chinese)
    candidates = text.special_units if chinese else text.units
    affected = candidates[needs_work.take(candidates)]
    frequencies = np.bincount(affected, minlength=UNIT_COUNT) if len(affected) else np.zeros(UNIT_COUNT, int)
    effects = {name: Effect(counts=_counts(frequencies, units)) for name, units in units_of_rule.items()}
    if any(effect.counts for effect in effects.values()):
        if frequencies[ord("\r")] and contains_any(text, "\n"):
            returns = positions_of(text, "\r")
            crlf = returns[units_at(text, returns + 1) == ord("\n")]
            effects["newlines"].removed = len(crlf)
            text = delete_units(text, crlf)
        positions = text.special_positions[needs_work.take(text.special_units)]
        new_units = replacement.take(text.units[positions])
        for name, units in units_of_rule.items():
            effects[name].removed += int(frequencies[units[replacement[units] == _DROPPED]].sum())
        text = delete_units(replace_units(text, positions, new_units), positions[new_units == _DROPPED])
    return (_normalise_sequences(text, effects) if needs_nfc.take(affected).any() else text), effects


def _counts(frequencies: np.ndarray, units: np.ndarray) -> Counts:
    return Counter({f"U+{unit:04X}": int(frequencies[unit]) for unit in units[frequencies[units] > 0]})


def _normalise_sequences(page: Utf16Text, effects: dict[str, Effect]) -> Utf16Text:
    """Change what a table over units cannot: surrogate pairs, and characters that depend on their neighbours."""
    text, tag_count = _TAGS.subn("", decode_utf16(page))
    effects["controls"].removed += tag_count
    effects["controls"].counts["tags"] += tag_count
    text, selector_count = _SUPPLEMENTARY_SELECTORS.subn("", text)
    effects["unicode"].removed += selector_count
    effects["unicode"].counts["variation selectors"] += selector_count
    composed = unicodedata.normalize("NFC", text)
    effects["unicode"].count_change(len(text), len(composed))
    return encode_utf16(composed)
