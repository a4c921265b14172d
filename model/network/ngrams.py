"""n-grams of tokens, counted in the training text: the second part of a mixture.

With the setting `ngram`, the probability of the next token is (1 - s) q + s p: q is the network's, p that of the
n-grams. A network trained for a few minutes has not learned every phrase of its text, and n-grams have. Training does
not change: the n-grams are mixed in when the network is evaluated and sampled.

p is smoothed by modified Kneser-Ney (Chen & Goodman 1998). A discount is subtracted from the count of every n-gram. In
each context, the mass that this frees is distributed by the n-grams one token shorter. A shorter n-gram is not counted
by its occurrences, but by the different tokens that precede it.

N is the number of tokens of the training text, V the vocabulary size.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_SHARE = 0.3  # of the n-grams in the mixture (benchmarks/NOTES.md)
MAX_TOKENS = 1 << 22  # of training text whose n-grams are counted: 7 s and 0.8 GB for 4-grams
TOKEN_BYTES = 50  # of memory for a token and a length of n-grams
MULTIPLIER = 0x9E3779B97F4A7C15  # odd; the key of an n-gram is a polynomial in it, modulo 2**64


def mixed(logprobs: Tensor, probabilities: Tensor) -> Tensor:
    """Mix the network's log probabilities of tokens with their n-gram probabilities, of the same shape.

    Return the log probabilities of the mixture.
    """
    return torch.log((1 - _SHARE) * logprobs.exp() + _SHARE * probabilities)


@dataclass(frozen=True)
class _Table:
    """The n-grams of one length. The context of an n-gram is the n-gram without its last token.

    discounts       float64 (4,), of the counts 0, 1, 2, and 3 or more
    grams, counts   sorted keys of the n-grams, and their counts
    contexts        sorted keys of the contexts; in each of them, `totals` are the sums of the counts, and `masses` the
                    sums of the discounts
    starts          the tokens that follow context i are `tokens[starts[i]:starts[i + 1]]`, with counts in `sizes`
    """

    discounts: np.ndarray
    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    masses: np.ndarray
    starts: np.ndarray
    tokens: np.ndarray
    sizes: np.ndarray


class NGrams:
    """The n-grams of up to `order` tokens in `ids` (N,), with their counts."""

    def __init__(self, ids: np.ndarray, vocab_size: int, order: int) -> None:
        self.ids, self.vocab_size, self.order = ids, vocab_size, order
        self.tables: list[_Table] = []  # index: length of the context
        is_counted = np.ones(len(ids), bool)
        for length in range(order - 1, -1, -1):
            table, is_counted = _count(ids, length, is_counted)
            self.tables.insert(0, table)

    def probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Return the probability of each of `ids` (T,), given the ids before it, as float64 (T,)."""
        probabilities = np.full(len(ids), 1 / self.vocab_size)
        for length, table in enumerate(self.tables):
            contexts = np.concatenate([np.zeros(1, np.uint64), _keys(ids, length)])[: len(ids)]
            counts = _find(table.grams, _keys(ids, length + 1), table.counts)
            totals, masses = (_find(table.contexts, contexts, values) for values in (table.totals, table.masses))
            is_known = (totals > 0) & (np.arange(len(ids)) >= length)
            discounted = counts - table.discounts[np.minimum(counts, 3)]
            smoothed = (discounted + masses * probabilities) / np.maximum(totals, 1)
            probabilities = np.where(is_known, smoothed, probabilities)
        return probabilities

    def predict(self, ids: Sequence[int]) -> Tensor:
        """Return the probabilities (V,) of the token after `ids`. Only the last `order` - 1 ids matter."""
        last = np.asarray(ids[max(len(ids) - self.order + 1, 0) :], np.int64)
        probabilities = np.full(self.vocab_size, 1 / self.vocab_size)
        for length, table in enumerate(self.tables[: len(last) + 1]):
            context = _keys(last, length)[-1] if length else np.uint64(0)
            index = int(np.searchsorted(table.contexts, context))
            if index == len(table.contexts) or table.contexts[index] != context:
                continue
            after = slice(table.starts[index], table.starts[index + 1])
            counts = table.sizes[after]
            probabilities *= table.masses[index] / table.totals[index]
            discounted = counts - table.discounts[np.minimum(counts, 3)]
            probabilities[table.tokens[after]] += discounted / table.totals[index]
        return torch.from_numpy(probabilities)

    def mix(self, logits: Tensor, contexts: Sequence[Sequence[int]]) -> Tensor:
        """Return the log probabilities (B, V) of the mixture after B contexts, from the network's logits (B, V)."""
        probabilities = torch.stack([self.predict(context) for context in contexts])
        return mixed(logits.log_softmax(-1), probabilities.to(logits))

    def to_bytes(self) -> bytes:
        """Return the ids as a .npy file. The n-grams are counted again when the run is opened."""
        file = io.BytesIO()
        np.save(file, self.ids.astype(np.min_scalar_type(self.vocab_size)), allow_pickle=False)
        return file.getvalue()


def _keys(ids: np.ndarray, length: int) -> np.ndarray:
    """Return the uint64 keys (T,) of the `length` ids that end at each position. Ignore the first `length` - 1."""
    values, keys = ids.astype(np.uint64) + np.uint64(1), np.zeros(len(ids), np.uint64)
    for distance in range(min(length, len(ids))):
        keys[distance:] += values[: len(ids) - distance] * np.uint64(pow(MULTIPLIER, distance, 1 << 64))
    return keys


def _count(ids: np.ndarray, length: int, is_counted: np.ndarray) -> tuple[_Table, np.ndarray]:
    """Count the n-grams with a context of `length` tokens that end where `is_counted` (N,) is True.

    Also return the mask (N,) for the n-grams one token shorter: True where an n-gram occurs for the first time, and at
    the positions before which there are fewer than `length` tokens.
    """
    ends = np.flatnonzero(is_counted[length:]) + length
    grams, first, counts = np.unique(_keys(ids, length + 1)[ends], return_index=True, return_counts=True)
    is_new = np.zeros(len(ids), bool)
    is_new[ends[first]] = True
    is_new[:length] = is_counted[:length]
    discounts = kneser_ney_discounts(np.bincount(counts[counts <= 4], minlength=5)[1:])
    tokens = ids[ends[first]].astype(np.int32)
    before = _keys(ids, length)[ends[first] - 1] if length else np.zeros(len(grams), np.uint64)
    order = np.lexsort((tokens, before))
    contexts, starts = np.unique(before[order], return_index=True)
    sizes, starts = counts[order].astype(np.int32), np.append(starts, len(grams))
    totals, masses = (
        np.add.reduceat(np.append(values, 0), starts)[:-1] if len(grams) else np.zeros(0)
        for values in (sizes, discounts[np.minimum(sizes, 3)])
    )
    return _Table(discounts, grams, counts, contexts, totals, masses, starts, tokens[order], sizes), is_new


def kneser_ney_discounts(frequencies: np.ndarray) -> np.ndarray:
    """Return the discounts (4,) of the counts 0, 1, 2, and 3 or more.

    `frequencies` (4,) are the numbers of n-grams that occur once, twice, three and four times.
    """
    n1, n2, n3, n4 = frequencies + 1.0
    rate = n1 / (n1 + 2 * n2)
    discounts = [0, 1 - 2 * rate * n2 / n1, 2 - 3 * rate * n3 / n2, 3 - 4 * rate * n4 / n3]
    clipped: np.ndarray = np.clip(discounts, [0, 0.05, 0.05, 0.05], [0, 0.95, 1.95, 2.95])
    return clipped


def _find(keys: np.ndarray, queries: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the value of each of `queries`, 0 for one that is not among the sorted `keys`."""
    if not len(keys):
        return np.zeros(len(queries), np.int64)
    index = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[index] == queries, values[index], 0)
