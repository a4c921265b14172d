"""Methods of turning Pile shards (.jsonl.zst) into files of GPT-2 tokens, each run alone and timed.

A method is a generator function of (shards, jobs, folder). It yields first when it is ready to start and again when its
output files are complete in the folder; the time between the two is measured. The second yield returns the number of
tokens, including an end-of-text token after every document. A method may modify its process, and a tokenizer is faster
on text that it has encoded before, so `measure` runs one method once in a fresh process. hdf5_append and datatrove
assign complete shards to processes: pass at least as many shards as jobs, of similar sizes.

    python -m benchmarks.methods METHOD --jobs N --out NEW_FOLDER SHARD...     prints one JSON object
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
    """Measurements of one run. A MB is 10^6 bytes; `children_peak_mb` is the peak of the largest child, not a sum."""

    method: str
    seconds: float
    input_bytes: int  # JSON lines, decompressed
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
    """Return gigatoken's tokenizer with tiktoken's GPT-2 ranks and no special tokens."""
    import gigatoken
    import tiktoken

    path = folder / "r50k_base.tiktoken"
    ranks = tiktoken.get_encoding("r50k_base")._mergeable_ranks
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return gigatoken.Tokenizer.from_tiktoken(path, pretokenizer="gpt2", special_tokens={})


def zstd_alone(shards: Sequence[Path], jobs: int, folder: Path) -> Iterator[int]:
    """Only decompress, with zstandard's stream_reader and a thread per job: an upper bound for the other methods."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(jobs) as pool:
        yield 0
        list(pool.map(_size, shards))
    yield 0


def gigatoken_files(shards: Sequence[Path], jobs: int, folder: Path, plain: bool = False) -> Iterator[int]:
    """gigatoken's encode_files on the shards themselves: it decompresses .zst and holds all ids in memory.

    It adds no end-of-text tokens and writes no files; NumPy does both, within the measured time. With `plain` (the
    method gigatoken_plain), the input is JSON lines that were decompressed before the measured time.
    """
    os.environ["RAYON_NUM_THREADS"] = str(jobs)
    import awkward
    import gigatoken
    import numpy as np

    paths = [folder / f"{index:05d}.jsonl" for index in range(len(shards))] if plain else list(shards)
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
    """The first version of train-llm-from-scratch's scripts/data_preprocess.py: a resize and a write per document.

    The script uses one process and one file. Here each job encodes every jobs-th shard into a separate file.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    import h5py  # noqa: F401  import before the fork, as the tokenizer is loaded before it
    import tiktoken

    tiktoken.get_encoding("r50k_base")
    groups = [shards[start::jobs] for start in range(min(jobs, len(shards)))]
    files = [folder / f"tokens_{index:05d}.h5" for index in range(len(groups))]
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
    """datatrove's JsonlReader and DocumentTokenizer in a LocalPipelineExecutor with `jobs` single-threaded workers.

    Its workers start and load the tokenizer within the measured time, as in every datatrove run; on small input this
    dominates. Two defaults are changed: documents stay in order, and workers are forked, because the memory of workers
    that its fork server starts could not be measured.
    """
    os.environ["RAYON_NUM_THREADS"] = "1"  # otherwise each worker's tokenizer uses every core
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    source, target, tokenizer = folder / "input", folder / "tokens", folder / "tokenizer.json"
    source.mkdir()
    for index, shard in enumerate(shards):
        (source / f"{index:05d}.jsonl.zst").symlink_to(shard.resolve())
    _save_tokenizer_json(tokenizer)
    writer = DocumentTokenizer(str(target), str(tokenizer), eos_token=END_OF_TEXT, shuffle_documents=False)
    steps, logs = [JsonlReader(str(source)), writer], str(folder / "logs")
    executor = LocalPipelineExecutor(steps, len(shards), jobs, logs, start_method="fork")
    yield 0
    executor.run()
    yield sum(path.stat().st_size for path in target.glob("*.ds")) // 2


def _save_tokenizer_json(path: Path) -> None:
    """Save tiktoken's ranks as a Hugging Face tokenizer.json.

    The merges are those that gigatoken derives from the ranks; bytes are spelled as in GPT-2's encoder.py.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    gpt2 = _gigatoken(path.parent)
    byte_spellings = {byte: 0x100 + n for n, byte in enumerate([*range(0x21), *range(0x7F, 0xA1), 0xAD])}
    spellings = {token: token.decode("latin-1").translate(byte_spellings) for token in gpt2.vocab.values()}
    vocab = {spellings[token]: token_id for token_id, token in gpt2.vocab.items()}
    merges = [(spellings[first], spellings[second]) for first, second in gpt2.merges]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(path))


def inkstone(shards: Sequence[Path], jobs: int, folder: Path, encoder: str = "auto") -> Iterator[int]:
    """Inkstone's complete tokenize stage, from hashing the input to the published and synced artifact.

    Its workers start and load the tokenizer within the measured time.
    """
    from pipeline import tokenizers
    from pipeline.runtime import progress
    from pipeline.tokens import stage
    from pipeline.tokens.options import TokenizeOptions

    val = folder / "val.jsonl"
    val.write_text('{"text": "held out"}\n')
    tokenizer, _ = tokenizers.find(folder, "r50k_base", encoder)
    tokenizer.encode_batch(["ready"])
    yield 0
    inputs = stage.gather_inputs(folder, [str(shard) for shard in shards], [str(val)])
    options = TokenizeOptions()
    built = stage.tokenize(folder, "bench", inputs, tokenizer, None, options, progress.SilentProgress(), jobs=jobs)
    yield int(built.artifact.manifest.counts["train_tokens"])


METHODS: dict[str, Callable[..., Iterator[int]]] = {
    **{
        method.__name__: method
        for method in (inkstone, zstd_alone, gigatoken_files, tiktoken_batch, hdf5_append, datatrove)
    },
    "inkstone_tiktoken": functools.partial(inkstone, encoder="tiktoken"),
    "gigatoken_plain": functools.partial(gigatoken_files, plain=True),
}


def installed(method: str) -> bool:
    """Return True if the packages that a method needs beyond Inkstone's own dependencies are installed."""
    packages = {"datatrove": ("datatrove", "tokenizers", "orjson")}.get(
        method, ("gigatoken",) * method.startswith("gigatoken")
    )
    return all(map(importlib.util.find_spec, packages))


def measure(method: str, shards: Sequence[Path], jobs: int, folder: Path) -> Figures | None:
    """Run a method once in a fresh process, into a new folder. Return None if the method is not installed.

    Raises RuntimeError with the end of the process's error output if it fails.
    """
    paths = [str(path.resolve()) for path in (folder, *shards)]
    command = [sys.executable, "-m", "benchmarks.methods", method, "--jobs", str(jobs), "--out", *paths]
    process = subprocess.run(command, cwd=Path(__file__).resolve().parent.parent, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{method}: {process.stderr[-2000:]}")
    figures = json.loads(process.stdout.splitlines()[-1])
    return Figures(**figures) if "seconds" in figures else None


def peak_memory() -> tuple[float, float]:
    """Return the peak resident memory, in MB, of this process and of its largest child that has ended."""
    unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024
    usages = (resource.getrusage(target) for target in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    process, children = (usage.ru_maxrss for usage in usages)
    if sys.platform == "linux":  # ru_maxrss starts at the value of the parent process there
        process = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    return process / unit, children / unit


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods")
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("shards", type=Path, nargs="+")
    arguments = parser.parse_args()
    if not installed(arguments.method):
        print(json.dumps({"method": arguments.method, "installed": False}))
        return
    arguments.out.mkdir(parents=True)
    shared = Path(os.environ.get("INKSTONE_SHARED") or "../shared")
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(shared.resolve() / "tiktoken"))
    input_bytes = sum(map(_size, arguments.shards))  # also loads the shards into the page cache
    method = METHODS[arguments.method](arguments.shards, arguments.jobs, arguments.out)
    next(method)
    start = time.perf_counter()
    tokens = next(method)
    seconds = time.perf_counter() - start
    print(json.dumps(asdict(Figures(arguments.method, seconds, input_bytes, tokens, *peak_memory()))))


if __name__ == "__main__":
    main()
