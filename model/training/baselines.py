"""Losses of simple models on the validation text, to compare the loss of a training with: uniform, unigram, bigram and
zstd."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import zstandard

from model.training.evaluate import ValidationSet
from pipeline.tokens.store import TokenStore

_MAX_COUNTED = 1 << 24  # training tokens: their pairs are sorted in less than a second
_MAX_COMPRESSED = 1 << 19  # bytes of the validation text: a quarter of a second
_LEVEL = 19  # the highest without --ultra; its window of 8 MiB covers all of these bytes


@dataclass(frozen=True)
class Baselines:
    """Losses without a network, in nats per token of the `tokens` that are scored, which decode to `characters`.

    uniform       gives every id of the vocabulary the same probability: ln V
    unigram       uses the counts of ids in the training split
    bigram        uses the counts of pairs of ids
    zstd          is zstd -19 on the first 512 KiB of the validation text alone, without training data or a tokenizer
    unknown_bits  cost of the characters that are not in the vocabulary, the same for all models
    """

    uniform: float
    unigram: float
    bigram: float
    zstd: float
    tokens: int
    characters: int
    unknown_bits: float = 0.0

    def bits_per_char(self, loss: float) -> float:
        """Convert nats per token to bits per character."""
        return (loss * self.tokens / math.log(2) + self.unknown_bits) / self.characters

    @property
    def losses(self) -> dict[str, float]:
        """Nats per token by name, without those that are above uniform: zstd is, on a short text."""
        losses = {name: getattr(self, name) for name in ("uniform", "unigram", "bigram", "zstd")}
        return {name: loss for name, loss in losses.items() if loss <= self.uniform}

    @property
    def scores(self) -> dict[str, float]:
        """Bits per character by name, as `losses`."""
        return {name: round(self.bits_per_char(loss), 4) for name, loss in self.losses.items()}

    def best_beaten(self, loss: float) -> str:
        """Return the name of the best of them that a loss in nats per token is lower than, "" if it is of none."""
        losses = self.losses
        return min((name for name in losses if loss < losses[name]), key=losses.__getitem__, default="")

    def loss(self, bits_per_char: float) -> float:
        """Convert bits per character to nats per token."""
        return (bits_per_char * self.characters - self.unknown_bits) * math.log(2) / self.tokens


def compute_baselines(store: TokenStore, validation: ValidationSet) -> Baselines:
    """Score the tokens that `evaluate` scores, with counts of the first 2**24 training tokens."""
    train = store.train.read(0, min(_MAX_COUNTED, len(store.train)))
    ids, vocab_size = validation.ids, store.tokenizer.vocab_size
    targets = ids[1:].astype(np.int64)
    unigrams = unigram(train, vocab_size)
    bigrams = bigram(train, ids[:-1].astype(np.int64), targets, unigrams)
    text = "".join(validation.documents) or store.tokenizer.decode(targets.tolist())
    zstd_bits = _zstd_bits_per_byte(text) * validation.bytes
    return Baselines(
        uniform=math.log(vocab_size),
        unigram=-float(np.log(unigrams[targets]).mean()),
        bigram=-float(np.log(bigrams).mean()),
        zstd=zstd_bits * math.log(2) / len(targets),
        tokens=len(targets),
        characters=validation.characters,
        unknown_bits=validation.unknown_bits,
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
