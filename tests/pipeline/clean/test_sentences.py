"""Sentences: where one ends (reference/cleaning.md 4.3), and that splitting loses nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.clean import sentences
from pipeline.clean.utf16 import codes
from tests.pipeline.clean import slow_sentences
from tests.pipeline.clean.pages import split


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("天高。地厚！何如？", ["天高。", "地厚！", "何如？"]),
        ("曰：「可乎？」遂行。", ["曰：「可乎？」", "遂行。"]),
        ("他问：“去不去？！”答：“去。”", ["他问：“去不去？！”", "答：“去。”"]),
        ("刺下“迭配……州”字样。", ["刺下“迭配……州”字样。"]),
        ("（自注：此诗。）其二。", ["（自注：此诗。）", "其二。"]),
        ("『「善哉。」』众皆喜。", ["『「善哉。」』", "众皆喜。"]),
        ("“快走！”，众人道。", ["“快走！”，众人道。"]),
        ("“断配孟州。……”至十字坡。", ["“断配孟州。……”", "至十字坡。"]),
        ("一……二——三。四", ["一……二——三。", "四"]),
        ("“走……”他道。", ["“走……”", "他道。"]),
        ("走！！快。。", ["走！！", "快。。"]),
        ("可乎？！然。", ["可乎？！", "然。"]),
        ("一；二；三。", ["一；二；三。"]),
        ("床前明月光\n疑是地上霜", ["床前明月光", "疑是地上霜"]),
        ("他道：“一。二。三。”去了。", ["他道：“一。二。三。”", "去了。"]),
        ("“唤作‘玉幡竿。’孟康。”走。", ["“唤作‘玉幡竿。’孟康。”", "走。"]),
        ("《史记。》其书。", ["《史记。》", "其书。"]),
        ("话说大宋。林冲", ["话说大宋。", "林冲"]),
        ("", []),
        ("\n\n", []),
        ("。！？", ["。！？"]),
        ("𤣥德。𠮷", ["𤣥德。", "𠮷"]),
    ],
)
def test_a_sentence_ends_where_the_reference_says(text: str, units: list[str]) -> None:
    assert split(text) == units


@pytest.mark.parametrize("mark", "，、；：")
def test_a_comma_after_a_closing_quote_carries_the_sentence_on(mark: str) -> None:
    assert split(f"“快走！”{mark}众人道。去。") == [f"“快走！”{mark}众人道。", "去。"]


def test_a_lost_closing_quote_glues_no_further_than_its_line() -> None:
    assert split("“一。二。\n三。四。") == ["“一。二。", "三。", "四。"]


def test_a_second_opening_quote_does_not_nest() -> None:
    assert split("“一。“二。”三。四。") == ["“一。“二。”", "三。", "四。"]


def test_an_orphan_closing_quote_is_ignored() -> None:
    assert split("一”二。三。”四。") == ["一”二。", "三。”", "四。"]


def test_inside_quotes_every_cluster_ends_a_sentence_when_asked() -> None:
    assert split("他道：“一。二。”去了。", inside_quotes=True) == ["他道：“一。", "二。”", "去了。"]


PIECES = "林冲道𤣥𠮷\ue10eab1 ，、；：。！？……——“”‘’「」『』（）《》【】〔〕\n\"'"
TEXT = st.text(st.sampled_from(PIECES), max_size=40)
CLOSERS, TERMINATORS, CONTINUES = "”’」』）》〉】〕〗", "。！？", "，、；："


@given(TEXT, st.booleans())
def test_joined_the_sentences_are_the_text_without_its_newlines(text: str, inside_quotes: bool) -> None:
    units = split(text, inside_quotes=inside_quotes)
    assert "".join(units) == text.replace("\n", "")
    assert all(units)


@given(TEXT, TEXT)
def test_two_texts_on_two_lines_split_as_they_do_alone(first: str, second: str) -> None:
    assert split(f"{first}\n{second}") == split(first) + split(second)


@given(TEXT)
def test_no_sentence_starts_with_a_closer_or_a_comma_unless_its_line_does(text: str) -> None:
    for line in text.split("\n"):
        assert not any(unit[0] in CLOSERS + CONTINUES for unit in split(line)[1:])


@given(TEXT)
@example("“好。”。然后")
@example("…》。")
@example("。》…》。")
def test_no_sentence_starts_with_a_terminator_unless_its_line_does(text: str) -> None:
    for line in text.split("\n"):
        assert not any(unit[0] in TERMINATORS for unit in split(line)[1:])


@given(TEXT)
def test_every_sentence_but_the_last_of_a_line_ends_in_a_terminator_and_its_closers(text: str) -> None:
    for line in text.split("\n"):
        for unit in split(line)[:-1]:
            assert re.search(f"[。！？…]+[{CLOSERS}]*$", unit)


@given(TEXT)
def test_splitting_a_sentence_again_changes_nothing(text: str) -> None:
    for unit in split(text):
        assert split(unit) == [unit]


@settings(max_examples=2000)
@given(TEXT, st.booleans())
@example("…》。……”，“。", False)
def test_the_fast_splitter_cuts_where_the_slow_one_does(text: str, inside_quotes: bool) -> None:
    assert split(text, inside_quotes=inside_quotes) == slow_sentences.split(text, inside_quotes=inside_quotes)


@given(TEXT, TEXT)
def test_documents_of_a_page_split_as_they_do_alone(first: str, second: str) -> None:
    both = codes(f"{first}\0{second}")
    place = len(codes(first)) + 1
    ends = [*sentences.ends(codes(first)), *(sentences.ends(codes(second)) + place)]
    assert sentences.ends(both).tolist() == ends


@pytest.mark.parametrize("book", ["shuihu_raw.txt", "song_ci.txt"])
def test_the_fast_splitter_cuts_real_books_where_the_slow_one_does(shared: Path, book: str) -> None:
    text = (shared / "data" / book).read_text(encoding="utf-8-sig")
    assert split(text) == slow_sentences.split(text)
