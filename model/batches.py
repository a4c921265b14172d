"""Random blocks from a token store. Which blocks is a pure function of (seed, step, row), so nothing needs saving."""

from __future__ import annotations

import numpy as np

from pipeline.errors import BadData
from pipeline.tokens import TokenArray


def positions(seed: int, step: int, rows: int, count: int) -> np.ndarray:
    """`rows` starting places in [0, count), int64: row i depends on (seed, step, i) and on nothing else.

    splitmix64 (Steele, Lea & Flood 2014) over a counter, its upper 53 bits scaled to the range.
    """
    with np.errstate(over="ignore"):
        x = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + np.uint64(step)
        x = _mix(np.atleast_1d(x)) + np.arange(rows, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        unit = (_mix(x) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.minimum((unit * count).astype(np.int64), count - 1)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def batch(tokens: TokenArray, seed: int, step: int, rows: int, block_size: int) -> np.ndarray:
    """int64 ids of shape (rows, block_size + 1): inputs are `[:, :-1]`, targets `[:, 1:]`."""
    count = len(tokens) - block_size
    if count < 1:
        raise BadData(
            f"{len(tokens):,} training tokens are too few for a block of {block_size}",
            hint=f"--set block_size={max(len(tokens) // 4, 1)}, or more text",
        )
    return tokens.blocks(positions(seed, step, rows, count), block_size + 1)
