"""A document is Chinese if at least half of its letters are Han; Japanese is recognised by its hiragana."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.han_rich import han_rich_documents, is_han_rich
from pipeline.clean.utf16 import join_documents


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("床前明月光", True),
        ("𤣥德，𠮷。", True),
        ("他说 hi", True),
        ("他说 hello", False),
        ("“是！”", True),
        ("", False),
        ("3.14", False),
        ("……", False),
        ("3,14。", True),
        ("《》", True),
        ("□□", True),
        ("한국어 문장입니다 漢字", False),
        ("日本国憲法前文の草案を検討する委員会", False),
        ("倚杖け然长啸，不知何处是他乡", True),
        ("Это не по-китайски", False),
    ],
)
def test_document_is_chinese_by_its_letters(text: str, expected: bool) -> None:
    assert is_han_rich(text) is expected


@given(st.lists(st.text(st.sampled_from("林冲𤣥〇□aZéжのホ，。《 \n1\ue000"), max_size=8), min_size=1, max_size=8))
def test_documents_of_a_page_are_judged_as_each_alone(texts: list[str]) -> None:
    assert han_rich_documents(join_documents(texts)).tolist() == [is_han_rich(text) for text in texts]
