"""Each key gives a permutation: one to one for any size, and uniform over many keys."""

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
    """Permute one value with Python integers, as a reference."""
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
def test_permutation_is_one_to_one(size: int, key: int) -> None:
    results = permute(np.arange(size, dtype=np.uint64), size, np.array([key], np.uint64))
    assert sorted(results.tolist()) == list(range(size))


@given(st.integers(1, 400), st.lists(KEYS, min_size=1, max_size=5))
def test_vectorised_permutation_equals_a_slow_reference(size: int, key_list: list[int]) -> None:
    values = np.resize(np.arange(size, dtype=np.uint64), 12)
    each = np.resize(np.array(key_list, np.uint64), 12)
    expected = [slow_permute(value, size, key) for value, key in zip(values.tolist(), each.tolist(), strict=True)]
    assert permute(values, size, each).tolist() == expected


@given(st.integers(2**32, 2**60), st.integers(0, 2**59), KEYS)
def test_large_permutations_are_one_to_one_and_in_range(size: int, start: int, key: int) -> None:
    values = np.arange(start % (size - 1000), start % (size - 1000) + 1000, dtype=np.uint64)
    results = permute(values, size, np.array([key], np.uint64))
    assert len(np.unique(results)) == 1000
    assert int(results.max()) < size


@pytest.mark.parametrize("size", [2, 12, 24, 60])
def test_values_are_spread_uniformly_over_many_keys(size: int) -> None:
    count = 20_000
    results = permute(np.tile(np.arange(size, dtype=np.uint64), count), size, np.repeat(keys(count), size))
    for column in results.reshape(count, size).T:
        counts = np.bincount(column.astype(int), minlength=size)
        assert abs(counts / (count / size) - 1).max() < 6 * np.sqrt(size / count)


def test_neighbours_are_not_kept_together() -> None:
    size, count = 1000, 2000
    results = permute(np.tile(np.arange(size, dtype=np.uint64), count), size, np.repeat(keys(count), size))
    distances = np.diff(results.reshape(count, size).astype(int), axis=1) % size
    counts = np.bincount(distances.ravel(), minlength=size)[1:]
    assert abs(counts / counts.mean() - 1).max() < 0.12  # six deviations of a fair count
