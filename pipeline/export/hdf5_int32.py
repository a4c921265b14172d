"""train-llm-from-scratch: `train.h5` and `val.h5` with one resizable dataset `tokens`, int32, 1-D.

int32 because its loader passes the ids to `nn.Embedding`, which does not accept unsigned ids.
Source: train-llm-from-scratch's scripts/prepare_pretrain_data.py and data_loader/data_loader.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import export_mismatch
from pipeline.export import arrays
from pipeline.export.format import Span, TokenFormat, TokenSource, open_source
from pipeline.runtime import workers
from pipeline.store import artifact
from pipeline.tokens import segments

_DTYPE = "<i4"
# ids per HDF5 chunk: 256 KiB. A resizable dataset must be chunked. Its loader reads one short block at a time, and HDF5
# reads a complete chunk for it, so chunks are small.
_HDF5_CHUNK = 1 << 16


def _write(source: TokenSource, folder: Path) -> None:
    # In a separate process: on a full disk, HDF5 crashes the interpreter at exit (docs/design/reliability.md, M10).
    for split in source.splits:
        workers.run_isolated(_write_file, source.artifact.path, split.name, folder / f"{split.name}.h5")


def _write_file(artifact_path: Path, split_name: str, target: Path) -> None:
    """Write a split of an artifact to the new file `target`."""
    import h5py

    source = open_source(artifact.read(artifact_path))
    (split,) = (split for split in source.splits if split.name == split_name)
    try:
        with h5py.File(target, "x") as file:
            shape, chunks = (len(split.ids),), (_HDF5_CHUNK,)
            dataset = file.create_dataset("tokens", shape, _DTYPE, maxshape=(None,), chunks=chunks)
            start = 0
            for block in arrays.blocks(split.ids):
                dataset[start : start + len(block)] = block
                start += len(block)
    except OSError as error:
        if error.errno:  # HDF5 writes a paragraph
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
                raise export_mismatch(path.name, f"`tokens` is not a 1-D array of {_DTYPE}")
            for start in range(0, len(dataset), arrays.BLOCK):
                yield Span(split, path.name, dataset[start : start + arrays.BLOCK])


FORMAT = TokenFormat("hdf5-int32", _write, _read, itemsize=4)
