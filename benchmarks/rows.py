"""One comparison: the same work done by Inkstone and by a peer, alternately on one machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Our figure and a peer's for the same work, both in `unit`."""

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


def median_rates(ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Run two functions alternately, after one warm-up, and return the medians of the rates that they return."""
    ours(), peer()
    pairs = [(ours(), peer()) for _ in range(rounds)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)
