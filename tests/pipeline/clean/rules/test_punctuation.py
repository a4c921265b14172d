"""Punctuation: stripped without a letter lost, or taken off as labels and put back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.rules.punctuation import Labelled, labels, rule
from pipeline.clean.utf16 import codes, join, split, text_of
from pipeline.errors import BadConfig


def stripped(text: str, policy: str = "strip", seen: Counter[str] | None = None) -> str:
    found = rule(policy)
    assert found is not None
    return text_of(found.apply(codes(text), Counter() if seen is None else seen))


@pytest.mark.parametrize(
    ("text", "wanted"),
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
def test_strip_takes_the_punctuation_of_chinese_text_and_nothing_else(text: str, wanted: str) -> None:
    assert stripped(text) == wanted


@pytest.mark.parametrize(
    ("policy", "text", "wanted"),
    [
        ("only:。，！？", "曰：「可乎？！」遂行；去、来。", "曰可乎？！遂行去来。"),
        ("only:。", "“好。”。然", "好。然"),
        ("only:，", "甲，、，乙，“，”，丙", "甲，乙，丙"),
        ("only:…", "“走……”……去", "走……去"),
        ("only:。", "走。。去", "走。。去"),  # two that stood so before are not this rule's
        ("only:。！", "好。”！去", "好。！去"),
        ("only:—", "一——二，三", "一——二三"),
    ],
)
def test_only_leaves_the_named_marks_and_brings_no_two_of_them_together(policy: str, text: str, wanted: str) -> None:
    assert stripped(text, policy) == wanted


def test_every_mark_that_goes_is_counted() -> None:
    seen: Counter[str] = Counter()
    stripped("天高，地厚，人和。", "only:。", seen)
    assert seen == {"，": 2}


def test_keep_is_no_rule_at_all() -> None:
    assert rule("keep") is None


@pytest.mark.parametrize("policy", ["none", "only:", "only:。字", "only:a", "only:\n", "only:□", ""])
def test_an_unknown_policy_is_refused(policy: str) -> None:
    with pytest.raises(BadConfig):
        rule(policy)


def test_documents_stay_parted() -> None:
    found = rule("strip")
    assert found is not None
    assert split(found.apply(join(["“一。", "", "”二，", 'a"', "三"]), Counter())) == ["一", "", "二", 'a"', "三"]


PIECES = "林冲𤣥𠮷㦸□〇\ue000ab1，。！？；：、“”‘’「」《》（）…—·,.!\"'()- \n\0"
TEXT = st.text(st.sampled_from(PIECES), max_size=40)
POLICY = st.sampled_from(["strip", "only:。，！？", "only:…—", "only:,，"])


@given(TEXT, POLICY)
@example("。“。”。", "only:。，！？")
def test_stripping_is_idempotent_and_takes_no_letter_no_space_and_no_line_end(text: str, policy: str) -> None:
    once = stripped(text, policy)
    assert stripped(once, policy) == once
    kept = [character for character in text if character not in "，。！？；：、“”‘’「」《》（）…—·,.!\"'()-"]
    assert [character for character in once if character in kept] == kept


@given(TEXT)
def test_what_only_leaves_is_what_strip_leaves_and_the_named_marks(text: str) -> None:
    named = stripped(text, "only:。，！？")
    assert [each for each in named if each not in "。，！？"] == [*stripped(text)]


@given(TEXT)
def test_marks_that_only_chinese_text_has_are_all_gone(text: str) -> None:
    assert not set(stripped(text)) & set("，。！？；：、「」《》（）")


@given(st.lists(st.text(st.sampled_from(PIECES.replace("\0", "")), max_size=12), min_size=1, max_size=4))
def test_documents_of_a_page_come_out_as_they_do_alone(texts: list[str]) -> None:
    assert stripped("\0".join(texts), "only:。").split("\0") == [stripped(text, "only:。") for text in texts]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("天高，地厚。", Labelled("天高地厚", ["", "，", "", "。"])),
        ("「𤣥德？！」曰", Labelled("𤣥德曰", ["", "？！」", ""], head="「")),
        ("……", Labelled("", [], head="……")),
        ("", Labelled("", [])),
        ("3.14 a", Labelled("3.14 a", [""] * 6)),
    ],
)
def test_each_character_is_labelled_with_the_marks_behind_it(text: str, wanted: Labelled) -> None:
    assert labels(text) == wanted


@given(TEXT)
def test_from_the_labels_the_text_is_made_again(text: str) -> None:
    found = labels(text)
    assert found.text == stripped(text)
    assert len(found.labels) == len(found.text)
    assert found.punctuated() == text


def test_shuihu_is_stripped_of_punctuation_and_labelled_without_loss(shared: Path) -> None:
    text = (shared / "data/shuihu_raw.txt").read_text("utf-8-sig")
    seen: Counter[str] = Counter()
    bare = stripped(text, seen=seen)
    assert len(bare) + seen.total() == len(text)
    assert (seen["，"], seen["。"], seen["“"], seen["”"], seen['"']) == (60_247, 33_293, 9_188, 9_167, 2_038)
    found = labels(text)
    assert found.text == bare
    assert found.punctuated() == text
