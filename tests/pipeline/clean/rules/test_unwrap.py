"""Unwrapping: print lines are joined, and other lines are kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.rule import Counts
from pipeline.clean.rules.headings import parse_heading
from pipeline.clean.rules.unwrap import UNWRAP, unwrap
from pipeline.clean.utf16 import decode_utf16, encode_utf16


def joined(text: str) -> str:
    return unwrap(text, Counter())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("余乆擬西南遊\n遷延", "余乆擬西南遊遷延"),
        ("且说林冲，\n当日\n走了。\n次日", "且说林冲，当日走了。\n次日"),
        ("他道“走\n罢”众人", "他道“走罢”众人"),
        ("《水\n浒》", "《水浒》"),
        ("𤣥\n𤣥", "𤣥𤣥"),
        ("□\n□", "□□"),
        ("人——\n走", "人——走"),
        ("走；\n行、\n坐", "走；行、坐"),
        ("遊　\n遷", "遊　遷"),
        ("the cat\nsat", "the cat sat"),
        ("共 108\nmen", "共 108 men"),
        ("共 108\n人", "共 108人"),
    ],
)
def test_open_line_is_joined_to_the_next(text: str, expected: str) -> None:
    assert joined(text) == expected


@pytest.mark.parametrize(
    "end", ["。", "！", "？", "：", "……", "”", "’", "」", "』", "）", "》", "〉", "】", "〕", "〗", '。"', "!"]
)
def test_line_that_ends_a_sentence_is_not_joined(end: str) -> None:
    assert joined(f"走{end}\n行") == f"走{end}\n行"
    assert joined(f"走{end} 　\n行") == f"走{end} 　\n行"


@pytest.mark.parametrize(
    "text",
    [
        "走\n\n行",
        "走\n",
        "\n走",
        "走\n　行",
        "走\n 行",
        "走\n\t行",
        "走\n　\n行",
        "走\n第二回  王教头",
        "走\n卷三\n行",
        "走\n** 篇二\n行",
        "第一回 风雪\n话说",
        "楔子\n话说",
        "　　第一回\n话说",
        "",
        "\n\n",
    ],
)
def test_headings_indents_and_blank_lines_prevent_joins(text: str) -> None:
    assert joined(text) == text


def test_inline_heading_is_joined_to_the_next_line() -> None:
    chapter = "第二段  高俅奸佞虽堪恨，洪信从今"
    assert parse_heading(chapter) == ("第二段", "高俅奸佞虽堪恨，洪信从今")
    assert joined(f"走\n{chapter}\n酿祸胎。") == f"走\n{chapter}酿祸胎。"


def test_documents_are_never_joined() -> None:
    assert joined("走\0行\n坐\0\n卧\n\0立") == "走\0行坐\0\n卧\n\0立"


def test_joins_are_counted() -> None:
    counts: Counts = Counter()
    unwrap("走\n行\n坐。\n卧\n立", counts)
    assert counts == {"joins": 3}


PAGES = st.lists(
    st.sampled_from(
        [
            "\n",
            "\0",
            "　",
            " ",
            "。",
            "，",
            "”",
            "林",
            "𤣥",
            "第",
            "一回",
            "卷上",
            "楔子",
            "** ",
            "a",
            "1",
            "话说大宋" * 12,
        ]
    )
).map("".join)


@given(PAGES)
def test_unwrap_is_idempotent_and_changes_only_line_ends(text: str) -> None:
    once = joined(text)
    assert joined(once) == once
    assert once.count("\0") == text.count("\0")
    assert once.replace("\n", "").replace(" ", "") == text.replace("\n", "").replace(" ", "")


@given(PAGES, PAGES)
def test_documents_of_a_page_do_not_affect_each_other(one: str, other: str) -> None:
    assert joined(one + "\0" + other) == joined(one) + "\0" + joined(other)


@given(PAGES)
def test_rule_equals_the_function(text: str) -> None:
    assert decode_utf16(UNWRAP.apply(encode_utf16(text), Counter())) == joined(text)


@pytest.mark.parametrize("width", [21, 35])
def test_unwrap_restores_a_book_broken_into_print_lines(shared: Path, width: int) -> None:
    text = (shared / "data" / "shuihu_raw.txt").read_text(encoding="utf-8-sig")[:200_000]
    paragraphs = [line.rstrip() for line in text.replace(" ", "").split("\n") if line.endswith("。")]
    printed, join_count = [], 0
    for paragraph in paragraphs:
        lines = [paragraph[at : at + width] for at in range(0, len(paragraph), width)]
        join_count += sum(1 for line in lines[:-1] if joined(f"{line}\n走") == f"{line}走")
        printed += lines
    counts: Counts = Counter()
    unwrapped = unwrap("\n".join(printed), counts)
    assert counts["joins"] == join_count  # all except print lines that happen to end a sentence
    assert join_count > 0.9 * (len(printed) - len(paragraphs))
    assert unwrapped.replace("\n", "") == "".join(paragraphs)
