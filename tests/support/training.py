"""Helpers of the training tests: a small training as a command in a fork, and comparisons of the resulting runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from model.runs import checkpoint, plan, run
from model.runs.plan import TrainPlan
from model.training import metrics, stage
from pipeline.store import artifact, locks
from pipeline.store.artifact import Artifact
from pipeline.store.generations import draft_path
from pipeline.tokens import counting
from tests.support.faults import Command, Run, leftovers

NAME = "small"
SETTINGS: dict[str, object] = {"steps": 20, "evaluations": 2, "dropout": 0.1, "precision": "fp32"}
STEP = "model.training.learner.Learner.step"
DRAW = "model.training.loss_curve.draw"
SAVE_EVERY_STEP = {"model.training.checkpointer._SECONDS": -1.0}


@pytest.fixture(autouse=True, scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    preload(tmp_path_factory.mktemp("preload"))


def preload(folder: Path) -> None:
    """Load all that a training imports before the forks, with one thread: OpenMP threads do not survive a fork."""
    torch.set_num_threads(1)
    if "torch._dynamo" not in sys.modules:
        tokens = counting.build(folder).artifact
        one_step = plan.make_plan(tokens, "mini", name=NAME, settings=SETTINGS | {"steps": 1})
        stage.train(tokens.path.parents[2], one_step, device="cpu", resume=True, report=lambda line: None)


def draw_placeholder(metrics: Path, folder: Path, *_: object) -> None:
    (folder / "loss.png").write_bytes(b"a picture")


@pytest.fixture(autouse=True)
def no_loss_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing, which takes longer than so short a training."""
    monkeypatch.setattr(DRAW, draw_placeholder)


def command(root: Path, *options: object, constants: Mapping[str, object] | None = None, **settings: object) -> Command:
    """Return `train` on the counting tokens, with the settings of a small training or others."""
    if not (root / "tokens").exists():
        counting.build(root)
    pairs = [word for name, value in (SETTINGS | settings).items() for word in ("--set", f"{name}={value}")]
    words = ("train", "--preset", "mini", "--name", NAME, "--device", "cpu", *pairs, *options)
    arguments = words if "--tokens" in options else (*words, "--tokens", "counting")
    return Command(root, arguments, constants=constants or {})


def train(root: Path, *options: object, constants: Mapping[str, object] | None = None, **settings: object) -> Run:
    return command(root, *options, constants=constants, **settings).run_forked()


def train_undisturbed(root: Path, **settings: Any) -> Artifact:
    """Return the run of a training without faults."""
    result = train(root, **settings)
    assert result.code == 0, result.err
    return current_run(root)


def current_run(root: Path) -> Artifact:
    return artifact.find(root, "runs", NAME)


def make_plan(root: Path, **settings: object) -> TrainPlan:
    tokens = artifact.find(root, "tokens", "counting")
    return plan.make_plan(tokens, "mini", name=NAME, settings=SETTINGS | settings)


def draft_checkpoints(root: Path, **settings: object) -> Path:
    """Return the folder with the checkpoints of the unfinished run."""
    return draft_path(root, plan.identify(make_plan(root, **settings))) / "checkpoints"


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, newest first."""
    return [int(path.name.removeprefix("step-")) for path in checkpoint.newest_first(folder)]


# Faults


def before_call(number: int, function: Callable[..., Any], action: Callable[[], object]) -> Callable[..., Any]:
    """Wrap a function so that `action` runs before its call of that number, counted from 1."""
    calls = iter(range(1, number + 1))

    def wrapper(*arguments: Any, **options: Any) -> Any:
        if next(calls, 0) == number:
            action()
        return function(*arguments, **options)

    return wrapper


def send(*signals: int) -> Callable[[], None]:
    """Return a function that sends these signals to a process group with this process alone in it."""

    def send_all() -> None:
        os.setpgrp()
        for number in signals:
            os.killpg(0, number)

    return send_all


KILL = send(signal.SIGKILL)


# Results


def tensors(run_artifact: Artifact, which: str = "last") -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(run.checkpoint_path(run_artifact, which).glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            yield f"{path.name} {name}", tensor


def metric_rows(run_artifact: Artifact) -> list[dict[str, str]]:
    """Return the rows of the metrics without their seconds and memory."""
    return [{**row, "seconds": "", "memory_mb": ""} for row in metrics.read(run_artifact.file("metrics.csv"))]


def samples(run_artifact: Artifact) -> list[object]:
    return [msgspec.json.decode(line) for line in run_artifact.file("samples.jsonl").read_bytes().splitlines()]


def losses(run_artifact: Artifact) -> bytes:
    """Return the file of the losses of the validation tokens."""
    return run_artifact.file("losses.safetensors").read_bytes()


def assert_same_curve(actual: Artifact, expected_run: Artifact) -> None:
    """Assert that losses differ by at most 1e-5 and half a unit of the last digit that is written."""
    assert [row["step"] for row in metric_rows(actual)] == [row["step"] for row in metric_rows(expected_run)]
    for name in ("train_loss", "val_loss", "bits_per_char"):
        losses, expected = (
            [float(row[name]) for row in metric_rows(curve) if row[name]] for curve in (actual, expected_run)
        )
        assert losses == pytest.approx(expected, abs=1.5e-5), name


def assert_same_run(actual: Artifact, expected: Artifact) -> None:
    """Assert that two runs have the same tensors to the last bit, and the same records."""
    expected_tensors = dict(tensors(expected))
    actual_tensors = dict(tensors(actual))
    assert actual_tensors.keys() == expected_tensors.keys()
    for name, tensor in actual_tensors.items():
        assert torch.equal(tensor, expected_tensors[name]), name
    assert metric_rows(actual) == metric_rows(expected)
    assert samples(actual) == samples(expected)
    assert losses(actual) == losses(expected)
    assert actual.manifest.key == expected.manifest.key
    assert artifact.find_problems(actual, deep=True) == []


def assert_resumes_to(root: Path, expected: Artifact, *options: object, **settings: Any) -> Run:
    """Repeat the command; assert that it ends with the expected run and nothing else is left. Return its output."""
    assert [path for path in root.rglob("*.lock") if locks.is_locked(path)] == []
    result = train(root, *options, **settings)
    assert result.code == 0, result.err
    assert_same_run(current_run(root), expected)
    assert leftovers(root) == []
    return result
