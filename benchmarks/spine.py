"""`make bench`: the spine's two claims of speed, each against the plain way, in turn, in one run.

tokenize   a Pile shard to token arrays: our stage's unit of work, against the same unit with tiktoken's encoder
batches    random blocks for training: one gather, against a slice per row and a stack (nanoGPT's get_batch)
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from model import batches
from pipeline import tokenize, tokenizers
from pipeline.tokenizers import Encoded, Tiktoken
from pipeline.tokens import TokenArray

ROUNDS = 5


class ReferenceTiktoken(Tiktoken):
    """The same tokenizer with tiktoken's own encoder in the place of the fast one."""

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        rows = self._encoding.encode_ordinary_batch(list(texts), num_threads=1)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.concatenate([np.array(row, np.uint32) for row in rows]), lengths


def in_turn(ours: Callable[[], float], peer: Callable[[], float]) -> tuple[float, float]:
    """Median rates of two functions that each return a rate, run alternately after one warm-up."""
    ours(), peer()
    pairs = [(ours(), peer()) for _ in range(ROUNDS)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def bench_tokenize(shard: Path) -> dict[str, Any]:
    fast = tokenizers.Tiktoken.named("r50k_base")
    plain = ReferenceTiktoken.named("r50k_base")

    def rate(tokenizer: Tiktoken) -> float:
        with tempfile.TemporaryDirectory() as folder:
            unit = tokenize.Unit(shard, 0, "train", 0.0, Path(folder), "<u2")
            start = time.perf_counter()
            record = tokenize.encode_with(unit, tokenizer)
            return record.input_bytes / 1e6 / (time.perf_counter() - start)

    ours, peer = in_turn(lambda: rate(fast), lambda: rate(plain))
    return row("tokenize r50k_base, 1 job", ours, peer, "tiktoken in the same stage", "MB/s of text")


def bench_batches() -> dict[str, Any]:
    block, rows = 256, 64
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        np.random.default_rng(1).integers(0, 50_000, 1 << 24).astype("<u2").tofile(path)
        array = TokenArray((np.memmap(path, "<u2", "r"),))

        def gather() -> float:
            start, steps = time.perf_counter(), 300
            for step in range(steps):
                torch.from_numpy(batches.batch(array, 1, step, rows, block))
            return steps * rows / (time.perf_counter() - start)

        def slices() -> float:
            start, steps = time.perf_counter(), 100
            for _ in range(steps):
                data = np.memmap(path, "<u2", "r")  # nanoGPT maps anew for each batch
                places = torch.randint(len(data) - block, (rows,))
                torch.stack([torch.from_numpy(data[i : i + block].astype(np.int64)) for i in places])
                torch.stack([torch.from_numpy(data[i + 1 : i + 1 + block].astype(np.int64)) for i in places])
            return steps * rows / (time.perf_counter() - start)

        ours, peer = in_turn(gather, slices)
    return row(f"batches, block {block}, batch {rows}", ours, peer, "a slice per row (nanoGPT's manner)", "blocks/s")


def row(work: str, ours: float, peer: float, peer_name: str, unit: str) -> dict[str, Any]:
    return {"work": work, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ours / peer, "unit": unit}


def main() -> None:
    shared = Path(os.environ.get("INKSTONE_SHARED") or "../shared")
    found = [bench_batches()]
    shard = shared / "data" / "pile_train_00.jsonl.zst"
    if shard.is_file():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
        found.insert(0, bench_tokenize(shard))
    else:
        print(f"tokenize: left out, there is no {shard} (INKSTONE_SHARED)", file=sys.stderr)
    if "--json" in sys.argv:
        print(msgspec.json.encode({"rows": found}).decode())
        return
    for each in found:
        print(
            f"{each['work']:<34} {each['ours']:>12,.1f} {each['unit']:<13} "
            f"{each['ratio']:>6.1f} x {each['peer_name']} ({each['peer']:,.1f})"
        )


if __name__ == "__main__":
    main()
