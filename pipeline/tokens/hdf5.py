"""Token arrays as HDF5 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadData
from pipeline.tokens.segments import memmap_ids

TOKENS, MASK = "tokens", "mask"
_COPY = 1 << 24  # tokens copied at a time


def write_hdf5(
    path: Path,
    segments: Sequence[Path],
    dtype: str,
    attributes: dict[str, str | int],
    masks: Sequence[Path] | None = None,
) -> None:
    """Write the segments of a split as one HDF5 file with the 1-D dataset `tokens`, of their exact total length.

    The `masks` of conversations become a dataset `mask` of the same length, of uint8.

    The dataset is contiguous, not chunked, so that a random block is one read at an offset and the array can be
    memory-mapped in place. The manifest's sha256 guards its integrity. Run this in a separate process: on a full disk
    HDF5 crashes the interpreter at exit (docs/design/reliability.md, M10).
    """
    import h5py

    with h5py.File(path, "w") as file:
        dataset = _copy(file, TOKENS, segments, dtype)
        if masks is not None:
            _copy(file, MASK, masks, "u1")
        for name, value in attributes.items():
            dataset.attrs[name] = value


def _copy(file: Any, name: str, paths: Sequence[Path], dtype: str) -> Any:
    """Write arrays on disk, one after the other, as one dataset."""
    total = sum(path.stat().st_size for path in paths) // np.dtype(dtype).itemsize
    dataset = file.create_dataset(name, shape=(total,), dtype=dtype)
    start = 0
    for path in paths:
        values = memmap_ids(path, dtype)
        for offset in range(0, len(values), _COPY):
            block = values[offset : offset + _COPY]
            dataset[start : start + len(block)] = block
            start += len(block)
    return dataset


def memmap_hdf5(path: Path, dtype: str, name: str = TOKENS) -> np.ndarray:
    """Return the dataset `tokens` of an HDF5 file, or another one, memory-mapped.

    Raises BadData unless it is a plain contiguous array stored in this file itself.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):  # a soft link may lead to another file
                raise BadData(f"{path}: `{name}` is not stored in the file itself", hint="`tokenize` it again")
            dataset = file[name]
            is_plain = isinstance(dataset, h5py.Dataset) and dataset.ndim == 1 and dataset.dtype == np.dtype(dtype)
            if not is_plain or dataset.external or dataset.is_virtual or dataset.chunks:
                raise BadData(f"{path}: `{name}` is not a contiguous array of {dtype}", hint="`tokenize` it again")
            count, offset = dataset.shape[0], dataset.id.get_offset()
            if count and offset is None:
                raise BadData(f"{path}: `{name}` is not stored in the file itself", hint="`tokenize` it again")
    except (OSError, KeyError) as error:
        raise BadData(f"{path}: not a token file: {error}", hint="`tokenize` it again") from None
    return np.memmap(path, dtype, "r", offset=offset, shape=(count,)) if count else np.empty(0, dtype)
