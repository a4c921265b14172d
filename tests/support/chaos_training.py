"""Kill refreshes that continue a training, at random moments, and check that the next one ends as an undisturbed one.

    python -m tests.support.chaos --what training --rounds 200 --seed 1

In each round the text has grown since the run was trained. SIGKILL ends the refresh at a random moment, up to three
times; then it runs once without interruption. Each refresh is a fork of this process.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.maintenance import verify
from pipeline.store import artifact
from tests.support import chaos
from tests.support.nights import Nights, chapters, data, nights_in
from tests.support.training import assert_same_run, preload


@dataclass(frozen=True)
class TrainingTrial:
    """Nights whose first run is published and whose text has grown since, and the undisturbed second night."""

    nights: Nights
    quiet: Nights
    seconds: float


@dataclass(frozen=True)
class TrainingRound:
    """Result of a round: the stages at which the refresh was killed, and the problems, empty if the round passed."""

    stages: tuple[str, ...]
    problems: tuple[str, ...]


@contextmanager
def trial(folder: Path) -> Iterator[TrainingTrial]:
    """Yield the trial, after a first night and an undisturbed second one."""
    preload(folder / "preload")
    with nights_in(folder) as nights:
        nights.expect(0)
        (nights.texts / "a.txt").write_text(chapters(1, 7), encoding="utf-8")
        nights.add_news(54)
        quiet = replace(nights, root=shutil.copytree(nights.root, folder / "quiet", symlinks=True))
        undisturbed = quiet.refresh()
        assert undisturbed.code == 0, undisturbed.err
        yield TrainingTrial(nights, quiet, undisturbed.seconds)


def disturb(trial: TrainingTrial, root: Path, generator: random.Random) -> TrainingRound:
    """Run one round in a copy of the store."""
    nights = replace(trial.nights, root=shutil.copytree(trial.nights.root, root, symlinks=True))
    stages = []
    for _ in range(generator.choice((1, 1, 2, 3))):
        killed = nights.refresh(kill_after=generator.uniform(0.0, trial.seconds))
        stages.append("end" if killed.code == 0 else _stage(root))
    final, problems = nights.refresh(), []
    if final.code != 0 or nights.steps != trial.quiet.steps:
        problems.append(f"the last refresh ended with {final.code} at step {nights.steps}: {final.err}")
    elif data(root) != data(trial.quiet.root):
        problems.append("not the bytes of an undisturbed refresh")
    else:
        try:
            assert_same_run(nights.run(), trial.quiet.run())
        except AssertionError as error:
            problems.append(f"not the run of an undisturbed refresh: {error}")
    problems += [problem for _, found in verify.verify(root, deep=True) for problem in found]
    problems += [
        f"{link} points to no valid artifact" for link in root.glob("*/*/current") if not artifact.is_intact(link)
    ]
    problems += [f"leftover: {path}" for path in chaos.leftovers(root)]
    return TrainingRound(tuple(stages), tuple(problems))


def _stage(root: Path) -> str:
    """Return the furthest kind of draft that a killed refresh left."""
    kinds = [path.parts[-3] for path in root.glob("*/*/.draft-*")]
    return next((kind for kind in ("runs", "tokens", "tokenizers", "corpora") if kind in kinds), "no draft")


def rounds(trial: TrainingTrial, folder: Path, count: int, seed: int) -> list[TrainingRound]:
    return chaos.repeat(lambda _, root, generator: disturb(trial, root, generator), folder, count, seed)


def summary(results: Sequence[TrainingRound]) -> str:
    killed = Counter(stage for result in results for stage in result.stages)
    stages = ", ".join(f"{count} at {stage}" for stage, count in sorted(killed.items()))
    failed = sum(bool(result.problems) for result in results)
    return f"{len(results)} rounds, killed: {stages}; {failed} failed"
