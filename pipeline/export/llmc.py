"""llm.c and modded-nanogpt: `NAME_train_000000.bin`, …, a header of 256 int32 and then ids.

Documents begin with end-of-text there and end with it here. So the stream is shifted by one: end-of-text first, and
the end-of-text of the last document left out. A document may go on in the next file.

Source: llm.c's dev/data/data_common.py and llmc/dataloader.h; modded-nanogpt's train_gpt.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import BadData, broken
from pipeline.export import arrays as stream
from pipeline.export.format import Format, Source, Span, Split
from pipeline.tokens import segments

_HEADER = 256  # int32: magic, version, number of tokens, zeros
_FILE = 100_000_000  # ids
# dataloader.h asserts that each file has a whole batch of all processes; 2**19 ids is the batch of llm.c's recipes
_LEAST = 1 << 20


@dataclass(frozen=True)
class _Kind:
    magic: int
    version: int


_KINDS = {"<u2": _Kind(20240520, 1), "<u4": _Kind(20240801, 7)}  # "gpt-2" and "llama-3" in data_common.py


def _write(source: Source, folder: Path) -> None:
    end_of_text, kind = source.store.tokenizer.end_of_text, _KINDS[source.dtype]
    for split in source.splits:
        if split.ids.read(len(split.ids) - 1, len(split.ids))[0] != end_of_text:
            raise BadData(
                f"{source.artifact.path}: the {split.name} split does not end with end-of-text",
                hint="`tokenize` it again",
            )
        for number, (start, stop) in enumerate(stream.cuts(len(split.ids), _FILE, _LEAST)):
            header = np.zeros(_HEADER, "<i4")
            header[:3] = kind.magic, kind.version, stop - start
            path = folder / f"{source.name}_{split.name}_{number:06d}.bin"
            shifted = _shifted(split, start, stop, np.array([end_of_text], source.dtype))
            stream.write_ids(path, shifted, header.tobytes())


def _shifted(split: Split, start: int, stop: int, end_of_text: np.ndarray) -> Iterator[np.ndarray]:
    """The ids of `[start, stop)` of a split whose end-of-text ids stand before documents."""
    if start == 0:
        yield end_of_text
    yield from stream.pieces(split.ids, max(start - 1, 0), stop - 1)


def _read(folder: Path) -> Iterator[Span]:
    for split in segments.SPLITS:
        first: Span | None = None  # the end-of-text that stands before the first document; here it ends the last one
        for path in sorted(folder.glob(f"*_{split}_[0-9][0-9][0-9][0-9][0-9][0-9].bin")):
            for ids in stream.read_ids(path, _checked_dtype(path), _HEADER * 4):
                yield Span(split, path.name, ids if first else ids[1:])
                first = first or Span(split, path.name, ids[:1])
        if first:
            yield first


def _checked_dtype(path: Path) -> str:
    """dtype of a file's ids by its header; BadData unless the file has the very size that the header asks for."""
    header = np.fromfile(path, "<i4", _HEADER)
    if len(header) < _HEADER or header[3:].any():
        raise broken(path.name, "no header of llm.c")
    for dtype, kind in _KINDS.items():
        if (header[0], header[1]) == (kind.magic, kind.version):
            size, expected = path.stat().st_size, _HEADER * 4 + int(header[2]) * np.dtype(dtype).itemsize
            if size != expected:
                raise broken(path.name, f"{size:,} bytes where its header says {expected:,}")
            return dtype
    raise broken(path.name, f"{header[0]} version {header[1]} is no kind of llm.c")


FORMAT = Format("llmc", _write, _read)
