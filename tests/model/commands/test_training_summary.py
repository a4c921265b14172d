"""The verdict at the end of a training."""

from __future__ import annotations

import pytest

from model.commands.training_summary import longer_may_help, minutes, verdict
from model.runs.run import Result

SCORES = {"uniform": 5.0, "unigram": 4.0, "bigram": 2.06, "zstd": 3.0}


def result(best: float | None, last: float | None = None, **fields: object) -> Result:
    values = {"best_bits_per_char": best, "bits_per_char": last or best, "baselines": SCORES, **fields}
    return Result(10, 100, 1000, "last", "best", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("best", "last", "text"),
    [
        (2.09, 2.09, "2.09 bits per character, about as good as counting pairs (2.06): train longer"),
        (1.5, 1.5, "1.50 bits per character, better than counting pairs (2.06)"),
        (
            3.5,
            3.5,
            "3.50 bits per character, better than letter frequency (4.00), not as good as counting pairs (2.06): "
            "train longer",
        ),
        (
            5.3,
            5.3,
            "5.30 bits per character, worse than random guesses (5.00), not as good as counting pairs (2.06): "
            "train longer",
        ),
        (
            1.5,
            1.6,
            "1.50 bits per character, better than counting pairs (2.06); it was best before the end, so more text "
            "helps, and longer training does not",
        ),
        (None, None, ""),
    ],
)
def test_verdict(best: float | None, last: float | None, text: str) -> None:
    assert verdict(result(best, last)) == text


def test_verdict_of_an_early_end_advises_more_text_and_not_more_time() -> None:
    ended = result(1.5, 1.5, ended_early="validation rose by 2.1 %, …")
    assert verdict(ended).endswith("its validation loss rose, so more text helps, and longer training does not")


def test_text_that_was_seen_often_enough_needs_more_text_and_not_more_time() -> None:
    assert verdict(result(3.5, epochs=8.0)).endswith("(2.06): more text helps")
    assert [longer_may_help(result(3.5, epochs=epochs)) for epochs in (7.9, 8.0)] == [True, False]


def test_validation_text_of_a_few_characters_has_no_verdict() -> None:
    assert verdict(result(4.99, val_characters=10)) == (
        "none: 10 characters of validation text are too few to compare by; hold out more (`tokenize --val-fraction "
        "0.1`, in a recipe `val_fraction` in [tokenize])"
    )
    assert verdict(result(4.99, val_characters=300)).startswith("4.99 bits per character, about as good as random")


def test_run_of_an_older_version_has_no_verdict() -> None:
    assert verdict(result(2.0, baselines={})) == ""


def test_length_is_in_whole_minutes() -> None:
    assert [minutes(result(2.0, seconds=seconds)) for seconds in (0.0, 59.0, 61.0, 600.0)] == [1, 1, 2, 10]
