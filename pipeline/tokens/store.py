"""The token store: segments of token ids on disk, read as one array per split.

    train-00000-0000.bin    token ids, little-endian, no header: <u2 if the vocabulary has at most 65,536 ids, else <u4
    train-00000-0000.idx    Megatron's index of the same ids: the length and offset of each document
    train-00000-0000.mask   of conversations: a byte for each id, 1 if the id has a loss
    train-00000-0000.src    source of each document: <u8 byte offsets in the text of the input file
    train.h5                with --format hdf5 or both: the same ids as one dataset `tokens`, the masks as `mask`
    tokenizer.json          the tokenizer that encoded them

The two numbers are those of an input file and of a unit in it. `val-*` likewise. A document is its ids followed by
the end-of-text id. Of a preference pair, the chosen conversation is a document, and the rejected one the next.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from pipeline import tokenizers
from pipeline.errors import BadData
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer
from pipeline.tokens import hdf5
from pipeline.tokens.segments import MASK, SPLITS, IdsFile, document_lengths

_MAPPED = 64  # segments of a split that are open at once


@dataclass(frozen=True)
class TokenArray:
    """The ids of one split as one array over one or more segments, which stay on disk."""

    segments: tuple[np.ndarray | IdsFile, ...]

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.segments else 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the ids on disk, uint16 or uint32."""
        return self.segments[0].dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the ids of `[start, stop)` as int64; the range may span segments."""
        return np.concatenate([np.empty(0, np.int64), *self._slices(start, stop)]).astype(np.int64, copy=False)

    def blocks(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return ids of shape (len(starts), length) in the dtype on disk: row i is `[starts[i], starts[i] + length)`.

        With one segment, all rows are copied in one call over overlapping windows, eight times as fast as gathering
        ids by index.
        """
        if len(self.segments) == 1:
            ids = self._mapped(0)
            shape = (len(ids) - length + 1, length)
            windows = np.ndarray(shape, ids.dtype, ids, strides=(ids.itemsize, ids.itemsize))
            rows: np.ndarray = windows[starts]
            return rows
        out = np.empty((len(starts), length), self.dtype)
        segments = np.searchsorted(self._ends, starts, side="right")
        offsets = starts - self._begins[segments]
        for row, (segment, offset) in enumerate(zip(segments.tolist(), offsets.tolist(), strict=True)):
            block = self._mapped(segment)[offset : offset + length]
            if len(block) < length:  # the block continues in the next segment
                start = int(starts[row])
                block = np.concatenate(list(self._slices(start, start + length)))
            out[row] = block
        return out

    def _slices(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield the ids of `[start, stop)`, one slice per segment."""
        for segment in range(int(np.searchsorted(self._ends, start, side="right")), len(self.segments)):
            begin = int(self._begins[segment])
            if begin >= stop:
                break
            yield self.segments[segment][max(start - begin, 0) : stop - begin]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """int64 index after the last token of each segment."""
        return np.cumsum([len(segment) for segment in self.segments], dtype=np.int64)

    @functools.cached_property
    def _begins(self) -> np.ndarray:
        """int64 index of the first token of each segment."""
        return self._ends - [len(segment) for segment in self.segments]

    @functools.cached_property
    def _mapped(self) -> Callable[[int], np.ndarray]:
        """The ids of a segment by its index, without np.memmap's bookkeeping, which takes longer than copying a block.

        The segments used last stay mapped.
        """
        return functools.lru_cache(_MAPPED)(lambda segment: np.asarray(self.segments[segment]))


@dataclass(frozen=True)
class TokenStore:
    """An open tokens artifact: its two splits, of which `val` may be empty, and the tokenizer that encoded them.

    `chat` is "chat" for conversations and "preferences" for pairs of them, else "". Then each split has a mask, uint8
    of the same length, with 1 for each id that has a loss: those that the assistant writes.
    """

    artifact: Artifact
    tokenizer: Tokenizer
    train: TokenArray
    val: TokenArray
    chat: str = ""
    train_mask: TokenArray | None = None
    val_mask: TokenArray | None = None

    def document_lengths(self, split: str) -> np.ndarray:
        """Return the int64 lengths in tokens, end-of-text included, of the documents of a split, in order."""
        return document_lengths(self.artifact, split).astype(np.int64)

    @property
    def key(self) -> str:
        """Hash, in hex, of everything that decides the ids; equal for the memmap and HDF5 form of the same tokens."""
        manifest = self.artifact.manifest
        options = {name: value for name, value in manifest.options.items() if name != "format"}
        inputs = [[entry.role, entry.digest] for entry in manifest.inputs]
        content = [options, inputs, manifest.tokenizer, [len(self.train), len(self.val)]]
        return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()


def open_store(tokens: Artifact, *, is_intact: bool = False) -> TokenStore:
    """Open a tokens artifact, memmap or HDF5. Raises BadData if files are missing or do not match the manifest.

    With `is_intact` another process of this machine has just checked the files.
    """
    if not is_intact:
        artifact.require_intact(tokens)
    counts = tokens.manifest.require_counts("dtype", *(f"{split}_tokens" for split in SPLITS))
    train, val = (_open_split(tokens, split, counts["dtype"]) for split in SPLITS)
    chat = str(tokens.manifest.options.get("chat", ""))
    masks = [_open_split(tokens, split, "u1", MASK, hdf5.MASK) if chat else None for split in SPLITS]
    for split, array in (("train", train), ("val", val), *zip(SPLITS, masks, strict=True)):
        if array is None:
            continue
        if len(array) != (expected := counts[f"{split}_tokens"]):
            raise BadData(
                f"{tokens.path}: {len(array):,} {split} tokens, but the manifest lists {expected}",
                hint="`tokenize` it again",
            )
    return TokenStore(tokens, tokenizers.open_folder(tokens.path), train, val, chat, *masks)


def fit_of(tokens: Artifact) -> str:
    """Describe how well the tokenizer of tokens fits their text: "1.52 characters per token, 0.03% unknown"."""
    counts = tokens.manifest.counts
    characters = sum(counts.get(f"{split}_characters", 0) for split in SPLITS)
    ratio = f"{characters / max(counts['tokens'], 1):.2f} characters per token"
    if "unknown_characters" not in counts:
        return ratio
    return f"{ratio}, {counts['unknown_characters'] / max(characters, 1):.2%} unknown"


def _open_split(
    tokens: Artifact, split: str, dtype: str, suffix: str = ".bin", dataset: str = hdf5.TOKENS
) -> TokenArray:
    names = [record.name for record in tokens.manifest.files]
    parts = [name for name in names if name.startswith(f"{split}-") and name.endswith(suffix)]
    if parts:
        return TokenArray(tuple(IdsFile(tokens.file(name), dtype) for name in parts))
    if f"{split}.h5" in names:
        return TokenArray((hdf5.memmap_hdf5(tokens.file(f"{split}.h5"), dtype, dataset),))
    return TokenArray((np.empty(0, dtype),))  # nothing is held out
