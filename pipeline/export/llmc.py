"""llm.c and modded-nanogpt: `NAME_train_000000.bin`, …, each a header of 256 int32 followed by ids.

There, documents start with end-of-text; here, they end with it. So the stream is shifted by one: end-of-text comes
first, and the end-of-text of the last document is left out. A document may continue in the next file.

The training split has at least two files: modded-nanogpt reads the second one before it uses the first.

Source: llm.c's dev/data/data_common.py and llmc/dataloader.h; modded-nanogpt's train_gpt.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import BadConfig, BadData, export_mismatch
from pipeline.export import arrays
from pipeline.export.format import Span, Split, TokenFormat, TokenSource
from pipeline.tokens import segments

_HEADER_SIZE = 256  # int32: magic, version, number of tokens, zeros
_FILE_IDS = 100_000_000
_MAX_FILES = 1_000_000  # the index in a name has six digits
# dataloader.h asserts that each file has a full batch of all processes; 2**19 ids is the batch of llm.c's recipes
_MIN_LAST_FILE_IDS = 1 << 20


@dataclass(frozen=True)
class _FileType:
    magic: int
    version: int


_FILE_TYPES = {"<u2": _FileType(20240520, 1), "<u4": _FileType(20240801, 7)}  # "gpt-2", "llama-3" in data_common.py


def _write(source: TokenSource, folder: Path) -> None:
    eos, file_type = source.store.tokenizer.end_of_text, _FILE_TYPES[source.dtype]
    for split in source.splits:
        if split.ids.read(len(split.ids) - 1, len(split.ids))[0] != eos:
            raise BadData(
                f"{source.artifact.path}: the {split.name} split does not end with end-of-text",
                hint="`tokenize` it again",
            )
        for index, (start, stop) in enumerate(_file_ranges(split, source.shard_tokens)):
            header = np.zeros(_HEADER_SIZE, "<i4")
            header[:3] = file_type.magic, file_type.version, stop - start
            path = folder / f"{source.name}_{split.name}_{index:06d}.bin"
            shifted = _shifted_blocks(split, start, stop, np.array([eos], source.dtype))
            arrays.write_ids(path, shifted, header.tobytes())


def _file_ranges(split: Split, shard_tokens: int) -> list[tuple[int, int]]:
    """Return `[start, stop)` of each file of a split, at least two for training. Raises BadConfig for too many."""
    total = len(split.ids)
    size = shard_tokens or min(_FILE_IDS, (total + 1) // 2 if split.name == "train" else total)
    if total // size >= _MAX_FILES:
        raise BadConfig(
            f"--shard-tokens {size:,} makes more than {_MAX_FILES:,} files of {total:,} tokens",
            hint=f"choose at least {total // _MAX_FILES + 1:,}",
        )
    return arrays.file_ranges(total, size, min(_MIN_LAST_FILE_IDS, size // 2))


def _warning(source: TokenSource) -> str:
    if source.dtype == "<u2":
        return ""
    return "ids of 4 bytes: of llm.c only train_llama3.py reads them, modded-nanogpt does not"


def _shifted_blocks(split: Split, start: int, stop: int, eos: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the ids of `[start, stop)` of a split, shifted by one so that end-of-text precedes each document."""
    if start == 0:
        yield eos
    yield from arrays.blocks(split.ids, max(start - 1, 0), stop - 1)


def _read(folder: Path) -> Iterator[Span]:
    for split in segments.SPLITS:
        first_eos: Span | None = None  # the end-of-text before the first document; in our store it ends the last one
        for path in sorted(folder.glob(f"*_{split}_[0-9][0-9][0-9][0-9][0-9][0-9].bin")):
            for ids in arrays.read_ids(path, _checked_dtype(path), _HEADER_SIZE * 4):
                yield Span(split, path.name, ids if first_eos else ids[1:])
                first_eos = first_eos or Span(split, path.name, ids[:1])
        if first_eos:
            yield first_eos


def _checked_dtype(path: Path) -> str:
    """Return the dtype of a file's ids from its header. Raises BadData unless the file has the size it states."""
    header = np.fromfile(path, "<i4", _HEADER_SIZE)
    if len(header) < _HEADER_SIZE or header[3:].any():
        raise export_mismatch(path.name, "not an llm.c header")
    for dtype, file_type in _FILE_TYPES.items():
        if (header[0], header[1]) == (file_type.magic, file_type.version):
            size, expected = path.stat().st_size, _HEADER_SIZE * 4 + int(header[2]) * np.dtype(dtype).itemsize
            if size != expected:
                raise export_mismatch(path.name, f"{size:,} bytes where its header says {expected:,}")
            return dtype
    raise export_mismatch(path.name, f"magic {header[0]} with version {header[1]} is not a file type of llm.c")


FORMAT = TokenFormat("llmc", _write, _read, warning=_warning, has_shards=True)
