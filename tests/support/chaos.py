"""Kill tokenizing at random moments; what is published in the end is what an undisturbed run publishes, byte for byte.

    python -m tests.chaos --rounds 200 --seed 1 [--what tokenize|refresh]

Each round starts the real command in a process group of its own, with units and pieces so small that there are many,
and at a drawn moment sends SIGKILL to the main process alone, to the whole group, or to one worker. Then it runs the
command again in peace, by one worker or by two.
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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.readers import compression, jsonl
from pipeline.store import artifact, files, locks
from pipeline.store.manifest import Identity
from pipeline.tokenizers import Characters

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("INKSTONE_SHARED") or ROOT.parent / "shared").resolve()
SAMPLE = ROOT / "pipeline" / "sample" / "yanshan.txt"
VICTIMS = ("main", "main", "group", "worker")
_PATIENCE = 60.0  # seconds: a run that takes longer hangs
LEFTOVERS = (files.TEMPORARY, ".draft-", artifact.SCRATCH)

_DRIVER = """
import sys
from pipeline.tokens import chunks as pieces, stage as tokenize
pieces.UNIT_BYTES, pieces.PIECE_BYTES, tokenize._SMALL = {unit}, {piece}, 0
import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def command(*arguments: object, unit: int = 1 << 20, piece: int = 1 << 18) -> list[str]:
    """The command line with units and pieces of other sizes: only the main process cuts, so workers need no telling."""
    return [sys.executable, "-c", _DRIVER.format(unit=unit, piece=piece), *map(str, arguments)]


@dataclass(frozen=True)
class Trial:
    """What is tokenized again and again, and what comes out when nobody disturbs."""

    train: Path
    val: Path
    tokenizer: str
    sums: dict[str, str]
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
    """How a round went: whom it killed, what the first run answered (None: it was killed before it could), how many
    whole units it left behind, and what was wrong, if anything."""

    victim: str
    code: int | None
    units: int
    wrong: tuple[str, ...]


def prepare(folder: Path, *, tokenizer: str = "", megabytes: int = 16) -> Trial:
    """Some of the Pile, or the embedded sample again and again where that is not; and one undisturbed run on it.

    Without a `tokenizer` it is the characters of the text: nothing starts faster, so more of the run is work.
    """
    train, val = folder / "train.jsonl", folder / "val.jsonl"
    pile = SHARED / "data" / "pile_train_00.jsonl.zst"
    lines = b"".join(compression.blocks(pile)).splitlines(keepends=True) if pile.exists() else _sample(megabytes)
    val.write_bytes(b"".join(lines[:20]))
    ends = itertools.accumulate(map(len, lines[20:]))
    train.write_bytes(b"".join(line for line, end in zip(lines[20:], ends, strict=True) if end < megabytes << 20))
    for path in (train, val):
        os.utime(path, (1e9, 1e9))
    quiet = Trial(train, val, tokenizer or str(_characters(folder / "shelf", train.read_text("utf-8"))), {}, 0.0)
    start = time.monotonic()
    done = quiet.start(folder / "quiet")
    said, _ = ended(done)
    assert done.returncode == 0, said
    return replace(quiet, sums=published(folder / "quiet"), seconds=time.monotonic() - start)


def _sample(megabytes: int) -> list[bytes]:
    texts = SAMPLE.read_text(encoding="utf-8").splitlines()
    times = range((megabytes << 20) // SAMPLE.stat().st_size + 1)
    return [jsonl.json_line(f"{number} {text}", "", "", None) for number in times for text in texts]


def _characters(root: Path, text: str) -> Path:
    """A tokenizer of the characters of a text, published."""

    def write(draft: Path) -> artifact.Content:
        Characters("".join(sorted(set(text))), "characters").save(draft)
        return artifact.Content({})

    return artifact.build(root, Identity("tokenizers", "characters", {}, ()), write).artifact.path


def published(root: Path) -> dict[str, str]:
    """The sha256 of every file of the one generation there is, the manifest's included; what `run.json` tells is of
    the run and not of the bytes."""
    (folder,) = {path.resolve() for path in (root / "tokens" / "chaos").glob("current")}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def disturb(trial: Trial, root: Path, draw: random.Random) -> Round:
    """One round in the empty folder `root`."""
    # At any moment, but more often late: the first half of a run is its start.
    victim, after = draw.choice(VICTIMS), draw.triangular(0, trial.seconds, 0.8 * trial.seconds)
    first = trial.start(root)
    time.sleep(after)
    kill(first, victim, draw)
    said, wrong = ended(first)
    wrong += [f"lives on: {name}" for name in survivors(first.pid)]
    if victim == "worker" and (first.returncode not in (0, 71) or "Traceback" in said):
        wrong.append(f"a lost worker ended in exit code {first.returncode}: {said}")
    before = left_behind(root)
    if before.begun > 1:
        wrong.append(f"{before.begun} units were begun and not finished")
    again = trial.start(root, jobs=draw.choice((1, 1, 2)))
    said, hangs = ended(again)
    wrong += hangs
    if again.returncode:
        return Round(victim, first.returncode, len(before.finished), (*wrong, f"{again.returncode} after all: {said}"))
    if (found := published(root)) != trial.sums:
        differ = sorted(name for name in found | trial.sums if found.get(name) != trial.sums.get(name))
        wrong.append(f"not the bytes of an undisturbed run: {', '.join(differ)}")
    after_all = {path.name: stamp(path) for path in root.glob("tokens/chaos/current/*.bin")}
    wrong += [f"{name} was done twice" for name, was in before.finished.items() if after_all.get(name) != was]
    wrong += [f"left behind: {path}" for path in leftovers(root)]
    wrong += [f"still locked: {path}" for path in root.rglob(".lock") if locks.is_locked(path)]
    return Round(victim, first.returncode if first.returncode >= 0 else None, len(before.finished), tuple(wrong))


def ended(run: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """What a run said on stderr once it has ended, and what is wrong where it had to be ended."""
    try:
        return run.communicate(timeout=_PATIENCE)[1], []
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        return run.communicate()[1], ["it hangs"]


def kill(first: subprocess.Popen[str], victim: str, draw: random.Random) -> None:
    if first.poll() is not None:
        return
    if victim == "group":
        os.killpg(first.pid, signal.SIGKILL)
    elif victim == "main":
        first.kill()
    elif workers := workers_of(first.pid):
        with contextlib.suppress(ProcessLookupError):  # it had just ended by itself
            os.kill(draw.choice(workers), signal.SIGKILL)


def workers_of(process: int) -> list[int]:
    """Process ids of the workers that a run has started."""
    found = []
    for each in _processes(process):
        try:
            asked = Path(f"/proc/{each}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if each != process and b"spawn_main" in asked:
            found.append(each)
    return sorted(found)


def survivors(session: int, patience: float = 10.0) -> list[str]:
    """What of a session is still alive after a while, when all of it should have ended."""
    deadline = time.monotonic() + patience
    while (alive := _processes(session)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [f"process {each}" for each in alive]


def _processes(session: int) -> list[int]:
    """Process ids in a session, those that have ended left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = entry.read_text(errors="replace").rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == session and state not in "ZX":
            found.append(int(entry.parent.name))
    return found


@dataclass(frozen=True)
class LeftBehind:
    """What a killed run leaves: its finished segments of ids by name, and how many units it had only begun."""

    finished: dict[str, tuple[int, int]]
    begun: int


def left_behind(root: Path) -> LeftBehind:
    finished, begun = {}, set()
    for draft in root.glob("tokens/*/.draft-*"):
        stems = {path.name[5:-5] for path in draft.glob(f"{artifact.SCRATCH}/unit-*.json") if _is_json(path)}
        for path in draft.glob("*.bin"):
            stem = path.stem.partition("-")[2]
            if stem in stems:
                finished[path.name] = stamp(path)
            else:
                begun.add(stem)
    return LeftBehind(finished, len(begun))


def _is_json(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes()))
    except ValueError:
        return False


def stamp(path: Path) -> tuple[int, int]:
    """What tells a file from one that was written anew."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def leftovers(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.name.startswith(LEFTOVERS))


def rounds(trial: Trial, folder: Path, count: int, seed: int) -> list[Round]:
    found = []
    for number in range(count):
        root = folder / f"round-{number}"
        found.append(disturb(trial, root, random.Random(f"{seed} {number}")))
        if found[-1].wrong:
            print(f"round {number} ({found[-1].victim}): {'; '.join(found[-1].wrong)}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(root)
    return found


def summary(found: Sequence[Round]) -> str:
    victims = Counter(each.victim for each in found)
    killed = ", ".join(f"{victims[name]} {name}" for name in sorted(victims))
    resumed = [each.units for each in found if each.units]
    failed = sum(bool(each.wrong) for each in found)
    return (
        f"{len(found)} rounds, killed: {killed}; {len(resumed)} went on after up to {max(resumed, default=0)} "
        f"finished segments; {failed} failed"
    )


def main() -> int:
    from tests.support import chaos_refresh  # it uses this module

    parser = argparse.ArgumentParser(description="Kill tokenizing, and refreshes, at random moments.")
    parser.add_argument("--what", choices=["tokenize", "refresh"], help="only this; by default one after the other")
    parser.add_argument("--rounds", type=int, default=200, help="of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokenizer", default="", help="such as r50k_base; by default the characters of the text")
    chosen = parser.parse_args()
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
    failed = False
    with tempfile.TemporaryDirectory(prefix="inkstone-chaos-", ignore_cleanup_errors=True) as name:
        folder, start = Path(name), time.monotonic()
        if chosen.what != "refresh":
            found = rounds(prepare(folder, tokenizer=chosen.tokenizer), folder, chosen.rounds, chosen.seed)
            print(f"tokenize: {summary(found)}, in {time.monotonic() - start:.0f} s", flush=True)
            failed |= any(each.wrong for each in found)
        if chosen.what != "tokenize":
            start = time.monotonic()
            with chaos_refresh.trials(folder / "refresh") as trials:
                refreshed = chaos_refresh.rounds(trials, folder / "rounds", chosen.rounds, chosen.seed)
            print(f"refresh: {chaos_refresh.summary(refreshed)}, in {time.monotonic() - start:.0f} s")
            failed |= any(each.wrong for each in refreshed)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
