"""How far a training has come, by steps or by the clock, and what that makes of its rates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from model.config import TrainConfig

_MOMENTUM_START = 0.85
_ANNEAL_SHARE = 0.1  # of the steps so far: enough to gain most of what a long fall gains (Hägele et al. 2024)


class Schedule:
    """Counts steps and the seconds of training, which do not include what happens in `paused`.

    `agree` makes the clock of the first of several processes that of all.
    """

    def __init__(
        self, config: TrainConfig, step: int = 0, seconds: float = 0.0, agree: Callable[[float], float] = float
    ) -> None:
        self._config, self._agree = config, agree
        self.step = step
        self._seconds = seconds
        self._since: float | None = None  # when the clock last began to run; None: it stands
        self._anneal: tuple[int, int, float] | None = None  # from which step, to which, and from which share
        self._passed = agree(seconds / (60 * config.minutes)) if config.minutes else 0.0

    def __str__(self) -> str:
        return f"step {self.step:>6,}  {min(self.done, 1.0) if self.step else 0.0:4.0%}"

    def start(self) -> None:
        """Let the clock run: what came before, like loading, was no training."""
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._seconds if self._since is None else self._seconds + time.monotonic() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Evaluating, saving and sampling are no training: the clock stands meanwhile."""
        self._seconds, self._since = self.seconds, None
        try:
            yield
        finally:
            self.start()

    @property
    def done(self) -> float:
        """Share of the schedule that has passed, 1 or more at its end."""
        if self._anneal:
            return float(self.step >= self._anneal[1])
        if self._config.minutes:
            return self._passed
        return self.step / self._config.steps

    def advance(self) -> None:
        """A step is done. The clock is looked at once a step, so that all that is decided in one goes by one time."""
        self.step += 1
        if self._config.minutes:
            self._passed = self._agree(self.seconds / (60 * self._config.minutes))

    def anneal(self) -> None:
        """End soon: rates fall to zero over the next tenth of the steps so far, or over those that are left."""
        done = max(self.done, 1e-9)
        steps = min(math.ceil(self.step * _ANNEAL_SHARE), math.ceil(self.step * (1 - done) / done))
        self._anneal = (self.step, self.step + max(1, steps), self.share)

    @property
    def annealing(self) -> bool:
        return self._anneal is not None

    @property
    def share(self) -> float:
        """The rates now, as a share of their peaks."""
        config, done = self._config, min(self.done, 1.0)
        warm = min((self.step + 1) / max(config.warmup, 1), 1.0)
        if self._anneal:
            start, end, peak = self._anneal
            return peak * (end - self.step) / (end - start)
        if config.schedule == "cosine":
            fallen = 0.5 * (1 + math.cos(math.pi * done))
        else:
            fallen = min(1.0, (1 - done) / config.cooldown) if config.cooldown else 1.0
        return warm * (config.final_share + (1 - config.final_share) * fallen)

    @property
    def momentum(self) -> float:
        """Of Muon, which is noisy at first (modded-nanogpt)."""
        warm = min(self.step / max(self._config.momentum_warmup, 1), 1.0)
        return min(_MOMENTUM_START, self._config.momentum) * (1 - warm) + self._config.momentum * warm

    def apply(self, optimizers: Sequence[torch.optim.Optimizer]) -> float:
        """Set the rates of every group from its peak, and Muon's momentum. Returns the share."""
        share, momentum = self.share, self.momentum
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * group.setdefault("peak", group["lr"])
                if "momentum" in group:
                    group["momentum"] = momentum
        return share
