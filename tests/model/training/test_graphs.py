"""The compiled network is one graph, which is compiled once and computes what the eager network computes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.config import GPTConfig, TrainConfig
from model.device import ExecutionConfig
from model.presets import PRESETS
from model.training.distributed import World
from model.training.learner import Learner

CPU = torch.device("cpu")
END, STEPS, ROWS = 0, 5, 4
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recompute": {"recompute": True},
    "document mask": {"document_mask": True},
    "bigrams": {"bigrams": 64},
}


@pytest.fixture(autouse=True)
def graphs_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace forward and backward pass as for a compiler, and run the operations of the graphs one by one."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    yield
    torch._dynamo.reset()


def reduced(model: GPTConfig) -> GPTConfig:
    """Return a small network with the parts of `model`; those of values need a second block."""
    size = {"vocab_size": 64, "block_size": 16, "heads": 2, "width": 32, "hidden": 0, "tied": True}
    dropouts = {"dropout": 0.1, "attention_dropout": 0.1 if model.attention_dropout else 0.0}
    layers = min(model.layers, 1 + model.values)
    return replace(model, **size, **dropouts, layers=layers, kv_heads=1 if model.kv_heads else 0)  # type: ignore[arg-type]


NETWORKS = {reduced(preset.model): name for name, preset in PRESETS.items()}  # presets of the same parts only once


def learner(model: GPTConfig, variant: str, *, compiled: bool) -> Learner:
    settings = dict(VARIANTS[variant])
    model = replace(model, bigrams=settings.pop("bigrams", 0))
    execution = ExecutionConfig("bf16", compiled, ROWS // 2)
    built = Learner(model, TrainConfig(batch_size=ROWS, **settings), CPU, execution, ROWS, World())
    built.initialise()
    return built


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model", NETWORKS, ids=NETWORKS.get)
def test_steps_are_one_graph_and_equal_eager_steps(model: GPTConfig, variant: str) -> None:
    """With dropout, which draws the same numbers."""
    ids = torch.randint(0, 64, (STEPS, ROWS, 17), generator=torch.Generator().manual_seed(5))
    losses = {}
    for compiled in (False, True):
        steps = learner(model, variant, compiled=compiled)
        losses[compiled] = [float(steps.step(batch, step, step, END).loss) for step, batch in enumerate(ids)]
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert losses[True] == pytest.approx(losses[False], abs=2e-3)
