"""Blocks of a token store for training. Which ones is a pure function of (store, seed, step, row): nothing to save.

A run that was killed, or goes on with another number of ranks or another size of micro-batch, sees the very blocks
that it would have seen.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.training.permutation import GOLDEN, mix, permute
from pipeline.errors import BadConfig, BadData
from pipeline.tokens.store import TokenArray

ORDERS = ("random", "epoch")
RESIDENT = ("auto", "yes", "no")

_HALF = np.uint64(32)
_STRETCH = 1 << 12  # samples that are placed at once: numpy takes little longer for them than for a small batch
_AHEAD = 2  # batches that wait for the device: one to take, one in the making
_PIECE = 1 << 25  # tokens that go to the device at once


@dataclass(frozen=True)
class Sampler:
    """Where the blocks of `block_size` tokens and one more, the last target, begin.

    Samples are numbered through all steps: row `row` of a step that has `rows` is number step * rows + row.
    "random" draws each from all starting places alike, with replacement. "epoch" takes the blocks side by side, each
    token a target once an epoch, in an order of its own each epoch; where the first block begins moves from epoch to
    epoch, so that a token is not always seen with the same context, and none at the end is left out for ever.
    `key` is the store's own. Raises BadData when the store is too short for a single block.
    """

    tokens: TokenArray
    block_size: int
    seed: int
    order: str
    key: str

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise BadConfig(f"order={self.order} is unknown", hint=f"one of {', '.join(ORDERS)}")
        count = len(self.tokens)
        if count <= self.block_size:
            raise BadData(
                f"{count:,} training tokens are too few for a block of {self.block_size}",
                hint=f"--set block_size={max(count // 4, 1)}, or more text",
            )

    @functools.cached_property
    def blocks_per_epoch(self) -> int:
        """How many blocks fit side by side wherever the first begins, or one."""
        return max((len(self.tokens) - self.block_size) // self.block_size, 1)

    def epoch(self, step: int, rows: int) -> float:
        """How many times the blocks of an epoch were seen before a step of `rows` rows."""
        return step * rows / self.blocks_per_epoch

    def places(self, step: int, rows: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """int64 starting places, of shape (count,), of the rows [first, first + count) of a step that has `rows`."""
        start = step * rows + first
        stop = start + (rows - first if count is None else count)
        pieces = [
            self._stretch(number)[max(start - number * _STRETCH, 0) : stop - number * _STRETCH]
            for number in range(start // _STRETCH, -(-stop // _STRETCH))
        ]
        return np.concatenate([np.empty(0, np.int64), *pieces])

    def batch(self, step: int, rows: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Ids of shape (count, block_size + 1) in the store's dtype: inputs are `[:, :-1]`, targets `[:, 1:]`."""
        return self.tokens.blocks(self.places(step, rows, first, count), self.block_size + 1)

    @functools.cached_property
    def _stretch(self) -> Callable[[int], np.ndarray]:
        """The places of the samples [number * _STRETCH, (number + 1) * _STRETCH); kept, as many steps ask for them."""

        @functools.lru_cache(maxsize=2)
        def stretch(number: int) -> np.ndarray:
            numbers = np.arange(number * _STRETCH, (number + 1) * _STRETCH, dtype=np.int64)
            return self._random(numbers) if self.order == "random" else self._epochs(numbers)

        return stretch

    def _random(self, numbers: np.ndarray) -> np.ndarray:
        """splitmix64 over the numbers; what the modulo favours, it favours by count / 2**64 at most."""
        count = len(self.tokens) - self.block_size
        drawn = mix(self._key + numbers.view(np.uint64) * GOLDEN)
        return (drawn % np.uint64(count)).view(np.int64)

    def _epochs(self, numbers: np.ndarray) -> np.ndarray:
        epochs, within = np.divmod(numbers, self.blocks_per_epoch)
        turns = self._key + epochs.view(np.uint64) * GOLDEN
        # Multiples of the golden ratio fall evenly between those before them, so a few epochs differ as they can most.
        slack = len(self.tokens) - self.blocks_per_epoch * self.block_size
        phases = (turns >> _HALF) * np.uint64(slack) >> _HALF
        blocks = permute(within.view(np.uint64), self.blocks_per_epoch, mix(turns))
        return (phases + blocks * np.uint64(self.block_size)).view(np.int64)

    @functools.cached_property
    def _key(self) -> np.ndarray:
        """uint64 of shape (1,), since numpy wraps arrays in silence, which a hash needs, and warns of scalars."""
        digest = hashlib.sha256(f"{self.key} {self.seed}".encode()).digest()
        return np.frombuffer(digest, "<u8", 1)


def to_device(ids: np.ndarray, device: torch.device) -> Tensor:
    """uint16 or uint32 ids as int64 on a device. Only the narrow ids travel, and nobody waits for them."""
    if device.type == "cpu":
        return torch.from_numpy(ids.astype(np.int64))
    return widen(_narrow(ids, device).to(device, non_blocking=True))


def widen(narrow: Tensor) -> Tensor:
    """int64 ids from the int16 or int32 that hold the bits of unsigned ones, in which torch computes little."""
    return narrow.long() & (0xFFFF if narrow.dtype == torch.int16 else 0xFFFF_FFFF)


def _narrow(ids: np.ndarray, device: torch.device) -> Tensor:
    """The ids in signed integers of their size, pinned where the device then copies them by itself.

    torch gives a pinned buffer to somebody else only when the copies out of it have ended.
    """
    narrow = torch.from_numpy(ids.view(_signed(ids.dtype)))
    return narrow.pin_memory() if device.type == "cuda" else narrow


def _signed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"i{dtype.itemsize}")


class Loader:
    """Batches on a device, step after step without end: int64 ids of shape (count, block_size + 1).

    They are the rows [first, first + count) of steps of `rows` rows, beginning with `step`. Three ways lead to the
    same bytes. A store that is `resident` lies on the device, all of it, and blocks are gathered there: "yes", "no",
    or "auto", on CUDA when its bytes are less than an eighth of the free memory. A loader that is `threaded` (None: on
    CUDA) makes the next batches in a thread of its own while the device computes. Any other gathers when asked.

    A context, which at its end stops the thread; what fails in there is raised by `next`. `waited` counts the seconds
    that `next` took.
    """

    def __init__(
        self,
        sampler: Sampler,
        rows: int,
        device: torch.device,
        *,
        step: int = 0,
        first: int = 0,
        count: int | None = None,
        resident: str = "auto",
        threaded: bool | None = None,
    ) -> None:
        self.waited = 0.0
        self.resident = is_resident(resident, sampler.tokens, device)
        self._sampler, self._device, self._step = sampler, device, step
        self._rows = (rows, first, count)
        self._store = _on_device(sampler.tokens, device) if self.resident else None
        threaded = device.type == "cuda" if threaded is None else threaded
        self._thread = ThreadPoolExecutor(1, "batches") if threaded and not self.resident else None
        self._pending: deque[Future[Tensor]] = deque()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread, if there is one."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Tensor:
        start = time.monotonic()
        if self._store is not None:
            ids = self._gathered(self._store)
        elif self._thread is not None:
            ids = self._prefetched(self._thread)
        else:
            ids = to_device(self._sampler.batch(self._step, *self._rows), self._device)
        self._step += 1
        self.waited += time.monotonic() - start
        return ids

    def _gathered(self, store: Tensor) -> Tensor:
        places = torch.from_numpy(self._sampler.places(self._step, *self._rows)).to(self._device)
        return widen(store[places[:, None] + torch.arange(self._sampler.block_size + 1, device=self._device)])

    def _prefetched(self, thread: ThreadPoolExecutor) -> Tensor:
        while len(self._pending) <= _AHEAD:
            self._pending.append(thread.submit(self._make, self._step + len(self._pending)))
        narrow = self._pending[0].result()
        self._pending.popleft()
        return widen(narrow.to(self._device, non_blocking=True))

    def _make(self, step: int) -> Tensor:
        return _narrow(self._sampler.batch(step, *self._rows), self._device)


def is_resident(asked: str, tokens: TokenArray, device: torch.device) -> bool:
    """Whether all of a store is to lie on the device. Raises BadConfig for an unknown answer."""
    if asked not in RESIDENT:
        raise BadConfig(f"resident={asked} is unknown", hint=f"one of {', '.join(RESIDENT)}")
    if asked != "auto" or device.type != "cuda":
        return asked == "yes"
    free, _ = torch.cuda.mem_get_info(device)
    return len(tokens) * tokens.dtype.itemsize < free / 8


def _on_device(tokens: TokenArray, device: torch.device) -> Tensor:
    """All ids on the device, narrow; over a buffer of a piece, so that no second copy lies in this memory."""
    signed = _signed(tokens.dtype)
    store = torch.empty(len(tokens), dtype=torch.int16 if signed.itemsize == 2 else torch.int32, device=device)
    at = 0
    for segment in tokens.segments:
        for start in range(0, len(segment), _PIECE):
            piece = torch.from_numpy(np.array(segment[start : start + _PIECE]).view(signed))
            store[at : at + len(piece)] = piece
            at += len(piece)
    return store
