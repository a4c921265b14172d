"""Losses of simple models on the validation text, to compare the loss of a training with: uniform, unigram, bigram,
zstd and n-grams of characters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from model.network.ngrams import MULTIPLIER, kneser_ney_discounts
from model.training.evaluate import CODE_POINT_BITS, ValidationSet
from pipeline.tokenizers import Tokenizer
from pipeline.tokens.store import TokenStore

_MAX_COUNTED = 1 << 24  # training tokens: their pairs are sorted in less than a second
_MAX_COMPRESSED = 1 << 19  # bytes of the validation text: a quarter of a second
_LEVEL = 19  # the highest without --ultra; its window of 8 MiB covers all of these bytes
_MAX_CHARACTERS = 1 << 21  # of training text for n-grams: 2 s for a million
_MAX_ORDER = 8  # characters of an n-gram
_DECODE_TOKENS = 1 << 17  # decoded at once


@dataclass(frozen=True)
class Baselines:
    """Losses without a network, in nats per token of the `tokens` that are scored, which decode to `characters`.

    uniform       gives every id of the vocabulary the same probability: ln V
    unigram       uses the counts of ids in the training split
    bigram        uses the counts of pairs of ids
    zstd          is zstd -19 on the first 512 KiB of the validation text alone, without training data or a tokenizer
    ngram         counts the n-grams of up to 8 characters, in the training text and in the validation text before
                  each character, as a compressor by context mixing does (PPM)
    unknown_bits  cost of the characters that are not in the vocabulary, the same for all models
    """

    uniform: float
    unigram: float
    bigram: float
    zstd: float
    ngram: float
    tokens: int
    characters: int
    unknown_bits: float = 0.0

    def bits_per_char(self, loss: float) -> float:
        """Convert nats per token to bits per character."""
        return (loss * self.tokens / math.log(2) + self.unknown_bits) / self.characters

    @property
    def losses(self) -> dict[str, float]:
        """Nats per token by name, without those that are above uniform: zstd is, on a short text."""
        losses = {name: getattr(self, name) for name in ("uniform", "unigram", "bigram", "zstd", "ngram")}
        return {name: loss for name, loss in losses.items() if loss <= self.uniform}

    @property
    def scores(self) -> dict[str, float]:
        """Bits per character by name, as `losses`."""
        return {name: round(self.bits_per_char(loss), 4) for name, loss in self.losses.items()}

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the result of a training."""
        return {"baselines": self.scores, "val_characters": self.characters}

    def best_beaten(self, loss: float) -> str:
        """Return the name of the best baseline with a higher loss than `loss` (nats per token), "" if none has."""
        losses = self.losses
        return min((name for name in losses if loss < losses[name]), key=losses.__getitem__, default="")

    def loss(self, bits_per_char: float) -> float:
        """Convert bits per character to nats per token."""
        return (bits_per_char * self.characters - self.unknown_bits) * math.log(2) / self.tokens


def compute_baselines(store: TokenStore, validation: ValidationSet) -> Baselines:
    """Score the tokens that `evaluate` scores, with counts of the first 2**24 training tokens.

    N-grams are counted in the first 2**21 characters of training text.
    """
    targets = validation.ids[1:]
    text = "".join(validation.documents) or store.tokenizer.decode(targets.tolist())
    return score(store, validation.ids[:-1], targets, text, validation.unknown_bits)


def score(store: TokenStore, previous: np.ndarray, targets: np.ndarray, text: str, unknown_bits: float) -> Baselines:
    """Score the ids `targets`, which encode `text`, after the ids `previous`; all are int64 of one shape (N,)."""
    train = store.train.read(0, min(_MAX_COUNTED, len(store.train)))
    unigrams = unigram(train, vocab_size := store.tokenizer.vocab_size)
    bigrams = bigram(train, previous.astype(np.int64), targets.astype(np.int64), unigrams)
    zstd_bits = _zstd_bits_per_byte(text) * max(len(text.encode(errors="replace")), 1)
    return Baselines(
        uniform=math.log(vocab_size),
        unigram=-float(np.log(unigrams[targets]).mean()),
        bigram=-float(np.log(bigrams).mean()),
        zstd=zstd_bits * math.log(2) / len(targets),
        ngram=_ngram_bits(_decode_start(train, store.tokenizer), text) * math.log(2) / len(targets),
        tokens=len(targets),
        characters=max(len(text), 1),
        unknown_bits=unknown_bits,
    )


def unigram(train: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return the float64 probabilities (V,) of all ids: their counts in `train`, plus one (Laplace)."""
    return (np.bincount(train, minlength=vocab_size) + 1) / (len(train) + vocab_size)


def bigram(train: np.ndarray, previous: np.ndarray, targets: np.ndarray, backoff: np.ndarray) -> np.ndarray:
    """Return the float64 probabilities of the ids `targets` after the ids `previous`, from the pairs in `train`.

    All three are arrays of one shape. Absolute discounting (Ney, Essen & Kneser 1994): D is subtracted from the
    count of every pair, and for each first id the subtracted mass is distributed by `backoff`, the unigram
    probabilities (V,).
    D is n1 / (n1 + 2 n2), from the numbers of pairs that occur once and twice, plus one each so that D lies between 0
    and 1.
    """
    vocab_size = len(backoff)
    pairs, counts = np.unique(_pair_keys(train[:-1], train[1:], vocab_size), return_counts=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = (once + 1) / (once + 2 * twice + 3)

    keys = _pair_keys(previous, targets, vocab_size)
    if len(pairs):
        index = np.minimum(np.searchsorted(pairs, keys), len(pairs) - 1)
        discounted = np.where(pairs[index] == keys, counts[index] - discount, 0)
    else:
        discounted = np.zeros(len(keys))
    occurrences = np.bincount(train[:-1], minlength=vocab_size)[previous]
    successors = np.bincount((pairs // vocab_size).astype(np.int64), minlength=vocab_size)[previous]
    backed_off = np.where(occurrences > 0, discount * successors, 1) * backoff[targets]
    probabilities: np.ndarray = (discounted + backed_off) / np.maximum(occurrences, 1)
    return probabilities


def _pair_keys(first: np.ndarray, second: np.ndarray, vocab_size: int) -> np.ndarray:
    """Encode each pair of int64 ids as one integer; as uint32 if they fit, which sorts in half the time."""
    keys: np.ndarray = first * vocab_size + second
    return keys.astype(np.uint32) if vocab_size <= 1 << 16 else keys


def _zstd_bits_per_byte(text: str) -> float:
    """Compress the start of a text, without a checksum or the size in the frame header."""
    data = text.encode(errors="replace")[:_MAX_COMPRESSED]
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=False)
    return 8 * len(compressor.compress(data)) / max(len(data), 1)


def _decode_start(train: np.ndarray, tokenizer: Tokenizer) -> str:
    parts: list[str] = []
    for first in range(0, len(train), _DECODE_TOKENS):
        parts.append(tokenizer.decode(train[first : first + _DECODE_TOKENS].tolist()))
        if sum(map(len, parts)) >= _MAX_CHARACTERS:
            break
    return "".join(parts)[:_MAX_CHARACTERS]


def _ngram_bits(train: str, text: str) -> float:
    if not text:
        return 0.0
    codes = np.frombuffer((train + text).encode("utf-32-le", "surrogatepass"), "<u4")
    return -float(np.log2(ngram(codes, len(train), 2.0**-CODE_POINT_BITS)).sum())


def ngram(codes: np.ndarray, start: int, unseen: float, order: int = _MAX_ORDER) -> np.ndarray:
    """Return the float64 probability of each character from `start` on, given all characters before it.

    `codes` (N,) are code points; a character that did not occur before has the probability `unseen` after the shortest
    context. Smoothed by modified Kneser-Ney, as in model/network/ngrams.py. Counts are of all earlier positions, by
    sorting: one sort for each order.
    """
    values, length, order = codes.astype(np.uint64) + np.uint64(1), len(codes), min(order, len(codes))
    powers = [np.uint64(pow(MULTIPLIER, n, 1 << 64)) for n in range(order)]
    keys = np.zeros(length, np.uint64)  # of the n-gram that ends at each position
    for n, power in enumerate(powers):
        keys[n:] += values[: length - n] * power
    positions, is_counted = np.argsort(keys, kind="stable"), np.ones(length, bool)
    parts: list[tuple[np.ndarray, ...]] = []
    for n in range(order - 1, -1, -1):
        counts = _sum_before(is_counted.astype(np.int64), keys, positions)
        discounts = _discounts(counts[is_counted])
        steps = np.where(is_counted, discounts[np.minimum(counts + 1, 3)] - discounts[np.minimum(counts, 3)], 0.0)
        keys[n:] -= values[: length - n] * powers[n]
        positions = np.argsort(keys, kind="stable")
        contexts, following = np.roll(keys, 1), (positions + 1) % length
        contexts[0], following = 0, np.concatenate([[0], following[following > 0]])
        totals = _sum_before(is_counted.astype(np.int64), contexts, following)
        masses = _sum_before(steps, contexts, following)
        parts.append((counts[start:] - discounts[np.minimum(counts[start:], 3)], masses[start:], totals[start:]))
        is_counted &= counts == 0
    probabilities: np.ndarray = np.full(length - start, unseen)
    for discounted, masses, totals in reversed(parts):
        mixed = (discounted + masses * probabilities) / np.maximum(totals, 1)
        probabilities = np.where(totals > 0, mixed, probabilities)
    return probabilities


def _sum_before(values: np.ndarray, keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Sum the values at all earlier positions of the same key. `positions` are those of the stably sorted keys."""
    ordered, sorted_keys = values[positions], keys[positions]
    sums = np.cumsum(ordered) - ordered
    is_first = np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]])
    firsts = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    result: np.ndarray = np.empty_like(sums)
    result[positions] = sums - sums[firsts]
    return result


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Return the discounts (4,) of n-grams. `counts` has, for each occurrence, the number of earlier ones."""
    reached = np.bincount(counts[counts <= 4], minlength=5)  # n-grams that occur more than 0, 1, … times
    return kneser_ney_discounts(reached[:4] - reached[1:])
