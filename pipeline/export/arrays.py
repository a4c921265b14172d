"""What all formats do with ids and files: take ids in pieces, write and read them, link what is already there."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.errors import BadData, broken
from pipeline.export.format import Split
from pipeline.store import files
from pipeline.tokens.store import TokenArray

_PIECE = 1 << 22  # ids; 8 or 16 MiB


def pieces(array: TokenArray, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """The ids of `[start, stop)` in order, some MiB at a time."""
    stop = len(array) if stop is None else stop
    first = 0
    for segment in array.segments:
        if first >= stop:
            return
        high = min(stop - first, len(segment))
        for at in range(max(start - first, 0), high, _PIECE):
            yield _read(segment, at, min(at + _PIECE, high))
        first += len(segment)


def _read(segment: np.ndarray, start: int, stop: int) -> np.ndarray:
    """`segment[start:stop]`, by reading the file where the segment is a map of one.

    What is touched of a map counts as this process's memory for as long as the map stands, and a disk that fails
    below a map kills the process instead of raising OSError.
    """
    if not isinstance(segment, np.memmap) or not isinstance(segment.base, mmap.mmap) or not segment.filename:
        return segment[start:stop]
    offset = segment.offset + start * segment.itemsize
    ids = np.fromfile(segment.filename, segment.dtype, stop - start, offset=offset)
    if len(ids) < stop - start:
        raise BadData(f"{segment.filename}: shorter than when it was opened", hint="`tokenize` it again")
    return ids


def cuts(total: int, size: int, least: int = 1) -> list[tuple[int, int]]:
    """`[start, stop)` of each file when `total` ids go into files of `size`.

    What is left over for the last file is put to the file before it when it is less than `least`.
    """
    starts = list(range(0, total, size))
    if len(starts) > 1 and total - starts[-1] < least:
        starts.pop()
    return list(pairwise([*starts, total]))


def write_ids(path: Path, ids: Iterable[np.ndarray], header: bytes = b"") -> None:
    """A new file of `header` and then ids."""
    with open(path, "xb") as file:
        file.write(header)
        for piece in ids:
            file.write(piece.data)


def write_split(split: Split, path: Path) -> None:
    """All ids of a split as one file without a header: the segment itself where there is only one."""
    if split.bin:
        files.link_or_copy(split.bin, path)
    else:
        write_ids(path, pieces(split.ids))


def read_ids(path: Path, dtype: str, offset: int = 0) -> Iterator[np.ndarray]:
    """The ids from byte `offset` to the end of a file, some MiB at a time. BadData when the last one is cut."""
    size = path.stat().st_size - offset
    if size < 0 or size % np.dtype(dtype).itemsize:
        raise broken(path.name, f"{size:,} bytes of ids are no whole number of {dtype}")
    with open(path, "rb") as file:
        file.seek(offset)
        while len(piece := np.fromfile(file, dtype, _PIECE)):
            yield piece


def can_link(source: Path, folder: Path) -> bool:
    """Whether both lie on one file system, so that a hard link is likely to succeed."""
    return source.stat().st_dev == folder.stat().st_dev
