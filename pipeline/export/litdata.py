"""litdata: folders `train` and `val` for `StreamingDataset(…, item_loader=TokensLoader(block_size))`.

    index.json         the chunks in order, the dtype of ids, and a stamp that identifies them in caches
    chunk-0-{i}.bin    <u4 number of items N | <u4[N+1] offsets of the items, with the end of the last | the items

Each chunk has one item, because TokensLoader cuts a chunk into blocks regardless of its items. It skips the ids at the
end of a chunk that do not fill a block.
Source: litdata's streaming/writer.py, streaming/item_loader.py and utilities/dataset_utilities.py.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import export_mismatch
from pipeline.export import arrays
from pipeline.export.format import Span, Split, TokenFormat, TokenSource
from pipeline.tokens import segments

_CHUNK_BYTES = 64 << 20  # bytes of ids: litdata's own default; above 4 GiB the offsets would overflow
_HEADER = struct.Struct("<III")
_DATA_FORMATS = {"<u2": "no_header_numpy:5", "<u4": "no_header_numpy:6"}  # indices into litdata's list of NumPy types
_SINGLE_ARRAY = '[1, {"type": null, "context": null, "children_spec": []}]'  # one array per item, as optree writes it


def _write(source: TokenSource, folder: Path) -> None:
    for split in source.splits:
        (folder / split.name).mkdir()
        chunks = _write_chunks(split, folder / split.name, np.dtype(source.dtype).itemsize)
        config = {
            "chunk_bytes": _CHUNK_BYTES,
            "chunk_size": None,
            "compression": None,
            "data_format": [_DATA_FORMATS[source.dtype]],
            "data_spec": _SINGLE_ARRAY,
            "encryption": None,
            "item_loader": "TokensLoader",
        }
        # litdata writes the time here. It only uses it to decide whether cached chunks are up to date, so ours depends
        # on the tokens and on nothing else.
        index = {"chunks": chunks, "config": config, "updated_at": str(int(source.artifact.digest[:12], 16))}
        text = json.dumps(index, sort_keys=True)
        (folder / split.name / "index.json").write_text(text, encoding="utf-8")


def _write_chunks(split: Split, folder: Path, itemsize: int) -> list[dict[str, Any]]:
    """Write the chunks of a split, and return their entries in the index."""
    chunks = []
    for index, (start, stop) in enumerate(arrays.file_ranges(len(split.ids), _CHUNK_BYTES // itemsize)):
        size = _HEADER.size + (stop - start) * itemsize
        name = f"chunk-0-{index}.bin"
        header = _HEADER.pack(1, _HEADER.size, size)
        arrays.write_ids(folder / name, arrays.blocks(split.ids, start, stop), header)
        chunks.append({"chunk_bytes": size, "chunk_size": 1, "dim": stop - start, "filename": name})
    return chunks


def _read(folder: Path) -> Iterator[Span]:
    for split in segments.SPLITS:
        path = folder / split / "index.json"
        if path.exists():
            dtype, chunks = _read_index(path)
            for name, items, count in chunks:
                for ids in _read_chunk(path.with_name(name), items, count, dtype):
                    yield Span(split, f"{split}/{name}", ids)


def _read_index(path: Path) -> tuple[str, list[tuple[str, int, int]]]:
    """Return the dtype of the ids, and (file, number of items, number of ids) of each chunk."""
    dtypes = {name: dtype for dtype, name in _DATA_FORMATS.items()}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        chunks = [(chunk["filename"], chunk["chunk_size"], chunk["dim"]) for chunk in index["chunks"]]
        return dtypes[index["config"]["data_format"][0]], chunks
    except (ValueError, KeyError) as error:
        raise export_mismatch(f"{path.parent.name}/{path.name}", f"not an index of chunks: {error}") from None


def _read_chunk(path: Path, items: int, count: int, dtype: str) -> Iterator[np.ndarray]:
    header = np.fromfile(path, "<u4", 2 + items)
    start = 4 * (2 + items)
    stop = start + count * np.dtype(dtype).itemsize
    if path.stat().st_size != stop or [*header[:2], header[-1]] != [items, start, stop]:
        raise export_mismatch(f"{path.parent.name}/{path.name}", f"not a chunk of {items:,} items and {count:,} ids")
    yield from arrays.read_ids(path, dtype, start)


FORMAT = TokenFormat("litdata", _write, _read)
