"""Batches of packed rows, as the loader sends them to the device."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from model.training.permutation import GOLDEN, mix, permute
from model.training.tuning.packing import Documents, Pieces, pack
from pipeline.runtime.terminal import counted
from pipeline.tokens.store import TokenArray

PLANES = 5
INPUTS, TARGETS, DIVISORS, POSITIONS, SEGMENTS = range(PLANES)
"""Planes of a row, of block_size numbers each.

    inputs     ids; padding is end-of-text
    targets    ids
    divisors   0 for a target without a loss; otherwise the number of targets, or of pairs, in the step, by which the
               sum of its losses is divided to give their mean
    positions  of the inputs in their conversation, 0 for padding
    segments   number of the conversation in its row, from 1; 0 for padding. Of a pair, the odd one is chosen
"""


@dataclass(frozen=True)
class PackedRows:
    """Rows of `block_size` tokens, packed with at least one piece. The two pieces of a pair are in one row.

    `seed` and the `key` of the store decide the order of the rows, which differs from epoch to epoch.
    """

    documents: Documents
    pieces: Pieces
    block_size: int
    seed: int = 0
    key: str = ""

    @property
    def noun(self) -> str:
        return "conversations" if self.pieces.width == 1 else "pairs"

    @property
    def tokens(self) -> TokenArray:
        return self.documents.ids

    @functools.cached_property
    def rows(self) -> list[list[int]]:
        """For each row, the indices of its conversations or pairs."""
        return pack(self.pieces.lengths.reshape(-1, self.pieces.width).sum(1), self.block_size)

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        """Number of targets with a loss, or of pairs, in each row, int64 (R,)."""
        width, targets = self.pieces.width, self.pieces.targets
        return np.array([int(targets[row].sum()) if width == 1 else len(row) for row in self.rows], np.int64)

    def __str__(self) -> str:
        pieces = self.pieces
        parts = [f"{counted(len(pieces.starts) // pieces.width, self.noun)} in {counted(len(self.rows), 'blocks')}"]
        parts += [f"{self.padding:.1%} padding"]
        parts += [f"{pieces.cut:,} longer than a block and cut"] * bool(pieces.cut)
        parts += [f"{pieces.dropped:,} without an answer in their block dropped"] * bool(pieces.dropped)
        return ", ".join(parts)

    @property
    def padding(self) -> float:
        """Fraction of the inputs that is padding."""
        return 1 - float(self.pieces.lengths.sum()) / (len(self.rows) * self.block_size)

    @property
    def max_segments(self) -> int:
        """The largest number of conversations in a row."""
        return max(map(len, self.rows)) * self.pieces.width

    def epoch(self, step: int, rows: int) -> float:
        """Return the number of epochs, with fraction, before a step of `rows` rows."""
        return step * rows / len(self.rows)

    def batch(self, step: int, rows: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Return the rows [first, first + count) of a step of `rows` rows, uint32 (count, PLANES, block_size)."""
        count = rows - first if count is None else count
        indices = self._indices(step * rows, rows)
        batch = self.read(indices[first : first + count])
        batch[:, DIVISORS] *= int(self._counts[indices].sum())
        return batch

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return rows by their indices, uint32 (N, PLANES, block_size), with divisors of 1."""
        batch = np.zeros((len(indices), PLANES, self.block_size), np.uint32)
        batch[:, INPUTS] = self.documents.tokenizer.end_of_text
        width = self.pieces.width
        for planes, index in zip(batch, indices.tolist(), strict=True):
            end = 0
            pieces = [group * width + member for group in self.rows[index] for member in range(width)]
            for segment, piece in enumerate(pieces, 1):
                start, length = int(self.pieces.starts[piece]), int(self.pieces.lengths[piece])
                ids, span = self.documents.ids.read(start, start + length + 1), slice(end, end + length)
                planes[INPUTS, span], planes[TARGETS, span] = ids[:-1], ids[1:]
                planes[DIVISORS, span] = self.documents.mask.read(start + 1, start + length + 1)
                planes[POSITIONS, span], planes[SEGMENTS, span] = np.arange(length), segment
                end += length
        return batch

    def _indices(self, first: int, count: int) -> np.ndarray:
        """Return the row indices of the samples [first, first + count). Each row comes once per epoch."""
        samples = np.arange(first, first + count, dtype=np.int64)
        epochs, indices = np.divmod(samples, len(self.rows))
        keys = mix(self._key + epochs.view(np.uint64) * GOLDEN)
        return permute(indices.view(np.uint64), len(self.rows), keys).view(np.int64)

    @functools.cached_property
    def _key(self) -> np.ndarray:
        digest = hashlib.sha256(f"{self.key} {self.seed}".encode()).digest()
        return np.frombuffer(digest, "<u8", 1)
