"""Paragraphs and sentences of text that is not Chinese."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.text_units import paragraphs, sentences, split_text
from pipeline.clean.utf16 import join_documents, split_documents


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  It rained\nall day.\n \t\n\n  We left. \n", ["It rained\nall day.", "We left."]),
        ("\n\nIt rained.\n We left.\n\n", ["It rained.", "We left."]),
        ("It rained.", ["It rained."]),
        (" \n\n ", []),
    ],
)
def test_paragraph_is_separated_by_blank_lines_or_is_a_line(text: str, expected: list[str]) -> None:
    assert paragraphs(text) == expected


@pytest.mark.parametrize(
    "expected",
    [
        ["It rained.", "We left!", "Where to?", "Nobody knew…", "5 went home."],
        ['"Is it you?" he asked.', '"Yes."', "“No.”", "(He lied.)", "She left."],
        ["Mr. Brown met J. R. R. Smith at 5 p.m. in St. Ives, e.g. Tuesday.", "It is I.", "So be it."],
        ["No.", "See no. 5, vol. 2 and pp. 3 of it.", "The vol.", "It was 3.5 m long."],
        ["1. First item.", "2. Second."],
        ["They waited... and left.", "Done...", "Or not? maybe."],
        ["Er sagte: »Ja!«", "„Nein!“", "Über alles.", "Это он.", "«Да?»", "Нет."],
        ["यह है।", "वह है।", "هل هذا؟", "نعم."],
        ["Wrapped\nlines stay.", "Here\ntoo."],
    ],
)
def test_sentence_ends_at_a_mark_before_a_word_that_is_not_in_lower_case(expected: list[str]) -> None:
    assert sentences(" ".join(expected)) == expected


def test_chinese_marks_end_a_sentence_without_a_space() -> None:
    assert sentences("彼は来た。「そう。」と、言った。終わり") == ["彼は来た。", "「そう。」", "と、言った。", "終わり"]
    assert sentences("「えっ？」、と。") == ["「えっ？」、と。"]


def test_document_without_text_stays() -> None:
    page, origin = split_text(join_documents(["It rained. We left.", "", "E"]), "sentence")
    assert split_documents(page) == ["It rained.", "We left.", "", "E"]
    assert origin.tolist() == [0, 0, 1, 2]


TEXT = st.lists(st.sampled_from([*'aB.!?…"”)1 \n', "Mr.", "\n\n", "。」"]), max_size=30).map("".join)


@given(TEXT)
def test_units_lose_only_white_space_and_are_trimmed(text: str) -> None:
    for parts in (paragraphs(text), sentences(text), [s for part in paragraphs(text) for s in sentences(part)]):
        assert "".join("".join(parts).split()) == "".join(text.split())
        assert all(part == part.strip() != "" for part in parts)
