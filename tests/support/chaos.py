"""Kill tokenizing at random moments and check that a second run publishes the bytes of an undisturbed run.

    python -m tests.support.chaos --rounds 200 --seed 1 [--what tokenize|refresh|training]

Each round starts the real command in its own process group, with units and chunks so small that there are many. At a
random moment it sends SIGKILL to the main process, to the process group, or to one worker. Then it runs the command
again without interruption, with one or two processes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from pipeline.readers import compression, jsonl
from pipeline.store import artifact, files, locks
from pipeline.store.manifest import Identity
from pipeline.tokenizers import Characters

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("INKSTONE_SHARED") or ROOT.parent / "shared").resolve()
SAMPLE = ROOT / "pipeline" / "sample" / "yanshan.txt"
VICTIMS = ("main", "main", "group", "worker")
_TIMEOUT = 60.0  # seconds; a run that takes longer hangs
LEFTOVERS = (files.TEMPORARY, ".draft-", artifact.SCRATCH)

_DRIVER = """
import sys
from pipeline.tokens import chunks, stage
chunks.UNIT_BYTES, chunks.CHUNK_BYTES, stage._SMALL = {unit}, {chunk}, 0
import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def command(*arguments: object, unit: int = 1 << 20, chunk: int = 1 << 18) -> list[str]:
    """Return the command line with other unit and chunk sizes. Only the main process uses them, so workers need not."""
    return [sys.executable, "-c", _DRIVER.format(unit=unit, chunk=chunk), *map(str, arguments)]


@dataclass(frozen=True)
class Trial:
    """Inputs of all rounds, with the sha256 sums and the duration of an undisturbed run."""

    train: Path
    val: Path
    tokenizer: str
    expected: dict[str, str]
    seconds: float

    def start(self, root: Path, *, jobs: int = 2) -> subprocess.Popen[str]:
        inputs = ("tokenize", self.train, "--val", self.val, "--tokenizer", self.tokenizer)
        options = ("--name", "chaos", "--dedup", "exact", "--jobs", jobs)
        return subprocess.Popen(
            command("--artifacts", root, "--json", *inputs, *options),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@dataclass(frozen=True)
class Round:
    """Result of a round.

    victim    killed process: main, group or worker
    code      exit code of the first run, None if it was killed
    units     number of finished segments that the first run left
    problems  empty if the round passed
    """

    victim: str
    code: int | None
    units: int
    problems: tuple[str, ...]


def prepare(folder: Path, *, tokenizer: str = "", megabytes: int = 16) -> Trial:
    """Prepare the inputs, from the Pile if it is there or else from the bundled sample, and run once undisturbed.

    The default tokenizer is the characters of the text. It starts fastest, so more of the run is work.
    """
    train, val = folder / "train.jsonl", folder / "val.jsonl"
    pile = SHARED / "data" / "pile_train_00.jsonl.zst"
    lines = b"".join(compression.read_blocks(pile)).splitlines(keepends=True) if pile.exists() else _sample(megabytes)
    val.write_bytes(b"".join(lines[:20]))
    ends = itertools.accumulate(map(len, lines[20:]))
    train.write_bytes(b"".join(line for line, end in zip(lines[20:], ends, strict=True) if end < megabytes << 20))
    for path in (train, val):
        os.utime(path, (1e9, 1e9))
    tokenizer = tokenizer or str(_character_tokenizer(folder / "tokenizer", train.read_text("utf-8")))
    trial = Trial(train, val, tokenizer, {}, 0.0)
    start = time.monotonic()
    process = trial.start(folder / "quiet")
    stderr, _ = wait_for(process)
    assert process.returncode == 0, stderr
    return replace(trial, expected=published(folder / "quiet"), seconds=time.monotonic() - start)


def _sample(megabytes: int) -> list[bytes]:
    texts = SAMPLE.read_text(encoding="utf-8").splitlines()
    copies = range((megabytes << 20) // SAMPLE.stat().st_size + 1)
    return [jsonl.encode_line(f"{index} {text}", "", "", None) for index in copies for text in texts]


def _character_tokenizer(root: Path, text: str) -> Path:
    """Publish a tokenizer of the characters of a text and return its folder."""

    def write(draft: Path) -> artifact.StageOutput:
        Characters("".join(sorted(set(text))), "characters").save(draft)
        return artifact.StageOutput({})

    return artifact.build(root, Identity("tokenizers", "characters", {}, ()), write).artifact.path


def published(root: Path) -> dict[str, str]:
    """Return the sha256 of every file of the current generation, except `run.json`, which differs with every run."""
    (folder,) = {path.resolve() for path in (root / "tokens" / "chaos").glob("current")}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def disturb(trial: Trial, root: Path, generator: random.Random) -> Round:
    """Run one round in the empty folder `root`."""
    # Late moments are more likely, because the first half of a run is its start-up.
    victim, delay = generator.choice(VICTIMS), generator.triangular(0, trial.seconds, 0.8 * trial.seconds)
    first = trial.start(root)
    time.sleep(delay)
    kill(first, victim, generator)
    stderr, problems = wait_for(first)
    problems += [f"still alive: {name}" for name in survivors(first.pid)]
    if victim == "worker" and (first.returncode not in (0, 71) or "Traceback" in stderr):
        problems.append(f"a lost worker led to exit code {first.returncode}: {stderr}")
    before = left_behind(root)
    if before.started > 1:
        problems.append(f"{before.started} units were started and not finished")
    second = trial.start(root, jobs=generator.choice((1, 1, 2)))
    stderr, timeouts = wait_for(second)
    problems += timeouts
    if second.returncode:
        problems.append(f"the second run failed with {second.returncode}: {stderr}")
        return Round(victim, first.returncode, len(before.finished), tuple(problems))
    if (sums := published(root)) != trial.expected:
        differing = sorted(name for name in sums | trial.expected if sums.get(name) != trial.expected.get(name))
        problems.append(f"not the bytes of an undisturbed run: {', '.join(differing)}")
    after = {path.name: stamp(path) for path in root.glob("tokens/chaos/current/*.bin")}
    problems += [f"{name} was written twice" for name, old in before.finished.items() if after.get(name) != old]
    problems += [f"leftover: {path}" for path in leftovers(root)]
    problems += [f"still locked: {path}" for path in root.rglob(".lock") if locks.is_locked(path)]
    return Round(victim, first.returncode if first.returncode >= 0 else None, len(before.finished), tuple(problems))


def wait_for(run: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """Return the stderr of a run when it has ended, and a problem if it hung and was killed."""
    try:
        return run.communicate(timeout=_TIMEOUT)[1], []
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        return run.communicate()[1], ["it hung"]


def kill(first: subprocess.Popen[str], victim: str, generator: random.Random) -> None:
    if first.poll() is not None:
        return
    if victim == "group":
        os.killpg(first.pid, signal.SIGKILL)
    elif victim == "main":
        first.kill()
    elif workers := workers_of(first.pid):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(generator.choice(workers), signal.SIGKILL)


def workers_of(process: int) -> list[int]:
    """Return the process ids of the workers of a run."""
    workers = []
    for pid in _processes(process):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if pid != process and b"spawn_main" in arguments:
            workers.append(pid)
    return sorted(workers)


def survivors(session: int, patience: float = 10.0) -> list[str]:
    """Return the processes of a session that are still alive after `patience` seconds."""
    deadline = time.monotonic() + patience
    while (alive := _processes(session)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [f"process {pid}" for pid in alive]


def _processes(session: int) -> list[int]:
    """Return the process ids of a session, without zombies."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, owner = entry.read_text(errors="replace").rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(owner) == session and state not in "ZX":
            pids.append(int(entry.parent.name))
    return pids


@dataclass(frozen=True)
class LeftBehind:
    """Finished segments of a killed run by name, and the number of units it had started but not finished."""

    finished: dict[str, tuple[int, int]]
    started: int


def left_behind(root: Path) -> LeftBehind:
    finished, started = {}, 0
    for draft in root.glob("tokens/*/.draft-*"):
        stems = {path.name[5:-5] for path in draft.glob(f"{artifact.SCRATCH}/unit-*.json") if _is_json(path)}
        for path in draft.glob("*.bin"):
            if path.stem.partition("-")[2] in stems:
                finished[path.name] = stamp(path)
        started += len(list(draft.glob(f"{artifact.SCRATCH}/open-*")))
    return LeftBehind(finished, started)


def _is_json(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes()))
    except ValueError:
        return False


def stamp(path: Path) -> tuple[int, int]:
    """Return inode and time of a file; they change if it is written again."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def leftovers(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.name.startswith(LEFTOVERS))


class Outcome(Protocol):
    """Result of a round; `problems` is empty if it passed."""

    @property
    def problems(self) -> tuple[str, ...]: ...


_Outcome = TypeVar("_Outcome", bound=Outcome)


def repeat(
    disturb: Callable[[int, Path, random.Random], _Outcome], folder: Path, count: int, seed: int
) -> list[_Outcome]:
    """Return the results of `count` rounds, each in a folder of its own; that of a failed one is kept."""
    folder.mkdir(exist_ok=True)
    results = []
    for index in range(count):
        root = folder / f"round-{index}"
        result = disturb(index, root, random.Random(f"{seed} {index}"))
        results.append(result)
        if result.problems:
            print(f"round {index} ({result})", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(root)
    return results


def rounds(trial: Trial, folder: Path, count: int, seed: int) -> list[Round]:
    return repeat(lambda _, root, generator: disturb(trial, root, generator), folder, count, seed)


def summary(results: Sequence[Round]) -> str:
    victims = Counter(result.victim for result in results)
    killed = ", ".join(f"{victims[name]} {name}" for name in sorted(victims))
    resumed = [result.units for result in results if result.units]
    failed = sum(bool(result.problems) for result in results)
    return (
        f"{len(results)} rounds, killed: {killed}; {len(resumed)} resumed after up to {max(resumed, default=0)} "
        f"finished segments; {failed} failed"
    )


def main() -> int:
    from tests.support import chaos_refresh, chaos_training  # import this module

    parser = argparse.ArgumentParser(
        description="Kill tokenizing, refreshes and continued trainings at random moments."
    )
    parser.add_argument("--what", choices=["tokenize", "refresh", "training"], help="default: all")
    parser.add_argument("--rounds", type=int, default=200, help="number of rounds of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokenizer", default="", help="such as r50k_base (default: the characters of the text)")
    arguments = parser.parse_args()
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
    failed = False
    with tempfile.TemporaryDirectory(prefix="inkstone-chaos-", ignore_cleanup_errors=True) as name:
        folder, start = Path(name), time.monotonic()
        if arguments.what in (None, "tokenize"):
            results = rounds(prepare(folder, tokenizer=arguments.tokenizer), folder, arguments.rounds, arguments.seed)
            print(f"tokenize: {summary(results)}, in {time.monotonic() - start:.0f} s", flush=True)
            failed |= any(result.problems for result in results)
        if arguments.what in (None, "refresh"):
            start = time.monotonic()
            with chaos_refresh.trials(folder / "refresh") as trials:
                refreshed = chaos_refresh.rounds(trials, folder / "rounds", arguments.rounds, arguments.seed)
            print(f"refresh: {chaos_refresh.summary(refreshed)}, in {time.monotonic() - start:.0f} s")
            failed |= any(result.problems for result in refreshed)
        if arguments.what in (None, "training"):
            start = time.monotonic()
            with chaos_training.trial(folder / "training") as trial:
                trained = chaos_training.rounds(trial, folder / "continued", arguments.rounds, arguments.seed)
            print(f"training: {chaos_training.summary(trained)}, in {time.monotonic() - start:.0f} s")
            failed |= any(result.problems for result in trained)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
