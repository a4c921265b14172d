"""Megatron-LM, and from it gpt-neox and NeMo: `NAME_train_document.bin` and its index `.idx`, over all segments.

    .idx    MMIDIDX\\0\\0 | u64 version | u8 dtype code | u64 sequences S | u64 documents + 1
            | i32[S] lengths in tokens | i64[S] byte offsets | i64[documents + 1] first sequence of each document

Source: Megatron-LM's megatron/core/datasets/indexed_dataset.py. A document is one sequence.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import export_mismatch
from pipeline.export import arrays
from pipeline.export.format import DocumentLengths, Span, TokenFormat, TokenSource
from pipeline.tokens import segments

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC, _VERSION = b"MMIDIDX\x00\x00", 1
_DTYPES = {8: "<u2", 4: "<i4"}


def _write(source: TokenSource, folder: Path) -> None:
    for split in source.splits:
        stem = f"{source.name}_{split.name}_document"
        arrays.write_ids(folder / f"{stem}.bin", arrays.blocks(split.ids))
        (folder / f"{stem}.idx").write_bytes(segments.megatron_index(source.lengths(split.name), source.dtype))


def _read(folder: Path) -> Iterator[Span]:
    for split in segments.SPLITS:
        for path in folder.glob(f"*_{split}_document.bin"):
            dtype, _, _ = _read_header(path.with_suffix(".idx"))
            for ids in arrays.read_ids(path, dtype):
                yield Span(split, path.name, ids)


def _read_header(path: Path) -> tuple[str, int, int]:
    """Return (dtype, number of sequences, number of document indices) from the header of an index."""
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise export_mismatch(path.name, f"{len(header)} bytes are too short for a Megatron index")
    magic, version, code, sequences, documents = _HEADER.unpack(header)
    if (magic, version) != (_MAGIC, _VERSION) or code not in _DTYPES:
        raise export_mismatch(path.name, "not a Megatron index of u16 or i32 ids")
    return _DTYPES[code], sequences, documents


def _read_lengths(folder: Path, split: str) -> DocumentLengths:
    (path,) = folder.glob(f"*_{split}_document.idx")
    dtype, count, documents = _read_header(path)
    if path.stat().st_size != _HEADER.size + 12 * count + 8 * documents or documents != count + 1:
        raise export_mismatch(path.name, f"{path.stat().st_size:,} bytes do not fit an index of {count:,} sequences")
    with open(path, "rb") as file:
        file.seek(_HEADER.size)
        lengths = np.fromfile(file, "<i4", count)
        offsets = np.fromfile(file, "<i8", count)
        first_sequences = np.fromfile(file, "<i8", documents)
    ends = np.cumsum(lengths, dtype=np.int64) * np.dtype(dtype).itemsize
    if offsets[0] or not np.array_equal(offsets[1:], ends[:-1]):
        raise export_mismatch(path.name, "its offsets are not the sums of its lengths")
    if not np.array_equal(first_sequences, np.arange(documents)):
        raise export_mismatch(path.name, "its documents are not single sequences")
    return DocumentLengths(path.name, lengths)


FORMAT = TokenFormat("megatron", _write, _read, _read_lengths)
