"""Lines of sentences.txt are the sentences of each document, cut to the limit one by one."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean import lines
from pipeline.clean.lines import EncodedLines
from pipeline.clean.rules import whitespace
from pipeline.clean.utf16 import (
    CLOSERS,
    ELLIPSIS,
    SENTENCE_ENDS,
    decode_utf16,
    encode_utf16,
    join_documents,
    split_documents,
)
from tests.pipeline.clean import slow_sentences

TEXT = st.text('甲乙。！，：“”…） \n𤣥A\u00e9"', max_size=120)


def slow_lines(documents: list[str], max_bytes: int, *, inside_quotes: bool) -> tuple[list[str], Counter[str]]:
    """Return the sentences of documents, one after another, and the cuts in those that are too long."""
    result, resplit = list[str](), Counter[str]()
    for document in documents:
        for sentence in slow_sentences.split_sentences(document, inside_quotes=inside_quotes):
            pieces, level = lines.cut_line(sentence, max_bytes)
            resplit[level] += len(pieces) - 1
            result += pieces
    return result, resplit


def assert_equal(encoded: EncodedLines, expected: list[str], resplit: Counter[str]) -> None:
    assert encoded.data.decode() == "".join(line + "\n" for line in expected)
    assert encoded.characters.tolist() == [len(line) for line in expected]
    assert encoded.sizes.tolist() == [len(line.encode()) for line in expected]
    assert encoded.unterminated == sum(line[-1] not in SENTENCE_ENDS + ELLIPSIS + CLOSERS for line in expected)
    assert encoded.resplit.total() == resplit.total()


@given(st.lists(TEXT, min_size=1, max_size=4), st.sampled_from([64, 4192]), st.booleans())
def test_lines_equal_the_slow_reference(texts: list[str], max_bytes: int, inside_quotes: bool) -> None:
    page, _ = whitespace.split_documents(join_documents(texts), "document")
    documents = [document for document in split_documents(page) if document]
    if not documents:
        return
    page = join_documents(documents)
    encoded = lines.sentence_lines(page, decode_utf16(page).encode(), max_bytes, inside_quotes=inside_quotes)
    assert_equal(encoded, *slow_lines(documents, max_bytes, inside_quotes=inside_quotes))


def test_lines_of_many_short_sentences_equal_the_slow_reference() -> None:
    page = join_documents(["甲乙。丙“丁。戊。”己！" * 500, "甲" * 900 + "。", "Hello, 甲。\n乙"])
    encoded = lines.sentence_lines(page, decode_utf16(page).encode(), 1024)
    expected, resplit = slow_lines(split_documents(page), 1024, inside_quotes=False)
    assert_equal(encoded, expected, resplit)
    assert resplit.total() == 2


@given(st.lists(st.text("ab c.\n\u3000é", max_size=120), min_size=1, max_size=3), st.sampled_from([64, 4192]))
def test_lines_of_other_text_are_its_lines_that_are_not_blank(texts: list[str], max_bytes: int) -> None:
    pieces = [piece for text in texts for line in text.split("\n") for piece in lines.cut_line(line, max_bytes)[0]]
    encoded = lines.text_lines(join_documents(texts), max_bytes)
    assert_equal(encoded, [piece for piece in pieces if piece.strip()], encoded.resplit)


def test_blank_page_has_no_lines() -> None:
    assert lines.text_lines(encode_utf16(" \n\n "), 64).data == b""
