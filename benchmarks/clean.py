"""`bench clean`: a novel and poems as plain text, cleaned our way and others', in turn, each run in a fresh process.

Rates are MB of UTF-8 a second: of one job a second of the processor, whatever else the machine does meanwhile; where
two jobs are compared with one, a second of the clock. Ours is the whole stage, from the hash of the input to the
published, synced corpus with its report; the other cleaners read a file and write a file. The two ways to split
sentences start and end in memory, and must agree. The texts are the shared 水浒传 and Tang poems, repeated to `size`
MB.

    python -m benchmarks.clean WAY --jobs N --out NEW_FOLDER TEXT     prints one JSON object
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

from benchmarks.rows import Row
from benchmarks.ways import peaks
from pipeline.errors import InputMissing, InternalError
from pipeline.readers import compression

_BOOK, _POEMS = "shuihu_raw.txt", "tang_poems.jsonl.zst"
_BLOCK = 350_000  # characters: about a megabyte of Chinese
_HALF_WIDTH = dict(zip(map(ord, ",!?;:().…⋯"), "，！？；：（）。……", strict=True))


@dataclass(frozen=True)
class Figures:
    """A way, run once. A MB is 10^6 bytes; memory is of the largest process. `digest` is of what ways must agree on."""

    way: str
    seconds: float
    processor: float  # seconds of it that the way took, in its own process
    peak_mb: float
    digest: str


def bench(rounds: int, *, size: int = 100, report: Callable[[str], None] = lambda line: None) -> list[Row]:
    """Rows of rates for each text, and of peak memory for `size` MB and four times as much."""
    with tempfile.TemporaryDirectory() as name:
        runs = _Runs(Path(name), report)
        book, poems, large = _texts(Path(name), size)
        ways = [("inkstone", 1), ("inkstone", 2), *((way, 1) for way in WAYS if way != "inkstone")]
        for number in range(rounds):
            for text in (book, poems):
                for way, jobs in ways:
                    runs.run(way, text, jobs, f"round {number + 1} of {rounds}")
        runs.run("inkstone", large, 1, "once")
        rows = []
        for text in (book, poems):
            one, two = runs.rate_by_the_clock("inkstone", text, 1), runs.rate_by_the_clock("inkstone", text, 2)
            work = f"clean {text.stem} {size} MB"
            rows.append(Row(f"{work}, 2 jobs", two, one, "1 job", "MB/s"))
            one = runs.rate("inkstone", text, 1)
            for way, shown in _SHOWN.items():
                if peer := runs.rate(way, text, 1):
                    rows.append(Row(f"{work}, 1 job", one, peer, shown, "MB/s"))
            split, slow = runs.rate("split", text, 1), runs.rate("split_slowly", text, 1)
            rows.append(
                Row(f"split {text.stem} into sentences", split, slow, "a loop over a regular expression", "MB/s")
            )
            runs.require_agreement("split", "split_slowly", text)
        peaks = [runs.peak("inkstone", text, 1) for text in (large, book)]
        return [*rows, Row(f"peak memory, 1 job, {4 * size} MB", peaks[0], peaks[1], f"{size} MB of input", "MB")]


class _Runs:
    """Runs ways and keeps what they gave."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self._folder, self._report = folder, report
        self._found: dict[tuple[str, Path, int], list[Figures]] = {}

    def run(self, way: str, text: Path, jobs: int, when: str) -> None:
        found = measure(way, text, jobs, self._folder / "run")
        if found is None:
            self._report(f"{way}: left out, it is not installed")
            return
        self._found.setdefault((way, text, jobs), []).append(found)
        size = text.stat().st_size / 1e6
        rates = f"{size / found.seconds:,.1f} MB/s by the clock, {size / found.processor:,.1f} of the processor"
        self._report(f"{way}, {jobs} jobs, {text.name}: {rates}, {found.peak_mb:,.0f} MB ({when})")

    def rate(self, way: str, text: Path, jobs: int) -> float:
        """Median MB/s of the processor, 0 where the way did not run."""
        found = self._found.get((way, text, jobs), [])
        return statistics.median(text.stat().st_size / 1e6 / each.processor for each in found) if found else 0.0

    def rate_by_the_clock(self, way: str, text: Path, jobs: int) -> float:
        """Median MB/s of a way that ran."""
        return statistics.median(text.stat().st_size / 1e6 / each.seconds for each in self._found[way, text, jobs])

    def peak(self, way: str, text: Path, jobs: int) -> float:
        return max(each.peak_mb for each in self._found[way, text, jobs])

    def require_agreement(self, first: str, second: str, text: Path) -> None:
        """Raises InternalError when two ways made different bytes: their rates would say nothing."""
        digests = {each.digest for way in (first, second) for each in self._found[way, text, 1]}
        if len(digests) > 1:
            raise InternalError(f"{first} and {second} do not agree on {text.name}", hint="this is a bug")


def _texts(folder: Path, size: int) -> tuple[Path, Path, Path]:
    """The novel and the poems in `size` MB, and the novel in four times as much."""
    data = Path(os.environ.get("INKSTONE_SHARED") or "../shared") / "data"
    if missing := [name for name in (_BOOK, _POEMS) if not (data / name).is_file()]:
        raise InputMissing(f"{data / missing[0]}: missing", hint="set INKSTONE_SHARED to the folder of shared texts")
    lines = b"".join(compression.blocks(data / _POEMS)).splitlines()
    book = (data / _BOOK).read_text(encoding="utf-8-sig").encode()
    poems = "\n".join(msgspec.json.decode(line)["text"] for line in lines).encode()
    made = {"novel": (book, size), "poems": (poems, size), "large": (book, 4 * size)}
    for name, (text, megabytes) in made.items():
        with open(folder / f"{name}.txt", "wb") as out:
            while out.tell() < megabytes * 1_000_000:
                out.write(text + b"\n")
    return folder / "novel.txt", folder / "poems.txt", folder / "large.txt"


def inkstone(text: Path, jobs: int, folder: Path) -> Iterator[bytes]:
    """Ours. Its workers start within the time."""
    from pipeline.clean import stage as corpus
    from pipeline.clean.options import CleanOptions
    from pipeline.runtime import progress
    from pipeline.sources import inputs as raw

    options = CleanOptions(profile="plain")
    yield b""
    inputs = raw.inputs(folder, str(text), corpora=False)
    corpus.clean(folder, "bench", inputs, options, progress.Silent(), jobs=jobs)
    yield b""


def split(text: Path, jobs: int, folder: Path) -> Iterator[bytes]:
    """Our splitter, from text to lines of UTF-8."""
    from pipeline.clean import lines
    from pipeline.clean.utf16 import codes

    blocks = [block.encode() for block in _full_lines(text)]
    yield b""
    pages = ((codes(block.decode()), block) for block in blocks)
    yield b"".join(lines.of_sentences(page, block.removesuffix(b"\n"), len(block)).data for page, block in pages)


_CLUSTER = "(?:…*+[。！？][。！？…]*+[”’」』）》〉】〕〗]*+|…++[”’」』）》〉】〕〗]++)+"
_BLANK = re.compile("\n\n+")
_EVENT = re.compile(f"(?P<cluster>{_CLUSTER})|[“「”」\n]")


def split_slowly(text: Path, jobs: int, folder: Path) -> Iterator[bytes]:
    """The same sentences, found by one loop over all marks that matter."""
    blocks = _full_lines(text)
    yield b""
    yield b"".join("\n".join(_sentences(block)).encode() + b"\n" for block in blocks)


def _sentences(text: str) -> list[str]:
    found, start, quoted = [], 0, False
    for event in _EVENT.finditer(text):
        mark, end = event[0], event.end()
        if mark == "\n":
            found.append(text[start : end - 1])
            start, quoted = end, False
        elif not event["cluster"]:
            quoted = mark in "“「"
        else:
            quoted = quoted and not ("”" in mark or "」" in mark)
            if not quoted and text[end : end + 1] not in (*"，、；：",):
                found.append(text[start:end])
                start = end
    return [line for line in [*found, text[start:]] if line]


def _blocks(text: Path) -> Iterator[str]:
    """A text as str, in blocks that end where a line does."""
    with open(text, encoding="utf-8", newline="\n") as lines:
        while block := lines.read(_BLOCK):
            yield block + lines.readline()


def _full_lines(text: Path) -> list[str]:
    """The same blocks without blank lines, which the stage has taken out before it splits."""
    return [_BLANK.sub("\n", block).lstrip("\n") for block in _blocks(text)]


def translate(text: Path, jobs: int, folder: Path) -> Iterator[bytes]:
    """str.translate with a table of ten characters."""
    yield b""
    with open(folder / "out.txt", "wb") as out:
        for block in _blocks(text):
            out.write(block.translate(_HALF_WIDTH).encode())
    yield b""


def regexes(text: Path, jobs: int, folder: Path) -> Iterator[bytes]:
    """A cleaner in MoiraiLM's manner, and with its losses: five regular expressions, one sentence a line."""
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
    """OpenCC, traditional to simplified, and nothing else."""
    from opencc import OpenCC

    converter = OpenCC("t2s")
    yield b""
    with open(folder / "out.txt", "wb") as out:
        for block in _blocks(text):
            out.write(converter.convert(block).encode())
    yield b""


WAYS = {way.__name__: way for way in (inkstone, split, split_slowly, translate, regexes, opencc)}
_SHOWN = {
    "regexes": "five regular expressions (MoiraiLM's manner)",
    "translate": "str.translate of ten characters",
    "opencc": "OpenCC t2s alone",
}


def measure(way: str, text: Path, jobs: int, folder: Path) -> Figures | None:
    """Run a way once in a fresh process, into a folder that is removed again. None where it is not installed.

    Raises RuntimeError with the end of what the process wrote to its error output.
    """
    if not importlib.util.find_spec(way if way == "opencc" else "pipeline"):
        return None
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.clean", way, "--jobs", str(jobs), "--out", str(folder.resolve())]
    top = Path(__file__).resolve().parent.parent
    done = subprocess.run([*command, str(text.resolve())], cwd=top, capture_output=True, text=True)
    shutil.rmtree(folder)
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clean")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("text", type=Path)
    given = parser.parse_args()
    with open(given.text, "rb") as data:  # after which the text is in the machine's memory
        while data.read(1 << 20):
            pass
    way = WAYS[given.way](given.text, given.jobs, given.out)
    next(way)
    start, start_processor = time.perf_counter(), time.process_time()
    made = next(way)
    seconds, processor = time.perf_counter() - start, time.process_time() - start_processor
    digest = hashlib.sha256(made).hexdigest() if made else ""
    print(json.dumps(asdict(Figures(given.way, seconds, processor, max(peaks()), digest))))


if __name__ == "__main__":
    main()
