"""Progress of a training, in steps or by the clock, and the learning rates that follow from it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from model.config import TrainConfig

_MOMENTUM_START = 0.85
_ANNEAL_FRACTION = 0.1  # of the steps so far: enough to gain most of what a long decay gains (Hägele et al. 2024)


class LRSchedule:
    """Counts steps and seconds of training, and sets learning rates. `paused` stops the clock.

    `broadcast` returns the main process's value, so that several processes follow one clock. A step is `step_epochs`
    of an epoch. The schedule ends after `max_steps`, or earlier by the clock. `applied_factor` is the factor that
    `apply` used last. `cooldown` is the first and the last step of an early end and the factor to start from, None if
    the schedule ends as planned.
    """

    def __init__(
        self, config: TrainConfig, broadcast: Callable[[float], float] = float, step_epochs: float = 0.0
    ) -> None:
        self._config, self._broadcast = config, broadcast
        by_epochs = config.epochs / step_epochs if config.epochs and step_epochs else math.inf
        self.max_steps = min(math.inf if config.minutes else config.steps, by_epochs)
        self._resumed_at: float | None = None  # when the clock last started; None while it is stopped
        self.restore(step=0, seconds=0.0, applied_factor=0.0)

    def restore(
        self, step: int, seconds: float, applied_factor: float, cooldown: tuple[int, int, float] | None = None
    ) -> None:
        """Move to the position of a checkpoint."""
        self.cooldown = cooldown
        self.step, self._seconds, self.applied_factor = step, seconds, applied_factor
        if self._resumed_at is not None:
            self._resumed_at = time.monotonic()
        self._clock_progress = self._read_clock()

    def _read_clock(self) -> float:
        minutes = self._config.minutes
        return self._broadcast(self.seconds / (60 * minutes)) if minutes else 0.0

    def __str__(self) -> str:
        return f"step {self.step:>6,}  {min(self.progress, 1.0) if self.step else 0.0:4.0%}"

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._seconds if self._resumed_at is None else self._seconds + time.monotonic() - self._resumed_at

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock in the context, for evaluating, saving and sampling; at its end the clock runs."""
        self._seconds, self._resumed_at = self.seconds, None
        try:
            yield
        finally:
            self._resumed_at = time.monotonic()

    def spend(self, seconds: float) -> None:
        """Count seconds without a step, such as those of compiling, towards a length in minutes."""
        if self._config.minutes:
            self._seconds += seconds
            self._clock_progress = self._read_clock()

    @property
    def progress(self) -> float:
        """Fraction of the schedule that has passed; 1 or more at its end."""
        if self.cooldown:
            return float(self.step >= self.cooldown[1])
        return max(self._clock_progress, self.step / self.max_steps)

    @property
    def seconds_left(self) -> float | None:
        """Seconds of training until the end, None before the first step."""
        end = self.cooldown[1] if self.cooldown else self.max_steps
        by_steps = self.seconds / self.step * max(end - self.step, 0) if self.step else math.inf
        by_clock = 60 * self._config.minutes - self.seconds if self._config.minutes and not self.cooldown else math.inf
        seconds = min(by_steps, max(by_clock, 0.0))
        return seconds if seconds < math.inf else None

    @property
    def finished(self) -> bool:
        """True once training should end. At least one step is taken, even if evaluating used up the time budget."""
        return self.progress >= 1 and self.step > 0

    def advance(self) -> None:
        """Count a step. The clock is read here only, so that all decisions about one step are based on one time."""
        self.step += 1
        self._clock_progress = self._read_clock()

    def anneal(self) -> None:
        """End soon: rates fall to zero over a tenth of the steps so far, or over the remaining steps if fewer."""
        progress = max(self.progress, 1e-9)
        steps = min(math.ceil(self.step * _ANNEAL_FRACTION), math.ceil(self.step * (1 - progress) / progress))
        self.cooldown = (self.step, self.step + max(1, steps), self.lr_factor)

    @property
    def annealing(self) -> bool:
        return self.cooldown is not None

    @property
    def lr_factor(self) -> float:
        """The learning rates of the next step, as a fraction of their peaks."""
        config, progress = self._config, min(self.progress, 1.0)
        warmup = min((self.step + 1) / max(config.warmup, 1), 1.0)
        if self.cooldown:
            start, end, peak = self.cooldown
            return peak * (end - self.step) / (end - start)
        if config.schedule == "cosine":
            decay = 0.5 * (1 + math.cos(math.pi * progress))
        else:
            decay = min(1.0, (1 - progress) / config.cooldown) if config.cooldown else 1.0
        return warmup * (config.final_share + (1 - config.final_share) * decay)

    @property
    def learning_rate(self) -> float:
        """The main learning rate of the last step."""
        return self.applied_factor * self._config.learning_rate

    @property
    def momentum(self) -> float:
        """Momentum of Muon, which is lower in the first steps (modded-nanogpt)."""
        warmup = min(self.step / max(self._config.momentum_warmup, 1), 1.0)
        return min(_MOMENTUM_START, self._config.momentum) * (1 - warmup) + self._config.momentum * warmup

    def apply(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Set the learning rate of every parameter group from its peak, and Muon's momentum."""
        self.applied_factor, momentum = self.lr_factor, self.momentum
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.applied_factor * group.setdefault("peak", group["lr"])
                if "momentum" in group:
                    group["momentum"] = momentum
