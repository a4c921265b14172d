"""Markdown marks go, and what they enclose stays."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.clean.markup.markdown import is_markdown, markdown
from tests.pipeline.clean.pages import clean_documents

BOOK = """### 【第二回】 风雪
----

&nbsp;&nbsp;话说林冲。 ```(侧批：好。)```  \n\
&nbsp;&nbsp;又一日。
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("话说 ```(批：好。)```林冲", "话说 (批：好。)林冲"),
        ("```text\n话说\n```\n林冲", "话说\n林冲"),
        ("甲\n---\n乙\n* * *\n丙\n___\n丁\n====", "甲\n乙\n丙\n丁\n"),
        ("话说**林冲**，***走***也。", "话说林冲，走也。"),
        ("** 重点 ** 甲**乙", "** 重点 ** 甲**乙"),
        ("> 话说\n> > 林冲", "话说\n林冲"),
        ("见[林冲](http://a.b/c)，![图](x.png)[注](一)。", "见林冲，[注](一)。"),
        ("# 卷一\n话说。  \n又。", "# 卷一\n话说。\n又。"),
        ("话说<br>林冲<br/>走<br>也", "话说\n林冲\n走\n也"),
        ("话说\\*林冲\\*，阿难\\[穀\\-禾\\+牛\\]取乳\\。", "话说*林冲*，阿难[穀-禾+牛]取乳\\。"),
        ("---\n话说。\n---\n又。", "话说。\n又。"),
        ("话说*林冲*走，a*b*c，***。", "话说林冲走，a*b*c，***。"),
        ("- 林冲\n* 宋江\n  + [x] 武松\n-甲", "林冲\n宋江\n武松\n-甲"),
        ('[目录](../README.md)[图](a/b.html "题")', "目录图"),
        ("[TOC]\n话说[^1]林冲\n\n[^1]: 好汉。", "话说[1]林冲\n\n[1]好汉。"),
        ("| 原文 | 译文 |\n| --- | :-: |\n| 道 | 路 |\n", "原文\n译文\n道\n路\n"),
        ("| 没有 | 表头 |\n", "| 没有 | 表头 |\n"),
        ("话说<!-- 注 -->林冲", "话说林冲"),
    ],
)
def test_marks_of_markdown_are_removed(text: str, expected: str) -> None:
    assert markdown(text, Counter()).text == expected


def test_removed_marks_are_counted() -> None:
    counts: Counter[str] = Counter()
    markdown(BOOK, counts)
    assert counts == {"```": 2, "----": 1, "line break": 1}


def test_notes_in_fences_follow_the_policy_of_their_brackets() -> None:
    [(_, kept)] = clean_documents(BOOK, profile="markdown")[-1:]
    assert kept.endswith("话说林冲。（侧批：好。）\n又一日。")
    [(_, dropped)] = clean_documents(BOOK, profile="markdown", notes=("（）=drop:侧批",))[-1:]
    assert dropped.endswith("话说林冲。\n又一日。")


def test_fences_or_headings_with_other_signs_make_a_text_markdown() -> None:
    assert is_markdown(BOOK)
    assert is_markdown("# 甲\n\n**乙**\n\n---\n\n> 丙\n")
    assert is_markdown("| 甲 | 乙 |\n|----|----|\n| 丙 | 丁 |\n")
    assert not is_markdown("# 甲\n\n---\n\n乙\n")
    assert not is_markdown("甲\n---\n乙\n---\n丙\n---\n")


def test_front_matter_is_title_and_meta_of_markdown() -> None:
    counts: Counter[str] = Counter()
    parsed = markdown(f"---\ntitle: 水浒\nauthor: 施耐庵\n---\n{BOOK}", counts)
    assert (parsed.title, parsed.meta) == ("水浒", {"author": "施耐庵"})
    assert parsed.text == markdown(BOOK, Counter()).text
    assert counts["--- front matter"] == 1


def test_markdown_with_front_matter_is_parsed() -> None:
    [(title, text)] = clean_documents("---\ntitle: 道德经\n---\n# 道德经\n```\n道*可*道\n```\n", profile="markdown")
    assert (title, text) == ("道德经", "道可道")
