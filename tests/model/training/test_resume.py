"""Resumed trainings end with the weights, the moments and the metrics of an undisturbed one.

Cases 56, 58, 59 and 61 of docs/design/reliability.md, section 2. Also schedules by the clock, and settings that must
not change the result: the number of evaluations, the micro-batch size, the storage format of the tokens.
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
from model.presets import get_preset
from model.runs import checkpoint, plan, run
from model.training import metrics, stage
from model.training.dataloader import Sampler
from model.training.evaluate import evaluate
from model.training.learner import Learner
from pipeline.errors import BadConfig, TryAgain
from pipeline.tokens import counting
from pipeline.tokens.store import open_store
from tests.support.faults import assert_one_error
from tests.support.tokenizing import run as run_tokenize
from tests.support.tokenizing import some
from tests.support.training import (
    KILL,
    NAME,
    SAVE_EVERY_STEP,
    SETTINGS,
    STEP,
    assert_same_run,
    before_call,
    current_run,
    draft_checkpoints,
    make_plan,
    metric_rows,
    no_loss_curve,
    preloaded,
    saved_steps,
    send,
    tensors,
    train,
    train_undisturbed,
)
from tests.support.upstream import texts

__all__ = ["no_loss_curve", "preloaded"]  # fixtures

TERM = send(15)


def stop_at(step: int, **constants: Any) -> dict[str, object]:
    """Return the constants of a command that a signal stops in that step."""
    return {STEP: before_call(step, Learner.step, TERM), **constants}


# Killed and resumed


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_and_resumed_run_equals_an_undisturbed_one(root: Path, tmp_path: Path, optimizer: str) -> None:
    """Case 56 of docs/design/reliability.md.

    With dropout, an average of the weights, and epochs, the first of which ends after 10 steps.
    """
    settings: dict[str, Any] = {"optimizer": optimizer, "ema": 0.9, "order": "epoch", "batch_size": 64}
    expected = train_undisturbed(tmp_path / "quiet", **settings)
    killed = train(
        root,
        constants={**SAVE_EVERY_STEP, STEP: before_call(8, Learner.step, KILL)},
        **settings,
    )
    assert killed.code == -9
    assert max(saved_steps(draft_checkpoints(root, **settings))) == 7
    resumed = train(root, **settings)
    assert resumed.code == 0, resumed.err
    assert "resuming from step 7 " in resumed.err
    assert_same_run(current_run(root), expected)
    kinds = {name.split()[0] for name, _ in tensors(expected)}
    assert kinds == {"model.safetensors", "optimizer.safetensors", "average.safetensors"}
    paths = [run.checkpoint_path(run_artifact, "last") for run_artifact in (current_run(root), expected)]
    states = [checkpoint.read_state(path) for path in paths]
    assert len({msgspec.structs.replace(state, seconds=0.0).sha256["model.safetensors"] for state in states}) == 1
    assert states[0].share == states[1].share
    assert run.read_result(expected.path).epochs == pytest.approx(2.0, abs=0.1)


# New tokens were published meanwhile


def test_resumed_run_keeps_its_tokens_or_names_missing_ones(root: Path, tmp_path: Path) -> None:
    """Case 58 of docs/design/reliability.md."""
    arguments = ("--tokens", "some")
    settings: dict[str, Any] = {"vocab_size": 0, "eval_bytes": 200}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    old = run_tokenize(root, some(tmp_path / "first", texts("some", 60))).artifact
    assert train(root, *arguments, constants=stop_at(7), **settings).code == 75
    new = run_tokenize(root, some(tmp_path / "second", texts("other", 60))).artifact
    assert new.digest != old.digest
    aside = tmp_path / "aside"
    shutil.move(old.path, aside)
    refused = train(root, *arguments, **settings)
    assert_one_error(refused, 10, [old.ref])
    shutil.move(aside, old.path)
    resumed = train(root, *arguments, **settings)
    assert resumed.code == 0, resumed.err
    assert "resuming from step 7 " in resumed.err
    assert current_run(root).manifest.inputs[0].digest == old.digest
    repeated = train(root, *arguments, **settings)
    assert repeated.code == 0, repeated.err
    assert current_run(root).manifest.inputs[0].digest == new.digest, "the next run uses the new tokens"


# Another configuration


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_resume_with_another_configuration_lists_the_changed_fields(root: Path) -> None:
    """Case 59 of docs/design/reliability.md."""
    assert train(root, constants=stop_at(7)).code == 75
    before = snapshot(draft_checkpoints(root))
    refused = train(root, "--resume", width=64, vocab_size=101, learning_rate=0.5)
    assert_one_error(refused, 78, ["width: 64, not 32", "vocab_size: 101, not 100", "learning_rate: 0.5, not 0.003"])
    assert snapshot(draft_checkpoints(root)) == before
    resumed = train(root, "--resume")
    assert resumed.code == 0, resumed.err
    assert "resuming from step 7 " in resumed.err


def test_checkpoint_of_another_configuration_is_refused_and_kept(root: Path, tmp_path: Path) -> None:
    """Case 59 of docs/design/reliability.md."""
    assert train(root, constants=stop_at(7)).code == 75
    folder, preset = draft_checkpoints(root), make_plan(root).preset
    before = snapshot(folder)
    changes: list[tuple[GPTConfig, TrainConfig, str]] = [
        (replace(preset.model, heads=2), preset.train, "heads: 4, not 2"),
        (preset.model, replace(preset.train, seed=7), "seed: 1, not 7"),
    ]
    for model, training, difference in changes:
        with pytest.raises(BadConfig, match=difference) as caught:
            checkpoint.load_newest(folder, model, training, tmp_path / "quarantine", print)
        assert caught.value.exit_code == 78
    assert snapshot(folder) == before
    assert not (tmp_path / "quarantine").exists()


@pytest.mark.parametrize(("change", "difference"), [("dtype", "bfloat16"), ("shape", "100 x 31"), ("lost", "missing")])
def test_checkpoint_with_unexpected_tensors_is_refused_and_kept(root: Path, change: str, difference: str) -> None:
    """Case 59 of docs/design/reliability.md. The configuration and the hashes in state.json are right."""
    assert train(root, constants=stop_at(7)).code == 75
    (path,) = checkpoint.newest_first(draft_checkpoints(root))
    file = path / "model.safetensors"
    weights = load_file(file)
    name = "embedding.weight"
    changed = {"dtype": weights[name].bfloat16(), "shape": weights[name][:, 1:].contiguous()}.get(change)
    unchanged = {key: weight for key, weight in weights.items() if key != name}
    save_file(unchanged if changed is None else {**unchanged, name: changed}, file)
    update_hashes(path)
    before = snapshot(path)
    assert_one_error(train(root), 78, [name, difference])
    assert snapshot(path) == before


def update_hashes(path: Path) -> None:
    """Write the present hashes of a checkpoint's files into its state."""
    state = checkpoint.read_state(path)
    hashes = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in state.sha256}
    (path / "state.json").write_bytes(checkpoint._encode_state(msgspec.structs.replace(state, sha256=hashes)))


# Clock jumps


def test_newest_checkpoint_is_chosen_by_step_and_not_by_file_time(root: Path, tmp_path: Path) -> None:
    """Case 61 of docs/design/reliability.md."""
    expected = train_undisturbed(tmp_path / "quiet")
    original, year = checkpoint.save, 365 * 86_400

    def save(folder: Path, state: checkpoint.TrainState, saved: checkpoint.CheckpointTensors) -> Path:
        path = original(folder, state, saved)
        timestamp = time.time() + (year if state.step % 2 else -year)
        for file in (*path.iterdir(), path):
            os.utime(file, (timestamp, timestamp))
        return path

    stopped = train(root, constants=stop_at(12, **SAVE_EVERY_STEP, **{"model.runs.checkpoint.save": save}))
    assert stopped.code == 75
    folder = draft_checkpoints(root)
    newest, before, *_ = checkpoint.newest_first(folder)
    assert (newest.name, before.name) == ("step-00000012", "step-00000011")
    assert newest.stat().st_mtime < before.stat().st_mtime - year
    resumed = train(root)
    assert "resuming from step 12 " in resumed.err
    assert_same_run(current_run(root), expected)


# Schedules by the clock


class Clock:
    """A clock that moves only in calls of functions that are made slow."""

    def __init__(self) -> None:
        self.now = 1000.0

    def slow(self, function: Any, seconds: float) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            self.now += seconds
            return function(*arguments, **options)

        return wrapper


@pytest.mark.parametrize("steps", [30, 20])
def test_minutes_count_training_only_and_across_a_resume(
    steps: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a second a step; or the schedule ends after epochs that take 20 steps."""
    clock = Clock()
    for module in ("model.training.lr_schedule", "model.training.trainer", "model.training.evaluator"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(Learner, "step", clock.slow(Learner.step, 1))
    monkeypatch.setattr("model.training.evaluator.evaluate", clock.slow(evaluate, 100))
    monkeypatch.setattr(checkpoint, "save", clock.slow(checkpoint.save, 50))
    tokens = counting.build(root).artifact
    sampler = Sampler(open_store(tokens).train, 16, 1, "random", "")
    settings = {**SETTINGS, "evaluations": 1, "steps": 1, "epochs": 0.0 if steps == 30 else sampler.epoch(steps, 32)}
    timed = plan.make_plan(tokens, "mini", name=NAME, minutes=0.5, settings=settings)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", before_call(12, Learner.step, lambda: os.kill(os.getpid(), 15)))
        with pytest.raises(TryAgain, match="at step 12"):
            stage.train(root, timed, device="cpu", resume=True, report=lambda line: None)
    clock.now += 10_000  # between the two commands
    built = stage.train(root, timed, device="cpu", resume=True, report=lambda line: None).artifact
    result = run.read_result(built.path)
    assert (result.steps, result.seconds) == (steps, steps)
    rows = metrics.read(built.file("metrics.csv"))
    assert (rows[0]["seconds"], rows[-1]["seconds"]) == ("0.00", f"{steps}.00")
    assert float(rows[-1]["learning_rate"]) < 0.15 * get_preset("mini").train.learning_rate


# Settings that must not change the result


def test_number_of_evaluations_changes_no_weight(root: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 50, "dropout": 0.1, "ema": 0.9}
    many, few = (
        dict(tensors(train_undisturbed(tmp_path / str(count), **settings, evaluations=count))) for count in (5, 2)
    )
    assert all(torch.equal(tensor, few[name]) for name, tensor in many.items())


def test_micro_batch_size_changes_rounding_only(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dropout": 0.0, "steps": 10}
    one_batch, micro_batches = (
        train_undisturbed(tmp_path / str(size), **settings, micro_batch=size) for size in (32, 8)
    )
    for actual_row, expected_row in zip(metric_rows(one_batch), metric_rows(micro_batches), strict=True):
        for name in ("train_loss", "val_loss", "gradient_norm"):
            assert float(actual_row[name] or 0) == pytest.approx(float(expected_row[name] or 0), abs=2e-5)
    expected = dict(tensors(one_batch))
    for name, tensor in tensors(micro_batches):
        if name.startswith("model"):
            torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)


def test_resume_with_less_memory_uses_a_smaller_micro_batch(root: Path, tmp_path: Path) -> None:
    expected = train_undisturbed(tmp_path / "quiet", dropout=0.0)
    assert train(root, constants=stop_at(7), dropout=0.0).code == 75
    resumed = train(root, constants={"model.device.free_memory": lambda device: 3 << 19}, dropout=0.0)
    assert resumed.code == 0, resumed.err
    assert "resuming from step 7 " in resumed.err
    for actual_row, expected_row in zip(metric_rows(current_run(root)), metric_rows(expected), strict=True):
        assert float(actual_row["val_loss"]) == pytest.approx(float(expected_row["val_loss"]), abs=2e-5)
    state = checkpoint.read_state(run.checkpoint_path(current_run(root), "last"))
    assert state.execution.micro_batch == 8


def test_storage_format_of_tokens_changes_no_weight(tmp_path: Path) -> None:
    weights_by_layout = []
    for layout in ("memmap", "hdf5"):
        (folder := tmp_path / layout).mkdir()
        run_tokenize(folder / "artifacts", some(folder, texts("some", 60)), format=layout)
        result = train(folder / "artifacts", "--tokens", "some", vocab_size=0, eval_bytes=200)
        assert result.code == 0, result.err
        weights_by_layout.append(dict(tensors(current_run(folder / "artifacts"))))
    assert all(torch.equal(tensor, weights_by_layout[1][name]) for name, tensor in weights_by_layout[0].items())
