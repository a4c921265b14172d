"""A page through all rules: the properties of reference/cleaning.md 5, and the golden numbers of 水浒传."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.clean import cleaner as pages
from pipeline.clean.options import CHOICES, CleanOptions
from pipeline.clean.profiles import PROFILES
from pipeline.clean.utf16 import split as documents_of
from tests.pipeline.clean.pages import cleaned, page, split

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
PIECES = (
    "林冲道㦸𤣥𠮷𪚥〇□\ue10e\U000f0001aZ09é一二第回卷诗曰正是"
    ",.!?;:()\"'-，。！？：；、“”‘’「」『』《》（）【】〔〕…—．·︽﹁⋯ⅲ○●■囗｛｝[]{}&;<>#*="
    " \t\u00a0\u3000\n\r\x0b\x85\u2028\x00\u200b\ufeff\u00ad"
)
RUNS = (
    "第一回",
    "第二回　林冲",
    "卷上",
    "……",
    "。”",
    "（一作術）",
    "{上休下鳥}",
    "&KR0869;",
    "⿰木養",
    "\n\n",
    "　　",
    "诗曰：",
)
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.sampled_from(RUNS)), max_size=24).map("".join)
PROFILE = st.sampled_from(sorted(PROFILES))
UNIT = st.sampled_from(CHOICES["unit"])


def again(text: str, unit: str, headings: str = "keep") -> list[str]:
    return [part for part in documents_of(page(text, unit=unit, headings=headings).array) if part]


@settings(max_examples=2000)
@given(TEXT, st.sampled_from(["chapter", "document", "sentence"]))  # a paragraph may hold lines, which part the next
@example('汉""a\n第一回', "chapter")
def test_cleaning_what_was_cleaned_changes_nothing(text: str, unit: str) -> None:
    once = again(text, unit)
    assert [part for each in once for part in again(each, unit)] == once


@settings(max_examples=2000)
@given(TEXT, PROFILE, UNIT)
def test_no_character_goes_uncounted_on_any_profile(text: str, profile: str, unit: str) -> None:
    made = page(text, profile, unit=unit)
    changed = sum(effect.added - effect.removed for effect in made.effects.values())
    assert len(text) + changed == made.size == sum(map(len, documents_of(made.array)))
    assert len(made.origin) == len(made.titles) == len(documents_of(made.array))


@settings(max_examples=2000)
@given(TEXT)
def test_no_han_character_is_lost_that_is_no_part_of_a_heading_or_of_a_character_that_cannot_be_shown(
    text: str,
) -> None:
    made = page(text, headings="keep", gaiji="keep", without=("lacuna",))  # which takes 囗 beside □ for one
    assert Counter(HAN.findall("".join(documents_of(made.array)))) == Counter(HAN.findall(text))


@settings(max_examples=2000)
@given(TEXT)
def test_the_output_holds_none_of_what_was_to_go(text: str) -> None:
    for part in again(text, "chapter", "boundary"):
        assert not re.search("[\ufeff\r\x00\u200b\u2028\x85\x0b\u00ad]", part)
        assert "\n\n" not in part
        assert part.strip("\n") == part
        assert not re.search(f"{HAN.pattern}[ \t\u3000]|[ \t\u3000]{HAN.pattern}", part)
        part.encode()  # no half of a pair is left


@given(st.lists(TEXT, min_size=1, max_size=4), UNIT)
def test_texts_of_a_page_come_out_as_they_do_alone(texts: list[str], unit: str) -> None:
    together = pages.Cleaner(PROFILES["plain"], CleanOptions(unit=unit)).clean(texts)
    found = list(zip(together.origin.tolist(), together.titles, documents_of(together.array), strict=True))
    for number, text in enumerate(texts):
        mine = [(title, part) for origin, title, part in found if origin == number]
        alone = page(text, unit=unit)
        assert mine == list(zip(alone.titles, documents_of(alone.array), strict=True))


@pytest.mark.parametrize("rule", ["widen", "quotes", "spaces", "marks", "gaiji", "mojibake", "lacuna", "verse"])
def test_a_rule_can_be_switched_off(rule: str) -> None:
    text = '史 进说："走,,快。。"\ue10e \ufffd囗囗'
    assert rule in page(text).effects
    assert rule not in page(text, without=(rule,)).effects


def test_unpunctuated_text_comes_out_whole() -> None:
    verse = "床前明月光\n疑是地上霜\n舉頭望明月\n低頭思故鄉"
    assert cleaned(verse) == [("", verse)]
    assert split(verse) == verse.split("\n")


def test_quotes_come_in_the_style_that_is_asked_for() -> None:
    text = '他道："走‘快’！"'
    assert cleaned(text) == [("", "他道：“走‘快’！”")]
    assert cleaned(text, quotes="corner") == [("", "他道：「走『快』！」")]
    assert cleaned(text, quotes="strip") == [("", "他道：走快！")]
    assert cleaned("他道：「走『快』！」", quotes="curly") == [("", "他道：“走‘快’！”")]


def test_the_moirai_preset_gives_sentences_without_quotes_and_loses_no_character() -> None:
    text = "第一回　得宝\n他道：“走。”㦸𠮷去了……未完"
    assert [part for _, part in cleaned(text, preset="moirai")] == ["他道：走。", "㦸𠮷去了未完"]


# 水浒传


def test_the_golden_numbers_of_shuihu(shared: Path) -> None:
    text = (shared / "data" / "shuihu_raw.txt").read_text(encoding="utf-8-sig")
    made = page(text)
    parts = documents_of(made.array)
    assert (len(parts), [number for _, number in made.numbers]) == (161, list(range(1, 162)))
    body = len(HAN.findall(text)) - sum(len(HAN.findall(title)) for title in made.titles)
    assert sum(len(HAN.findall(part)) for part in parts) == body, "no Han character of the chapters is lost"
    quoted = [unit for part in parts for unit in split(part)]
    flat = [unit for part in parts for unit in split(part, inside_quotes=True)]
    assert abs(len(quoted) - 29_548) < 0.005 * 29_548
    assert abs(len(flat) - 38_918) < 0.005 * 38_918
    assert max(map(len, quoted)) <= 1_300
    assert max(len(unit.encode()) for unit in quoted) <= 4_192
