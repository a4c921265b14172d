"""The loss curve: `metrics.csv` drawn as loss.png and loss.svg, between lines that say what its losses mean."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.training.baselines import References

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _WASH, _SEAL, _GREY = "#1d2530", "#8fa3b8", "#b3312c", "#666666"
_APART = 0.045  # of the height: names of lines nearer than that stand side by side
_ASIDE = 0.14  # of the width: as long as the longest name but the first
_ABOVE = 1.15  # times ln V: a loss beyond that, before the first step, would press all others together

Points = list[tuple[int, float]]
Units = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def draw(metrics: Path, folder: Path, title: str, references: References | None = None) -> None:
    """Training and validation loss over steps, as `folder`/loss.png and loss.svg; the same metrics, the same bytes.

    A second axis is in bits per character where the metrics have them, the best evaluation after the first is marked,
    and `references` are lines across.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    with open(metrics, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    training, validation = _points(rows, "train_loss"), _points(rows, "val_loss")
    lines = _lines(references) if references else []

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*_columns(training), color=_WASH, linewidth=1.2, label="training", zorder=2)
    axes.plot(*_columns(validation), "o-", color=_INK, linewidth=1.6, markersize=4, label="validation", zorder=3)
    _limit(axes, [loss for _, loss in (*training, *validation, *lines)], references)
    _name_lines(axes, lines)
    units = _units(rows, references)
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
    with matplotlib.rc_context({"svg.hashsalt": "inkstone"}):  # without it, names in the file are random
        figure.savefig(folder / "loss.svg", metadata={"Date": None})


def _points(rows: list[dict[str, str]], column: str) -> Points:
    return [(int(row["step"]), float(row[column])) for row in rows if row[column]]


def _columns(points: Points) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [loss for _, loss in points]


def _units(rows: list[dict[str, str]], references: References | None) -> Units | None:
    """From nats per token to bits per character and back: by the references, or else by the evaluation with the
    greatest loss, where rounding matters least."""
    if references:
        return np.vectorize(references.bits_per_char), np.vectorize(references.loss)
    evaluated = [(float(row["val_loss"]), float(row["bits_per_char"])) for row in rows if row["bits_per_char"]]
    loss, bits = max(evaluated, default=(0.0, 0.0))
    if not (loss and bits):
        return None
    return lambda nats: np.multiply(nats, bits / loss), lambda made: np.multiply(made, loss / bits)


def _lines(references: References) -> list[tuple[str, float]]:
    """Names and losses of the references, the highest first. On a short text zstd does worse than chance, and then
    says nothing."""
    named = [
        ("all tokens alike, ln V", references.uniform),
        ("unigram", references.unigram),
        ("bigram", references.bigram),
        ("zstd -19", references.zstd),
    ]
    return sorted((line for line in named if line[1] <= references.uniform), key=lambda line: -line[1])


def _limit(axes: Axes, losses: list[float], references: References | None) -> None:
    """Room for all that is drawn, and a little more."""
    if losses:
        high = min(max(losses), _ABOVE * references.uniform if references else math.inf)
        room = 0.06 * (high - min(losses)) or 1.0
        axes.set_ylim(min(losses) - 1.5 * room, high + room)


def _name_lines(axes: Axes, lines: list[tuple[str, float]]) -> None:
    """Dotted lines with their names at the right, those close to the one above further to the left."""
    low, high = axes.get_ylim()
    last, aside = math.inf, 0.0
    for name, loss in lines:
        aside = (aside or _ASIDE) + _ASIDE if last - loss < _APART * (high - low) else 0.0
        last = loss
        axes.axhline(loss, linestyle=(0, (1, 2.5)), color=_GREY, linewidth=1, zorder=1)
        axes.annotate(
            f"{name} {loss:.2f}",
            (0.99 - aside, loss),
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
        name = f"best: {loss:.3f} nats per token{bits}, step {step:,}"
        axes.plot(
            [step], [loss], "o", markersize=9, markerfacecolor="none", markeredgecolor=_SEAL, label=name, zorder=4
        )
