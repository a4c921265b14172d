"""What a comparison says: one kind of work, done our way and another's, in turn on one machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Two rates of the same work, in `unit`; `peer_name` says whose the second is."""

    work: str
    ours: float
    peer: float
    peer_name: str
    unit: str

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    def line(self) -> str:
        return (
            f"{self.work:<44} {self.ours:>10,.1f} {self.unit:<9} "
            f"{self.ratio:>6.2f} x {self.peer_name} ({self.peer:,.1f})"
        )


def in_turn(ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Median rates of two functions that each return a rate, run alternately after one warm-up."""
    ours(), peer()
    pairs = [(ours(), peer()) for _ in range(rounds)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)
