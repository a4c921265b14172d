"""UTF-16 text: after an edit, the special positions are those that a new search would find."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.utf16 import (
    Utf16Text,
    common_units,
    count_characters,
    count_distinct,
    decode_utf16,
    delete_units,
    document_bounds,
    encode_utf16,
    join_documents,
    positions_of,
    replace_units,
    split_documents,
)

TEXT = st.text("甲乙。，：“” 　\n\0𤣥□A", max_size=80)


def special_positions(text: Utf16Text) -> list[int]:
    """Search for special units one by one."""
    return [position for position, unit in enumerate(text.units.tolist()) if not common_units()[unit]]


def searched(text: str) -> Utf16Text:
    """Return a text whose special positions are known."""
    result = encode_utf16(text)
    assert result.special_positions.tolist() == special_positions(result)
    return result


def positions_in(text: Utf16Text, numbers: list[int]) -> np.ndarray:
    """Map any numbers to sorted positions in a text."""
    return np.array(sorted({number % len(text) for number in numbers}) if len(text) else [], int)


@given(TEXT, st.lists(st.integers(0, 99), max_size=30))
def test_deleting_units_shifts_the_special_positions(text: str, numbers: list[int]) -> None:
    before = searched(text)
    deleted = positions_in(before, numbers)
    after = delete_units(before, deleted)
    assert after.units.tolist() == np.delete(before.units, deleted).tolist()
    assert after.special_positions.tolist() == special_positions(after)
    assert after.special_units.tolist() == after.units[after.special_positions].tolist()


def test_deleting_many_units_shifts_the_special_positions() -> None:
    before = searched("甲 乙，" * 1000)
    after = delete_units(before, positions_of(before, " "))
    assert decode_utf16(after) == "甲乙，" * 1000
    assert after.special_positions.tolist() == []


@given(TEXT, st.lists(st.integers(0, 99), max_size=30), st.sampled_from("甲。\u3000"))
def test_replaced_units_are_found(text: str, numbers: list[int], character: str) -> None:
    before = searched(text)
    after = replace_units(before, positions_in(before, numbers), ord(character))
    assert {*special_positions(after)} <= {*after.special_positions.tolist()}
    assert after.special_positions.tolist() == sorted({*after.special_positions.tolist()})
    for searched_for in "甲。 \u3000":
        assert positions_of(after, searched_for).tolist() == np.flatnonzero(after.units == ord(searched_for)).tolist()


@given(TEXT, st.integers(0, 90), st.integers(0, 90))
def test_slice_has_the_special_positions_of_its_text(text: str, start: int, end: int) -> None:
    part = searched(text)[start:end]
    assert part.units.tolist() == encode_utf16(text).units[start:end].tolist()
    assert part.special_positions.tolist() == special_positions(part)


@given(TEXT)
def test_positions_of_common_and_special_characters_are_sorted(text: str) -> None:
    expected = [position for position, unit in enumerate(encode_utf16(text).units) if chr(unit) in "甲。，“\n"]
    assert positions_of(encode_utf16(text), "甲。，“\n").tolist() == expected


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_documents_of_a_page_are_the_joined_texts_without_nul(texts: list[str]) -> None:
    page = join_documents(texts)
    documents = [text.replace("\0", "") for text in texts]
    assert split_documents(page) == [decode_utf16(page[start:end]) for start, end in document_bounds(page)] == documents


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_character_count_is_the_same_with_known_special_positions(texts: list[str]) -> None:
    page = join_documents(texts)
    size = sum(len(text.replace("\0", "")) for text in texts)
    assert not page.has_positions
    assert count_characters(page) == size
    assert page.special_positions is not None
    assert page.has_positions
    assert count_characters(page) == size


@given(st.lists(st.integers(0, 5)))
def test_distinct_values_are_sorted_and_counted(values: list[int]) -> None:
    unique, counts = count_distinct(np.array(values, int))
    expected = {value: values.count(value) for value in values}
    assert dict(zip(unique.tolist(), counts.tolist(), strict=True)) == expected
    assert unique.tolist() == sorted({*values})
