"""Site ads: addresses, notices, navigation and lines of marks are counted, and removed if asked."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clean.options import CleanOptions
from pipeline.clean.report import problems, render
from pipeline.clean.report.report import CleaningReport
from pipeline.clean.rule import Counts, Effect
from pipeline.clean.rules import site_ads
from pipeline.clean.utf16 import HAN as HAN_CHARACTERS
from pipeline.clean.utf16 import decode_utf16, encode_utf16
from tests.pipeline.clean.pages import clean_documents

HAN = re.compile(f"[{HAN_CHARACTERS}]")
BODY = "话说当日林冲正闲走间，忽然背后人叫。"
ADS = (
    "请收藏本站：https://www.example.com。",
    "請收藏本站，方便下次閱讀！",
    "Ww w.exa mpletxT.ne t",
    "ＷＷＷ．ＥＸＡＭＰＬＥ．ＣＯＭ",
    "w-w-w.e x.c-o-m",
    "example.net",
    "小说天堂 www.example.com",
    "看书网www点example点com首发",
    "（本章未完，请点击下一页继续阅读）",
    "『加入书签，方便阅读』",
    "上一章 返回目录 下一章",
    "【上一回】【回目录】【下一回】",
    "更新时间:2007-11-16 7:55:51 本章字数:4804",
    "更新時間：2010-1-1 本章字數：3210",
    "------章节内容开始-------",
    "作品仅供读者预览,请在下载24小时内删除，不得用作商业用途；请您购买正版图书!",
    "PS：求月票，求推荐票！",
    "天才一秒记住本站地址：www.example.com，最快更新！无广告！",
    "更多好书，更多精彩，请访问本页",
    "『加入書籤，投推薦票』",
    "手機用戶請訪問筆趣閣",
    "公众号：好书，回复“风雪”获取更多精彩内容。",
    "关注公众号【书友】，送现金！",
    "手打全文字更新，无弹窗",
    "最快的连载作品尽在起点原创！",
    "飞卢小说网 b.example.com 欢迎您！",
    "章节错误,点此举报(免注册),维护人员会在两分钟内校正章节内容,请耐心等待。",
    "感谢书友“清风”打赏100币！",
    "——今天第三更，求月票——",
    "上一篇：第一章 山中 下一篇：第三章 雪夜",
    "投推荐票 上一章 章节目录 下一章 加入书签",
    "手机用户请浏览m.example.com阅读，更优质的阅读体验。",
    "本书由风雪书社整理制作",
    "『點此報錯』『加入書籤』",
    "喜欢《风雪》请向你的朋友（QQ、博客等）推荐本书，谢谢您的支持！！",
    "正在手打中，请稍等片刻，内容更新后，请重新刷新页面。",
    "為了方便下次閱讀，你可以點擊下方的收藏，下次打開書架即可看到！",
    "風雪 23 x. c o m 更新最快",
    "read_middle();",
    "附：【本作品来自互联网,本人不做任何负责】内容版权归作者所有!",
    "chaptererror();style5('a1');",
)
MARKS = ("------------", "=====", "☆☆☆☆", "* * *", "╔☆→——————←☆╗")
PIECES = st.sampled_from(
    [*ADS, *MARKS, BODY, "“好！”", "第三章 风雪", "www", ".com", "收藏", " ", "\n", "\0", "𠮷", "，"]
)


def run(text: str, *, remove: bool = True) -> tuple[str, Counts]:
    counts: Counts = Counter()
    return decode_utf16(site_ads.rule(remove=remove).apply(encode_utf16(text), counts)), counts


@pytest.mark.parametrize("ad", [*ADS, *MARKS])
def test_line_of_ads_goes_with_its_line_end(ad: str) -> None:
    assert run(f"{BODY}\n　　{ad}\n{BODY}")[0] == f"{BODY}\n{BODY}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("当初多得林冲看顾。(未完待续。)", "当初多得林冲看顾。"),
        ("“好！”（本章未完）", "“好！”"),
        ("林冲大惊，read_xia();翻身下马。", "林冲大惊，翻身下马。"),
        ("林冲大喜笔趣阁www.example.info，遂命进兵。", "林冲大喜，遂命进兵。"),
        ("林冲【书屋 www.example.info】大喜，遂命进兵。", "林冲大喜，遂命进兵。"),
        ("林冲大喜(看书·悠~悠 www.example.com)，遂命进兵。", "林冲大喜，遂命进兵。"),
        ("林冲大喜,(全文字阅读,更新,尽在文学网,电脑站:www.16k.cn支持文学!)遂命进兵。", "林冲大喜,遂命进兵。"),
        ("话说当日林冲Ww w.exa mple.co m正闲走间。", "话说当日林冲正闲走间。"),
        (f"{BODY}请收藏本站：www.example.com！{BODY}", f"{BODY}{BODY}"),
        ("第一章 风雪山神庙 www.example.cc", "第一章 风雪山神庙 "),
        ("第一回 宴桃园豪杰三结义 更新时间:2007-11-16 7:55:51 本章字数:4804", "第一回 宴桃园豪杰三结义 "),
    ],
)
def test_only_the_ad_goes_from_a_line_with_text(line: str, expected: str) -> None:
    assert run(f"{BODY}\n{line}\n{BODY}")[0] == f"{BODY}\n{expected}\n{BODY}"


def test_sentence_of_foreign_words_is_not_the_name_of_a_site() -> None:
    line = "The site example.com is the home of standards，网页标准由它制定。"
    assert run(line)[0] == line.replace("example.com", "")


def test_ad_in_a_chapter_of_one_line_goes_alone() -> None:
    chapter = BODY * 200
    assert run(f"{chapter}（未完待续）{chapter}www.example.com{chapter}")[0] == chapter * 3


def test_bracket_of_several_sentences_goes_and_the_quote_before_it_stays() -> None:
    chapter = BODY * 200 + "那人道：“好！”"
    ad = "(未完待续。如果您喜欢这部作品，欢迎您来起点（example.com）投推荐票，您的支持，就是我最大的动力。)"
    assert run(f"{chapter}{ad}{chapter}")[0] == chapter * 2


@pytest.mark.parametrize(
    "text",
    [
        "那人道：“请收藏这本书罢。”",
        "他在返回目录厅的路上说了一番话，众人都道好。",
        "林冲道：“本站在此。”且听下回分解。",
        "诗之首章，下一章言其志。更新百度，推荐二人。",
        "见 README.md 文，版本 v1.0；he said: a.b, w w",
        "上一回说到林冲。",
        "“求你了，求订阅！”他对着屏幕大喊，“求月票！”",
        "她把书递给他，“记得收藏好，别丢了。”",
        "手机用户越来越多，手机阅读成了习惯。电脑用户应当定期更新系统。",
        "她把文件下载到电脑里，下载完成后删除了邮件。免费下载软件有风险。",
        "版权所有者有权禁止复制。全文阅读完毕，请回答下列问题。",
        "本站是终点站，请乘客下车。本站提供热水。",
        "未完待续的故事，总是让人牵挂。",
        "我们将在下一章继续讨论这个问题，以上意见仅供读者参考。",
        "他从不购买正版软件。一切尽在掌握之中，网络也不例外。",
        "该书由中华书局整理出版，文章由王五校对，照片由网友提供。",
        "数据实时更新，手机同步更新。",
        "他要求推荐一人，请求推荐。此物请您收藏。",
        "最快更新也要等到明天。请关注公众号文章的质量。请旅客关注本站公告。",
        "他在百度搜索“小说”二字，结果有三百万条。公司推出手机版，手机版网址尚未公布。",
        "函数 f(x); 与 print(a); 不同，（见上）；以及 main();",
        "在手机上点击下一页就能看。系统提示：点击继续。网站的版权归公司所有。",
        "文字首发明之。更多好书，尽在此中。今日第三更鼓响。欢迎书友光临寒舍。",
        "用户上传之后即可。他下载txt文件，电子书下载很方便。关注一个公众号很容易。读者群5人。",
        "一秒记住一个单词的方法。他的QQ群号是123456，微信公众号是“春天”。",
        "无广告的日子真好。书包网住了一条鱼。",
    ],
)
def test_words_of_ads_in_prose_are_kept(text: str) -> None:
    assert run(text) == (text, Counter())


def test_ads_are_counted_by_their_text_and_left_by_default() -> None:
    text = f"{BODY}\n更新时间:2007-1-2 本章字数:41\n{BODY}\n更新时间:2008-3-4 本章字数:5\n-----\nexample.com"
    cleaned, counts = run(text, remove=False)
    assert cleaned == text
    assert counts == {"left: 更新时间:0-0-0 本章字数:0": 2, "left: example.com": 1}
    assert run(text)[1] == {"更新时间:0-0-0 本章字数:0": 2, "example.com": 1, "lines of marks": 1}


def test_rare_ads_of_a_page_are_counted_together() -> None:
    text = "\n".join(f"{chr(ord('a') + n % 26) * (n // 26 + 3)}.com" for n in range(50))
    counts = run(text)[1]
    assert (len(counts), counts["other ads"], sum(counts.values())) == (21, 30, 50)


def test_warning_names_the_option_and_the_commonest_ads() -> None:
    report = CleaningReport()
    effect = Effect()
    _, effect.counts = run("请收藏本站！\n请收藏本站！\nexample.com", remove=False)
    report.add_effects(0, {"site-ads": effect}, 0)
    [warning] = problems.warnings(report)
    start = 'SITE ADS in 3 lines: --boilerplate site-ads (in a recipe: boilerplate = ["site-ads"] in [clean]); '
    assert warning == start + "请收藏本站！ 2, example.com 1"
    json.dumps(render.to_json(report), ensure_ascii=False)


def test_option_removes_ads_before_headings_and_also_those_with_spaces_between() -> None:
    text = f"第一章 风雪\n请收藏本站！\n{BODY}\n请 收 藏 本 站\n{BODY}"
    assert clean_documents(text, boilerplate=("site-ads",)) == [("第一章 风雪", f"{BODY}\n{BODY}")]
    assert "收藏" in clean_documents(text)[0][1]
    assert "收藏" not in clean_documents(text, boilerplate=("site-ads", "背后人叫"))[0][1]
    assert "收藏" in clean_documents(text, boilerplate=("背后人叫",))[0][1]
    assert CleanOptions(boilerplate=("site-ads",)).identity() != CleanOptions().identity()


@given(st.lists(PIECES, max_size=12).map("".join))
def test_rule_is_idempotent_and_keeps_documents_apart(text: str) -> None:
    once, _ = run(text)
    assert run(once)[0] == once
    assert once.split("\0") == [run(document)[0] for document in text.split("\0")]


NOTICE = "|".join(site_ads._NOTICES.values())
NOTICES = st.sampled_from(sorted(site_ads._NOTICES)).flatmap(
    lambda words: st.tuples(
        st.just(words.split()),
        st.from_regex(site_ads._NOTICES[words], fullmatch=True, alphabet=st.sampled_from(sorted({*NOTICE}))),
    )
)


@settings(max_examples=500)
@given(NOTICES)
def test_every_notice_contains_a_word_and_a_pair_that_it_is_looked_for_by(case: tuple[list[str], str]) -> None:
    words, notice = case
    assert {*words} & {*site_ads._WORD.findall(notice)}
    assert any(pair in notice for pair in site_ads._PAIRS)


def test_traditional_form_of_every_character_of_a_notice_is_known() -> None:
    patterns = (NOTICE, site_ads._NAVIGATION.pattern, site_ads._SITE.pattern)
    characters = sorted(filter(HAN.match, {*"".join(patterns)}))
    convert = pytest.importorskip("opencc").OpenCC("s2t").convert
    traditional = map(convert, characters)
    assert [character.translate(site_ads._TO_SIMPLIFIED) for character in traditional] == characters


@pytest.mark.parametrize("book", ["shuihu_raw.txt", "song_ci.txt"])
def test_classical_books_have_no_ads(shared: Path, book: str) -> None:
    assert run((shared / "data" / book).read_text(encoding="utf-8-sig"), remove=False)[1] == {}
