"""What a network remembers of the texts it goes on with, so that each token is computed once.

Shapes in comments: R rows, one text each; S tokens of each at most, as many as the network sees; B of the rows and T
new tokens in one pass; K heads of keys and values of D dimensions; C = width, and the tails of W - 1 tokens that
convolutions of width W reach back to. All memory is taken at the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import GPTConfig


@dataclass(frozen=True)
class Memory:
    """What one block remembers of B rows: `keys` and `values` (B, S, K, D), `tails` (2, B, W - 1, C) of what its two
    convolutions read. New tokens go to `slots` (B, T) of `rows` (B, 1); the first `seen` places are then looked at."""

    keys: Tensor
    values: Tensor
    tails: Tensor
    rows: Tensor
    slots: Tensor
    seen: int

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Remember those of the new tokens (B, K, T, D); those of all that may be seen (B, K, `seen`, D)."""
        self.keys[self.rows, self.slots] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[self.rows, self.slots] = values.transpose(1, 2).to(self.values.dtype)
        return self.keys[:, : self.seen].transpose(1, 2), self.values[:, : self.seen].transpose(1, 2)


@dataclass(frozen=True)
class Past:
    """What one pass reads and adds to: of each block, of the first convolution (`tail`), and the ids `before` (B, 1).

    `positions` (B, T) are those of the new tokens; `mask` (B, 1, T, seen) says who may see whom, None where all that
    came before may be seen.
    """

    positions: Tensor
    mask: Tensor | None
    blocks: Sequence[Memory]
    tail: Tensor
    before: Tensor


class Cache:
    """Rows of remembered text, `lengths` tokens of each.

    A text that outgrows the network writes over its oldest tokens where that is possible (`slides`): attention by
    rotary positions sees distances only. With learned positions a row is full then, and must begin again.
    """

    def __init__(self, config: GPTConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.slides = config.block_size, config.positions != "learned"
        self.lengths = [0] * rows
        self._device = device
        heads = config.kv_heads or config.heads
        kept = (config.layers, rows, self.size, heads, config.head_width)  # (layers, R, S, K, D)
        self._keys = torch.zeros(kept, dtype=dtype, device=device)
        self._values = torch.zeros(kept, dtype=dtype, device=device)
        reach = max(config.convolution - 1, 0)
        tails = (2 * config.layers + 1, rows, reach, config.width)  # the first, then two of each block
        self._tails = torch.zeros(tails, dtype=dtype, device=device)
        self._before = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._everything = (self._keys, self._values, self._tails)

    @staticmethod
    def bytes(config: GPTConfig, dtype: torch.dtype) -> int:
        """Memory of a row, but for tails and ids, which are short."""
        return 2 * config.layers * config.block_size * config.key_width * dtype.itemsize

    def full(self, row: int) -> bool:
        """Whether a row has no place for a token more."""
        return not self.slides and self.lengths[row] >= self.size

    def forget(self, row: int) -> None:
        """Begin a row again."""
        self.lengths[row] = 0
        self._tails[:, row].zero_()
        self._before[row].zero_()

    def copy(self, source: int, target: int) -> None:
        """Make a row remember what another one does."""
        for each in self._everything:
            each[:, target] = each[:, source]
        self._before[target] = self._before[source]
        self.lengths[target] = self.lengths[source]

    def read(self, first: int, count: int, new: int) -> Past:
        """The past of the rows from `first`, `count` of them, which this pass makes longer by `new` tokens each.

        More than one token at a time must fit, and without writing over any: what they may see is needed still.
        """
        lengths = self.lengths[first : first + count]
        assert new == 1 or max(lengths) + new <= self.size
        rows = slice(first, first + count)
        before = torch.tensor(lengths, device=self._device)[:, None]
        positions = before + torch.arange(new, device=self._device)  # (B, T)
        slots = positions % self.size
        seen = min(max(lengths) + new, self.size)
        mask = None
        if (new > 1 and max(lengths)) or len({min(length, self.size) for length in lengths}) > 1:
            places = torch.arange(seen, device=self._device)
            mask = (places <= positions[..., None])[:, None]  # (B, 1, T, seen): those not yet written are later
        tails, index = self._tails[:, rows], torch.arange(count, device=self._device)[:, None]
        blocks = [
            Memory(keys[rows], values[rows], tails[2 * number + 1 : 2 * number + 3], index, slots, seen)
            for number, (keys, values) in enumerate(zip(self._keys, self._values, strict=True))
        ]
        for row in range(first, first + count):
            self.lengths[row] += new
        return Past(positions, mask, blocks, tails[0], self._before[rows])
