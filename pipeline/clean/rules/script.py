"""Script: kept as it is, or made simplified or traditional by OpenCC.

OpenCC is slow (simplified 50 to 80 MB/s, traditional 14), so it sees only clauses in which something may change. Which
characters that are is asked of it once, one character at a time; those that change in company only are listed here.

OpenCC by itself is not idempotent: it knows 畢昇 → 毕昇, but would make of 毕昇 alone 毕升. So a character stays where
the way to the other script and back gives it again, and the conversion is repeated until nothing changes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import ModuleType

import numpy as np

from pipeline.clean.rule import Rule, Seen
from pipeline.clean.utf16 import HAN_BEYOND, HAN_UNITS, Codes, codes, distinct, spread, text_of
from pipeline.errors import BadConfig, InternalError

POLICIES = ("keep", "simplified", "traditional")
WARNING = "TRADITIONAL SCRIPT IS A GUESS where a simplified character stands for several"
_CONFIG = {"simplified": "t2s", "traditional": "s2t"}
_OTHER = {"simplified": "traditional", "traditional": "simplified"}
_PLANES = 0x40000  # code points; beyond them nothing is Chinese
_BLOCKS = ((0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480))  # where a character may change
_PARTS = "\0\n \t\u3000，。！？；：、“”‘’「」『』《》〈〉（）〔〕【】〖〗…—"  # no phrase of OpenCC's holds one of these
_SURROGATES = (0xD800, 0xE000)
_ROUNDS = 8  # two are enough for every phrase of OpenCC's; a text that needs more is not Chinese

# Of OpenCC 1.4, see test_script.py, which reads them from its dictionaries:
# what changes in a phrase and never alone (反覆 → 反复), what a phrase keeps that would change alone (畢昇 → 毕昇),
_IN_PHRASES = "哩坏沈甦瞭藉衹覆"
_KEPT_IN_PHRASES = "乾徵於昇氾祕蒐薹計釐陞麽"
# and simplified characters that stand for several traditional ones.
AMBIGUOUS = (
    "鉴僵熏曲淀漓铲链锄锫针钟钥钫钻镋镎镢镰鹇饥闲须郁酸适雇雕面采里证谥谷赝赞辟荐荡荫药迹胄背胜胡脏苏苔苹获虫跖腊腌范蒙蚝裥舍芸蔑蝎表袅耇艳藤蜡"
    "豆象膻致凄准凌几凶出厂历厘划别刮制千升卜占卤卷参发只台叶叹吁吃合吊同后向吣布帘席冢冬冲呆周哄哗岩岳庵克党具坐坛坝坯宁它家弥弦回团困复夫夸夹娘"
    "娴局咨咸咽啮尝尸尽当录彩唇奸志念干并幸广喂巨征径御借埙堤姜勋噪绱绷纤烟狸玩确硷私秋种筑筱签症炼琅矩糊系焰皂穗璇累浚挂挨挽栗核涂涌杆杠杯杰松"
    "板沈沾滟扇才扎托扣极果枪泛注恤恶拐拿游折抵戚捆捍据搜斗斤斫毁摆旋昆溪愈愿札术朱朴梁暗棱欲汇柜澄檗万丑个丰伙了于云亘仆仇仑价仿俊修余佛佣㐹"
)


def rule(script: str) -> Rule | None:
    """The rule for "keep" (none), "simplified" or "traditional".

    It counts every pair of characters that it changed: "後 → 后". Raises BadConfig where OpenCC is not installed, or
    where opencc-python-reimplemented is, which puts its own files in OpenCC's place.
    """
    if script not in POLICIES:
        raise BadConfig(f"no such script: {script!r}", hint=f"one of {', '.join(POLICIES)}")
    if script == "keep":
        return None
    _opencc()  # so that its want is said before any work
    return Rule("script", partial(_page, script), triggers=(*HAN_UNITS, HAN_BEYOND))


def risks(seen: Mapping[str, int]) -> dict[str, int]:
    """Of the counted pairs those whose left character stands for several traditional ones, most frequent first."""
    risky = {pair: count for pair, count in seen.items() if pair[0] in AMBIGUOUS}
    return dict(sorted(risky.items(), key=lambda item: (-item[1], item[0])))


def _page(script: str, page: Codes, seen: Seen) -> Codes:
    if not _units(script).take(page.units).any():
        return page
    text = np.frombuffer(text_of(page).encode("utf-32-le", "surrogatepass"), "<u4").copy()
    places = _clauses(text, _changes(script))
    before = text[places]
    after = _settled(script, before)
    text[places] = after
    changed = before != after
    pairs, counts = distinct((before[changed].astype(np.uint64) << 32) | after[changed])
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        seen[f"{chr(pair >> 32)} → {chr(pair & 0xFFFFFFFF)}"] += count
    return codes(text.tobytes().decode("utf-32-le", "surrogatepass"))


def _settled(script: str, text: np.ndarray) -> np.ndarray:
    """`text` (code points, whole clauses) converted until it stays as it is."""
    text = text.copy()
    places = np.arange(len(text))
    for _ in range(_ROUNDS):
        old = text[places]
        new = _once(script, old)
        if (old == new).all():
            break
        text[places] = new
        moved = np.zeros(len(text), bool)
        moved[places] = old != new
        places = _clauses(text, moved)
        part = text[places]
        places = places[_clauses(part, _changes(script))]
        if not len(places):
            break
    return text


def _once(script: str, text: np.ndarray) -> np.ndarray:
    """`text` converted, but for the characters that are already as they would come out of the other script."""
    new = _converted(script, text)
    doubtful = _clauses(text, _doubtful(script))
    if len(doubtful):
        old = text[doubtful]
        back = _converted(script, _converted(_OTHER[script], old))
        new[doubtful] = np.where(back == old, old, new[doubtful])
    return new


def _converted(script: str, text: np.ndarray) -> np.ndarray:
    torn = (text >= _SURROGATES[0]) & (text < _SURROGATES[1])  # halves of pairs cannot be converted, nor lost
    whole = np.where(torn, ord("\n"), text).astype("<u4")
    new = np.frombuffer(_converter(script)(whole.tobytes().decode("utf-32-le")).encode("utf-32-le"), "<u4")
    if len(new) != len(text):
        raise InternalError(
            f"OpenCC made {len(new):,} characters of {len(text):,}", hint="install the version in constraints.txt"
        )
    return np.where(torn, text, new)


def _clauses(text: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """All places in the clauses that hold a wanted character, each clause with the mark that ends it.

    `wanted` is a table over code points, or a mask as long as the text.
    """
    hits = np.flatnonzero(wanted if len(wanted) == len(text) else wanted.take(text, mode="clip"))
    ends = np.append(np.flatnonzero(_ends().take(text, mode="clip")) + 1, len(text))
    which = np.searchsorted(ends, hits, side="right")
    which = which[np.append(True, which[1:] != which[:-1])[: len(which)]]  # each once
    starts = np.concatenate(([0], ends[:-1]))
    return spread(starts[which], ends[which]) if len(which) else which


@cache
def _ends() -> np.ndarray:
    table = np.zeros(_PLANES, bool)
    table[[ord(mark) for mark in _PARTS]] = True
    table[slice(*_SURROGATES)] = True
    return table


@cache
def _changes(script: str) -> np.ndarray:
    """For every code point whether a clause that holds it may change."""
    table = np.zeros(_PLANES, bool)
    places = np.concatenate([np.arange(*block) for block in _BLOCKS])
    if script == "traditional":  # nearly every clause has a character that may change, and phrases are many
        table[places] = True
        return table
    alone = np.full(2 * len(places), ord("\n"), "<u4")
    alone[::2] = places
    table[places] = _converted(script, alone)[::2] != places
    table[[ord(character) for character in _IN_PHRASES]] = True
    return table


@cache
def _doubtful(script: str) -> np.ndarray:
    """For every code point whether a clause that holds it may in part be in the wanted script already."""
    if script == "traditional":
        return _changes("simplified")
    table = np.zeros(_PLANES, bool)
    table[[ord(character) for character in _KEPT_IN_PHRASES]] = True
    return table


@cache
def _units(script: str) -> np.ndarray:
    """`_changes` for UTF-16 units."""
    table = np.zeros(1 << 16, bool)
    table[:] = _changes(script)[: 1 << 16]
    beyond = np.flatnonzero(_changes(script)[1 << 16 :])
    table[0xD800 + (beyond >> 10)] = True
    return table


@cache
def _converter(script: str) -> Callable[[str], str]:
    convert: Callable[[str], str] = _opencc().OpenCC(_CONFIG[script]).convert
    return convert


def _opencc() -> ModuleType:
    from importlib import metadata  # takes longer to load than this package

    wrong = "opencc-python-reimplemented"
    repair = f"pip uninstall -y {wrong} opencc && pip install 'inkstone[zh]'"
    if any(metadata.distributions(name=wrong)):
        raise BadConfig(f"{wrong} is installed, which puts its own files in the place of OpenCC's", hint=repair)
    try:
        found = importlib.import_module("opencc")
    except ImportError as error:
        raise BadConfig("converting the script needs OpenCC", hint="pip install 'inkstone[zh]'") from error
    if not hasattr(found, "__version__"):  # OpenCC's own says which it is
        raise BadConfig("the installed module `opencc` is not OpenCC's own", hint=repair)
    return found
