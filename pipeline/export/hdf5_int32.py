"""train-llm-from-scratch: `train.h5` and `val.h5` with one dataset `tokens`, int32, 1-D, that can grow.

int32 because its loader hands what it reads to `nn.Embedding`, which takes no unsigned ids.
Source: train-llm-from-scratch's scripts/prepare_pretrain_data.py and data_loader/data_loader.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import broken
from pipeline.export import arrays as stream
from pipeline.export.format import Format, Source, Span, open_source
from pipeline.runtime import workers as engines
from pipeline.store import artifact
from pipeline.tokens import segments

_DTYPE = "<i4"
# A dataset that can grow lies in chunks. A loader reads one short block at a time and HDF5 a whole chunk for it, so
# they are small: 256 KiB.
_CHUNK = 1 << 16
_PIECE = 1 << 22


def _write(source: Source, folder: Path) -> None:
    """In a process of its own: on a full disk HDF5 takes the interpreter down when it exits (reliability.md, M10)."""
    for split in source.splits:
        engines.isolated(_write_file, source.artifact.path, split.name, folder / f"{split.name}.h5")


def _write_file(path: Path, name: str, target: Path) -> None:
    """Write the split `name` of the artifact in `path` to the new file `target`."""
    import h5py

    (split,) = (each for each in open_source(artifact.read(path)).splits if each.name == name)
    try:
        with h5py.File(target, "x") as file:
            dataset = file.create_dataset("tokens", (len(split.ids),), _DTYPE, maxshape=(None,), chunks=(_CHUNK,))
            start = 0
            for piece in stream.pieces(split.ids):
                dataset[start : start + len(piece)] = piece
                start += len(piece)
    except OSError as error:
        if error.errno:  # HDF5 makes a paragraph of it
            raise OSError(error.errno, os.strerror(error.errno), target.name) from None
        raise


def _read(folder: Path) -> Iterator[Span]:
    import h5py

    for split in segments.SPLITS:
        path = folder / f"{split}.h5"
        if not path.exists():
            continue
        with h5py.File(path, "r") as file:
            dataset = file["tokens"]
            if dataset.dtype != np.dtype(_DTYPE) or dataset.ndim != 1:
                raise broken(path.name, f"`tokens` is no array of {_DTYPE}")
            for start in range(0, len(dataset), _PIECE):
                yield Span(split, path.name, dataset[start : start + _PIECE])


FORMAT = Format("hdf5-int32", _write, _read, itemsize=4)
