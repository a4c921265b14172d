"""Markup parsers remove the markup and keep the text, and no plain book is detected as marked up."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.markup.detect import cbeta, chat_log, daizhige, detect, html, kanripo, markdown, org, wikitext_lite
from pipeline.clean.markup.parsed import MAX_DEPTH, MAX_NOTE, Parsed
from pipeline.clean.rule import Counts

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")
Parse = Callable[[str, Counts], Parsed]
PARSERS: tuple[Parse, ...] = (kanripo, chat_log, daizhige, wikitext_lite, org, html, markdown, cbeta)


def text_of(parse: Parse, text: str) -> str:
    return parse(text, Counter()).text


def counts_of(parse: Parse, text: str) -> dict[str, int]:
    counts: Counts = Counter()
    parse(text, counts)
    return dict(counts)


# Kanripo

PRINT = """# -*- mode: mandoku-view; -*-
#+TITLE: 浙西水利書
#+DATE: 2016-02-05 10:04:23
#+PROPERTY: ID KR2k0135
#+PROPERTY: BASEEDITION WYG    \n\
#+PROPERTY: JUAN 卷二
#+PROPERTY: JUAN 卷三
<pb:KR2k0135_WYG_002-1a>¶
余乆擬西南遊¶
遷延未果(浙江/)今年¶
<pb:KR2k0135_WYG_002-1b>¶
# src: 一
乃得&KR0869;行<pb:KR2k0135_WYG_002-2a>䷀也¶
¶
　又一日¶
　　記之
"""


def test_print_lines_are_joined_across_pages_and_comments_up_to_an_indent() -> None:
    counts: Counts = Counter()
    parsed = kanripo(PRINT, counts)
    assert parsed.text == "余乆擬西南遊遷延未果(浙江/)今年乃得&KR0869;行䷀也\n\n　又一日\n　　記之\n"
    assert counts == {"# line": 8, "<pb:>": 3, "¶": 7}


def test_first_title_and_property_of_a_kanripo_file_count() -> None:
    parsed = kanripo(PRINT, Counter())
    assert parsed.title == "浙西水利書"
    assert parsed.meta == {"date": "2016-02-05 10:04:23", "id": "KR2k0135", "baseedition": "WYG", "juan": "卷二"}


def test_short_print_line_ends_its_paragraph() -> None:
    full = [
        "夏侯惇字元讓沛國譙人夏侯嬰之後也年十四就師",
        "師學人有辱其師者惇殺(之/由)是以烈氣聞&KR0001;太祖曰善",
    ]
    page = ["　魏志卷一", "晉著作郎陳壽撰", *full, "徙屯白馬", *full * 10, "終(一/二"]
    counts: Counts = Counter()
    parsed = kanripo("¶\n".join([*page, ""]), counts)
    assert parsed.text.split("\n") == [
        "　魏志卷一",
        "　晉著作郎陳壽撰",
        "　" + "".join(full) + "徙屯白馬",
        "　" + "".join(full * 10) + "終(一/二",
        "",
    ]
    assert counts == {"¶": 26, "short ¶ line": 2}


@pytest.mark.parametrize(
    "lines",
    [
        ["床前明月光", "疑是"] * 19,  # too few lines
        ["床前明月光", "疑是"] * 25 + ["夏侯惇字元讓沛國譙人"] * 3,  # the most common length is not the longest
        [line for length in range(3, 9) for line in ["夏侯惇字元讓沛國譙"[:length]] * 25],  # none has a third
    ],
)
def test_all_print_lines_are_joined_if_the_width_is_unknown(lines: list[str]) -> None:
    assert text_of(kanripo, "".join(f"{line}¶\n" for line in lines)) == "".join(lines) + "\n"


def test_headings_stay_separate_lines() -> None:
    text = "** 14 《憲問篇第十四》¶\n14.1憲問恥。¶\n子曰：¶\n「克、¶伐、怨」¶\n"
    text += "*** 小題¶\n第二回 某某¶\n話說¶\n卷三¶\n又¶\n"
    parsed = kanripo(text, Counter())
    assert parsed.text == "** 14 《憲問篇第十四》\n憲問恥。子曰：「克、伐、怨」\n** 小題\n第二回 某某\n話說\n卷三\n又\n"


def test_reading_and_property_lines_are_removed_and_counted() -> None:
    text = "士而懷居¶\n士@shì\n之@fw\n:PROPERTIES:\n:CUSTOM_ID: x\n:END:\n不足以為士矣¶\n<md:KR1_CHANT>"
    assert text_of(kanripo, text) == "士而懷居不足以為士矣\n"
    assert counts_of(kanripo, text) == {"@ line": 2, ": line": 3, "¶": 2, "<md:>": 1}


@pytest.mark.parametrize("text", ["甲<pb:KR1_001-1a乙¶\n丙", "甲<pb:KR1_001-1a\n乙丙", "甲<pb:乙丙"])
def test_unclosed_page_mark_removes_no_text(text: str) -> None:
    parsed = text_of(kanripo, text)
    assert HAN.findall(parsed) == HAN.findall(text)
    assert "<pb:" not in parsed


MANDOKU = st.lists(
    st.sampled_from(
        (
            *("\n@fw甲", "|", "\n1.1禹", "\n1《禹》\n", "寅　卯", "　" * 3 + "甲" * 14, "¶\n", "\n", "¶"),
            *("<pb:KR1_A_1-1a>", "　", "林冲", "話說", "。", "** ", "第一回", "&KR1;", "卷上", "𤣥"),
        )
    )
).map("".join)


@given(MANDOKU)
def test_kanripo_removes_all_marks_keeps_every_character_and_is_idempotent(text: str) -> None:
    once = text_of(kanripo, text)
    assert "¶" not in once
    assert "<pb:" not in once
    assert HAN.findall(once) == HAN.findall(text)
    assert text_of(kanripo, once) == once


# daizhige

MARKDOWN = """---
title:
  zh-hans: 瑟谱
  zh-hant: 瑟譜
author: "熊朋来"
category: /儒藏/乐经
lastmod: 2018-11-26T23:04:21Z
additional_info:
  - 转换自 txt 版本
external_links:
  ctext:
    - ctp:wb919315
    - ctp:wb897127
---

　　钦定四库全书　　　　经部九  \n\
　　【臣】等谨案○瑟谱〔六〕卷  \n\
# 卷一

　　总纂官【臣】纪昀　【臣】陆锡熊
"""


def test_front_matter_becomes_title_author_and_meta() -> None:
    counts: Counts = Counter()
    parsed = daizhige(MARKDOWN, counts)
    assert parsed.text.split("\n") == [
        "　　钦定四库全书　　　　经部九",
        "　　【臣】等谨案○瑟谱〔六〕卷",
        "# 卷一",
        "",
        "　　总纂官【臣】纪昀　【臣】陆锡熊",
        "",
    ]
    assert parsed.title == "瑟谱"
    assert parsed.meta["author"] == "熊朋来"
    assert parsed.meta["title.zh-hant"] == "瑟譜"
    assert parsed.meta["external_links.ctext"] == "ctp:wb919315; ctp:wb897127"
    assert counts == {"--- front matter": 1, "line break": 2}


@pytest.mark.parametrize(
    "text",
    [
        "---\ntitle: 瑟谱\n　　钦定四库全书\n　　瑟谱\n",
        "---\ntitle: 瑟谱\n" + "话说林冲。\n" * 500,
        "---\ntitle: 瑟谱\n" + "key: v\n" * 500 + "---\n话说",
        "---\n话说林冲。\n---\n却说宋江。\n",
        "---\n",
        "---\ntitle: " + "长" * 5000,
    ],
)
def test_unclosed_front_matter_is_text(text: str) -> None:
    counts: Counts = Counter()
    parsed = daizhige(text, counts)
    assert (parsed.text, parsed.title, parsed.meta) == (text, "", {})
    assert counts == {"unclosed ---": 1}


def test_escapes_of_markdown_are_removed() -> None:
    counts: Counts = Counter()
    assert daizhige("阿难\\[穀\\-禾\\+牛\\]取乳", counts).text == "阿难[穀-禾+牛]取乳"
    assert counts == {"\\ escape": 4}


def test_text_without_front_matter_is_unchanged() -> None:
    assert daizhige("　　话说。\n---\n又", Counter()) == Parsed("　　话说。\n---\n又")


@given(st.text(alphabet="---\n: 　话说ab", max_size=80))
def test_daizhige_is_idempotent_on_text_without_front_matter(text: str) -> None:
    once = text_of(daizhige, text)
    assert text_of(daizhige, once) == once


# Wikisource

WIKI = """{{Header
| title    = 唐書
|section=卷一
|author=[[作者:歐陽修|歐陽修]]等
|previous=
|next=[[../卷0002|卷二]]
|notes=據{{PD-old|x}}本
}}
__NOEDITSECTION__
<!-- 校對
中 -->
=高祖皇帝=
==[[授老人等官教]]==
{{:授老人等官教}}
{{YL|{{專|慶曆}}四年|1044年}}春，[[w:滕子京|滕子京]]謫守[[巴陵]]。{{*|雙行{{另|霪|淫}}註}}<br/>
又<ref name="a">校<b>注</b></ref>曰<ref name=a />
{| class="x"
| 表
{|
| 表中表
|}
|}
<poem>
:蘇子-{}-過<u>赤壁</u>，-{乾}-坤-{zh-hans:云;zh-hant:雲}--{T|zh:題}-
</poem>
&nbsp;&KR0001;&lt;'''終'''
[[Category:唐]][[分類:史|一]]
{{唐朝作品}}"""


def test_wikitext_keeps_text_notes_and_headings() -> None:
    lines = text_of(wikitext_lite, WIKI).split("\n")
    assert [line for line in lines if line] == [
        "==高祖皇帝==",
        "==授老人等官教==",
        "慶曆四年春，滕子京謫守巴陵。（雙行霪註）",
        "又曰",
        "蘇子過赤壁，乾坤雲",
        "\xa0&KR0001;<終",
    ]


def test_wikitext_header_gives_title_author_and_meta_without_navigation() -> None:
    parsed = wikitext_lite(WIKI, Counter())
    assert (parsed.title, parsed.meta) == ("唐書", {"section": "卷一", "author": "歐陽修等", "notes": "據本"})


def test_wikitext_section_is_the_title_if_the_title_is_a_link_to_the_parent() -> None:
    assert wikitext_lite("{{Collection header|title=[[../]]|section=卷一}}\n甲", Counter()).title == "卷一"


def test_removed_wikitext_is_counted_by_kind() -> None:
    counts = counts_of(wikitext_lite, WIKI)
    expected = {"{{:page}}": 1, "{{header}}": 1, "{{*|}}": 1, "{{專|}}": 1, "{{唐朝作品}}": 1, "{|": 2, "<ref>": 2}
    assert {kind: counts[kind] for kind in expected} == expected
    assert not [kind for kind in counts if kind.startswith("unclosed")]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("甲{{壞 ", "unclosed {{"),
        ("{{header|title=", "unclosed {{"),
        ("甲}}", "unclosed {{"),
        ("甲<ref>", "unclosed <ref"),
        ("甲<!-- ", "unclosed <!--"),
        ("甲\n{| class=x\n", "unclosed {|"),
    ],
)
def test_unclosed_markup_removes_no_text(text: str, kind: str) -> None:
    book = "話說林冲，\n{{*|注}}走<ref>校</ref>也。\n" * 2000
    parsed = text_of(wikitext_lite, text + book)
    assert len(HAN.findall(parsed)) == len(HAN.findall(text)) + len(HAN.findall(book)) - 2000  # the 校 of each <ref>
    assert counts_of(wikitext_lite, text + book)[kind] >= 1


@pytest.mark.parametrize(
    ("opening", "closing"), [("{{壞|", "}}"), ("<ref>", "</ref>"), ("<!--", "-->"), ("\n{|\n", "\n|}\n")]
)
def test_markup_closed_too_far_away_counts_as_unclosed(opening: str, closing: str) -> None:
    book = "話說林冲，走也。\n" * 8000
    assert len(book) > MAX_NOTE
    assert text_of(wikitext_lite, opening + book + closing).count("話") == 8000


def test_note_that_stays_in_the_text_may_be_long() -> None:
    note = "注" * (2 * MAX_NOTE)
    assert text_of(wikitext_lite, "{{*|" + note + "}}") == f"（{note}）"


@pytest.mark.parametrize("opening", ["{{", "<ref>", "<!--", "[[", "-{", "{|\n", "<b ", "{{a|", "[//x "])
def test_repeated_opening_markup_takes_linear_time(opening: str) -> None:
    start = time.process_time()
    text_of(wikitext_lite, opening * 20_000)
    assert time.process_time() - start < 10


def test_too_deeply_nested_templates_stay() -> None:
    text = "{{" * (MAX_DEPTH + 10) + "甲" + "}}" * (MAX_DEPTH + 10)
    assert counts_of(wikitext_lite, text)["unclosed {{"] > 0
    assert text_of(wikitext_lite, "{{a|" * (MAX_DEPTH - 1) + "甲" + "}}" * (MAX_DEPTH - 1) + "乙") == "乙"


WIKI_PARTS = [
    *("{{", "}}", "*|", "甲", "乙，", "\n", "[[", "|", "]]", "<ref>", "</ref>"),
    *("-{", "}-", "==", "{|\n", "\n|}\n"),
]


@given(st.lists(st.sampled_from(WIKI_PARTS), max_size=40).map("".join))
def test_wikitext_adds_no_character_and_is_deterministic(text: str) -> None:
    once = text_of(wikitext_lite, text)
    assert not Counter(HAN.findall(once)) - Counter(HAN.findall(text))
    assert text_of(wikitext_lite, text) == once


# org


def test_org_keeps_headings_and_drops_keywords_comments_drawers_and_link_targets() -> None:
    text = "#+TITLE: 論語\n#+AUTHOR: 孔門\n* 學而\n:PROPERTIES:\n:ID: a\n:END:\n# 批\n"
    text += "#+BEGIN_VERSE\n子曰 [[file:a][學]]而\n#+END_VERSE\n#話題\n"
    counts: Counts = Counter()
    parsed = org(text, counts)
    assert parsed == Parsed("** 學而\n子曰 學而\n#話題\n", "論語", {"author": "孔門"})
    assert counts == {"# line": 5, ": line": 3, "[[]]": 1}


# Detection


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (PRINT, "kanripo"),
        ("\ufeff" + PRINT, "kanripo"),
        ("# -*- mode: mandoku-view -*-\n#+TITLE: 論語\n", "kanripo"),
        ("#+TITLE: 論語\n#+PROPERTY: ID KR1h0004\n論", "kanripo"),
        ("<pb:KR1h0004_CHANT_014-1a>¶\n子曰¶\n", "kanripo"),
        ("#+TITLE: 論語\n* 學而\n", "org"),
        ("# -*- mode: org; -*-\n論", "org"),
        (MARKDOWN, "daizhige"),
        ("---\ntitle: 三国志\n---\n　　太祖", "daizhige"),
        ("---\ntitle: 三国志\n---\n# 卷一\n\n**太祖**见[注](#a)。\n> 又\n", "markdown"),
        ("---\ntitle:\n  zh-hans: 三国志\n---\n# 卷一\n\n**太祖**见[注](#a)。\n> 又\n", "daizhige"),
        (WIKI, "wikitext-lite"),
        ("{{header2|title=甲}}\n", "wikitext-lite"),
        ("<!-- x -->\n<noinclude>{{Novel header\n|title=甲}}", "wikitext-lite"),
        ("== 本紀 ==\n[[w:太祖|太祖]]起兵。{{*|注}}\n", "wikitext-lite"),
        ("<html><body>话说</body></html>", "html"),
        ("话说林冲。<br>又一日。<br/>却说宋江。<BR />", "html"),
        ("&lt;p&gt;话说林冲。&lt;/p&gt;&lt;p&gt;又一日。&lt;/p&gt;", "html"),
        ("话说林冲。 ```(批：好。)``` 又一日。\n", "markdown"),
        ("# 卷一\n\n---\n\n**话说**林冲。\n\n> 又一日。\n", "markdown"),
        ("T08n0251_p0848c07║觀自在菩薩\n" * 3, "cbeta"),
        ("#-----\n#【經文資訊】大正藏第八冊 No. 251《心經》\n\n觀自在菩薩。\n", "cbeta"),
    ],
)
def test_markup_is_detected_by_its_header(head: str, name: str) -> None:
    assert detect(head) == name


@pytest.mark.parametrize(
    "head",
    [
        "",
        "\n\n",
        "第一回　風雪\n　　話說林冲。\n",
        "# 水浒传\n\n## 第一回\n\n话说林冲。\n",
        "#1 话说\n#2 又\n",
        "#话题# 今日\n",
        "# src: 甲\n话说\n",
        "----\n话说\n----\n",
        "---\n话说林冲：走。\n---\n又\n",
        "---\n序: 话说\n---\n又\n",
        "---\nauthor: x\n话说\n",
        "---\ntitle: x\n话说林冲\n---\n",
        "---\ntitle: x\n",
        "{{他说}}，话说林冲。\n",
        "{header}话说\n",
        "== 分隔 ==\n话说{{甲}}。\n",
        "[[注]]话说{{甲}}。\n",
        "** 重点 **\n话说\n",
        "* 甲\n* 乙\n",
        "话说<pb:甲>林冲¶\n",
        "¶话说林冲¶\n",
        "他写道：#+TITLE: 论语\n",
        "<poem>\n床前明月光\n</poem>\n",
    ],
)
def test_plain_text_with_similar_marks_is_plain(head: str) -> None:
    assert detect(head) == "plain"


@pytest.mark.parametrize(
    ("name", "detected"), [("shuihu_raw.txt", {"plain"}), ("song_ci.txt", {"plain", "poems"})]
)  # a part of 4,096 characters may have fewer than ten poems
def test_real_books_have_no_markup_from_any_offset(shared: Path, name: str, detected: set[str]) -> None:
    text = (shared / "data" / name).read_text(encoding="utf-8-sig")
    assert {detect(text[start : start + 4096]) for start in range(0, len(text), 4096)} == detected


@given(st.text(alphabet="#+-*={}[]<>:¶|@ \n　话说。ab", max_size=200))
def test_no_parser_fails_on_any_text(text: str) -> None:
    detect(text)
    for parse in PARSERS:
        parsed = parse(text, Counter())
        assert "\0" not in parsed.text


@pytest.mark.parametrize("parse", PARSERS)
def test_plain_chinese_text_is_unchanged_by_every_parser(parse: Parse, shared: Path) -> None:
    text = (shared / "data" / "shuihu_raw.txt").read_text(encoding="utf-8-sig")
    counts: Counts = Counter()
    parsed = parse(text, counts)
    assert (parsed, counts) == (Parsed(text), {})
