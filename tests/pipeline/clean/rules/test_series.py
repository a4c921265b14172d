"""Series: rising numbers prove headings of shapes that prove nothing alone, and are reported if no rule takes them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.clean import stage
from pipeline.clean.cleaner import Cleaner
from pipeline.clean.options import CleanOptions
from pipeline.clean.profiles import PROFILES
from pipeline.clean.report import problems
from pipeline.clean.rules.headings import has_weak_series
from pipeline.clean.tasks import TASK_CHARACTERS
from pipeline.clean.utf16 import split_documents
from pipeline.errors import BadConfig
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.inputs import resolve_inputs
from tests.pipeline.clean.pages import clean_documents, clean_page

NUMERALS = "一二三四五六七八九"
BODY = "话说当时，有一个人。\n又一日，他来了。"
SHAPES = ("{} 灭门", "{}　聆秘", "第{}章陨落的天才", "學而第{}")


def book(shape: str, numbers: str = NUMERALS, body: str = BODY) -> str:
    return "某书\n" + "".join(f"{shape.format(number)}\n{body}\n" for number in numbers)


def titles(text: str, **options: Any) -> list[str]:
    return [title for title, _ in clean_documents(text, **options) if title]


def corpus_titles(root: Path, path: Path, **options: Any) -> list[str]:
    inputs = resolve_inputs(root, str(path), corpora=False)
    report = stage.build_report(inputs, CleanOptions(**options), SilentProgress())
    return [pattern for pattern, count in report.headings.items() for _ in range(count)]


def warnings_of(root: Path, text: str, **options: Any) -> list[str]:
    path = root / "book.txt"
    path.write_text(text, encoding="utf-8")
    inputs = resolve_inputs(root, str(path), corpora=False)
    report = stage.build_report(inputs, CleanOptions(**options), SilentProgress())
    return [text for text in problems.warnings(report) if "--heading" in text]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [3, 9])
def test_lines_whose_numbers_rise_from_one_are_headings(shape: str, count: int) -> None:
    numbers = NUMERALS[:count]
    expected = [" ".join(shape.format(number).split()) for number in numbers]
    assert titles(book(shape, numbers)) == expected
    assert all(text == BODY for _, text in clean_documents(book(shape, numbers))[1:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("numbers", ["一二", "二三四五", "一二三一二三", "一五九", "三二一"])
def test_numbers_that_do_not_rise_from_one_are_text(shape: str, numbers: str) -> None:
    assert titles(book(shape, numbers)) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_list_without_text_between_its_lines_is_text(shape: str) -> None:
    lines = "\n".join(shape.format(number) for number in NUMERALS)
    assert titles(f"规矩如下。\n{lines}\n大家记住。") == []


@pytest.mark.parametrize("shape", SHAPES)
def test_table_of_contents_before_the_chapters_is_text(shape: str) -> None:
    contents = "\n".join(shape.format(number) for number in NUMERALS)
    assert len(titles(f"目录\n{contents}\n{book(shape)}")) == len(NUMERALS)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_sections_of_a_numbered_chapter_stay_in_it(shape: str) -> None:
    text = f"第一回　得宝\n{book(shape)}第二回　求砚\n{book(shape)}"
    assert titles(text) == ["第一回 得宝", "第二回 求砚"]


def test_title_with_a_number_keeps_a_document_whole() -> None:
    cleaner = Cleaner(PROFILES["plain"], CleanOptions())
    assert len(split_documents(cleaner.clean([book("{} 灭门")], ["第一回 得宝"]).array)) == 1
    assert len(split_documents(cleaner.clean([book("{} 灭门")], ["笑傲江湖"]).array)) == 10


def test_each_document_of_a_page_has_its_own_series() -> None:
    cleaner = Cleaner(PROFILES["plain"], CleanOptions())
    page = cleaner.clean([book("{} 灭门", "一二三"), "一 灭门\n话说。", book("{} 灭门", "一二")])
    assert page.origin.tolist() == [0, 0, 0, 0, 1, 2]


def test_series_of_a_long_book_is_taken_in_all_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    body = "话说当时，有一个人，他来了又走了。天色已晚。\n" * (TASK_CHARACTERS // 60)
    path.write_text(book("{} 灭门", "一二三四五六", body), encoding="utf-8")
    assert corpus_titles(tmp_path, path) == ["N …"] * 6


def test_beginning_of_a_series_is_noticed_from_two_lines_on() -> None:
    assert has_weak_series(book("{} 灭门", "一二"))
    assert not has_weak_series(book("{} 灭门", "一"))
    assert not has_weak_series(BODY * 1000)


ONE_LINE = (
    "紅樓夢 曹雪芹 著 第一回 甄士隱夢幻識通靈 賈雨村風塵懷閨秀 此開卷第一回也。且聽第三回分解。"
    "第二回 賈夫人仙逝揚州城 冷子興演說榮國府 卻說封肅，因聽見公差傳喚。”　"
    "第三回 託內兄如海酬訓教 接外孫賈母惜孤女 卻說雨村，忙回頭看時。"
)


def test_first_chapter_of_one_line_may_follow_the_title_of_the_book() -> None:
    documents = clean_documents(ONE_LINE.replace("紅樓夢 曹雪芹 著", "紅樓夢"))
    assert documents[:2] == [
        ("", "紅樓夢"),
        ("第一回 甄士隱夢幻識通靈 賈雨村風塵懷閨秀", "此開卷第一回也。且聽第三回分解。"),
    ]
    title, _ = clean_documents(ONE_LINE.replace("紅樓夢 曹雪芹 著", "正文"))[0]
    assert title == "正文 第一回 甄士隱夢幻識通靈 賈雨村風塵懷閨秀"


def test_chapters_inside_one_line_are_cut_with_their_titles() -> None:
    assert clean_documents(ONE_LINE) == [
        ("", "紅樓夢 曹雪芹著"),
        ("第一回 甄士隱夢幻識通靈 賈雨村風塵懷閨秀", "此開卷第一回也。且聽第三回分解。"),
        ("第二回 賈夫人仙逝揚州城 冷子興演說榮國府", "卻說封肅，因聽見公差傳喚。”"),
        ("第三回 託內兄如海酬訓教 接外孫賈母惜孤女", "卻說雨村，忙回頭看時。"),
    ]


def test_chapter_inside_a_line_completes_a_series_of_lines() -> None:
    text = "第一回　得宝\n话说。且听下回分解。第二回　求砚\n却说。\n第三回　还家\n再说。"
    assert titles(text) == ["第一回 得宝", "第二回 求砚", "第三回 还家"]


@pytest.mark.parametrize(
    "text",
    [
        "此书共五回。第一回写甲，第二回写乙，第三回写丙，第四回写丁，第五回写戊。",
        "他看了。第七回 里写道。又看。第九回 里写道。再看。第二回 里写道。",
        "话说 第一回 已完。",
        "且听第一回分解。且听第二回分解。且听第三回分解。",
    ],
)
def test_prose_that_names_chapters_is_not_cut(text: str) -> None:
    assert titles(text) == []


def test_keeping_headings_keeps_those_of_series_and_inside_lines() -> None:
    assert titles(ONE_LINE, headings="keep") == []
    assert "第二回" in clean_documents(ONE_LINE, headings="keep")[0][1]
    assert "一灭门" in clean_documents(book("{} 灭门"), headings="keep")[0][1]


def test_dropping_headings_ends_the_line_before_them() -> None:
    ((_, text),) = clean_documents(ONE_LINE, headings="drop")
    assert "第三回分解。\n卻說封肅" in text


# --heading


def test_match_of_a_pattern_is_the_title_at_line_starts_and_inside_lines() -> None:
    text = "某书\n　〇甲〇　话说，甲。〇乙〇却说，乙。\n又一日。\n〇丙〇\n再说，丙。"
    assert clean_documents(text, heading=("〇[^〇]〇",)) == [
        ("", "某书"),
        ("〇甲〇", "话说，甲。"),
        ("〇乙〇", "却说，乙。\n又一日。"),
        ("〇丙〇", "再说，丙。"),
    ]


def test_pattern_with_a_caret_matches_line_starts_only() -> None:
    assert titles("〇甲〇\n话说〇乙〇。", heading=("^〇.〇",)) == ["〇甲〇"]


def test_adjacent_and_overlapping_matches_are_separate_headings() -> None:
    text = "𠀀〇甲〇〇乙〇话说。"
    assert clean_documents(text, heading=("〇[^〇]〇", "甲〇")) == [("", "𠀀"), ("〇乙〇", "话说。")]
    one_line = f"开头。{ONE_LINE}"
    assert titles(one_line, heading=("分解。第二回 .{9}",))[1] == "分解。第二回 賈夫人仙逝揚州城"


@pytest.mark.parametrize("pattern", ["(", "x*", "\ud800"])
def test_bad_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(BadConfig, match="--heading"):
        CleanOptions(heading=(pattern,))


def test_default_pattern_leaves_the_key_as_it_was() -> None:
    assert "heading" not in CleanOptions().identity()
    assert CleanOptions(heading=("^〇",)).identity()["heading"] == ("^〇",)


# The report


def test_missed_series_is_reported_with_count_example_and_option(tmp_path: Path) -> None:
    text = book("卷首之语言即是第{}回之事也")
    assert warnings_of(tmp_path, text) == [
        "9 chapters 第N回 of book.txt are in lines that are not known as headings, "
        "such as `卷首之语言即是第一回之事也`: --heading REGEX"
    ]
    assert warnings_of(tmp_path, text, heading=("^卷首.*也$",)) == []


def test_pattern_without_a_match_is_reported(tmp_path: Path) -> None:
    text = "　　【出城】\n　　天未亮。\n　　【入山】\n　　山路难行。\n"
    assert warnings_of(tmp_path, text, heading=("^【.+】$", "【出.】")) == [
        "NO HEADING matches `^【.+】$`: blanks before a line are part of it; --heading '^\\s*…'?"
    ]
    assert warnings_of(tmp_path, text, heading=(r"^\s*【.+】$",)) == []


def test_missed_numbers_inside_lines_and_before_works_are_reported(tmp_path: Path) -> None:
    inside = "".join(f"他来了又走了。第{number}章风云再起他来了。" for number in NUMERALS)
    assert "9 chapters 第N章" in warnings_of(tmp_path, inside)[0]
    works = "".join(f"{number}《關雎》關關雎鳩，在河之洲。\n" for number in range(1, 7))
    assert "6 chapters N《…》 of book.txt" in warnings_of(tmp_path, works)[0]


@pytest.mark.parametrize(
    "text",
    [
        book("第{}回　得宝"),
        book("卷首之语言即是第{}回之事也", "一二三四"),
        book("卷首之语言即是第{}回之事也", "一三五七九"),
        "此书第一回写甲，第二回写乙，第三回写丙，第四回写丁，第五回写戊。",
        book("第{}回　得宝") + book("卷首之语言即是第{}回之事也"),
    ],
)
def test_taken_short_and_broken_series_are_not_reported(tmp_path: Path, text: str) -> None:
    assert warnings_of(tmp_path, text) == []


def test_lines_without_a_heading_are_counted_only_where_chapters_are_lines() -> None:
    chapters = "".join(f"第{number}回  话说，林冲。\n" for number in NUMERALS)
    assert clean_page(f"{chapters}又一日。").unheaded == 1
    assert clean_page(f"{book('第{}回　得宝')}第十回  话说，林冲。").unheaded == 0


# Properties


def random_line(rng: random.Random) -> str:
    value = rng.randint(1, 6)
    number = rng.choice([NUMERALS[value - 1], str(value)])
    kind = rng.choice("回章卷")
    shapes: list[Callable[[], str]] = [
        lambda: f"第{number}{kind} 风云",
        lambda: f"正文 第{number}{kind}：风云",
        lambda: f"第{number}{kind}风云",
        lambda: f"{number} 灭门",
        lambda: f"學而第{number}",
        lambda: rng.choice(["序", "前言", "后记", "", f"（第{number}{kind}）"]),
        lambda: f"𠀀来了。第{number}{kind} 风云 又来了。",
        lambda: f"論語卷第{number}",
        lambda: BODY,
        lambda: BODY,
    ]
    return rng.choice(shapes)()


@pytest.mark.parametrize("seed", range(8))
def test_cleaning_the_documents_again_changes_nothing_and_counts_add_up(seed: int) -> None:
    cleaner = Cleaner(PROFILES["plain"], CleanOptions())
    for attempt in range(25):
        rng = random.Random(f"{seed} {attempt}")
        shape = rng.choice([*SHAPES, "第{}回 风云"])
        lines = [
            line
            for number in NUMERALS
            for line in (shape.format(number), *(map(random_line, [rng] * rng.randint(0, 2))))
        ]
        page = cleaner.clean(["\n".join(lines)])
        assert page.input_size + sum(effect.added - effect.removed for effect in page.effects.values()) == page.size
        documents = [
            (title, text) for title, text in zip(page.titles, split_documents(page.array), strict=True) if text
        ]
        if documents:
            again = cleaner.clean([text for _, text in documents], [title for title, _ in documents])
            assert split_documents(again.array) == [text for _, text in documents]


def test_numbered_lines_with_text_between_are_reported_and_stay() -> None:
    text = book("{}、灭门", "一二三四五")
    assert [title for title, _ in clean_documents(text)] == [""]
    assert [missed.number for missed in clean_page(text).missed] == [1, 2, 3, 4, 5]
    assert clean_page(book("{}、灭门", "一二三四")).missed == []
    assert clean_page("".join(f"{number}、灭门\n" for number in "一二三四五")).missed == []
