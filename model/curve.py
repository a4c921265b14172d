"""The loss curve: `metrics.csv` drawn as a PNG."""

from __future__ import annotations

import csv
from pathlib import Path

COLUMNS = ("step", "tokens", "seconds", "learning_rate", "train_loss", "val_loss", "bits_per_char", "bits_per_byte")


def draw(metrics: Path, target: Path, title: str, uniform_loss: float) -> None:
    """Training and validation loss over steps; `uniform_loss` is what guessing all ids alike would cost, in nats."""
    from matplotlib.figure import Figure

    with open(metrics, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for column, label, style in (("train_loss", "training", "-"), ("val_loss", "validation", "o-")):
        points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.axhline(uniform_loss, linestyle=":", color="grey", label="all tokens alike (ln V)")
    axes.set(xlabel="step", ylabel="loss, nats per token", title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    last = next((row for row in reversed(rows) if row["bits_per_char"]), None)
    if last:
        axes.annotate(
            f"{float(last['bits_per_char']):.3f} bits per character",
            (int(last["step"]), float(last["val_loss"])),
            xytext=(-8, 10),
            textcoords="offset points",
            ha="right",
        )
    figure.savefig(target, dpi=110)
