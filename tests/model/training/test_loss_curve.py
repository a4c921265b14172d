"""The picture of a training says what its losses mean, and is the same for the same numbers."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path

import pytest

from model.training.baselines import References
from model.training.loss_curve import draw
from model.training.metrics import COLUMNS

MEANING = References(8.31, 6.41, 4.88, 5.99, tokens=1000, characters=1442)
LOSSES = ((8.4, ""), (5.2, 5.3), (4.5, 4.4), (4.6, 4.1))  # of validation and training, every 100 steps


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return write(tmp_path / "metrics.csv", LOSSES)


def write(path: Path, losses: tuple[tuple[object, object], ...], *, bits: bool = True) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as handle:
        rows = csv.DictWriter(handle, COLUMNS)
        rows.writeheader()
        for number, (validation, training) in enumerate(losses):
            rows.writerow(
                {
                    "step": 1000 * number,
                    "val_loss": validation,
                    "train_loss": training,
                    "bits_per_char": validation if bits else "",
                }
            )
    return path


def words(folder: Path) -> set[str]:
    """What is written in the picture: next to the outlines of its letters the SVG says which they are."""
    return set(re.findall(r"<!-- (.+?) -->", (folder / "loss.svg").read_text(encoding="utf-8")))


def test_the_lines_are_named_with_their_losses_and_the_best_step_with_its_own(metrics: Path, tmp_path: Path) -> None:
    draw(metrics, tmp_path, "a run", MEANING)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    expected = {"a run", "all tokens alike, ln V 8.31", "unigram 6.41", "bigram 4.88", "zstd -19 5.99"}
    expected |= {"bits per character", "best: 4.500 nats per token, 4.502 bits per character, step 2,000"}
    assert expected <= words(tmp_path)


def test_the_same_metrics_give_the_same_bytes(metrics: Path, tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        draw(metrics, tmp_path / folder, "a run", MEANING)
    for name in ("loss.png", "loss.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert b"<dc:date>" not in (tmp_path / "one" / "loss.svg").read_bytes()


def test_without_references_there_are_none_and_without_bits_no_axis_for_them(tmp_path: Path) -> None:
    draw(write(tmp_path / "metrics.csv", LOSSES, bits=False), tmp_path, "a run")
    found = words(tmp_path)
    assert "best: 4.500 nats per token, step 2,000" in found
    assert not [each for each in found if "bits" in each or "gram" in each]


def test_zstd_says_nothing_where_it_does_worse_than_chance(metrics: Path, tmp_path: Path) -> None:
    draw(metrics, tmp_path, "a run", dataclasses.replace(MEANING, zstd=8.32))
    assert "unigram 6.41" in words(tmp_path)
    assert not [each for each in words(tmp_path) if "zstd" in each]


def test_the_evaluation_before_the_first_step_is_no_best_unless_it_is_the_only_one(tmp_path: Path) -> None:
    draw(write(tmp_path / "metrics.csv", ((1.0, ""), (2.0, 2.0))), tmp_path, "worse", MEANING)
    assert [each for each in words(tmp_path) if each.startswith("best: 2.000")]
    draw(write(tmp_path / "metrics.csv", ((1.0, ""),)), tmp_path, "only", MEANING)
    assert [each for each in words(tmp_path) if each.startswith("best: 1.000")]


def test_metrics_without_a_row_are_drawn_all_the_same(tmp_path: Path) -> None:
    draw(write(tmp_path / "metrics.csv", ()), tmp_path, "nothing yet", None)
    assert "nothing yet" in words(tmp_path)
