"""HTML inside of text files: tags go, lines and headings follow from them, and no text is taken for a tag."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.markup.html import html, is_html
from tests.pipeline.clean.pages import clean_documents

HAN = re.compile("[\u4e00-\u9fff]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("话说林冲。<br>又一日。<BR />却说宋江。", "话说林冲。\n又一日。\n却说宋江。"),
        ("<p>话说\n林冲。</p><p>又一日。</p>", "话说 林冲。\n又一日。"),
        ("<p>话说林冲。<p>又\n一日。", "话说林冲。\n又\n一日。"),
        ("<p>\n　　话说林冲。\n　　又一日。\n</p>", "　　话说林冲。\n　　又一日。"),
        ("<div>话说<b>林冲</b>，\n<font color='red'>走</font>。</div>", "话说林冲，\n走。"),
        ("<h2>第一回 风雪</h2><p>话说。</p>", "第一回 风雪\n话说。"),
        ("<h3>英雄谱</h3>话说。", "# 英雄谱\n话说。"),
        ("<td>黄帝</td><td>玄嚣</td>", "黄帝\n玄嚣"),
        ("话说<!-- 广告 -->林冲<script>var 甲=1<2;</script>。<style>p{}</style>", "话说林冲。"),
        ("<title>水浒传</title><ruby>林<rp>(</rp><rt>lin</rt><rp>)</rp></ruby>冲", "林冲"),
        ("&lt;p&gt;话说。&lt;/p&gt;&nbsp;又。", "话说。\n\xa0又。"),
        ("话说<![CDATA[林冲]]><![endif]>。<?xml version='1.0'?>", "话说林冲。"),
        ("<p>话说&KR0869;&又&amp;</p>", "话说&KR0869;&又&"),
    ],
)
def test_tags_become_line_ends_and_headings(text: str, expected: str) -> None:
    assert html(text, Counter()).text == expected


@pytest.mark.parametrize(
    "text",
    [
        "话说<甲>林冲</甲>，1 < 2。",
        "话说<b 林冲，走也。",
        "话说<b 林冲，走也。> 又。",
        "<!-- 话说林冲。",
        "话说</ 林冲。<? 走 ?>",
        "话说<script>林冲。",
        "<!甲>话说<![甲]>。",
        "<" * 300 + "话说",
    ],
)
def test_what_is_no_tag_or_is_not_closed_keeps_its_text(text: str) -> None:
    assert HAN.findall(html(text, Counter()).text) == HAN.findall(text)


def test_tags_are_counted_by_name() -> None:
    counts: Counter[str] = Counter()
    parsed = html("<h1>书名</h1><p>甲<br>&nbsp;乙</p><!-- 丙 --><script>丁</script>", counts)
    assert parsed.title == "书名"
    assert counts == {
        **{"<h1>": 2, "<p>": 2, "<br>": 1, "&nbsp;": 1, "<!-- -->": 1, "<script>": 2},
        "characters of <script>": 1,
    }


def test_dense_tags_of_html_make_a_text_html() -> None:
    assert is_html("<p>话说林冲。</p><p>又一日。</p>")
    assert not is_html("话说林冲。<br>" * 3 + "又一日。" * 2000)
    assert not is_html("<甲>话说</甲><乙>林冲</乙>" * 9)
    assert not is_html("<pb:甲><kr>话说</kr>" * 9)


@pytest.mark.parametrize("opening", ["<!--", "<a ", "<a b='", "<script>", "<", "</", "<p>", "&amp;"])
def test_repeated_opening_markup_takes_linear_time(opening: str) -> None:
    start = time.process_time()
    html(opening * 20_000, Counter())
    assert time.process_time() - start < 5


def test_headings_of_html_end_documents() -> None:
    text = "<h2>出版说明</h2><p>此书甚好。</p><h2>第一回 风雪</h2><p>话说&nbsp;林冲，走也。</p>"
    assert clean_documents(text, profile="html") == [("出版说明", "此书甚好。"), ("第一回 风雪", "话说林冲，走也。")]


PARTS = (
    *("<p>", "</p>", "<br>", "<h2>", "</h2>", "<甲>", "</", "<", ">", "&lt;"),
    *("林冲", "话说。", "\n", "　", "<b 甲", "<?"),
)


@given(st.lists(st.sampled_from(PARTS), max_size=30).map("".join))
def test_html_keeps_all_han_and_is_idempotent(text: str) -> None:
    once = html(text, Counter()).text
    assert Counter(HAN.findall(once)) == Counter(HAN.findall(text))
    assert "\0" not in once
    assert "\x01" not in once
