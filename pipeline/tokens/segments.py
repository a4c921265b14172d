"""Segments: files of token ids, each with a Megatron index and the source offsets of its documents.

A segment of conversations has a mask too: a byte for each id, 1 if the id has a loss.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

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
    """Return the dtype of token ids on disk: "<u2" for at most 65,536 ids, else "<u4"."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def append_eos(ids: np.ndarray, lengths: np.ndarray, dtype: str, end_of_text: int) -> np.ndarray:
    """Return flat `ids` in `dtype` with the end-of-text id after each document; `lengths[i]` ids are document i's."""
    out = np.empty(len(ids) + len(lengths), dtype)
    ends = np.cumsum(lengths)
    if len(ids) < _LONG_DOCUMENT * len(lengths):
        is_text = np.ones(len(out), bool)
        is_text[ends + np.arange(len(lengths))] = False
        out[is_text] = ids
    else:  # a few long documents are copied faster one by one
        start = 0
        for index, end in enumerate(ends.tolist()):
            out[start + index : end + index] = ids[start:end]
            start = end
    out[ends + np.arange(len(lengths))] = end_of_text
    return out


MASK = ".mask"


class SegmentWriter:
    """Writes one segment: `NAME.bin` and, for conversations, `NAME.mask` as ids arrive, `NAME.idx` and `NAME.src` at
    the end.
    """

    def __init__(self, folder: Path, name: str, dtype: str, *, has_mask: bool = False) -> None:
        self._folder, self._name, self._dtype = folder, name, dtype
        self._path = folder / f"{name}.bin"
        self._out = self._open(".bin")
        self._mask = self._open(MASK) if has_mask else None
        self._lengths: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        self.tokens = 0
        self.documents = 0

    def _open(self, suffix: str) -> HashingFile:
        path = self._folder / f"{self._name}{suffix}"
        return HashingFile(open(path, "wb"), path)

    def append(self, ids: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Append ids in the segment's dtype, and the `mask` of those of conversations as uint8.

        `lengths` (in tokens, end-of-text included) and `offsets` (in the source) have one entry for each document that
        ends in these ids. A document may take several calls; the last one passes its length and offset.
        """
        self._out.write(np.ascontiguousarray(ids).view(np.uint8).data)
        if self._mask and mask is not None:
            self._mask.write(np.ascontiguousarray(mask).data)
        self._lengths.append(lengths.astype("<i4"))
        self._offsets.append(offsets.astype("<u8"))
        self.tokens += len(ids)
        self.documents += len(lengths)

    def close(self) -> list[FileRecord]:
        """Finish the files. Returns their records, named as in the artifact."""
        self.discard()
        lengths = np.concatenate([np.empty(0, "<i4"), *self._lengths])
        if (total := int(lengths.sum(dtype=np.int64))) != self.tokens:
            raise InternalError(f"{self._path}: the documents have {total:,} tokens, but {self.tokens:,} were written")
        contents = [
            (".idx", megatron_index(lengths, self._dtype)),
            (".src", np.concatenate([np.empty(0, "<u8"), *self._offsets]).tobytes()),
        ]
        if self._mask and self._mask.size != self.tokens:
            raise InternalError(f"{self._path}: a mask of {self._mask.size:,} bytes for {self.tokens:,} tokens")
        written = [self._out, *([self._mask] if self._mask else [])]
        records = [FileRecord(out.path.name, out.size, out.sha256) for out in written]
        for suffix, data in contents:
            with open(self._folder / f"{self._name}{suffix}", "wb") as handle:
                out = HashingFile(handle, Path(handle.name))
                out.write(data)
            records.append(FileRecord(f"{self._name}{suffix}", out.size, out.sha256))
        return records

    def discard(self) -> None:
        """Close the files of a segment that will not be finished."""
        self._out.close()
        if self._mask:
            self._mask.close()


def megatron_index(lengths: np.ndarray, dtype: str) -> bytes:
    """Return a Megatron `.idx` with one sequence per document; `lengths` in tokens (docs/design/formats.md)."""
    count = len(lengths)
    ends = np.cumsum(lengths, dtype="<i8") * np.dtype(dtype).itemsize
    offsets = np.concatenate([np.zeros(1, "<i8"), ends[:-1]])[:count]
    header = _IDX_MAGIC + struct.pack("<QBQQ", 1, _IDX_CODES[dtype], count, count + 1)
    documents = np.arange(count + 1, dtype="<i8")
    return header + lengths.astype("<i4").tobytes() + offsets.astype("<i8").tobytes() + documents.tobytes()


def read_index(path: Path) -> np.ndarray:
    """Return the int32 lengths in tokens, end-of-text included, of the documents in a Megatron index.

    Raises BadData if the file is not a Megatron index.
    """
    data = path.read_bytes()
    header_size = len(_IDX_MAGIC) + struct.calcsize("<QBQQ")
    if data[: len(_IDX_MAGIC)] != _IDX_MAGIC or len(data) < header_size:
        raise BadData(f"{path}: not a Megatron index", hint="`tokenize` it again")
    count = struct.unpack_from("<Q", data, len(_IDX_MAGIC) + 9)[0]
    if len(data) != header_size + 20 * count + 8:
        raise BadData(f"{path}: {len(data):,} bytes do not fit an index of {count:,}", hint="`tokenize` it again")
    return np.frombuffer(data, "<i4", count, header_size)


def segment_names(artifact: Artifact, split: str) -> list[str]:
    """Return the names of the segments of a split, without suffix, in the order of their tokens."""
    names = (record.name for record in artifact.manifest.files)
    return [name.removesuffix(".idx") for name in names if name.startswith(f"{split}-") and name.endswith(".idx")]


def segment_lengths(artifact: Artifact, segment: str) -> np.ndarray:
    """Return the int32 lengths in tokens, end-of-text included, of the documents of a segment."""
    return read_index(artifact.file(f"{segment}.idx"))


def document_lengths(artifact: Artifact, split: str) -> np.ndarray:
    """Return the int32 lengths in tokens, end-of-text included, of all documents of a split, in order."""
    lengths = (segment_lengths(artifact, segment) for segment in segment_names(artifact, split))
    return np.concatenate([np.empty(0, "<i4"), *lengths])


def source_offsets(artifact: Artifact, segment: str) -> np.ndarray:
    """Return the uint64 byte offsets of the documents of a segment in the text of its source file."""
    return np.fromfile(artifact.file(f"{segment}.src"), "<u8")


def memmap_ids(path: Path, dtype: str) -> np.ndarray:
    """Return the ids of a .bin file, memory-mapped."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


class IdsFile:
    """The ids of a .bin file that is opened only while it is read: `np.asarray` maps it, a slice reads from it.

    A map keeps a file descriptor open, and a store may have more files than a process may open.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self._length = path.stat().st_size // self.dtype.itemsize

    def __len__(self) -> int:
        return self._length

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(memmap_ids(self.path, self.dtype.str), dtype, copy=copy, subok=False)

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, _ = span.indices(self._length)
        ids = np.fromfile(self.path, self.dtype, max(stop - start, 0), offset=start * self.dtype.itemsize)
        if len(ids) < stop - start:
            raise BadData(f"{self.path}: shorter than when it was opened", hint="`tokenize` it again")
        return ids
