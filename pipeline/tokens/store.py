"""The token store: segments of token ids on disk, read as one array.

    train-00000-0000.bin    token ids, little-endian, no header: <u2 when the vocabulary fits 65,536 ids, else <u4
    train-00000-0000.idx    Megatron's index of the same bytes: where each document begins
    train-00000-0000.src    where each document lies in its source: <u8 byte offsets in the text of that file
    train.h5                with --format hdf5 or both: the same ids as one dataset `tokens`
    tokenizer.json          the tokenizer that made them

The numbers are those of an input file and of a unit of work in it. `val-*` likewise. A document is its ids followed
by the end-of-text id.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from pipeline import tokenizers
from pipeline.errors import BadData
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer
from pipeline.tokens.hdf5 import _map_hdf5
from pipeline.tokens.segments import SPLITS, _map


@dataclass(frozen=True)
class TokenArray:
    """The ids of one split as one array, over one or more segments that stay on disk."""

    segments: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.segments else 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the ids on disk, uint16 or uint32."""
        return self.segments[0].dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """int64 ids of `[start, stop)`, which may lie across segments."""
        return np.concatenate([np.empty(0, np.int64), *self._pieces(start, stop)]).astype(np.int64, copy=False)

    def blocks(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Ids of shape (len(starts), length) in the dtype of the store: row i is `[starts[i], starts[i] + length)`.

        Out of one segment all rows are copied in one call, each as it lies, eight times as fast as gathering ids by
        their indices.
        """
        if len(self.segments) == 1:
            (ids,) = self._plain
            windows = (len(ids) - length + 1, length)  # all that there are, one over the other
            return np.ndarray(windows, ids.dtype, ids, strides=(ids.itemsize, ids.itemsize))[starts]
        out = np.empty((len(starts), length), self.dtype)
        places = np.searchsorted(self._ends, starts, side="right")
        within = starts - self._begins[places]
        for row, (place, first) in enumerate(zip(places.tolist(), within.tolist(), strict=True)):
            whole = self._plain[place][first : first + length]
            if len(whole) < length:  # the block goes on in the next segment
                start = int(starts[row])
                whole = np.concatenate(list(self._pieces(start, start + length)))
            out[row] = whole
        return out

    def _pieces(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The ids of `[start, stop)` as they lie, segment by segment."""
        for place in range(int(np.searchsorted(self._ends, start, side="right")), len(self.segments)):
            first = int(self._begins[place])
            if first >= stop:
                break
            yield self._plain[place][max(start - first, 0) : stop - first]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """int64 place after the last token of each segment."""
        return np.cumsum([len(segment) for segment in self.segments], dtype=np.int64)

    @functools.cached_property
    def _begins(self) -> np.ndarray:
        """int64 place of the first token of each segment."""
        return self._ends - [len(segment) for segment in self.segments]

    @functools.cached_property
    def _plain(self) -> tuple[np.ndarray, ...]:
        """The segments without np.memmap's own bookkeeping, which takes longer than the copy of a block."""
        return tuple(np.asarray(segment) for segment in self.segments)


@dataclass(frozen=True)
class TokenStore:
    """A tokens artifact, opened: its two splits and the tokenizer that made them."""

    artifact: Artifact
    tokenizer: Tokenizer
    train: TokenArray
    val: TokenArray

    @property
    def key(self) -> str:
        """A hash of what the ids were made from, in hex: one for memmap and HDF5, whose artifacts are different."""
        manifest = self.artifact.manifest
        options = {name: value for name, value in manifest.options.items() if name != "format"}
        inputs = [[entry.role, entry.digest] for entry in manifest.inputs]
        content = [options, inputs, manifest.tokenizer, [len(self.train), len(self.val)]]
        return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()


def open_store(found: Artifact) -> TokenStore:
    """Open a tokens artifact, memmap or HDF5. Raises BadData when files are missing or not what the manifest says."""
    artifact.require_whole(found)
    dtype = found.manifest.counts["dtype"]
    names = [record.name for record in found.manifest.files]
    train, val = (_open_split(found, names, split, dtype) for split in SPLITS)
    for split, array in (("train", train), ("val", val)):
        if len(array) != found.manifest.counts[f"{split}_tokens"]:
            raise BadData(f"{found.path}: {len(array):,} {split} tokens, the manifest says otherwise")
    return TokenStore(found, tokenizers.open_folder(found.path), train, val)


def _open_split(found: Artifact, names: Sequence[str], split: str, dtype: str) -> TokenArray:
    segments = [name for name in names if name.startswith(f"{split}-") and name.endswith(".bin")]
    if segments:
        return TokenArray(tuple(_map(found.file(name), dtype) for name in segments))
    return TokenArray((_map_hdf5(found.file(f"{split}.h5"), dtype),))
