"""`bench batches`: random blocks for training, gathered at once, against a slice per row (nanoGPT's get_batch)."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.rows import Row, in_turn
from model import batches
from pipeline.tokens import TokenArray

_BLOCK, _ROWS = 256, 64


def bench(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        np.random.default_rng(1).integers(0, 50_000, 1 << 24).astype("<u2").tofile(path)
        array = TokenArray((np.memmap(path, "<u2", "r"),))

        def gather() -> float:
            start, steps = time.perf_counter(), 300
            for step in range(steps):
                torch.from_numpy(batches.batch(array, 1, step, _ROWS, _BLOCK))
            return steps * _ROWS / (time.perf_counter() - start)

        def slices() -> float:
            start, steps = time.perf_counter(), 100
            for _ in range(steps):
                data = np.memmap(path, "<u2", "r")  # nanoGPT maps anew for each batch
                places = torch.randint(len(data) - _BLOCK, (_ROWS,))
                torch.stack([torch.from_numpy(data[i : i + _BLOCK].astype(np.int64)) for i in places])
                torch.stack([torch.from_numpy(data[i + 1 : i + 1 + _BLOCK].astype(np.int64)) for i in places])
            return steps * _ROWS / (time.perf_counter() - start)

        ours, peer = in_turn(gather, slices, rounds)
    name = "a slice per row (nanoGPT's manner)"
    return [Row(f"batches, block {_BLOCK}, batch {_ROWS}", ours, peer, name, "blocks/s")]
