"""What the tests of training share: a small training, as a command line in a fork, and what it left to compare."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from model.runs import checkpoint, plan, run
from model.runs.plan import Plan
from model.training import metrics, stage
from pipeline.store import artifact, locks
from pipeline.store.artifact import Artifact
from pipeline.store.generations import draft_path
from pipeline.tokens import counting
from tests.support.faults import Command, Run, leftovers

NAME = "small"
SETTINGS: dict[str, object] = {"steps": 20, "evaluations": 2, "dropout": 0.1, "precision": "fp32"}
ALWAYS = {"model.training.trainer._CHECKPOINT_SECONDS": -1.0}  # a checkpoint at every step


@pytest.fixture(autouse=True, scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a training loads is loaded before the forks, and it has one thread: OpenMP's do not live on in a fork."""
    torch.set_num_threads(1)
    if "torch._dynamo" not in sys.modules:
        tokens = counting.build(tmp_path_factory.mktemp("warm")).artifact
        chosen = plan.plan(tokens, "mini", name=NAME, settings=SETTINGS | {"steps": 1})
        stage.train(tokens.path.parents[2], chosen, device="cpu", resume=True, report=lambda line: None)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than so short a training."""
    monkeypatch.setattr(
        "model.training.loss_curve.draw", lambda table, folder, *_: (folder / "loss.png").write_bytes(b"a picture")
    )


def command(root: Path, *options: object, constants: dict[str, object] | None = None, **settings: object) -> Command:
    """`train` on the counting numbers, with the settings of a small training or others."""
    if not (root / "tokens").exists():
        counting.build(root)
    pairs = [word for name, value in (SETTINGS | settings).items() for word in ("--set", f"{name}={value}")]
    words = ("train", "--preset", "mini", "--name", NAME, "--device", "cpu", *pairs, *options)
    named = words if "--tokens" in options else (*words, "--tokens", "counting")
    return Command(root, named, constants=constants or {})


def train(root: Path, *options: object, constants: dict[str, object] | None = None, **settings: object) -> Run:
    return command(root, *options, constants=constants, **settings).run_forked()


def quiet(root: Path, **settings: object) -> Artifact:
    """The run of a training that nothing disturbed."""
    done = train(root, **settings)
    assert done.code == 0, done.err
    return made(root)


def made(root: Path) -> Artifact:
    return artifact.find(root, "runs", NAME)


def planned(root: Path, **settings: object) -> Plan:
    tokens = artifact.find(root, "tokens", "counting")
    return plan.plan(tokens, "mini", name=NAME, settings=SETTINGS | settings)


def checkpoints(root: Path, **settings: object) -> Path:
    """Where those of the unfinished run are."""
    return draft_path(root, plan.identify(planned(root, **settings))) / "checkpoints"


def steps(folder: Path) -> list[int]:
    """Of the checkpoints in a folder, newest first."""
    return [int(path.name.removeprefix("step-")) for path in checkpoint.steps(folder)]


# What goes wrong in the middle of it


def after(calls: int, real: Callable[..., Any], what: Callable[[], object]) -> Callable[..., Any]:
    """`real`, before whose call of that number something happens."""
    left = iter(range(1, calls + 1))

    def called(*arguments: Any, **options: Any) -> Any:
        if next(left, 0) == calls:
            what()
        return real(*arguments, **options)

    return called


def sends(*numbers: int) -> Callable[[], None]:
    """A thing that sends these signals to the process group of which this process becomes the only one."""

    def send() -> None:
        os.setpgrp()
        for number in numbers:
            os.killpg(0, number)

    return send


KILL = sends(signal.SIGKILL)


# What came out


def tensors(made: Artifact, which: str = "last") -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(run.checkpoint_path(made, which).glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            yield f"{path.name} {name}", tensor


def rows(made: Artifact) -> list[dict[str, str]]:
    """The metrics, but for the time that they took."""
    return [{**row, "seconds": ""} for row in metrics.read(made.file("metrics.csv"))]


def samples(made: Artifact) -> list[object]:
    return [msgspec.json.decode(line) for line in made.file("samples.jsonl").read_bytes().splitlines()]


def assert_same_run(one: Artifact, other: Artifact) -> None:
    """Every tensor to the last bit, and all that was written of the way there."""
    expected = dict(tensors(other))
    found = dict(tensors(one))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    assert rows(one) == rows(other)
    assert samples(one) == samples(other)
    assert one.manifest.key == other.manifest.key
    assert artifact.problems(one, deep=True) == []


def assert_ends_well(root: Path, expected: Artifact, **settings: object) -> Run:
    """The same command ends in the run of one that nothing disturbed, with nothing left behind; how it ended."""
    assert [path for path in root.rglob("*.lock") if locks.is_locked(path)] == []
    done = train(root, **settings)
    assert done.code == 0, done.err
    assert_same_run(made(root), expected)
    assert leftovers(root) == []
    return done
