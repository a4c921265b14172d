"""The complete chain on real input, through the command line."""

from __future__ import annotations

import csv
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard

Inkstone = Callable[..., dict[str, Any]]


def test_demo_learns_and_a_second_demo_changes_nothing(inkstone: Inkstone, root: Path) -> None:
    first = inkstone("demo")
    assert first["result"] == "built"
    assert [stage["result"] for stage in first["stages"]] == ["built"] * 5
    assert first["bits_per_char"] < 0.8 * first["first_bits_per_char"]
    assert Path(first["loss_curve"]).read_bytes().startswith(b"\x89PNG")
    assert len(first["samples"]) == 3
    assert all(sample["text"].strip() for sample in first["samples"])
    before = modification_times(root)
    second = inkstone("demo")
    assert second["result"] == "unchanged"
    assert second["seconds"] < 15
    assert modification_times(root) == before
    refreshed = inkstone("refresh", "sample")
    assert refreshed["result"] == "unchanged"
    assert refreshed["artifact"] == second["artifact"]
    assert modification_times(root) == before


def modification_times(root: Path) -> dict[Path, int]:
    """Modification time of each published file: without locks and the state of refreshes."""
    paths = (path for path in root.rglob("*") if path.is_file() and ".state" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in paths if path.name != ".lock"}


@pytest.fixture
def pile_server(shared: Path, tmp_path: Path) -> Iterator[str]:
    """Local server of the shared Pile files, under the same paths as on the hub."""
    folder = tmp_path / "hub" / "datasets" / "monology" / "pile-uncopyrighted" / "resolve" / "main"
    (folder / "train").mkdir(parents=True)
    names = {"pile_train_00": "train/00", "pile_train_01": "train/01", "pile_val": "val"}
    for name, remote_name in names.items():
        (folder / f"{remote_name}.jsonl.zst").symlink_to(shared / "data" / f"{name}.jsonl.zst")
    handler = partial(QuietHandler, directory=str(tmp_path / "hub"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_pile_shards_download_from_a_mirror_and_train_a_model(
    inkstone: Inkstone, pile_server: str, shared: Path
) -> None:
    fetched = inkstone("download", "pile", "--mirror", pile_server, "--shards", "0-1,val")
    assert fetched["counts"]["fetched"] == 3
    assert inkstone("download", "pile", "--mirror", pile_server, "--shards", "0-1,val")["result"] == "unchanged"

    both = inkstone("tokenize", "pile", "--tokenizer", "r50k_base", "--format", "both", "--jobs", "2")
    assert (both["documents"], both["dtype"], both["tokenizer"]) == (2416, "<u2", "r50k_base")
    folder = Path(both["path"])
    assert np.array_equal(memmap_ids(folder, "train"), hdf5_ids(folder / "train.h5"))
    assert np.array_equal(memmap_ids(folder, "val"), hdf5_ids(folder / "val.h5"))
    expected = tiktoken_ids(shared / "data" / "pile_val.jsonl.zst")
    assert np.array_equal(memmap_ids(folder, "val"), expected)

    memmap_only = inkstone("tokenize", "pile", "--tokenizer", "r50k_base", "--jobs", "1", "--name", "alone")
    assert checksums(Path(memmap_only["path"])) == {
        name: value for name, value in checksums(folder).items() if ".h5" not in name
    }

    trained = inkstone("train", "--tokens", "pile", "--preset", "13m", "--steps", "3", "--set", "eval_bytes=4000")
    assert trained["counts"]["parameters"] == pytest.approx(13.1e6, rel=0.01)
    assert trained["bits_per_char"] < trained["first_bits_per_char"]
    sampled = inkstone("sample", "13m", "--prompt", "The history of", "--max-tokens", "5")
    assert len(sampled["samples"][0]["token_ids"]) == 5


def memmap_ids(folder: Path, split: str) -> np.ndarray:
    return np.concatenate([np.fromfile(path, "<u2") for path in sorted(folder.glob(f"{split}-*.bin"))])


def hdf5_ids(path: Path) -> np.ndarray:
    import h5py

    with h5py.File(path) as file:
        ids: np.ndarray = file["tokens"][:]
        return ids


def tiktoken_ids(path: Path) -> np.ndarray:
    """Reference ids: each document by `encode_ordinary`, followed by 50256."""
    import tiktoken

    encoding = tiktoken.get_encoding("r50k_base")
    ids: list[int] = []
    with open(path, "rb") as handle:
        data = zstandard.ZstdDecompressor().stream_reader(handle).read()
    for line in data.splitlines():
        ids += [*encoding.encode_ordinary(msgspec.json.decode(line)["text"]), 50256]
    return np.array(ids, "<u2")


def checksums(folder: Path) -> dict[str, str]:
    excluded = ("manifest.json", "run.json")
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name not in excluded
    }


def test_shuihu_runs_stage_by_stage_and_by_one_recipe(inkstone: Inkstone, shared: Path) -> None:
    book = shared / "data" / "shuihu_raw.txt"
    cleaned = inkstone("clean", book, "--name", "shuihu")
    assert cleaned["counts"]["headings"] == 161
    assert cleaned["counts"]["documents"] == 161
    inkstone("train-tokenizer", "shuihu", "--kind", "bpe", "--vocab-size", "8000")
    assert inkstone("tokenize", "shuihu")["tokens"] > 500_000
    trained = inkstone(
        "train", "--tokens", "shuihu", "--preset", "shuihu-8m-rope", "--steps", "4", "--set", "eval_bytes=2000"
    )
    assert trained["counts"]["parameters"] == pytest.approx(8e6, rel=0.05)
    sampled = inkstone(
        "sample", "shuihu-8m-rope", "--prompt", "宋江在梁山泊", "--max-tokens", "8", "--num-samples", "2"
    )
    assert len(sampled["samples"]) == 2
    with open(Path(trained["path"]) / "metrics.csv", newline="") as handle:
        assert [row["step"] for row in csv.DictReader(handle)][-1] == "4"

    settings = ("--set", f"download.source={book}", "--set", "train.minutes=0.02", "--set", "train.set.eval_bytes=2000")
    plan = inkstone("refresh", "shuihu", *settings, "--dry-run")
    assert {stage["stage"] for stage in plan["stages"] if stage["result"] == "fresh"} == {"train-tokenizer"}
    refreshed = inkstone("refresh", "shuihu", *settings)
    assert [stage["result"] for stage in refreshed["stages"]] == ["built", "built", "unchanged", "built", "built"]
    assert inkstone("refresh", "shuihu", *settings)["result"] == "unchanged"
