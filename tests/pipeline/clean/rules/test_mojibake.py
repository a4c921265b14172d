"""Mojibake: what stands for lost characters becomes □, and what other languages wrote stays."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.rule import Seen
from pipeline.clean.rules import mojibake
from pipeline.clean.utf16 import codes, text_of

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


def run(text: str) -> tuple[str, Seen]:
    seen: Seen = Counter()
    return text_of(mojibake.rule().apply(codes(text), seen)), seen


@pytest.mark.parametrize(
    ("text", "wanted"),
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
def test_a_lone_symbol_in_chinese_text_is_a_lost_character(text: str, wanted: str) -> None:
    assert run(text)[0] == wanted


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
def test_glosses_and_sentences_of_other_languages_stay(text: str) -> None:
    assert run(text)[0] == text


def test_a_japanese_document_stays_and_the_chinese_one_beside_it_is_mended() -> None:
    japanese = "春が来た。\n花が咲く。\n鳥が鳴く。\n風が吹く。"
    left, seen = run(f"{japanese}\0倚杖け然长啸\0{japanese}")
    assert left == f"{japanese}\0倚杖□然长啸\0{japanese}"
    assert seen == {"characters left: a document in another script": 16, "け → □": 1}


def test_many_lost_characters_in_a_long_chapter_are_all_mended() -> None:
    chapter = ("话说大宋天下太平无事百姓安居乐业" * 4 + "倚杖け然") * 9
    left, seen = run(chapter)
    assert left == chapter.replace("け", "□")
    assert seen["け → □"] == 9


def test_each_character_is_counted_and_so_is_what_stays() -> None:
    text = "笑挽ホ林间。" + "看云涛" * 20 + "（さくら）�"
    assert run(text)[1] == {"ホ → □": 1, "U+FFFD → □": 1, "characters left: a word of another script": 3}


def test_lines_of_debris_go_and_are_counted_with_their_length() -> None:
    left, seen = run(f"上片。\n{DEBRIS}下片。\0<SCRIPT src=x>\nHTTP/1.1 200 OK\n诗")
    assert left == "上片。\n下片。\0诗"
    assert seen == {"lines of debris": 3, "characters of debris": len(DEBRIS) + 15 + 16}


def test_a_chapter_with_debris_in_it_is_not_lost() -> None:
    chapter = "话说" * 3000 + "charset=gb2312" + "却说" * 3000
    left, seen = run(chapter)
    assert left == chapter
    assert seen == {"debris left in a long line": 1}


@pytest.mark.parametrize("text", ["a<b", "x=1", "1/2", "字符集", "he said <heart>"])
def test_signs_alone_are_no_debris(text: str) -> None:
    assert run(text) == (text, Counter())


@given(TEXT)
def test_the_rule_is_idempotent_and_leaves_the_documents_apart(text: str) -> None:
    once, seen = run(text)
    assert run(once)[0] == once
    assert once.count("\0") == text.count("\0")
    assert len(once) == len(text) - seen["characters of debris"]


@given(TEXT)
def test_the_documents_of_a_page_have_no_influence_on_each_other(text: str) -> None:
    assert run(text)[0].split("\0") == [run(document)[0] for document in text.split("\0")]


@given(TEXT)
def test_the_rule_has_nothing_to_do_without_its_triggers(text: str) -> None:
    triggers = mojibake.rule().triggers
    if not any(low <= unit <= high for unit in codes(text).units.tolist() for low, high in triggers):
        assert run(text) == (text, Counter())


def test_the_mojibake_of_the_song_ci_is_mended(shared: Path) -> None:
    text = (shared / "data" / "song_ci.txt").read_text(encoding="utf-8").replace("\n\n", "\0")
    left, seen = run(text)
    assert seen["け → □"] == 35
    assert seen["U+FFFD → □"] == 36
    assert left.count("□") - text.count("□") == sum(seen.values()) == 120
    assert left.count("・") == text.count("・") == 2377
