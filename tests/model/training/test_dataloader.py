"""Blocks are a pure function of (store, seed, step, row), whoever asks for them and however they come to the device."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.network import masks
from model.training import dataloader as batches
from model.training.dataloader import ORDERS, Loader, Sampler
from pipeline.errors import BadConfig, BadData
from pipeline.tokens import hdf5, segments
from pipeline.tokens.store import TokenArray

CPU = torch.device("cpu")
KEY = "5a" * 32
ANY_ORDER = pytest.mark.parametrize("order", ORDERS)


def counting(count: int, dtype: str = "<u2") -> TokenArray:
    """Tokens that say where they stand."""
    return TokenArray((np.arange(count).astype(dtype),))


def sampler(count: int = 1000, block: int = 20, *, seed: int = 1, order: str = "random", key: str = KEY) -> Sampler:
    return Sampler(counting(count), block, seed, order, key)


class Long:
    """Stands for a token array too long for this machine: nobody reads it here."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


# --- which blocks


@given(
    st.sampled_from(ORDERS),
    st.integers(-1, 2**70),
    st.integers(0, 2**40),
    st.integers(1, 64),
    st.integers(17, 5000),
    st.data(),
)
def test_rows_are_the_same_asked_for_alone_or_together_and_lie_in_the_store(
    order: str, seed: int, step: int, rows: int, count: int, data: st.DataObject
) -> None:
    made = sampler(count, 16, seed=seed, order=order)
    places = made.places(step, rows)
    assert (places.dtype, places.shape) == (np.dtype(np.int64), (rows,))
    assert places.min() >= 0
    assert places.max() + 17 <= count
    first = data.draw(st.integers(0, rows))
    wanted = data.draw(st.integers(0, rows - first))
    again = sampler(count, 16, seed=seed, order=order)
    assert again.places(step, rows, first, wanted).tolist() == places[first : first + wanted].tolist()
    assert again.places(step, rows, first).tolist() == places[first:].tolist()


@ANY_ORDER
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_and_any_micro_batch_make_the_same_global_batch(order: str, ranks: int) -> None:
    made, rows = sampler(order=order), 24
    for step in (0, 5, 77):
        whole = made.batch(step, rows)
        share = rows // ranks
        by_rank = [made.batch(step, rows, rank * share, share) for rank in range(ranks)]
        micro = [made.batch(step, rows, first, 2) for first in range(0, rows, 2)]
        assert np.concatenate(by_rank).tobytes() == np.concatenate(micro).tobytes() == whole.tobytes()


@ANY_ORDER
def test_what_was_asked_before_changes_nothing(order: str) -> None:
    forwards, backwards = sampler(order=order), sampler(order=order)
    expected = [forwards.places(step, 8).tolist() for step in range(30)]
    assert [backwards.places(step, 8).tolist() for step in reversed(range(30))][::-1] == expected


@ANY_ORDER
def test_larger_batches_take_the_same_samples_in_fewer_steps(order: str) -> None:
    made = sampler(order=order)
    small = np.concatenate([made.places(step, 4) for step in range(30)])
    large = np.concatenate([made.places(step, 12) for step in range(10)])
    assert small.tolist() == large.tolist()


@ANY_ORDER
def test_seeds_and_stores_and_steps_give_other_places(order: str) -> None:
    makers = [sampler(100_000, seed=seed, order=order, key=key) for seed in range(5) for key in (KEY, "5b" * 32)]
    assert len({tuple(made.places(step, 8)) for made in makers for step in range(20)}) == 200


def test_the_order_is_the_one_that_runs_under_way_were_begun_with() -> None:
    assert sampler(order="random").places(3, 5).tolist() == [128, 128, 665, 230, 950]
    assert sampler(order="epoch").places(3, 5).tolist() == [605, 405, 305, 125, 225]


@ANY_ORDER
def test_a_batch_is_blocks_of_the_store_with_one_more_token_for_the_targets(order: str) -> None:
    ids = np.arange(1000, dtype="<u2")
    made = Sampler(TokenArray((ids[:300], ids[300:])), 20, 3, order, KEY)
    batch = made.batch(4, 50)
    assert (batch.shape, batch.dtype) == ((50, 21), np.dtype("<u2"))
    assert (np.diff(batch.astype(int)) == 1).all()
    assert batch[:, 0].tolist() == made.places(4, 50).tolist()


@ANY_ORDER
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_memmap_and_hdf5_and_many_segments_give_the_same_bytes(tmp_path: Path, order: str, dtype: str) -> None:
    ids = np.random.default_rng(7).integers(0, 60_000, 5000).astype(dtype)
    cuts = [0, 1, 40, 41, 41, 1000, 4990, 5000]
    files = [tmp_path / f"train-{n}.bin" for n in range(len(cuts))]
    for path, start, stop in zip(files, cuts, [*cuts[1:], 5000], strict=True):
        ids[start:stop].tofile(path)
    hdf5.write_hdf5(tmp_path / "train.h5", files, dtype, {})
    layouts = [
        TokenArray((ids,)),
        TokenArray(tuple(segments._map(path, dtype) for path in files)),
        TokenArray((hdf5._map_hdf5(tmp_path / "train.h5", dtype),)),
    ]
    one, *others = [
        b"".join(Sampler(array, 32, 1, order, KEY).batch(step, 16).tobytes() for step in range(40)) for array in layouts
    ]
    assert others == [one, one]


def test_random_places_are_spread_evenly() -> None:
    places = np.concatenate([sampler(30).places(step, 1000) for step in range(100)])
    counts = np.bincount(places, minlength=10)
    assert len(counts) == 10
    assert counts.min() > 0.95 * counts.mean()
    assert counts.max() < 1.05 * counts.mean()


def test_the_last_possible_block_is_reached_and_none_beyond_it() -> None:
    places = np.concatenate([sampler(22).places(step, 8) for step in range(50)])
    assert {*places.tolist()} == {0, 1}


@given(st.integers(17, 2000), st.integers(1, 64), st.integers(0, 2**31))
def test_an_epoch_takes_every_block_once_side_by_side(count: int, rows: int, seed: int) -> None:
    made = sampler(count, 16, seed=seed, order="epoch")
    size = made.blocks_per_epoch
    steps = -(-3 * size // rows)  # epochs end within steps
    places = np.concatenate([made.places(step, rows) for step in range(steps)])
    for epoch in range(3):
        taken = np.sort(places[epoch * size : (epoch + 1) * size])
        assert (np.diff(taken) == 16).all()
        left = [int(taken[0]), count - int(taken[-1]) - 17]  # tokens that no block of this epoch has as targets
        assert min(left) >= 0
        assert sum(left) < 2 * 16


def test_each_epoch_has_an_order_and_a_first_place_of_its_own() -> None:
    made = sampler(10_000, 64, order="epoch")
    size = made.blocks_per_epoch
    epochs = [made.places(epoch, size) for epoch in range(20)]
    first = [int(places.min()) for places in epochs]
    assert len(set(first)) == 20
    assert len({tuple((places - start) // 64) for places, start in zip(epochs, first, strict=True)}) == 20
    assert min(np.diff(np.sort(first[:8]))) > 64 / 20, "few epochs lie well apart"


def test_in_the_long_run_no_token_is_left_out() -> None:
    made = sampler(1000, 64, order="epoch")
    reached = np.zeros(1000, bool)
    for epoch in range(1000):
        for place in made.places(epoch, made.blocks_per_epoch):
            reached[place : place + 65] = True
    assert reached.all()


def test_epochs_are_counted_in_blocks_that_were_seen() -> None:
    made = sampler(10_000, 64, order="epoch")
    assert made.blocks_per_epoch == (10_000 - 64) // 64
    assert made.epoch(0, 31) == 0
    assert made.epoch(10, 31) == 2


@given(st.sampled_from(ORDERS), st.integers(0, 2**20), st.integers(2**33, 2**50))
@settings(max_examples=50)
def test_stores_longer_than_32_bits_can_count_are_reached_to_their_end(order: str, step: int, count: int) -> None:
    made = Sampler(cast(TokenArray, Long(count)), 256, 1, order, KEY)
    places = made.places(step, 4096)
    assert len(np.unique(places)) > 4090
    assert places.min() >= 0
    assert 0.99 * count < places.max() <= count - 257


@pytest.mark.parametrize("order", ORDERS)
def test_too_few_tokens_for_a_block_are_refused_with_both_numbers(order: str) -> None:
    with pytest.raises(BadData, match="16 training tokens are too few for a block of 16"):
        sampler(16, 16, order=order)
    assert sampler(17, 16, order=order).places(0, 3).tolist() == [0, 0, 0]


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(BadConfig, match="shuffled"):
        sampler(order="shuffled")


# --- how they come to the device


def loader(made: Sampler, how: str, **chosen: int) -> Loader:
    resident = "yes" if how == "resident" else "no"
    return Loader(made, 6, CPU, resident=resident, threaded=how == "threaded", **chosen)


def first(loaded: Loader, count: int) -> list[torch.Tensor]:
    with loaded:
        return [next(loaded) for _ in range(count)]


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("how", ["at once", "threaded", "resident"])
def test_every_way_to_the_device_gives_the_ids_of_the_sampler(how: str, dtype: str) -> None:
    top = np.iinfo(dtype).max
    ids = np.random.default_rng(3).integers(0, top, 3000, np.uint32, endpoint=True).astype(dtype)
    ids[::3] = top
    made = Sampler(TokenArray((ids[:700], ids[:0], ids[700:])), 15, 4, "epoch", KEY)
    found = first(loader(made, how, step=9, first=2, count=3), 60)
    for step, got in enumerate(found, 9):
        assert got.dtype == torch.int64
        assert got.tolist() == made.batch(step, 6, 2, 3).tolist()


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_narrow_ids_are_widened_without_a_sign(dtype: str) -> None:
    ids = np.array([[0, 1, 2**15], [2**16 - 1, np.iinfo(dtype).max, 7]]).astype(dtype)
    assert batches.to_device(ids, CPU).tolist() == ids.tolist()
    assert batches.widen(torch.from_numpy(ids.view(f"i{ids.itemsize}"))).tolist() == ids.tolist()


class Broken(TokenArray):
    def blocks(self, starts: np.ndarray, length: int) -> np.ndarray:
        raise OSError("the disk is gone")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_what_fails_in_the_thread_is_raised_where_the_batch_is_asked_for() -> None:
    made = Sampler(Broken(counting(100).segments), 15, 1, "random", KEY)
    with loader(made, "threaded") as loaded:
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                next(loaded)
    assert threads() == []


def test_the_thread_ends_with_the_loader_whatever_ended_it() -> None:
    def train() -> None:
        with loader(sampler(), "threaded") as loaded:
            next(loaded)
            assert len(threads()) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert threads() == []


def test_the_next_batches_are_made_while_this_one_is_used() -> None:
    made, asked = sampler(), threading.Semaphore(0)

    class Watched(TokenArray):
        def blocks(self, starts: np.ndarray, length: int) -> np.ndarray:
            asked.release()
            return super().blocks(starts, length)

    with loader(Sampler(Watched(made.tokens.segments), 20, 1, "random", KEY), "threaded") as loaded:
        next(loaded)
        assert all(asked.acquire(timeout=10) for _ in range(3)), "this one and two more"
        assert not asked.acquire(timeout=0.1)


@pytest.mark.parametrize("how", ["at once", "threaded", "resident"])
def test_the_seconds_spent_waiting_are_counted(how: str) -> None:
    loaded = loader(sampler(), how)
    assert loaded.waited == 0
    first(loaded, 3)
    assert 0 < loaded.waited < 10


def test_a_store_is_kept_on_a_gpu_that_has_eight_times_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    array, gpu = counting(1000, "<u4"), torch.device("cuda")
    for free, kept in ((32_000, False), (32_001, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        assert batches.is_resident("auto", array, gpu) is kept
    assert batches.is_resident("yes", array, CPU)
    assert not batches.is_resident("auto", array, CPU), "it is in memory already"
    assert not batches.is_resident("no", array, gpu)
    with pytest.raises(BadConfig, match="perhaps"):
        batches.is_resident("perhaps", array, CPU)


# --- which document


def test_documents_are_numbered_by_the_ends_of_text_before_them() -> None:
    ids = torch.tensor([[5, 0, 6, 7, 0, 0, 8], [0, 1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1, 1]])
    expected = [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1], [0] * 7]
    numbers = masks.document_numbers(ids, 0)
    assert (numbers.dtype, numbers.tolist()) == (torch.int64, expected)


@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=4))
def test_two_ids_are_of_one_document_when_no_end_of_text_lies_between(rows: list[list[int]]) -> None:
    numbers = masks.document_numbers(torch.tensor(rows), 0).tolist()
    for row, number in zip(rows, numbers, strict=True):
        for late in range(9):
            for early in range(late + 1):
                assert (number[early] == number[late]) == (0 not in row[early:late])
