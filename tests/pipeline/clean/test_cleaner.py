"""The cleaner: the properties of docs/design/cleaning.md 5, and expected counts for 水浒传."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.clean.cleaner import Cleaner
from pipeline.clean.options import CHOICES, CleanOptions
from pipeline.clean.profiles import PROFILES
from pipeline.clean.utf16 import split_documents
from tests.pipeline.clean.pages import clean_documents, clean_page, split_sentences

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


def clean(text: str, unit: str, headings: str = "keep") -> list[str]:
    """Return the documents that are not empty."""
    return [part for part in split_documents(clean_page(text, unit=unit, headings=headings).array) if part]


@settings(max_examples=2000)
@given(TEXT, st.sampled_from(["chapter", "document", "sentence"]))  # not paragraph: it may contain line ends
@example('汉""a\n第一回', "chapter")
@example('"○　　{上休下鳥}', "chapter")
@example("□　　○　　a", "chapter")
def test_cleaning_is_idempotent(text: str, unit: str) -> None:
    documents = clean(text, unit)
    assert [part for document in documents for part in clean(document, unit)] == documents


@settings(max_examples=2000)
@given(TEXT, PROFILE, UNIT)
def test_every_character_is_counted_on_every_profile(text: str, profile: str, unit: str) -> None:
    page = clean_page(text, profile, unit=unit)
    documents = split_documents(page.array)
    added = sum(effect.added - effect.removed for effect in page.effects.values())
    assert len(text) + added == page.size == sum(map(len, documents))
    assert len(page.origin) == len(page.titles) == len(documents)


@settings(max_examples=2000)
@given(TEXT)
def test_every_han_character_is_kept_if_headings_and_gaiji_are_kept(text: str) -> None:
    # The rule lacuna would replace 囗 beside □.
    page = clean_page(text, headings="keep", gaiji="keep", without=("lacuna",))
    assert Counter(HAN.findall("".join(split_documents(page.array)))) == Counter(HAN.findall(text))


@settings(max_examples=2000)
@given(TEXT)
def test_output_has_no_control_characters_blank_lines_or_spaces_beside_han(text: str) -> None:
    for part in filter(None, split_documents(clean_page(text, gaps="drop").array)):
        assert not re.search("[\ufeff\r\x00\u200b\u2028\x85\x0b\u00ad]", part)
        assert "\n\n" not in part
        assert part.strip("\n") == part
        assert not re.search(f"{HAN.pattern}[ \t\u3000]|[ \t\u3000]{HAN.pattern}", part)
        part.encode()  # fails on a lone surrogate


@given(st.lists(TEXT, min_size=1, max_size=4), UNIT)
def test_texts_of_a_page_are_cleaned_as_each_alone(texts: list[str], unit: str) -> None:
    page = Cleaner(PROFILES["plain"], CleanOptions(unit=unit)).clean(texts)
    documents = list(zip(page.origin.tolist(), page.titles, split_documents(page.array), strict=True))
    for index, text in enumerate(texts):
        single = clean_page(text, unit=unit)
        expected = list(zip(single.titles, split_documents(single.array), strict=True))
        assert [(title, part) for origin, title, part in documents if origin == index] == expected


@pytest.mark.parametrize("rule", ["widen", "quotes", "spaces", "marks", "gaiji", "mojibake", "lacuna", "verse"])
def test_rule_can_be_switched_off(rule: str) -> None:
    text = '史 进说："走,,快。。"\ue10e \ufffd囗囗'
    assert rule in clean_page(text).effects
    assert rule not in clean_page(text, without=(rule,)).effects


def test_text_without_punctuation_is_unchanged() -> None:
    verse = "床前明月光\n疑是地上霜\n舉頭望明月\n低頭思故鄉"
    assert clean_documents(verse) == [("", verse)]
    assert split_sentences(verse) == verse.split("\n")


def test_quotes_take_the_requested_style() -> None:
    text = '他道："走‘快’！"'
    assert clean_documents(text) == [("", "他道：“走‘快’！”")]
    assert clean_documents(text, quotes="corner") == [("", "他道：「走『快』！」")]
    assert clean_documents(text, quotes="strip") == [("", "他道：走快！")]
    assert clean_documents("他道：「走『快』！」", quotes="curly") == [("", "他道：“走‘快’！”")]


def test_moirai_preset_gives_sentences_without_quotes_and_loses_no_character() -> None:
    text = "第一回　得宝\n他道：“走。”㦸𠮷去了……未完"
    assert [part for _, part in clean_documents(text, preset="moirai")] == ["他道：走。", "㦸𠮷去了未完"]


def test_shuihu_has_the_expected_chapters_and_sentences(shared: Path) -> None:
    text = (shared / "data" / "shuihu_raw.txt").read_text(encoding="utf-8-sig")
    page = clean_page(text)
    chapters = split_documents(page.array)
    assert (len(chapters), [number for _, number in page.chapter_numbers]) == (161, list(range(1, 162)))
    han_outside_titles = len(HAN.findall(text)) - sum(len(HAN.findall(title)) for title in page.titles)
    assert sum(len(HAN.findall(chapter)) for chapter in chapters) == han_outside_titles
    quoted = [sentence for chapter in chapters for sentence in split_sentences(chapter)]
    flat = [sentence for chapter in chapters for sentence in split_sentences(chapter, inside_quotes=True)]
    assert abs(len(quoted) - 29_548) < 0.005 * 29_548
    assert abs(len(flat) - 38_918) < 0.005 * 38_918
    assert max(map(len, quoted)) <= 1_300
    assert max(len(sentence.encode()) for sentence in quoted) <= 4_192
