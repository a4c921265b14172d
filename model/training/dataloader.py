"""Batches of blocks of a token store. The blocks are a pure function of (store, seed, step, row): no state to save.

A run that resumes, with any number of ranks and any micro-batch size, gets the same blocks as one that was never
interrupted.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from model.config import GPTConfig
from model.device import free_memory
from model.network.ngrams import MAX_TOKENS, TOKEN_BYTES
from model.training.permutation import GOLDEN, mix, permute
from pipeline.errors import BadConfig, BadData
from pipeline.tokens.store import TokenArray

ORDERS = ("random", "epoch")
RESIDENT = ("auto", "yes", "no")

_HALF = np.uint64(32)
_CHUNK_SAMPLES = 1 << 12  # sampled together: numpy takes little longer for them than for a small batch
_PREFETCH = 2  # batches ahead of the device: one that is ready, one in preparation
_COPY_TOKENS = 1 << 25  # per copy to the device


@dataclass(frozen=True)
class Sampler:
    """Start positions of blocks of `block_size` tokens and one more, the last target.

    Samples are indexed through all steps: row `row` of a step with `rows` rows is sample step * rows + row.
    "random" draws each uniformly from all positions, with replacement. "epoch" takes adjacent blocks, so that each
    token is a target once an epoch, in another order each epoch. The position of the first block changes from epoch to
    epoch, so that a token is not always seen with the same context and the last tokens are not always left out.
    With `document_starts`, the sorted int64 offsets of all documents, the first of which is 0, a block that begins at
    most half a block after the start of its document begins there. An epoch then repeats some tokens and lacks others.
    `key` is the key of the store. Raises BadData if the store is too short for a single block.
    """

    tokens: TokenArray
    block_size: int
    seed: int
    order: str
    key: str
    document_starts: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise BadConfig(
                f"order must be one of {', '.join(ORDERS)}, got {self.order}", hint="use --set order=random"
            )
        count = len(self.tokens)
        if count <= self.block_size:
            raise BadData(
                f"{count:,} training tokens are too few for a block of {self.block_size}",
                hint=f"{f'use --set block_size={count // 4}, or ' if count >= 32 else ''}tokenize more text",
            )

    @functools.cached_property
    def blocks_per_epoch(self) -> int:
        """Number of adjacent blocks that fit wherever the first one begins, at least one."""
        return max((len(self.tokens) - self.block_size) // self.block_size, 1)

    def epoch(self, step: int, rows: int) -> float:
        """Return the number of epochs, with fraction, before a step of `rows` rows."""
        return step * rows / self.blocks_per_epoch

    def offsets(self, step: int, rows: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Return the int64 offsets (count,) of the rows [first, first + count) of a step with `rows` rows."""
        start = step * rows + first
        stop = start + (rows - first if count is None else count)
        chunks = [
            self._chunk_offsets(chunk)[max(start - chunk * _CHUNK_SAMPLES, 0) : stop - chunk * _CHUNK_SAMPLES]
            for chunk in range(start // _CHUNK_SAMPLES, -(-stop // _CHUNK_SAMPLES))
        ]
        return np.concatenate([np.empty(0, np.int64), *chunks])

    def batch(self, step: int, rows: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Return ids (count, block_size + 1) in the store's dtype: inputs are `[:, :-1]`, targets `[:, 1:]`."""
        return self.tokens.blocks(self.offsets(step, rows, first, count), self.block_size + 1)

    @functools.cached_property
    def _chunk_offsets(self) -> Callable[[int], np.ndarray]:
        """Offsets of a chunk of samples by its index. Chunks are cached, since several steps share one."""

        @functools.lru_cache(maxsize=2)
        def chunk_offsets(chunk: int) -> np.ndarray:
            samples = np.arange(chunk * _CHUNK_SAMPLES, (chunk + 1) * _CHUNK_SAMPLES, dtype=np.int64)
            return self._aligned(self._random(samples) if self.order == "random" else self._epochs(samples))

        return chunk_offsets

    def _random(self, samples: np.ndarray) -> np.ndarray:
        """Draw offsets by splitmix64. The modulo makes some likelier than others, by count / 2**64 at most."""
        count = len(self.tokens) - self.block_size
        hashes = mix(self._key + samples.view(np.uint64) * GOLDEN)
        return (hashes % np.uint64(count)).view(np.int64)

    def _epochs(self, samples: np.ndarray) -> np.ndarray:
        epochs, indices = np.divmod(samples, self.blocks_per_epoch)
        keys = self._key + epochs.view(np.uint64) * GOLDEN
        # Multiples of the golden ratio spread evenly, so that even few epochs start at well separated offsets.
        slack = len(self.tokens) - self.blocks_per_epoch * self.block_size
        starts = (keys >> _HALF) * np.uint64(slack) >> _HALF
        blocks = permute(indices.view(np.uint64), self.blocks_per_epoch, mix(keys))
        offsets: np.ndarray = (starts + blocks * np.uint64(self.block_size)).view(np.int64)
        return offsets

    def _aligned(self, offsets: np.ndarray) -> np.ndarray:
        if self.document_starts is None:
            return offsets
        starts = self.document_starts[np.searchsorted(self.document_starts, offsets, side="right") - 1]
        return np.where(offsets - starts <= self.block_size // 2, starts, offsets)

    @functools.cached_property
    def _key(self) -> np.ndarray:
        """uint64 hash (1,) of store and seed: an array, since numpy wraps arrays silently and warns for scalars."""
        digest = hashlib.sha256(f"{self.key} {self.seed}".encode()).digest()
        return np.frombuffer(digest, "<u8", 1)


def to_device(ids: np.ndarray, device: torch.device) -> Tensor:
    """Convert uint16 or uint32 ids to int64 on a device."""
    if device.type == "cpu":
        return torch.from_numpy(ids.astype(np.int64))
    return widen(_send(_pinned(ids.view(_signed(ids.dtype)), device), device))


def _send(narrow: Tensor, device: torch.device) -> Tensor:
    """Copy ids to a device, on CUDA without waiting for the copy.

    MPS reads pageable memory even after it was freed, unless the copy is waited for (pytorch issue 189690).
    """
    return narrow.to(device, non_blocking=device.type == "cuda")


def widen(narrow: Tensor) -> Tensor:
    """Convert int16 or int32 that hold the bits of unsigned ids to int64; torch supports few operations on unsigned."""
    return narrow.long() & (0xFFFF if narrow.dtype == torch.int16 else 0xFFFF_FFFF)


def _pinned(integers: np.ndarray, device: torch.device) -> Tensor:
    """Return signed integers, in pinned memory for CUDA so that the copy is asynchronous.

    torch reuses a pinned buffer only after the copies out of it have finished.
    """
    tensor = torch.from_numpy(integers)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _signed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"i{dtype.itemsize}")


class Batches(Protocol):
    """Rows of each step, as a pure function of their numbers; `tokens` are the store that they come from."""

    @property
    def tokens(self) -> TokenArray: ...

    def batch(self, step: int, rows: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Return the rows [first, first + count) of a step of `rows` rows."""


class Loader:
    """Endless iterator over batches on a device, one for each step from `step` on: the rows [first, first + count) of
    steps of `rows` rows. With a Sampler they are int64 ids (count, block_size + 1).

    There are three ways of loading, which give the same batches:

    resident  all of the store is copied to the device, which gathers the blocks: "yes", "no", or "auto", which does so
              on CUDA if the store takes less than an eighth of the free memory
    threaded  a thread prepares the next batches while the device computes; None: on CUDA
    otherwise `next` gathers the blocks

    Also a context manager that stops the thread; errors in the thread are raised by `next`. `waited` is the time in
    seconds that calls of `next` and `prepare` took.
    """

    def __init__(
        self,
        sampler: Batches,
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
        self._prepared: Tensor | None = None  # what `next` returns

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and free the store on the device, if any."""
        self._store = None
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Tensor:
        self.prepare()
        ids, self._prepared = self._prepared, None
        assert ids is not None
        return ids

    def prepare(self) -> None:
        """Load the next batch, if it is not loaded yet, for instance while the device computes."""
        if self._prepared is not None:
            return
        start = time.monotonic()
        if self._store is not None:
            self._prepared = self._gather(self._store)
        elif self._thread is not None:
            self._prepared = self._prefetch(self._thread)
        else:
            self._prepared = to_device(self._sampler.batch(self._step, *self._rows), self._device)
        self._step += 1
        self.waited += time.monotonic() - start

    def _gather(self, store: Tensor) -> Tensor:
        assert isinstance(self._sampler, Sampler), "packed rows are not gathered from a resident store"
        offsets = _send(_pinned(self._sampler.offsets(self._step, *self._rows), self._device), self._device)
        return widen(store[offsets[:, None] + torch.arange(self._sampler.block_size + 1, device=self._device)])

    def _prefetch(self, thread: ThreadPoolExecutor) -> Tensor:
        while len(self._pending) <= _PREFETCH:
            self._pending.append(thread.submit(self._load, self._step + len(self._pending)))
        narrow = self._pending[0].result()
        self._pending.popleft()
        return widen(_send(narrow, self._device))

    def _load(self, step: int) -> Tensor:
        ids = self._sampler.batch(step, *self._rows)
        return _pinned(ids.view(_signed(ids.dtype)), self._device)


def is_resident(option: str, tokens: TokenArray, device: torch.device) -> bool:
    """Return True if all of a store should be on the device. Raises BadConfig for an unknown option."""
    if option not in RESIDENT:
        raise BadConfig(f"resident must be one of {', '.join(RESIDENT)}, got {option}", hint="--set resident=auto")
    if option != "auto" or device.type != "cuda":
        return option == "yes"
    return len(tokens) * tokens.dtype.itemsize < free_memory(device) / 8


def tokens_bytes(tokens: TokenArray, model: GPTConfig, device: torch.device, *, is_resident: bool) -> int:
    """Return the bytes that a store needs on the device: its ids if they are resident, on a CPU its n-grams, if any."""
    counted = min(len(tokens), MAX_TOKENS) * (device.type == "cpu")
    return len(tokens) * tokens.dtype.itemsize * is_resident + counted * TOKEN_BYTES * model.ngram


def _on_device(tokens: TokenArray, device: torch.device) -> Tensor:
    """Copy all ids to the device as narrow integers, in chunks, so that host memory never holds a second copy."""
    signed = _signed(tokens.dtype)
    store = torch.empty(len(tokens), dtype=torch.int16 if signed.itemsize == 2 else torch.int32, device=device)
    end = 0
    for segment in tokens.segments:
        for start in range(0, len(segment), _COPY_TOKENS):
            piece = torch.from_numpy(np.array(segment[start : start + _COPY_TOKENS]).view(signed))
            store[end : end + len(piece)] = piece
            end += len(piece)
    return store
