"""The token store: segments of token ids on disk, read as one array.

    train-00000-0000.bin    token ids, little-endian, no header: <u2 when the vocabulary fits 65,536 ids, else <u4
    train-00000-0000.idx    Megatron's index of the same bytes: where each document begins
    train-00000-0000.src    where each document lies in its source: <u8 byte offsets in the text of that file
    train.h5                with --format hdf5 or both: the same ids as one dataset `tokens`
    tokenizer.json          the tokenizer that made them

The numbers are those of an input file and of a unit of work in it. `val-*` likewise. A document is its ids followed
by the end-of-text id.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline import tokenizers
from pipeline.errors import BadData, InternalError
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.store.files import HashingFile
from pipeline.store.manifest import FileRecord
from pipeline.tokenizers import Tokenizer

SPLITS = ("train", "val")
FORMATS = ("memmap", "hdf5", "both")

# megatron/core/datasets/indexed_dataset.py; there is no code for uint32, and ids below 2**31 are the same in int32
_IDX_MAGIC = b"MMIDIDX\x00\x00"
_IDX_CODES = {"<u2": 8, "<u4": 4}


def dtype_for(vocab_size: int) -> str:
    """The dtype of token ids on disk for a vocabulary."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def with_ends(ids: np.ndarray, lengths: np.ndarray, dtype: str, end_of_text: int) -> np.ndarray:
    """Documents as they are stored: flat ids, and after the `lengths[i]` ids of each the end-of-text id."""
    out = np.empty(len(ids) + len(lengths), dtype)
    ends = np.cumsum(lengths)
    if len(ids) < _LONG_DOCUMENT * len(lengths):
        is_text = np.ones(len(out), bool)
        is_text[ends + np.arange(len(lengths))] = False
        out[is_text] = ids
    else:  # fewer and longer documents are copied faster one by one
        start = 0
        for place, end in enumerate(ends.tolist()):
            out[start + place : end + place] = ids[start:end]
            start = end
    out[ends + np.arange(len(lengths))] = end_of_text
    return out


_LONG_DOCUMENT = 256  # tokens


class SegmentWriter:
    """Writes one segment: `NAME.bin` as ids come, `NAME.idx` and `NAME.src` at the end."""

    def __init__(self, folder: Path, name: str, dtype: str, *, ids_folder: Path | None = None) -> None:
        self._folder, self._name, self._dtype = folder, name, dtype
        self._path = (ids_folder or folder) / f"{name}.bin"
        self._file = open(self._path, "wb")  # noqa: SIM115 - closed in close() and discard()
        self._out = HashingFile(self._file, self._path)
        self._lengths: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        self.tokens = 0
        self.documents = 0

    def append(self, ids: np.ndarray, lengths: np.ndarray, offsets: np.ndarray) -> None:
        """Add ids of the segment's dtype, and the length (end-of-text included) and source offset of each document
        that they complete. A document may come in several calls; its length is told with its last ids."""
        self._out.write(np.ascontiguousarray(ids).view(np.uint8).data)
        self._lengths.append(lengths.astype("<i4"))
        self._offsets.append(offsets.astype("<u8"))
        self.tokens += len(ids)
        self.documents += len(lengths)

    def close(self) -> list[FileRecord]:
        """Finish the three files. What they are, by their names in the artifact."""
        self._file.close()
        lengths = np.concatenate([np.empty(0, "<i4"), *self._lengths])
        if int(lengths.sum(dtype=np.int64)) != self.tokens:
            raise InternalError(f"{self._path}: its documents have not as many tokens as were written")
        beside = [
            (".idx", index_of(lengths, self._dtype)),
            (".src", np.concatenate([np.empty(0, "<u8"), *self._offsets]).tobytes()),
        ]
        records = [FileRecord(f"{self._name}.bin", self._out.size, self._out.sha256)]
        for suffix, data in beside:
            with open(self._folder / f"{self._name}{suffix}", "wb") as handle:
                out = HashingFile(handle, Path(handle.name))
                out.write(data)
            records.append(FileRecord(f"{self._name}{suffix}", out.size, out.sha256))
        return records

    def discard(self) -> None:
        """Let go of the file: the segment is not to be finished."""
        self._file.close()


def index_of(lengths: np.ndarray, dtype: str) -> bytes:
    """A Megatron `.idx`, of `lengths` in tokens of documents that are a sequence each (reference/formats.md)."""
    count = len(lengths)
    ends = np.cumsum(lengths, dtype="<i8") * np.dtype(dtype).itemsize
    offsets = np.concatenate([np.zeros(1, "<i8"), ends[:-1]])[:count]
    head = _IDX_MAGIC + struct.pack("<QBQQ", 1, _IDX_CODES[dtype], count, count + 1)
    documents = np.arange(count + 1, dtype="<i8")
    return head + lengths.astype("<i4").tobytes() + offsets.astype("<i8").tobytes() + documents.tobytes()


def read_index(path: Path) -> np.ndarray:
    """int32 lengths in tokens, end-of-text included, of the documents of the segment that `path` indexes."""
    data = path.read_bytes()
    size = len(_IDX_MAGIC) + struct.calcsize("<QBQQ")
    if data[: len(_IDX_MAGIC)] != _IDX_MAGIC or len(data) < size:
        raise BadData(f"{path}: not a Megatron index", hint="`tokenize` it again")
    count = struct.unpack_from("<Q", data, len(_IDX_MAGIC) + 9)[0]
    if len(data) != size + 20 * count + 8:
        raise BadData(f"{path}: {len(data):,} bytes do not fit an index of {count:,}", hint="`tokenize` it again")
    return np.frombuffer(data, "<i4", count, size)


def document_lengths(found: Artifact, split: str) -> np.ndarray:
    """int32 lengths in tokens, end-of-text included, of all documents of a split in the order of its tokens."""
    names = [record.name for record in found.manifest.files]
    indexes = [name for name in names if name.startswith(f"{split}-") and name.endswith(".idx")]
    return np.concatenate([np.empty(0, "<i4"), *(read_index(found.file(name)) for name in indexes)])


def source_offsets(found: Artifact, segment: str) -> np.ndarray:
    """uint64 byte offsets of the documents of a segment in the text of its source file."""
    return np.fromfile(found.file(f"{segment}.src"), "<u8")


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


def _map(path: Path, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


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


@dataclass(frozen=True)
class TokenArray:
    """The ids of one split as one array, over one or more segments that stay on disk."""

    segments: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.segments else 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the ids on disk, uint16 or uint32."""
        return self.segments[0].dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """int64 ids of `[start, stop)`, which may lie across segments."""
        return np.concatenate([np.empty(0, np.int64), *self._pieces(start, stop)]).astype(np.int64, copy=False)

    def blocks(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Ids of shape (len(starts), length) in the dtype of the store: row i is `[starts[i], starts[i] + length)`.

        Out of one segment all rows are copied in one call, each as it lies, eight times as fast as gathering ids by
        their indices.
        """
        if len(self.segments) == 1:
            (ids,) = self._plain
            windows = (len(ids) - length + 1, length)  # all that there are, one over the other
            return np.ndarray(windows, ids.dtype, ids, strides=(ids.itemsize, ids.itemsize))[starts]
        out = np.empty((len(starts), length), self.dtype)
        places = np.searchsorted(self._ends, starts, side="right")
        within = starts - self._begins[places]
        for row, (place, first) in enumerate(zip(places.tolist(), within.tolist(), strict=True)):
            whole = self._plain[place][first : first + length]
            if len(whole) < length:  # the block goes on in the next segment
                start = int(starts[row])
                whole = np.concatenate(list(self._pieces(start, start + length)))
            out[row] = whole
        return out

    def _pieces(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The ids of `[start, stop)` as they lie, segment by segment."""
        for place in range(int(np.searchsorted(self._ends, start, side="right")), len(self.segments)):
            first = int(self._begins[place])
            if first >= stop:
                break
            yield self._plain[place][max(start - first, 0) : stop - first]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """int64 place after the last token of each segment."""
        return np.cumsum([len(segment) for segment in self.segments], dtype=np.int64)

    @functools.cached_property
    def _begins(self) -> np.ndarray:
        """int64 place of the first token of each segment."""
        return self._ends - [len(segment) for segment in self.segments]

    @functools.cached_property
    def _plain(self) -> tuple[np.ndarray, ...]:
        """The segments without np.memmap's own bookkeeping, which takes longer than the copy of a block."""
        return tuple(np.asarray(segment) for segment in self.segments)


@dataclass(frozen=True)
class TokenStore:
    """A tokens artifact, opened: its two splits and the tokenizer that made them."""

    artifact: Artifact
    tokenizer: Tokenizer
    train: TokenArray
    val: TokenArray

    @property
    def key(self) -> str:
        """A hash of what the ids were made from, in hex: one for memmap and HDF5, whose artifacts are different."""
        manifest = self.artifact.manifest
        options = {name: value for name, value in manifest.options.items() if name != "format"}
        inputs = [[entry.role, entry.digest] for entry in manifest.inputs]
        content = [options, inputs, manifest.tokenizer, [len(self.train), len(self.val)]]
        return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()


def open_store(found: Artifact) -> TokenStore:
    """Open a tokens artifact, memmap or HDF5. Raises BadData when files are missing or not what the manifest says."""
    artifact.require_whole(found)
    dtype = found.manifest.counts["dtype"]
    names = [record.name for record in found.manifest.files]
    train, val = (_open_split(found, names, split, dtype) for split in SPLITS)
    for split, array in (("train", train), ("val", val)):
        if len(array) != found.manifest.counts[f"{split}_tokens"]:
            raise BadData(f"{found.path}: {len(array):,} {split} tokens, the manifest says otherwise")
    return TokenStore(found, tokenizers.open_folder(found.path), train, val)


def _open_split(found: Artifact, names: Sequence[str], split: str, dtype: str) -> TokenArray:
    segments = [name for name in names if name.startswith(f"{split}-") and name.endswith(".bin")]
    if segments:
        return TokenArray(tuple(_map(found.file(name), dtype) for name in segments))
    return TokenArray((_map_hdf5(found.file(f"{split}.h5"), dtype),))
