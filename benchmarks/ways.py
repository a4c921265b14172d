"""Ways of turning Pile shards (.jsonl.zst) into files of GPT-2 tokens, to be timed beside ours.

A way is a generator of (shards, jobs, folder) that yields twice, and the time between counts: when it is prepared, and
when its files are in the folder. Then it yields the number of tokens, with an end-of-text token after every document.
A way may change its process, and a tokenizer is faster on a text it has seen: `measure` runs one way, once, in a fresh
process. Two ways give whole shards to processes: pass as many shards as jobs or more, of about one size.

    python -m benchmarks.ways WAY --jobs N --out NEW_FOLDER SHARD...     prints one JSON object
"""

from __future__ import annotations

import argparse
import base64
import functools
import importlib.util
import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

END_OF_TEXT, END_OF_TEXT_ID = "<|endoftext|>", 50256


@dataclass(frozen=True)
class Figures:
    """A way, run once. A MB is 10^6 bytes; `children_peak_mb` is of the largest child process, not of all together."""

    way: str
    seconds: float
    input_bytes: int  # of JSON lines, decompressed
    tokens: int
    peak_mb: float
    children_peak_mb: float


def _reader(shard: Path) -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(open(shard, "rb"), read_size=1 << 20, read_across_frames=True)


def _size(shard: Path) -> int:
    reader = _reader(shard)
    return sum(map(len, iter(lambda: reader.read(1 << 20), b"")))


def _gigatoken(folder: Path) -> Any:
    """gigatoken's tokenizer of tiktoken's ranks, in which no text is a special token."""
    import gigatoken
    import tiktoken

    path = folder / "r50k_base.tiktoken"
    ranks = tiktoken.get_encoding("r50k_base")._mergeable_ranks
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return gigatoken.Tokenizer.from_tiktoken(path, pretokenizer="gpt2", special_tokens={})


def zstd_alone(shards: Sequence[Path], jobs: int, folder: Path) -> Iterator[int]:
    """zstandard's stream_reader and nothing else, a thread per job. Makes no tokens: a bound for the others."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(jobs) as pool:
        yield 0
        list(pool.map(_size, shards))
    yield 0


def gigatoken_files(shards: Sequence[Path], jobs: int, folder: Path, plain: bool = False) -> Iterator[int]:
    """gigatoken's encode_files on the shards themselves: it decompresses .zst, and holds all ids in memory.

    It has neither end-of-text nor file output: NumPy adds both, within the time. The way gigatoken_plain gives it JSON
    lines that were decompressed outside the time.
    """
    os.environ["RAYON_NUM_THREADS"] = str(jobs)
    import awkward
    import gigatoken
    import numpy as np

    paths = [folder / f"{number:05d}.jsonl" for number in range(len(shards))] if plain else list(shards)
    for shard, path in zip(shards, paths, strict=True) if plain else ():
        with open(path, "wb") as out:
            out.writelines(io.BufferedReader(_reader(shard)))
    tokenizer, parallel = _gigatoken(folder), jobs > 1
    tokenizer.encode_batch(["first"], parallel=parallel)  # starts the threads
    yield 0
    rows = tokenizer.encode_files(gigatoken.JsonlFileSource([*paths]), parallel=parallel)
    ends = np.cumsum(awkward.to_numpy(awkward.num(rows)))
    ids = np.insert(awkward.to_numpy(awkward.flatten(rows)).astype("<u2"), ends, END_OF_TEXT_ID)
    ids.tofile(folder / "tokens.bin")
    yield len(ids)


def tiktoken_batch(shards: Sequence[Path], jobs: int, folder: Path) -> Iterator[int]:
    """tiktoken's encode_ordinary_batch, 1,000 documents at a time, into nanoGPT's file (openwebtext/prepare.py)."""
    import msgspec
    import numpy as np
    import tiktoken

    encoding, decode = tiktoken.get_encoding("r50k_base"), msgspec.json.Decoder(dict[str, Any]).decode
    yield 0
    texts = (decode(line)["text"] for shard in shards for line in io.BufferedReader(_reader(shard), 1 << 20))
    with open(folder / "tokens.bin", "wb") as out:
        while batch := list(islice(texts, 1000)):
            for ids in encoding.encode_ordinary_batch(batch, num_threads=jobs):
                out.write(np.array([*ids, END_OF_TEXT_ID], "<u2").tobytes())
    yield (folder / "tokens.bin").stat().st_size // 2


def hdf5_append(shards: Sequence[Path], jobs: int, folder: Path) -> Iterator[int]:
    """train-llm-from-scratch's first manner (scripts/data_preprocess.py): a resize and a write for every document.

    The script is one process with one file. Here each job takes every jobs-th shard, into a file of its own.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    import h5py  # noqa: F401  loaded, like the tokenizer, before the fork
    import tiktoken

    tiktoken.get_encoding("r50k_base")
    groups = [shards[first::jobs] for first in range(min(jobs, len(shards)))]
    files = [folder / f"tokens_{number:05d}.h5" for number in range(len(groups))]
    yield 0
    with ProcessPoolExecutor(len(groups), get_context("fork")) as pool:
        tokens = sum(pool.map(_append, groups, files))
    yield tokens


def _append(shards: Sequence[Path], path: Path) -> int:
    import h5py
    import tiktoken
    import zstandard

    encoding = tiktoken.get_encoding("r50k_base")
    lines = (line for shard in shards for line in zstandard.open(shard, "rt", encoding="utf-8"))
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("tokens", (0,), maxshape=(None,), dtype="<i4")
        for line in lines:
            ids = encoding.encode(json.loads(line)["text"] + END_OF_TEXT, allowed_special={END_OF_TEXT})
            dataset.resize(len(dataset) + len(ids), axis=0)
            dataset[-len(ids) :] = ids
        return len(dataset)


def datatrove(shards: Sequence[Path], jobs: int, folder: Path) -> Iterator[int]:
    """datatrove's JsonlReader and DocumentTokenizer in its LocalPipelineExecutor, `jobs` workers of one thread each.

    Its workers start and load the tokenizer within the time, as in its every run, which weighs on small input. Not its
    defaults: documents stay in order, and workers are forked: those of its fork server would hide their memory.
    """
    os.environ["RAYON_NUM_THREADS"] = "1"  # or the tokenizer of each worker takes every core
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    source, target, tokenizer = folder / "input", folder / "tokens", folder / "tokenizer.json"
    source.mkdir()
    for number, shard in enumerate(shards):
        (source / f"{number:05d}.jsonl.zst").symlink_to(shard.resolve())
    _save_tokenizer_json(tokenizer)
    writer = DocumentTokenizer(str(target), str(tokenizer), eos_token=END_OF_TEXT, shuffle_documents=False)
    steps, logs = [JsonlReader(str(source)), writer], str(folder / "logs")
    executor = LocalPipelineExecutor(steps, len(shards), jobs, logs, start_method="fork")
    yield 0
    executor.run()
    yield sum(path.stat().st_size for path in target.glob("*.ds")) // 2


def _save_tokenizer_json(path: Path) -> None:
    """tiktoken's ranks for Hugging Face: merges as gigatoken derives them, bytes spelled as in GPT-2's encoder.py."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    ranks = _gigatoken(path.parent)
    letters = {byte: 0x100 + n for n, byte in enumerate([*range(0x21), *range(0x7F, 0xA1), 0xAD])}
    spelled = {token: token.decode("latin-1").translate(letters) for token in ranks.vocab.values()}
    vocab = {spelled[token]: number for number, token in ranks.vocab.items()}
    tokenizer = Tokenizer(models.BPE(vocab, [(spelled[left], spelled[right]) for left, right in ranks.merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(path))


def inkstone(shards: Sequence[Path], jobs: int, folder: Path, encoder: str = "auto") -> Iterator[int]:
    """Ours: the whole tokenize stage, from the hash of the input to the published, synced artifact.

    Its workers start and load the tokenizer within the time.
    """
    from pipeline import tokenizers
    from pipeline.runtime import progress
    from pipeline.tokens import stage

    val = folder / "val.jsonl"
    val.write_text('{"text": "held out"}\n')
    tokenizer, _ = tokenizers.find(folder, "r50k_base", encoder)
    tokenizer.encode_batch(["ready"])
    yield 0
    inputs = stage.gather(folder, [str(shard) for shard in shards], [str(val)])
    options = stage.TokenizeOptions()
    built = stage.tokenize(folder, "bench", inputs, tokenizer, None, options, progress.Silent(), jobs=jobs)
    yield int(built.artifact.manifest.counts["train_tokens"])


WAYS: dict[str, Callable[..., Iterator[int]]] = {
    **{way.__name__: way for way in (inkstone, zstd_alone, gigatoken_files, tiktoken_batch, hdf5_append, datatrove)},
    "inkstone_tiktoken": functools.partial(inkstone, encoder="tiktoken"),
    "gigatoken_plain": functools.partial(gigatoken_files, plain=True),
}


def installed(way: str) -> bool:
    """Whether this interpreter has what a way needs beyond what Inkstone itself cannot be without."""
    needs = {"datatrove": ("datatrove", "tokenizers", "orjson")}.get(way, ("gigatoken",) * way.startswith("gigatoken"))
    return all(map(importlib.util.find_spec, needs))


def measure(way: str, shards: Sequence[Path], jobs: int, folder: Path) -> Figures | None:
    """Run a way once in a fresh process, into a new folder. None where it is not installed.

    Raises RuntimeError with the end of what the process wrote to its error output.
    """
    places = [str(path.resolve()) for path in (folder, *shards)]
    command = [sys.executable, "-m", "benchmarks.ways", way, "--jobs", str(jobs), "--out", *places]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parent.parent, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Figures(**found) if "seconds" in found else None


def peaks() -> tuple[float, float]:
    """Largest resident memory in MB of this process, and of the largest child that has ended."""
    unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024
    own, children = (resource.getrusage(of).ru_maxrss for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    if sys.platform == "linux":  # whose ru_maxrss begins with that of the process that started this one
        own = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    return own / unit, children / unit


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ways")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("shards", type=Path, nargs="+")
    given = parser.parse_args()
    if not installed(given.way):
        print(json.dumps({"way": given.way, "installed": False}))
        return
    given.out.mkdir(parents=True)
    shared = Path(os.environ.get("INKSTONE_SHARED") or "../shared")
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(shared.resolve() / "tiktoken"))
    input_bytes = sum(map(_size, given.shards))  # after which the shards are in the machine's memory
    way = WAYS[given.way](given.shards, given.jobs, given.out)
    next(way)
    start = time.perf_counter()
    tokens = next(way)
    seconds = time.perf_counter() - start
    print(json.dumps(asdict(Figures(given.way, seconds, input_bytes, tokens, *peaks()))))


if __name__ == "__main__":
    main()
