"""n-grams of tokens, counted in the training text and in the text that is read: the second half of a mixture.

With the setting `ngram` the next token has the probability (1 - s) q + s p, with q by the network and p by counts. The
network sees one block; the counts hold the phrases of the training text, and the names and phrases of all the text
before the token (a cache, as in Kuhn & De Mori 1990). Their share s grows with the number of tokens that were read. The
network is trained alone, as without them.

p is by modified Kneser-Ney smoothing (Chen & Goodman 1998): of the count of every n-gram a discount is subtracted, and
for each context the subtracted mass is distributed by the next shorter n-grams, of which only those are counted whose
next longer n-gram was new.

N is the number of tokens of the training text, V the vocabulary size.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# The share of the counts at the start of a text, and after much of it; how many tokens are half of the way.
_FIRST_SHARE, _LAST_SHARE, _HALF_WAY = 0.25, 0.5, 256  # benchmarks/NOTES.md
MAX_TOKENS = 1 << 22  # of a training text that are counted: 7 s and 0.8 GB for 4-grams
TOKEN_BYTES = 50  # to count a token, for each length of n-grams
_MULTIPLIER = 0x9E3779B97F4A7C15  # an odd number; n-grams are compared by a polynomial in it modulo 2**64


class Prediction(NamedTuple):
    """The probabilities (V,) of the next token by counts, and their share in the mixture."""

    probabilities: np.ndarray
    share: float


def share(read: Any) -> Any:
    """Return the share of the counts in the mixture after that many tokens of a text: a number, or an array."""
    return _FIRST_SHARE + (_LAST_SHARE - _FIRST_SHARE) * read / (read + _HALF_WAY)


def mixed(logits: Tensor, predictions: Sequence[Prediction]) -> Tensor:
    """Return the log probabilities (B, V) of the mixture, from the network's logits (B, V) and B predictions."""
    probabilities = torch.from_numpy(np.stack([prediction.probabilities for prediction in predictions]))
    shares = torch.tensor([[prediction.share] for prediction in predictions])
    return mixed_logprobs(logits.log_softmax(-1), probabilities.to(logits), shares.to(logits))


def mixed_logprobs(logprobs: Tensor, probabilities: Tensor, shares: Tensor) -> Tensor:
    """Return the log probabilities of tokens in the mixture, from those by the network and the probabilities by counts,
    with their shares.
    """
    return torch.log((1 - shares) * logprobs.exp() + shares * probabilities)


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


@dataclass
class _Addition:
    """Counts by token that a reader adds to one context, their sum, and the mass of their discounts."""

    counts: dict[int, int] = field(default_factory=dict)
    total: int = 0
    mass: float = 0.0


class Reader:
    """Reads a text token by token; its n-grams are added to those of the training text, for this reader alone.

    `length` is the number of tokens that were read.
    """

    def __init__(self, ngrams: NGrams) -> None:
        self._ngrams, self._last = ngrams, np.zeros(0, np.int64)
        self._additions: list[dict[int, _Addition]] = [{} for _ in ngrams.tables]  # by the key of the context
        self.length = 0

    def read(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the probability (T,) that each of `ids` had after those before it, float64, and count it."""
        if not len(ids):
            return np.zeros(0)
        text, new = np.concatenate([self._last, np.asarray(ids, np.int64)]), len(ids)
        rows = zip(*(self._lookups(length, text, new) for length in range(self._ngrams.order)), strict=True)
        result = np.array([self._read(token, row) for token, row in zip(text[-new:].tolist(), rows, strict=True)])
        self._last = text[len(text) - min(len(text), self._ngrams.order - 1) :]
        return result

    def _lookups(self, length: int, text: np.ndarray, new: int) -> zip[tuple[int, int, int, float]]:
        """Return context key, count of the token, total and mass in the training text for the last `new` tokens."""
        table = self._ngrams.tables[length]
        contexts = np.concatenate([np.zeros(1, np.uint64), _keys(text, length)[:-1]])[len(text) - new :]
        grams = _keys(text, length + 1)[len(text) - new :]
        counts = _find(table.grams, grams, table.counts)
        totals, masses = (_find(table.contexts, contexts, values) for values in (table.totals, table.masses))
        return zip(contexts.tolist(), counts.tolist(), totals.tolist(), masses.tolist(), strict=True)

    def _read(self, token: int, row: tuple[tuple[int, int, int, float], ...]) -> float:
        """Return the probability of a token, and count it; `row` has its lookups for each length of the context."""
        chance, counts = 1 / self._ngrams.vocab_size, list[int]()
        usable = min(self.length + 1, len(row))
        for length, (context, count, total, mass) in enumerate(row[:usable]):
            if added := self._additions[length].get(context):
                count, total, mass = count + added.counts.get(token, 0), total + added.total, mass + added.mass
            counts.append(count)
            if total:
                chance = (count - self._ngrams.tables[length].discounts[min(count, 3)] + mass * chance) / total
        for length in range(usable - 1, -1, -1):
            added, count = self._additions[length].setdefault(row[length][0], _Addition()), counts[length]
            discounts = self._ngrams.tables[length].discounts
            added.counts[token] = added.counts.get(token, 0) + 1
            added.total += 1
            added.mass += discounts[min(count + 1, 3)] - discounts[min(count, 3)]
            if count:
                break
        self.length += 1
        return chance

    def predict(self) -> Prediction:
        """Return the probabilities of all tokens after those that were read."""
        chances = np.full(self._ngrams.vocab_size, 1 / self._ngrams.vocab_size)
        for length in range(min(self.length + 1, self._ngrams.order)):
            table, context = self._ngrams.tables[length], int(_keys(self._last, length)[-1]) if length else 0
            index = int(np.searchsorted(table.contexts, np.uint64(context)))
            after, total, mass = slice(0), 0, 0.0
            if index < len(table.contexts) and table.contexts[index] == context:
                after = slice(table.starts[index], table.starts[index + 1])
                total, mass = int(table.totals[index]), float(table.masses[index])
            tokens, counts = table.tokens[after], table.sizes[after]
            if added := self._additions[length].get(context):
                total, mass = total + added.total, mass + added.mass
                dense = np.zeros(len(chances), np.int64)
                dense[tokens] = counts
                dense[list(added.counts)] += list(added.counts.values())
                tokens = np.flatnonzero(dense)
                counts = dense[tokens]
            if total:
                chances *= mass / total
                chances[tokens] += (counts - np.array(table.discounts)[np.minimum(counts, 3)]) / total
        return Prediction(chances, share(self.length))


def _find(keys: np.ndarray, wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the values of the wanted keys, 0 for those that are not in the sorted `keys`."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], 0)
