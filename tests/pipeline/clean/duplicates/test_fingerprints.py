"""Fingerprints: documents are equal if their letters are, and the first of them is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.duplicates.fingerprints import fingerprints
from pipeline.clean.duplicates.near import FINGERPRINT, equal_to_earlier
from pipeline.clean.utf16 import join_documents


def fingerprint(text: str) -> bytes:
    [digest] = fingerprints(join_documents([text]))
    return digest


@pytest.mark.parametrize(
    "variant",
    ["床前明月光，疑是地上霜。", "床前明月光疑是地上霜", "床前明月光\n  疑是、地上霜！", "「床前明月光」…疑是地上霜"],
)
def test_fingerprint_ignores_punctuation_spaces_and_line_ends(variant: str) -> None:
    assert fingerprint(variant) == fingerprint("床前明月光，疑是地上霜。")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("床前明月光", "牀前明月光"),
        ("肐\ue10e地", "肐地"),
        ("肐\ue10e地", "肐\ue10f地"),
        ("肐□地", "肐地"),
        ("𤣥德", "𠮷德"),
        ("第1回", "第2回"),
        ("……", "。"),
        ("", "。"),
        ("甲", "甲甲"),
    ],
)
def test_fingerprint_depends_on_letters_digits_gaiji_and_lacunae(one: str, other: str) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_fingerprint_ignores_case() -> None:
    assert fingerprint("Hello, WORLD! Ωé") == fingerprint("hello world ωÉ")


TEXT = st.text(st.sampled_from("甲乙𤣥𠮷aB1，。 \n\ue000□"), max_size=8)


@given(st.lists(TEXT, min_size=1, max_size=6))
def test_fingerprints_of_a_page_are_those_of_its_documents(texts: list[str]) -> None:
    assert fingerprints(join_documents(texts)) == [fingerprint(text) for text in texts]


@given(TEXT, TEXT)
def test_fingerprints_are_equal_exactly_if_the_letters_are(one: str, other: str) -> None:
    def letters(text: str) -> str:
        return "".join(c for c in text.lower() if c not in "，。 \n") or f"no letters: {text}"

    assert (fingerprint(one) == fingerprint(other)) == (letters(one) == letters(other))


def is_repeated(texts: list[str]) -> list[bool]:
    return equal_to_earlier(np.frombuffer(b"".join(fingerprints(join_documents(texts))), FINGERPRINT)).tolist()


def test_second_of_two_equal_documents_is_the_duplicate() -> None:
    assert is_repeated(["甲。", "乙。", "甲，", "丙", "乙"]) == [False, False, True, False, True]


def test_exact_duplicates_among_the_poems_are_found(bodies: list[str]) -> None:
    assert len(bodies) == 57_603
    assert len(bodies) - len(set(bodies)) == 952  # equal byte for byte
    assert sum(is_repeated(bodies)) == 997
