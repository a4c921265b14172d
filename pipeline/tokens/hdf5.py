"""Token arrays as HDF5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import BadData
from pipeline.tokens.segments import _map


def write_hdf5(path: Path, segments: Sequence[Path], dtype: str, attributes: dict[str, str | int]) -> None:
    """One HDF5 file from the segments of a split: one contiguous 1-D dataset `tokens` of their exact length.

    Contiguous and not chunked: a random block is then one read at an offset, and the array can be memory-mapped
    where it lies. Its integrity is in the manifest's sha256. Run it in a process of its own: on a full disk HDF5
    takes the interpreter down when it exits (reference/reliability.md, M10).
    """
    import h5py

    total = sum(file.stat().st_size for file in segments) // np.dtype(dtype).itemsize
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("tokens", shape=(total,), dtype=dtype)
        start = 0
        for segment in segments:
            ids = _map(segment, dtype)
            for at in range(0, len(ids), 1 << 24):
                piece = ids[at : at + (1 << 24)]
                dataset[start : start + len(piece)] = piece
                start += len(piece)
        for name, value in attributes.items():
            dataset.attrs[name] = value


def _map_hdf5(path: Path, dtype: str) -> np.ndarray:
    """The dataset `tokens` of an HDF5 file, memory-mapped; anything but a plain contiguous array is refused."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("tokens", getlink=True), h5py.HardLink):  # not followed: it may lead elsewhere
                raise BadData(f"{path}: `tokens` does not lie in the file itself", hint="`tokenize` it again")
            dataset = file["tokens"]
            plain = isinstance(dataset, h5py.Dataset) and dataset.ndim == 1 and dataset.dtype == np.dtype(dtype)
            if not plain or dataset.external or dataset.is_virtual or dataset.chunks:
                raise BadData(f"{path}: `tokens` is not a contiguous array of {dtype}", hint="`tokenize` it again")
            count, offset = dataset.shape[0], dataset.id.get_offset()
            if count and offset is None:
                raise BadData(f"{path}: `tokens` does not lie in the file itself", hint="`tokenize` it again")
    except (OSError, KeyError) as error:
        raise BadData(f"{path}: not a token file: {error}", hint="`tokenize` it again") from None
    return np.memmap(path, dtype, "r", offset=offset, shape=(count,)) if count else np.empty(0, dtype)
