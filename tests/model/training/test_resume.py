"""A training that goes on: in the weights, the moments and the metrics of one that was never disturbed.

Cases 56, 58, 59 and 61 of reference/reliability.md, section 2, and what goes with them: the clock, and what must not
matter to a training: how often it is evaluated, how many sequences are computed at once, how its tokens are stored.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import GPTConfig, TrainConfig
from model.runs import checkpoint, plan, run
from model.training import metrics, stage
from model.training.evaluate import evaluate
from model.training.learner import Learner
from pipeline.errors import BadConfig, TryAgain
from pipeline.tokens import counting
from tests.support.faults import assert_one_error
from tests.support.tokenizing import run as tokenize
from tests.support.tokenizing import some
from tests.support.training import (
    ALWAYS,
    KILL,
    NAME,
    SETTINGS,
    after,
    assert_same_run,
    checkpoints,
    made,
    no_pictures,
    planned,
    quiet,
    rows,
    sends,
    steps,
    tensors,
    train,
    warm,
)
from tests.support.upstream import texts

__all__ = ["no_pictures", "warm"]  # fixtures

TERM = sends(15)


def stop_at(step: int, **more: Any) -> dict[str, object]:
    """Constants of a command that a signal stops in the step of that number."""
    return {"model.training.learner.Learner.step": after(step, Learner.step, TERM), **more}


# 56: killed, and gone on


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_case_56_twenty_steps_are_seven_and_a_kill_and_thirteen(root: Path, tmp_path: Path, optimizer: str) -> None:
    """With dropout, an average of the weights, and in epochs, of which the first ends after 10 steps."""
    chosen: dict[str, object] = {"optimizer": optimizer, "ema": 0.9, "order": "epoch", "batch_size": 64}
    expected = quiet(tmp_path / "quiet", **chosen)
    killed = train(
        root, constants={**ALWAYS, "model.training.learner.Learner.step": after(8, Learner.step, KILL)}, **chosen
    )
    assert killed.code == -9
    assert max(steps(checkpoints(root, **chosen))) == 7
    resumed = train(root, **chosen)
    assert resumed.code == 0, resumed.err
    assert "going on from step 7 " in resumed.err
    assert_same_run(made(root), expected)
    kinds = {name.split()[0] for name, _ in tensors(expected)}
    assert kinds == {"model.safetensors", "optimizer.safetensors", "average.safetensors"}
    states = [checkpoint.read_state(run.checkpoint_path(each, "last")) for each in (made(root), expected)]
    assert len({msgspec.structs.replace(state, seconds=0.0).sha256["model.safetensors"] for state in states}) == 1
    assert states[0].share == states[1].share
    assert run.read_result(expected.path).epochs == pytest.approx(2.0, abs=0.1)


# 58: new tokens meanwhile


def test_case_58_a_run_keeps_the_tokens_that_it_was_begun_on_and_says_so_where_they_are_gone(
    root: Path, tmp_path: Path
) -> None:
    asked = ("--tokens", "some")
    chosen: dict[str, object] = {"vocab_size": 0, "eval_bytes": 200}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    old = tokenize(root, some(tmp_path / "first", texts("some", 60))).artifact
    assert train(root, *asked, constants=stop_at(7), **chosen).code == 75
    new = tokenize(root, some(tmp_path / "second", texts("other", 60))).artifact
    assert new.digest != old.digest
    aside = tmp_path / "aside"
    shutil.move(old.path, aside)
    refused = train(root, *asked, **chosen)
    assert_one_error(refused, 10, [old.ref])
    shutil.move(aside, old.path)
    resumed = train(root, *asked, **chosen)
    assert resumed.code == 0, resumed.err
    assert "going on from step 7 " in resumed.err
    assert made(root).manifest.inputs[0].digest == old.digest
    again = train(root, *asked, **chosen)
    assert again.code == 0, again.err
    assert made(root).manifest.inputs[0].digest == new.digest, "the next one is on the new tokens"


# 59: another training


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_case_59_with_resume_another_training_is_refused_field_by_field(root: Path) -> None:
    assert train(root, constants=stop_at(7)).code == 75
    before = snapshot(checkpoints(root))
    refused = train(root, "--resume", width=64, vocab_size=101, learning_rate=0.5)
    assert_one_error(refused, 78, ["width: 64, not 32", "vocab_size: 101, not 100", "learning_rate: 0.5, not 0.003"])
    assert snapshot(checkpoints(root)) == before
    resumed = train(root, "--resume")
    assert resumed.code == 0, resumed.err
    assert "going on from step 7 " in resumed.err


def test_case_59_a_checkpoint_of_another_configuration_is_refused_and_left_alone(root: Path, tmp_path: Path) -> None:
    assert train(root, constants=stop_at(7)).code == 75
    folder, preset = checkpoints(root), planned(root).preset
    before = snapshot(folder)
    changes: list[tuple[GPTConfig, TrainConfig, str]] = [
        (replace(preset.model, heads=2), preset.train, "heads: 4, not 2"),
        (preset.model, replace(preset.train, seed=7), "seed: 1, not 7"),
    ]
    for model, training, difference in changes:
        with pytest.raises(BadConfig, match=difference) as caught:
            checkpoint.newest(folder, model, training, tmp_path / "quarantine", print)
        assert caught.value.exit_code == 78
    assert snapshot(folder) == before
    assert not (tmp_path / "quarantine").exists()


@pytest.mark.parametrize(("change", "difference"), [("dtype", "bfloat16"), ("shape", "100 x 31"), ("lost", "missing")])
def test_case_59_tensors_of_another_kind_are_refused_by_name_and_left_alone(
    root: Path, change: str, difference: str
) -> None:
    """Though the checkpoint says that its model is this one, and its hashes are right."""
    assert train(root, constants=stop_at(7)).code == 75
    (path,) = checkpoint.steps(checkpoints(root))
    file = path / "model.safetensors"
    weights = load_file(file)
    name = "embedding.weight"
    changed = {"dtype": weights[name].bfloat16(), "shape": weights[name][:, 1:].contiguous()}.get(change)
    rest = {each: weight for each, weight in weights.items() if each != name}
    save_file(rest if changed is None else {**rest, name: changed}, file)
    vouch(path)
    before = snapshot(path)
    assert_one_error(train(root), 78, [name, difference])
    assert snapshot(path) == before


def vouch(path: Path) -> None:
    """Let a checkpoint say that its files are as they were saved."""
    state = checkpoint.read_state(path)
    hashes = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in state.sha256}
    (path / "state.json").write_bytes(checkpoint._sealed(msgspec.structs.replace(state, sha256=hashes)))


# 61: the clock jumps


def test_case_61_whatever_the_clock_says_the_newest_checkpoint_is_that_of_the_last_step(
    root: Path, tmp_path: Path
) -> None:
    expected = quiet(tmp_path / "quiet")
    real, year = checkpoint.save, 365 * 86_400

    def save(folder: Path, state: checkpoint.State, saved: checkpoint.Saved) -> Path:
        path = real(folder, state, saved)
        moment = time.time() + (year if state.step % 2 else -year)
        for each in (*path.iterdir(), path):
            os.utime(each, (moment, moment))
        return path

    stopped = train(root, constants=stop_at(12, **ALWAYS, **{"model.runs.checkpoint.save": save}))
    assert stopped.code == 75
    folder = checkpoints(root)
    newest, before, *_ = checkpoint.steps(folder)
    assert (newest.name, before.name) == ("step-00000012", "step-00000011")
    assert newest.stat().st_mtime < before.stat().st_mtime - year
    resumed = train(root)
    assert "going on from step 12 " in resumed.err
    assert_same_run(made(root), expected)


# By the clock


class Clock:
    """A clock that only moves when something takes time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def slow(self, real: Any, seconds: float) -> Any:
        def taken(*arguments: Any, **options: Any) -> Any:
            self.now += seconds
            return real(*arguments, **options)

        return taken


def test_minutes_are_those_of_training_and_a_run_that_goes_on_has_what_was_left(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    for module in ("model.training.lr_schedule", "model.training.trainer"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(Learner, "step", clock.slow(Learner.step, 1))
    monkeypatch.setattr("model.training.trainer.evaluate", clock.slow(evaluate, 100))
    monkeypatch.setattr(checkpoint, "save", clock.slow(checkpoint.save, 50))
    tokens = counting.build(root).artifact
    chosen = plan.plan(tokens, "mini", name=NAME, minutes=0.5, settings={**SETTINGS, "evaluations": 1, "steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", after(12, Learner.step, lambda: os.kill(os.getpid(), 15)))
        with pytest.raises(TryAgain, match="at step 12"):
            stage.train(root, chosen, device="cpu", resume=True, report=lambda line: None)
    clock.now += 10_000  # nobody trains meanwhile
    built = stage.train(root, chosen, device="cpu", resume=True, report=lambda line: None).artifact
    result = run.read_result(built.path)
    assert (result.steps, result.seconds) == (30, 30.0)
    seconds = [row["seconds"] for row in metrics.read(built.file("metrics.csv"))]
    assert (seconds[0], seconds[-1]) == ("0.00", "30.00")


# What must not matter


def test_how_often_it_is_evaluated_changes_no_weight(root: Path, tmp_path: Path) -> None:
    chosen: dict[str, object] = {"steps": 50, "dropout": 0.1, "ema": 0.9}
    often, seldom = (dict(tensors(quiet(tmp_path / str(count), **chosen, evaluations=count))) for count in (5, 2))
    assert all(torch.equal(tensor, seldom[name]) for name, tensor in often.items())


def test_how_many_sequences_are_computed_at_once_changes_rounding_only(tmp_path: Path) -> None:
    chosen: dict[str, object] = {"dropout": 0.0, "steps": 10}
    whole, pieces = (quiet(tmp_path / str(size), **chosen, micro_batch=size) for size in (32, 8))
    for one, other in zip(rows(whole), rows(pieces), strict=True):
        for name in ("train_loss", "val_loss", "gradient_norm"):
            assert float(one[name] or 0) == pytest.approx(float(other[name] or 0), abs=2e-5)
    expected = dict(tensors(whole))
    for name, tensor in tensors(pieces):
        if name.startswith("model"):
            torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)


def test_a_run_that_was_begun_where_there_was_more_memory_goes_on_with_fewer_sequences_at_once(
    root: Path, tmp_path: Path
) -> None:
    expected = quiet(tmp_path / "quiet", dropout=0.0)
    assert train(root, constants=stop_at(7), dropout=0.0).code == 75
    resumed = train(root, constants={"model.device.free_memory": lambda device: 2 << 20}, dropout=0.0)
    assert resumed.code == 0, resumed.err
    assert "going on from step 7 " in resumed.err
    for one, other in zip(rows(made(root)), rows(expected), strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(other["val_loss"]), abs=2e-5)
    state = checkpoint.read_state(run.checkpoint_path(made(root), "last"))
    assert state.execution.micro_batch == 8


def test_how_the_tokens_are_stored_changes_no_weight(tmp_path: Path) -> None:
    found = []
    for layout in ("memmap", "hdf5"):
        (folder := tmp_path / layout).mkdir()
        tokenize(folder / "artifacts", some(folder, texts("some", 60)), format=layout)
        done = train(folder / "artifacts", "--tokens", "some", vocab_size=0, eval_bytes=200)
        assert done.code == 0, done.err
        found.append(dict(tensors(made(folder / "artifacts"))))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
