"""Punctuation: stripped without losing a letter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.rules.punctuation import WIDEN, rule
from pipeline.clean.utf16 import decode_utf16, encode_utf16, join_documents, split_documents
from pipeline.errors import BadConfig
from tests.pipeline.clean.rules import slow_rules


def stripped(text: str, policy: str = "strip", counts: Counter[str] | None = None) -> str:
    punct = rule(policy)
    assert punct is not None
    return decode_utf16(punct.apply(encode_utf16(text), Counter() if counts is None else counts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("天高，地厚。", "天高地厚"),
        ("曰：「可乎？！」遂行……", "曰可乎遂行"),
        ("“走”——‘快’", "走快"),
        ("（自注：《史記》〔一〕【二】）", "自注史記一二"),
        ('他道:"好!"', "他道好"),
        ("列夫·托尔斯泰", "列夫托尔斯泰"),
        ("𤣥德(備)", "𤣥德備"),
        ("肐□地，一〇七", "肐□地一〇七"),
        ("玉\ue001,竿", "玉\ue001竿"),
        ("3.14，a-b", "3.14a-b"),
        ("Hello, world! “Yes,” he said… (no)", "Hello, world! “Yes,” he said… (no)"),
        ("他说“Hello, world!”了", "他说Hello, world了"),
        ("他说：“Hello.”\n……\n“—", "他说Hello.”\n\n"),
        ("一。\n二，\n", "一\n二\n"),
        ("史 進，", "史 進"),
        ("", ""),
        ("。！？", ""),
    ],
)
def test_strip_removes_only_the_punctuation_of_chinese_text(text: str, expected: str) -> None:
    assert stripped(text) == expected


@pytest.mark.parametrize(
    ("policy", "text", "expected"),
    [
        ("only:。，！？", "曰：「可乎？！」遂行；去、来。", "曰可乎？！遂行去来。"),
        ("only:。", "“好。”。然", "好。然"),
        ("only:，", "甲，、，乙，“，”，丙", "甲，乙，丙"),
        ("only:…", "“走……”……去", "走……去"),
        ("only:。", "走。。去", "走。。去"),  # a repetition in the source is not changed by this rule
        ("only:。！", "好。”！去", "好。！去"),
        ("only:—", "一——二，三", "一——二三"),
    ],
)
def test_only_keeps_the_named_marks_without_repeating_them(policy: str, text: str, expected: str) -> None:
    assert stripped(text, policy) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("阿難&KR0869;也;走;", "阿難&KR0869;也；走；"),
        ("&CB00104;&#x4E00;,走", "&CB00104;&#x4E00;，走"),
        ("甲&乙&M04;丙", "甲&乙&M04;丙"),
        ("R&D;研發", "R&D；研發"),
        ("甲&" + "a" * 30 + ";乙", "甲&" + "a" * 30 + "；乙"),
        ("甲;乙&丙", "甲；乙&丙"),
    ],
)
def test_the_end_of_a_reference_is_not_widened(text: str, expected: str) -> None:
    assert widened(text) == expected


def widened(text: str) -> str:
    return decode_utf16(WIDEN.apply(encode_utf16(text), Counter()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(1)第一条", "（1）第一条"),
        ("(2) 第二条", "（2） 第二条"),
        ("狂人日记(1)", "狂人日记（1）"),
        ("见(二)与(3)两节", "见（二）与（3）两节"),
        ("狂人日记(1", "狂人日记（1"),
        ("1)第一条", "1）第一条"),
        ("（1)第一条", "（1）第一条"),
        ("(1）", "（1）"),
        ("林冲(Lin (Chong)) x", "林冲（Lin （Chong）） x"),
        ("林冲(a)(b)(c), d", "林冲（a）（b）（c）， d"),
        ("a (b) c，(d) 林冲", "a (b) c，（d） 林冲"),
        ("(a) b", "(a) b"),
        ("林冲(a\nb) c", "林冲（a\nb) c"),
        (") a (林冲", ") a （林冲"),
        ("f(x)是函数", "f(x)是函数"),
        ("设P(A|B),g(f(1))为", "设P(A|B),g(f(1))为"),
        ("main()函数", "main()函数"),
        ("林冲(Lin(Chong))走", "林冲（Lin(Chong)）走"),
        ("Python(编程语言)是", "Python（编程语言）是"),
    ],
)
def test_brackets_are_widened_in_pairs(text: str, expected: str) -> None:
    assert widened(text) == expected
    assert widened(expected) == expected


BRACKETS = st.lists(st.sampled_from([*"()（）, 林a.", "\n"]), max_size=24).map("".join)


@given(BRACKETS)
@example("(" * 20 + "林" + ")" * 20)
def test_both_brackets_of_a_pair_are_wide_or_none(text: str) -> None:
    once = widened(text)
    assert widened(once) == once
    for line in once.split("\n"):
        stack: list[str] = []
        for character in line:
            if character in "(（":
                stack.append(character)
            elif character in ")）" and stack:
                assert stack.pop() + character in ("()", "（）")


@given(BRACKETS)
def test_widening_equals_its_reference(text: str) -> None:
    assert widened(text) == slow_rules.CHINESE[0].apply(text)


def test_deeply_nested_brackets_are_widened_in_a_moment() -> None:
    assert widened("林" + "(" * 30_000 + "a" + ")" * 30_000).startswith("林（（")
    assert widened("林" + "(a)" * 30_000) == "林" + "（a）" * 30_000


def test_removed_marks_are_counted() -> None:
    counts: Counter[str] = Counter()
    stripped("天高，地厚，人和。", "only:。", counts)
    assert counts == {"，": 2}


def test_keep_has_no_rule() -> None:
    assert rule("keep") is None


@pytest.mark.parametrize("policy", ["none", "only:", "only:。字", "only:a", "only:\n", "only:□", ""])
def test_unknown_policy_raises(policy: str) -> None:
    with pytest.raises(BadConfig):
        rule(policy)


def test_documents_stay_separate() -> None:
    punct = rule("strip")
    assert punct is not None
    assert split_documents(punct.apply(join_documents(["“一。", "", "”二，", 'a"', "三"]), Counter())) == [
        "一",
        "",
        "二",
        'a"',
        "三",
    ]


PIECES = "林冲𤣥𠮷㦸□〇\ue000ab1，。！？；：、“”‘’「」《》（）…—·,.!\"'()- \n\0"
TEXT = st.text(st.sampled_from(PIECES), max_size=40)
POLICY = st.sampled_from(["strip", "only:。，！？", "only:…—", "only:,，"])


@given(TEXT, POLICY)
@example("。“。”。", "only:。，！？")
def test_strip_is_idempotent_and_keeps_letters_spaces_and_line_ends(text: str, policy: str) -> None:
    once = stripped(text, policy)
    assert stripped(once, policy) == once
    letters = [character for character in text if character not in "，。！？；：、“”‘’「」《》（）…—·,.!\"'()-"]
    assert [character for character in once if character in letters] == letters


@given(TEXT)
def test_only_equals_strip_plus_the_named_marks(text: str) -> None:
    named = stripped(text, "only:。，！？")
    assert [character for character in named if character not in "。，！？"] == [*stripped(text)]


@given(TEXT)
def test_strip_removes_all_marks_of_only_chinese_text(text: str) -> None:
    assert not set(stripped(text)) & set("，。！？；：、「」《》（）")


@given(st.lists(st.text(st.sampled_from(PIECES.replace("\0", "")), max_size=12), min_size=1, max_size=4))
def test_documents_of_a_page_do_not_affect_each_other(texts: list[str]) -> None:
    assert stripped("\0".join(texts), "only:。").split("\0") == [stripped(text, "only:。") for text in texts]


def test_strip_counts_every_mark_of_shuihu(shared: Path) -> None:
    text = (shared / "data/shuihu_raw.txt").read_text("utf-8-sig")
    counts: Counter[str] = Counter()
    bare = stripped(text, counts=counts)
    assert len(bare) + counts.total() == len(text)
    assert (counts["，"], counts["。"], counts["“"], counts["”"], counts['"']) == (60_247, 33_293, 9_188, 9_167, 2_038)
