"""`bench tokenize`: Pile shards to GPT-2 tokens, our way and the others', in turn, each run in a fresh process.

Rates are MB of JSON lines a second. Without shards it makes its own from the shared English texts: one of `size` MB,
two of half of that, one of 64 MB and one of four times the size. Slow ways run once, on the two halves.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import zstandard

from benchmarks import ways
from benchmarks.rows import Row
from benchmarks.ways import Figures
from pipeline.errors import InputMissing
from pipeline.readers import compression

_TEXTS = ("pile_train_00.jsonl.zst", "pile_train_01.jsonl.zst", "pile_val.jsonl.zst")
_SMALL = 64  # MB


def bench(
    rounds: int, *, shards: Sequence[Path] = (), size: int = 256, report: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """Rows of rates, and of peak memory. `shards` are used as they are, for every comparison."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, halves, large, small = _inputs(folder, shards, size)
        runs = _Runs(folder, report)
        fast: list[tuple[str, Sequence[Path], int]] = [
            ("zstd_alone", whole, 1),
            ("inkstone", whole, 1),
            ("inkstone", whole, 2),
            ("inkstone", large, 1),
            ("inkstone", large, 2),
            ("inkstone", small, 1),
            ("inkstone", halves, 2),
            ("gigatoken_files", halves, 2),
            ("gigatoken_plain", halves, 2),
        ]
        each_once = {(way, tuple(inputs), jobs): None for way, inputs, jobs in fast}  # named shards are all of them
        for number in range(rounds):
            for way, inputs, jobs in each_once:
                runs.run(way, inputs, jobs, f"round {number + 1} of {rounds}")
        for way in ("inkstone_tiktoken", "tiktoken_batch", "hdf5_append", "datatrove"):
            runs.run(way, halves, 2, "once")
        rate = runs.rate
        rows = [
            Row("tokenize, 1 job", rate("inkstone", whole, 1), rate("zstd_alone", whole, 1), "zstd alone", "MB/s"),
            Row("tokenize, 2 jobs", rate("inkstone", whole, 2), rate("inkstone", whole, 1), "1 job", "MB/s"),
        ]
        if large != whole:
            ours, peer = rate("inkstone", large, 2), rate("inkstone", large, 1)
            rows.append(Row("tokenize 4 x as much, 2 jobs", ours, peer, "1 job", "MB/s"))
        ours = rate("inkstone", halves, 2)
        names = {
            "gigatoken_files": "gigatoken's encode_files",
            "gigatoken_plain": "gigatoken on lines decompressed before",
            "inkstone_tiktoken": "the same with tiktoken",
            "tiktoken_batch": "tiktoken as in nanoGPT's prepare.py",
            "hdf5_append": "HDF5 append per document",
            "datatrove": "datatrove",
        }
        for way, shown in names.items():
            if peer := rate(way, halves, 2):
                rows.append(Row(f"tokenize {len(halves)} shards, 2 jobs", ours, peer, shown, "MB/s"))
        peaks = [runs.peak("inkstone", inputs, jobs) for inputs, jobs in ((large, 1), (small, 1), (large, 2))]
        little = "the first shard" if shards else f"{_SMALL} MB of input"
        rows.append(Row("peak memory, 1 job, the largest input", peaks[0], peaks[1], little, "MB"))
        rows.append(Row("peak memory of a process, 2 jobs", peaks[2], peaks[1], f"1 job, {little}", "MB"))
        return rows


class _Runs:
    """Runs ways and keeps what they gave."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self._folder, self._report = folder, report
        self._found: dict[tuple[str, tuple[Path, ...], int], list[Figures]] = {}
        self._count = 0

    def run(self, way: str, shards: Sequence[Path], jobs: int, when: str) -> None:
        self._count += 1
        found = ways.measure(way, shards, jobs, self._folder / f"run-{self._count}")
        if found is None:
            self._report(f"{way}: left out, it is not installed")
            return
        self._found.setdefault((way, tuple(shards), jobs), []).append(found)
        rate = found.input_bytes / 1e6 / found.seconds
        self._report(f"{way}, {jobs} jobs, {found.input_bytes / 1e6:,.0f} MB: {rate:,.1f} MB/s ({when})")

    def rate(self, way: str, shards: Sequence[Path], jobs: int) -> float:
        """Median MB/s of JSON lines, 0 where the way did not run."""
        found = self._found.get((way, tuple(shards), jobs), [])
        return statistics.median(each.input_bytes / 1e6 / each.seconds for each in found) if found else 0.0

    def peak(self, way: str, shards: Sequence[Path], jobs: int) -> float:
        """Largest memory in MB of any one process of any run."""
        found = self._found[way, tuple(shards), jobs]
        return max(max(each.peak_mb, each.children_peak_mb) for each in found)


def _inputs(
    folder: Path, shards: Sequence[Path], size: int
) -> tuple[Sequence[Path], Sequence[Path], Sequence[Path], Sequence[Path]]:
    if shards:
        return shards, shards, shards, shards[:1]
    texts = b"".join(b"".join(compression.blocks(path)) for path in _shared_texts())
    made = {}
    for name, megabytes in (
        ("whole", size),
        ("a", size // 2),
        ("b", size // 2),
        ("large", 4 * size),
        ("small", _SMALL),
    ):
        made[name] = folder / f"{name}.jsonl.zst"
        with open(made[name], "wb") as file, zstandard.ZstdCompressor(3).stream_writer(file) as out:
            written = 0
            while written < megabytes * 1_000_000:
                written += out.write(texts)
    return [made["whole"]], [made["a"], made["b"]], [made["large"]], [made["small"]]


def _shared_texts() -> list[Path]:
    data = Path(os.environ.get("INKSTONE_SHARED") or "../shared") / "data"
    if missing := [name for name in _TEXTS if not (data / name).is_file()]:
        raise InputMissing(f"{data / missing[0]}: missing", hint="name shards of your own: bench tokenize SHARD...")
    return [data / name for name in _TEXTS]
