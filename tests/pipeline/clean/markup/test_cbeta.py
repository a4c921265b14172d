"""Sutras of CBETA lose their header and the heads of their lines, and print lines are joined."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from pipeline.clean.markup.cbeta import cbeta, is_cbeta

HAN = re.compile("[\u4e00-\u9fff]")
SUTRA = """【經文資訊】大正新脩大藏經 第08冊 No.0251 般若波羅蜜多心經
【版本記錄】CBETA 電子佛典 Rev. 1.20 (Big5)，完成日期：2009/04/23
=========================================================================
T08n0251_p0848c03║
T08n0251_p0848c04║　　No. 251 [Nos. 250, 252-255, 257]
T08n0251_p0848c05║般若波羅蜜多心經
T08n0251_p0848c06║　　唐三藏法師玄奘譯
T08n0251_p0848c07║觀自在菩薩行深般若波羅蜜多時。照見五
T08n0251_p0848c08║蘊皆空。度一切苦厄。舍利子。色不異空。空
T08n0251_p0848c09║不異色。[01]色即是空[*]。
T08n0251_p0848c10║空即是色。受想行識亦復如是。舍利子。是
T08n0251_p0848c11║　　揭帝揭帝　　般羅揭帝
"""
BODY = """觀自在菩薩行深般若波羅蜜多時。照見五蘊皆空。度一切苦厄。舍利子。色不異空。空不異色。色即是空。
空即是色。受想行識亦復如是。舍利子。是
　　揭帝揭帝　　般羅揭帝
"""


def test_header_heads_of_lines_numbers_and_footnotes_are_removed_and_full_lines_joined() -> None:
    counts: Counter[str] = Counter()
    parsed = cbeta(SUTRA, counts)
    assert parsed.text == "\n般若波羅蜜多心經\n　　唐三藏法師玄奘譯\n" + BODY
    assert (parsed.title, parsed.meta) == ("般若波羅蜜多心經", {"id": "T08n0251"})
    assert counts == {"header": 3, "line head": 9, "No.": 1, "[01]": 2, "joined line": 2}


@pytest.mark.parametrize(
    "head", ["T08n0251_p0848c{:02}(00)║", "X01n0001_p0001a{:02}_##", "[0848c{:02}]║", "p0848c{:02}│"]
)
def test_heads_of_all_releases_are_removed(head: str) -> None:
    lines = ["觀自在菩薩行深般若波羅蜜多時。照見五", "蘊皆空。度一切苦厄。舍利子。色不異空。空", "不異色。"]
    text = "\n".join(head.format(number) + line for number, line in enumerate(lines, start=7))
    assert is_cbeta(text)
    assert cbeta(text, Counter()).text == "".join(lines)


def test_release_without_heads_keeps_its_lines() -> None:
    rule = "#----------\n"
    header = f"{rule}#【经文资讯】大正藏第 8 册 No. 251《心经》\n#【版本记录】x\n{rule}\n"
    text = f"{header}No. 251 [cf. No. 250]\n心经\n观自在[1]菩萨。\n"
    assert is_cbeta(text)
    parsed = cbeta(text, Counter())
    assert (parsed.title, parsed.text, parsed.meta) == ("心经", "\n心经\n观自在菩萨。\n", {"id": "No. 251"})


def test_verse_without_indent_is_not_joined() -> None:
    verse = ["諸行無常", "是生滅法", "生滅滅已", "寂滅為樂"]
    text = "\n".join(f"T01n0001_p0001a0{number}║{line}" for number, line in enumerate(verse))
    assert cbeta(text, Counter()).text == "\n".join(verse)


@pytest.mark.parametrize("text", ["見[01]注。No. 5\n", "【原始資料】甲\n====\n", "# 卷一\n觀自在。\n", "║甲║乙║\n"])
def test_text_without_heads_and_title_stays(text: str) -> None:
    assert HAN.findall(cbeta(text, Counter()).text) == HAN.findall(text)
    assert not is_cbeta(text * 3)


@pytest.mark.parametrize("mark", ["║", " ‖", "∥"])
def test_line_heads_end_in_any_double_bar(mark: str) -> None:
    lines = [
        f"X63n1217_p0001a0{number}{mark}{text}"
        for number, text in enumerate(["達磨大師血脉論", "三界混起", "同歸一心"])
    ]
    assert is_cbeta("\n".join(lines))
    assert cbeta("\n".join(lines), Counter()).text == "達磨大師血脉論\n三界混起\n同歸一心"


def test_positions_of_paragraphs_and_numbers_with_notes_are_removed() -> None:
    text = (
        "【經文資訊】大正藏第 08 冊 No. 0235 金剛般若波羅蜜經\nNo. 235 [Nos. 220(9), 236-239]\n[0749a05] 時，長老須菩提"
    )
    assert cbeta(text, Counter()).text == "時，長老須菩提"
