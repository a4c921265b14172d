"""`bench batches`: random training blocks, gathered in one numpy operation or read row by row.

The peers are nanoGPT's get_batch, which reopens the memmap for each batch and copies every row twice, and the loader of
train-llm-from-scratch, which makes one HDF5 call per row.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks.rows import Row, median_rates
from model.training import dataloader
from model.training.dataloader import Sampler
from pipeline.tokens.store import TokenArray

_TOKENS, _BLOCK, _ROWS = 1 << 24, 256, 64
_CPU = torch.device("cpu")
# Chunk sizes in int32 tokens. 4 KiB is h5py's default for a dataset that starts empty and grows, as in the first script
# of train-llm-from-scratch; 1 MiB is the most of one dataset that HDF5 1.x caches in memory.
_CHUNKS = {"4 KiB": 1 << 10, "1 MiB": 1 << 18}


def bench(rounds: int) -> list[Row]:
    """Return a row for each sampling order and peer, in blocks per second."""
    with tempfile.TemporaryDirectory() as folder:
        ids = np.random.default_rng(1).integers(0, 50_000, _TOKENS).astype("<u2")
        path = Path(folder) / "train.bin"
        ids.tofile(path)
        peers = {"nanoGPT's get_batch": _nanogpt(path)}
        for size, chunk in _CHUNKS.items():
            hdf5_path = Path(folder) / f"{chunk}.h5"
            with h5py.File(hdf5_path, "w") as file:
                file.create_dataset("tokens", data=ids.astype(np.int32), chunks=(chunk,), maxshape=(None,))
            peers[f"HDF5 a row a call, chunks of {size}"] = _hdf5(hdf5_path, steps=100 if chunk < 1 << 16 else 20)
        array = TokenArray((np.memmap(path, "<u2", "r"),))
        return [
            Row(
                f"batches, {order}, block {_BLOCK}, batch {_ROWS}",
                *median_rates(_ours(Sampler(array, _BLOCK, 1, order, "bench")), peer, rounds),
                name,
                "blocks/s",
            )
            for order in dataloader.ORDERS
            for name, peer in peers.items()
        ]


def _rate(batch: Callable[[int], object], steps: int) -> float:
    start = time.perf_counter()
    for step in range(steps):
        batch(step)
    return steps * _ROWS / (time.perf_counter() - start)


def _ours(sampler: Sampler) -> Callable[[], float]:
    def batch(step: int) -> object:
        ids = dataloader.to_device(sampler.batch(step, _ROWS), _CPU)
        return ids[:, :-1], ids[:, 1:]

    return lambda: _rate(batch, 3000)


def _nanogpt(path: Path) -> Callable[[], float]:
    """get_batch of nanoGPT's train.py, with only the names changed."""

    def batch(step: int) -> object:
        data = np.memmap(path, np.uint16, "r")
        offsets = torch.randint(len(data) - _BLOCK, (_ROWS,))
        x = torch.stack([torch.from_numpy(data[i : i + _BLOCK].astype(np.int64)) for i in offsets])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + _BLOCK].astype(np.int64)) for i in offsets])
        return x, y

    return lambda: _rate(batch, 200)


def _hdf5(path: Path, steps: int) -> Callable[[], float]:
    """data_loader.py of train-llm-from-scratch: adjacent blocks in one fixed random order, one HDF5 call per row."""

    def rate() -> float:
        with h5py.File(path) as file:
            dataset = file["tokens"]
            offsets = np.random.default_rng(2).permutation((len(dataset) - 1) // _BLOCK) * _BLOCK

            def batch(step: int) -> object:
                row_offsets = offsets[step * _ROWS : (step + 1) * _ROWS]
                ids = torch.tensor(np.array([dataset[i : i + _BLOCK + 1] for i in row_offsets]))
                return ids[:, :-1], ids[:, 1:]

            return _rate(batch, steps)

    return rate
