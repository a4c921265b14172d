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
    """What one block remembers of B rows: `keys` and `values` (B, K, S, D), `tails` (2, B, W - 1, C) of what its two
    convolutions read."""

    keys: Tensor
    values: Tensor
    tails: Tensor

    def extended(self, past: Past, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Remember those of the new tokens (B, K, T, D); those of all that may be seen (B, K, seen, D)."""
        for kept, new in ((self.keys, keys), (self.values, values)):
            if isinstance(past.slots, slice):  # a third of the time that an index takes
                kept[:, :, past.slots] = new
            else:
                kept[past.rows, :, past.slots] = new.transpose(1, 2).to(kept.dtype)
        return self.keys[:, :, : past.seen], self.values[:, :, : past.seen]


@dataclass(frozen=True)
class Past:
    """What one pass reads and adds to: of each block, of the first convolution (`tail`), and the ids `before` (B, 1).

    `positions` (B, T) are those of the new tokens, which go to `slots`, the same of all `rows` (B, 1) or (B, T); the
    first `seen` places are then looked at. `mask` (B, 1, T, seen) says who may see whom, None where all that came
    before may be seen.
    """

    positions: Tensor
    rows: Tensor
    slots: slice | Tensor
    seen: int
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
        shape = (config.layers, rows, heads, self.size, config.head_width)  # (layers, R, K, S, D)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        reach = max(config.convolution - 1, 0)
        tails = (2 * config.layers + 1, rows, reach, config.width)  # the first, then two of each block
        self._tails = torch.zeros(tails, dtype=dtype, device=device)
        self._before = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._index = torch.arange(rows, device=device)[:, None]
        self._everything = (self._keys, self._values, self._tails)
        self._views: dict[tuple[int, int], tuple[Sequence[Memory], Tensor, Tensor]] = {}

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
        before = torch.tensor(lengths, device=self._device)[:, None]
        positions = before + torch.arange(new, device=self._device)  # (B, T)
        start, alike = lengths[0] % self.size, len(set(lengths)) == 1
        together = alike and start + new <= self.size
        slots = slice(start, start + new) if together else positions % self.size
        seen = min(max(lengths) + new, self.size)
        mask = None
        if (new > 1 and max(lengths)) or len({min(length, self.size) for length in lengths}) > 1:
            places = torch.arange(seen, device=self._device)
            mask = (places <= positions[..., None])[:, None]  # (B, 1, T, seen): those not yet written are later
        for row in range(first, first + count):
            self.lengths[row] += new
        blocks, tail, ids = self._remembered(first, count)
        return Past(positions, self._index[:count], slots, seen, mask, blocks, tail, ids)

    def _remembered(self, first: int, count: int) -> tuple[Sequence[Memory], Tensor, Tensor]:
        """What the blocks, the first convolution and the pairs remember of some rows. Made once: each token asks."""
        if (first, count) not in self._views:
            rows = slice(first, first + count)
            tails = self._tails[:, rows]
            blocks = [
                Memory(keys[rows], values[rows], tails[2 * number + 1 : 2 * number + 3])
                for number, (keys, values) in enumerate(zip(self._keys, self._values, strict=True))
            ]
            self._views[first, count] = blocks, tails[0], self._before[rows]
        return self._views[first, count]
