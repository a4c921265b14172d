"""Checkpoints that a thread writes, as on a GPU: training goes on meanwhile, and a kill at any moment loses nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest
import torch
from torch import Tensor

from model.config import GPTConfig, Preset, TrainConfig
from model.device import ExecutionConfig
from model.runs import checkpoint
from model.runs.checkpoint import CheckpointTensors, TrainState
from model.training.checkpointer import Checkpointer
from model.training.distributed import World
from model.training.learner import Learner
from model.training.metrics import Metrics
from model.training.trainer import Trainer
from pipeline.tokens import counting
from tests.support.training import (
    SAVE_EVERY_STEP,
    STEP,
    assert_resumes_to,
    before_call,
    no_loss_curve,
    preloaded,
    send,
    train,
    train_undisturbed,
)

__all__ = ["no_loss_curve", "preloaded"]  # fixtures

MODEL = GPTConfig(vocab_size=10, block_size=4, layers=1, heads=1, width=4)
STATE = TrainState(3, 1.0, None, MODEL, TrainConfig(), ExecutionConfig("fp32", False, 1))
TENSORS = CheckpointTensors({"weight": torch.zeros(4)}, {"weight/momentum": torch.zeros(4)})


def checkpointer(folder: Path, lines: list[str]) -> Checkpointer:
    return Checkpointer(folder, Preset("gpt2", "", MODEL), World(), lines.append, threaded=True)


def at(step: int) -> TrainState:
    return msgspec.structs.replace(STATE, step=step)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks for the saved step waits for it."""
    release, save = threading.Event(), checkpoint.save

    def slow(*arguments: Any) -> Path:
        assert release.wait(60)
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", slow)
    saving = checkpointer(tmp_path, [])
    saving.save(at(7), TENSORS, Metrics(None))
    assert not checkpoint.newest_first(saving.folder)
    release.set()
    assert saving.saved_step == 7
    assert [path.name for path in checkpoint.newest_first(saving.folder)] == [checkpoint.folder_name(7)]


def test_required_checkpoint_is_on_the_disk_after_those_before_it(tmp_path: Path) -> None:
    saving = checkpointer(tmp_path, [])
    saving.save(at(7), TENSORS, Metrics(None))
    saving.save(at(8), TENSORS, Metrics(None), required=True)
    names = [path.name for path in checkpoint.newest_first(saving.folder)]
    assert names == [checkpoint.folder_name(8), checkpoint.folder_name(7)]


def test_third_refusal_of_the_disk_in_a_row_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", refuse)
    lines: list[str] = []
    saving = checkpointer(tmp_path, lines)
    for step in (1, 2, 3):
        saving.save(at(step), TENSORS, Metrics(None))
        assert len(lines) == step - 1  # reported when the next one is saved
    with pytest.raises(OSError, match="No space"):
        _ = saving.saved_step
    assert [line.partition(":")[2] for line in lines] == [
        f" could not save the checkpoint of step {step}: [Errno 28] No space left on device" for step in (1, 2, 3)
    ]


class Threaded(Checkpointer):
    """Writes in a thread on a CPU too, copies of the tensors: those of a GPU are copied to the host."""

    def __init__(self, *arguments: Any, threaded: bool) -> None:
        super().__init__(*arguments, threaded=True)

    def save(self, state: TrainState, tensors: CheckpointTensors, metrics: Metrics, *, required: bool = False) -> None:
        parts = {name: copied(part) for name, part in vars(tensors).items()}
        super().save(state, CheckpointTensors(**parts), metrics, required=required)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_training_that_was_killed_while_a_thread_wrote_resumes_to_the_same_weights(root: Path, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    for folder in (root, undisturbed):
        counting.build(folder)
    expected = train_undisturbed(undisturbed)
    threaded = {"model.training.trainer.Checkpointer": Threaded, **SAVE_EVERY_STEP}
    killed = train(root, constants={**threaded, STEP: before_call(12, Learner.step, send(9))})
    assert killed.code == -9
    assert_resumes_to(root, expected)


def test_checkpoint_is_written_before_the_next_one_is_copied() -> None:
    """Pinned memory then holds one copy of weights and moments, not two."""
    trainer, events = MagicMock(), list[str]()

    class Checkpoints:
        @property
        def saved_step(self) -> int:
            events.append("wait")
            return 3

        def save(self, *arguments: object, **options: object) -> None:
            events.append("save")

    trainer.checkpointer, trainer.learner.not_finite.return_value = Checkpoints(), ""
    trainer.learner.state_tensors.side_effect = lambda: events.append("copy")
    Trainer._save(trainer, 1.0)
    assert events == ["wait", "copy", "save"]
