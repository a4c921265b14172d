"""What a loss means: what guessing, counting tokens, counting pairs and zstd make of the same validation text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import zstandard

from model.training.evaluate import ValidationSet
from pipeline.tokens.store import TokenStore

_COUNTED = 1 << 24  # training tokens, whose pairs are sorted in less than a second
_COMPRESSED = 1 << 19  # bytes of the validation text: a quarter of a second
_LEVEL = 19  # the highest without --ultra; its window of 8 MiB lies over all of them


@dataclass(frozen=True)
class References:
    """Losses without a network, in nats per token of the `tokens` that are scored, which spell `characters`.

    `uniform` gives every id of the vocabulary the same chance: ln V. `unigram` knows how often each came in training,
    `bigram` also what came after what. `zstd` is zstd -19 on the first 512 KiB of the validation text alone: it has
    read nothing before, and nobody needs to choose tokens for it. `unknown_bits` are what characters that the
    tokenizer does not know cost all of them, since none is told which they are.
    """

    uniform: float
    unigram: float
    bigram: float
    zstd: float
    tokens: int
    characters: int
    unknown_bits: float = 0.0

    def bits_per_char(self, loss: float) -> float:
        return (loss * self.tokens / math.log(2) + self.unknown_bits) / self.characters

    def loss(self, bits_per_char: float) -> float:
        """The nats per token that come to so many bits per character."""
        return (bits_per_char * self.characters - self.unknown_bits) * math.log(2) / self.tokens


def references(store: TokenStore, chosen: ValidationSet) -> References:
    """The references of a store on what `evaluate` scores. Counts are of the first 2**24 training tokens."""
    train = store.train.read(0, min(_COUNTED, len(store.train)))
    ids = chosen.ids
    size, following = store.tokenizer.vocab_size, ids[1:].astype(np.int64)
    chances = unigram(train, size)
    pairs = bigram(train, ids[:-1].astype(np.int64), following, chances)
    compressed = _zstd(store.tokenizer.decode(following.tolist())) * chosen.bytes  # bits, of all of it at that rate
    return References(
        uniform=math.log(size),
        unigram=-float(np.log(chances[following]).mean()),
        bigram=-float(np.log(pairs).mean()),
        zstd=compressed * math.log(2) / len(following),
        tokens=len(following),
        characters=chosen.characters,
        unknown_bits=chosen.unknown_bits,
    )


def unigram(train: np.ndarray, vocab_size: int) -> np.ndarray:
    """float64 chances of all ids, of shape (V,): how often each is in `train`, and once more (Laplace)."""
    return (np.bincount(train, minlength=vocab_size) + 1) / (len(train) + vocab_size)


def bigram(train: np.ndarray, previous: np.ndarray, following: np.ndarray, backoff: np.ndarray) -> np.ndarray:
    """float64 chances of the ids `following` after the ids `previous`, of their shape, by the pairs in `train`.

    Absolute discounting (Ney, Essen & Kneser 1994): every pair gives up the share D of one of its counts, and what the
    pairs of `previous` gave up is dealt out by `backoff`, the chances (V,) of ids alone. D is n1 / (n1 + 2 n2), from
    how many pairs came once and twice, with one more of each so that it lies between 0 and 1.
    """
    size = len(backoff)
    pairs, counts = np.unique(_paired(train[:-1], train[1:], size), return_counts=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = (once + 1) / (once + 2 * twice + 3)

    asked = _paired(previous, following, size)
    place = np.minimum(np.searchsorted(pairs, asked), max(len(pairs) - 1, 0))
    kept = np.where(pairs[place] == asked, counts[place] - discount, 0) if len(pairs) else np.zeros(len(asked))
    seen = np.bincount(train[:-1], minlength=size)[previous]
    kinds = np.bincount((pairs // size).astype(np.int64), minlength=size)[previous]
    backed = np.where(seen > 0, discount * kinds, 1) * backoff[following]
    return (kept + backed) / np.maximum(seen, 1)


def _paired(previous: np.ndarray, following: np.ndarray, size: int) -> np.ndarray:
    """Each pair of int64 ids as one number; in 32 bits where they fit, which sort in half the time."""
    paired = previous * size + following
    return paired.astype(np.uint32) if size <= 1 << 16 else paired


def _zstd(text: str) -> float:
    """Bits per byte of (the beginning of) a text, without what a frame says of itself."""
    data = text.encode(errors="replace")[:_COMPRESSED]
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=False)
    return 8 * len(compressor.compress(data)) / max(len(data), 1)
