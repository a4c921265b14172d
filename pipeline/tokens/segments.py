"""Segments: token files and their Megatron index."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from pipeline.errors import BadData, InternalError
from pipeline.store.artifact import Artifact
from pipeline.store.files import HashingFile
from pipeline.store.manifest import FileRecord

SPLITS = ("train", "val")
FORMATS = ("memmap", "hdf5", "both")
# megatron/core/datasets/indexed_dataset.py; there is no code for uint32, and ids below 2**31 are the same in int32
_IDX_MAGIC = b"MMIDIDX\x00\x00"
_IDX_CODES = {"<u2": 8, "<u4": 4}
_LONG_DOCUMENT = 256  # tokens


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


def _map(path: Path, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
