"""Lacunae: characters that are lost in the source are written □, and only so.

■                   → □
囗囗, □囗           → □□: the character 囗 only where it cannot be meant
天下●平，微芳比蕭●。→ □: where the text goes on; where it begins ● is a bullet, or nobody knows
一○七七年, 卷一九○  → 〇: the digit; in 列第六○五十六首 it parts two numbers, and stays
□○                  → □□; any other ○ stays
"""

from __future__ import annotations

import re
from functools import cache

from pipeline.clean.rule import Rule, Seen, on_lines, units
from pipeline.clean.utf16 import HAN, LACUNA, Codes, codes, places, text_of, without
from pipeline.errors import BadConfig

POLICIES = ("keep", "collapse", "drop-unit")

_ODD = "■囗○●"
_ZERO = "〇"
_DIGIT = "一二三四五六七八九"
_BESIDE = f"{_DIGIT}〇十百千万萬亿億零两兩廿卅{_ODD}{LACUNA}"  # what a number must not go on with
_COUNTED = "年月日岁歲卷頁页首章回條条號号冊册函篇人里世代则則步尺丈石斤字名家戶户處处"


@cache
def _circle() -> re.Pattern[str]:  # which takes long to compile
    return re.compile(
        rf"""
          # the digits of one number, said one by one: in a run with a 十 it parts two numbers
          (?<! [{_BESIDE}] ) [{_DIGIT}] [{_DIGIT}〇]* ○ [{_DIGIT}〇○]* (?! [{_BESIDE}] )
          (?: (?<! ○ ) | (?<= [{_DIGIT}〇○]{{2}} ○ ) | (?! [{HAN}] ) | (?= [{_COUNTED}] ) )
        | (?<= [{_DIGIT}] 百 ) ○ (?= [{_DIGIT}] (?! [{_BESIDE}] ) )
        | (?<= [{_DIGIT}] 千 ) ○ (?= [{_DIGIT}] (?: 十 [{_DIGIT}]? )? (?! [{_BESIDE}] ) )
        """,
        re.VERBOSE,
    )


_RUN = re.compile(f"[{_ODD}{LACUNA}]+")
_SURE = re.compile(f"[■{LACUNA}]|囗囗")
_CHINESE = re.compile(f"[{HAN}]")
_GOES_ON = re.compile(f"[{HAN}，。；：、！？,.;:!?]")  # the ASCII ones are still to become wide


def rule(policy: str = "keep") -> Rule:
    """Writes lacunae as □. collapse: a run of them is one; drop-unit: as keep, the filter drops. Raises BadConfig."""
    if policy not in POLICIES:
        raise BadConfig(f"no policy {policy!r} for lacunae", hint=f"policies: {', '.join(POLICIES)}")

    def apply(text: Codes, seen: Seen) -> Codes:
        if len(odd := places(text, _ODD)):
            text = on_lines(lambda lines: codes(_written(text_of(lines), seen)), text, odd)
        lost = places(text, LACUNA)
        if policy == "collapse":
            again = lost[1:][lost[1:] - lost[:-1] == 1]
            seen[f"{LACUNA}{LACUNA} → {LACUNA}"] += len(again)
            seen[LACUNA] -= len(again)
            text = without(text, again)
        seen[LACUNA] += len(lost)
        return text

    return Rule("lacuna", apply, units(_ODD + LACUNA), makes=LACUNA + _ZERO)


def _written(text: str, seen: Seen) -> str:
    text = _circle().sub(lambda number: _count(seen, number[0], "○", _ZERO), text) if "○" in text else text
    return _RUN.sub(lambda run: _lost(run, seen), text)


def _lost(run: re.Match[str], seen: Seen) -> str:
    """A sure lacuna makes one of everything that it stands with, but for bullets that the text begins with."""
    marks, text = run[0], run.string
    inside = run.start() > 0 and _CHINESE.match(text[run.start() - 1]) is not None
    core = marks if inside else marks.lstrip("●")
    if _SURE.search(core) or (inside and set(core) == {"●"} and _GOES_ON.match(text, run.end())):
        for mark in {*core} - {LACUNA}:
            _count(seen, core, mark, LACUNA)
        marks = marks[: len(marks) - len(core)] + LACUNA * len(core)
    for mark in {*marks} - {LACUNA}:
        seen[f"{mark} left"] += marks.count(mark)
    return marks


def _count(seen: Seen, text: str, mark: str, becomes: str) -> str:
    if mark in text:
        seen[f"{mark} → {becomes}"] += text.count(mark)
    return text.replace(mark, becomes)
