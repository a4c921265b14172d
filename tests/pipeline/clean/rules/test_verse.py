"""Verse: recognised if it is announced or long enough, put on lines of its own or dropped; prose is kept."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.rules.verse import POLICIES, rule
from pipeline.clean.utf16 import decode_utf16, encode_utf16, join_documents, split_documents
from pipeline.errors import BadConfig
from tests.pipeline.clean.rules import slow_rules

QUATRAIN = "恶性掀腾不自由，房中剁却两人头。痴翁犹自伤情切，独立西风哭未休。"


def apply(policy: str, text: str, counts: Counter[str] | None = None) -> str:
    return decode_utf16(rule(policy).apply(encode_utf16(text), Counter() if counts is None else counts))


def assert_equals_reference(text: str) -> None:
    counts: Counter[str] = Counter()
    assert apply("own-unit", text, counts) == slow_rules.verse_on_lines(text)
    assert +counts == +slow_rules.verse_counts(slow_rules.verse(text))


@pytest.mark.parametrize(
    ("text", "verse"),
    [
        ("去了。正是：黑甜一枕古祠中，梦里分明见鬼雄。毕竟如何", ["黑甜一枕古祠中，梦里分明见鬼雄。"]),
        ("正是：计就惊天地，谋成破鬼神。且说", ["计就惊天地，谋成破鬼神。"]),
        ("正是：水来土掩，兵至将迎。宋江", ["水来土掩，兵至将迎。"]),
        (f"奸淫，有诗为证：{QUATRAIN}\n", [QUATRAIN]),
        (f"有詩為證：“{QUATRAIN}”", [QUATRAIN]),
        (f"詩曰：\n{QUATRAIN}", [QUATRAIN]),
        ("偈曰：“灵光一点，价值千金。佛法广大，赐名智深。”长老", ["灵光一点，价值千金。佛法广大，赐名智深。"]),
        (f"写道：“{QUATRAIN}”李固", [QUATRAIN]),
        ("床前明月光，疑是地上霜。\n举头望明月，低头思故乡。", ["床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"]),
        ("正是：𤣥甜一枕古祠中，梦里分明见鬼𠮷。毕竟", ["𤣥甜一枕古祠中，梦里分明见鬼𠮷。"]),
        # complete sentences only: clauses before the first and after the last are left out
        (f"却说，扬子江头只一家，不弱周郎施妙计。{QUATRAIN}当下", [QUATRAIN]),
        (f"{QUATRAIN}接来江头坐下了，宋江对军师说道：", [QUATRAIN]),
        (f"{QUATRAIN}宋江对军师说道，去了。", [QUATRAIN]),
        # prose
        ("正是：机谋未就，争奈窗外人听；计策才施，又早箫墙祸起。", []),
        ("但见：前临官道，后傍大溪。数百株垂柳当门", []),
        ("如不愿去的，一听尊命。只恐事发，反遭负累。烦可寻思。", []),
        ("平生性急，挥起大斧，也不打话，飞奔出来。两马相交，二将猛战。未及十合，石宝卖个破绽。", []),
        ("秦明上了马，拿着狼牙棒，趁天色大明，离了清风山，取路飞奔青州来。", []),
        ("床前明月光，疑是地上霜。宋江", []),
        ("正是床前明月光，疑是地上霜。", []),
        ("以此为证：床前明月光，疑是地上霜。", []),
        ("正是：\0床前明月光，疑是地上霜。", []),
        ("", []),
        ("，。", []),
    ],
)
def test_verse_is_complete_sentences_of_equal_clauses(text: str, verse: list[str]) -> None:
    assert [text[run.start : run.end] for run in slow_rules.verse(text)] == verse
    assert_equals_reference(text)


def test_inline_counts_and_returns_the_page_unchanged() -> None:
    counts: Counter[str] = Counter()
    page = encode_utf16(f"正是：床前明月光，疑是地上霜。又道：{QUATRAIN}")
    assert rule("inline").apply(page, counts) is page
    assert counts == {
        "runs of 5 characters a clause": 1,
        "runs of 7 characters a clause": 1,
        "runs that are announced": 1,
        "characters of verse": 38,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"奸淫，有诗为证：{QUATRAIN}且说", f"奸淫，\n有诗为证：{QUATRAIN}\n且说"),
        (f"写道：“{QUATRAIN}”李固", f"写道：\n“{QUATRAIN}”\n李固"),
        (f"写道：“{QUATRAIN}”，李固", f"写道：“{QUATRAIN}”，李固"),
        (f"{QUATRAIN}", f"{QUATRAIN}"),
        (f"甲。\n{QUATRAIN}\n乙", f"甲。\n{QUATRAIN}\n乙"),
        ("甲。正是：计就惊天地，谋成破鬼神。", "甲。\n正是：计就惊天地，谋成破鬼神。"),
    ],
)
def test_own_unit_puts_verse_on_a_line_with_announcement_and_quotes(text: str, expected: str) -> None:
    assert apply("own-unit", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"奸淫。有诗为证：{QUATRAIN}且说", "奸淫。且说"),
        (f"写道：“{QUATRAIN}”李固", "写道：李固"),
        (f"写道：“{QUATRAIN}去也。”李固", "写道：“去也。”李固"),
        (f"便答偈曰：“{QUATRAIN}咦！”长老", "便答偈曰：“咦！”长老"),
        (f"便答偈曰：“{QUATRAIN}”长老", "便答长老"),
        (f"甲。\n{QUATRAIN}\n乙", "甲。\n乙"),
        (f"甲道：“乙。{QUATRAIN}”", "甲道：“乙。”"),
    ],
)
def test_drop_removes_verse_and_announcement_and_keeps_quotes_balanced(text: str, expected: str) -> None:
    assert apply("drop", text) == expected


def test_unknown_policy_raises() -> None:
    with pytest.raises(BadConfig, match="--verse must be one of inline, own-unit, drop, got 'keep'"):
        rule("keep")


PIECE = st.one_of(
    st.sampled_from(
        ["正是：", "但见：", "有诗为证：", "为证：", "詩曰：", "“", "”", "道：“", "\n", "\0", "、", "a", "甲乙"]
    ),
    st.builds(
        str.__add__,
        st.sampled_from(["甲乙丙丁", "甲乙丙丁戊", "𤣥乙丙丁戊", "甲乙丙丁戊己庚", "甲乙丙丁戊己𠮷", "甲乙丙"]),
        st.sampled_from("，。。，？；"),
    ),
    st.sampled_from(["甲乙丙丁戊，己庚辛壬癸。", "甲乙丙丁戊己庚，𠮷庚辛壬癸甲乙。", "甲乙丙丁，戊己庚辛。"]),
)
TEXT = st.lists(PIECE, max_size=14).map("".join)


@given(TEXT)
@example("正是：“\n甲乙丙丁戊，己庚辛壬癸。")
def test_rule_equals_the_reference(text: str) -> None:
    assert_equals_reference(text)


@given(TEXT, st.sampled_from(POLICIES))
def test_every_policy_is_idempotent(text: str, policy: str) -> None:
    once = apply(policy, text)
    assert apply(policy, once) == once


@given(TEXT)
def test_own_unit_adds_only_line_ends_and_no_empty_line(text: str) -> None:
    result = apply("own-unit", text)
    assert result.replace("\n", "") == text.replace("\n", "")
    assert len(re.findall("\n\n|^\n|\n$", result)) <= len(re.findall("\n\n|^\n|\n$", text))


@given(TEXT)
def test_drop_leaves_no_verse_and_keeps_documents_apart(text: str) -> None:
    result = apply("drop", text)
    assert not slow_rules.verse(result)
    assert result.count("\0") == text.count("\0")


@given(st.lists(TEXT, min_size=1, max_size=3), st.sampled_from(POLICIES))
def test_documents_of_a_page_do_not_affect_each_other(texts: list[str], policy: str) -> None:
    texts = [text.replace("\0", "") for text in texts]
    assert split_documents(rule(policy).apply(join_documents(texts), Counter())) == [
        apply(policy, text) for text in texts
    ]


def test_verse_of_shuihu(shared: Path) -> None:
    text = (shared / "data/shuihu_raw.txt").read_text("utf-8-sig")
    assert_equals_reference(text)
    runs = slow_rules.verse(text)
    leads = Counter(text[run.start - 3 : run.start] for run in runs if run.is_announced)
    assert text.count("正是：") == 87
    # two more after ‘ and "
    assert (leads["正是："], leads["但见："], leads["为证："], leads["诗曰："]) == (79, 9, 4, 1)
    assert Counter((run.length, run.is_announced) for run in runs) == {
        (7, True): 83,
        (5, True): 8,
        (4, True): 6,
        (7, False): 35,
        (5, False): 12,
    }
    assert sum(run.clauses * run.length for run in runs) == 3_118
