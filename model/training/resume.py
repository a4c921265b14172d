"""Initial weights of a training that has no checkpoint yet: from a parent run, or from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.config import GPTConfig
from model.network.gpt import GPT, VOCABULARY_TABLES
from model.network.ngrams import MAX_TOKENS, NGrams
from model.runs import checkpoint
from model.runs.checkpoint import CheckpointTensors
from model.runs.plan import TrainPlan
from model.runs.run import CHECKPOINTS, Report, Result, read_result
from model.runs.tuning import parent_of
from model.training.checkpointer import read_on_main
from model.training.distributed import World
from model.training.learner import Learner
from pipeline.errors import BadData
from pipeline.store import artifact
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
        """Steps up to its last checkpoint, including the steps of its parents."""
        return self.result.steps_before + self.result.steps


def open_parent(plan: TrainPlan) -> Parent | None:
    """Open the parent run of a plan, if it has one. Raises BadData if that run is gone."""
    if plan.parent is None:
        return None
    if plan.parent_path is None:
        raise BadData(
            f"{plan.parent.name}: the parent run is gone", hint="train from the start under another name, with --name"
        )
    return Parent(plan.parent_path, read_result(plan.parent_path), plan.weights_only)


def load_parent(learner: Learner, parent: Parent, report: Report) -> None:
    """Load the best weights of a parent run, or its last checkpoint, which the main process reads.

    Raises BadData if it is damaged.
    """
    run = f"{parent.path.parent.name}/{parent.path.name}"
    config = learner.model.config
    if loaded := read_on_main(learner.world, lambda: ("", _read(parent, config))):
        learner.load(loaded[1])
    if parent.weights_only:
        report(f"starting from the weights of {run}")
    else:
        report(f"continues from step {parent.steps:,} of runs/{run}")


def load_reference(plan: TrainPlan, device: torch.device, world: World) -> GPT:
    """Load the frozen reference network of a tuning by preferences: the best weights of the run that it tunes.

    A run that continues a tuned run has the same reference. Raises BadData if it is gone or damaged.
    """

    def read() -> tuple[str, CheckpointTensors]:
        assert plan.parent_path, "a tuning has a parent"
        path, is_reference = plan.parent_path, plan.weights_only
        while not is_reference:
            run = artifact.read(path)
            path, is_reference = parent_of(run), "afresh" in run.manifest.options
        return "", _read(Parent(path, read_result(path), weights_only=True), plan.preset.model)

    loaded = read_on_main(world, read)
    assert loaded, "the main process read it"
    model = GPT.empty(plan.preset.model, device)
    model.load_state_dict(loaded[1].weights)
    return model


def _read(parent: Parent, model: GPTConfig) -> CheckpointTensors:
    checkpoints = parent.path / CHECKPOINTS
    try:
        if not parent.weights_only:
            return checkpoint.read(checkpoints / parent.result.last)
        weights = checkpoint.read_weights(checkpoints / parent.result.best)
        vocab_size = checkpoint.read_state(checkpoints / parent.result.best).model.vocab_size
        weights = grow_vocabulary(_cut_positions(weights, model.block_size), model.vocab_size - vocab_size)
        return CheckpointTensors(weights, {})
    except BadData as error:
        hint = f"`rollback runs/{parent.path.parent.name}` returns to the run before"
        raise BadData(error.message, hint=hint) from None


def _cut_positions(weights: dict[str, Tensor], block_size: int) -> dict[str, Tensor]:
    """Fit the weights to a shorter block, by cutting the learned positions beyond it."""
    return {name: weight[:block_size] if name == "position.weight" else weight for name, weight in weights.items()}


def grow_vocabulary(weights: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Add `count` rows to the tables of the vocabulary, such as the embedding; each is the mean of a table's rows."""

    def grown(name: str, weight: Tensor) -> Tensor:
        if name not in VOCABULARY_TABLES:
            return weight
        mean = weight.double().mean(0, keepdim=True).to(weight.dtype)
        return torch.cat([weight, *[mean] * count])

    return {name: grown(name, weight) for name, weight in weights.items()}


def count_tokens(store: TokenStore, vocab_size: int) -> Tensor:
    """Count each id (V,) in the training split, or in its first 2**24 tokens."""
    ids = store.train.read(0, min(len(store.train), _MAX_COUNTED))
    return torch.from_numpy(np.bincount(ids, minlength=vocab_size))


def count_ngrams(store: TokenStore, model: GPTConfig, report: Report) -> NGrams | None:
    """Count the n-grams of the training split, or of its first 2**22 tokens, if the network is mixed with them."""
    if not model.ngram:
        return None
    size = len(store.train)
    if size > MAX_TOKENS:
        report(f"n-grams are counted in the first {MAX_TOKENS:,} of {size:,} training tokens")
    return NGrams(store.train.read(0, min(size, MAX_TOKENS)), model.vocab_size, model.ngram)
