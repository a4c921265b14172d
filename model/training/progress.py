"""The state of a running training, for a person: as lines of text, or as values for a progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from model.generation.engine import Sample
from model.runs.run import Report
from model.training.lr_schedule import LRSchedule
from model.training.tuning.evaluation import AnyEvaluation

_WATCH_SECONDS = 1.0
_MAX_SAMPLE, _MAX_PROMPT = 100, 50  # characters of a sample in a line, and of its prompt
_INDENT = " " * 12  # of a sample below the line of its step


@dataclass(frozen=True)
class TrainProgress:
    """State of a training: `fraction` of the schedule that has passed, and what the last reports measured.

    `loss` and `val_loss` are in nats per token; `better_than` names the best baseline that has a higher loss, if any;
    `sample` is a prompt and its continuation in one line, separated by a bar. All are empty until first known.
    """

    step: int
    fraction: float
    seconds_left: float | None = None
    loss: float | None = None
    val_loss: float | None = None
    bits_per_char: float | None = None
    better_than: str = ""
    sample: str = ""


Watch = Callable[[TrainProgress], None]


class ProgressReporter:
    """Reports a training as lines, or as values if there is `watch`, which is called about every second.

    A step trains on `step_tokens` tokens.
    """

    def __init__(self, report: Report, watch: Watch | None, step_tokens: int) -> None:
        self._report, self._watch, self._step_tokens = report, watch, step_tokens
        self._timer, self._progress = Every(_WATCH_SECONDS), TrainProgress(0, 0.0)
        self._last_report = (0, 0.0)

    def restart(self, schedule: LRSchedule) -> None:
        """Measure the speed from this point of the schedule."""
        self._last_report = (schedule.step, schedule.seconds)

    def tick(self, schedule: LRSchedule) -> None:
        """Pass the position in the schedule to `watch`, if that is due."""
        if self._watch and self._timer.due(time.monotonic()):
            self._show(schedule)

    def report(
        self,
        schedule: LRSchedule,
        loss: float | None,
        evaluation: AnyEvaluation | None = None,
        better_than: str = "",
        sample: Sample | None = None,
    ) -> None:
        """Report the training loss since the last report, an evaluation with its best baseline, and a sample."""
        better_than = better_than if schedule.step else ""  # a network with random weights is better by chance
        values: dict[str, Any] = {} if loss is None else {"loss": loss}
        parts = [str(schedule), f"loss {loss:.3f}" if loss is not None else ""]
        if evaluation:
            bits = evaluation.columns.get("bits_per_char")
            values |= {"val_loss": evaluation.loss, "bits_per_char": bits, "better_than": better_than}
            parts.append(f"{evaluation}, better than {better_than}" if better_than else str(evaluation))
        parts += [self._speed(schedule), _time_left(schedule.seconds_left)]
        if sample:
            values["sample"] = _sample_line(sample)
        if self._watch:
            self._show(schedule, **values)
        elif evaluation or loss is not None:
            self._report("  ".join(part for part in parts if part))
        if sample and not self._watch:
            self._report(f"{_INDENT}{values['sample']}")

    def _show(self, schedule: LRSchedule, **values: Any) -> None:
        fraction = min(schedule.progress, 1.0) if schedule.step else 0.0
        values |= {"step": schedule.step, "fraction": fraction, "seconds_left": schedule.seconds_left}
        self._progress = replace(self._progress, **values)
        if self._watch:
            self._watch(self._progress)

    def _speed(self, schedule: LRSchedule) -> str:
        """Format the tokens per second since the last report; "" if no step was taken."""
        step, seconds = self._last_report
        self.restart(schedule)
        if schedule.step == step:
            return ""
        tokens = (schedule.step - step) * self._step_tokens
        return f"{tokens / max(schedule.seconds - seconds, 1e-9):,.0f} tokens/s"


def _time_left(seconds: float | None) -> str:
    """Format the remaining time, such as "2:05 left"; "" if it is unknown or over."""
    if not seconds:
        return ""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"


def _sample_line(sample: Sample) -> str:
    """Format a sample in one line, without characters that a terminal would interpret."""
    prompt = sample.prompt if len(sample.prompt) <= _MAX_PROMPT else f"…{sample.prompt[1 - _MAX_PROMPT :]}"
    line = "".join(character if character.isprintable() else " " for character in f"{prompt}|{sample.text}")
    return line if len(line) <= _MAX_SAMPLE else f"{line[: _MAX_SAMPLE - 1]}…"


class Every:
    """Timer that is due `seconds` after it was last restarted.

    The caller passes the time in, so that several processes can share one clock.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._start = 0.0

    def restart(self, now: float) -> None:
        self._start = now

    def due(self, now: float) -> bool:
        """Return True, and restart, if more than the interval has passed."""
        if now - self._start <= self._seconds:
            return False
        self._start = now
        return True
