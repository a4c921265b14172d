"""Cleaning rules: examples of each, and properties of all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.clean.options import CleanOptions
from pipeline.clean.profiles import PROFILES, Profile
from pipeline.clean.rule import Rule
from pipeline.clean.rule_names import RULES as RULE_NAMES
from pipeline.clean.rules import order, punctuation, quotes, whitespace
from tests.pipeline.clean.pages import apply_rule, normalise, remove_blank_lines
from tests.pipeline.clean.rules import slow_rules

Step = Callable[[str], str]


def step(rule: Rule) -> Step:
    return partial(apply_rule, rule)


CHARACTERS, BLANK_LINES = normalise, remove_blank_lines
WIDTH, QUOTES, SPACES, MARKS = (
    step(punctuation.WIDEN),
    step(quotes.CURL),
    step(whitespace.DELETE_SPACES),
    step(punctuation.COLLAPSE),
)
CHINESE = (WIDTH, QUOTES, SPACES, MARKS)
RULES = (CHARACTERS, *CHINESE, BLANK_LINES)
NAMES = ("characters", "widen", "quotes", "spaces", "marks", "blank-lines")
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇□]")

PIECES = (
    "林冲道㦸𤣥𠮷〇□豈\ue10e\U000f0001aZ09ａ９é"
    ",.!?;:()\"'-_~，。！？：；、“”‘’「」『』《》（）【】…—．·︽﹁⋯"
    " \t\u00a0\u3000\n\r\x0b\x0c\x85\u2028\x00\u200b\ufeff\u00ad"
)
RUNS = ("...", "。。。", "......", "--", "。。", "，，", "……", "——", "\r\n", "\n\n")
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.sampled_from(RUNS)), max_size=16).map("".join)


def test_rules_run_in_the_documented_order() -> None:
    profile, options = PROFILES["plain"], CleanOptions()
    before = [rule.name for rule in order.before_headings(profile, options)]
    assert before == [*("entities", "site-ads", "shifted", "unwrap", "gaiji", "mojibake", "lacuna", "widen", "notes")]
    after = [rule.name for rule in order.after_headings(profile, options)]
    assert after == ["quotes", "spaces", "gaiji", "mojibake", "lacuna", "widen", "marks", "verse"]


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_no_unwrap_joins_no_lines_in_any_profile(profile: Profile) -> None:
    assert "unwrap" not in {rule.name for rule in order.before_headings(profile, CleanOptions(unwrap=False))}


def test_every_rule_can_be_switched_off_by_name() -> None:
    options = CleanOptions(
        unwrap=True,
        notes=("footnotes=drop",),
        boilerplate=("广告",),
        quotes="corner",
        script="simplified",
        punct="strip",
        variants="",
    )
    profile = PROFILES["plain"]
    names = {rule.name for rule in (*order.before_headings(profile, options), *order.after_headings(profile, options))}
    assert names | {"variants"} == {*RULE_NAMES}


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        (CHARACTERS, "a\r\nb\rc\x85d\u2028e\u2029f\x0bg\x0ch", "a\nb\nc\nd\ne\nf\ng\nh"),
        (CHARACTERS, "a\r\r\nb\n\r\nc", "a\n\nb\n\nc"),
        (CHARACTERS, "林\u200b冲", "林冲"),
        (CHARACTERS, "林\uffff冲\ufffe", "林冲"),
        (CHARACTERS, "\ufeff林\x00冲\x1b\x7f\x80\x9f", "林冲"),
        (CHARACTERS, "林冲\u200b\u00ad\u200e\u202e\u2066\u2060\U000e0041", "林冲"),
        (CHARACTERS, "a\tb\nc", "a\tb\nc"),
        (CHARACTERS, "豈⼈⻊\ufe00", "豈人足"),
        (CHARACTERS, "e\u0301 豈󠄀", "é 豈"),
        (WIDTH, "连天.宋江", "连天。宋江"),
        (WIDTH, "喊声连天．宋江寻思道", "喊声连天。宋江寻思道"),
        (CHARACTERS, "３．１４", "3．14"),
        (WIDTH, "3．14", "3.14"),
        (WIDTH, "www．txt80．com．第一回", "www.txt80.com。第一回"),
        (WIDTH, "1．张三\n　　A．甲；B．乙", "1.张三\n　　A.甲；B.乙"),
        (WIDTH, "公元1920．他ok．走", "公元1920。他ok。走"),
        (CHARACTERS, "百\u2009姓\u2003玄\u202f德", "百 姓\u3000玄 德"),
        (CHARACTERS, "ＡＢＣｘｙｚ", "ABCxyz"),
        (WIDTH, "好,快!走?是;说:(注)完", "好，快！走？是；说：（注）完"),
        (CHARACTERS, "︽史記︾﹁可﹂", "《史記》「可」"),
        (WIDTH, "版本 3.14 与 v1.0", "版本 3.14 与 v1.0"),
        (WIDTH, "说完.", "说完。"),
        (WIDTH, "见 README.md 文", "见 README.md 文"),
        (QUOTES, '说道："大相国寺，搅扰。"那', "说道：“大相国寺，搅扰。”那"),
        (QUOTES, '"林冲"', "“林冲”"),
        (QUOTES, "他道：“唤作'玉幡竿'孟康。”", "他道：“唤作‘玉幡竿’孟康。”"),
        (QUOTES, "「可乎？」『善哉』“‘好’”", "「可乎？」『善哉』“‘好’”"),
        (QUOTES, '"走！"\n"来！"', "“走！”\n“来！”"),
        (QUOTES, '说："走。\n说："来。"', "说：“走。\n说：“来。”"),
        (SPACES, "史 进", "史进"),
        (SPACES, "　　话说\u00a0大宋\t天下 。", "话说大宋天下。"),
        (SPACES, "hello world 你好", "hello world你好"),
        (SPACES, "  a b  \n\tc d\t", "a b\nc d"),
        (SPACES, "王进道： “太公放心”", "王进道：“太公放心”"),
        (MARKS, "走，，快", "走，快"),
        (MARKS, "走。。", "走。"),
        (MARKS, "好...", "好……"),
        (MARKS, "好。。。", "好……"),
        (MARKS, "好⋯⋯快", "好……快"),
        (MARKS, "好………………", "好……"),
        (MARKS, "好--走", "好——走"),
        (MARKS, "好————走", "好——走"),
        (MARKS, "可乎？！", "可乎？！"),
        (MARKS, "迭配……州", "迭配……州"),
        (MARKS, "高、、低；；远：：近", "高、低；远：近"),
        (BLANK_LINES, "\n\n甲\n\n\n乙\n", "甲\n乙"),
        (BLANK_LINES, "\n\n", ""),
    ],
)
def test_rule_changes_its_example(rule: Step, text: str, expected: str) -> None:
    assert rule(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        'He said, "Hello, world!" and left; nobody (not even she) knew: why?',
        "It's 3.14 -- or so... maybe. (see p. 5)",
        "a,, b;; c:: \"'quoted'\"",
        "x = f(a, b)[0]; y: int",
    ],
)
@pytest.mark.parametrize("rule", CHINESE, ids=NAMES[1:5])
def test_english_text_with_ascii_marks_is_unchanged(rule: Step, text: str) -> None:
    assert rule(text) == text


@pytest.mark.parametrize(
    ("rule", "text"), [(WIDTH, "“Hello,” she said."), (SPACES, "“Hello,” she said."), (SPACES, "a — b")]
)
def test_english_text_with_curly_quotes_and_dashes_is_unchanged(rule: Step, text: str) -> None:
    assert rule(text) == text


def test_words_between_chinese_quotes_keep_their_spaces() -> None:
    text = '他说："hello, world"了'
    for rule in CHINESE:
        text = rule(text)
    assert text == "他说：“hello, world”了"


def test_rare_characters_pass_through_every_rule() -> None:
    rare = "𤣥𢎞𠮷𧍪㦸䆉﨑\ue10e\U000f0001〇□"
    for rule in RULES:
        assert rule(rare) == rare


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@given(text=TEXT)
def test_no_rule_lengthens_the_text(rule: Step, text: str) -> None:
    assert len(rule(text)) <= len(text)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@given(text=TEXT)
def test_no_rule_changes_the_multiset_of_han_characters(rule: Step, text: str) -> None:
    assert Counter(HAN.findall(rule(text))) == Counter(HAN.findall(text))


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@given(text=TEXT)
def test_no_rule_removes_a_private_use_character(rule: Step, text: str) -> None:
    private = re.compile("[\ue000-\uf8ff\U000f0000-\U0010ffff]")
    assert private.findall(rule(text)) == private.findall(text)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@given(text=TEXT)
@example("好,!")
@example('汉""a')
@example("好…...")
@example("好——--")
def test_every_rule_is_idempotent(rule: Step, text: str) -> None:
    once = rule(text)
    assert rule(once) == once


@given(TEXT)
@example("汉 ,a")
def test_all_rules_together_are_idempotent(text: str) -> None:
    once = _all(text)
    assert _all(once) == once


@given(TEXT)
def test_output_has_no_controls_no_empty_lines_and_no_spaces_beside_han(text: str) -> None:
    cleaned = _all(text)
    assert not re.search("[\ufeff\r\x00\u200b\u2028\x85]", cleaned)
    assert "\n\n" not in cleaned
    assert not re.search(rf"(?:{HAN.pattern})[ \t\u3000]|[ \t\u3000](?:{HAN.pattern})", cleaned)


def _all(text: str) -> str:
    for rule in RULES:
        text = rule(text)
    return text


# The vectorised rules and their references

PLAIN = TEXT.map(normalise)


@settings(max_examples=2000)
@pytest.mark.parametrize(("fast", "slow"), [*zip(CHINESE, slow_rules.CHINESE, strict=True)], ids=NAMES[1:5])
@given(text=PLAIN)
def test_rule_equals_its_reference(fast: Step, slow: slow_rules.Reference, text: str) -> None:
    assert fast(text) == slow.apply(text)


@pytest.mark.parametrize("book", ["shuihu_raw.txt", "song_ci.txt"])
def test_rules_equal_their_references_on_real_books(shared: Path, book: str) -> None:
    fast = slow = normalise((shared / "data" / book).read_text(encoding="utf-8"))
    for rule, reference in zip(CHINESE, slow_rules.CHINESE, strict=True):
        fast, slow = rule(fast), reference.apply(slow)
        assert fast == slow
