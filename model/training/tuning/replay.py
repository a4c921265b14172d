"""Replay: train on text of the base model too, so that the model forgets less of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.training.dataloader import Sampler
from model.training.tuning.rows import DIVISORS, INPUTS, PLANES, POSITIONS, SEGMENTS, TARGETS, PackedRows
from pipeline.tokens.store import TokenArray


@dataclass(frozen=True)
class Replay:
    """Rows of each step: first packed conversations, then blocks of text. `share` of the rows and of the loss is text.

    A step of two or more rows has at least one of each kind.
    """

    conversations: PackedRows
    text: Sampler
    share: float

    def __str__(self) -> str:
        return f"{self.conversations}; {self.share:.0%} of the rows are text of the base model"

    @property
    def tokens(self) -> TokenArray:
        return self.conversations.tokens

    def _split(self, rows: int) -> int:
        """Return how many of the `rows` of a step are conversations."""
        return min(max(rows - round(rows * self.share), 1), max(rows - 1, 1))

    def epoch(self, step: int, rows: int) -> float:
        """Return the number of epochs of the conversations, with fraction, before a step of `rows` rows."""
        return self.conversations.epoch(step, self._split(rows))

    def batch(self, step: int, rows: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Return the rows [first, first + count) of a step of `rows` rows, uint32 (count, PLANES, block_size)."""
        stop, split = rows if count is None else first + count, self._split(rows)
        parts = []
        if first < split:
            packed = self.conversations.batch(step, split, first, min(stop, split) - first)
            if split < rows:
                packed[:, DIVISORS] = np.rint(packed[:, DIVISORS] / (1 - self.share))
            parts.append(packed)
        if stop > split:
            start = max(first, split)
            parts.append(self._text(step, rows - split, start - split, stop - start))
        return np.concatenate(parts)

    def _text(self, step: int, rows: int, first: int, count: int) -> np.ndarray:
        """Return blocks of text in the planes of packed rows: one segment, and a loss for every target."""
        ids, size = self.text.batch(step, rows, first, count), self.text.block_size
        batch = np.empty((count, PLANES, size), np.uint32)
        batch[:, INPUTS], batch[:, TARGETS] = ids[:, :-1], ids[:, 1:]
        batch[:, DIVISORS] = round(rows * size / self.share)
        batch[:, POSITIONS], batch[:, SEGMENTS] = np.arange(size), 1
        return batch
