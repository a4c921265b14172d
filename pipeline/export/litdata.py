"""litdata: folders `train` and `val` for `StreamingDataset(…, item_loader=TokensLoader(block_size))`.

    index.json         the chunks in order, the dtype of ids, and a stamp by which caches of chunks are told apart
    chunk-0-{i}.bin    <u4 number of items N | <u4[N+1] where they begin and end in the file | the items

A chunk is one item here, and no document is lost by it: TokensLoader cuts a chunk into blocks without a look at its
items. Of each chunk it leaves out what does not fill a last block.
Source: litdata's streaming/writer.py, streaming/item_loader.py and utilities/dataset_utilities.py.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import broken
from pipeline.export import arrays as stream
from pipeline.export.format import Format, Source, Span, Split
from pipeline.tokens import segments

_CHUNK = 64 << 20  # bytes of ids: litdata's own default; above 4 GiB the offsets would wrap
_HEAD = struct.Struct("<III")
_FORMATS = {"<u2": "no_header_numpy:5", "<u4": "no_header_numpy:6"}  # places in litdata's list of NumPy types
_ONE_LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'  # an item is one array, as optree writes it


def _write(source: Source, folder: Path) -> None:
    for split in source.splits:
        (folder / split.name).mkdir()
        chunks = _write_chunks(split, folder / split.name, np.dtype(source.dtype).itemsize)
        config = {
            "chunk_bytes": _CHUNK,
            "chunk_size": None,
            "compression": None,
            "data_format": [_FORMATS[source.dtype]],
            "data_spec": _ONE_LEAF,
            "encryption": None,
            "item_loader": "TokensLoader",
        }
        # litdata writes the time. It only tells whether chunks in a cache are still these, so it must change with
        # the tokens and with nothing else.
        index = {"chunks": chunks, "config": config, "updated_at": str(int(source.artifact.digest[:12], 16))}
        text = json.dumps(index, sort_keys=True)
        (folder / split.name / "index.json").write_text(text, encoding="utf-8")


def _write_chunks(split: Split, folder: Path, itemsize: int) -> list[dict[str, Any]]:
    chunks = []
    for number, (start, stop) in enumerate(stream.cuts(len(split.ids), _CHUNK // itemsize)):
        size = _HEAD.size + (stop - start) * itemsize
        name = f"chunk-0-{number}.bin"
        stream.write_ids(folder / name, stream.pieces(split.ids, start, stop), _HEAD.pack(1, _HEAD.size, size))
        chunks.append({"chunk_bytes": size, "chunk_size": 1, "dim": stop - start, "filename": name})
    return chunks


def _read(folder: Path) -> Iterator[Span]:
    for split in segments.SPLITS:
        path = folder / split / "index.json"
        if path.exists():
            dtype, chunks = _index(path)
            for name, items, count in chunks:
                for ids in _read_chunk(path.with_name(name), items, count, dtype):
                    yield Span(split, f"{split}/{name}", ids)


def _index(path: Path) -> tuple[str, list[tuple[str, int, int]]]:
    """dtype of the ids, and (file, number of items, number of ids) of each chunk."""
    dtypes = {name: dtype for dtype, name in _FORMATS.items()}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        chunks = [(chunk["filename"], chunk["chunk_size"], chunk["dim"]) for chunk in index["chunks"]]
        return dtypes[index["config"]["data_format"][0]], chunks
    except (ValueError, KeyError) as error:
        raise broken(f"{path.parent.name}/{path.name}", f"not an index of chunks: {error}") from None


def _read_chunk(path: Path, items: int, count: int, dtype: str) -> Iterator[np.ndarray]:
    header = np.fromfile(path, "<u4", 2 + items)
    begin, end = 4 * (2 + items), 4 * (2 + items) + count * np.dtype(dtype).itemsize
    if path.stat().st_size != end or [*header[:2], header[-1]] != [items, begin, end]:
        raise broken(f"{path.parent.name}/{path.name}", f"no chunk of {items:,} items and {count:,} ids")
    yield from stream.read_ids(path, dtype, begin)


FORMAT = Format("litdata", _write, _read)
