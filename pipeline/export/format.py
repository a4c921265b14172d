"""What a format is, what it is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import BadData
from pipeline.store.artifact import Artifact
from pipeline.tokens import segments
from pipeline.tokens import store as tokens
from pipeline.tokens.store import TokenArray, TokenStore

WIDEST = 1 << 31  # ids are below it everywhere: Megatron and HDF5 hold them as int32


@dataclass(frozen=True)
class Split:
    """One split that is not empty. `bin` and `idx` are the files of the segment that holds all of it, if one does."""

    name: str
    ids: TokenArray
    bin: Path | None
    idx: Path | None


@dataclass(frozen=True)
class Source:
    """The tokens artifact to export, opened."""

    artifact: Artifact
    store: TokenStore
    splits: tuple[Split, ...]

    @property
    def name(self) -> str:
        return self.artifact.manifest.name

    @property
    def dtype(self) -> str:
        """`<u2` or `<u4`, as the ids lie on disk."""
        return str(self.artifact.manifest.counts["dtype"])

    def lengths(self, split: str) -> np.ndarray:
        """int32 lengths of the documents of a split, end-of-text included. BadData when they are not its tokens."""
        lengths = segments.document_lengths(self.artifact, split)
        expected = sum(len(each.ids) for each in self.splits if each.name == split)
        if (total := int(lengths.sum(dtype=np.int64))) != expected:
            raise BadData(
                f"{self.artifact.path}: the {split} index is of {total:,} tokens, there are {expected:,}",
                hint="`tokenize` it again",
            )
        return lengths


def open_source(found: Artifact) -> Source:
    """Open a tokens artifact for export. Raises BadData as `tokens.open_store` does."""
    store = tokens.open_store(found)
    arrays = {"train": store.train, "val": store.val}
    return Source(found, store, tuple(_split(found, name, ids) for name, ids in arrays.items() if len(ids)))


def _split(found: Artifact, split: str, ids: TokenArray) -> Split:
    sizes = {record.name: record.size for record in found.manifest.files}
    full = [name for name in sizes if name.startswith(f"{split}-") and name.endswith(".bin") and sizes[name]]
    if len(full) != 1:
        return Split(split, ids, None, None)
    path = found.file(full[0])
    return Split(split, ids, path, path.with_suffix(".idx"))


@dataclass(frozen=True)
class Span:
    """Some ids of a split in order, as they were read back from the exported file `file`, a path inside the export."""

    split: str
    file: str
    ids: np.ndarray


@dataclass(frozen=True)
class Borders:
    """Lengths in tokens of the documents of a split in order, as the exported file `file` keeps them."""

    file: str
    lengths: np.ndarray


@dataclass(frozen=True)
class Format:
    """One format of another tool: data, and two or three small functions.

    `write` fills an empty folder. `read` gives all ids of that folder split by split, in the order and with the
    end-of-text ids of our own store, by the format's own headers and indexes alone; it raises BadData where they
    contradict the bytes. So does `borders`, for formats that say where documents end. `widest` is the largest
    vocabulary that fits; `itemsize` the bytes an id takes, where that is not what it takes in the store; `links`
    says that a split of one segment costs no space.
    """

    name: str
    write: Callable[[Source, Path], None]
    read: Callable[[Path], Iterator[Span]]
    borders: Callable[[Path, str], Borders] | None = None
    widest: int = WIDEST
    itemsize: int | None = None
    links: bool = False
