"""Several processes that train one model: the loss curve of one, one that speaks, checkpoints for any number of them.

All of it in one start of two processes, since that takes longer than their trainings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from model.runs import checkpoint, run
from model.training.learner import Learner
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokens import counting
from tests.model.training.together import STOP
from tests.support.faults import ROOT, Command, Run, assert_one_error
from tests.support.training import after, rows, sends, steps, warm

__all__ = ["warm"]  # fixtures

KINDS = [("ddp", "adamw"), ("ddp", "muon"), ("fsdp", "adamw"), ("fsdp", "muon")]
_PATIENCE = 120


def words(root: Path, name: str, *options: object, **settings: object) -> list[str]:
    chosen: dict[str, object] = {"steps": 20, "evaluations": 2, "dropout": 0.0, "precision": "fp32"}
    pairs = [word for key, value in (chosen | settings).items() for word in ("--set", f"{key}={value}")]
    asked = ["--artifacts", root, "train", "--tokens", "counting", "--preset", "mini", "--name", name, *options, *pairs]
    return [str(word) for word in asked]


@dataclass
class Together:
    """What two processes did: of each command how it ended in the first and in the second."""

    root: Path
    alone: dict[str, Artifact]  # the runs of one process, by optimiser
    ended: dict[str, tuple[Run, Run]]
    checkpoints: dict[str, list[int]]  # that the signal left

    def made(self, name: str) -> Artifact:
        return artifact.find(self.root, "runs", name)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, warm: None) -> Together:
    folder = tmp_path_factory.mktemp("world")
    root = folder / "artifacts"
    counting.build(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "model.training.loss_curve.draw", lambda table, folder, *_: (folder / "loss.png").write_bytes(b"a picture")
        )
        alone = {
            optimizer: by_one(root, f"alone-{optimizer}", optimizer=optimizer, ema=0.9)
            for optimizer in ("adamw", "muon")
        }
        stopped = {"model.training.learner.Learner.step": after(11, Learner.step, sends(15))}
        for parallel, optimizer in (KINDS[0], KINDS[3]):
            name = f"one-then-two-{parallel}"
            asked = words(root, name, parallel=parallel, optimizer=optimizer, ema=0.9)[2:]
            assert Command(root, tuple(asked), constants=stopped).run_forked().code == 75
    commands: dict[str, list[str]] = {}
    for parallel, optimizer in KINDS:
        chosen: dict[str, object] = {"parallel": parallel, "optimizer": optimizer, "ema": 0.9}
        commands[f"{parallel}-{optimizer}"] = words(root, f"{parallel}-{optimizer}", **chosen)
    for parallel, optimizer in (KINDS[1], KINDS[2]):
        chosen = {"parallel": parallel, "optimizer": optimizer, "ema": 0.9}
        name = f"two-then-one-{parallel}"
        commands[name] = [STOP, "11", *words(root, name, **chosen)]
    for parallel, optimizer in (KINDS[0], KINDS[3]):
        name = f"one-then-two-{parallel}"
        commands[name] = words(root, name, parallel=parallel, optimizer=optimizer, ema=0.9)
    commands["again"] = commands["ddp-adamw"]
    commands["odd"] = words(root, "odd", batch_size=33)
    commands["nowhere"] = words(root, "nowhere")
    (root / "runs" / "nowhere").write_text("a file where a folder is needed")
    (folder / "commands.json").write_text(json.dumps(list(commands.values())))
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = [str(ROOT / "tests" / "model" / "training" / "together.py"), str(folder / "commands.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    ended = {name: (Run(*one), Run(*two)) for name, one, two in zip(commands, first, second, strict=True)}
    left = {
        name: [step for draft in root.glob(f"runs/{name}/.draft-*") for step in steps(draft / "checkpoints")]
        for name in commands
        if name.startswith("two-then-one")
    }
    return Together(root, alone, ended, left)


def by_one(root: Path, name: str, **settings: object) -> Artifact:
    done = Command(root, tuple(words(root, name, **settings)[2:])).run_forked()
    assert done.code == 0, done.err
    return artifact.find(root, "runs", name)


def assert_same_curve(one: Artifact, other: Artifact) -> None:
    """To 1e-5, and half a unit of the last digit that is written."""
    assert [row["step"] for row in rows(one)] == [row["step"] for row in rows(other)]
    for name in ("train_loss", "val_loss", "bits_per_char"):
        found, expected = ([float(row[name]) for row in rows(each) if row[name]] for each in (one, other))
        assert found == pytest.approx(expected, abs=1.5e-5), name


@pytest.mark.parametrize(("parallel", "optimizer"), KINDS)
def test_two_processes_give_the_loss_curve_of_one(together: Together, parallel: str, optimizer: str) -> None:
    first, second = together.ended[f"{parallel}-{optimizer}"]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert_same_curve(together.made(f"{parallel}-{optimizer}"), together.alone[optimizer])


@pytest.mark.parametrize(("parallel", "optimizer"), KINDS)
def test_what_two_processes_trained_is_sampled_by_one(together: Together, parallel: str, optimizer: str) -> None:
    name = f"{parallel}-{optimizer}"
    assert artifact.problems(together.made(name), deep=True) == []
    asked = ("sample", name, "--prompt-ids", "1,2,3", "--greedy", "--max-tokens", "3", "--json", "--device", "cpu")
    done = Command(together.root, asked).run_forked()
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["samples"][0]["token_ids"]) == 3


def test_only_the_first_process_speaks(together: Together) -> None:
    for name, (first, second) in together.ended.items():
        assert (second.out, second.err) == ("", ""), name
        assert first.out or first.err, name
    assert together.ended["ddp-adamw"][0].err.count("step     20") == 1
    assert together.ended["again"][0].out.startswith("unchanged")


@pytest.mark.parametrize(("parallel", "optimizer"), [KINDS[1], KINDS[2]])
def test_a_signal_to_one_of_them_stops_both_and_one_process_goes_on(
    together: Together, parallel: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "model.training.loss_curve.draw", lambda table, folder, *_: (folder / "loss.png").write_bytes(b"a picture")
    )
    name = f"two-then-one-{parallel}"
    first, second = together.ended[name]
    assert_one_error(first, 75, ["everything is saved"])
    assert second.code == 75
    assert together.checkpoints[name] == [11, 10]
    resumed = by_one(together.root, name, parallel=parallel, optimizer=optimizer, ema=0.9)
    assert_same_curve(resumed, together.alone[optimizer])


@pytest.mark.parametrize(("parallel", "optimizer"), [KINDS[0], KINDS[3]])
def test_two_processes_go_on_from_a_checkpoint_of_one(together: Together, parallel: str, optimizer: str) -> None:
    first, _ = together.ended[f"one-then-two-{parallel}"]
    assert first.code == 0, first.err
    assert "going on from step 11 " in first.err
    assert_same_curve(together.made(f"one-then-two-{parallel}"), together.alone[optimizer])


def test_a_batch_that_cannot_be_shared_is_refused(together: Together) -> None:
    first, second = together.ended["odd"]
    assert_one_error(first, 78, ["batch_size 33", "2 processes"])
    assert second.code == 78


def test_where_the_first_process_cannot_begin_the_others_end_as_it_does(together: Together) -> None:
    first, second = together.ended["nowhere"]
    assert_one_error(first, 73, ["nowhere"])
    assert (second.code, second.err) == (73, "")


def test_the_average_and_the_moments_are_whole_whoever_held_their_parts(together: Together) -> None:
    path = run.checkpoint_path(together.alone["muon"], "last")
    alone, model = checkpoint.read(path), checkpoint.load_model(path, torch.device("cpu"))
    for name in ("ddp-muon", "fsdp-muon"):
        saved = checkpoint.read(run.checkpoint_path(together.made(name), "last"))
        checkpoint.require_fit(saved, model)
        assert saved.moments.keys() == alone.moments.keys()
        assert all(saved.moments[key].shape == moment.shape for key, moment in alone.moments.items())
        for key, tensor in saved.average.items():
            torch.testing.assert_close(tensor, dict(model.named_parameters())[key].data, atol=1e-4, rtol=0)
