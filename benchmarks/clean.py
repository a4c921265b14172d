"""`bench clean`: a novel and poems as plain text, cleaned by Inkstone and by others, each run in a fresh process.

Rates are MB of UTF-8 per second. They are per second of processor time with one job, so that other work on the machine
does not matter, and per second of wall-clock time where two jobs are compared with one. Inkstone runs the complete
stage, from hashing the input to the published and synced corpus with its report; the other cleaners read a file and
write a file. The two sentence splitters start and end in memory, and must agree. The texts are the shared
水浒传 and Tang poems, repeated up to `size` MB.

    python -m benchmarks.clean METHOD --jobs N --out NEW_FOLDER TEXT     prints one JSON object
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from benchmarks.methods import peak_memory
from benchmarks.rows import Row
from pipeline.errors import InputMissing, InternalError
from pipeline.readers import compression

_BOOK, _POEMS = "shuihu_raw.txt", "tang_poems.jsonl.zst"
_BLOCK = 350_000  # characters: about a megabyte of Chinese
_HALF_WIDTH = dict(zip(map(ord, ",!?;:().…⋯"), "，！？；：（）。……", strict=True))


@dataclass(frozen=True)
class Figures:
    """Measurements of one run. A MB is 10^6 bytes; memory is that of the largest process.

    `digest` is the sha256 of the output of the methods that must agree, and empty for the others.
    """

    method: str
    seconds: float
    processor: float  # seconds of processor time, in the process of the method only
    peak_mb: float
    digest: str


def bench(rounds: int, *, size: int = 100, report: Callable[[str], None] = lambda line: None) -> list[Row]:
    """Return rows of rates for each text, and of peak memory for `size` MB and four times as much."""
    with tempfile.TemporaryDirectory() as name:
        runs = _Runs(Path(name), report)
        book, poems, large = _texts(Path(name), size)
        methods = [("inkstone", 1), ("inkstone", 2), *((method, 1) for method in METHODS if method != "inkstone")]
        for number in range(rounds):
            for text in (book, poems):
                for method, jobs in methods:
                    runs.run(method, text, jobs, f"round {number + 1} of {rounds}")
        runs.run("inkstone", large, 1, "once")
        rows = [row for text in (book, poems) for row in _rates(runs, text, size)]
        peak_large, peak_book = runs.peak("inkstone", large, 1), runs.peak("inkstone", book, 1)
        return [*rows, Row(f"peak memory, 1 job, {4 * size} MB", peak_large, peak_book, f"{size} MB of input", "MB")]


def _rates(runs: _Runs, text: Path, size: int) -> list[Row]:
    work = f"clean {text.stem} {size} MB"
    one_job, two_jobs = runs.wall_clock_rate("inkstone", text, 1), runs.wall_clock_rate("inkstone", text, 2)
    rows = [Row(f"{work}, 2 jobs", two_jobs, one_job, "1 job", "MB/s")]
    ours = runs.rate("inkstone", text, 1)
    for method, peer_name in _PEER_NAMES.items():
        if peer := runs.rate(method, text, 1):
            rows.append(Row(f"{work}, 1 job", ours, peer, peer_name, "MB/s"))
    runs.require_agreement("split", "split_slowly", text)
    fast, slow = runs.rate("split", text, 1), runs.rate("split_slowly", text, 1)
    rows.append(Row(f"split {text.stem} into sentences", fast, slow, "a loop over a regular expression", "MB/s"))
    return rows


class _Runs:
    """Run methods and keep their figures."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self._folder, self._report = folder, report
        self._figures: dict[tuple[str, Path, int], list[Figures]] = {}

    def run(self, method: str, text: Path, jobs: int, label: str) -> None:
        figures = measure(method, text, jobs, self._folder / "run")
        if figures is None:
            self._report(f"{method}: skipped, not installed")
            return
        self._figures.setdefault((method, text, jobs), []).append(figures)
        size = text.stat().st_size / 1e6
        rates = f"{size / figures.seconds:,.1f} MB/s wall-clock, {size / figures.processor:,.1f} MB/s processor time"
        self._report(f"{method}, {jobs} jobs, {text.name}: {rates}, {figures.peak_mb:,.0f} MB ({label})")

    def rate(self, method: str, text: Path, jobs: int) -> float:
        """Return the median MB per second of processor time, or 0 if the method did not run."""
        runs = self._figures.get((method, text, jobs), [])
        return statistics.median(text.stat().st_size / 1e6 / run.processor for run in runs) if runs else 0.0

    def wall_clock_rate(self, method: str, text: Path, jobs: int) -> float:
        """Return the median MB per second of wall-clock time of a method that ran."""
        return statistics.median(text.stat().st_size / 1e6 / run.seconds for run in self._figures[method, text, jobs])

    def peak(self, method: str, text: Path, jobs: int) -> float:
        return max(run.peak_mb for run in self._figures[method, text, jobs])

    def require_agreement(self, first: str, second: str, text: Path) -> None:
        """Raise InternalError if two methods produced different bytes: their rates would not be comparable."""
        digests = {run.digest for method in (first, second) for run in self._figures[method, text, 1]}
        if len(digests) > 1:
            raise InternalError(f"{first} and {second} do not agree on {text.name}", hint="this is a bug")


def _texts(folder: Path, size: int) -> tuple[Path, Path, Path]:
    """Write the novel and the poems at `size` MB, and the novel at four times as much, and return their paths."""
    data = Path(os.environ.get("INKSTONE_SHARED") or "../shared") / "data"
    if missing := [name for name in (_BOOK, _POEMS) if not (data / name).is_file()]:
        raise InputMissing(f"{data / missing[0]}: missing", hint="set INKSTONE_SHARED to the folder of shared texts")
    lines = b"".join(compression.read_blocks(data / _POEMS)).splitlines()
    book = (data / _BOOK).read_text(encoding="utf-8-sig").encode()
    poems = "\n".join(msgspec.json.decode(line)["text"] for line in lines).encode()

    def write(name: str, text: bytes, megabytes: int) -> Path:
        path = folder / f"{name}.txt"
        with open(path, "wb") as out:
            while out.tell() < megabytes * 1_000_000:
                out.write(text + b"\n")
        return path

    return write("novel", book, size), write("poems", poems, size), write("large", book, 4 * size)


def inkstone(text: Path, jobs: int, folder: Path) -> Iterator[bytes]:
    """Inkstone's complete clean stage. Its workers start within the measured time."""
    from pipeline.clean import stage
    from pipeline.clean.options import CleanOptions
    from pipeline.runtime import progress
    from pipeline.sources import inputs as source_inputs

    options = CleanOptions(profile="plain")
    yield b""
    inputs = source_inputs.resolve_inputs(folder, str(text), corpora=False)
    stage.clean(folder, "bench", inputs, options, progress.SilentProgress(), jobs=jobs)
    yield b""


def split(text: Path, jobs: int, folder: Path) -> Iterator[bytes]:
    """Inkstone's sentence splitter, from str to lines of UTF-8."""
    from pipeline.clean import lines
    from pipeline.clean.utf16 import encode_utf16

    blocks = [block.encode() for block in _full_lines(text)]
    yield b""
    pages = ((encode_utf16(block.decode()), block) for block in blocks)
    yield b"".join(lines.sentence_lines(page, block.removesuffix(b"\n"), len(block)).data for page, block in pages)


_CLUSTER = "(?:…*+[。！？][。！？…]*+[”’」』）》〉】〕〗]*+|…++[”’」』）》〉】〕〗]++)+"
_BLANK = re.compile("\n\n+")
_EVENT = re.compile(f"(?P<cluster>{_CLUSTER})|[“「”」\n]")


def split_slowly(text: Path, jobs: int, folder: Path) -> Iterator[bytes]:
    """Split into the same sentences with one Python loop over the matches of a regular expression."""
    blocks = _full_lines(text)
    yield b""
    yield b"".join("\n".join(_sentences(block)).encode() + b"\n" for block in blocks)


def _sentences(text: str) -> list[str]:
    sentences, start, quoted = [], 0, False
    for event in _EVENT.finditer(text):
        mark, end = event[0], event.end()
        if mark == "\n":
            sentences.append(text[start : end - 1])
            start, quoted = end, False
        elif not event["cluster"]:
            quoted = mark in "“「"
        else:
            quoted = quoted and not ("”" in mark or "」" in mark)
            if not quoted and text[end : end + 1] not in (*"，、；：",):
                sentences.append(text[start:end])
                start = end
    return [sentence for sentence in [*sentences, text[start:]] if sentence]


def _blocks(text: Path) -> Iterator[str]:
    """Yield a text file in blocks of complete lines."""
    with open(text, encoding="utf-8", newline="\n") as lines:
        while block := lines.read(_BLOCK):
            yield block + lines.readline()


def _full_lines(text: Path) -> list[str]:
    """Return the same blocks without blank lines, which the stage removes before it splits sentences."""
    return [_BLANK.sub("\n", block).lstrip("\n") for block in _blocks(text)]


def translate(text: Path, jobs: int, folder: Path) -> Iterator[bytes]:
    """str.translate with a table of ten characters."""
    yield b""
    with open(folder / "out.txt", "wb") as out:
        for block in _blocks(text):
            out.write(block.translate(_HALF_WIDTH).encode())
    yield b""


def regexes(text: Path, jobs: int, folder: Path) -> Iterator[bytes]:
    """Clean as MoiraiLM's script does, and as lossily: five regular expressions, one sentence per line."""
    spaces, foreign = re.compile(r"\s+"), re.compile("[^\u4e00-\u9fff，。！？：；、“”‘’\"' ]")
    quotes, heading = re.compile("[“”‘’\"']"), re.compile("第[一二三四五六七八九十百千]+回.*\n")
    end = re.compile("([。！？])")
    yield b""
    with open(folder / "out.txt", "wb") as out:
        for block in _blocks(text):
            cleaned = quotes.sub(" ", foreign.sub(" ", heading.sub("", spaces.sub(" ", block))))
            parts = end.split(cleaned)
            lines = (body.strip() + mark for body, mark in zip(parts[::2], parts[1::2], strict=False))
            out.write("\n".join(line for line in lines if len(line) > 1).encode() + b"\n")
    yield b""


def opencc(text: Path, jobs: int, folder: Path) -> Iterator[bytes]:
    """Only convert traditional to simplified characters with OpenCC."""
    from opencc import OpenCC

    converter = OpenCC("t2s")
    yield b""
    with open(folder / "out.txt", "wb") as out:
        for block in _blocks(text):
            out.write(converter.convert(block).encode())
    yield b""


METHODS = {method.__name__: method for method in (inkstone, split, split_slowly, translate, regexes, opencc)}
_PEER_NAMES = {
    "regexes": "five regular expressions (MoiraiLM's manner)",
    "translate": "str.translate of ten characters",
    "opencc": "OpenCC t2s alone",
}


def measure(method: str, text: Path, jobs: int, folder: Path) -> Figures | None:
    """Run a method once in a fresh process, into a folder that is removed afterwards. Return None if not installed.

    Raises RuntimeError with the end of the process's error output if it fails.
    """
    if not importlib.util.find_spec(method if method == "opencc" else "pipeline"):
        return None
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.clean", method, "--jobs", str(jobs), "--out", str(folder.resolve())]
    root = Path(__file__).resolve().parent.parent
    process = subprocess.run([*command, str(text.resolve())], cwd=root, capture_output=True, text=True)
    shutil.rmtree(folder)
    if process.returncode:
        raise RuntimeError(f"{method}: {process.stderr[-2000:]}")
    return Figures(**json.loads(process.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clean")
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("text", type=Path)
    arguments = parser.parse_args()
    with open(arguments.text, "rb") as data:  # load the text into the page cache
        while data.read(1 << 20):
            pass
    method = METHODS[arguments.method](arguments.text, arguments.jobs, arguments.out)
    next(method)
    start, start_processor = time.perf_counter(), time.process_time()
    output = next(method)
    seconds, processor = time.perf_counter() - start, time.process_time() - start_processor
    digest = hashlib.sha256(output).hexdigest() if output else ""
    print(json.dumps(asdict(Figures(arguments.method, seconds, processor, max(peak_memory()), digest))))


if __name__ == "__main__":
    main()
