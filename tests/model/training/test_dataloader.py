"""Batches are a pure function of (store, seed, step, row), however they are requested and loaded."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import TrainConfig
from model.network import masks
from model.training import dataloader
from model.training.dataloader import ORDERS, Loader, Sampler
from model.training.tuning.task import text_sampler
from pipeline.errors import BadConfig, BadData
from pipeline.tokens import counting as counting_text
from pipeline.tokens import hdf5, segments
from pipeline.tokens.store import TokenArray, open_store

CPU = torch.device("cpu")
KEY = "5a" * 32
ANY_ORDER = pytest.mark.parametrize("order", ORDERS)


def counting(count: int, dtype: str = "<u2") -> TokenArray:
    """Return tokens whose ids are their positions."""
    return TokenArray((np.arange(count).astype(dtype),))


def make_sampler(
    count: int = 1000, block: int = 20, *, seed: int = 1, order: str = "random", key: str = KEY
) -> Sampler:
    return Sampler(counting(count), block, seed, order, key)


class Long:
    """Stand-in for a token array too long for this machine; its tokens are never read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


# Sampler


@given(
    st.sampled_from(ORDERS),
    st.integers(-1, 2**70),
    st.integers(0, 2**40),
    st.integers(1, 64),
    st.integers(17, 5000),
    st.data(),
)
def test_offsets_do_not_depend_on_which_rows_are_requested(
    order: str, seed: int, step: int, rows: int, count: int, data: st.DataObject
) -> None:
    sampler = make_sampler(count, 16, seed=seed, order=order)
    offsets = sampler.offsets(step, rows)
    assert (offsets.dtype, offsets.shape) == (np.dtype(np.int64), (rows,))
    assert offsets.min() >= 0
    assert offsets.max() + 17 <= count
    first = data.draw(st.integers(0, rows))
    row_count = data.draw(st.integers(0, rows - first))
    repeated = make_sampler(count, 16, seed=seed, order=order)
    assert repeated.offsets(step, rows, first, row_count).tolist() == offsets[first : first + row_count].tolist()
    assert repeated.offsets(step, rows, first).tolist() == offsets[first:].tolist()


@ANY_ORDER
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_and_micro_batches_make_the_same_global_batch(order: str, ranks: int) -> None:
    sampler, rows = make_sampler(order=order), 24
    for step in (0, 5, 77):
        batch = sampler.batch(step, rows)
        rank_rows = rows // ranks
        by_rank = [sampler.batch(step, rows, rank * rank_rows, rank_rows) for rank in range(ranks)]
        micro = [sampler.batch(step, rows, first, 2) for first in range(0, rows, 2)]
        assert np.concatenate(by_rank).tobytes() == np.concatenate(micro).tobytes() == batch.tobytes()


@ANY_ORDER
def test_offsets_do_not_depend_on_earlier_calls(order: str) -> None:
    forwards, backwards = make_sampler(order=order), make_sampler(order=order)
    expected = [forwards.offsets(step, 8).tolist() for step in range(30)]
    assert [backwards.offsets(step, 8).tolist() for step in reversed(range(30))][::-1] == expected


@ANY_ORDER
def test_larger_batches_take_the_same_samples_in_fewer_steps(order: str) -> None:
    sampler = make_sampler(order=order)
    small = np.concatenate([sampler.offsets(step, 4) for step in range(30)])
    large = np.concatenate([sampler.offsets(step, 12) for step in range(10)])
    assert small.tolist() == large.tolist()


@ANY_ORDER
def test_seed_store_and_step_change_the_offsets(order: str) -> None:
    samplers = [make_sampler(100_000, seed=seed, order=order, key=key) for seed in range(5) for key in (KEY, "5b" * 32)]
    assert len({tuple(sampler.offsets(step, 8)) for sampler in samplers for step in range(20)}) == 200


def test_order_matches_that_of_existing_runs() -> None:
    assert make_sampler(order="random").offsets(3, 5).tolist() == [128, 128, 665, 230, 950]
    assert make_sampler(order="epoch").offsets(3, 5).tolist() == [605, 405, 305, 125, 225]


@ANY_ORDER
def test_batch_holds_blocks_with_one_more_token_for_targets(order: str) -> None:
    ids = np.arange(1000, dtype="<u2")
    sampler = Sampler(TokenArray((ids[:300], ids[300:])), 20, 3, order, KEY)
    batch = sampler.batch(4, 50)
    assert (batch.shape, batch.dtype) == ((50, 21), np.dtype("<u2"))
    assert (np.diff(batch.astype(int)) == 1).all()
    assert batch[:, 0].tolist() == sampler.offsets(4, 50).tolist()


@ANY_ORDER
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_memmap_hdf5_and_segments_give_the_same_bytes(tmp_path: Path, order: str, dtype: str) -> None:
    ids = np.random.default_rng(7).integers(0, 60_000, 5000).astype(dtype)
    cuts = [0, 1, 40, 41, 41, 1000, 4990, 5000]
    files = [tmp_path / f"train-{n}.bin" for n in range(len(cuts))]
    for path, start, stop in zip(files, cuts, [*cuts[1:], 5000], strict=True):
        ids[start:stop].tofile(path)
    hdf5.write_hdf5(tmp_path / "train.h5", files, dtype, {})
    layouts = [
        TokenArray((ids,)),
        TokenArray(tuple(segments.memmap_ids(path, dtype) for path in files)),
        TokenArray((hdf5.memmap_hdf5(tmp_path / "train.h5", dtype),)),
    ]
    one, *others = [
        b"".join(Sampler(array, 32, 1, order, KEY).batch(step, 16).tobytes() for step in range(40)) for array in layouts
    ]
    assert others == [one, one]


def test_random_offsets_are_uniform() -> None:
    offsets = np.concatenate([make_sampler(30).offsets(step, 1000) for step in range(100)])
    counts = np.bincount(offsets, minlength=10)
    assert len(counts) == 10
    assert counts.min() > 0.95 * counts.mean()
    assert counts.max() < 1.05 * counts.mean()


def test_last_possible_block_is_reached_and_none_beyond_it() -> None:
    offsets = np.concatenate([make_sampler(22).offsets(step, 8) for step in range(50)])
    assert {*offsets.tolist()} == {0, 1}


@given(st.integers(17, 2000), st.integers(1, 64), st.integers(0, 2**31))
def test_epoch_takes_every_adjacent_block_once(count: int, rows: int, seed: int) -> None:
    sampler = make_sampler(count, 16, seed=seed, order="epoch")
    size = sampler.blocks_per_epoch
    steps = -(-3 * size // rows)  # epochs end within steps
    offsets = np.concatenate([sampler.offsets(step, rows) for step in range(steps)])
    for epoch in range(3):
        blocks = np.sort(offsets[epoch * size : (epoch + 1) * size])
        assert (np.diff(blocks) == 16).all()
        unused = [int(blocks[0]), count - int(blocks[-1]) - 17]  # tokens that no block of this epoch has as targets
        assert min(unused) >= 0
        assert sum(unused) < 2 * 16


def test_epochs_differ_in_order_and_first_offset() -> None:
    sampler = make_sampler(10_000, 64, order="epoch")
    size = sampler.blocks_per_epoch
    epochs = [sampler.offsets(epoch, size) for epoch in range(20)]
    first = [int(offsets.min()) for offsets in epochs]
    assert len(set(first)) == 20
    assert len({tuple((offsets - start) // 64) for offsets, start in zip(epochs, first, strict=True)}) == 20
    assert min(np.diff(np.sort(first[:8]))) > 64 / 20, "the first offsets of a few epochs are well separated"


def test_many_epochs_reach_every_token() -> None:
    sampler = make_sampler(1000, 64, order="epoch")
    reached = np.zeros(1000, bool)
    for epoch in range(1000):
        for offset in sampler.offsets(epoch, sampler.blocks_per_epoch):
            reached[offset : offset + 65] = True
    assert reached.all()


def test_epochs_are_counted_in_blocks() -> None:
    sampler = make_sampler(10_000, 64, order="epoch")
    assert sampler.blocks_per_epoch == (10_000 - 64) // 64
    assert sampler.epoch(0, 31) == 0
    assert sampler.epoch(10, 31) == 2


@ANY_ORDER
def test_blocks_begin_with_a_document_that_begins_at_most_half_a_block_before(order: str) -> None:
    plain, starts = make_sampler(2000, 20, order=order), [0, 1, 30, 37, 58, 600, 1985, 1999]
    aligned = dataclasses.replace(plain, document_starts=np.array(starts))
    moved = 0
    for before, after in zip(plain.offsets(0, 500).tolist(), aligned.offsets(0, 500).tolist(), strict=True):
        start = max(start for start in starts if start <= before)
        assert after == (start if before - start <= 10 else before)
        moved += after != before
    assert 0 < moved < 100
    assert aligned.batch(0, 500).shape == (500, 21)


def test_the_setting_takes_the_starts_of_the_documents_from_the_store(root: Path) -> None:
    store = open_store(counting_text.build(root).artifact)
    aligned = text_sampler(store, 16, TrainConfig(document_starts=True), seed=1)
    ids = np.concatenate([np.asarray(segment) for segment in store.train.segments])
    ends = np.flatnonzero(ids == store.tokenizer.end_of_text)
    assert len(ends) > 1
    assert aligned.document_starts is not None
    assert aligned.document_starts.tolist() == [0, *(ends[:-1] + 1).tolist()]
    assert text_sampler(store, 16, TrainConfig(), seed=1).document_starts is None


@given(st.sampled_from(ORDERS), st.integers(0, 2**20), st.integers(2**33, 2**50))
@settings(max_examples=50)
def test_stores_beyond_32_bits_are_sampled_to_their_end(order: str, step: int, count: int) -> None:
    sampler = Sampler(cast(TokenArray, Long(count)), 256, 1, order, KEY)
    offsets = sampler.offsets(step, 4096)
    assert len(np.unique(offsets)) > 4090
    assert offsets.min() >= 0
    assert 0.99 * count < offsets.max() <= count - 257


@pytest.mark.parametrize("order", ORDERS)
def test_too_few_tokens_for_a_block_raise_bad_data(order: str) -> None:
    with pytest.raises(BadData, match="16 training tokens are too few for a block of 16") as failure:
        make_sampler(16, 16, order=order)
    assert failure.value.hint == "tokenize more text"  # no block of 4 tokens
    assert make_sampler(17, 16, order=order).offsets(0, 3).tolist() == [0, 0, 0]


def test_unknown_order_raises_bad_config() -> None:
    with pytest.raises(BadConfig, match="shuffled"):
        make_sampler(order="shuffled")


# Loader


def make_loader(sampler: Sampler, kind: str, **options: int) -> Loader:
    resident = "yes" if kind == "resident" else "no"
    return Loader(sampler, 6, CPU, resident=resident, threaded=kind == "threaded", **options)


def first(loader: Loader, count: int) -> list[torch.Tensor]:
    with loader:
        return [next(loader) for _ in range(count)]


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("kind", ["direct", "threaded", "resident"])
def test_every_kind_of_loader_gives_the_ids_of_the_sampler(kind: str, dtype: str) -> None:
    top = np.iinfo(dtype).max
    ids = np.random.default_rng(3).integers(0, top, 3000, np.uint32, endpoint=True).astype(dtype)
    ids[::3] = top
    sampler = Sampler(TokenArray((ids[:700], ids[:0], ids[700:])), 15, 4, "epoch", KEY)
    loaded_batches = first(make_loader(sampler, kind, step=9, first=2, count=3), 60)
    for step, batch in enumerate(loaded_batches, 9):
        assert batch.dtype == torch.int64
        assert batch.tolist() == sampler.batch(step, 6, 2, 3).tolist()


@pytest.mark.parametrize("kind", ["direct", "threaded", "resident"])
def test_prepared_batch_is_the_next_one(kind: str) -> None:
    """However often it is prepared, as by a step that is tried again."""
    sampler = make_sampler()
    with make_loader(sampler, kind, step=9) as loader:
        for step in range(9, 14):
            for _ in range(step % 3):
                loader.prepare()
            assert next(loader).tolist() == sampler.batch(step, 6).tolist()


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_narrow_ids_are_widened_as_unsigned(dtype: str) -> None:
    ids = np.array([[0, 1, 2**15], [2**16 - 1, np.iinfo(dtype).max, 7]]).astype(dtype)
    assert dataloader.to_device(ids, CPU).tolist() == ids.tolist()
    assert dataloader.widen(torch.from_numpy(ids.view(f"i{ids.itemsize}"))).tolist() == ids.tolist()


class Broken(TokenArray):
    def blocks(self, starts: np.ndarray, length: int) -> np.ndarray:
        raise OSError("the disk is gone")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_error_in_the_thread_is_raised_by_next() -> None:
    sampler = Sampler(Broken(counting(100).segments), 15, 1, "random", KEY)
    with make_loader(sampler, "threaded") as loader:
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                next(loader)
    assert threads() == []


def test_thread_ends_with_the_context_of_the_loader() -> None:
    def train() -> None:
        with make_loader(make_sampler(), "threaded") as loader:
            next(loader)
            assert len(threads()) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert threads() == []


def test_threaded_loader_prefetches_two_batches() -> None:
    sampler, requests = make_sampler(), threading.Semaphore(0)

    class Watched(TokenArray):
        def blocks(self, starts: np.ndarray, length: int) -> np.ndarray:
            requests.release()
            return super().blocks(starts, length)

    with make_loader(Sampler(Watched(sampler.tokens.segments), 20, 1, "random", KEY), "threaded") as loader:
        next(loader)
        assert all(requests.acquire(timeout=60) for _ in range(3)), "this one and two more"
        assert not requests.acquire(timeout=0.1)


@pytest.mark.parametrize("kind", ["direct", "threaded", "resident"])
def test_seconds_spent_waiting_are_counted(kind: str) -> None:
    loader = make_loader(make_sampler(), kind)
    assert loader.waited == 0
    first(loader, 3)
    assert 0 < loader.waited < 10


def test_store_is_resident_below_an_eighth_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    array, gpu = counting(1000, "<u4"), torch.device("cuda")
    for free, expected in ((32_000, False), (32_001, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        assert dataloader.is_resident("auto", array, gpu) is expected
    assert dataloader.is_resident("yes", array, CPU)
    assert not dataloader.is_resident("auto", array, CPU), "the memory of a CPU holds it already"
    assert not dataloader.is_resident("no", array, gpu)
    with pytest.raises(BadConfig, match="perhaps"):
        dataloader.is_resident("perhaps", array, CPU)


# Document numbers


def test_documents_are_numbered_by_eos_ids_before_them() -> None:
    ids = torch.tensor([[5, 0, 6, 7, 0, 0, 8], [0, 1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1, 1]])
    expected = [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1], [0] * 7]
    numbers = masks.document_indices(ids, 0)
    assert (numbers.dtype, numbers.tolist()) == (torch.int64, expected)


@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=4))
def test_ids_share_a_document_if_no_eos_lies_between(rows: list[list[int]]) -> None:
    numbers = masks.document_indices(torch.tensor(rows), 0).tolist()
    for row, number in zip(rows, numbers, strict=True):
        for late in range(9):
            for early in range(late + 1):
                assert (number[early] == number[late]) == (0 not in row[early:late])
