"""n-grams of tokens, counted in the training text: the second part of a mixture.

With the setting `ngram` the next token has the probability (1 - s) q + s p, with q by the network and p by counts. A
network of a few minutes has not learned every phrase of its text; the counts have. The network is trained alone, as
without them.

p is by modified Kneser-Ney smoothing (Chen & Goodman 1998): of the count of every n-gram a discount is subtracted, and
for each context the subtracted mass is distributed by the next shorter n-grams, of which only those are counted whose
next longer n-gram was new.

N is the number of tokens of the training text, V the vocabulary size.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_SHARE = 0.3  # of the counts in the mixture (benchmarks/NOTES.md)
MAX_TOKENS = 1 << 22  # of a training text that are counted: 7 s and 0.8 GB for 4-grams
TOKEN_BYTES = 50  # to count a token, for each length of n-grams
_MULTIPLIER = 0x9E3779B97F4A7C15  # an odd number; n-grams are compared by a polynomial in it modulo 2**64


def mixed(logprobs: Tensor, probabilities: Tensor) -> Tensor:
    """Return the log probabilities of tokens in the mixture, from those by the network and the probabilities by counts,
    both of any equal shape.
    """
    return torch.log((1 - _SHARE) * logprobs.exp() + _SHARE * probabilities)


@dataclass(frozen=True)
class _Table:
    """The n-grams with contexts of one length: `grams` and `contexts` are sorted keys, and `counts`, `totals`, `masses`
    are theirs. The tokens after context i and their counts are `[starts[i], starts[i + 1])` of `tokens` and `sizes`.
    """

    discounts: list[float]  # of counts 0, 1, 2 and more
    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    masses: np.ndarray
    starts: np.ndarray
    tokens: np.ndarray
    sizes: np.ndarray


class NGrams:
    """Counts of the n-grams of up to `order` tokens in `ids` (N,)."""

    def __init__(self, ids: np.ndarray, vocab_size: int, order: int) -> None:
        self.ids, self.vocab_size, self.order = ids, vocab_size, order
        self.tables: list[_Table] = []  # by the length of the context
        is_counted = np.ones(len(ids), bool)
        for length in range(order - 1, -1, -1):
            table, is_counted = _count(ids, length, is_counted)
            self.tables.insert(0, table)

    def probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Return the probability of each of `ids` (T,) after those before it, float64 (T,)."""
        chances = np.full(len(ids), 1 / self.vocab_size)
        for length, table in enumerate(self.tables):
            contexts = np.concatenate([np.zeros(1, np.uint64), _keys(ids, length)])[: len(ids)]
            counts = _find(table.grams, _keys(ids, length + 1), table.counts)
            totals, masses = (_find(table.contexts, contexts, values) for values in (table.totals, table.masses))
            is_known = (totals > 0) & (np.arange(len(ids)) >= length)
            discounted = counts - np.array(table.discounts)[np.minimum(counts, 3)]
            chances = np.where(is_known, (discounted + masses * chances) / np.maximum(totals, 1), chances)
        return chances

    def predict(self, ids: Sequence[int]) -> Tensor:
        """Return the probabilities (V,) of the next token after `ids`, of which the last `order` - 1 decide."""
        last = np.asarray(ids[max(len(ids) - self.order + 1, 0) :], np.int64)
        chances = np.full(self.vocab_size, 1 / self.vocab_size)
        for length, table in enumerate(self.tables[: len(last) + 1]):
            context = _keys(last, length)[-1] if length else np.uint64(0)
            index = int(np.searchsorted(table.contexts, context))
            if index == len(table.contexts) or table.contexts[index] != context:
                continue
            after = slice(table.starts[index], table.starts[index + 1])
            counts = table.sizes[after]
            chances *= table.masses[index] / table.totals[index]
            discounted = counts - np.array(table.discounts)[np.minimum(counts, 3)]
            chances[table.tokens[after]] += discounted / table.totals[index]
        return torch.from_numpy(chances)

    def to_bytes(self) -> bytes:
        """Return a .npy file of the ids, from which the n-grams are counted again when the run is opened."""
        file = io.BytesIO()
        np.save(file, self.ids.astype(np.min_scalar_type(self.vocab_size)), allow_pickle=False)
        return file.getvalue()


def _keys(ids: np.ndarray, length: int) -> np.ndarray:
    """Return a uint64 key (T,) of the `length` ids that end at each position, meaningless where there are fewer."""
    values, keys = ids.astype(np.uint64) + np.uint64(1), np.zeros(len(ids), np.uint64)
    for distance in range(min(length, len(ids))):
        keys[distance:] += values[: len(ids) - distance] * np.uint64(pow(_MULTIPLIER, distance, 1 << 64))
    return keys


def _count(ids: np.ndarray, length: int, is_counted: np.ndarray) -> tuple[_Table, np.ndarray]:
    """Count the n-grams that end at the counted positions (N,) and have a context of `length` tokens.

    Also return the positions to count shorter n-grams at: where one was new, and where there are fewer tokens before.
    """
    ends = np.flatnonzero(is_counted[length:]) + length
    grams, first, counts = np.unique(_keys(ids, length + 1)[ends], return_index=True, return_counts=True)
    is_new = np.zeros(len(ids), bool)
    is_new[ends[first]] = True
    is_new[:length] = is_counted[:length]
    discounts = _discounts(counts)
    tokens = ids[ends[first]].astype(np.int32)
    before = _keys(ids, length)[ends[first] - 1] if length else np.zeros(len(grams), np.uint64)
    order = np.lexsort((tokens, before))
    contexts, starts = np.unique(before[order], return_index=True)
    sizes, starts = counts[order].astype(np.int32), np.append(starts, len(grams))
    totals, masses = (
        np.add.reduceat(np.append(values, 0), starts)[:-1] if len(grams) else np.zeros(0)
        for values in (sizes, np.array(discounts)[np.minimum(sizes, 3)])
    )
    return _Table(discounts, grams, counts, contexts, totals, masses, starts, tokens[order], sizes), is_new


def _discounts(counts: np.ndarray) -> list[float]:
    """Return the discounts of counts 0, 1, 2 and more, from how many n-grams occur one to four times."""
    once, twice, thrice, often = np.bincount(counts[counts <= 4], minlength=5)[1:] + 1.0
    rate = once / (once + 2 * twice)
    discounts = [0, 1 - 2 * rate * twice / once, 2 - 3 * rate * thrice / twice, 3 - 4 * rate * often / thrice]
    clipped: list[float] = np.clip(discounts, [0, 0.05, 0.05, 0.05], [0, 0.95, 1.95, 2.95]).tolist()
    return clipped


def _find(keys: np.ndarray, wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the values of the wanted keys, 0 for those that are not in the sorted `keys`."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], 0)
