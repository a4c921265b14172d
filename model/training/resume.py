"""Initial weights of a training that has no checkpoint yet: from a parent run, or from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.runs import checkpoint
from model.runs.checkpoint import CheckpointTensors
from model.runs.run import CHECKPOINTS, Report, Result, read_result
from model.training.learner import Learner
from pipeline.errors import BadData
from pipeline.store.manifest import Input
from pipeline.tokens.store import TokenStore

_MAX_COUNTED = 1 << 24  # tokens: they are counted in a second


@dataclass(frozen=True)
class Parent:
    """The run that a training starts from.

    With `weights_only`, from its best weights and at step 0; otherwise from its last checkpoint, and training continues
    where it ended.
    """

    path: Path
    result: Result
    weights_only: bool

    @property
    def steps(self) -> int:
        """Steps that led to its last checkpoint, those of its own parents included."""
        return self.result.steps_before + self.result.steps


def open_parent(parent: Input | None, path: Path | None, *, weights_only: bool) -> Parent | None:
    """Open the parent run of a plan, if it has one. Raises BadData if that run is gone."""
    if parent is None:
        return None
    if path is None:
        raise BadData(
            f"{parent.name}: the parent run is gone", hint="train from the start under another name, with --name"
        )
    return Parent(path, read_result(path), weights_only)


def load_parent(learner: Learner, parent: Parent, report: Report) -> None:
    """Load the best weights of a parent run, or its last checkpoint. Raises BadData if it is damaged."""
    checkpoints = parent.path / CHECKPOINTS
    run = f"{parent.path.parent.name}/{parent.path.name}"
    try:
        if parent.weights_only:
            weights = checkpoint.read_weights(checkpoints / parent.result.best)
            learner.load(CheckpointTensors(_cut_positions(weights, learner.model.config.block_size), {}))
        else:
            learner.load(checkpoint.read(checkpoints / parent.result.last))
    except BadData as error:
        hint = f"`rollback runs/{parent.path.parent.name}` returns to the run before"
        raise BadData(error.message, hint=hint) from None
    if parent.weights_only:
        report(f"starting from the weights of {run}")
    else:
        report(f"continues from step {parent.steps:,} of runs/{run}")


def _cut_positions(weights: dict[str, Tensor], block_size: int) -> dict[str, Tensor]:
    """Fit the weights to a shorter block, by cutting the learned positions beyond it."""
    return {name: weight[:block_size] if name == "position.weight" else weight for name, weight in weights.items()}


def count_tokens(store: TokenStore, vocab_size: int) -> Tensor:
    """Count each id (V,) in the training split, or in its first 2**24 tokens."""
    ids = store.train.read(0, min(len(store.train), _MAX_COUNTED))
    return torch.from_numpy(np.bincount(ids, minlength=vocab_size))
