"""Footnotes: marks and the lines that they refer to are removed on request."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.clean.rule import Counts
from pipeline.clean.rules import footnotes
from pipeline.clean.rules.notes import parse_policies
from pipeline.errors import BadConfig
from tests.pipeline.clean.pages import apply_rule, clean_documents

RULE = footnotes.rule()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("借通灵①之说。\n①　通灵：指宝玉。\n次日", "借通灵之说。\n次日"),
        ("某翁之女[1]也。\n[1] 翁：老人。", "某翁之女也。"),
        ("某翁之女〔一〕也〔二〕。\n〔一〕翁：老人。\n〔二〕也：助词。", "某翁之女也。"),
        ("甲［1］。\n【注释】\n\n［1］甲：一。\n乙。", "甲。\n\n乙。"),
        ("甲①。\n①一。\n乙①。\n①二。", "甲。\n乙。"),
        ("甲①\0①一。", "甲①\0①一。"),
        ("女[1]，妻也[2]。推其造[3]，决", "女，妻也。推其造，决"),
    ],
)
def test_marks_and_their_lines_are_removed(text: str, expected: str) -> None:
    assert apply_rule(RULE, text) == expected


@pytest.mark.parametrize(
    "text",
    ["有三：①甲；②乙；③丙。", "①甲。\n②乙。", "见[2]与[7]。", "〔一〕甲。\n〔二〕乙。", "①甲。\n次日①。", "走。"],
)
def test_marks_that_refer_to_no_line_stay(text: str) -> None:
    assert apply_rule(RULE, text) == text


def test_marks_and_lines_are_counted() -> None:
    counts: Counts = Counter()
    text = "甲①乙①丙②。\n①一。\n②二。"
    assert footnotes.rule().triggers
    apply = footnotes._remove
    assert apply(text, counts) == "甲乙丙。"
    assert counts == {"marks": 3, "note lines": 2}


def test_footnotes_are_kept_unless_asked() -> None:
    text = "借通灵①之说。\n①　通灵：指宝玉。"
    assert clean_documents(text) == [("", "借通灵①之说。\n①通灵：指宝玉。")]
    assert clean_documents(text, notes=("footnotes=drop",)) == [("", "借通灵之说。")]
    assert clean_documents(text, notes=("footnotes=keep",)) == clean_documents(text)


def test_other_policies_for_footnotes_are_refused() -> None:
    with pytest.raises(BadConfig, match="unknown policy 'extract' for footnotes"):
        parse_policies(["footnotes=extract"])


def test_the_rule_above_removed_footnotes_is_removed() -> None:
    assert clean_documents("借通灵①之说。\n――――――\n①　通灵：指宝玉。\n――――――\n又。", notes=("footnotes=drop",)) == [
        ("", "借通灵之说。\n――――――\n又。")
    ]
