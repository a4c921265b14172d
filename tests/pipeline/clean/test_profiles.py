"""Profiles select the rules of a source; on each of them every unit accounts for all characters."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean import profiles
from pipeline.clean.options import CHOICES, CleanOptions
from pipeline.clean.profiles import PROFILES
from pipeline.clean.utf16 import split_documents
from pipeline.commands.clean import clean
from pipeline.commands.console import Choice
from pipeline.errors import BadConfig
from tests.pipeline.clean.pages import clean_documents, clean_page

UNITS = CHOICES["unit"]

BOOK = """\ufeff第一回　得宝　求砚
　　话说大宋 天下,太平。 又一日。
　　他道：“走！”
第二回　墨海
　　却说宋江。
"""


def test_chapter_is_a_document_titled_by_its_heading() -> None:
    assert clean_documents(BOOK) == [
        ("第一回 得宝 求砚", "话说大宋天下，太平。又一日。\n他道：“走！”"),
        ("第二回 墨海", "却说宋江。"),
    ]


def test_paragraph_is_a_line_in_text_without_blank_lines() -> None:
    assert clean_documents(BOOK, unit="paragraph") == [
        ("第一回 得宝 求砚", "话说大宋天下，太平。又一日。"),
        ("第一回 得宝 求砚", "他道：“走！”"),
        ("第二回 墨海", "却说宋江。"),
    ]


def test_paragraph_is_the_text_between_blank_lines_if_there_are_any() -> None:
    assert clean_documents("\n一\n二\n\n　\n三\n", unit="paragraph") == [("", "一\n二"), ("", "三")]


def test_unit_sentence_makes_each_sentence_a_document() -> None:
    assert [text for _, text in clean_documents(BOOK, unit="sentence")] == [
        "话说大宋天下，太平。",
        "又一日。",
        "他道：“走！”",
        "却说宋江。",
    ]


def test_unit_document_drops_headings_and_keeps_the_title_of_the_document() -> None:
    assert clean_documents(BOOK, unit="document", title="书") == [
        ("书", "话说大宋天下，太平。又一日。\n他道：“走！”\n却说宋江。")
    ]


def test_text_before_the_first_heading_has_the_title_of_the_document() -> None:
    assert clean_documents("引子。\n第一回\n林冲。", title="书") == [("书", "引子。"), ("第一回", "林冲。")]


def test_text_without_punctuation_is_kept_on_every_unit() -> None:
    verse = "床前明月光\n疑是地上霜"
    for unit in UNITS:
        text = "".join(text for _, text in clean_documents(verse, unit=unit))
        assert text.replace("\n", "") == verse.replace("\n", "")


def test_poems_have_no_headings() -> None:
    documents = clean_documents("卷三\n白日 依山尽,\n序", profile="chinese-poetry", title="诗")
    assert documents == [("诗", "卷三\n白日依山尽，\n序")]


@pytest.mark.parametrize("unit", ["chapter", "document"])
def test_text_profile_only_normalises_newlines_and_controls(unit: str) -> None:
    text = '\ufeff# Title\r\n\r\n\r\n  "Hi,"  she said... 第一回 汉 字,好\n第二回\n\x00'
    assert clean_documents(text, profile="text", unit=unit, title="t") == [
        ("t", '# Title\n\n\n  "Hi,"  she said... 第一回 汉 字,好\n第二回\n')
    ]


def test_units_of_the_text_profile_are_paragraphs_and_sentences() -> None:
    text = "# Title\r\n \r\n  It rained, 汉 字. We\nleft.\n"
    assert clean_documents(text, profile="text", unit="paragraph", title="t") == [
        ("t", "# Title"),
        ("t", "It rained, 汉 字. We\nleft."),
    ]
    assert [part for _, part in clean_documents(text, profile="text", unit="sentence")] == [
        "# Title",
        "It rained, 汉 字.",
        "We\nleft.",
    ]


ENGLISH = "The old man wrote what he saw by the river. " * 20
CHINESE = "却说阿渊携砚来到江边，见一老渔翁坐在船头饮酒。" * 20
WIKI = "{{header\n| title = 静夜思\n| author = 李白\n| previous = | next = | notes = | section = }}\n"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (CHINESE, "plain"),
        (ENGLISH, "text"),
        ("Licence and preface.\n" * 20 + CHINESE * 2, "plain"),
        ("前言：此书乃英文。\n" + ENGLISH * 2, "text"),
        ("---\ntitle: 书\n---\n" + CHINESE, "daizhige"),
        ("---\ntitle: Notes\n---\n" + ENGLISH, "text"),
        (WIKI + "床前明月光，疑是地上霜。", "wikitext-lite"),
        (WIKI, "wikitext-lite"),
        ("#+TITLE: Notes\n" + ENGLISH, "text"),
        ("1 2 3", "text"),
    ],
)
def test_profile_of_a_text_follows_from_all_of_its_head(head: str, expected: str) -> None:
    assert profiles.for_text("auto", head) == expected
    assert profiles.for_text("plain", head) == "plain"


def test_chinese_records_are_plain_or_poems() -> None:
    assert profiles.for_records("auto", "00.jsonl.zst") == "plain"
    assert profiles.for_records("auto", "ci.song.0.json") == "chinese-poetry"
    assert profiles.for_records("auto", "POEMS.JSON.xz") == "chinese-poetry"
    assert profiles.for_records("auto", "dump.json.txt") == "plain"
    assert profiles.for_records("kanripo", "ci.song.0.json") == "kanripo"


def test_pile_is_another_name_of_the_text_profile() -> None:
    assert CleanOptions(profile="pile") == CleanOptions(profile="text")


def test_unknown_profile_raises_bad_config_with_the_known_ones() -> None:
    with pytest.raises(BadConfig, match="poetry2") as caught:
        CleanOptions(profile="poetry2")
    assert caught.value.exit_code == 78
    assert all(name in caught.value.hint for name in ("auto", *PROFILES))


LAYOUT = st.sampled_from(
    ["第一回", "第二回  林冲，", "卷上", "# x", "\n", "\n\n", " ", "\u3000\u3000", "\r\n", "\ufeff"]
)
PROSE = st.sampled_from(["。", "，，", "...", '"', "“", "”", "汉", "𤣥", "\ue10e", "a b", "．", "--"])
TEXT = st.lists(LAYOUT | PROSE, max_size=20).map("".join)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("profile", PROFILES)
@given(text=TEXT)
@example(text="")
@example(text="\n")
@example(text="第一回")
@example(text="\n第一回\n第二回\n\n")
def test_every_character_is_counted_on_every_unit(profile: str, unit: str, text: str) -> None:
    page = clean_page(text, profile, unit=unit)
    added = sum(effect.added - effect.removed for effect in page.effects.values())
    assert len(text) + added == sum(map(len, split_documents(page.array))) == page.size


@given(text=TEXT)
def test_all_units_have_the_same_text_except_newlines_and_spaces(text: str) -> None:
    joined = {unit: "".join("".join(body.split()) for _, body in clean_documents(text, unit=unit)) for unit in UNITS}
    assert len(set(joined.values())) == 1


def test_help_lists_all_profiles() -> None:
    profile = next(option for option in clean.params if option.name == "profile")
    assert isinstance(profile.type, Choice)
    assert {*profile.type.choices} == {"auto", *PROFILES}
