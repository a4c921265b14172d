"""A claim, the figure that it is measured by, and its verdict: PASS, FAIL or SKIP."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.gpu.machine import Machine

_MAX_REASON = 200  # characters of an error


class Skipped(Exception):
    """A claim that this machine cannot measure, with the reason."""


@dataclass(frozen=True)
class Figure:
    """A measured value, the bounds within which the claim holds, and a note for the reader."""

    value: float
    unit: str
    low: float = -math.inf
    high: float = math.inf
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.low <= self.value <= self.high

    @property
    def bound(self) -> str:
        if self.low == -math.inf:
            return f"at most {self.high:,.4g}"
        return f"at least {self.low:,.4g}" if self.high == math.inf else f"{self.low:,.4g} to {self.high:,.4g}"


@dataclass(frozen=True)
class Claim:
    """A `sentence` that `measure` tests, with a short name.

    A claim `of_gpus` has a bound for GPUs: on a CPU it is measured with a reduced network, without a verdict. One that
    is `slow` is skipped by --quick.
    """

    name: str
    sentence: str
    measure: Callable[[Machine], Figure]
    of_gpus: bool = False
    slow: bool = False


@dataclass(frozen=True)
class Verdict:
    """PASS, FAIL or SKIP for a claim, with its figure if one was measured, or the reason for having none."""

    claim: Claim
    verdict: str
    seconds: float
    figure: Figure | None = None
    reason: str = ""

    def line(self) -> str:
        parts = [f"{self.verdict} {self.claim.name:<22}"]
        if self.figure:
            parts.append(f"{self.figure.value:,.4g} {self.figure.unit} ({self.figure.bound})")
        parts += filter(None, [self.reason, self.figure.note if self.figure else ""])
        return "; ".join([" ".join(parts[:2]), *parts[2:]])

    def fields(self) -> dict[str, Any]:
        """Return the fields of the JSON file, in which a number that is not finite is a text."""
        figure = {name: _finite(value) for name, value in asdict(self.figure).items()} if self.figure else None
        return {
            "name": self.claim.name,
            "claim": self.claim.sentence,
            "verdict": self.verdict,
            "figure": figure,
            "reason": self.reason,
            "seconds": round(self.seconds, 2),
        }


def judge(claim: Claim, machine: Machine, seconds_left: float) -> Verdict:
    """Measure a claim. An error of any kind is a FAIL with its first line, since it would end a user's training."""
    start = time.monotonic()
    if machine.quick and claim.slow:
        return Verdict(claim, "SKIP", 0.0, reason="left out by --quick")
    if seconds_left <= 0:
        return Verdict(claim, "SKIP", 0.0, reason="the time is over")
    try:
        figure = claim.measure(machine)
    except Skipped as skipped:
        return Verdict(claim, "SKIP", time.monotonic() - start, reason=str(skipped))
    except Exception as error:  # noqa: BLE001 - whatever it is, the next claims are measured too
        text = (str(error).splitlines() or [""])[0][:_MAX_REASON]
        return Verdict(claim, "FAIL", time.monotonic() - start, reason=f"{type(error).__name__}: {text}")
    finally:
        machine.free()
    seconds = time.monotonic() - start
    if claim.of_gpus and not machine.is_gpu:
        return Verdict(claim, "SKIP", seconds, figure, "the bound is for GPUs; measured on a reduced network")
    return Verdict(claim, "PASS" if figure.holds else "FAIL", seconds, figure)


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
