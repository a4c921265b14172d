"""The loss curve: `metrics.csv` drawn as loss.png and loss.svg, with lines at the losses of the baselines."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.training.baselines import Baselines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _WASH, _SEAL, _GREY = "#1d2530", "#8fa3b8", "#b3312c", "#666666"
_MIN_DISTANCE = 0.045  # of the height: the labels of closer lines are put side by side
_LABEL_WIDTH = 0.14  # of the width: that of the longest label but the first
_MAX_LOSS = 1.15  # times ln V: a higher loss, before the first step, would squeeze the rest of the curve

Points = list[tuple[int, float]]
Units = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def draw(metrics: Path, folder: Path, title: str, baselines: Baselines | None = None) -> None:
    """Draw training and validation loss over steps as loss.png and loss.svg in `folder`.

    The same metrics give the same bytes. A second axis shows bits per character if the metrics have them, the best
    evaluation after the first is marked, and `baselines` are horizontal lines.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    with open(metrics, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    training, validation = _points(rows, "train_loss"), _points(rows, "val_loss")
    lines = _baseline_lines(baselines) if baselines else []

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*_columns(training), color=_WASH, linewidth=1.2, label="training", zorder=2)
    if validation:
        axes.plot(*_columns(validation), "o-", color=_INK, linewidth=1.6, markersize=4, label="validation", zorder=3)
    _set_limits(axes, [loss for _, loss in (*training, *validation, *lines)], baselines)
    _draw_lines(axes, lines)
    units = _units(rows, baselines)
    _mark_best(axes, validation[1:] or validation, units)
    if units:
        axes.secondary_yaxis("right", functions=units).set_ylabel("bits per character")
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", alpha=0.15)
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.set_title(title, loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)

    figure.savefig(folder / "loss.png", dpi=130)
    with matplotlib.rc_context({"svg.hashsalt": "inkstone"}):  # without it, ids in the file are random
        figure.savefig(folder / "loss.svg", metadata={"Date": None})


def _points(rows: list[dict[str, str]], column: str) -> Points:
    return [(int(row["step"]), float(row[column])) for row in rows if row[column]]


def _columns(points: Points) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [loss for _, loss in points]


def _units(rows: list[dict[str, str]], baselines: Baselines | None) -> Units | None:
    """Return the conversions from nats per token to bits per character and back.

    Without baselines they come from the evaluation with the greatest loss, where rounding matters least.
    """
    if baselines:
        return np.vectorize(baselines.bits_per_char), np.vectorize(baselines.loss)
    evaluations = [(float(row["val_loss"]), float(row["bits_per_char"])) for row in rows if row["bits_per_char"]]
    nats, bits = max(evaluations, default=(0.0, 0.0))
    if not (nats and bits):
        return None
    return lambda values: np.multiply(values, bits / nats), lambda values: np.multiply(values, nats / bits)


def _baseline_lines(baselines: Baselines) -> list[tuple[str, float]]:
    """Return labels and losses, the highest first. On a short text zstd is worse than uniform and is left out."""
    lines = [
        ("uniform, ln V", baselines.uniform),
        ("unigram", baselines.unigram),
        ("bigram", baselines.bigram),
        ("zstd -19", baselines.zstd),
    ]
    return sorted((line for line in lines if line[1] <= baselines.uniform), key=lambda line: -line[1])


def _set_limits(axes: Axes, losses: list[float], baselines: Baselines | None) -> None:
    """Fit the vertical axis to all losses, with a margin."""
    if losses:
        high = min(max(losses), _MAX_LOSS * baselines.uniform if baselines else math.inf)
        margin = 0.06 * (high - min(losses)) or 1.0
        axes.set_ylim(min(losses) - 1.5 * margin, high + margin)


def _draw_lines(axes: Axes, lines: list[tuple[str, float]]) -> None:
    """Draw dotted lines with labels at the right; labels close to the one above are moved to the left of it."""
    low, high = axes.get_ylim()
    previous, shift = math.inf, 0.0
    for label, loss in lines:
        shift = (shift or _LABEL_WIDTH) + _LABEL_WIDTH if previous - loss < _MIN_DISTANCE * (high - low) else 0.0
        previous = loss
        axes.axhline(loss, linestyle=(0, (1, 2.5)), color=_GREY, linewidth=1, zorder=1)
        axes.annotate(
            f"{label} {loss:.2f}",
            (0.99 - shift, loss),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
            color=_GREY,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            zorder=5,
        )


def _mark_best(axes: Axes, validation: Points, units: Units | None) -> None:
    if validation:
        step, loss = min(validation, key=lambda point: point[1])
        bits = f", {float(units[0](loss)):.3f} bits per character" if units else ""
        label = f"best: {loss:.3f} nats per token{bits}, step {step:,}"
        axes.plot(
            [step], [loss], "o", markersize=9, markerfacecolor="none", markeredgecolor=_SEAL, label=label, zorder=4
        )
