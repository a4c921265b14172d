"""Excerpts of real corpora that were once cleaned wrong: their documents, ledgers, and a second cleaning."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.clean.test_stage import clean, entries


@dataclass
class Case:
    """An excerpt: the titles of its documents, parts of the text, patterns that must not occur, parts of warnings."""

    name: str
    titles: list[str]
    parts: list[str]
    absent: str
    warnings: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


_CHAPTERS = [
    "正文 第一回 宴桃园豪杰三结义 斩黄巾英雄首立功",
    "正文 第二回 张翼德怒鞭督邮 何国舅谋诛宦竖",
    "正文 第三回 议温明董卓叱丁原 馈金珠李肃说吕布",
]
_SHAPES = [
    *("第一回：甄士隐梦幻识通灵，贾雨村风尘怀闺秀", "第二回 贾夫人仙逝扬州城，冷子兴演说荣国府"),
    *("第廿三回 西厢记妙词通戏语", "史记卷一 五帝本纪第一", "大方广佛华严经卷第二", "卷第三", "正文 第四章 风云"),
    *("尾声", "后记", "番外一", "《论语·学而篇第一》", "第 5 章 空格", "第六章、顿号", "第07章 零七", "【第八回】括号"),
    *("第九回", "（第十回）"),
]
_POEMS = ["白水诗", "白水诗", "《后汉书》引逸诗", "佹诗", "峤诗", "《家语》引逸诗", "大唐歌", "子桑琴歌"]
CASES = [
    Case("01_zhengwen_hui.txt", ["", *_CHAPTERS], ["[三国演义/罗贯中著]"], "□", ["SITE ADS in 5 lines"]),
    Case(
        "01_zhengwen_hui.txt",
        ["", *_CHAPTERS],
        ["时皇甫嵩、朱儁领军拒贼"],
        "更新时间|章节内容|24小时",
        options={"boilerplate": ("site-ads",)},
    ),
    Case("03_heading_shapes.txt", _SHAPES, ["此开卷第一回也。", "学而第一\n"], "题目是"),
    Case("04_kr_juan_di_N.txt", ["序", "卷第二", "卷第三"], ["毗婆尸佛\n尸棄佛\n", "\n天台雲居　智禪師"], "[|¶@]"),
    Case("06_kr_commentary.txt", ["鬻子"], ["\n撰具也吏者", "次也\n政曰\n", "王者布政施令"], "次也政曰|[¶<]"),
    Case("07_folder", ["", "在獄詠蟬"], ["话说天下大势", "西陸蟬聲唱"], "author"),
    Case("09_simplified.txt", [], [], "□"),
    Case("10_html_fragment.html", [""], ["会稽一抔土，见者有遗羞。\n贫贱亦恒情，"], "[<>&;]"),
    Case(
        "11_markdown_entities.md",
        ["【第二十六回】 蜂腰桥设言传心事 潇湘馆春困发幽情"],
        ["话说宝玉养过了"],
        "[`&;]|---|侧批",
        options={"notes": ("（）=drop:前词/侧批/眉批/夹批",)},
    ),
    Case("13_poems.csv", _POEMS, ["皎皎练丝。在所染之。"], "题目|朝代|无名氏"),
    Case("14_hard_wrapped.txt", ["卷九"], [], "□", ["HARD-WRAPPED at 34 characters: --unwrap?"]),
    Case(
        "14_hard_wrapped.txt",
        ["卷九"],
        ["决其必受官刑。", "岂一监生不能庇一妇乎？"],
        r"\[\d",
        options={"unwrap": True, "notes": ("footnotes=drop",)},
    ),
    Case(
        "15_pages.txt",
        ["红楼梦 第一回"],
        ["一事无成，忽念及当日所有之女子", "\n①通灵：指通灵宝玉。\n②裙钗：指女子。"],
        "— 1 —|- 2 -",
        options={"unwrap": True},
    ),
    Case("16_ads.txt", ["第一章 风雪山神庙", "第二章 陆虞候火烧草料场"], [], "□", ["SITE ADS in 11 lines"]),
    Case(
        "16_ads.txt",
        ["第一章 风雪山神庙", "第二章 陆虞候火烧草料场"],
        ["忽然背后人叫。\n回头看时，却认得是酒生儿李小二。\n当初在东京时，多得林冲看顾。", "话说当日林冲正闲走间。"],
        "[A-Za-z☆=-]|本站|月票",
        options={"boilerplate": ("site-ads",)},
    ),
    Case("18_gbk_one_bad_byte.txt", [""], ["话说天下大势，分久必合", "□"], "\ufffd", ["INVALID BYTES: 1 in 1 of 1"]),
    Case("19_gbk_shifted.txt", [""], ["□"], "鼙□|烤隽", ["GBK READ FROM THE WRONG BYTE: 137 characters in 1"]),
    Case(
        "20_spaces_are_marks.txt",
        [""],
        ["静夜思\u3000李白\n床前明月光\u3000疑是地上霜\n举头望明月\u3000低头思故乡", "白日依山尽 黄河入海流"],
        "[，。]",
        ["NO PUNCTUATION", "SPACES ARE THE ONLY MARKS between clauses: 6 kept; --gaps"],
    ),
    Case("21_brackets.txt", ["", "第2章 狂人日记（1）"], ["（1）第一条", "（2）第二条", "见（二）与（3）"], "[()]"),
    Case("22_mojibake_before_fullwidth_stop.txt", [""], ["□。", "□箧"], "[ぁ-ヿы．]"),
    Case(
        "23_words_in_brackets.txt",
        [""],
        ["[三国演义/罗贯中著]\n他写道{大笑}，便走了。\n[北京-上海]的车票在这里买。\n袁紹□兵，□也。"],
        "上休下鳥|女[*]比",
    ),
    Case("24_kana_no.txt", [""], ["新鲜の每日坊", "卖茶の人", "倚杖□然"], "[けㄋ]"),
    Case(
        "25_cbeta_lines.txt",
        ["般若波羅蜜多心經"],
        ["般若波羅蜜多心經\n唐三藏法師玄奘譯\n觀自在菩薩行深般若波羅蜜多時。照見五蘊皆空。"],
        "[0-9A-Za-z║【=]",
    ),
    Case(
        "27_title_with_mark.txt",
        [
            "第六十一回 投鼠忌器宝玉瞒赃 判冤决狱平儿行权",
            "第六十二回 憨湘云醉眠芍药茵？呆香菱情解石榴裙",
            "第六十三回 寿怡红群芳开夜宴 死金丹独艳理亲丧",
        ],
        ["话说平儿出来吩咐林之孝家的道"],
        "憨湘云醉眠",
    ),
    Case("28_kr_fw_marks.txt", ["元始無量度人上品妙經"], ["重刋道藏輯要\n元始无量度人上品妙經卷之一\n"], "[@¶]|fw"),
    Case("29_kr_table.txt", ["2.1 《三代世表》"], ["\n帝王世國號\n", "\n黃帝生昌意。\n"], "[|｜¶]"),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.name[:2]}-{'-'.join(case.options)}" for case in CASES])
def test_documents_of_an_excerpt_are_right_and_stay_when_cleaned_again(
    shared: Path, tmp_path: Path, case: Case
) -> None:
    corpus = clean(tmp_path, shared / "cases" / "chinese" / case.name, **case.options)
    documents = entries(corpus)
    text = "\n".join(entry["text"] for entry in documents)
    if case.titles:
        assert [entry.get("title", "") for entry in documents] == case.titles
    assert [part for part in case.parts if part not in text] == []
    assert not re.search(case.absent, text)
    report = json.loads(corpus.file("report.json").read_bytes())
    for warning in case.warnings:
        assert any(line.startswith(warning) for line in report["warnings"]), report["warnings"]
    for rule in report["rules"]:
        assert rule["in"] + rule["added"] - rule["removed"] == rule["out"], rule["name"]

    again = tmp_path / "again.jsonl"
    lines = [{"text": entry["text"], "title": entry.get("title", "")} for entry in documents]
    again.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    options = {name: value for name, value in case.options.items() if name != "unwrap"}  # which joins any short lines
    assert [entry["text"] for entry in entries(clean(tmp_path, again, **options))] == [line["text"] for line in lines]


def test_simplified_and_traditional_excerpts_together_are_reported(shared: Path, tmp_path: Path) -> None:
    folder = shared / "cases" / "chinese"
    corpus = clean(tmp_path, folder / "09_simplified.txt", folder / "09_traditional.txt")
    warnings = json.loads(corpus.file("report.json").read_bytes())["warnings"]
    assert any(re.match("MIXED SCRIPTS, 79% simplified, 21% traditional", line) for line in warnings)


def test_every_excerpt_is_tried(shared: Path) -> None:
    names = {path.name for path in (shared / "cases" / "chinese").glob("[0-9]*")}
    assert names == {case.name for case in CASES} | {"09_traditional.txt"}
