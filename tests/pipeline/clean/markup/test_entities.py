"""Character references become characters before marks are widened, in every Chinese profile."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.markup import entities
from pipeline.clean.profiles import PROFILES
from pipeline.clean.utf16 import join_documents
from tests.pipeline.clean.pages import clean_documents, clean_page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("话说&nbsp;会稽&ldquo;走&rdquo;&hellip;", "话说\xa0会稽“走”…"),
        ("&#26519;&#x51b2;&#X51B2;", "林冲冲"),
        ("话说&nbsp会稽&nbsp；走&NBSP;", "话说\xa0会稽\xa0走\xa0"),
        ("&amp;nbsp;&amp;amp;lt;&#38;gt;", "\xa0<>"),
        ("&emsp;&ensp;话说", "\u3000\u3000话说"),
        ("林&zwj;冲&#8203;走&#13;&#0;", "林冲走\n\ufffd"),
        ("&KR0869;&CB00104;&无此;&none;AT&T，&copy=1&", "&KR0869;&CB00104;&无此;&none;AT&T，&copy=1&"),
        ("&amp;KR0869;", "&KR0869;"),
    ],
)
def test_references_become_the_characters_they_stand_for(text: str, expected: str) -> None:
    assert entities.unescape(text, Counter()) == expected


def test_references_are_counted_by_name() -> None:
    counts: Counter[str] = Counter()
    entities.unescape("&nbsp;&nbsp;&amp;lt;&KR0869;", counts)
    assert counts == {"&nbsp;": 2, "&lt;": 1}


@pytest.mark.parametrize("profile", [name for name, profile in PROFILES.items() if profile.chinese])
def test_reference_before_a_character_is_not_widened_in_any_chinese_profile(profile: str) -> None:
    assert clean_documents("&nbsp;&nbsp;会稽一抔土,见者。&#12288;又", profile=profile) == [("", "会稽一抔土，见者。又")]


def test_marks_from_references_pass_through_the_later_rules() -> None:
    assert clean_documents("话说&#44;林冲&#46;&quot;走&quot;&#xE10E;") == [("", "话说，林冲。“走”□")]


def test_rule_can_be_switched_off() -> None:
    assert clean_documents("甲&lt;乙", without=("entities", "widen")) == [("", "甲&lt;乙")]


@given(st.lists(st.sampled_from(["&", "amp;", "lt;", "#38;", "nbsp", ";", "；", "林", "#x0301;", "e"]), max_size=12))
def test_cleaning_references_is_idempotent_and_counted(parts: list[str]) -> None:
    text = "".join(parts)
    page = clean_page(text, "plain")
    added = sum(effect.added - effect.removed for effect in page.effects.values())
    assert len(text) + added == page.size
    once = clean_documents(text)
    assert [document for _, body in once for document in clean_documents(body)] == once


def test_tags_and_references_left_in_a_page_are_counted() -> None:
    page = join_documents(["<p>话说</p><甲>", "1 < 2 &nbsp; & <!--"])
    assert entities.count_tags(page) == 4
    assert entities.count_tags(join_documents(["AT&T公司与R&D部门; Q&A", "a&b"])) == 0
    assert entities.count_tags(join_documents([""])) == 0
