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
_LABEL_HEIGHT, _LABEL_WIDTH = 0.04, 0.17  # of the height, and of the width: that of the longest label
# Of Linux, macOS and Windows; matplotlib's own font has no Chinese characters.
_CHINESE_FONTS: tuple[str, ...] = (
    *("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans GB"),
    *("Heiti SC", "Microsoft YaHei", "SimHei", "Noto Serif CJK SC", "Arial Unicode MS"),
)
_MAX_LOSS = 1.15  # times ln V: a higher loss, before the first step, would squeeze the rest of the curve

Points = list[tuple[int, float]]
Units = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def draw(metrics: Path, folder: Path, title: str, baselines: Baselines | None = None, unit: str = "token") -> None:
    """Draw training and validation loss over steps as loss.png and loss.svg in `folder`.

    The same metrics give the same bytes. A second axis shows bits per character if the metrics have them, the best
    evaluation after the first is marked, and `baselines` are horizontal lines. Losses are in nats per `unit`.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    with open(metrics, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    training, validation = _points(rows, "train_loss"), _points(rows, "val_loss")
    lines = _baseline_lines(baselines) if baselines else []

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*_columns(training), color=_WASH, linewidth=1.2, label="training", zorder=2)
    if validation:
        label = f"validation, last {validation[-1][1]:.3f}"
        axes.plot(*_columns(validation), "o-", color=_INK, linewidth=1.6, markersize=4, label=label, zorder=3)
    _set_limits(axes, [loss for _, loss in (*training, *validation, *lines)], baselines)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=(1, 2, 5, 10), integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _draw_lines(axes, lines, max((step for step, _ in (*training, *validation)), default=0))
    units = _units(rows, baselines)
    _mark_best(axes, validation[1:] or validation, units, unit)
    if units:
        axes.secondary_yaxis("right", functions=units).set_ylabel("bits per character")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.15)
    axes.set(xlabel="step", ylabel=f"loss, nats per {unit}")
    axes.set_title(_drawable(title), loc="left", fontsize=11, fontfamily=_font_families())
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)

    figure.savefig(folder / "loss.png", dpi=130)
    with matplotlib.rc_context({"svg.hashsalt": "inkstone"}):  # without it, ids in the file are random
        figure.savefig(folder / "loss.svg", metadata={"Date": None})


def _font_families() -> list[str]:
    """Return matplotlib's own font, and those that this machine has for the Chinese characters that it lacks."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _CHINESE_FONTS if name in installed)]


def _drawable(title: str) -> str:
    """Replace what no font of `_font_families` draws by "?", instead of a warning for each character."""
    from matplotlib import font_manager

    paths = [font_manager.findfont(family) for family in _font_families()]
    known = [font_manager.get_font(path).get_charmap() for path in paths]
    return "".join(char if char == "\n" or any(ord(char) in chars for chars in known) else "?" for char in title)


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
        ("n-grams", baselines.ngram),
    ]
    return sorted((line for line in lines if line[1] <= baselines.uniform), key=lambda line: -line[1])


def _set_limits(axes: Axes, losses: list[float], baselines: Baselines | None) -> None:
    """Fit the vertical axis to all losses, with a margin."""
    if losses:
        high = min(max(losses), _MAX_LOSS * baselines.uniform if baselines else math.inf)
        margin = 0.06 * (high - min(losses)) or 1.0
        axes.set_ylim(min(losses) - 1.5 * margin, high + margin)


def _draw_lines(axes: Axes, lines: list[tuple[str, float]], last_step: int) -> None:
    """Draw dotted lines, with their labels in a margin to the right of the last step, where they cover no curve."""
    if lines and last_step:
        left, _ = axes.get_xlim()
        ticks = axes.get_xticks()
        axes.set_xlim(left, last_step + (last_step - left) * _LABEL_WIDTH / (1 - _LABEL_WIDTH))
        axes.set_xticks([tick for tick in ticks if left <= tick <= last_step])
    heights = _label_heights([loss for _, loss in lines], *axes.get_ylim())
    for (label, loss), height in zip(lines, heights, strict=True):
        axes.axhline(loss, linestyle=(0, (1, 2.5)), color=_GREY, linewidth=1, zorder=1)
        axes.annotate(
            f"{label} {loss:.2f}",
            (1.0, height),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-3, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
            color=_GREY,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            zorder=5,
        )


def _label_heights(losses: list[float], low: float, high: float) -> list[float]:
    """Return the heights of the labels of losses, the highest first: above their lines, but clear of each other."""
    distance, heights = _LABEL_HEIGHT * (high - low), list[float]()
    for loss in losses:
        heights.append(min(loss, heights[-1] - distance) if heights else loss)
    below = range(len(losses) - 1, -1, -1)  # number of labels below each
    return [max(height, low + count * distance) for height, count in zip(heights, below, strict=True)]


def _mark_best(axes: Axes, validation: Points, units: Units | None, unit: str) -> None:
    if validation:
        step, loss = min(validation, key=lambda point: point[1])
        bits = f", {float(units[0](loss)):.3f} bits per character" if units else ""
        label = f"best: {loss:.3f} nats per {unit}{bits}, step {step:,}"
        axes.plot(
            [step], [loss], "o", markersize=9, markerfacecolor="none", markeredgecolor=_SEAL, label=label, zorder=4
        )
