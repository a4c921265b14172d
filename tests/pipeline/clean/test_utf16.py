"""UTF-16 text: after an edit, the special positions are those that a new search would find."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.utf16 import (
    Codes,
    bounds,
    characters,
    codes,
    common_units,
    distinct,
    join,
    places,
    replaced,
    split,
    text_of,
    without,
)

TEXT = st.text("甲乙。，：“” 　\n\0𤣥□A", max_size=80)


def special_positions(text: Codes) -> list[int]:
    """Search for special units one by one."""
    return [position for position, unit in enumerate(text.units.tolist()) if not common_units()[unit]]


def searched(text: str) -> Codes:
    """Return a text whose special positions are known."""
    result = codes(text)
    assert result.odd.tolist() == special_positions(result)
    return result


def positions_in(text: Codes, numbers: list[int]) -> np.ndarray:
    """Map any numbers to sorted positions in a text."""
    return np.array(sorted({number % len(text) for number in numbers}) if len(text) else [], int)


@given(TEXT, st.lists(st.integers(0, 99), max_size=30))
def test_deleting_units_shifts_the_special_positions(text: str, numbers: list[int]) -> None:
    before = searched(text)
    deleted = positions_in(before, numbers)
    after = without(before, deleted)
    assert after.units.tolist() == np.delete(before.units, deleted).tolist()
    assert after.odd.tolist() == special_positions(after)
    assert after.odd_units.tolist() == after.units[after.odd].tolist()


def test_deleting_many_units_shifts_the_special_positions() -> None:
    before = searched("甲 乙，" * 1000)
    after = without(before, places(before, " "))
    assert text_of(after) == "甲乙，" * 1000
    assert after.odd.tolist() == []


@given(TEXT, st.lists(st.integers(0, 99), max_size=30), st.sampled_from("甲。\u3000"))
def test_replaced_units_are_found(text: str, numbers: list[int], character: str) -> None:
    before = searched(text)
    after = replaced(before, positions_in(before, numbers), ord(character))
    assert {*special_positions(after)} <= {*after.odd.tolist()}
    assert after.odd.tolist() == sorted({*after.odd.tolist()})
    for searched_for in "甲。 \u3000":
        assert places(after, searched_for).tolist() == np.flatnonzero(after.units == ord(searched_for)).tolist()


@given(TEXT, st.integers(0, 90), st.integers(0, 90))
def test_slice_has_the_special_positions_of_its_text(text: str, start: int, end: int) -> None:
    part = searched(text)[start:end]
    assert part.units.tolist() == codes(text).units[start:end].tolist()
    assert part.odd.tolist() == special_positions(part)


@given(TEXT)
def test_positions_of_common_and_special_characters_are_sorted(text: str) -> None:
    expected = [position for position, unit in enumerate(codes(text).units) if chr(unit) in "甲。，“\n"]
    assert places(codes(text), "甲。，“\n").tolist() == expected


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_documents_of_a_page_are_the_joined_texts_without_nul(texts: list[str]) -> None:
    page = join(texts)
    documents = [text.replace("\0", "") for text in texts]
    assert split(page) == [text_of(page[start:end]) for start, end in bounds(page)] == documents


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_character_count_is_the_same_with_known_special_positions(texts: list[str]) -> None:
    page = join(texts)
    size = sum(len(text.replace("\0", "")) for text in texts)
    assert not page.has_positions
    assert characters(page) == size
    assert page.odd is not None
    assert page.has_positions
    assert characters(page) == size


@given(st.lists(st.integers(0, 5)))
def test_distinct_values_are_sorted_and_counted(values: list[int]) -> None:
    unique, counts = distinct(np.array(values, int))
    expected = {value: values.count(value) for value in values}
    assert dict(zip(unique.tolist(), counts.tolist(), strict=True)) == expected
    assert unique.tolist() == sorted({*values})
