"""Kill refreshes at random moments and check that a second run publishes the bytes of an undisturbed one.

    python -m tests.support.chaos --what refresh --rounds 200 --seed 1

Each round refreshes in its own folder, from the sample recipe or from a small part of a Pile served by this machine.
At a random moment it sends SIGKILL to the main process, to the process group, or to one worker. Half of the rounds of
the Pile start with an earlier generation, and in some the upstream files change before the second run.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.maintenance import verify
from pipeline.store import artifact, locks
from tests.support import chaos
from tests.support.upstream import ROOT, Hub, Nightly, environment, leftovers, nightly, published, serving, texts

SHARDS = 4


@dataclass(frozen=True)
class RefreshTrial:
    """A recipe to refresh in many rounds.

    quiet     folder of undisturbed refreshes, one for each edition of the upstream files
    expected  the sha256 sums that each of them published
    seconds   the longest duration of one of them
    hub       server of the upstream files, None for the sample, which has one edition only
    """

    name: str
    job: Nightly
    hub: Hub | None
    quiet: Path
    expected: tuple[dict[str, str], ...]
    seconds: float

    def publish_edition(self, edition: int) -> None:
        """Let the hub serve edition 0, 1 or 2. Each differs from the previous one in one shard."""
        if self.hub:
            for shard in range(SHARDS):
                changes = sum(shard == (step * 2) % SHARDS for step in range(1, edition + 1))
                self.hub.put(f"train/{shard:02d}.jsonl.zst", _long_texts(f"shard {shard}", 700, changes))
            self.hub.put("val.jsonl.zst", texts("held out", 8))


def _long_texts(name: str, count: int, edition: int) -> list[str]:
    return [text * 12 for text in texts(name, count, edition)]


@dataclass(frozen=True)
class RefreshRound:
    """Result of a round.

    trial     name of the trial
    victim    killed process: main, group or worker
    stage     stage at the time of the kill, as recorded in the lock
    code      exit code of the first run, None if it was killed
    changed   True if upstream changed between the runs
    problems  empty if the round passed
    """

    trial: str
    victim: str
    stage: str
    code: int | None
    changed: bool
    problems: tuple[str, ...]


@contextlib.contextmanager
def trials(folder: Path) -> Iterator[list[RefreshTrial]]:
    """Yield both trials, after an undisturbed refresh of every edition."""
    (folder / "pile").mkdir(parents=True)
    with serving(Hub()) as hub:
        sample = Nightly(ROOT / "pipeline" / "recipes" / "sample.toml", environment(hub))
        pile = nightly(folder / "pile", hub, shards=f"0-{SHARDS - 1},val", unit=1 << 17, chunk=1 << 15)
        yield [_trial("sample", sample, None, 1, folder), _trial("pile", pile, hub, 3, folder)]


def _trial(name: str, job: Nightly, hub: Hub | None, editions: int, folder: Path) -> RefreshTrial:
    expected, seconds = [], 0.0
    trial = RefreshTrial(name, job, hub, folder / "quiet" / name, (), 0.0)
    for edition in range(editions):
        trial.publish_edition(edition)
        start = time.monotonic()
        job.run(trial.quiet / str(edition), "--jobs", 2)
        seconds = max(seconds, time.monotonic() - start)
        expected.append(published(trial.quiet / str(edition)))
    return replace(trial, expected=tuple(expected), seconds=seconds)


def disturb(trial: RefreshTrial, root: Path, generator: random.Random) -> RefreshRound:
    """Run one round in the empty folder `root`."""
    edition = generator.choice((0, 1)) if trial.hub else 0
    trial.publish_edition(edition)
    if edition:
        shutil.copytree(trial.quiet / "0", root, symlinks=True)
    victim, delay = generator.choice(chaos.VICTIMS), generator.triangular(0.2, trial.seconds, 0.8 * trial.seconds)
    arguments = () if trial.name == "sample" else ("--allow-shrink",)
    first = trial.job.start(root, "--jobs", 2, *arguments)
    time.sleep(delay)
    stage = _current_stage(root)
    chaos.kill(first, victim, generator)
    stderr, problems = chaos.wait_for(first)
    problems += [f"still alive: {name}" for name in chaos.survivors(first.pid)]
    if victim == "worker" and (first.returncode not in (0, 71) or "Traceback" in stderr):
        problems.append(f"a lost worker led to exit code {first.returncode}: {stderr}")
    problems += _damage(root)
    changed = trial.hub is not None and generator.random() < 0.3
    if changed:
        edition += 1
        trial.publish_edition(edition)
    second = trial.job.start(root, "--jobs", generator.choice((1, 1, 2)), *arguments)
    stderr, timeouts = chaos.wait_for(second)
    problems += timeouts
    if second.returncode:
        problems.append(f"the second run failed with {second.returncode}: {stderr}")
    else:
        sums, expected = published(root), trial.expected[edition]
        if not sums.items() >= expected.items():
            differing = sorted(name for name in sums | expected if sums.get(name) != expected.get(name))
            problems.append(f"not the bytes of an undisturbed run: {', '.join(differing)}")
    problems += _damage(root, raw=True)
    problems += [f"leftover: {path}" for path in leftovers(root) if not (changed and ".draft-" in path)]
    code = first.returncode if first.returncode >= 0 else None
    return RefreshRound(trial.name, victim, stage, code, changed, tuple(problems))


def _current_stage(root: Path) -> str:
    """Return the stage of the refresh that holds the lock in `root`."""
    for path in (root / ".state").glob("*.lock"):
        if holder := locks.current_holder(path):
            return holder.stage or "start"
    return "start or end"


def _damage(root: Path, *, raw: bool = False) -> list[str]:
    """Return damaged published files, dangling `current` links, and locks that are still held."""
    checked = [(name, problem) for name, problems in verify.verify(root, deep=True) for problem in problems]
    damage = [problem for name, problem in checked if raw or not name.startswith("raw/")]
    damage += [
        f"{link} points to no valid artifact" for link in root.glob("*/*/current") if not artifact.is_intact(link)
    ]
    return damage + [f"still locked: {path}" for path in root.rglob("*.lock") if locks.is_locked(path)]


def rounds(trials: Sequence[RefreshTrial], folder: Path, count: int, seed: int) -> list[RefreshRound]:
    """Run `count` rounds. One in eight is of the sample, which has few documents."""
    return chaos.repeat(
        lambda index, root, generator: disturb(trials[index % 8 > 0], root, generator), folder, count, seed
    )


def summary(results: Sequence[RefreshRound]) -> str:
    killed = Counter(result.stage for result in results if result.code is None)
    stages = ", ".join(f"{count} at {stage}" for stage, count in sorted(killed.items()))
    victims = Counter(result.victim for result in results)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(victims.items()))
    failed, changed = sum(bool(result.problems) for result in results), sum(result.changed for result in results)
    return f"{len(results)} rounds ({counts}), killed: {stages}; upstream changed in {changed}; {failed} failed"
