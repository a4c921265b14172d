"""Profiles: which rules a kind of source gets, the units it is cut into, and that the ledger closes on all of them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean import profiles
from pipeline.clean.options import CHOICES, CleanOptions
from pipeline.clean.profiles import PROFILES
from pipeline.clean.utf16 import split
from pipeline.errors import BadConfig
from tests.pipeline.clean.pages import cleaned, page

UNITS = CHOICES["unit"]

BOOK = """\ufeff第一回　得宝　求砚
　　话说大宋 天下,太平。 又一日。
　　他道：“走！”
第二回　墨海
　　却说宋江。
"""


def test_a_chapter_is_a_document_under_its_heading() -> None:
    assert cleaned(BOOK) == [
        ("第一回 得宝 求砚", "话说大宋天下，太平。又一日。\n他道：“走！”"),
        ("第二回 墨海", "却说宋江。"),
    ]


def test_a_paragraph_is_a_line_where_there_are_no_blank_lines() -> None:
    assert cleaned(BOOK, unit="paragraph") == [
        ("第一回 得宝 求砚", "话说大宋天下，太平。又一日。"),
        ("第一回 得宝 求砚", "他道：“走！”"),
        ("第二回 墨海", "却说宋江。"),
    ]


def test_a_paragraph_is_what_stands_between_blank_lines_where_there_are_any() -> None:
    assert cleaned("\n一\n二\n\n　\n三\n", unit="paragraph") == [("", "一\n二"), ("", "三")]


def test_a_sentence_is_a_unit_of_its_own() -> None:
    assert [text for _, text in cleaned(BOOK, unit="sentence")] == [
        "话说大宋天下，太平。",
        "又一日。",
        "他道：“走！”",
        "却说宋江。",
    ]


def test_a_whole_document_loses_its_headings_and_keeps_its_own_title() -> None:
    assert cleaned(BOOK, unit="document", title="书") == [
        ("书", "话说大宋天下，太平。又一日。\n他道：“走！”\n却说宋江。")
    ]


def test_text_before_the_first_heading_keeps_the_title_of_the_document() -> None:
    assert cleaned("引子。\n第一回\n林冲。", title="书") == [("书", "引子。"), ("第一回", "林冲。")]


def test_unpunctuated_text_survives_whole() -> None:
    verse = "床前明月光\n疑是地上霜"
    for unit in UNITS:
        assert "".join(text for _, text in cleaned(verse, unit=unit)).replace("\n", "") == verse.replace("\n", "")


def test_poems_know_no_headings() -> None:
    assert cleaned("卷三\n白日 依山尽,\n序", profile="chinese-poetry", title="诗") == [("诗", "卷三\n白日依山尽，\n序")]


@pytest.mark.parametrize("unit", UNITS)
def test_the_pile_profile_only_normalises_newlines_and_controls(unit: str) -> None:
    text = '\ufeff# Title\r\n\r\n\r\n  "Hi,"  she said... 第一回 汉 字,好\n第二回\n\x00'
    assert cleaned(text, profile="pile", unit=unit, title="t") == [
        ("t", '# Title\n\n\n  "Hi,"  she said... 第一回 汉 字,好\n第二回\n')
    ]


@pytest.mark.parametrize(
    ("name", "asked", "profile"),
    [
        ("shuihu.txt", "auto", "plain"),
        ("shuihu.txt.zst", "auto", "plain"),
        ("00.jsonl", "auto", "pile"),
        ("00.jsonl.zst", "auto", "pile"),
        ("val.jsonl.gz", "auto", "pile"),
        ("ci.song.0.json", "auto", "chinese-poetry"),
        ("README", "auto", "plain"),
        ("00.jsonl.zst", "plain", "plain"),
        ("shuihu.txt", "pile", "pile"),
        ("ci.song.0.json", "plain", "plain"),
    ],
)
def test_auto_goes_by_the_name_and_anything_else_by_what_was_asked(name: str, asked: str, profile: str) -> None:
    assert profiles.of(name, "", asked).name == profile


def test_auto_goes_by_the_end_of_the_name_as_reading_does() -> None:
    assert profiles.of("dump.json.txt", "", "auto").name == "plain"


def test_an_unknown_profile_is_an_error_that_lists_the_known_ones() -> None:
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
def test_the_ledger_closes_on_every_unit(profile: str, unit: str, text: str) -> None:
    made = page(text, profile, unit=unit)
    changed = sum(each.added - each.removed for each in made.effects.values())
    assert len(text) + changed == sum(map(len, split(made.array))) == made.size


@given(text=TEXT)
def test_the_text_of_all_units_is_the_same_but_for_newlines_and_spaces(text: str) -> None:
    joined = {unit: "".join("".join(body.split()) for _, body in cleaned(text, unit=unit)) for unit in UNITS}
    assert len(set(joined.values())) == 1
