"""Headings: chapters are found, and only the headings are removed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.rules.headings import MAX_TITLE, parse_heading, split_at_headings
from pipeline.clean.utf16 import encode_utf16
from pipeline.sources.order import parse_numeral
from tests.pipeline.clean.pages import clean_documents, cut_sections

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("第一回", "第一回"),
        ("第一回 高俅", "第一回 高俅"),
        ("第一回　老石工坑中得宝　青衣客雨夜求砚", "第一回 老石工坑中得宝 青衣客雨夜求砚"),
        ("　　第十二章  林教头风雪山神庙", "第十二章 林教头风雪山神庙"),
        ("第〇二节", "第〇二节"),
        ("第一百零八出", "第一百零八出"),
        ("第3章 标题", "第3章 标题"),
        ("第１６回　标题", "第１６回 标题"),
        ("水浒传第一段", "水浒传第一段"),
        ("卷三", "卷三"),
        ("卷之三", "卷之三"),
        ("卷上　本纪", "卷上 本纪"),
        ("楔子", "楔子"),
        ("楔子　张天师祈禳瘟疫", "楔子 张天师祈禳瘟疫"),
        ("引首", "引首"),
        ("序", "序"),
        ("序言", "序言"),
        ("自序", "自序"),
        ("跋", "跋"),
        ("凡例", "凡例"),
        ("附录", "附录"),
        ("正文 第一回 宴桃园豪杰三结义", "正文 第一回 宴桃园豪杰三结义"),
        ("《》目录 第一回　灵根育孕", "《》目录 第一回 灵根育孕"),
        ("三国演义　第二回　张翼德怒鞭督邮", "三国演义 第二回 张翼德怒鞭督邮"),
        ("第廿三回　西厢记妙词通戏语", "第廿三回 西厢记妙词通戏语"),
        ("第一回：甄士隐梦幻识通灵，贾雨村风尘怀闺秀", "第一回：甄士隐梦幻识通灵，贾雨村风尘怀闺秀"),
        ("第二回 贾夫人仙逝扬州城，冷子兴演说荣国府", "第二回 贾夫人仙逝扬州城，冷子兴演说荣国府"),
        ("第六十二回  憨湘云醉眠芍药茵？呆香菱情解石榴裙", "第六十二回 憨湘云醉眠芍药茵？呆香菱情解石榴裙"),
        ("第三章 他来了，我该走了吧！", "第三章 他来了，我该走了吧！"),
        ("第 5 章 空格", "第 5 章 空格"),
        ("第六章、顿号", "第六章、顿号"),
        ("第６章。句点", "第６章。句点"),
        ("【第八回】括号", "【第八回】括号"),
        ("【第八回　括号】", "【第八回 括号】"),
        ("（第十回）", "（第十回）"),
        ("卷第三", "卷第三"),
        ("史记卷一　五帝本纪第一", "史记卷一 五帝本纪第一"),
        ("大佛頂如來密因修證了義諸菩薩萬行首楞嚴經卷第一", "大佛頂如來密因修證了義諸菩薩萬行首楞嚴經卷第一"),
        ("《论语·学而篇第一》", "《论语·学而篇第一》"),
        ("5.1《伯夷列傳第一》", "5.1《伯夷列傳第一》"),
        ("尾声", "尾声"),
        ("后记", "后记"),
        ("前言　作者的话", "前言 作者的话"),
        ("番外一", "番外一"),
        ("番外：后来", "番外：后来"),
    ],
)
def test_own_line_heading_is_all_title(line: str, title: str) -> None:
    assert parse_heading(line) == (title, "")


@pytest.mark.parametrize(
    ("line", "title", "body"),
    [
        ("第二段  高俅奸佞虽堪恨，洪信从今酿祸胎。", "第二段", "高俅奸佞虽堪恨，洪信从今酿祸胎。"),
        ("水浒传第一段  话说大宋，天下太平。", "水浒传第一段", "话说大宋，天下太平。"),
        ("第３回　话说，林冲。", "第３回", "话说，林冲。"),
        ("第二回  王教头私走延安府  话说当时，住持真人。", "第二回 王教头私走延安府", "话说当时，住持真人。"),
        ("第二回　王教头私走延安府　话说当时，住持真人。", "第二回 王教头私走延安府", "话说当时，住持真人。"),
        ("第二回　王教头　九纹龙　　话说当时，真人。", "第二回 王教头 九纹龙", "话说当时，真人。"),
        ("第二回  “且慢  动手。”众人道。", "第二回", "“且慢  动手。”众人道。"),
        ("楔子  话说，天下。", "楔子", "话说，天下。"),
        ("第一回 西门庆热结十弟兄 武二郎冷遇亲哥嫂 诗曰：", "第一回 西门庆热结十弟兄 武二郎冷遇亲哥嫂", "诗曰："),
        (
            "第二回 賈夫人仙逝揚州城 冷子興演說榮國府 卻說，封肅。",
            "第二回 賈夫人仙逝揚州城 冷子興演說榮國府",
            "卻說，封肅。",
        ),
    ],
)
def test_inline_heading_is_split_from_the_body_of_its_line(line: str, title: str, body: str) -> None:
    assert parse_heading(line) == (title, body)


def test_long_line_without_punctuation_is_body() -> None:
    verse = "话说大宋天下" * 10
    assert len(verse) > MAX_TITLE
    assert parse_heading(f"第三回  {verse}") == ("第三回", verse)


@pytest.mark.parametrize(
    "line",
    [
        "第三回合交马，两人斗了三十余合。",
        "第三回合交马",
        "第一、要听将令。",
        "第一，要听将令。",
        "第一：要听将令。",
        "且说第三回的故事。",
        "他翻到书中，第三回 里写道",
        "序言里写着什么？",
        "卷起千堆雪",
        "跋山涉水",
        "楔子一般钉在那里。",
        "回第三",
        "",
        "　　",
        "话说大宋。",
        "且听第三回分解",
        "第三回：他走了。她也走了",
        "第一卷、第二卷、第三卷",
        "第三回：道：“走",
        "（第三回）宝玉道：“走。”",
        "卷一 终",
        "第三回 完",
        "前言不搭后语",
        "后记得此事",
        "手不释卷一日",
        "学而第一",
        "一 灭门",
        "《红楼梦》",
    ],
)
def test_prose_is_not_a_heading(line: str) -> None:
    assert parse_heading(line) is None


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("◎太祖一", "太祖一"),
        ("# 卷一", "卷一"),
        ("### 第三回 林冲", "第三回 林冲"),
        ("** 1 《學而篇第一》", "1 《學而篇第一》"),
        ("== 本紀 ==", "本紀"),
    ],
)
def test_markup_makes_a_heading(line: str, title: str) -> None:
    assert parse_heading(line) == (title, "")


@pytest.mark.parametrize("line", ["#话题", "**重点**是人。", "◎太祖起兵，天下响应。", "# " + "长" * MAX_TITLE])
def test_markup_before_a_sentence_or_long_line_is_not_a_heading(line: str) -> None:
    assert parse_heading(line) is None


def test_inline_and_own_line_heading_give_the_same_chapter() -> None:
    inline = cut_sections("第一回  话说，林冲。\n又一日。\n第二回  却说，宋江。")
    own_line = cut_sections("第一回\n话说，林冲。\n又一日。\n第二回\n却说，宋江。")
    assert [(part.title, part.text.strip("\n")) for part in inline] == [
        (part.title, part.text.strip("\n")) for part in own_line
    ]


WORDS = """
第 一 十二 3 廿 ０ 回 章 篇 卷 之 上 卷第 第三 终 诗曰： 林冲 · 《 》 水浒 正文 目录 1.2 A5. ◎ # ** == 【 】 （ ）
： 、 。 “ 楔子 引首 序 序言 自序 跋 凡例 附录 尾声 后记 前言 引子 后序 序章 终曲 番外
"""
PIECES = (*WORDS.split(), " ", "  ", "\t", "\u3000", "\u00a0")


@example(["《新编石头记全本》正文 ", "石头记卷之", "第一回"])
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=7))
def test_every_line_that_is_a_heading_is_looked_at(pieces: list[str]) -> None:
    line = "".join(pieces)
    headings = split_at_headings(encode_utf16(line), "keep").numbers
    assert len(headings) == (parse_heading(line) is not None)


def test_text_before_the_first_heading_has_no_title() -> None:
    first, second = cut_sections("话说大宋。\n第一回\n林冲。")
    assert first == ("", "话说大宋。", False)
    assert second == ("第一回", "\n林冲。", True)


@pytest.mark.parametrize("text", ["", "\n", "床前明月光\n疑是地上霜", "无标点的一整篇" * 100])
def test_text_without_headings_is_one_section(text: str) -> None:
    (only,) = cut_sections(text)
    assert only == ("", text, False)


MARKS = st.sampled_from(["第一回", "第３段", "卷上", "楔子", "# ", "◎", "==", "  ", "\u3000", "\t", " ", "\n"])
PROSE = st.sampled_from(["水浒传", "林冲", "，", "。", "”", "𤣥", "\ue10e", "话说大宋天下太平无事" * 4])
LINES = st.lists(MARKS | PROSE, max_size=60).map("".join)


@given(LINES)
def test_sections_hold_the_lines_of_the_text_in_order(text: str) -> None:
    lines = "\n".join(part.text for part in cut_sections(text)).split("\n")
    assert len(lines) == text.count("\n") + 1
    assert all(line.endswith(body) for line, body in zip(text.split("\n"), lines, strict=True))


def test_all_161_headings_of_shuihu_are_found_in_order(shared: Path) -> None:
    parts = cut_sections((shared / "data" / "shuihu_raw.txt").read_text(encoding="utf-8-sig"))
    assert all(part.headed for part in parts)
    assert [parse_numeral(part.title[part.title.index("第") + 1 : -1]) for part in parts] == list(range(1, 162))


def test_shuihu_loses_only_the_han_characters_of_its_headings(shared: Path) -> None:
    text = (shared / "data" / "shuihu_raw.txt").read_text(encoding="utf-8-sig")
    parts = cut_sections(text)
    in_titles = sum(len(HAN.findall(part.title)) for part in parts)
    in_text = sum(len(HAN.findall(part.text)) for part in parts)
    assert in_text + in_titles == len(HAN.findall(text))
    assert all(re.fullmatch("(水浒传)?第[一二三四五六七八九十百零]+段", part.title) for part in parts)


@pytest.mark.parametrize(
    ("numeral", "value"),
    [
        ("一", 1),
        ("十", 10),
        ("十二", 12),
        ("二十", 20),
        ("一百零八", 108),
        ("一百六十一", 161),
        ("一〇八", 108),
        ("两千三百", 2300),
        ("108", 108),
        ("１０８", 108),
        ("二十四", 24),
        ("百二十", 120),
        ("廿三", 23),
        ("卅", 30),
        ("一百廿", 120),
    ],
)
def test_numeral_is_parsed(numeral: str, value: int) -> None:
    assert parse_numeral(numeral) == value


@pytest.mark.parametrize("mark", ["", "— 1 —\n", "- 1 -\n\n", "·1·\n", "第1页\n"])
def test_a_repeated_heading_with_a_page_number_inside_a_sentence_is_a_running_head(mark: str) -> None:
    text = f"红楼梦　第一回　　1\n今风尘碌碌，半生潦倒，一事无成，忽念\n{mark}红楼梦　第一回　　2\n及当日所有之女子。\n"
    assert clean_documents(text) == [
        ("红楼梦 第一回", f"今风尘碌碌，半生潦倒，一事无成，忽念\n{mark}及当日所有之女子。".replace("\n\n", "\n"))
    ]


def test_the_running_head_of_a_chapter_may_have_a_shorter_title() -> None:
    text = "第二回　王教头私走延安府\n且说史进在路，免不得饥餐渴饮，夜住\n水浒传　第二回　　12\n走了。\n第三回\n走了。"
    assert clean_documents(text) == [
        ("第二回 王教头私走延安府", "且说史进在路，免不得饥餐渴饮，夜住\n走了。"),
        ("第三回", "走了。"),
    ]


def test_parts_of_a_chapter_that_repeat_its_number_are_chapters() -> None:
    text = "第一章 坐斗 1\n他来了。\n未完待续\n第一章 坐斗 2\n他走了。"
    assert clean_documents(text) == [("第一章 坐斗 1", "他来了。\n未完待续"), ("第一章 坐斗 2", "他走了。")]


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("〈第一回〉　靈根育孕源流出", "〈第一回〉 靈根育孕源流出"),
        ("『第三回』　四海千山皆拱伏", "『第三回』 四海千山皆拱伏"),
        ("第五回/发矫诏诸镇应曹公/破关兵三英战吕布", "第五回/发矫诏诸镇应曹公/破关兵三英战吕布"),
        ("☆、第一章 重生", "第一章 重生"),
        ("☆、楔子", "楔子"),
        ("======第四章 夜雨======", "第四章 夜雨"),
        ("----第五章 晨光----", "第五章 晨光"),
        ("聊齋志異 卷之三", "聊齋志異 卷之三"),
        ("漢書卷六十二·司馬遷傳第三十二", "漢書卷六十二·司馬遷傳第三十二"),
        ("三國志·卷一·魏書一·武帝紀第一", "三國志·卷一·魏書一·武帝紀第一"),
        ("晉書/卷001 帝紀第一", "晉書/卷001 帝紀第一"),
        ("《資治通鑒》卷第一百九十一", "《資治通鑒》卷第一百九十一"),
        ("第○一回 靈根育孕源流出", "第○一回 靈根育孕源流出"),
        ("第壹佰零壹回 功成", "第壹佰零壹回 功成"),
        ("楔 子", "楔 子"),
        ("尾　　声", "尾 声"),
        ("番外篇：夏", "番外篇：夏"),
        ("译后记", "译后记"),
        ("再版前言", "再版前言"),
        ("内容简介", "内容简介"),
        ("第一囘　甄士隱", "第一囘 甄士隱"),
        ("第二幕", "第二幕"),
        ("第三章（上） 归来", "第三章（上） 归来"),
        ("第十章 再见……", "第十章 再见……"),
        ("第五章 “你是谁？”", "第五章 “你是谁？”"),
        ("射雕英雄传：第二章 江南七怪", "射雕英雄传：第二章 江南七怪"),
        ("【射雕英雄传】第四章 黑风双煞", "【射雕英雄传】第四章 黑风双煞"),
        ("射雕英雄传 > 第五章 弯弓", "射雕英雄传 > 第五章 弯弓"),
        ("附录：人名索引", "附录：人名索引"),
        ("下册", "下册"),
    ],
)
def test_shapes_of_sites_and_prints_are_headings(line: str, title: str) -> None:
    assert parse_heading(line) == (title, "")
    assert [section.title for section in cut_sections(f"甲\n{line}\n乙") if section.headed] == [title]


@pytest.mark.parametrize(
    "line",
    [
        "——《红楼梦》第三回",
        "——第三回",
        "「第五回」在那裡",
        "☆、他来了",
        "=====",
        "卷一看，原来是账簿",
        "后 记得要关门",
        "作者的前言不搭后语",
        "下册已经看完了",
        "他说：第二章不好",
    ],
)
def test_citations_and_sentences_are_no_headings(line: str) -> None:
    assert parse_heading(line) is None
