"""Boilerplate: matches of the user's patterns are removed, and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.rule import Counts
from pipeline.clean.rules import boilerplate
from pipeline.clean.utf16 import decode_utf16, encode_utf16
from pipeline.errors import BadConfig

HAN = re.compile("[\u4e00-\u9fff]")


def run(text: str, *patterns: str) -> tuple[str, Counts]:
    counts: Counts = Counter()
    return decode_utf16(boilerplate.rule(patterns).apply(encode_utf16(text), counts)), counts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("正是：飞来。毕竟来的是何人，且听下回分解。", "正是：飞来。"),
        ("两个走了。毕竟那人是谁？且听下回分解。", "两个走了。"),
        ("毕竟这支是那里兵马？孙安等如何迎敌？且听下回分解。此一回内，折将二员", "此一回内，折将二员"),
        ("毕竟不知女将军怎生搦战？再听下回分解。", ""),
        ("说出甚事来，且下听回分解。", "说出甚事来。"),
        ("欲知后事如何，且看下回分解。", ""),
        ("畢竟說出甚麼來，且聽下回分解。", ""),
        ("众人不知性命如何，且听下回分解。", "众人不知性命如何。"),
        ("。不知毕竟有甲也无。", "。不知毕竟有甲也无。"),
        ("你且听我分说。", "你且听我分说。"),
        ("毕竟，他说：“我去。”且听下回分解。", "毕竟，他说：“我去。”"),
    ],
)
def test_chapter_end_is_removed_with_its_question(text: str, expected: str) -> None:
    assert run(text, "chapter-ends")[0] == expected


def test_all_105_chapter_ends_of_shuihu_are_removed(shared: Path) -> None:
    text = (shared / "data" / "shuihu_raw.txt").read_text(encoding="utf-8-sig")
    cleaned, counts = run(text, "chapter-ends")
    assert counts["chapter-ends"] == 105
    assert "回分解" not in cleaned
    assert counts["characters of boilerplate"] == len(text) - len(cleaned) == 2162
    assert cleaned.count("\n") == text.count("\n")
    assert Counter(HAN.findall(text)) - Counter(HAN.findall(cleaned)) == Counter(
        HAN.findall("".join(match[0] for match in re.finditer(boilerplate.PRESETS["chapter-ends"], text)))
    )


def test_emptied_line_is_removed_and_blank_line_is_kept() -> None:
    cleaned, counts = run("上\n本书来自某站\n\n下，本书来自某站\0本书来自某站", "本书来自..")
    assert cleaned == "上\n\n下，\0"
    assert counts == {"本书来自..": 3, "characters of boilerplate": 19}


def test_pattern_matches_only_within_a_line() -> None:
    text = "甲\n乙\0丙"
    assert run(text, r"甲\s乙", "乙.丙", r"[^丁]{2,}") == (text, Counter())
    assert run("甲乙\n甲乙\0甲乙", "^甲", "乙$")[0] == "\0"


def test_matches_that_a_removal_creates_are_removed() -> None:
    assert run("广广告告甲", "广告")[0] == "甲"
    assert run("广广告告甲", "广告")[1]["广告"] == 2


def test_patterns_with_groups_and_flags_mix_with_presets() -> None:
    cleaned, counts = run("甲甲。WWW.x.com乙。毕竟如何，且听下回分解。", r"(.)\1。", "(?i)www[.a-z]+", "chapter-ends")
    assert cleaned == "乙。"
    assert counts["(?i)www[.a-z]+"] == counts["chapter-ends"] == 1


@pytest.mark.parametrize("pattern", ["(", "[", "*", "(?P<a>", "a*", "", "^", "甲|"])
def test_pattern_that_is_invalid_or_matches_empty_text_raises(pattern: str) -> None:
    with pytest.raises(BadConfig, match=re.escape(repr(pattern))):
        boilerplate.rule([pattern])


def test_no_patterns_change_nothing() -> None:
    assert run("毕竟如何，且听下回分解。") == ("毕竟如何，且听下回分解。", Counter())


@given(st.text("毕竟不知何人，。？且听下回分解甲乙\n\0", max_size=60))
def test_rule_is_idempotent_and_counts_removed_characters(text: str) -> None:
    patterns = ("chapter-ends", "甲+乙", "知$", "(?=人)")
    once, counts = run(text, *patterns)
    assert run(once, *patterns)[0] == once
    assert once.count("\0") == text.count("\0")
    assert len(once) == len(text) - counts["characters of boilerplate"]


@given(st.text("毕竟不知何人，。？且听下回分解\n\0", max_size=40))
def test_documents_of_a_page_do_not_affect_each_other(text: str) -> None:
    text += "毕竟何人，且听下回分解。"
    alone = [run(document, "chapter-ends")[0] for document in text.split("\0")]
    assert run(text, "chapter-ends")[0].split("\0") == alone
