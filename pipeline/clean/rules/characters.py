"""One pass over single characters: what none of them needs its neighbours for.

    newlines   CRLF, CR, NEL, U+2028, U+2029, VT and FF become LF
    controls   C0 and C1, byte order marks, zero-width and direction marks, soft hyphens, tags: dropped
    unicode    NFC; compatibility ideographs and radicals become the unified characters, variation selectors go;
               never NFKC, which would turn ，！？ into ASCII
    width      full-width digits and letters become ASCII, vertical brackets become those of horizontal text

None of these characters is a plain one (codes.py), so a text that has none of them among its odd ones is left as it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import NamedTuple

import numpy as np

from pipeline.clean.rule import Effect, Ranges, Seen
from pipeline.clean.utf16 import UNITS, Codes, codes, has, places, replaced, text_of, unit_at, without

_GONE = 0xFFFF  # no character: stands in the table for what is dropped
_NEWLINES = "\r\x0b\x0c\x85\u2028\u2029"
_CONTROLS: Ranges = (
    *((0x01, 0x08), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD), (0x200B, 0x200F), (0x202A, 0x202E)),
    *((0x2060, 0x2069), (0xFEFF, 0xFEFF), (0xFFFE, 0xFFFF)),
)
_PLAIN_CONTROLS: Ranges = ((0x01, 0x08), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F), (0xFEFF, 0xFEFF))  # of any language
_SELECTORS: Ranges = ((0xFE00, 0xFE0F),)
_KANGXI: Ranges = ((0x2F00, 0x2FD5),)
_COMPATIBILITY: Ranges = ((0xF900, 0xFAD9),)
_WIDE: Ranges = ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A))
_NOT_HAN: Ranges = ((0x300, 0x33FF), (0xA000, 0xABFF), (0xFA00, 0xFB4F))  # where characters may need composing
_VERTICAL = dict(zip("︽︾﹁﹂﹃﹄︵︶︻︼︿﹀", "《》「」『』（）【】〈〉", strict=True))
# Radicals of the supplement that are characters of their own; the Kangxi ones Unicode maps by itself.
_RADICALS = dict(
    zip(
        "⺁⺅⺆⺉⺊⺎⺐⺒⺓⺔⺕⺖⺗⺘⺙⺛⺝⺞⺟⺠⺡⺢⺣⺤⺦⺨⺩⺪⺬⺭⺯⺰⺶⺹⺺⺼⺽⺾⺿⻀⻁⻂⻃⻄⻅⻆⻈⻉⻊⻋⻌⻍⻎⻑⻒⻓⻔⻗⻘⻙⻚⻛⻜⻝⻟⻠⻢⻣⻤⻥⻦⻧⻨⻩⻪⻫⻬⻭⻮⻯⻰⻱⻲⻳",
        "厂亻冂刂卜兀尢巳幺彑彐忄㣺扌攵旡月歺母民氵氺灬爫丬犭王疋示礻糹纟羊耂肀月臼艹艹艹虎衤覀西见角讠贝足车辶辶辶長镸长门雨青韦页风飞食飠饣马骨鬼鱼鸟卤麦黄黾斉齐歯齿竜龙龜亀龟",
        strict=True,
    )
)
_TAGS = re.compile("[\U000e0000-\U000e007f]")
_MORE_SELECTORS = re.compile("[\U000e0100-\U000e01ef]")
_TAG_OR_SELECTOR = 0xDB40  # the first unit of both
_COMPATIBILITY_SUPPLEMENT = 0xD87E  # the first unit of U+2F800 to U+2FA1F


class _Tables(NamedTuple):
    becomes: np.ndarray  # of each unit
    rules: dict[str, np.ndarray]  # the units that each rule changes
    work: np.ndarray  # of each unit whether it is one of these, or makes it uncertain that a text is in NFC
    loose: np.ndarray  # of each unit whether it does the latter


@cache
def _tables(chinese: bool) -> _Tables:
    same = np.arange(UNITS, dtype="<u2")
    if not chinese:
        becomes = _mapped(same, _PLAIN_CONTROLS)
        rules = {"newlines": _numbers(_NEWLINES), "controls": _in(np.flatnonzero(becomes != same), _PLAIN_CONTROLS)}
        return _Tables(becomes, rules, becomes != same, np.zeros(UNITS, bool))
    becomes = _mapped(same, (*_CONTROLS, *_SELECTORS))
    for first, last in (*_KANGXI, *_WIDE):
        for unit in range(first, last + 1):
            becomes[unit] = ord(unicodedata.normalize("NFKC", chr(unit)))
    for unit in range(_COMPATIBILITY[0][0], _COMPATIBILITY[0][1] + 1):
        plain = unicodedata.normalize("NFC", chr(unit))
        if len(plain) == 1 and ord(plain) < UNITS:
            becomes[unit] = ord(plain)
    for old, new in (_VERTICAL | _RADICALS).items():
        becomes[ord(old)] = ord(new)
    work = (becomes != same) | (becomes == _GONE)  # U+FFFF is both itself and gone
    changed = np.flatnonzero(work)
    rules = {
        "newlines": _numbers(_NEWLINES),
        "controls": _in(changed, _CONTROLS),
        "unicode": np.concatenate(
            (_in(changed, (*_SELECTORS, *_KANGXI, *_COMPATIBILITY)), _numbers("".join(_RADICALS)))
        ),
        "width": np.concatenate((_in(changed, _WIDE), _numbers("".join(_VERTICAL)))),
    }
    loose = np.zeros(UNITS, bool)
    for first, last in _NOT_HAN:
        loose[first : last + 1] = _need_nfc([*map(chr, range(first, last + 1))])
    loose[0x1161:0x1200] = True  # which make syllables with what stands before them
    loose[[_TAG_OR_SELECTOR, _COMPATIBILITY_SUPPLEMENT]] = True
    loose &= ~work
    return _Tables(becomes, rules, loose | work, loose)


def _mapped(same: np.ndarray, gone: Ranges) -> np.ndarray:
    becomes = same.copy()
    for first, last in gone:
        becomes[first : last + 1] = _GONE
    becomes[_numbers(_NEWLINES)] = ord("\n")
    return becomes


def _numbers(characters: str) -> np.ndarray:
    return np.array([ord(each) for each in characters])


def _in(numbers: np.ndarray, ranges: Ranges) -> np.ndarray:
    found: np.ndarray = numbers[np.any([(numbers >= first) & (numbers <= last) for first, last in ranges], axis=0)]
    return found


def _need_nfc(characters: list[str]) -> list[bool]:
    """Whether text with each of these may not be in NFC: it combines, or stands for another one."""
    return [unicodedata.normalize("NFC", each) != each or unicodedata.combining(each) > 0 for each in characters]


def normalise(text: Codes, *, chinese: bool = True) -> tuple[Codes, dict[str, Effect]]:
    """The page after the rules, and what each of them did.

    Text that is not Chinese only gets its newlines and controls mended.
    """
    becomes, rules, work, loose = _tables(chinese)
    units = text.odd_units if chinese else text.units
    met = units[work.take(units)]
    found = np.bincount(met, minlength=UNITS) if len(met) else np.zeros(UNITS, int)
    effects = {name: Effect(seen=_met(found, of)) for name, of in rules.items()}
    if any(each.seen for each in effects.values()):
        if found[ord("\r")] and has(text, "\n"):
            returns = places(text, "\r")
            pairs = returns[unit_at(text, returns + 1) == ord("\n")]
            effects["newlines"].removed = len(pairs)
            text = without(text, pairs)
        at = text.odd[work.take(text.odd_units)]
        made = becomes.take(text.units[at])
        for name, of in rules.items():
            effects[name].removed += int(found[of[becomes[of] == _GONE]].sum())
        text = without(replaced(text, at, made), at[made == _GONE])
    return (_beyond_the_table(text, effects) if loose.take(met).any() else text), effects


def _met(found: np.ndarray, units: np.ndarray) -> Seen:
    return Counter({f"U+{unit:04X}": int(found[unit]) for unit in units[found[units] > 0]})


def _beyond_the_table(page: Codes, effects: dict[str, Effect]) -> Codes:
    """What is more than one unit, or depends on what stands beside it."""
    text, tags = _TAGS.subn("", text_of(page))
    effects["controls"].removed += tags
    effects["controls"].seen["tags"] += tags
    text, selectors = _MORE_SELECTORS.subn("", text)
    effects["unicode"].removed += selectors
    effects["unicode"].seen["variation selectors"] += selectors
    composed = unicodedata.normalize("NFC", text)
    effects["unicode"].differ(len(text), len(composed))
    return codes(composed)
