"""The token store: segments, their index, and one array over all segments."""

from __future__ import annotations

import os
import resource
import shutil
import struct
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BadData, InternalError
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.manifest import Identity
from pipeline.tokenizers import Integers
from pipeline.tokens import counting, hdf5
from pipeline.tokens import segments as tokens_segments
from pipeline.tokens.hdf5 import write_hdf5
from pipeline.tokens.segments import (
    IdsFile,
    SegmentWriter,
    append_eos,
    document_lengths,
    dtype_for,
    read_index,
    source_offsets,
)
from pipeline.tokens.store import TokenArray, open_store

END = 7


def megatron_documents(prefix: Path) -> list[list[int]]:
    """Read the documents of `prefix`.bin and .idx by Megatron's format (docs/design/formats.md)."""
    data = prefix.with_suffix(".idx").read_bytes()
    magic, version, code, sequences, indices = struct.unpack("<9sQBQQ", data[:34])
    assert (magic, version) == (b"MMIDIDX\x00\x00", 1)
    lengths = np.frombuffer(data, "<i4", sequences, 34)
    offsets = np.frombuffer(data, "<i8", sequences, 34 + 4 * sequences)
    documents = np.frombuffer(data, "<i8", indices, 34 + 12 * sequences)
    assert len(data) == 34 + 20 * sequences + 8
    assert (documents[0], documents[-1], lengths.shape[0]) == (0, sequences, documents[-1])
    dtype = np.dtype({1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}[code])
    body = prefix.with_suffix(".bin").read_bytes()
    rows = []
    for first, last in pairwise(documents):
        ids: list[int] = []
        for sequence in range(first, last):
            ids += np.frombuffer(body, dtype, lengths[sequence], offsets[sequence]).tolist()
        rows.append(ids)
    assert sum(map(len, rows)) * dtype.itemsize == len(body)
    return rows


def write(folder: Path, name: str, documents: list[list[int]], dtype: str = "<u2", batch: int = 2) -> Path:
    """Write a segment of documents whose source offsets are 100 bytes apart."""
    segment = SegmentWriter(folder, name, dtype)
    for at in range(0, len(documents), batch):
        rows = documents[at : at + batch]
        lengths = np.array([len(row) for row in rows], np.int64)
        ids = np.array([token for row in rows for token in row], np.uint32)
        segment.append(append_eos(ids, lengths, dtype, END), lengths + 1, 100 * np.arange(at, at + len(rows)))
    assert (segment.documents, segment.tokens) == (len(documents), sum(len(row) + 1 for row in documents))
    written = segment.close()
    assert [record.name for record in written] == [f"{name}{suffix}" for suffix in (".bin", ".idx", ".src")]
    for record in written:
        path = folder / record.name
        assert (record.size, record.sha256) == (path.stat().st_size, files.sha256_of(path))
    return folder / name


def bins(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-*.bin"))


@given(st.lists(st.lists(st.integers(0, 65535), max_size=6), max_size=8), st.sampled_from(["<u2", "<u4"]))
def test_end_of_text_follows_every_document(documents: list[list[int]], dtype: str) -> None:
    lengths = np.array([len(document) for document in documents], np.int64)
    flat = np.array([token for document in documents for token in document], np.uint32)
    expected = [token for document in documents for token in (*document, END)]
    for limit in (0, 256):  # documents copied one by one, and all at once
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokens_segments, "_LONG_DOCUMENT", limit)
            stored = append_eos(flat, lengths, dtype, END)
        assert (stored.dtype, stored.tolist()) == (np.dtype(dtype), expected)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("documents", [[], [[1, 2, 3]], [[]], [[1], [], [2, 3], [4, 5, 6, 65535], []]])
def test_segment_reads_back_as_a_megatron_dataset(tmp_path: Path, documents: list[list[int]], dtype: str) -> None:
    prefix = write(tmp_path, "train-00000-0000", documents, dtype)
    assert megatron_documents(prefix) == [[*document, END] for document in documents]


def test_bin_file_holds_only_little_endian_ids(tmp_path: Path) -> None:
    prefix = write(tmp_path, "train-00000-0000", [[1, 0x1234], [2]])
    assert prefix.with_suffix(".bin").read_bytes() == bytes.fromhex("0100 3412 0700 0200 0700")
    wide = write(tmp_path, "train-00001-0000", [[0x12345]], "<u4")
    assert wide.with_suffix(".bin").read_bytes() == bytes.fromhex("45230100 07000000")


@given(st.lists(st.lists(st.integers(0, 65535), max_size=6), min_size=1, max_size=8), st.integers(1, 4))
def test_bytes_do_not_depend_on_batching(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], batch: int
) -> None:
    folder = tmp_path_factory.mktemp("segment")
    first, second = write(folder, "one", documents, batch=100), write(folder, "other", documents, batch=batch)
    for suffix in (".bin", ".idx", ".src"):
        assert first.with_suffix(suffix).read_bytes() == second.with_suffix(suffix).read_bytes()
    assert megatron_documents(first) == [[*document, END] for document in documents]


def test_read_index_gives_lengths_with_end_of_text(tmp_path: Path) -> None:
    prefix = write(tmp_path, "val-00000-0000", [[1, 2], [], [3]])
    assert read_index(prefix.with_suffix(".idx")).tolist() == [3, 1, 2]


@pytest.mark.parametrize("data", [b"", b"MMIDIDX", b"MMIDIDX\x00\x00" + bytes(10), b"x" * 40])
def test_file_that_is_not_an_index_raises_bad_data(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "train-00000-0000.idx"
    path.write_bytes(data)
    with pytest.raises(BadData, match="not a Megatron index"):
        read_index(path)


def test_truncated_index_raises_bad_data(tmp_path: Path) -> None:
    path = write(tmp_path, "train-00000-0000", [[1], [2], [3]]).with_suffix(".idx")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BadData):
        read_index(path)


def test_discarded_segment_leaves_no_index(tmp_path: Path) -> None:
    segment = SegmentWriter(tmp_path, "train-00000-0000", "<u2")
    segment.append(np.array([1, END], "<u2"), np.array([2]), np.array([0]))
    segment.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000-0000.bin"]


def test_document_may_be_appended_in_parts(tmp_path: Path) -> None:
    segment = SegmentWriter(tmp_path, "train-00000-0000", "<u2")
    none = np.array([], np.int64)
    segment.append(np.array([1, END], "<u2"), np.array([2]), np.array([0]))
    segment.append(np.array([2, 3], "<u2"), none, none)
    segment.append(np.array([4], "<u2"), none, none)
    segment.append(np.array([5, END, 6, END], "<u2"), np.array([5, 2]), np.array([100, 1 << 40]))
    segment.close()
    prefix = tmp_path / "train-00000-0000"
    assert megatron_documents(prefix) == [[1, END], [2, 3, 4, 5, END], [6, END]]
    assert np.fromfile(prefix.with_suffix(".src"), "<u8").tolist() == [0, 100, 1 << 40]


def test_segment_without_a_last_length_raises_internal_error(tmp_path: Path) -> None:
    segment = SegmentWriter(tmp_path, "train-00000-0000", "<u2")
    segment.append(np.array([1, 2], "<u2"), np.array([], np.int64), np.array([], np.int64))
    with pytest.raises(InternalError):
        segment.close()


def test_strided_ids_are_written_in_order(tmp_path: Path) -> None:
    segment = SegmentWriter(tmp_path, "train-00000-0000", "<u2")
    segment.append(np.arange(10, dtype="<u2")[::2], np.array([5]), np.array([0]))
    segment.close()
    assert megatron_documents(tmp_path / "train-00000-0000") == [[0, 2, 4, 6, 8]]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(2, "<u2"), (50257, "<u2"), (65536, "<u2"), (65537, "<u4"), (200019, "<u4")]
)
def test_ids_take_two_bytes_while_the_vocabulary_fits(vocab_size: int, dtype: str) -> None:
    assert dtype_for(vocab_size) == dtype
    assert np.iinfo(dtype).max >= vocab_size - 1


SEGMENTS = st.lists(st.lists(st.integers(0, 65535), max_size=4) | st.just([]), min_size=1, max_size=40)


def array_of(segments: list[list[int]], dtype: str = "<u2") -> tuple[TokenArray, np.ndarray]:
    parts = tuple(np.array(segment, dtype) for segment in segments)
    return TokenArray(parts), np.concatenate(parts).astype(np.int64)


@given(SEGMENTS, st.sampled_from(["<u2", "<u4"]), st.data())
@settings(max_examples=300)
def test_any_range_reads_as_from_one_array(segments: list[list[int]], dtype: str, data: st.DataObject) -> None:
    array, flat = array_of(segments, dtype)
    assert len(array) == len(flat)
    start = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(start, len(flat)))
    ids = array.read(start, stop)
    assert ids.dtype == np.int64
    assert ids.tolist() == flat[start:stop].tolist()


@given(SEGMENTS.filter(any), st.sampled_from(["<u2", "<u4"]), st.data())
@settings(max_examples=300)
def test_blocks_across_segments_equal_one_array(segments: list[list[int]], dtype: str, data: st.DataObject) -> None:
    array, flat = array_of(segments, dtype)
    length = data.draw(st.integers(1, len(flat)))
    last = len(flat) - length
    starts = np.array(data.draw(st.lists(st.integers(0, last), max_size=9)), np.int64)
    assert_blocks(array, flat, starts, length)


def assert_blocks(array: TokenArray, flat: np.ndarray, starts: np.ndarray, length: int) -> None:
    ids = array.blocks(starts, length)
    assert ids.dtype == array.dtype == array.segments[0].dtype
    assert ids.shape == (len(starts), length)
    assert ids.tolist() == [flat[start : start + length].tolist() for start in starts]


@pytest.mark.parametrize(
    "segments", [[[1], [], [2, 3], [4]], [[], [], [1]], [[1, 2], [], []], [[], [1, 2, 3], [], [4, 5], []], [[1]] * 9]
)
def test_every_block_is_read_around_empty_segments(segments: list[list[int]]) -> None:
    array, flat = array_of(segments)
    for length in range(1, len(flat) + 1):
        assert_blocks(array, flat, np.arange(len(flat) - length + 1), length)
        assert all(array.read(at, at + length).tolist() == flat[at : at + length].tolist() for at in range(len(flat)))


def test_an_array_of_only_empty_segments_is_empty() -> None:
    array, _ = array_of([[], []])
    assert (len(array), array.read(0, 0).tolist(), array.read(0, 5).tolist()) == (0, [], [])


def test_thousands_of_segments_are_read_as_fast_as_few() -> None:
    flat = np.arange(60_000, dtype="<u2")
    array = TokenArray(tuple(flat[at : at + 10] for at in range(0, len(flat), 10)))
    starts = np.random.default_rng(1).integers(0, len(flat) - 25, 2000)
    assert_blocks(array, flat.astype(np.int64), starts, 25)


def test_a_store_of_many_segments_keeps_few_of_them_open(tmp_path: Path) -> None:
    flat = np.arange(6_000, dtype="<u2")
    paths = [tmp_path / f"{number}.bin" for number in range(300)]
    for number, path in enumerate(paths):
        flat[20 * number : 20 * number + 20].tofile(path)
    limits, count = resource.getrlimit(resource.RLIMIT_NOFILE), len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 80, limits[1]))  # as an operating system may set it
    try:
        array = TokenArray(tuple(IdsFile(path, "<u2") for path in paths))
        assert len(os.listdir("/dev/fd")) == count
        starts = np.random.default_rng(1).integers(0, len(flat) - 45, 500)
        assert_blocks(array, flat.astype(np.int64), starts, 45)
        assert array.read(0, len(flat)).tolist() == flat.tolist()
        assert isinstance(np.asarray(array.segments[0]).base, np.memmap)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_slice_of_a_truncated_file_is_refused(tmp_path: Path) -> None:
    np.arange(10, dtype="<u2").tofile(tmp_path / "ids.bin")
    ids = IdsFile(tmp_path / "ids.bin", "<u2")
    assert (ids[3:5].tolist(), ids[8:20].tolist(), ids[5:2].tolist(), len(ids)) == ([3, 4], [8, 9], [], 10)
    os.truncate(tmp_path / "ids.bin", 6)
    with pytest.raises(BadData, match="shorter than when it was opened"):
        ids[0:10]


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_hdf5_holds_the_ids_and_attributes(tmp_path: Path, dtype: str) -> None:
    write(tmp_path, "train-00000-0000", [[1, 2], [3]], dtype)
    (tmp_path / "train-00001-0000.bin").touch()
    write(tmp_path, "train-00002-0000", [[4, 5, 6]], dtype)
    write(tmp_path, "val-00000-0000", [[9]], dtype)
    path = tmp_path / "train.h5"
    attributes: dict[str, str | int] = {"tokenizer": "integers:10", "end_of_text": END}
    write_hdf5(path, bins(tmp_path, "train"), dtype, attributes)
    segments = b"".join(file.read_bytes() for file in bins(tmp_path, "train"))
    with h5py.File(path) as file:
        dataset = file["tokens"]
        assert (dataset.dtype, dataset.ndim, dataset.chunks) == (np.dtype(dtype), 1, None)
        assert dataset[:].tobytes() == segments
        assert dict(dataset.attrs) == attributes
    assert hdf5.memmap_hdf5(path, dtype).tobytes() == segments


@pytest.mark.parametrize("count", [0, 1])
def test_hdf5_may_be_empty(tmp_path: Path, count: int) -> None:
    (tmp_path / "train-00000-0000.bin").touch()
    write_hdf5(tmp_path / "train.h5", bins(tmp_path, "train")[:count], "<u2", {})
    assert len(hdf5.memmap_hdf5(tmp_path / "train.h5", "<u2")) == 0


def test_the_same_tokens_give_the_same_hdf5_bytes(tmp_path: Path) -> None:
    write(tmp_path, "train-00000-0000", [[1, 2], [3]])
    for name in ("one.h5", "other.h5"):
        write_hdf5(tmp_path / name, bins(tmp_path, "train"), "<u2", {"tokenizer": "x"})
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "other.h5").read_bytes()


def store(root: Path, layout: str) -> Artifact:
    """Publish a small tokens artifact, as segments or HDF5."""
    tokenizer = Integers(10)

    def fill(draft: Path) -> StageOutput:
        tokenizer.save(draft)
        write(draft, "train-00000-0000", [[1, 2], [3]])
        write(draft, "train-00000-0001", [[4]])
        write(draft, "val-00000-0000", [[5]])
        if layout == "hdf5":
            for split in tokens_segments.SPLITS:
                write_hdf5(draft / f"{split}.h5", bins(draft, split), "<u2", {})
            for path in draft.glob("*.bin"):
                path.unlink()
        return StageOutput({"dtype": "<u2", "train_tokens": 7, "val_tokens": 2})

    identity = Identity("tokens", "small", {"layout": layout}, (), tokenizer.fingerprint)
    return artifact.build(root, identity, fill).artifact


@pytest.mark.parametrize("layout", ["memmap", "hdf5"])
def test_a_store_opens_to_the_same_arrays_in_either_layout(root: Path, layout: str) -> None:
    opened = open_store(store(root, layout))
    assert opened.train.read(0, 7).tolist() == [1, 2, END, 3, END, 4, END]
    assert opened.val.read(0, 2).tolist() == [5, END]
    assert opened.tokenizer.fingerprint == "integers:10"


@pytest.mark.parametrize("layout", ["memmap", "hdf5"])
def test_lengths_and_offsets_are_kept_in_either_layout(root: Path, layout: str) -> None:
    tokens = store(root, layout)
    assert document_lengths(tokens, "train").tolist() == [3, 2, 2]
    assert document_lengths(tokens, "val").tolist() == [2]
    assert source_offsets(tokens, "train-00000-0000").tolist() == [0, 100]
    assert source_offsets(tokens, "train-00000-0001").tolist() == [0]


def test_the_counting_store_counts(root: Path) -> None:
    built = counting.build(root)
    opened = open_store(built.artifact)
    assert opened.val.read(97, 103).tolist() == [98, 99, 0, 1, 2, 3]
    assert len(opened.train) == 100 * 100
    assert counting.build(root).result == "unchanged"


@pytest.mark.parametrize("layout", ["memmap", "hdf5"])
def test_store_with_a_missing_file_raises_bad_data(root: Path, layout: str) -> None:
    tokens = store(root, layout)
    tokens.file("train-00000-0000.bin" if layout == "memmap" else "train.h5").unlink()
    with pytest.raises(BadData, match="missing"):
        open_store(tokens)


def test_store_with_a_truncated_file_raises_bad_data(root: Path) -> None:
    tokens = store(root, "memmap")
    path = tokens.file("train-00000-0001.bin")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(BadData, match="2 bytes where the manifest says 4"):
        open_store(tokens)


def test_store_with_another_tokenizer_raises_bad_data(root: Path) -> None:
    tokens = store(root, "memmap")
    card = tokens.file("tokenizer.json")
    card.write_bytes(card.read_bytes().replace(b"integers:10", b"integers:11"))
    os.utime(card, (1e9, 1e9))  # as after bit rot: the time does not reveal the change
    with pytest.raises(BadData, match="integers:11"):
        open_store(tokens)


def hdf5_with(root: Path, make: str) -> Artifact:
    """Publish the small store as HDF5, with another `train.h5` of the size in its manifest."""
    tokens = store(root, "hdf5")
    path = tokens.file("train.h5")
    with h5py.File(path, "w") as file:
        ids = np.array([1, 2, END, 3, END, 4, END])
        if make == "another dtype":
            file.create_dataset("tokens", data=ids.astype("<i4"))
        elif make == "big-endian":
            file.create_dataset("tokens", data=ids.astype(">u2"))
        elif make == "chunks":
            file.create_dataset("tokens", data=ids.astype("<u2"), chunks=(4,))
        elif make == "compression":
            file.create_dataset("tokens", data=ids.astype("<u2"), compression="gzip")
        elif make == "another name":
            file.create_dataset("ids", data=ids.astype("<u2"))
        elif make == "external":
            file.create_dataset("tokens", shape=(7,), dtype="<u2", external=[("ids.bin", 0, 14)])
        elif make == "two dimensions":
            file.create_dataset("tokens", data=np.stack([ids, ids], axis=1).astype("<u2"))
        elif make == "a group":
            file.create_group("tokens")
        elif make == "no dimension":
            file.create_dataset("tokens", data=np.uint16(3))
    return tokens


@pytest.mark.parametrize(
    "make",
    [
        "another dtype",
        "big-endian",
        "chunks",
        "compression",
        "another name",
        "external",
        "two dimensions",
        "a group",
        "no dimension",
    ],
)
def test_hdf5_without_a_plain_array_of_the_dtype_is_refused(root: Path, make: str) -> None:
    path = hdf5_with(root, make).file("train.h5")
    with pytest.raises(BadData, match=r"train\.h5"):
        hdf5.memmap_hdf5(path, "<u2")


def test_file_that_is_not_hdf5_raises_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "train.h5"
    path.write_bytes(b"not HDF5 at all")
    with pytest.raises(BadData, match="not a token file"):
        hdf5.memmap_hdf5(path, "<u2")


def test_moved_store_opens(root: Path, tmp_path: Path) -> None:
    tokens = store(root, "hdf5")
    moved = Path(shutil.move(tokens.path, tmp_path / "moved"))
    assert len(open_store(artifact.read(moved)).train) == 7
