"""A text as units: what changes it moves its odd ones along, just as if they were looked for again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.utf16 import (
    Codes,
    bounds,
    characters,
    codes,
    distinct,
    join,
    places,
    plain,
    replaced,
    split,
    text_of,
    without,
)

TEXT = st.text("甲乙。，：“” 　\n\0𤣥□A", max_size=80)


def odd_of(text: Codes) -> list[int]:
    """Where the units stand that are not plain, looked for one by one."""
    return [place for place, unit in enumerate(text.units.tolist()) if not plain()[unit]]


def known(text: str) -> Codes:
    """A text whose odd ones were asked for."""
    made = codes(text)
    assert made.odd.tolist() == odd_of(made)
    return made


def chosen(text: Codes, which: list[int]) -> np.ndarray:
    return np.array(sorted({place % len(text) for place in which}) if len(text) else [], int)


@given(TEXT, st.lists(st.integers(0, 99), max_size=30))
def test_what_is_taken_out_moves_the_odd_ones_along(text: str, which: list[int]) -> None:
    before = known(text)
    gone = chosen(before, which)
    after = without(before, gone)
    assert after.units.tolist() == np.delete(before.units, gone).tolist()
    assert after.odd.tolist() == odd_of(after)
    assert after.odd_units.tolist() == after.units[after.odd].tolist()


def test_so_it_is_where_much_is_taken_out() -> None:
    before = known("甲 乙，" * 1000)
    after = without(before, places(before, " "))
    assert text_of(after) == "甲乙，" * 1000
    assert after.odd.tolist() == []


@given(TEXT, st.lists(st.integers(0, 99), max_size=30), st.sampled_from("甲。\u3000"))
def test_what_is_replaced_is_found_again(text: str, which: list[int], by: str) -> None:
    before = known(text)
    after = replaced(before, chosen(before, which), ord(by))
    assert {*odd_of(after)} <= {*after.odd.tolist()}
    assert after.odd.tolist() == sorted({*after.odd.tolist()})
    for character in "甲。 \u3000":
        assert places(after, character).tolist() == np.flatnonzero(after.units == ord(character)).tolist()


@given(TEXT, st.integers(0, 90), st.integers(0, 90))
def test_a_part_has_the_odd_ones_of_its_text(text: str, start: int, end: int) -> None:
    part = known(text)[start:end]
    assert part.units.tolist() == codes(text).units[start:end].tolist()
    assert part.odd.tolist() == odd_of(part)


@given(TEXT)
def test_places_of_plain_and_odd_characters_come_in_order(text: str) -> None:
    found = places(codes(text), "甲。，“\n")
    assert found.tolist() == [place for place, unit in enumerate(codes(text).units) if chr(unit) in "甲。，“\n"]


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_documents_of_a_page_are_those_that_were_joined(texts: list[str]) -> None:
    page = join(texts)
    whole = [text.replace("\0", "") for text in texts]
    assert split(page) == [text_of(page[start:end]) for start, end in bounds(page)] == whole
    page = join(texts)
    assert characters(page) == sum(map(len, whole))  # without having looked for odd ones, and with them
    assert page.odd is not None
    assert characters(page) == sum(map(len, whole))


@given(st.lists(st.integers(0, 5)))
def test_distinct_values_are_counted(values: list[int]) -> None:
    found, counts = distinct(np.array(values, int))
    assert dict(zip(found.tolist(), counts.tolist(), strict=True)) == {each: values.count(each) for each in values}
    assert found.tolist() == sorted({*values})
