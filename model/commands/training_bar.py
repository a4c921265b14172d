"""The bar of a training on a terminal: percentage, time left, held-out loss, and each sample above it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from model.commands.options import is_secondary_rank
from pipeline.commands.console import Settings
from pipeline.runtime.terminal import printable

if TYPE_CHECKING:
    from model.training.progress import TrainProgress, Watch

MEASURING = "measuring the baselines and the time of a step"  # before a training has its first line


@contextmanager
def training_watch(settings: Settings) -> Iterator[Watch | None]:
    """Yield a function that draws the state of a training as a bar, or None if lines are to be printed instead.

    A line reports the measurements before the first step. Of several processes only the main one reports.
    """
    with nullcontext() if is_secondary_rank() else settings.progress.wait(MEASURING), _bar(settings) as watch:
        yield watch


@contextmanager
def _bar(settings: Settings) -> Iterator[Watch | None]:
    if settings.quiet or settings.json or not (sys.stderr and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn

    columns = ("training ", BarColumn(), TaskProgressColumn(), "{task.fields[status]}")
    bar = Progress(*columns, console=Console(stderr=True))
    task, sample = bar.add_task("training", total=1.0, status=""), ""

    def draw(state: TrainProgress) -> None:
        nonlocal sample
        bar.start()  # at the first call, after the plan was printed
        if state.sample != sample:
            sample = state.sample
            bar.console.print(f"          {escape(printable(sample))}", highlight=False)
        bar.update(task, completed=state.fraction, status=escape(_status(state)))

    try:
        yield draw
    finally:
        bar.stop()


def _status(state: TrainProgress) -> str:
    seconds = int(state.seconds_left or 0)
    held_out = f"held out {state.bits_per_char:.2f} bits/char" if state.bits_per_char is not None else ""
    better = f"better than {state.better_than}" if state.better_than else ""
    left = f"{seconds // 60}:{seconds % 60:02} left" if state.seconds_left else ""
    return "  ".join(filter(None, (left, held_out, better)))
