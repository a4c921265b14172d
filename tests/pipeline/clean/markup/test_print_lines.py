"""Print lines of Kanripo are joined where the print wraps, and marks of editors, tables and lists are parted."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from pipeline.clean.markup.kanripo import kanripo
from pipeline.clean.rule import Counts


def text_of(text: str) -> str:
    return kanripo(text, Counter()).text


COMMENTARY = """　　撰吏五帝三王傳政乙第五
　　　撰具也吏者為政之具也又撰博也言王者布
　　　政施令其在博求於良吏也賢者舉之不賢者
　　　於甲以此明政之次也
政曰
<pb:KR3j0001_WYG_001-1b>
　政者法教也此明帝王之政事以為法教可稱也
君子不與人謀之則已矣
　言君子修於内理於外端其形正其影體真徳之安
　守冲妙之機言出以成教方謀事必為法則茍於
　而不預豈安為之哉所以止也
故其道若首然萬世為福萬世為教者唯從黄帝以下
舜禹以上而已矣
　首者始也言五帝之道常為萬代之始後之不能加
也
"""


def test_commentary_by_indent_is_joined_in_itself_and_never_with_the_text_below_a_short_line() -> None:
    text = text_of(COMMENTARY.replace("\n", "¶\n"))
    assert [line.strip("　") for line in text.split("\n")] == [
        "撰吏五帝三王傳政乙第五",
        "撰具也吏者為政之具也又撰博也言王者布政施令其在博求於良吏也賢者舉之不賢者於甲以此明政之次也",
        "政曰",
        "政者法教也此明帝王之政事以為法教可稱也",
        "君子不與人謀之則已矣",
        "言君子修於内理於外端其形正其影體真徳之安守冲妙之機言出以成教方謀事必為法則茍於而不預豈安為之哉所以止也",
        "故其道若首然萬世為福萬世為教者唯從黄帝以下舜禹以上而已矣",
        "首者始也言五帝之道常為萬代之始後之不能加",
        "也",
        "",
    ]


@pytest.mark.parametrize("first", [0, 3, 9])
def test_a_few_lines_of_commentary_are_enough(first: int) -> None:
    lines = [line for line in COMMENTARY.split("\n") if not line.startswith("<")][first : first + 5]
    text = text_of("¶\n".join(lines))
    assert "也政曰" not in text
    assert "也故其" not in text
    assert first != 0 or "王者布政施令" in text


POEMS = """　　題松隠圖

　　蒼蒼蘚石謖謖雲松空山無人明月在筇我思武夷三
十六峯之子之邁攜琴曷從

　　峨眉亭

　　白酒雙銀瓶獨酌峨眉亭不見謫仙人但見三山青秋
色淮上來蒼然滿雲汀欲將五十弦彈與蛟龍聽五十弦
龍聽

　　伯純河東人寓居揚州有别墅近邵伯鎮常
讀書於彼輕財好客誼侔古人且才甚高長
於詩後領河東鄉薦
題詩
"""


def test_first_line_of_a_paragraph_may_be_indented_and_a_preface_narrower() -> None:
    text = text_of(POEMS.replace("\n", "¶\n").replace("五十弦¶", "五十¶") + FULL_LINES)
    assert [line.strip("　") for line in text.split("\n") if line][:6] == [
        "題松隠圖",
        "蒼蒼蘚石謖謖雲松空山無人明月在筇我思武夷三十六峯之子之邁攜琴曷從",
        "峨眉亭",
        "白酒雙銀瓶獨酌峨眉亭不見謫仙人但見三山青秋色淮上來蒼然滿雲汀欲將五十弦彈與蛟龍聽五十龍聽",
        "伯純河東人寓居揚州有别墅近邵伯鎮常讀書於彼輕財好客誼侔古人且才甚高長於詩後領河東鄉薦",
        "題詩",
    ]


FULL_LINES = (
    "¶\n　　謫仙人但見三山青秋色淮上來蒼然滿雲汀欲將五¶\n" + "夏侯惇字元讓沛國譙人夏侯嬰之後也年十四就師¶\n" * 5
)


def test_names_in_a_list_become_lines_and_a_fascicle_number_keeps_its_own() -> None:
    text = "卷第一¶\n　　毗婆尸佛　尸棄佛¶\n　　毗舍浮佛　拘留孫佛¶\n卷第二¶\n　天台雲居　智禪師¶\n"
    counts: Counts = Counter()
    parsed = kanripo(text, counts)
    assert [line.strip("　") for line in parsed.text.split("\n")] == [
        *("卷第一", "毗婆尸佛", "尸棄佛", "毗舍浮佛", "拘留孫佛", "卷第二", "天台雲居　智禪師", ""),
    ]
    assert counts["U+3000 in a list"] == 2


def test_blank_in_full_lines_of_prose_does_not_make_a_list() -> None:
    lines = ["夏侯惇字元讓沛國譙人夏侯嬰之　上年十四就師", "夏侯惇字元讓沛國　上夏侯嬰之後也年十四就師"] * 10
    lines += ["夏侯惇字元讓沛國譙人夏侯嬰之後也年十四就師"] * 10
    assert text_of("¶\n".join([*lines, ""])).count("\n") == 1


def test_no_line_of_a_list_without_a_common_length_is_joined() -> None:
    lines = ["　" * (length % 3) + "金陵牛頭法融禪師法嗣一人旁出法"[:length] for length in range(5, 15)] * 3
    text = text_of("¶\n".join([*lines, ""]))
    assert [line.strip("　") for line in text.split("\n")] == [*(line.strip("　") for line in lines), ""]


def test_newlines_of_a_witness_are_joined_where_marks_stand_inside_lines() -> None:
    text = "@fw重<md:KR5a0001_HFL_001-001a>¶刋道藏輯要¶@fw經卷之一¶\n道言昔於始青天中碧落空¶元始\n品元始天尊\n"
    counts: Counts = Counter()
    parsed = kanripo(text, counts)
    assert parsed.text == "　重刋道藏輯要\n　經卷之一\n　道言昔於始青天中碧落空元始品元始天尊\n"
    assert counts == {"<md:>": 1, "¶": 4, "@ mark": 2}


def test_cells_of_a_table_become_lines_and_bars_are_counted() -> None:
    text = "帝王世國號|顓頊屬｜殷屬||¶\n黃帝號有熊。|¶\n 厲王子居召公宮，¶\n是為宣王。||¶\n"
    counts: Counts = Counter()
    lines = [line.strip(" 　") for line in kanripo(text, counts).text.split("\n")]
    assert [*filter(None, lines)] == ["帝王世國號", "顓頊屬", "殷屬", "黃帝號有熊。", "厲王子居召公宮，是為宣王。"]
    assert counts == {"¶": 4, "|": 7}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("A1.1.3三月，¶", "三月，"),
        ("B1.1惠公元妃孟子。¶", "惠公元妃孟子。"),
        ("14.2「士而懷居，¶", "「士而懷居，"),
        ("1《關雎》¶", "** 《關雎》"),
        ("2.1　《三代世表》　　¶", "** 《三代世表》"),
        ("5.1《伯夷列傳》第一", "** 《伯夷列傳》第一"),
        ("14.40《書》云：¶", "《書》云："),
        ("　　No. 475 [Nos. 474, 476]¶", ""),
        ("為要刪焉。=>¶", "為要刪焉。"),
        ("841庚申¶", "841庚申"),
        ("3子曰¶", "3子曰"),
    ],
)
def test_numbers_of_editors_are_removed_at_the_start_of_a_line(line: str, text: str) -> None:
    assert text_of(line) == text


@pytest.mark.parametrize("run", ["　", " ", "|", "　|", "甲　", "@fw"])
def test_long_runs_of_one_mark_take_linear_time(run: str) -> None:
    start = time.process_time()
    text_of("話說\n" + run * (100_000 // len(run)))
    assert time.process_time() - start < 1
