"""KV cache for incremental decoding.

Shapes in comments: R rows of the cache, one sequence each; S tokens per row at most, which is the block size; B rows
and T new tokens in one forward pass; K heads of keys and values of D dimensions; C = width; W - 1 previous inputs for
convolutions of width W. All memory is allocated at construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import GPTConfig


@dataclass(frozen=True)
class LayerCache:
    """Views into the cache of one block, for B rows.

    `keys` and `values` (B, K, S, D); `tails` (2, B, W - 1, C), the last inputs of the block's two convolutions.
    """

    keys: Tensor
    values: Tensor
    tails: Tensor

    def update(self, view: CacheView, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (B, K, T, D) of the new tokens; return all to attend to (B, K, kv_length, D)."""
        for cached, new in ((self.keys, keys), (self.values, values)):
            if isinstance(view.slots, slice):  # takes a third of the time of an index
                cached[:, :, view.slots] = new
            else:
                cached[view.rows, :, view.slots] = new.transpose(1, 2).to(cached.dtype)
        return self.keys[:, :, : view.kv_length], self.values[:, :, : view.kv_length]


@dataclass(frozen=True)
class CacheView:
    """The part of a KV cache that one forward pass reads and updates.

    positions     (B, T), of the new tokens
    rows          (B, 1), indices of the rows
    slots         indices along S to which the new tokens are written: a slice if equal for all rows, else (B, T)
    kv_length     number of slots to attend to, from the first one
    mask          (B, 1, T, kv_length), True where attention is allowed; None: causal, or a single token per row that
                  attends to all of them
    layers        one LayerCache per block
    tail          (B, W - 1, C), the last inputs of the convolution over the embeddings
    previous_ids  (B, 1), the ids before the new tokens, for bigram embeddings
    """

    positions: Tensor
    rows: Tensor
    slots: slice | Tensor
    kv_length: int
    mask: Tensor | None
    layers: Sequence[LayerCache]
    tail: Tensor
    previous_ids: Tensor


class KVCache:
    """Keys and values of `rows` sequences. `lengths` are their numbers of tokens so far.

    A sequence longer than `size` overwrites its oldest tokens if `slides`: with rotary positions attention depends on
    distances only. With learned positions the row is full then, and must be reset.
    """

    def __init__(self, config: GPTConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.slides = config.block_size, config.positions != "learned"
        self.lengths = [0] * rows
        self._device = device
        heads = config.kv_heads or config.heads
        shape = (config.layers, rows, heads, self.size, config.head_width)  # (layers, R, K, S, D)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        tail_length = max(config.convolution - 1, 0)
        # Over the embeddings first, then two per block.
        tails_shape = (2 * config.layers + 1, rows, tail_length, config.width)
        self._tails = torch.zeros(tails_shape, dtype=dtype, device=device)
        self._previous_ids = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._row_indices = torch.arange(rows, device=device)[:, None]
        self._views: dict[tuple[int, int], tuple[Sequence[LayerCache], Tensor, Tensor]] = {}

    @staticmethod
    def row_bytes(config: GPTConfig, dtype: torch.dtype) -> int:
        """Memory of the keys and values of a row. The tails and ids are small and not counted."""
        return 2 * config.layers * config.block_size * config.kv_width * dtype.itemsize

    def is_full(self, row: int) -> bool:
        """True if the row has no slot for another token."""
        return not self.slides and self.lengths[row] >= self.size

    def reset(self, row: int) -> None:
        """Empty a row."""
        self.lengths[row] = 0
        self._tails[:, row].zero_()
        self._previous_ids[row].zero_()

    def copy(self, source: int, target: int) -> None:
        """Copy row `source` to row `target`."""
        for buffer in (self._keys, self._values, self._tails):
            buffer[:, target] = buffer[:, source]
        self._previous_ids[target] = self._previous_ids[source]
        self.lengths[target] = self.lengths[source]

    def extend(self, first: int, count: int, new: int) -> CacheView:
        """Add `new` tokens to each of the `count` rows from `first` on. Return the view for their forward pass.

        More than one new token per row must fit without overwriting old ones, which the first of them still attend to.
        """
        lengths = self.lengths[first : first + count]
        assert new == 1 or max(lengths) + new <= self.size
        starts = torch.tensor(lengths, device=self._device)[:, None]
        positions = starts + torch.arange(new, device=self._device)  # (B, T)
        start, equal_lengths = lengths[0] % self.size, len(set(lengths)) == 1
        contiguous = equal_lengths and start + new <= self.size
        slots = slice(start, start + new) if contiguous else positions % self.size
        kv_length = min(max(lengths) + new, self.size)
        mask = None
        if (new > 1 and max(lengths)) or len({min(length, self.size) for length in lengths}) > 1:
            slot_indices = torch.arange(kv_length, device=self._device)
            # (B, 1, T, kv_length). Slots after a token's position are not written yet, or hold later tokens.
            mask = (slot_indices <= positions[..., None])[:, None]
        for row in range(first, first + count):
            self.lengths[row] += new
        layers, tail, previous_ids = self._rows(first, count)
        return CacheView(positions, self._row_indices[:count], slots, kv_length, mask, layers, tail, previous_ids)

    def _rows(self, first: int, count: int) -> tuple[Sequence[LayerCache], Tensor, Tensor]:
        """Views of some rows: one LayerCache per block, tail, previous ids. Cached, since each token needs them."""
        if (first, count) not in self._views:
            rows = slice(first, first + count)
            tails = self._tails[:, rows]
            layers = [
                LayerCache(keys[rows], values[rows], tails[2 * layer + 1 : 2 * layer + 3])
                for layer, (keys, values) in enumerate(zip(self._keys, self._values, strict=True))
            ]
            self._views[first, count] = layers, tails[0], self._previous_ids[rows]
        return self._views[first, count]
