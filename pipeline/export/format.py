"""Definition of an export format, the data it is written from, and the data it is read back as."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import BadData
from pipeline.store.artifact import Artifact
from pipeline.tokens import segments
from pipeline.tokens.store import TokenArray, TokenStore, open_store

MAX_VOCAB_SIZE = 1 << 31  # every id fits into an int32, in which Megatron and HDF5 hold them


@dataclass(frozen=True)
class Split:
    """A split that is not empty."""

    name: str
    ids: TokenArray


@dataclass(frozen=True)
class TokenSource:
    """An opened tokens artifact to export. `shard_tokens` is the number of ids in a file, 0 for the format's own."""

    artifact: Artifact
    store: TokenStore
    splits: tuple[Split, ...]
    shard_tokens: int = 0

    @property
    def name(self) -> str:
        return self.artifact.manifest.name

    @property
    def dtype(self) -> str:
        """dtype of the ids on disk: `<u2` or `<u4`."""
        return str(self.artifact.manifest.counts["dtype"])

    def lengths(self, split_name: str) -> np.ndarray:
        """Return the int32 lengths of the documents of a split, end-of-text included.

        Raises BadData when they do not add up to the tokens of the split.
        """
        lengths = segments.document_lengths(self.artifact, split_name)
        expected = sum(len(split.ids) for split in self.splits if split.name == split_name)
        if (total := int(lengths.sum(dtype=np.int64))) != expected:
            raise BadData(
                f"{self.artifact.path}: the {split_name} index covers {total:,} tokens, expected {expected:,}",
                hint="`tokenize` it again",
            )
        return lengths


def open_source(artifact: Artifact, shard_tokens: int = 0) -> TokenSource:
    """Open a tokens artifact for export. Raises BadData if it is damaged."""
    store = open_store(artifact)
    arrays = {"train": store.train, "val": store.val}
    splits = tuple(Split(name, ids) for name, ids in arrays.items() if len(ids))
    return TokenSource(artifact, store, splits, shard_tokens)


@dataclass(frozen=True)
class Span:
    """Consecutive ids of a split, read back from `file`, a path inside the export."""

    split: str
    file: str
    ids: np.ndarray


@dataclass(frozen=True)
class DocumentLengths:
    """Lengths in tokens of the documents of a split in order, read back from `file`, a path inside the export."""

    file: str
    lengths: np.ndarray


@dataclass(frozen=True)
class TokenFormat:
    """One format of another tool.

    `write` fills an empty folder. `read` yields all ids of that folder, split by split, in the order and with the
    end-of-text ids of our own store. It uses only the headers and indexes of the format, and raises BadData if they
    contradict the bytes. `read_lengths` does the same for document lengths, in formats that store them. `check` raises
    BadData if other files of the folder, such as a mask, differ from the source.
    `has_mask` is True if the format can store the mask of conversations. `max_vocab_size` is the largest vocabulary
    that fits. `itemsize` is the number of bytes per id if it differs from the store's. `warning` returns a warning
    about this export for the user, or "". `has_shards` is True if the user may choose the size of files.
    """

    name: str
    write: Callable[[TokenSource, Path], None]
    read: Callable[[Path], Iterator[Span]]
    read_lengths: Callable[[Path, str], DocumentLengths] | None = None
    max_vocab_size: int = MAX_VOCAB_SIZE
    itemsize: int | None = None
    check: Callable[[Path, TokenSource], None] | None = None
    warning: Callable[[TokenSource], str] = lambda source: ""
    has_shards: bool = False
    has_mask: bool = False
