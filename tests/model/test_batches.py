"""Blocks are a pure function of (seed, step, row)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import batches
from pipeline.errors import BadData
from pipeline.tokens import TokenArray

SEEDS = st.integers(0, 2**31)


@given(SEEDS, SEEDS, st.integers(1, 64), st.integers(1, 2**40))
def test_positions_lie_in_range_and_do_not_depend_on_how_many_rows_are_asked_for(
    seed: int, step: int, rows: int, count: int
) -> None:
    places = batches.positions(seed, step, rows, count)
    assert places.shape == (rows,)
    assert ((places >= 0) & (places < count)).all()
    assert np.array_equal(places, batches.positions(seed, step, rows + 5, count)[:rows])


def test_steps_and_seeds_give_other_places() -> None:
    places = {tuple(batches.positions(seed, step, 8, 10**9)) for seed in range(5) for step in range(50)}
    assert len(places) == 250


def test_places_are_spread_evenly() -> None:
    places = np.concatenate([batches.positions(1, step, 1000, 10) for step in range(100)])
    counts = np.bincount(places, minlength=10)
    assert counts.min() > 0.95 * counts.mean()
    assert counts.max() < 1.05 * counts.mean()


def test_a_batch_is_blocks_of_the_store_with_one_more_token_for_the_targets() -> None:
    ids = np.arange(1000, dtype="<u2")
    array = TokenArray((ids[:300], ids[300:]))
    batch = batches.batch(array, seed=3, step=4, rows=50, block_size=20)
    assert batch.shape == (50, 21)
    assert (np.diff(batch) == 1).all()


def test_the_last_possible_block_is_reached_and_none_beyond_it() -> None:
    array = TokenArray((np.arange(22, dtype="<u2"),))
    starts = {int(row[0]) for step in range(50) for row in batches.batch(array, 1, step, 8, 20)}
    assert starts == {0, 1}


def test_too_few_tokens_for_a_block_are_refused_with_both_numbers() -> None:
    with pytest.raises(BadData, match="16 training tokens are too few for a block of 16"):
        batches.batch(TokenArray((np.arange(16, dtype="<u2"),)), 1, 1, 1, 16)
