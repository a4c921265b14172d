"""A training whose validation loss rises ends from its best checkpoint. A kill at any moment changes no bit of that."""

from __future__ import annotations

import dataclasses
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import cli
from model import config
from model.config import TrainConfig
from model.runs import checkpoint, run
from model.training.checkpointer import Checkpointer
from model.training.evaluator import Rise, find_rise
from model.training.learner import Learner
from model.training.metrics import Metrics
from pipeline.store import files
from pipeline.store.artifact import Artifact
from tests.support.faults import assert_one_error
from tests.support.training import (
    DRAW,
    KILL,
    NAME,
    SAVE_EVERY_STEP,
    STEP,
    assert_resumes_to,
    before_call,
    current_run,
    draw_placeholder,
    metric_rows,
    no_loss_curve,
    preloaded,
    send,
    train,
)

__all__ = ["no_loss_curve", "preloaded"]  # fixtures

# A random text is learned by heart in some steps, and another random text gets less and less likely.
SETTINGS: dict[str, Any] = {
    **{"vocab_size": 0, "width": 64, "order": "epoch"},
    **{"steps": 300, "evaluations": 10, "learning_rate": 1e-3},
}
OPTIONS = ("--tokens", "random", "--device", "cpu")
PATIENCE: dict[str, Any] = {"patience": 2}
CHECKPOINTER = "model.training.checkpointer.Checkpointer"


def tokenize_random_texts(root: Path) -> None:
    """Make tokens of characters with a training text and a validation text that have only the letters in common."""
    rng = random.Random(1)
    for name, length in (("train", 200), ("val", 200)):
        (root.parent / f"{name}.txt").write_text("".join(rng.choices("abcdefgh", k=length)), encoding="utf-8")
    train_text, val_text = (str(root.parent / f"{name}.txt") for name in ("train", "val"))
    base = ("--artifacts", str(root), "-q")
    assert cli.main([*base, "train-tokenizer", train_text, "--kind", "char", "--name", "letters"]) == 0
    words = ("tokenize", train_text, "--val", val_text, "--tokenizer", "letters", "--name", "random")
    assert cli.main([*base, *words]) == 0


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory, preloaded: None) -> Path:
    root = tmp_path_factory.mktemp("random") / "artifacts"
    tokenize_random_texts(root)
    return root


@pytest.fixture
def root(tokenized: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tokenized, tmp_path / "artifacts", symlinks=True))


@pytest.fixture(scope="module")
def expected(tokenized: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The undisturbed run with `--patience 2`."""
    root = Path(shutil.copytree(tokenized, tmp_path_factory.mktemp("quiet") / "artifacts", symlinks=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRAW, draw_placeholder)
        result = train(root, *OPTIONS, **SETTINGS, **PATIENCE)
    assert result.code == 0, result.err
    (root / "err").write_text(result.err, encoding="utf-8")
    return current_run(root)


def steps_of_rise(trained: Artifact) -> tuple[int, int]:
    """Return the step of the best evaluation, and that at which the rise was noticed."""
    best, last = re.findall(r"at step (\d+)", run.read_result(trained.path).ended_early)
    return int(best), int(last)


def test_run_ends_from_its_best_checkpoint_and_says_so(expected: Artifact) -> None:
    result, (best_step, last_step) = run.read_result(expected.path), steps_of_rise(expected)
    assert last_step >= best_step + 60, "two evaluations later"
    assert result.steps == best_step + math.ceil(best_step / 10), "a tenth of the steps more"
    rows = [row for row in metric_rows(expected) if row["val_loss"]]
    assert [int(row["step"]) for row in rows] == [*range(0, best_step + 1, 30), result.steps]
    assert result.best_val_loss == min(float(row["val_loss"]) for row in rows[1:])
    assert result.val_loss == float(rows[-1]["val_loss"])
    err = (expected.path.parents[2] / "err").read_text(encoding="utf-8")
    assert f"{result.ended_early}: the learning rates fall to zero" in err


def best_only(checkpointer: Checkpointer, *, best_only: bool = False) -> Any:
    if best_only:
        KILL()
    return LOAD_NEWEST(checkpointer)


def delete_one(checkpointer: Checkpointer, step: int) -> None:
    files.remove_tree(checkpoint.newest_first(checkpointer.folder)[0])
    KILL()


LOAD_NEWEST = Checkpointer.load_newest
KILLS: dict[str, Callable[[int], dict[str, object]]] = {
    "before it returns to the best checkpoint": lambda step: {f"{CHECKPOINTER}.load_newest": best_only},
    "before later checkpoints are deleted": lambda step: {
        f"{CHECKPOINTER}.delete_later": before_call(1, Checkpointer.delete_later, KILL)
    },
    "between two deleted checkpoints": lambda step: {f"{CHECKPOINTER}.delete_later": delete_one},
    "before later rows are dropped": lambda step: {
        "model.training.metrics.Metrics.back_to": before_call(1, Metrics.back_to, KILL)
    },
    "in the second step after it": lambda step: {
        **SAVE_EVERY_STEP,
        STEP: before_call(step + 2, Learner.step, KILL),
    },
}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_early_end_resumes_to_the_same_bytes(root: Path, expected: Artifact, moment: str) -> None:
    constants = KILLS[moment](steps_of_rise(expected)[1])
    killed = train(root, *OPTIONS, constants=constants, **SETTINGS, **PATIENCE)
    assert killed.code == -9, killed.err
    assert_resumes_to(root, expected, *OPTIONS, **SETTINGS, **PATIENCE)
    assert run.read_result(current_run(root).path).ended_early == run.read_result(expected.path).ended_early


def test_signal_while_the_rates_fall_saves_and_the_same_command_resumes(root: Path, expected: Artifact) -> None:
    constants = {STEP: before_call(steps_of_rise(expected)[1] + 1, Learner.step, send(15))}
    stopped = train(root, *OPTIONS, constants=constants, **SETTINGS, **PATIENCE)
    assert_one_error(stopped, 75, [f"step {steps_of_rise(expected)[0] + 1}", "everything is saved"])
    assert_resumes_to(root, expected, *OPTIONS, **SETTINGS, **PATIENCE)


def test_training_by_steps_only_warns_once(root: Path) -> None:
    warned = train(root, *OPTIONS, **SETTINGS)
    assert warned.code == 0, warned.err
    result = run.read_result(current_run(root).path)
    assert (result.steps, result.ended_early) == (SETTINGS["steps"], "")
    assert warned.err.count("warning: validation rose by") == 1
    assert (result.bits_per_char or 0) > (result.best_bits_per_char or 0)


def test_training_by_the_clock_ends_early_without_being_asked(root: Path) -> None:
    trained = train(root, *OPTIONS, "--minutes", 5, **{**SETTINGS, "evaluations": 1000, "schedule": "wsd"})
    assert trained.code == 0, trained.err
    result = run.read_result(current_run(root).path)
    assert result.ended_early
    assert result.seconds < 60


@pytest.mark.parametrize(
    ("losses", "patience", "rise"),
    [
        ((9.0, 2.0, 2.1, 2.2), 2, Rise(10, 2.0, 30, 2.2)),
        ((9.0, 2.0, 2.1, 2.2), 3, None),
        ((9.0, 2.0, 2.1), 1, Rise(10, 2.0, 20, 2.1)),
        ((9.0, 2.0, 2.1, 2.03), 2, None),  # 1.5 %
        ((9.0, 2.0, 2.5, 2.0, 2.1), 2, None),  # the later one of equals is the best
        ((1.0, 2.0, 2.1), 2, None),  # before the first step there is no checkpoint
        ((1.0,), 1, None),
        ((), 1, None),
    ],
)
def test_rise_is_two_percent_above_a_best_evaluation_of_some_time_ago(
    losses: tuple[float, ...], patience: int, rise: Rise | None
) -> None:
    assert find_rise([(10 * index, loss) for index, loss in enumerate(losses)], patience) == rise


def test_patience_at_its_default_is_in_no_key_and_equals_that_of_older_runs() -> None:
    newer = ("deterministic", "patience", "lora_rank", "replay", "beta", "epochs", "document_starts")
    older = {name: value for name, value in dataclasses.asdict(TrainConfig()).items() if name not in newer}
    assert config.identity(TrainConfig()) == older
    assert config.differences(msgspec.convert(older, TrainConfig), TrainConfig()) == []
    assert config.identity(TrainConfig(patience=3))["patience"] == 3


def test_older_run_without_the_new_fields_is_unchanged_and_its_draft_resumes(root: Path, tmp_path: Path) -> None:
    """As versions before `patience` wrote them: no such field in config.json, in state.json or in the manifest."""
    settings = {**SETTINGS, "steps": 20, "evaluations": 2}
    stopped = train(root, *OPTIONS, constants={STEP: before_call(15, Learner.step, send(15))}, **settings)
    assert stopped.code == 75
    (draft,) = (root / "runs" / NAME).glob(".draft-*")
    for path in (draft / "config.json", *draft.glob("checkpoints/*/state.json")):
        fields = msgspec.json.decode(path.read_bytes())
        fields["train"].pop("patience")
        for name in ("cooldown", "ended_early", "seal"):
            fields.pop(name, None)
        if path.name == "state.json":
            fields["seal"] = checkpoint._seal(fields)
        path.write_bytes(msgspec.json.encode(fields))
    resumed = train(root, *OPTIONS, **settings)
    assert resumed.code == 0, resumed.err
    assert "resuming from step 15 " in resumed.err
    assert "patience" not in current_run(root).manifest.options["train"]
    assert train(root, *OPTIONS, **settings).out.startswith("unchanged")
