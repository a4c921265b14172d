"""Where a training begins: at its newest checkpoint, with what an earlier run ended with, or with new weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.runs import checkpoint
from model.runs.checkpoint import Saved, State
from model.runs.plan import Plan
from model.runs.run import CHECKPOINTS, Report, Result, read_result
from model.training.distributed import World
from model.training.learner import Learner
from pipeline.errors import BadData
from pipeline.store import artifact
from pipeline.tokens.store import TokenStore

QUARANTINE = "quarantine"  # below the draft's scratch
_COUNTED = 1 << 24  # tokens


def newest(folder: Path, planned: Plan, world: World, report: Report) -> tuple[State, Saved] | None:
    """The newest checkpoint in the draft of a run that is whole, the same for all processes."""
    found = None
    if world.leads:
        quarantine, preset = folder / artifact.SCRATCH / QUARANTINE, planned.preset
        found = checkpoint.newest(folder / CHECKPOINTS, preset.model, preset.train, quarantine, report)
    return world.tell(found)


def counts(planned: Plan, store: TokenStore) -> Tensor | None:
    """How often each id (V,) is in the training text, or in as much of it as is counted in a second; None where no
    head's bias begins with it."""
    if not planned.preset.model.head_bias:
        return None
    ids = store.train.read(0, min(len(store.train), _COUNTED))
    return torch.from_numpy(np.bincount(ids, minlength=planned.preset.model.vocab_size))


def parent(planned: Plan) -> Result | None:
    """The run that this one goes on from. Raises BadData where it is gone."""
    if planned.parent is None:
        return None
    if planned.parent_path is None:
        raise BadData(
            f"{planned.parent.name}: the run to go on from is gone",
            hint="train anew under another name, with --name",
        )
    return read_result(planned.parent_path)


def inherit(learner: Learner, planned: Plan, earlier: Result, report: Report) -> None:
    """Begin with the weights and the moments that the earlier run ended with; or, afresh, with its best weights."""
    path = planned.parent_path
    assert path
    try:
        if planned.afresh:
            weights = checkpoint.read_weights(path / CHECKPOINTS / earlier.best)
            learner.load(Saved(_fitted(weights, planned.preset.model.block_size), {}))
        else:
            learner.load(checkpoint.read(path / CHECKPOINTS / earlier.last))
    except BadData as error:
        hint = f"`rollback runs/{path.parent.name}` goes on from the run before"
        raise BadData(error.what, hint=hint) from None
    run = f"{path.parent.name}/{path.name}"
    if planned.afresh:
        report(f"beginning with the weights of {run}")
    else:
        report(f"going on from the weights of {run}, after {earlier.steps:,} steps")


def _fitted(weights: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """The weights of a network with a longer block, without the positions that one of this size does not have."""
    return {name: each[:size] if name == "position.weight" else each for name, each in weights.items()}
