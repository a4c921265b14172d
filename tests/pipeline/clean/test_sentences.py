"""Sentences end as docs/design/cleaning.md 4.3 says, and splitting loses no character."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.clean import sentences
from pipeline.clean.utf16 import encode_utf16
from tests.pipeline.clean import slow_sentences
from tests.pipeline.clean.pages import split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_text_is_split_into_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@pytest.mark.parametrize("mark", "，、；：")
def test_comma_after_a_closing_quote_continues_the_sentence(mark: str) -> None:
    assert split_sentences(f"“快走！”{mark}众人道。去。") == [f"“快走！”{mark}众人道。", "去。"]


def test_missing_closing_quote_has_no_effect_beyond_its_line() -> None:
    assert split_sentences("“一。二。\n三。四。") == ["“一。二。", "三。", "四。"]


def test_second_opening_quote_does_not_nest() -> None:
    assert split_sentences("“一。“二。”三。四。") == ["“一。“二。”", "三。", "四。"]


def test_unmatched_closing_quote_is_ignored() -> None:
    assert split_sentences("一”二。三。”四。") == ["一”二。", "三。”", "四。"]


def test_every_cluster_ends_a_sentence_with_inside_quotes() -> None:
    assert split_sentences("他道：“一。二。”去了。", inside_quotes=True) == ["他道：“一。", "二。”", "去了。"]


PIECES = "林冲道𤣥𠮷\ue10eab1 ，、；：。！？……——“”‘’「」『』（）《》【】〔〕\n\"'"
TEXT = st.text(st.sampled_from(PIECES), max_size=40)
CLOSERS, TERMINATORS, CONTINUES = "”’」』）》〉】〕〗", "。！？", "，、；："


@given(TEXT, st.booleans())
def test_sentences_add_up_to_the_text_without_its_newlines(text: str, inside_quotes: bool) -> None:
    sentences = split_sentences(text, inside_quotes=inside_quotes)
    assert "".join(sentences) == text.replace("\n", "")
    assert all(sentences)


@given(TEXT, TEXT)
def test_lines_are_split_independently(first: str, second: str) -> None:
    assert split_sentences(f"{first}\n{second}") == split_sentences(first) + split_sentences(second)


@given(TEXT)
def test_no_sentence_starts_with_a_closer_or_comma_unless_its_line_does(text: str) -> None:
    for line in text.split("\n"):
        assert not any(sentence[0] in CLOSERS + CONTINUES for sentence in split_sentences(line)[1:])


@given(TEXT)
@example("“好。”。然后")
@example("…》。")
@example("。》…》。")
def test_no_sentence_starts_with_a_terminator_unless_its_line_does(text: str) -> None:
    for line in text.split("\n"):
        assert not any(sentence[0] in TERMINATORS for sentence in split_sentences(line)[1:])


@given(TEXT)
def test_sentence_before_the_last_of_a_line_ends_in_a_terminator_and_closers(text: str) -> None:
    for line in text.split("\n"):
        for sentence in split_sentences(line)[:-1]:
            assert re.search(f"[。！？…]+[{CLOSERS}]*$", sentence)


@given(TEXT)
def test_splitting_a_sentence_again_changes_nothing(text: str) -> None:
    for sentence in split_sentences(text):
        assert split_sentences(sentence) == [sentence]


@settings(max_examples=2000)
@given(TEXT, st.booleans())
@example("…》。……”，“。", False)
def test_split_equals_the_slow_reference(text: str, inside_quotes: bool) -> None:
    expected = slow_sentences.split_sentences(text, inside_quotes=inside_quotes)
    assert split_sentences(text, inside_quotes=inside_quotes) == expected


@given(TEXT, TEXT)
def test_documents_of_a_page_are_split_independently(first: str, second: str) -> None:
    page = encode_utf16(f"{first}\0{second}")
    offset = len(encode_utf16(first)) + 1
    ends = [*sentences.end_positions(encode_utf16(first)), *(sentences.end_positions(encode_utf16(second)) + offset)]
    assert sentences.end_positions(page).tolist() == ends


@pytest.mark.parametrize("book", ["shuihu_raw.txt", "song_ci.txt"])
def test_split_of_real_books_equals_the_slow_reference(shared: Path, book: str) -> None:
    text = (shared / "data" / book).read_text(encoding="utf-8-sig")
    assert split_sentences(text) == slow_sentences.split_sentences(text)
