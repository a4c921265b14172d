"""Every key is another permutation: one to one whatever the size, and without a favourite place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.training.permutation import GOLDEN, mix, permute

KEYS = st.integers(0, 2**64 - 1)


def keys(count: int) -> np.ndarray:
    return mix(np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)


def slow_permute(value: int, size: int, key: int) -> int:
    """The same network on one of Python's integers."""
    word = (1 << 64) - 1

    def scatter(half: int, key: int) -> int:
        x = (half ^ key) * 0xD1342543DE82EF95 & word
        return ((x ^ (x >> 32)) * 0x9E3779B97F4A7C15 & word) >> 32

    a = next(side for side in range(1, size + 1) if side * side >= size)
    b = -(-size // a)
    while True:
        left, right = divmod(value, b)
        for turn in range(1, 7, 2):
            left = (left + scatter(right, key + turn * 0x9E3779B97F4A7C15 & word)) % a
            right = (right + scatter(left, key + (turn + 1) * 0x9E3779B97F4A7C15 & word)) % b
        value = left * b + right
        if value < size:
            return value


@given(st.integers(1, 400), KEYS)
def test_each_place_is_taken_once(size: int, key: int) -> None:
    taken = permute(np.arange(size, dtype=np.uint64), size, np.array([key], np.uint64))
    assert sorted(taken.tolist()) == list(range(size))


@given(st.integers(1, 400), st.lists(KEYS, min_size=1, max_size=5))
def test_many_at_once_go_where_each_goes_alone(size: int, chosen: list[int]) -> None:
    values = np.resize(np.arange(size, dtype=np.uint64), 12)
    each = np.resize(np.array(chosen, np.uint64), 12)
    expected = [slow_permute(value, size, key) for value, key in zip(values.tolist(), each.tolist(), strict=True)]
    assert permute(values, size, each).tolist() == expected


@given(st.integers(2**32, 2**60), st.integers(0, 2**59), KEYS)
def test_large_sizes_stay_one_to_one_and_in_range(size: int, start: int, key: int) -> None:
    values = np.arange(start % (size - 1000), start % (size - 1000) + 1000, dtype=np.uint64)
    taken = permute(values, size, np.array([key], np.uint64))
    assert len(np.unique(taken)) == 1000
    assert int(taken.max()) < size


@pytest.mark.parametrize("size", [2, 12, 24, 60])
def test_over_many_keys_every_value_goes_everywhere_alike_often(size: int) -> None:
    count = 20_000
    taken = permute(np.tile(np.arange(size, dtype=np.uint64), count), size, np.repeat(keys(count), size))
    for column in taken.reshape(count, size).T:
        often = np.bincount(column.astype(int), minlength=size)
        assert abs(often / (count / size) - 1).max() < 6 * np.sqrt(size / count)


def test_neighbours_are_not_kept_together() -> None:
    size, count = 1000, 2000
    taken = permute(np.tile(np.arange(size, dtype=np.uint64), count), size, np.repeat(keys(count), size))
    apart = np.diff(taken.reshape(count, size).astype(int), axis=1) % size
    often = np.bincount(apart.ravel(), minlength=size)[1:]
    assert abs(often / often.mean() - 1).max() < 0.12  # six deviations of a fair count
