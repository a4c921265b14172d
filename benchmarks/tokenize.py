"""`bench tokenize`: Pile shards to GPT-2 tokens, by Inkstone and by other tools, each run in a fresh process.

Rates are MB of JSON lines per second. Without shards of your own, it generates shards from the shared English texts:
one of `size` MB, two of half that size, one of 64 MB and one of four times `size`. Slow methods run once, on the two
halves.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import zstandard

from benchmarks import methods
from benchmarks.methods import Figures
from benchmarks.rows import Row
from pipeline.errors import InputMissing
from pipeline.readers import compression

_TEXTS = ("pile_train_00.jsonl.zst", "pile_train_01.jsonl.zst", "pile_val.jsonl.zst")
_SMALL = 64  # MB
_SLOW = ("inkstone_tiktoken", "tiktoken_batch", "hdf5_append", "datatrove")
_PEER_NAMES = {
    "gigatoken_files": "gigatoken's encode_files",
    "gigatoken_plain": "gigatoken on lines decompressed before",
    "inkstone_tiktoken": "the same with tiktoken",
    "tiktoken_batch": "tiktoken as in nanoGPT's prepare.py",
    "hdf5_append": "HDF5 append per document",
    "datatrove": "datatrove",
}


class _Inputs(NamedTuple):
    """The shards of each comparison."""

    full: Sequence[Path]
    halves: Sequence[Path]
    large: Sequence[Path]
    small: Sequence[Path]


def bench(
    rounds: int, *, shards: Sequence[Path] = (), size: int = 256, report: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """Return rows of rates and of peak memory. `shards`, if given, are the input of every comparison."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = _inputs(folder, shards, size)
        runs = _Runs(folder, report)
        fast: list[tuple[str, Sequence[Path], int]] = [
            ("zstd_alone", inputs.full, 1),
            ("inkstone", inputs.full, 1),
            ("inkstone", inputs.full, 2),
            ("inkstone", inputs.large, 1),
            ("inkstone", inputs.large, 2),
            ("inkstone", inputs.small, 1),
            ("inkstone", inputs.halves, 2),
            ("gigatoken_files", inputs.halves, 2),
            ("gigatoken_plain", inputs.halves, 2),
        ]
        # With shards of the user, several of these runs are equal.
        distinct = dict.fromkeys((method, tuple(paths), jobs) for method, paths, jobs in fast)
        for number in range(rounds):
            for method, paths, jobs in distinct:
                runs.run(method, paths, jobs, f"round {number + 1} of {rounds}")
        for method in _SLOW:
            runs.run(method, inputs.halves, 2, "once")
        return [*_rates(runs, inputs), *_peaks(runs, inputs, "the first shard" if shards else f"{_SMALL} MB of input")]


def _rates(runs: _Runs, inputs: _Inputs) -> list[Row]:
    rate = runs.rate
    one_job, two_jobs = rate("inkstone", inputs.full, 1), rate("inkstone", inputs.full, 2)
    rows = [
        Row("tokenize, 1 job", one_job, rate("zstd_alone", inputs.full, 1), "zstd alone", "MB/s"),
        Row("tokenize, 2 jobs", two_jobs, one_job, "1 job", "MB/s"),
    ]
    if inputs.large != inputs.full:
        ours, peer = rate("inkstone", inputs.large, 2), rate("inkstone", inputs.large, 1)
        rows.append(Row("tokenize 4 x as much, 2 jobs", ours, peer, "1 job", "MB/s"))
    ours = rate("inkstone", inputs.halves, 2)
    for method, peer_name in _PEER_NAMES.items():
        if peer := rate(method, inputs.halves, 2):
            rows.append(Row(f"tokenize {len(inputs.halves)} shards, 2 jobs", ours, peer, peer_name, "MB/s"))
    return rows


def _peaks(runs: _Runs, inputs: _Inputs, small_name: str) -> list[Row]:
    small = runs.peak("inkstone", inputs.small, 1)
    one_job, two_jobs = runs.peak("inkstone", inputs.large, 1), runs.peak("inkstone", inputs.large, 2)
    return [
        Row("peak memory, 1 job, the largest input", one_job, small, small_name, "MB"),
        Row("peak memory of a process, 2 jobs", two_jobs, small, f"1 job, {small_name}", "MB"),
    ]


class _Runs:
    """Run methods and keep their figures."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self._folder, self._report = folder, report
        self._figures: dict[tuple[str, tuple[Path, ...], int], list[Figures]] = {}
        self._count = 0

    def run(self, method: str, shards: Sequence[Path], jobs: int, label: str) -> None:
        self._count += 1
        figures = methods.measure(method, shards, jobs, self._folder / f"run-{self._count}")
        if figures is None:
            self._report(f"{method}: skipped, not installed")
            return
        self._figures.setdefault((method, tuple(shards), jobs), []).append(figures)
        rate = figures.input_bytes / 1e6 / figures.seconds
        self._report(f"{method}, {jobs} jobs, {figures.input_bytes / 1e6:,.0f} MB: {rate:,.1f} MB/s ({label})")

    def rate(self, method: str, shards: Sequence[Path], jobs: int) -> float:
        """Return the median MB/s of JSON lines, or 0 if the method did not run."""
        runs = self._figures.get((method, tuple(shards), jobs), [])
        return statistics.median(run.input_bytes / 1e6 / run.seconds for run in runs) if runs else 0.0

    def peak(self, method: str, shards: Sequence[Path], jobs: int) -> float:
        """Return the largest memory, in MB, of any one process in any run."""
        return max(max(run.peak_mb, run.children_peak_mb) for run in self._figures[method, tuple(shards), jobs])


def _inputs(folder: Path, shards: Sequence[Path], size: int) -> _Inputs:
    if shards:
        return _Inputs(shards, shards, shards, shards[:1])
    texts = b"".join(b"".join(compression.read_blocks(path)) for path in _shared_texts())

    def write(name: str, megabytes: int) -> Path:
        path = folder / f"{name}.jsonl.zst"
        with open(path, "wb") as file, zstandard.ZstdCompressor(3).stream_writer(file) as out:
            written = 0
            while written < megabytes * 1_000_000:
                written += out.write(texts)
        return path

    return _Inputs(
        full=[write("full", size)],
        halves=[write("a", size // 2), write("b", size // 2)],
        large=[write("large", 4 * size)],
        small=[write("small", _SMALL)],
    )


def _shared_texts() -> list[Path]:
    data = Path(os.environ.get("INKSTONE_SHARED") or "../shared") / "data"
    if missing := [name for name in _TEXTS if not (data / name).is_file()]:
        raise InputMissing(f"{data / missing[0]}: missing", hint="name your own shards: bench tokenize SHARD...")
    return [data / name for name in _TEXTS]
