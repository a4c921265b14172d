"""Mojibake: lost characters become □, and text in other languages is kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.rule import Counts
from pipeline.clean.rules import mojibake
from pipeline.clean.utf16 import decode_utf16, encode_utf16

PIECES = [
    *"倚杖然长啸□�けホНㄋ┾・ー─│，。“”（） \n\0",
    "さくら",
    "Иван",
    "<html>",
    "charset=",
    "HTTP/1.1 200",
    "然" * 30,
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
DEBRIS = "中国诗歌库{Connection=[close],Content-Type=[text/html;charset=gb2312],Server=[x]}\n"


def run(text: str) -> tuple[str, Counts]:
    counts: Counts = Counter()
    return decode_utf16(mojibake.rule().apply(encode_utf16(text), counts)), counts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("倚杖け然长啸，万里看云涛。", "倚杖□然长啸，万里看云涛。"),
        ("解刷扮，能ㄋ嗽，表里都峭。", "解刷扮，能□嗽，表里都峭。"),
        ("携手林间，笑挽ホホ。", "携手林间，笑挽□□。"),
        ("最好流泉百道，НН绕城萦市。", "最好流泉百道，□□绕城萦市。"),
        ("て然胜，清真冷淡", "□然胜，清真冷淡"),
        ("却一年憔悴、待春归\n┾却一年", "却一年憔悴、待春归\n□却一年"),
        ("噷奴真个ヵ、共人ヵ。", "噷奴真个□、共人□。"),
        ("门前数十丘�岫枴�", "门前数十丘□岫枴□"),
        ("与一口、管教�拍ァ�", "与一口、管教□拍□□"),
    ],
)
def test_lone_symbol_in_chinese_text_becomes_a_lacuna(text: str, expected: str) -> None:
    assert run(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "私は学生です",
        "古池や蛙飛びこむ水の音",
        "伊万Иван说",
        "读作（ㄇㄚ）",
        "日文的「の」字",
        "│甲┼乙│",
        "—─",
        "南柯子・南歌子",
        "Иван",
        "さくら",
        "他说“да”好",
    ],
)
def test_glosses_and_sentences_of_other_languages_are_kept(text: str) -> None:
    assert run(text)[0] == text


def test_japanese_document_is_kept_and_chinese_one_beside_it_repaired() -> None:
    japanese = "春が来た。\n花が咲く。\n鳥が鳴く。\n風が吹く。"
    cleaned, counts = run(f"{japanese}\0倚杖け然长啸\0{japanese}")
    assert cleaned == f"{japanese}\0倚杖□然长啸\0{japanese}"
    assert counts == {"characters left: a document in another script": 16, "け → □": 1}


def test_many_lost_characters_in_a_long_chapter_are_repaired() -> None:
    chapter = ("话说大宋天下太平无事百姓安居乐业" * 4 + "倚杖け然") * 9
    cleaned, counts = run(chapter)
    assert cleaned == chapter.replace("け", "□")
    assert counts["け → □"] == 9


def test_replaced_and_kept_characters_are_counted() -> None:
    text = "笑挽ホ林间。" + "看云涛" * 20 + "（さくら）�"
    assert run(text)[1] == {"ホ → □": 1, "U+FFFD → □": 1, "characters left: a word of another script": 3}


def test_lines_of_debris_are_dropped_and_counted() -> None:
    cleaned, counts = run(f"上片。\n{DEBRIS}下片。\0<SCRIPT src=x>\nHTTP/1.1 200 OK\n诗")
    assert cleaned == "上片。\n下片。\0诗"
    assert counts == {"lines of debris": 3, "characters of debris": len(DEBRIS) + 15 + 16}


@pytest.mark.parametrize(
    "debris",
    [
        "charset=gb2312",
        '<!--script>document.write("广告");x=1<script-->',
        "<script src=x></script>",
        "<html><head>",
        "{Connection=[close],Content-Type=[text/html;charset=gb2312]}",
    ],
)
@pytest.mark.parametrize("before", ["却说玄德大惊，滚鞍下马。“好”", "话说" * 3000])
def test_line_with_debris_in_it_keeps_its_text(before: str, debris: str) -> None:
    cleaned, counts = run(f"{before}{debris}问其缘故。\n卢植曰\n")
    assert cleaned == f"{before}问其缘故。\n卢植曰\n"
    assert counts == {"debris in lines of text": 1, "characters of debris": len(debris)}


def test_no_of_modern_chinese_is_kept_and_other_kana_beside_it_repaired() -> None:
    text = "新鲜の每日坊开在街角，卖茶の人不多。\n倚杖け然长啸，能ㄋ嗽。"
    assert run(text)[0] == text.replace("け", "□").replace("ㄋ", "□")


def test_lone_symbol_before_a_full_width_full_stop_becomes_a_lacuna() -> None:
    assert run("一边是玻璃ニ．地下两溜交椅．正看至《外篇．て箧》一则")[0] == (
        "一边是玻璃□．地下两溜交椅．正看至《外篇．□箧》一则"
    )


@pytest.mark.parametrize("text", ["a<b", "x=1", "1/2", "字符集", "he said <heart>"])
def test_signs_alone_are_not_debris(text: str) -> None:
    assert run(text) == (text, Counter())


@given(TEXT)
def test_rule_is_idempotent_and_keeps_documents_apart(text: str) -> None:
    once, counts = run(text)
    assert run(once)[0] == once
    assert once.count("\0") == text.count("\0")
    assert len(once) == len(text) - counts["characters of debris"]


@given(TEXT)
def test_documents_of_a_page_do_not_affect_each_other(text: str) -> None:
    assert run(text)[0].split("\0") == [run(document)[0] for document in text.split("\0")]


@given(TEXT)
def test_rule_changes_nothing_without_its_triggers(text: str) -> None:
    triggers = mojibake.rule().triggers
    if not any(low <= unit <= high for unit in encode_utf16(text).units.tolist() for low, high in triggers):
        assert run(text) == (text, Counter())


def test_mojibake_of_the_song_ci_is_repaired(shared: Path) -> None:
    text = (shared / "data" / "song_ci.txt").read_text(encoding="utf-8").replace("\n\n", "\0")
    cleaned, counts = run(text)
    assert counts["け → □"] == 35
    assert counts["U+FFFD → □"] == 36
    assert cleaned.count("□") - text.count("□") == sum(counts.values()) == 120
    assert cleaned.count("・") == text.count("・") == 2377
