"""Lacunae: signs for characters that are lost in the source. All become □.

■                   → □
囗囗, □囗           → □□; a single 囗 stays because it may be the character
天下●平，微芳比蕭●。→ □ inside a text; at its start ● is kept because it may be a bullet
一○七七年, 卷一九○  → 〇, the digit; in 列第六○五十六首 it separates two numbers, and stays
□○                  → □□; any other ○ stays
"""

from __future__ import annotations

import re

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rule import Counts, Rule, apply_to_lines, units
from pipeline.clean.utf16 import (
    BLANKS,
    HAN,
    LACUNA,
    Utf16Text,
    decode_utf16,
    delete_units,
    encode_utf16,
    positions_of,
)
from pipeline.errors import BadConfig

POLICIES = ("keep", "collapse", "drop-unit")

SIGNS = "■囗○●"
_ZERO = "〇"
_DIGIT = "一二三四五六七八九"
_NUMBER_CONTEXT = f"{_DIGIT}〇十百千万萬亿億零两兩廿卅{SIGNS}{LACUNA}"  # no complete number has one of these beside it
_COUNTED = "年月日岁歲卷頁页首章回條条號号冊册函篇人里世代则則步尺丈石斤字名家戶户處处"


# A ○ that is a digit, with its number
_CIRCLE = lazy_pattern(
    rf"""
      # a number written digit by digit; in one with 十 the circle separates two numbers
      (?<! [{_NUMBER_CONTEXT}] ) [{_DIGIT}] [{_DIGIT}〇]* ○ [{_DIGIT}〇○]* (?! [{_NUMBER_CONTEXT}] )
      (?: (?<! ○ ) | (?<= [{_DIGIT}〇○]{{2}} ○ ) | (?! [{HAN}] ) | (?= [{_COUNTED}] ) )
    | (?<= [{_DIGIT}] 百 ) ○ (?= [{_DIGIT}] (?! [{_NUMBER_CONTEXT}] ) )
    | (?<= [{_DIGIT}] 千 ) ○ (?= [{_DIGIT}] (?: 十 [{_DIGIT}]? )? (?! [{_NUMBER_CONTEXT}] ) )
    """,
    re.VERBOSE,
)
_RUN = lazy_pattern(f"[{SIGNS}{LACUNA}](?:[{BLANKS}]*[{SIGNS}{LACUNA}])*")  # blanks between them go later
_CERTAIN = lazy_pattern(f"[■{LACUNA}]|囗囗")
_CHINESE = lazy_pattern(f"[{HAN}]")
_CONTINUATION = lazy_pattern(
    f"[{HAN}，。；：、！？．,.;:!?]"
)  # ASCII marks included: this rule runs before they are widened


def rule(policy: str = "keep") -> Rule:
    """Return the rule that writes lacunae as □.

    With the policy "collapse" a run of □ becomes one. "drop-unit" does the same as "keep" here; the filter then drops
    the documents. Raises BadConfig for an unknown policy.
    """
    if policy not in POLICIES:
        raise BadConfig(f"--lacunae must be one of {', '.join(POLICIES)}, got {policy!r}", hint="choose one of these")

    def apply(text: Utf16Text, counts: Counts) -> Utf16Text:
        if len(signs := positions_of(text, SIGNS)):
            text = apply_to_lines(lambda lines: encode_utf16(_replace_signs(decode_utf16(lines), counts)), text, signs)
        lacunae = positions_of(text, LACUNA)
        if policy == "collapse":
            repeated = lacunae[1:][lacunae[1:] - lacunae[:-1] == 1]
            counts[f"{LACUNA}{LACUNA} → {LACUNA}"] += len(repeated)
            counts[LACUNA] -= len(repeated)
            text = delete_units(text, repeated)
        counts[LACUNA] += len(lacunae)
        return text

    return Rule("lacuna", apply, units(SIGNS + LACUNA), produces=LACUNA + _ZERO)


def _replace_signs(text: str, counts: Counts) -> str:
    text = _CIRCLE.sub(lambda number: _replace(counts, number[0], "○", _ZERO), text) if "○" in text else text
    return _RUN.sub(lambda run: _replace_run(run, counts), text)


def _replace_run(run: re.Match[str], counts: Counts) -> str:
    """Replace a complete run of signs if one of them is certainly a lacuna, except for bullets that start the text."""
    signs, text = run[0], run.string
    follows_chinese = run.start() > 0 and _CHINESE.match(text[run.start() - 1]) is not None
    core = signs if follows_chinese else signs.lstrip("●" + BLANKS)
    is_inside = follows_chinese and {*core} - {*BLANKS} == {"●"} and _CONTINUATION.match(text, run.end())
    if _CERTAIN.search(core) or is_inside:
        signs = signs[: len(signs) - len(core)]
        for sign in {*core} & {*SIGNS}:
            core = _replace(counts, core, sign, LACUNA)
        signs += core
    for sign in {*signs} & {*SIGNS}:
        counts[f"{sign} left"] += signs.count(sign)
    return signs


def _replace(counts: Counts, text: str, sign: str, replacement: str) -> str:
    if sign in text:
        counts[f"{sign} → {replacement}"] += text.count(sign)
    return text.replace(sign, replacement)
