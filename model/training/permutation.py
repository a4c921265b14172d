"""Hashes and keyed permutations of integer ranges, in numpy: a random order that needs no stored state."""

from __future__ import annotations

import math

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: the step of splitmix64's counter
_ODD = np.uint64(0xD1342543DE82EF95)  # a multiplier without patterns (Steele & Vigna 2021)
_HALF = np.uint64(32)
_ROUNDS = 6  # four suffice for large sizes (Luby & Rackoff 1988); at size 24 neighbours were still correlated


def mix(x: np.ndarray) -> np.ndarray:
    """Apply the finaliser of splitmix64 (Steele, Lea & Flood 2014), a bijection of uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def permute(values: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Map each uint64 value in [0, size) by the permutation of [0, size) that its key selects; size up to 2**62.

    A Feistel network on pairs below (a, b), with a * b just above `size`; results of `size` or more pass through it
    again (Black & Rogaway 2002, "Ciphers with arbitrary finite domains": generalised Feistel and cycle walking).
    """
    side = math.isqrt(size - 1) + 1
    a, b = np.uint64(side), np.uint64(-(-size // side))
    out = _feistel(values, a, b, keys)
    while (is_outside := out >= np.uint64(size)).any():
        out[is_outside] = _feistel(out[is_outside], a, b, np.broadcast_to(keys, out.shape)[is_outside])
    return out


def _feistel(values: np.ndarray, a: np.uint64, b: np.uint64, keys: np.ndarray) -> np.ndarray:
    high, low = np.divmod(values, b)  # below a, below b
    for _ in range(_ROUNDS // 2):
        keys = keys + GOLDEN
        high = (high + _hash(low, keys)) % a
        keys = keys + GOLDEN
        low = (low + _hash(high, keys)) % b
    return high * b + low


def _hash(half: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return 32 bits that depend on all bits of a half and of a key."""
    x = (half ^ keys) * _ODD
    bits: np.ndarray = (x ^ (x >> _HALF)) * GOLDEN >> _HALF
    return bits
