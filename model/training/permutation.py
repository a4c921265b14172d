"""Hashes of numbers and permutations of ranges by a key, in numpy: order at random without anything to keep."""

from __future__ import annotations

import math

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: the step of splitmix64's counter
_ODD = np.uint64(0xD1342543DE82EF95)  # a multiplier without patterns (Steele & Vigna 2021)
_HALF = np.uint64(32)
_ROUNDS = 6  # four do for large sizes (Luby & Rackoff 1988); among 24, neighbours were still to be seen in each other


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): uint64 to uint64, one to one."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(values: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where a permutation of [0, size), one for each key, takes the uint64 values; size up to 2**62.

    A Feistel network on pairs below (a, b), with a * b just above `size`; what lands beyond goes through it again
    (Black & Rogaway 2002, "Ciphers with arbitrary finite domains": the generalised Feistel and the cycle walk).
    """
    side = math.isqrt(size - 1) + 1
    a, b = np.uint64(side), np.uint64(-(-size // side))
    out = _feistel(values, a, b, keys)
    while (beyond := out >= np.uint64(size)).any():
        out[beyond] = _feistel(out[beyond], a, b, np.broadcast_to(keys, out.shape)[beyond])
    return out


def _feistel(values: np.ndarray, a: np.uint64, b: np.uint64, keys: np.ndarray) -> np.ndarray:
    left, right = np.divmod(values, b)  # below a, below b
    for _ in range(_ROUNDS // 2):
        keys = keys + GOLDEN
        left = (left + _scatter(right, keys)) % a
        keys = keys + GOLDEN
        right = (right + _scatter(left, keys)) % b
    return left * b + right


def _scatter(half: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """32 bits that depend on all of a half and of a key."""
    x = (half ^ keys) * _ODD
    return (x ^ (x >> _HALF)) * GOLDEN >> _HALF
