"""Lines of sentences.txt: the fast way gives what the sentences, one by one, give."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean import lines
from pipeline.clean import lines as lengths
from pipeline.clean.lines import Lines
from pipeline.clean.rules import whitespace as layout
from pipeline.clean.utf16 import CLOSERS, DOTS, ENDS, codes, join, split, text_of
from tests.pipeline.clean import pages

TEXT = st.text('甲乙。！，：“”…） \n𤣥A\u00e9"', max_size=120)


def one_by_one(documents: list[str], most: int, *, inside_quotes: bool) -> tuple[list[str], Counter[str]]:
    """The sentences of documents, each by itself, and the cuts in those that are too long."""
    found, resplit = list[str](), Counter[str]()
    for document in documents:
        for sentence in pages.split(document, inside_quotes=inside_quotes):
            pieces, level = lengths.limit(sentence, most)
            resplit[level] += len(pieces) - 1
            found += pieces
    return found, resplit


def agree(made: Lines, wanted: list[str], resplit: Counter[str]) -> None:
    assert made.data.decode() == "".join(line + "\n" for line in wanted)
    assert made.characters.tolist() == [len(line) for line in wanted]
    assert made.sizes.tolist() == [len(line.encode()) for line in wanted]
    assert made.unterminated == sum(line[-1] not in ENDS + DOTS + CLOSERS for line in wanted)
    assert made.resplit.total() == resplit.total()


@given(st.lists(TEXT, min_size=1, max_size=4), st.sampled_from([64, 4192]), st.booleans())
def test_sentences_are_those_found_one_by_one(texts: list[str], most: int, inside_quotes: bool) -> None:
    page, _ = layout.divide(join(texts), "document")
    documents = [each for each in split(page) if each]
    if not documents:
        return
    page = join(documents)
    made = lines.of_sentences(page, text_of(page).encode(), most, inside_quotes=inside_quotes)
    agree(made, *one_by_one(documents, most, inside_quotes=inside_quotes))


def test_so_they_are_where_a_page_is_full_of_them() -> None:
    page = join(["甲乙。丙“丁。戊。”己！" * 500, "甲" * 900 + "。", "Hello, 甲。\n乙"])
    made = lines.of_sentences(page, text_of(page).encode(), 1024)
    wanted, resplit = one_by_one(split(page), 1024, inside_quotes=False)
    agree(made, wanted, resplit)
    assert resplit.total() == 2


@given(st.lists(st.text("ab c.\n\u3000é", max_size=120), min_size=1, max_size=3), st.sampled_from([64, 4192]))
def test_lines_of_any_text_are_its_own_without_blank_ones(texts: list[str], most: int) -> None:
    pieces = [piece for text in texts for line in text.split("\n") for piece in lengths.limit(line, most)[0]]
    made = lines.of_any(join(texts), most)
    wanted = [piece for piece in pieces if piece.strip()]
    agree(made, wanted, made.resplit)


def test_a_page_of_blanks_has_no_lines() -> None:
    assert lines.of_any(codes(" \n\n "), 64).data == b""
