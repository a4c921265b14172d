"""Print layout: hard-wrapped prose is joined where it is clear, verse and lists are not, and page marks are removed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.rule import Counts
from pipeline.clean.rules import print_layout
from pipeline.clean.rules.unwrap import KEPT, UNWRAP_WHERE_CLEAR, unwrap_pages
from pipeline.clean.utf16 import decode_utf16, encode_utf16
from tests.pipeline.clean.pages import clean_documents

PROSE = (
    "晋太元中，武陵人捕鱼为业。缘溪行，忘路之远近。忽逢桃花林，夹岸数百步，中无杂树，芳草鲜美，落英缤纷。渔人甚异之，复前行，欲穷其林。",
    "林尽水源，便得一山，山有小口，仿佛若有光。便舍船，从口入。初极狭，才通人。复行数十步，豁然开朗。土地平旷，屋舍俨然，有良田、美池、桑竹之属。阡陌交通，鸡犬相闻。",
    "其中往来种作，男女衣着，悉如外人。黄发垂髫，并怡然自乐。",
    "见渔人，乃大惊，问所从来。具答之。便要还家，设酒杀鸡作食。村中闻有此人，咸来问讯。自云先世避秦时乱，率妻子邑人来此绝境，不复出焉，遂与外人间隔。问今是何世，乃不知有汉，无论魏晋。此人一一为具言所闻，皆叹惋。",
    "余人各复延至其家，皆出酒食。停数日，辞去。此中人语云：“不足为外人道也。”",
    "既出，得其船，便扶向路，处处志之。及郡下，诣太守，说如此。太守即遣人随其往，寻向所志，遂迷，不复得路。",
    "南阳刘子骥，高尚士也，闻之，欣然规往。未果，寻病终。后遂无问津者。",
)
INDENT = "　　"
Printed = Callable[[int], list[str]]


def wrap(paragraph: str, width: int, *, first: str = "", following: str = "") -> list[str]:
    """Break a paragraph into lines of `width` characters. A mark that would begin a line hangs at the end of one."""
    lines, line = [], first
    for character in paragraph:
        if len(line) >= width and character not in "，。：、”":
            lines.append(line)
            line = following
        line += character
    return [*lines, line]


def indented(width: int) -> list[str]:
    return [line for paragraph in PROSE for line in wrap(paragraph, width, first=INDENT)]


def flush(width: int) -> list[str]:
    return [line for paragraph in PROSE for line in wrap(paragraph, width)]


def spaced(width: int) -> list[str]:
    return [line for paragraph in PROSE for line in (*wrap(paragraph, width), "")]


def double_spaced(width: int) -> list[str]:
    return [text for line in indented(width) for text in (line, "")]


def all_indented(width: int) -> list[str]:
    lines = [line for paragraph in PROSE for line in wrap(paragraph, width, first=INDENT, following=INDENT)]
    return [text for line in lines for text in (line, "")]


def paged(lines: Sequence[str], before: str = "", after: str = "", *, size: int = 7) -> list[str]:
    """Put a line before and after each page. `N` in it is the number of the page."""
    pages = []
    for number, start in enumerate(range(0, len(lines), size), 1):
        head, foot = (mark.replace("N", str(number)) for mark in (before, after))
        pages += [*filter(None, [head]), *lines[start : start + size], *filter(None, [foot])]
    return pages


def joined(lines: Sequence[str], counts: Counts | None = None) -> list[str]:
    """Return the lines that remain, without blanks at their ends and blank lines."""
    page = UNWRAP_WHERE_CLEAR.apply(encode_utf16("\n".join(lines)), Counter() if counts is None else counts)
    return [line.strip("　 ") for line in decode_utf16(page).split("\n") if line.strip("　 ")]


@pytest.mark.parametrize("width", [18, 21, 25])
@pytest.mark.parametrize("printed", [indented, spaced, double_spaced])
def test_paragraphs_of_a_print_that_marks_them_are_restored(printed: Printed, width: int) -> None:
    assert joined(printed(width)) == [*PROSE]


@pytest.mark.parametrize("width", [18, 21, 25])
@pytest.mark.parametrize("printed", [flush, all_indented])
def test_no_sentence_is_cut_in_a_print_that_does_not_mark_paragraphs(printed: Printed, width: int) -> None:
    lines = joined(printed(width))
    assert "".join(lines) == "".join(PROSE)
    assert all(re.search("[。：]”?$", line) for line in lines)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "— N —"),
        ("", "- N -"),
        ("", "·N·"),
        ("", "　　　　　　　N"),
        ("", "第N页"),
        ("桃花源记　　　　　N", ""),
        ("N　陶渊明集", ""),
        ("陶渊明集", "N"),
        ("陶渊明集", ""),
        ("陶渊明集", "\n— N —\n"),
        ("", "第N页 共9页"),
        ("", "N/120"),
        ("", "[P00N]"),
        ("", "～N～"),
        ("陶渊明集（上）", "Page N of 9"),
        ("陶渊明集·桃源·N", ""),
        ("陶渊明：桃源（N）", ""),
        ("", "陶渊明集 · N ·"),
        ("", "====== N ======"),
        ("", "<<第N页>>"),
    ],
)
def test_page_numbers_and_running_heads_do_not_interrupt_a_sentence(before: str, after: str) -> None:
    counts: Counts = Counter()
    lines = "\n".join(paged(indented(21), before, after)).split("\n")
    assert joined(lines, counts) == [*PROSE]
    assert counts["page numbers, running heads"] == len([line for line in lines if line.strip()]) - len(indented(21))


def test_left_and_right_pages_may_have_different_running_heads() -> None:
    names = ["桃源", "陶渊明集", "桃花源记", "诗文", "桃花源诗"]
    pages = paged(indented(21), "N　@")
    assert joined([line.replace("@", names[int(line[0]) - 1]) if "@" in line else line for line in pages]) == [*PROSE]


def test_running_heads_beside_page_numbers_need_not_interrupt_sentences_themselves() -> None:
    lines = indented(21)
    ends = [index + 1 for index, line in enumerate(lines) if line[-1] in "。”"]
    for index, at in reversed([*enumerate(sorted((2, *ends)))]):
        lines[at:at] = [f"— {index + 12} —", "陶渊明集"]
    assert joined(lines) == [*PROSE]


def test_page_numbers_of_running_heads_may_be_chinese() -> None:
    pages = paged(indented(21), "陶渊明集　卷五　N")
    numerals = ["一", "二", "三", "四", "五", "六"]
    lines = [f"{line[:-1]}{numerals[int(line[-1]) - 1]}" if line[-1].isdigit() else line for line in pages]
    assert clean_documents("\n".join(lines)) == [("陶渊明集 卷五", "\n".join(PROSE))]


def test_running_head_with_the_chapter_stays_once_as_its_heading() -> None:
    documents = clean_documents("\n".join(paged(indented(21), "桃源第一回　　　　N")))
    assert documents == [("桃源第一回", "\n".join(PROSE))]


def test_running_head_of_a_chapter_with_a_heading_is_no_second_heading() -> None:
    lines = ["第一回　渔人", *paged(indented(21), "桃源第一回　　　　N")]
    assert clean_documents("\n".join(lines)) == [("第一回 渔人", "\n".join(PROSE))]


def test_numbers_between_sections_stay() -> None:
    sections = [line for number, paragraph in enumerate(PROSE, 1) for line in (str(number), *wrap(paragraph, 21))]
    assert [line for line in joined(sections) if line.isdigit()] == [str(number + 1) for number in range(len(PROSE))]


@pytest.mark.parametrize("rule", [(), ("――――――――",), ("________________________",)])
def test_notes_below_a_page_do_not_cut_the_sentence_above_them(rule: tuple[str, ...]) -> None:
    lines = indented(21)
    broken = next(index for index, line in enumerate(lines) if index > 8 and print_layout.is_open(line)) + 1
    notes = ["①　武陵：郡名。", "②　缘：沿着。", "— 1 —"]
    text = joined([*lines[:broken], *rule, *notes, *lines[broken:], "— 2 —"])
    assert [line for line in text if line[0] not in "①②―_"] == [*PROSE]
    assert [line for line in text if line[0] in "①②"] == notes[:2]


HAN = (
    "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少白日依山尽黄河入海流欲穷千里目更上一层楼床前明月光疑是地上霜举头望明月低头思故乡"
    * 8
)


def verse(pattern: str) -> list[str]:
    """Return verses in which each `x` of the pattern is a character."""
    characters = iter(HAN)
    return ["".join(next(characters) if mark == "x" else mark for mark in pattern) for _ in range(12)]


@pytest.mark.parametrize(
    "lines",
    [
        verse("xxxxx，xxxxx。xxxxx，xxxxx"),
        verse("xxxxxxx，xxxxxxx。xxxxxxx，xxxxxxx，"),
        verse("xxxxx　xxxxx　xxxxx　xxxxx"),
        verse("xxxxxxxxxxxxxxxxxxxx"),
        verse("xxxxx"),
        verse("xxxxxxx，xxxxxxx"),
        [*PROSE],
        [INDENT + paragraph for paragraph in PROSE],
        re.findall("[^，。]+[，。]”?", "".join(PROSE)),
        re.findall("(?:[^，。]+[，。]){2}", "".join(PROSE)),
        re.findall("(?:[^，。]+[，。]){4}", "".join(PROSE)),
        [f"第{number}回　{HAN[number : number + 7]}　{HAN[number + 7 : number + 14]}" for number in range(1, 30)],
        [re.sub("[，。：、“”]", "", paragraph) for paragraph in PROSE],
    ],
)
def test_verse_paragraphs_clauses_and_lists_are_not_joined(lines: list[str]) -> None:
    assert joined(lines) == [line.strip("　") for line in lines]


def test_few_full_lines_are_reported_and_not_joined() -> None:
    lines, counts = wrap(PROSE[3], 20), Counter[str]()
    assert joined(lines, counts) == lines
    assert counts == {f"{KEPT}20": 1}
    assert joined([*PROSE[:3]], counts) == [*PROSE[:3]]
    assert counts.total() == 1


def test_a_wrapped_chapter_among_others_is_joined() -> None:
    text = [*("第一回　渔人", *PROSE), *("第二回　桃源", *indented(21)), *("第三回　太守", *PROSE)]
    assert joined(text) == [*("第一回　渔人", *PROSE), *("第二回　桃源", *PROSE), *("第三回　太守", *PROSE)]


def test_documents_are_judged_one_by_one() -> None:
    wrapped, poem = "\n".join(indented(21)), "\n".join(verse("xxxxxxx，xxxxxxx。"))
    page = UNWRAP_WHERE_CLEAR.apply(encode_utf16("\0".join([poem, wrapped, "", wrapped])), Counter())
    assert decode_utf16(page).split("\0") == [
        poem,
        INDENT + f"\n{INDENT}".join(PROSE),
        "",
        INDENT + f"\n{INDENT}".join(PROSE),
    ]


@given(st.sampled_from([indented, flush, spaced, double_spaced, all_indented]), st.integers(17, 40), st.booleans())
def test_joined_prints_lose_nothing_but_blanks_and_page_marks_and_stay(
    printed: Printed, width: int, has_pages: bool
) -> None:
    lines = paged(printed(width), "陶渊明集", "— N —") if has_pages else printed(width)
    once = joined(lines)
    assert Counter("".join(once)) - Counter("".join(lines)) == Counter()
    assert set("".join(PROSE)) <= set("".join(once))
    assert joined(once) == once


def test_pages_of_a_print_are_joined_on_request(shared: Path) -> None:
    text = (shared / "cases/chinese/15_pages.txt").read_text()
    counts: Counts = Counter()
    unwrapped = unwrap_pages(text, counts)
    assert "一事无成，忽念及当日所有之女子" in unwrapped
    assert "\n①　通灵：指通灵宝玉。\n②　裙钗：指女子。" in unwrapped
    assert not re.search("— 1 —|- 2 -", unwrapped)
    assert unwrapped.startswith("红楼梦　第一回\n此开卷第一回也。"), "the running head is the heading of the chapter"
    assert unwrapped.count("红楼梦") == 1
    assert counts["page numbers, running heads"] == 4


@pytest.mark.parametrize(("case", "width"), [("14_hard_wrapped.txt", 34), ("15_pages.txt", 29)])
def test_short_excerpts_of_prints_are_reported(shared: Path, case: str, width: int) -> None:
    counts: Counts = Counter()
    joined((shared / "cases/chinese" / case).read_text().split("\n"), counts)
    assert counts == {f"{KEPT}{width}": 1}
