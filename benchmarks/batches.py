"""`bench batches`: random blocks for training, gathered at once, against two manners of a slice per row.

nanoGPT's get_batch maps the file anew and copies every row twice; train-llm-from-scratch asks HDF5 for row after row.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks.rows import Row, in_turn
from model.training import dataloader as batches
from model.training.dataloader import Sampler
from pipeline.tokens.store import TokenArray

_TOKENS, _BLOCK, _ROWS = 1 << 24, 256, 64
_CPU = torch.device("cpu")
# Tokens of int32 a chunk: what h5py takes by itself for a dataset that begins empty and grows, as in that project's
# first script; and as much as HDF5 1.x would keep of a dataset in memory.
_CHUNKS = {"4 KiB": 1 << 10, "1 MiB": 1 << 18}


def bench(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        ids = np.random.default_rng(1).integers(0, 50_000, _TOKENS).astype("<u2")
        path = Path(folder) / "train.bin"
        ids.tofile(path)
        peers = {"nanoGPT's get_batch": _nanogpt(path)}
        for size, chunk in _CHUNKS.items():
            hdf5 = Path(folder) / f"{chunk}.h5"
            with h5py.File(hdf5, "w") as file:
                file.create_dataset("tokens", data=ids.astype(np.int32), chunks=(chunk,), maxshape=(None,))
            peers[f"HDF5 a row a call, chunks of {size}"] = _hdf5(hdf5, steps=100 if chunk < 1 << 16 else 20)
        array = TokenArray((np.memmap(path, "<u2", "r"),))
        return [
            Row(
                f"batches, {order}, block {_BLOCK}, batch {_ROWS}",
                *in_turn(_ours(Sampler(array, _BLOCK, 1, order, "bench")), peer, rounds),
                name,
                "blocks/s",
            )
            for order in batches.ORDERS
            for name, peer in peers.items()
        ]


def _rate(batch: Callable[[int], object], steps: int) -> float:
    start = time.perf_counter()
    for step in range(steps):
        batch(step)
    return steps * _ROWS / (time.perf_counter() - start)


def _ours(sampler: Sampler) -> Callable[[], float]:
    def batch(step: int) -> object:
        ids = batches.to_device(sampler.batch(step, _ROWS), _CPU)
        return ids[:, :-1], ids[:, 1:]

    return lambda: _rate(batch, 3000)


def _nanogpt(path: Path) -> Callable[[], float]:
    """train.py of nanoGPT, as it stands but for the names."""

    def batch(step: int) -> object:
        data = np.memmap(path, np.uint16, "r")
        places = torch.randint(len(data) - _BLOCK, (_ROWS,))
        x = torch.stack([torch.from_numpy(data[i : i + _BLOCK].astype(np.int64)) for i in places])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + _BLOCK].astype(np.int64)) for i in places])
        return x, y

    return lambda: _rate(batch, 200)


def _hdf5(path: Path, steps: int) -> Callable[[], float]:
    """data_loader.py of train-llm-from-scratch: blocks side by side in an order drawn once, a call for each."""

    def rate() -> float:
        with h5py.File(path) as file:
            dataset = file["tokens"]
            places = np.random.default_rng(2).permutation((len(dataset) - 1) // _BLOCK) * _BLOCK

            def batch(step: int) -> object:
                chosen = places[step * _ROWS : (step + 1) * _ROWS]
                ids = torch.tensor(np.array([dataset[i : i + _BLOCK + 1] for i in chosen]))
                return ids[:, :-1], ids[:, 1:]

            return _rate(batch, steps)

    return rate
