"""Reading and writing of token ids, shared by all formats."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.errors import BadData, export_mismatch
from pipeline.tokens.segments import IdsFile
from pipeline.tokens.store import TokenArray

BLOCK = 1 << 22  # ids per block: 8 or 16 MiB


def blocks(array: TokenArray, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Yield the ids of `[start, stop)` in order, in blocks of a few MiB."""
    stop = len(array) if stop is None else stop
    segment_start = 0
    for segment in array.segments:
        if segment_start >= stop:
            return
        segment_stop = min(stop - segment_start, len(segment))
        for block_start in range(max(start - segment_start, 0), segment_stop, BLOCK):
            yield _read_block(segment, block_start, min(block_start + BLOCK, segment_stop))
        segment_start += len(segment)


def _read_block(segment: np.ndarray | IdsFile, start: int, stop: int) -> np.ndarray:
    """Return `segment[start:stop]`, read from the file if the segment is memory-mapped.

    Pages of a map that were touched count as memory of this process as long as the map exists, and a failing disk
    below a map kills the process instead of raising OSError.
    """
    if not isinstance(segment, np.memmap) or not isinstance(segment.base, mmap.mmap) or not segment.filename:
        return segment[start:stop]
    offset = segment.offset + start * segment.itemsize
    ids = np.fromfile(segment.filename, segment.dtype, stop - start, offset=offset)
    if len(ids) < stop - start:
        raise BadData(f"{segment.filename}: shorter than when it was opened", hint="`tokenize` it again")
    return ids


def file_ranges(total: int, size: int, min_last: int = 1) -> list[tuple[int, int]]:
    """Return `[start, stop)` of each file when `total` ids are split into files of `size` ids.

    A last file of fewer than `min_last` ids is merged into the one before it.
    """
    starts = list(range(0, total, size))
    if len(starts) > 1 and total - starts[-1] < min_last:
        starts.pop()
    return list(pairwise([*starts, total]))


def write_ids(path: Path, ids: Iterable[np.ndarray], header: bytes = b"") -> None:
    """Write a new file: a header, then ids."""
    with open(path, "xb") as file:
        file.write(header)
        for block in ids:
            file.write(block.data)


def read_ids(path: Path, dtype: str, offset: int = 0) -> Iterator[np.ndarray]:
    """Yield the ids from byte `offset` to the end of a file, in blocks of a few MiB.

    Raises BadData when the last id is truncated.
    """
    size = path.stat().st_size - offset
    if size < 0 or size % np.dtype(dtype).itemsize:
        raise export_mismatch(path.name, f"{size:,} bytes of ids are not a multiple of the size of {dtype}")
    with open(path, "rb") as file:
        file.seek(offset)
        while len(block := np.fromfile(file, dtype, BLOCK)):
            yield block
