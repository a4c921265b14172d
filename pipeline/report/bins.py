"""Bins of a histogram over whole numbers, such as lengths: of equal width, or logarithmic if there is a long tail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.report import charts
from pipeline.report.languages import Language
from pipeline.report.section import Figure, Table

_BINS = 40
_LONG_TAIL = 30  # times the median: a larger maximum gets a logarithmic axis


@dataclass(frozen=True)
class Bins:
    """A histogram: bin i counts the numbers in `[edges[i], edges[i + 1])`. `total` and the percentiles are exact."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    is_log: bool
    total: int
    percentiles: dict[str, int]

    @property
    def ranges(self) -> list[tuple[str, int]]:
        """The bins that are not empty, as "10–19", with their counts."""
        pairs = zip(self.edges, self.edges[1:], self.counts, strict=False)
        return [
            (f"{low:,}–{high - 1:,}" if high - low > 1 else f"{low:,}", count) for low, high, count in pairs if count
        ]


def histogram(bins: Bins, caption: str, say: Language) -> Figure:
    """Return a histogram with the table of its numbers."""
    table = Table((say("length", "长度"), say("number", "数量")), bins.ranges)
    return Figure(charts.histogram(bins.edges, bins.counts, caption, is_log=bins.is_log), caption, table)


def bins_of(frequencies: Mapping[int, int]) -> Bins | None:
    """Return the bins of numbers, 0 or more, given by their frequencies; None if there are none."""
    if not frequencies:
        return None
    numbers = np.array(sorted(frequencies), np.int64)
    counts = np.array([frequencies[number] for number in numbers.tolist()], np.int64)
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1])
    shares = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
    percentiles = {
        name: int(numbers[min(int(np.searchsorted(cumulative, share * total)), len(numbers) - 1)])
        for name, share in shares.items()
    }
    low, high = percentiles["min"], percentiles["max"]
    is_log = high > _LONG_TAIL * max(percentiles["median"], 1)
    edges = _edges(low, high, is_log=is_log)
    heights, _ = np.histogram(numbers, bins=np.array(edges, np.float64) - 0.5, weights=counts)
    return Bins(tuple(edges), tuple(int(height) for height in heights), is_log, total, percentiles)


def _edges(low: int, high: int, *, is_log: bool) -> list[int]:
    """Return the edges of about `_BINS` bins from low to high, as integers. Widths do not decrease."""
    edges = [low]
    ratio = (((high + 1) / max(low, 1)) ** (1 / _BINS) - 1) if is_log else 0.0
    width = 1 if is_log else -(-(high + 1 - low) // _BINS)
    while edges[-1] <= high:
        width = max(width, round(edges[-1] * ratio))
        edges.append(edges[-1] + width)
    return edges
