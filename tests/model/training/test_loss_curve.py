"""The loss curve labels its losses, and the same numbers give the same bytes."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
import warnings
from pathlib import Path

import pytest

from model.training import loss_curve
from model.training.baselines import Baselines
from model.training.loss_curve import draw
from model.training.metrics import COLUMNS

BASELINES = Baselines(8.31, 6.41, 4.88, 5.99, 4.5, tokens=1000, characters=1442)
LOSSES = ((8.4, ""), (5.2, 5.3), (4.5, 4.4), (4.6, 4.1))  # of validation and training, every 100 steps


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return write(tmp_path / "metrics.csv", LOSSES)


def write(path: Path, losses: tuple[tuple[object, object], ...], *, bits: bool = True, every: int = 1000) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        for index, (validation, training) in enumerate(losses):
            rows.writerow(
                {
                    "step": every * index,
                    "val_loss": validation,
                    "train_loss": training,
                    "bits_per_char": validation if bits else "",
                }
            )
    return path


def labels_in(folder: Path) -> set[str]:
    """Return the labels in the picture. The SVG has the text of each label in a comment beside its outlines."""
    return set(re.findall(r"<!-- (.+?) -->", (folder / "loss.svg").read_text(encoding="utf-8")))


def test_lines_and_best_step_are_labelled_with_their_losses(metrics: Path, tmp_path: Path) -> None:
    draw(metrics, tmp_path, "a run", BASELINES)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    expected = {"a run", "uniform, ln V 8.31", "unigram 6.41", "bigram 4.88", "zstd -19 5.99", "n-grams 4.50"}
    expected |= {"bits per character", "best: 4.500 nats per token, 4.502 bits per character, step 2,000"}
    assert expected <= labels_in(tmp_path)


@pytest.mark.parametrize("fonts", [(), loss_curve._CHINESE_FONTS])
def test_title_in_any_script_is_drawn_without_a_warning(
    metrics: Path, tmp_path: Path, fonts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_curve, "_CHINESE_FONTS", fonts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_curve.draw(metrics, tmp_path, "微信聊天记录 \U0001f642 नमस्ते (small)\nsecond line")


def test_same_metrics_give_the_same_bytes(metrics: Path, tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        draw(metrics, tmp_path / folder, "a run", BASELINES)
    for name in ("loss.png", "loss.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert b"<dc:date>" not in (tmp_path / "one" / "loss.svg").read_bytes()


def test_labels_are_to_the_right_of_the_curve_and_clear_of_each_other(tmp_path: Path) -> None:
    """The losses of four baselines, and that of the last step, differ by less than the height of a label."""
    metrics = write(tmp_path / "metrics.csv", ((8.3, ""), (5.2, 5.3), (4.90, 4.9)))
    draw(metrics, tmp_path, "a run", Baselines(8.31, 4.95, 4.88, 4.8, 4.78, tokens=1000, characters=1442))
    picture = (tmp_path / "loss.svg").read_text(encoding="utf-8")
    label = r"<!-- (?:uniform|unigram|bigram|zstd|n-grams).* -->\s*<g [^>]*translate\(([\d.]+) ([\d.]+)\)"
    labels = [(float(x), float(y)) for x, y in re.findall(label, picture)]
    markers = [float(x) for x in re.findall(r'<use [^>]* x="([\d.]+)" y="[\d.]+" style="fill: #1d2530', picture)]
    assert len(labels) == 5
    assert min(x for x, _ in labels) > max(markers) + 4  # its radius in points
    heights = sorted(y for _, y in labels)
    assert min(lower - upper for upper, lower in itertools.pairwise(heights)) > 8  # font size in points


def test_steps_on_the_axis_are_whole(tmp_path: Path) -> None:
    draw(write(tmp_path / "metrics.csv", ((8.3, ""), (5.2, 5.3)), every=17), tmp_path, "a run", BASELINES)
    ticks = [int(label) for label in re.findall(r"<!-- (\d+) -->", (tmp_path / "loss.svg").read_text(encoding="utf-8"))]
    steps = ticks[: ticks.index(max(ticks)) + 1]
    assert len({after - before for before, after in itertools.pairwise(steps)}) == 1, steps


def test_no_baseline_lines_and_no_bits_axis_without_data(tmp_path: Path) -> None:
    draw(write(tmp_path / "metrics.csv", LOSSES, bits=False), tmp_path, "a run")
    labels = labels_in(tmp_path)
    assert "best: 4.500 nats per token, step 2,000" in labels
    assert not [label for label in labels if "bits" in label or "gram" in label]


def test_zstd_worse_than_uniform_is_left_out(metrics: Path, tmp_path: Path) -> None:
    draw(metrics, tmp_path, "a run", dataclasses.replace(BASELINES, zstd=8.32))
    assert "unigram 6.41" in labels_in(tmp_path)
    assert not [label for label in labels_in(tmp_path) if "zstd" in label]


def test_first_evaluation_is_marked_best_only_if_it_is_the_only_one(tmp_path: Path) -> None:
    draw(write(tmp_path / "metrics.csv", ((1.0, ""), (2.0, 2.0))), tmp_path, "worse", BASELINES)
    assert [label for label in labels_in(tmp_path) if label.startswith("best: 2.000")]
    draw(write(tmp_path / "metrics.csv", ((1.0, ""),)), tmp_path, "only", BASELINES)
    assert [label for label in labels_in(tmp_path) if label.startswith("best: 1.000")]


def test_metrics_without_rows_are_drawn(tmp_path: Path) -> None:
    draw(write(tmp_path / "metrics.csv", ()), tmp_path, "nothing yet", None)
    assert "nothing yet" in labels_in(tmp_path)
