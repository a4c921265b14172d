"""Script: kept, or converted to simplified or traditional by OpenCC.

OpenCC is slow (simplified 50 to 80 MB/s, traditional 14), so it gets only clauses in which something may change. The
characters that change alone are taken from OpenCC at run time; those that change only in phrases are listed here.

OpenCC is not idempotent: it converts 畢昇 to 毕昇, but would convert 毕昇 to 毕升. So a character is kept if converting
it to the other script and back returns it, and the conversion is repeated until nothing changes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import ModuleType

import numpy as np

from pipeline.clean.rule import Counts, Rule
from pipeline.clean.utf16 import (
    HAN_HIGH_SURROGATES,
    HAN_UNITS,
    Utf16Text,
    count_distinct,
    decode_utf16,
    encode_utf16,
    expand_ranges,
)
from pipeline.errors import BadConfig, InternalError, install_command

POLICIES = ("keep", "simplified", "traditional")
WARNING = "TRADITIONAL SCRIPT IS A GUESS where a simplified character stands for several"
_CONFIG = {"simplified": "t2s", "traditional": "s2t"}
_OTHER = {"simplified": "traditional", "traditional": "simplified"}
_CODE_POINTS = 0x40000  # size of tables; no Chinese character is beyond
_BLOCKS = ((0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480))  # where characters may change
_SEPARATORS = (
    "\0\n \t\u3000，。！？；：、“”‘’「」『』《》〈〉（）〔〕【】〖〗…—"  # no OpenCC phrase contains one of these
)
_SURROGATES = (0xD800, 0xE000)
_MAX_ROUNDS = 8  # two are enough for every OpenCC phrase; a text that needs more is not Chinese

# From the dictionaries of OpenCC 1.4; test_script.py compares them.
# Characters that change in a phrase but not alone (反覆 → 反复):
_IN_PHRASES = "哩坏沈甦瞭藉衹覆"
# Characters that change alone but not in certain phrases (畢昇 → 毕昇):
_KEPT_IN_PHRASES = "乾徵於昇氾祕蒐薹計釐陞麽"
# Simplified characters that stand for several traditional ones:
AMBIGUOUS = (
    "鉴僵熏曲淀漓铲链锄锫针钟钥钫钻镋镎镢镰鹇饥闲须郁酸适雇雕面采里证谥谷赝赞辟荐荡荫药迹胄背胜胡脏苏苔苹获虫跖腊腌范蒙蚝裥舍芸蔑蝎表袅耇艳藤蜡"
    "豆象膻致凄准凌几凶出厂历厘划别刮制千升卜占卤卷参发只台叶叹吁吃合吊同后向吣布帘席冢冬冲呆周哄哗岩岳庵克党具坐坛坝坯宁它家弥弦回团困复夫夸夹娘"
    "娴局咨咸咽啮尝尸尽当录彩唇奸志念干并幸广喂巨征径御借埙堤姜勋噪绱绷纤烟狸玩确硷私秋种筑筱签症炼琅矩糊系焰皂穗璇累浚挂挨挽栗核涂涌杆杠杯杰松"
    "板沈沾滟扇才扎托扣极果枪泛注恤恶拐拿游折抵戚捆捍据搜斗斤斫毁摆旋昆溪愈愿札术朱朴梁暗棱欲汇柜澄檗万丑个丰伙了于云亘仆仇仑价仿俊修余佛佣㐹"
)


def rule(script: str) -> Rule | None:
    """Return the rule for "simplified" or "traditional"; None for "keep".

    The rule counts every changed pair of characters: "後 → 后". Raises BadConfig if OpenCC is not installed, or if
    opencc-python-reimplemented is, which overwrites the files of OpenCC.
    """
    if script not in POLICIES:
        raise BadConfig(f"--script must be one of {', '.join(POLICIES)}, got {script!r}", hint="choose one of these")
    if script == "keep":
        return None
    _opencc()  # fail before any work if it is missing
    return Rule("script", partial(_convert_page, script), triggers=(*HAN_UNITS, HAN_HIGH_SURROGATES))


def ambiguous_pairs(pairs: Mapping[str, int]) -> dict[str, int]:
    """Return the counted pairs whose left character stands for several traditional ones, most frequent first."""
    risky = {pair: count for pair, count in pairs.items() if pair[0] in AMBIGUOUS}
    return dict(sorted(risky.items(), key=lambda item: (-item[1], item[0])))


def _convert_page(script: str, page: Utf16Text, counts: Counts) -> Utf16Text:
    if not _unit_may_change(script).take(page.units).any():
        return page
    text = np.frombuffer(decode_utf16(page).encode("utf-32-le", "surrogatepass"), "<u4").copy()
    positions = _clause_positions(text, _may_change(script))
    before = text[positions]
    after = _convert_fully(script, before)
    text[positions] = after
    changed = before != after
    pairs, frequencies = count_distinct((before[changed].astype(np.uint64) << 32) | after[changed])
    for pair, count in zip(pairs.tolist(), frequencies.tolist(), strict=True):
        counts[f"{chr(pair >> 32)} → {chr(pair & 0xFFFFFFFF)}"] += count
    return encode_utf16(text.tobytes().decode("utf-32-le", "surrogatepass"))


def _convert_fully(script: str, text: np.ndarray) -> np.ndarray:
    """Convert `text` (code points of complete clauses) until nothing changes."""
    text = text.copy()
    positions = np.arange(len(text))
    for _ in range(_MAX_ROUNDS):
        old = text[positions]
        new = _convert_once(script, old)
        if (old == new).all():
            break
        text[positions] = new
        is_changed = np.zeros(len(text), bool)
        is_changed[positions] = old != new
        positions = _clause_positions(text, is_changed)
        positions = positions[_clause_positions(text[positions], _may_change(script))]
        if not len(positions):
            break
    return text


def _convert_once(script: str, text: np.ndarray) -> np.ndarray:
    """Convert `text`, except for characters that a round trip through the other script returns."""
    new = _opencc_convert(script, text)
    positions = _clause_positions(text, _may_be_converted(script))
    if len(positions):
        old = text[positions]
        round_trip = _opencc_convert(script, _opencc_convert(_OTHER[script], old))
        new[positions] = np.where(round_trip == old, old, new[positions])
    return new


def _opencc_convert(script: str, text: np.ndarray) -> np.ndarray:
    is_surrogate = (text >= _SURROGATES[0]) & (text < _SURROGATES[1])  # lone ones: kept, because OpenCC rejects them
    valid = np.where(is_surrogate, ord("\n"), text).astype("<u4")
    new = np.frombuffer(_converter(script)(valid.tobytes().decode("utf-32-le")).encode("utf-32-le"), "<u4")
    if len(new) != len(text):
        raise InternalError(
            f"OpenCC returned {len(new):,} characters for {len(text):,}", hint="install the version in constraints.txt"
        )
    return np.where(is_surrogate, text, new)


def _clause_positions(text: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Return all positions of the clauses that hold a selected character, including the separator that ends each.

    `selected` is a table over code points, or a mask as long as the text.
    """
    hits = np.flatnonzero(selected if len(selected) == len(text) else selected.take(text, mode="clip"))
    ends = np.append(np.flatnonzero(_is_separator().take(text, mode="clip")) + 1, len(text))
    clauses = np.searchsorted(ends, hits, side="right")
    clauses = clauses[np.append(True, clauses[1:] != clauses[:-1])[: len(clauses)]]  # without repeats
    starts = np.concatenate(([0], ends[:-1]))
    return expand_ranges(starts[clauses], ends[clauses]) if len(clauses) else clauses


@cache
def _is_separator() -> np.ndarray:
    table = np.zeros(_CODE_POINTS, bool)
    table[[ord(mark) for mark in _SEPARATORS]] = True
    table[slice(*_SURROGATES)] = True
    return table


@cache
def _may_change(script: str) -> np.ndarray:
    """Table over code points: a clause that holds one of them may change."""
    table = np.zeros(_CODE_POINTS, bool)
    code_points = np.concatenate([np.arange(*block) for block in _BLOCKS])
    if script == "traditional":  # nearly every clause has a character that may change, and phrases are many
        table[code_points] = True
        return table
    one_a_line = np.full(2 * len(code_points), ord("\n"), "<u4")
    one_a_line[::2] = code_points
    table[code_points] = _opencc_convert(script, one_a_line)[::2] != code_points
    table[[ord(character) for character in _IN_PHRASES]] = True
    return table


@cache
def _may_be_converted(script: str) -> np.ndarray:
    """Table over code points: a clause that holds one of them may partly be in the target script already."""
    if script == "traditional":
        return _may_change("simplified")
    table = np.zeros(_CODE_POINTS, bool)
    table[[ord(character) for character in _KEPT_IN_PHRASES]] = True
    return table


@cache
def _unit_may_change(script: str) -> np.ndarray:
    """`_may_change` as a table over UTF-16 units."""
    table = np.zeros(1 << 16, bool)
    table[:] = _may_change(script)[: 1 << 16]
    beyond = np.flatnonzero(_may_change(script)[1 << 16 :])
    table[0xD800 + (beyond >> 10)] = True
    return table


@cache
def _converter(script: str) -> Callable[[str], str]:
    convert: Callable[[str], str] = _opencc().OpenCC(_CONFIG[script]).convert
    return convert


def _opencc() -> ModuleType:
    from importlib import metadata  # slower to import than this package

    impostor = "opencc-python-reimplemented"
    repair = f"pip uninstall -y {impostor} opencc && {install_command('zh')}"
    if any(metadata.distributions(name=impostor)):
        raise BadConfig(f"{impostor} is installed, which overwrites the files of OpenCC", hint=repair)
    try:
        module = importlib.import_module("opencc")
    except ImportError as error:
        raise BadConfig("--script needs OpenCC", hint=install_command("zh")) from error
    if not hasattr(module, "__version__"):  # the original OpenCC has one
        raise BadConfig("the installed module `opencc` is not the original OpenCC", hint=repair)
    return module
