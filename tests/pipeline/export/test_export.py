"""Exports, read by the tool itself or by a reader written from docs/design/formats.md."""

from __future__ import annotations

import base64
import errno
import filecmp
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BadConfig, BadData, CannotCreate, StorageFailed
from pipeline.export import arrays, litdata, llmc
from pipeline.export import export as token_export
from pipeline.export.export import FORMATS, export
from pipeline.export.format import TokenSource, open_source
from pipeline.export.verify import require_same
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.manifest import Identity
from pipeline.tokenizers import END_OF_TEXT, Characters, Integers, SentencePiece, Tiktoken, Tokenizer
from pipeline.tokens.store import TokenArray
from tests.pipeline.tokenizers.test_tokenizers import AS_EVER, model_of

Documents = list[list[int]]
Segments = dict[str, list[Documents]]

EOS = 0
NARROW = Integers(1_000)
WIDE = Integers(100_000)

SEVERAL: Segments = {
    "train": [[[5, 6, 7], [8]], [], [[9, 10, 11, 12, 13, 14]], [[15], [16, 17]]],
    "val": [[[21, 22]], [[23, 24, 25]]],
}
SEVERAL_WIDE: Segments = {
    split: [[[99_000 + token for token in row] for row in rows] for rows in segments]
    for split, segments in SEVERAL.items()
}
ONE: Segments = {"train": [[[5, 6, 7], [8], [9, 10]]], "val": [[[21, 22]]]}
ONE_AND_EMPTY: Segments = {"train": [[], [[5, 6, 7], [8]]], "val": [[[21, 22]], []]}


def flat(segments: list[Documents], eos: int = EOS) -> list[int]:
    return [token for rows in segments for row in rows for token in [*row, eos]]


def documents(segments: list[Documents], eos: int = EOS) -> Documents:
    return [[*row, eos] for rows in segments for row in rows]


def index_bytes(lengths: list[int], code: int, itemsize: int) -> bytes:
    offsets = [0, *np.cumsum(lengths).tolist()][: len(lengths)]
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
    body = struct.pack(f"<{len(lengths)}i", *lengths)
    body += struct.pack(f"<{len(lengths)}q", *(offset * itemsize for offset in offsets))
    return head + body + struct.pack(f"<{len(lengths) + 1}q", *range(len(lengths) + 1))


def store(root: Path, segments: Segments, tokenizer: Tokenizer = NARROW, *, layout: str = "memmap") -> Artifact:
    """Publish a tokens artifact called `small` of these documents, without using the code that writes tokens."""
    dtype, code = ("<u2", 8) if tokenizer.vocab_size <= 1 << 16 else ("<u4", 4)
    eos = tokenizer.end_of_text

    def fill(draft: Path) -> StageOutput:
        tokenizer.save(draft)
        counts: dict[str, int | str] = {"dtype": dtype, "vocab_size": tokenizer.vocab_size, "end_of_text": eos}
        for split in ("train", "val"):
            parts = segments.get(split, [])
            for index, rows in enumerate(parts):
                name = draft / f"{split}-{index:05d}-0000"
                lengths = [len(row) + 1 for row in rows]
                name.with_suffix(".idx").write_bytes(index_bytes(lengths, code, np.dtype(dtype).itemsize))
                if layout == "memmap":
                    np.array(flat([rows], eos), dtype).tofile(name.with_suffix(".bin"))
            ids = np.array(flat(parts, eos), dtype)
            if layout == "hdf5" or not parts:
                with h5py.File(draft / f"{split}.h5", "w") as file:
                    file.create_dataset("tokens", data=ids)
            counts |= {f"{split}_tokens": len(ids), f"{split}_documents": len(documents(parts))}
        return StageOutput(counts)

    options = {"segments": segments, "layout": layout}
    return artifact.build(root, Identity("tokens", "small", options, (), tokenizer.fingerprint), fill).artifact


STORES = {
    "several segments": (SEVERAL, NARROW, "memmap"),
    "several segments, wide": (SEVERAL_WIDE, WIDE, "memmap"),
    "one segment": (ONE, NARROW, "memmap"),
    "one segment and an empty one": (ONE_AND_EMPTY, NARROW, "memmap"),
    "HDF5 alone": (SEVERAL, NARROW, "hdf5"),
    "HDF5 alone, wide": (SEVERAL_WIDE, WIDE, "hdf5"),
    "no validation split": ({"train": ONE["train"]}, NARROW, "memmap"),
}
CASES = [(name, to) for name in STORES for to in FORMATS if STORES[name][1].vocab_size <= FORMATS[to].max_vocab_size]


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set blocks, files and chunks to a few ids, so that small stores fill several of them."""
    monkeypatch.setattr(arrays, "BLOCK", 5)
    monkeypatch.setattr(llmc, "_FILE_IDS", 6)
    monkeypatch.setattr(llmc, "_MIN_LAST_FILE_IDS", 3)
    monkeypatch.setattr(litdata, "_CHUNK_BYTES", 24)


def read_back(to: str, folder: Path) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {}
    for span in FORMATS[to].read(folder):
        assert (folder / span.file).is_file()
        ids.setdefault(span.split, []).extend(span.ids.tolist())
    return ids


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- every format ---


@pytest.mark.parametrize(("name", "to"), CASES)
@pytest.mark.usefixtures("small_files")
def test_every_format_reads_back_every_store(root: Path, tmp_path: Path, name: str, to: str) -> None:
    segments, tokenizer, layout = STORES[name]
    tokens = store(root, segments, tokenizer, layout=layout)
    exported = export(tokens, to, tmp_path / "out", verify=True)
    assert read_back(to, exported.path) == {split: flat(parts) for split, parts in segments.items()}
    written = tree(exported.path)
    assert exported.files == tuple(sorted(written))
    assert exported.bytes == sum(map(len, written.values()))
    assert exported.tokens == sum(len(flat(parts)) for parts in segments.values())
    assert exported.documents == sum(len(documents(parts)) for parts in segments.values())
    assert (exported.format, exported.verified) == (to, True)
    assert artifact.find_problems(tokens, deep=True) == []
    assert not list(tmp_path.glob(f"{files.TEMPORARY}*"))


@pytest.mark.parametrize("to", FORMATS)
def test_same_tokens_give_same_bytes(root: Path, tmp_path: Path, to: str) -> None:
    tokens = store(root, SEVERAL)
    export(tokens, to, tmp_path / "one")
    export(artifact.read(tokens.path), to, tmp_path / "other" / "deeper", verify=True)
    assert tree(tmp_path / "one") == tree(tmp_path / "other" / "deeper")


@pytest.mark.parametrize("to", FORMATS)
def test_bytes_do_not_depend_on_segments(root: Path, tmp_path: Path, to: str) -> None:
    joined = {split: [[row for rows in parts for row in rows]] for split, parts in SEVERAL.items()}
    export(store(root, SEVERAL), to, tmp_path / "several")
    export(store(root, joined), to, tmp_path / "one")
    several, one = tree(tmp_path / "several"), tree(tmp_path / "one")
    for index in ("train/index.json", "val/index.json"):  # they contain the artifact's digest
        assert (index in several) == (index in one)
        several.pop(index, None), one.pop(index, None)
    assert several == one


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("segments", [ONE, ONE_AND_EMPTY])
def test_a_tool_that_rewrites_exported_files_does_not_change_the_store(
    root: Path, tmp_path: Path, to: str, segments: Segments
) -> None:
    tokens = store(root, segments)
    out = export(tokens, to, tmp_path / "out").path
    for path in (path for path in out.rglob("*") if path.is_file()):
        path.write_bytes(b"changed")
    assert artifact.find_problems(tokens, deep=True) == []


# --- refusals ---


def test_unknown_format_is_refused_with_the_list_of_formats(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadConfig) as refused:
        export(store(root, ONE), "parquet", tmp_path / "out")
    assert all(name in refused.value.hint for name in FORMATS)


def test_too_large_vocabulary_is_refused_with_fitting_formats(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="vocabulary of integers has 100,000") as refused:
        export(store(root, SEVERAL_WIDE, WIDE), "nanogpt", tmp_path / "out")
    assert "megatron" in refused.value.hint
    assert "nanogpt" not in refused.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_existing_target_is_refused_and_kept(root: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    create: dict[str, Callable[[], object]] = {
        "folder": out.mkdir,
        "file": lambda: out.write_text("mine"),
        "broken link": lambda: out.symlink_to("nowhere"),
    }
    create[kind]()
    with pytest.raises(CannotCreate, match="already exists") as refused:
        export(store(root, ONE), "nanogpt", out)
    assert "--out" in refused.value.hint
    assert not out.is_dir() or not list(out.iterdir())


def test_folder_created_during_the_export_is_kept(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def write(source: TokenSource, folder: Path) -> None:
        FORMATS["nanogpt"].write(source, folder)
        out.mkdir()
        (out / "mine").write_text("mine")

    tokens = store(root, ONE)
    monkeypatch.setattr(token_export, "FORMATS", {"nanogpt": replace(FORMATS["nanogpt"], write=write)})
    with pytest.raises(CannotCreate, match="meanwhile"):
        export(tokens, "nanogpt", out)
    assert tree(out) == {"mine": b"mine"}
    assert not list(tmp_path.glob(f"{files.TEMPORARY}*"))


def test_export_into_the_artifact_is_refused(root: Path) -> None:
    tokens = store(root, ONE)
    with pytest.raises(CannotCreate, match="inside the artifact"):
        export(tokens, "nanogpt", tokens.path / "nanogpt")


def test_damaged_artifact_is_not_exported(root: Path, tmp_path: Path) -> None:
    tokens = store(root, SEVERAL)
    tokens.file("train-00000-0000.bin").write_bytes(b"\x01\x00")
    with pytest.raises(BadData):
        export(tokens, "nanogpt", tmp_path / "out")


@pytest.mark.parametrize("to", ["megatron", "datatrove"])
def test_index_that_does_not_match_the_tokens_is_not_exported(root: Path, tmp_path: Path, to: str) -> None:
    tokens = store(root, SEVERAL)
    index = tokens.file("train-00000-0000.idx")
    index.write_bytes(index_bytes([4, 3], 8, 2))
    os.utime(index, (1e9, 1e9))  # older than the manifest, as after bit rot, so the index alone shows the change
    with pytest.raises(BadData, match="train index"):
        export(tokens, to, tmp_path / "out")


@pytest.mark.parametrize("segments", [ONE, SEVERAL])
def test_space_is_checked_before_writing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segments: Segments
) -> None:
    tokens = store(root, segments)
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(StorageFailed) as refused:
        export(tokens, "nanogpt", tmp_path / "out")
    assert "--out" in refused.value.hint


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), BadData("no")])
@pytest.mark.parametrize("to", FORMATS)
def test_interrupted_export_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, error: BaseException
) -> None:
    tokens = store(root, ONE)

    def write(source: TokenSource, folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise error

    monkeypatch.setattr(token_export, "FORMATS", {to: replace(FORMATS[to], write=write)})
    with pytest.raises(type(error)):
        export(tokens, to, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts"]


# --- verify ---


def flip_bytes(folder: Path) -> Iterator[Path]:
    """For many bytes of the binary files of an export: flip one bit of it, yield its file, and restore it."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".bin", ".idx", ".ds", ".index"):
            data = path.read_bytes()
            offsets = range(len(data)) if len(data) < 500 else [*range(16), *range(16, len(data), 13)]
            for offset in offsets:
                path.write_bytes(data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
                yield path
            path.write_bytes(data)


@pytest.mark.parametrize("to", ["nanogpt", "megatron", "llmc", "datatrove", "litdata"])
@pytest.mark.usefixtures("small_files")
def test_verify_finds_every_flipped_byte_and_names_its_file(root: Path, tmp_path: Path, to: str) -> None:
    tokens = store(root, SEVERAL)
    out = export(tokens, to, tmp_path / "out").path
    source = open_source(tokens)
    flips = 0
    for path in flip_bytes(out):
        with pytest.raises(BadData) as caught:
            require_same(FORMATS[to], out, source)
        file = caught.value.message.split(":")[0]
        assert Path(file).stem.split(".")[0] == path.stem.split(".")[0], caught.value.message
        flips += 1
    assert flips > 40
    require_same(FORMATS[to], out, source)


@pytest.mark.parametrize("to", FORMATS)
def test_export_that_does_not_read_back_is_not_published(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    def write(source: TokenSource, folder: Path) -> None:
        FORMATS[to].write(source, folder)
        if to == "hdf5-int32":
            with h5py.File(folder / "train.h5", "r+") as file:
                file["tokens"][7] = 999
            return
        path = next(
            path for path in sorted(folder.rglob("*")) if "train" in str(path) and path.suffix in (".bin", ".ds")
        )
        data = bytearray(path.read_bytes())
        offset = {"llmc": 1024 + 16, "litdata": 12 + 14}.get(to, 14)
        data[offset : offset + 2] = struct.pack("<H", 999)
        path.write_bytes(data)

    tokens = store(root, SEVERAL)
    monkeypatch.setattr(token_export, "FORMATS", {to: replace(FORMATS[to], write=write)})
    with pytest.raises(BadData, match=r"train.*token 7 of the train split is 999 instead of 10") as caught:
        export(tokens, to, tmp_path / "out", verify=True)
    assert "nothing was exported" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts"]


@pytest.mark.parametrize("to", ["nanogpt", "megatron", "llmc", "datatrove", "litdata"])
def test_verify_finds_a_missing_split(root: Path, tmp_path: Path, to: str) -> None:
    tokens = store(root, SEVERAL)
    out = export(tokens, to, tmp_path / "out").path
    for path in [path for path in sorted(out.rglob("*")) if "val" in str(path.relative_to(out)) and path.is_file()]:
        path.unlink()
    with pytest.raises(BadData, match="0 tokens instead of 7"):
        require_same(FORMATS[to], out, open_source(tokens))


# --- blocks and files ---


@given(st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=4), st.integers(0, 30), st.integers(0, 30))
def test_blocks_are_the_ids_of_a_range(segments: list[list[int]], start: int, stop: int) -> None:
    array = TokenArray(tuple(np.array(segment, "<u2") for segment in segments))
    ids = [token for segment in segments for token in segment]
    assert [token for block in arrays.blocks(array, start, stop) for token in block] == ids[start:stop]


def test_blocks_of_maps_are_read_from_files_at_the_right_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "BLOCK", 3)
    np.arange(10, dtype="<u2").tofile(tmp_path / "ids")
    full, tail = np.memmap(tmp_path / "ids", "<u2", "r"), np.memmap(tmp_path / "ids", "<u2", "r", offset=8)
    array = TokenArray((full, tail, full[7:]))
    assert [block.tolist() for block in arrays.blocks(array, 8, 18)] == [[8, 9], [4, 5, 6], [7, 8, 9], [7, 8]]
    os.truncate(tmp_path / "ids", 6)
    with pytest.raises(BadData, match="shorter"):
        list(arrays.blocks(array, 0, 10))


@given(st.integers(1, 100), st.integers(1, 20), st.integers(1, 20))
def test_only_the_last_file_has_another_size(total: int, size: int, min_last: int) -> None:
    ranges = arrays.file_ranges(total, size, min_last)
    assert (ranges[0][0], ranges[-1][1]) == (0, total)
    assert all(stop == start for (_, stop), (start, _) in pairwise(ranges))
    assert all(stop - start == size for start, stop in ranges[:-1])
    assert len(ranges) == 1 or ranges[-1][1] - ranges[-1][0] >= min(min_last, size)


# --- nanoGPT ---


def test_nanogpt_maps_two_flat_files_of_uint16(root: Path, tmp_path: Path) -> None:
    out = export(store(root, SEVERAL), "nanogpt", tmp_path / "out").path
    assert sorted(tree(out)) == ["meta.pkl", "train.bin", "val.bin"]
    for split, parts in SEVERAL.items():
        assert np.memmap(out / f"{split}.bin", dtype=np.uint16, mode="r").tolist() == flat(parts)


def test_nanogpt_samples_characters_with_its_meta_file(root: Path, tmp_path: Path) -> None:
    tokenizer = Characters("\n水滸傳□", "chars")
    tokens = store(root, {"train": [[[3, 4, 5], [6, 1]]], "val": [[[2]]]}, tokenizer)
    out = export(tokens, "nanogpt", tmp_path / "out").path
    meta = pickle.loads((out / "meta.pkl").read_bytes())
    assert type(meta) is dict
    assert meta["vocab_size"] == tokenizer.vocab_size == 7
    assert meta["itos"] == {0: END_OF_TEXT, 1: "□", 2: "\n", 3: "水", 4: "滸", 5: "傳", 6: "□"}
    assert [meta["stoi"][character] for character in "水滸□\n"] == tokenizer.encode("水滸□\n")
    ids = np.fromfile(out / "train.bin", np.uint16).tolist()
    assert "".join(meta["itos"][token] for token in ids) == f"水滸傳{END_OF_TEXT}□□{END_OF_TEXT}"


def printed_by_sample_py(folder: Path, prompt: str) -> str:
    """What nanoGPT's sample.py prints of a prompt and the ids of train.bin after it, with its two lambdas."""
    meta = pickle.loads((folder / "meta.pkl").read_bytes())
    stoi, itos = meta["stoi"], meta["itos"]
    ids = [stoi[c] for c in prompt] + np.fromfile(folder / "train.bin", np.uint16).tolist()
    return "".join([itos[i] for i in ids])


@pytest.mark.parametrize("adds_prefix", [True, False], ids=["dummy prefix", "no prefix"])
def test_nanogpt_samples_words_with_their_spaces(root: Path, tmp_path: Path, adds_prefix: bool) -> None:
    text = "the quick brown fox  jumps over\nthe lazy dog"
    settings = {**AS_EVER, "add_dummy_prefix": adds_prefix}
    tokenizer = SentencePiece(model_of(f"{text}\n" * 50, 310, **settings), "foreign")
    tokens = store(root, {"train": [[tokenizer.encode(text)]]}, tokenizer)
    out = export(tokens, "nanogpt", tmp_path / "out", verify=True).path
    prefix = " " if adds_prefix else ""
    assert printed_by_sample_py(out, "a dog\n") == f"a dog\n{prefix}{text}{END_OF_TEXT}"


def test_nanogpt_texts_that_lose_a_space_are_found(root: Path, tmp_path: Path) -> None:
    tokenizer = SentencePiece(model_of("the fox\n" * 50, 270, **{**AS_EVER, "add_dummy_prefix": True}), "foreign")
    tokens = store(root, {"train": [[tokenizer.encode("the fox")]]}, tokenizer)
    out = export(tokens, "nanogpt", tmp_path / "out", verify=True).path
    meta = pickle.loads((out / "meta.pkl").read_bytes())
    meta["itos"] = {token: text.removeprefix(" ") for token, text in meta["itos"].items()}
    (out / "meta.pkl").write_bytes(pickle.dumps(meta))
    with pytest.raises(BadData, match=r"meta\.pkl: the texts of its ids are not those of foreign"):
        require_same(FORMATS["nanogpt"], out, open_source(tokens))


@pytest.mark.parametrize(("name", "expected"), [("r50k_base", ["train.bin"]), ("p50k_base", ["meta.pkl", "train.bin"])])
def test_gpt2_ids_have_no_meta_file(root: Path, tmp_path: Path, name: str, expected: list[str]) -> None:
    ranks = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
    tokens = store(root, {"train": [[[104, 105]]]}, Tiktoken(name, ranks, r"\S+|\s+", 257, 256))
    assert sorted(tree(export(tokens, "nanogpt", tmp_path / "out").path)) == expected


# --- Megatron ---


def megatron_documents(prefix: Path) -> Documents:
    data = prefix.with_suffix(".idx").read_bytes()
    magic, version, code, sequences, indices = struct.unpack("<9sQBQQ", data[:34])
    assert (magic, version) == (b"MMIDIDX\x00\x00", 1)
    lengths = np.frombuffer(data, np.int32, sequences, 34)
    offsets = np.frombuffer(data, np.int64, sequences, 34 + lengths.nbytes)
    first = np.frombuffer(data, np.int64, indices, 34 + lengths.nbytes + offsets.nbytes)
    assert len(data) == 34 + lengths.nbytes + offsets.nbytes + first.nbytes
    assert lengths.shape[0] == first[-1]
    dtype = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}[code]
    body = prefix.with_suffix(".bin").read_bytes()
    return [
        [
            token
            for index in range(start, stop)
            for token in np.frombuffer(body, dtype, int(lengths[index]), int(offsets[index])).tolist()
        ]
        for start, stop in pairwise(first.tolist())
    ]


@pytest.mark.parametrize(("segments", "tokenizer"), [(SEVERAL, NARROW), (SEVERAL_WIDE, WIDE), (ONE, NARROW)])
def test_megatron_reads_one_dataset_per_split(
    root: Path, tmp_path: Path, segments: Segments, tokenizer: Tokenizer
) -> None:
    out = export(store(root, segments, tokenizer), "megatron", tmp_path / "out").path
    assert sorted(tree(out)) == [f"small_{s}_document.{x}" for s in ("train", "val") for x in ("bin", "idx")]
    for split, parts in segments.items():
        assert megatron_documents(out / f"small_{split}_document") == documents(parts)


# --- llm.c ---


def llmc_tokens(path: Path) -> list[int]:
    """Read a file as dataloader_load_shard_ in llmc/dataloader.h does, and train_llama3.py for 32-bit ids."""
    data = path.read_bytes()
    header = struct.unpack("<256i", data[:1024])
    dtype = {(20240520, 1): np.uint16, (20240801, 7): np.uint32}[header[0], header[1]]
    count = header[2]
    assert count > 0
    assert not any(header[3:])
    assert len(data) == 256 * 4 + count * np.dtype(dtype).itemsize
    return np.frombuffer(data, dtype, count, 1024).tolist()


@pytest.mark.parametrize(("segments", "tokenizer"), [(SEVERAL, NARROW), (SEVERAL_WIDE, WIDE)])
@pytest.mark.usefixtures("small_files")
def test_llmc_reads_documents_that_start_with_end_of_text(
    root: Path, tmp_path: Path, segments: Segments, tokenizer: Tokenizer
) -> None:
    out = export(store(root, segments, tokenizer), "llmc", tmp_path / "out", verify=True).path
    for split, parts in segments.items():
        shards = [llmc_tokens(path) for path in sorted(out.glob(f"small_{split}_*.bin"))]
        assert [token for shard in shards for token in shard] == [
            token for rows in parts for row in rows for token in [EOS, *row]
        ]
        assert all(len(shard) == 6 for shard in shards[:-1])
    assert sorted(tree(out)) == [
        "small_train_000000.bin",
        "small_train_000001.bin",
        "small_train_000002.bin",
        "small_val_000000.bin",
    ]


@pytest.mark.usefixtures("small_files")
def test_llmc_merges_a_too_short_last_file_into_the_one_before(root: Path, tmp_path: Path) -> None:
    segments = {"train": [[[1] * 5, [2] * 5, [3]]]}  # 14 ids: files of 6 would leave one of 2
    out = export(store(root, segments), "llmc", tmp_path / "out", verify=True).path
    assert [len(llmc_tokens(path)) for path in sorted(out.iterdir())] == [6, 8]


@pytest.mark.parametrize(("tokens", "sizes"), [(1, [1]), (2, [1, 1]), (11, [6, 5])])
def test_llmc_has_two_training_files_where_there_are_two_ids(
    root: Path, tmp_path: Path, tokens: int, sizes: list[int]
) -> None:
    segments = {"train": [[[1] * (tokens - 1)]], "val": [[[2] * 9]]}
    out = export(store(root, segments), "llmc", tmp_path / "out", verify=True).path
    assert [len(llmc_tokens(path)) for path in sorted(out.glob("small_train_*"))] == sizes
    assert [path.name for path in out.glob("small_val_*")] == ["small_val_000000.bin"]


def test_llmc_has_files_of_the_chosen_size(root: Path, tmp_path: Path) -> None:
    tokens = store(root, {"train": [[[1] * 13]], "val": [[[2] * 4]]})
    out = export(tokens, "llmc", tmp_path / "out", verify=True, shard_tokens=4).path
    assert [len(llmc_tokens(path)) for path in sorted(out.glob("small_train_*"))] == [4, 4, 4, 2]
    assert [len(llmc_tokens(path)) for path in sorted(out.glob("small_val_*"))] == [5]
    with pytest.raises(BadConfig, match="--shard-tokens is for --to llmc"):
        export(tokens, "nanogpt", tmp_path / "other", shard_tokens=4)


def test_llmc_refuses_more_files_than_names(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmc, "_MAX_FILES", 3)
    with pytest.raises(BadConfig, match="more than 3 files") as caught:
        export(store(root, {"train": [[[1] * 13]]}), "llmc", tmp_path / "out", shard_tokens=4)
    assert caught.value.hint == "choose at least 5"


@pytest.mark.parametrize(("tokenizer", "segments", "start"), [(NARROW, SEVERAL, ""), (WIDE, SEVERAL_WIDE, "ids of 4")])
def test_llmc_warns_of_ids_that_only_train_llama3_reads(
    root: Path, tmp_path: Path, tokenizer: Tokenizer, segments: Segments, start: str
) -> None:
    warning = export(store(root, segments, tokenizer), "llmc", tmp_path / "out").warning
    assert warning[:8] == start


def test_llmc_refuses_split_without_final_end_of_text(root: Path, tmp_path: Path) -> None:
    tokens = store(root, ONE)
    path = tokens.file("train-00000-0000.bin")
    path.write_bytes(path.read_bytes()[:-2] + b"\x07\x00")
    os.utime(path, (1e9, 1e9))
    with pytest.raises(BadData, match="end-of-text"):
        export(tokens, "llmc", tmp_path / "out")


# --- train-llm-from-scratch ---


@pytest.mark.parametrize(("segments", "tokenizer"), [(SEVERAL, NARROW), (SEVERAL_WIDE, WIDE)])
def test_train_llm_from_scratch_embeds_blocks_of_the_dataset(
    root: Path, tmp_path: Path, segments: Segments, tokenizer: Tokenizer
) -> None:
    import torch

    out = export(store(root, segments, tokenizer), "hdf5-int32", tmp_path / "out").path
    assert sorted(tree(out)) == ["train.h5", "val.h5"]
    context = 4
    for split, parts in segments.items():
        with h5py.File(out / f"{split}.h5", "r") as file:
            dataset = file["tokens"]
            assert (list(file), dict(dataset.attrs)) == (["tokens"], {})
            assert (dataset.dtype, dataset.ndim, dataset.maxshape) == (np.dtype("<i4"), 1, (None,))
            ids = flat(parts)
            assert dataset[:].tolist() == ids
            starts = range(0, (len(ids) - 1) // context * context, context)
            batch = torch.tensor(np.array([dataset[start : start + context + 1] for start in starts]))
        inputs, targets = batch[:, :context], batch[:, 1:]
        embedded = torch.nn.Embedding(tokenizer.vocab_size, 2)(inputs)
        assert embedded.shape == (len(starts), context, 2)
        assert [*inputs[0].tolist(), targets[0, -1].item()] == ids[: context + 1]


# --- datatrove, by datatrove itself ---


@pytest.mark.parametrize(
    ("segments", "tokenizer", "size"), [(SEVERAL, NARROW, 2), (SEVERAL_WIDE, WIDE, 4), (ONE, NARROW, 2)]
)
def test_datatrove_reads_windows_and_positions_in_documents(
    root: Path, tmp_path: Path, segments: Segments, tokenizer: Tokenizer, size: int
) -> None:
    pytest.importorskip("datatrove")
    from datatrove.utils.dataset import DatatroveFolderDataset

    out = export(store(root, segments, tokenizer), "datatrove", tmp_path / "out").path
    for split, parts in segments.items():
        pattern = f"*_{split}.ds"
        dataset = DatatroveFolderDataset(
            str(out), seq_len=2, filename_pattern=pattern, token_size=size, return_positions=True
        )
        ids = flat(parts)
        starts = range(0, len(ids) - 2, 3)
        assert [item["input_ids"].tolist() for item in dataset] == [ids[start : start + 3] for start in starts]
        positions_in_documents = [position for row in documents(parts) for position in range(len(row))]
        for start, item in zip(starts, dataset, strict=True):
            # positions in a window that starts inside a document count from the start of the window
            window = positions_in_documents[start : start + 3]
            next_document = next((index for index in (1, 2) if window[index] == 0), 3)
            expected = [position - window[0] * (index < next_document) for index, position in enumerate(window)]
            assert item["positions"].tolist() == expected


@pytest.mark.parametrize(("segments", "tokenizer"), [(SEVERAL, NARROW), (SEVERAL_WIDE, WIDE)])
def test_datatrove_merges_documents_of_both_id_sizes(
    root: Path, tmp_path: Path, segments: Segments, tokenizer: Tokenizer
) -> None:
    pytest.importorskip("datatrove")
    pytest.importorskip("tokenizers")
    from datatrove.pipeline.tokens import DocumentTokenizerMerger

    out = export(store(root, segments, tokenizer), "datatrove", tmp_path / "out").path
    merger = DocumentTokenizerMerger(str(out), str(tmp_path / "merged"), "all", seed=1, progress=False)
    merger.run(None)
    expected = [row for split in segments for row in documents(segments[split])]
    merged = tmp_path / "merged" / "000_all.ds"
    itemsize = 2 if tokenizer is NARROW else 4
    ids = np.fromfile(merged, f"<u{itemsize}").tolist()
    ends = [0, *np.fromfile(f"{merged}.index", "<u8").tolist()]
    assert sorted(ids[start:stop] for start, stop in pairwise(ends)) == sorted(expected)
    total = (tmp_path / "merged" / "all.ds.metadata").read_text().split("\n")
    assert total[:2] == [f"{tokenizer.name}|{itemsize}", str(len(ids))]


def test_datatrove_metadata_has_three_lines(root: Path, tmp_path: Path) -> None:
    tokenizer = Characters("ab", "a|b")
    out = export(store(root, {"train": [[[2, 3], [2]]]}, tokenizer), "datatrove", tmp_path / "out").path
    assert (out / "small_train.ds.metadata").read_bytes() == b"a-b|2\n5\n5.00 T"
    assert np.fromfile(out / "small_train.ds.index", "<u8").tolist() == [3, 5]


@pytest.mark.parametrize("count", [1, 12, 123, 1234, 12_345, 999_000, 1_234_567, 12_345_678_901, 10**12])
def test_readable_count_is_the_one_that_datatrove_writes(count: int) -> None:
    humanize = pytest.importorskip("humanize")
    from pipeline.export import datatrove

    assert datatrove._metric(count) == humanize.metric(count, unit="T")


# --- litdata, by litdata itself ---


@pytest.mark.parametrize(("segments", "tokenizer"), [(SEVERAL, NARROW), (SEVERAL_WIDE, WIDE)])
@pytest.mark.usefixtures("small_files")
def test_litdata_streams_blocks_of_every_chunk(
    root: Path, tmp_path: Path, segments: Segments, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("litdata")
    from litdata import StreamingDataset, TokensLoader

    monkeypatch.setenv("LITDATA_DISABLE_VERSION_CHECK", "1")
    out = export(store(root, segments, tokenizer), "litdata", tmp_path / "out").path
    itemsize = 2 if tokenizer is NARROW else 4
    for split, parts in segments.items():
        ids = flat(parts)
        chunks = [ids[start : start + 24 // itemsize] for start in range(0, len(ids), 24 // itemsize)]
        blocks = [chunk[start : start + 3] for chunk in chunks for start in range(0, len(chunk) - 2, 3)]
        dataset = StreamingDataset(str(out / split), item_loader=TokensLoader(block_size=3))
        assert len(dataset) == len(blocks)
        assert [block.tolist() for block in dataset] == blocks
        assert len(list(out.glob(f"{split}/chunk-0-*.bin"))) == len(chunks)


def test_litdata_stamp_depends_on_tokens_only(root: Path, tmp_path: Path) -> None:
    def stamp(segments: Segments, out: str) -> str:
        folder = export(store(root, segments), "litdata", tmp_path / out).path
        return str(json.loads((folder / "train" / "index.json").read_text())["updated_at"])

    assert stamp(SEVERAL, "one") == stamp(SEVERAL, "other")
    assert stamp(SEVERAL, "several") != stamp(ONE, "single")
    assert stamp(SEVERAL, "digits").isdigit()
    assert filecmp.cmp(
        tmp_path / "one" / "val" / "index.json", tmp_path / "other" / "val" / "index.json", shallow=False
    )
