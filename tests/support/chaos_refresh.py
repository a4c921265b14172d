"""Kill refreshes at random moments; in the end there is what undisturbed ones would have published, byte for byte.

    python -m tests.chaos --what refresh --rounds 200 --seed 1

Each round refreshes in a folder of its own, from the sample recipe or from a small part of a Pile that is served on
this machine. At a drawn moment it sends SIGKILL to the main process alone, to the whole group, or to one worker; in
half of the rounds of the Pile there is an earlier generation, and in some upstream changes before the next run.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sys
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
class Trial:
    """What is refreshed again and again. When nobody disturbs, each edition of upstream gives a folder in `quiet`, and
    in it the bytes that are `expected`. One that has only one edition never changes."""

    name: str
    job: Nightly
    hub: Hub | None
    quiet: Path
    expected: tuple[dict[str, str], ...]
    seconds: float

    def upstream(self, edition: int) -> None:
        """Let upstream have its edition 0, 1 or 2: each differs from the one before in one shard."""
        if self.hub:
            for number in range(SHARDS):
                changed = sum(number == (place * 2) % SHARDS for place in range(1, edition + 1))
                self.hub.put(f"train/{number:02d}.jsonl.zst", _texts(f"shard {number}", 700, changed))
            self.hub.put("val.jsonl.zst", texts("held out", 8))


def _texts(name: str, count: int, edition: int) -> list[str]:
    return [text * 12 for text in texts(name, count, edition)]


@dataclass(frozen=True)
class Round:
    """How a round went: of which trial, whom it killed, at which stage (as the lock said), the exit code of the killed
    run (None: it was killed before it could end), whether upstream changed meanwhile, and what was wrong, if anything.
    """

    trial: str
    victim: str
    stage: str
    code: int | None
    changed: bool
    wrong: tuple[str, ...]


@contextlib.contextmanager
def trials(folder: Path) -> Iterator[list[Trial]]:
    """Both recipes, each after an undisturbed run on every edition."""
    (folder / "pile").mkdir(parents=True)
    with serving(Hub()) as hub:
        sample = Nightly(ROOT / "pipeline" / "recipes" / "sample.toml", environment(hub))
        pile = nightly(folder / "pile", hub, shards=f"0-{SHARDS - 1},val", unit=1 << 17, piece=1 << 15)
        yield [_trial("sample", sample, None, 1, folder), _trial("pile", pile, hub, 3, folder)]


def _trial(name: str, job: Nightly, hub: Hub | None, editions: int, folder: Path) -> Trial:
    expected, seconds = [], 0.0
    made = Trial(name, job, hub, folder / "quiet" / name, (), 0.0)
    for edition in range(editions):
        made.upstream(edition)
        start = time.monotonic()
        job.run(made.quiet / str(edition), "--jobs", 2)
        seconds = max(seconds, time.monotonic() - start)
        expected.append(published(made.quiet / str(edition)))
    return replace(made, expected=tuple(expected), seconds=seconds)


def disturb(trial: Trial, root: Path, draw: random.Random) -> Round:
    """One round in the empty folder `root`."""
    edition = draw.choice((0, 1)) if trial.hub else 0
    trial.upstream(edition)
    if edition:
        shutil.copytree(trial.quiet / "0", root, symlinks=True)
    victim, after = draw.choice(chaos.VICTIMS), draw.triangular(0.2, trial.seconds, 0.8 * trial.seconds)
    arguments = () if trial.name == "sample" else ("--allow-shrink",)
    first = trial.job.start(root, "--jobs", 2, *arguments)
    time.sleep(after)
    stage = _stage(root)
    chaos.kill(first, victim, draw)
    said, wrong = chaos.ended(first)
    wrong += [f"lives on: {name}" for name in chaos.survivors(first.pid)]
    if victim == "worker" and (first.returncode not in (0, 71) or "Traceback" in said):
        wrong.append(f"a lost worker ended in exit code {first.returncode}: {said}")
    wrong += _damage(root)
    changed = trial.hub is not None and draw.random() < 0.3
    if changed:
        edition += 1
        trial.upstream(edition)
    again = trial.job.start(root, "--jobs", draw.choice((1, 1, 2)), *arguments)
    said, hangs = chaos.ended(again)
    wrong += hangs
    if again.returncode:
        wrong.append(f"{again.returncode} after all: {said}")
    elif not published(root).items() >= (wanted := trial.expected[edition]).items():
        found = published(root)
        differ = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
        wrong.append(f"not the bytes of an undisturbed run: {', '.join(differ)}")
    wrong += _damage(root, raw=True)
    wrong += [f"left behind: {path}" for path in leftovers(root) if not (changed and ".draft-" in path)]
    code = first.returncode if first.returncode >= 0 else None
    return Round(trial.name, victim, stage, code, changed, tuple(wrong))


def _stage(root: Path) -> str:
    """At which stage the refresh of `root` is."""
    for path in (root / ".state").glob("*.lock"):
        if holder := locks.holder(path):
            return holder.stage or "start"
    return "start or end"


def _damage(root: Path, *, raw: bool = False) -> list[str]:
    """What is published and not whole, a `current` that leads nowhere, and locks that are still held."""
    checked = [(name, each) for name, problems in verify.verify(root, deep=True) for each in problems]
    wrong = [problem for name, problem in checked if raw or not name.startswith("raw/")]
    wrong += [f"{link} leads to nothing whole" for link in root.glob("*/*/current") if not artifact.is_whole(link)]
    return wrong + [f"still locked: {path}" for path in root.rglob("*.lock") if locks.is_locked(path)]


def rounds(trials: Sequence[Trial], folder: Path, count: int, seed: int) -> list[Round]:
    """`count` rounds, most of them of the Pile: the sample has but few documents."""
    found = []
    for number in range(count):
        root, draw = folder / f"round-{number}", random.Random(f"{seed} {number}")
        root.parent.mkdir(exist_ok=True)
        found.append(disturb(trials[number % 8 > 0], root, draw))
        if found[-1].wrong:
            print(f"round {number} ({found[-1]})", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(root)
    return found


def summary(found: Sequence[Round]) -> str:
    killed = Counter(each.stage for each in found if each.code is None)
    stages = ", ".join(f"{count} at {stage}" for stage, count in sorted(killed.items()))
    victims = ", ".join(f"{count} {name}" for name, count in sorted(Counter(each.victim for each in found).items()))
    failed, changed = sum(bool(each.wrong) for each in found), sum(each.changed for each in found)
    return f"{len(found)} rounds ({victims}), killed: {stages}; upstream changed in {changed}; {failed} failed"
