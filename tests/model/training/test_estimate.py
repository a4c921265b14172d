"""Estimates before a training: memory, and the refusal of models that do not fit, with a size that would."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import presets
from model.config import GPTConfig, Preset, TrainConfig, override
from model.device import ExecutionConfig
from model.training import estimate
from pipeline.errors import BadConfig
from tests.support.faults import ROOT, assert_one_error, skip
from tests.support.training import no_loss_curve, preloaded, train

__all__ = ["no_loss_curve", "preloaded"]  # fixtures

CPU = torch.device("cpu")
LARGE: dict[str, Any] = {"layers": 48, "width": 4096, "heads": 32, "block_size": 1024, "vocab_size": 50_000}


@pytest.mark.parametrize(
    ("epochs", "dropout", "text"),
    [
        (1.0, 0.0, ""),
        (5.0, 0.1, ""),
        (5.0, 0.0, "5.0 epochs with dropout 0 may overfit: try --set dropout=0.1"),
        (12.5, 0.1, ""),
        (24.0, 0.1, "24.0 epochs with dropout 0.1 may overfit: try --set dropout=0.2"),
        (100.0, 0.3, "100 epochs: beyond 60, the validation loss of a short text only rises"),
    ],
)
def test_many_epochs_with_little_dropout_are_a_risk(epochs: float, dropout: float, text: str) -> None:
    assert estimate.overfitting_risk(GPTConfig(dropout=dropout), epochs) == text


def test_plan_has_the_epochs_that_end_the_training_before_its_minutes() -> None:
    """1,000 tokens in steps of 100 that take a second."""
    preset = Preset("gpt2", "", GPTConfig(10, 10, 1, 1, 4), TrainConfig(batch_size=10, minutes=1.0, epochs=4.0))
    plan = estimate.ExecutionPlan(ExecutionConfig("fp32", compiled=False, micro_batch=1), 0, 0)
    lines = [estimate.plan_lines("", preset, tokens, plan, plan.execution, CPU, 1.0)[3] for tokens in (1_000, 2_000)]
    assert lines[0].startswith("schedule  4 epochs, about 40 steps, 40 s, 4.0 epochs")
    assert lines[1].startswith("schedule  1 minute, about 60 steps, 3.0 epochs")
    slow = estimate.plan_lines("", preset, 1_000, plan, plan.execution, CPU, 90.0, compiling=61.0)[3]
    assert ", about 1 step, 0.1 epochs" in slow


def never(*arguments: object, **options: object) -> None:
    raise AssertionError("something was allocated")


def test_model_that_does_not_fit_is_refused_before_allocation(root: Path) -> None:
    constants: dict[str, object] = {
        "model.device.free_memory": lambda device: 8 << 30,
        "model.network.gpt.GPT.__init__": never,
        "model.training.dataloader.Loader.__init__": never,
    }
    refused = train(root, constants=constants, **LARGE)
    assert_one_error(refused, 78, ["9,874.6M parameters", "GB", "would fit"])
    assert not list(root.glob("runs/*/.draft-*"))


@pytest.mark.parametrize("free", [16 << 30, 8 << 30, 1 << 30])
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (GPTConfig(**LARGE), {}),
        (GPTConfig(**{**LARGE, "hidden": 65_536}), {"optimizer": "muon", "ema": 0.9}),
        (presets.get_preset("2b").model, {"recompute": True}),
        (GPTConfig(**{**LARGE, "activation": "swiglu", "positions": "rotary", "kv_heads": 8}), {"document_mask": True}),
    ],
)
def test_suggested_size_fits_and_a_larger_one_does_not(
    monkeypatch: pytest.MonkeyPatch, model: GPTConfig, settings: dict[str, Any], free: int
) -> None:
    """Checked with the same formula."""
    monkeypatch.setattr("model.device.free_memory", lambda device: free)
    training = TrainConfig(precision="fp32", **settings)
    with pytest.raises(BadConfig) as caught:
        estimate.choose_execution(model, training, training.batch_size, CPU)
    suggested = re.findall(r"--set (\w+)=(\d+)", caught.value.hint)
    if not suggested:
        assert "smaller vocabulary" in caught.value.hint
        return
    smaller = override(Preset("fast", "", model, training), dict(suggested))
    plan = estimate.choose_execution(smaller.model, training, training.batch_size, CPU)
    assert plan.bytes <= free * 0.85
    assert plan.execution.micro_batch >= 1
    if "width" not in dict(suggested):
        with pytest.raises(BadConfig):
            estimate.choose_execution(
                replace(model, layers=smaller.model.layers + 1), training, training.batch_size, CPU
            )


def test_too_large_micro_batch_is_refused_with_the_largest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.device.free_memory", lambda device: 1 << 30)
    model, training = presets.get_preset("babygpt").model, TrainConfig(batch_size=64, micro_batch=64, precision="fp32")
    model = replace(model, vocab_size=1000)
    with pytest.raises(BadConfig, match="micro-batch of 64 sequences") as caught:
        estimate.choose_execution(model, training, 64, CPU)
    (count,) = re.findall(r"micro_batch=(\d+)", caught.value.hint)
    assert estimate.choose_execution(
        model, replace(training, micro_batch=int(count)), 64, CPU
    ).execution.micro_batch == int(count)
    with pytest.raises(BadConfig):
        estimate.choose_execution(model, replace(training, micro_batch=int(count) + 1), 64, CPU)


def test_processes_share_memory_and_fsdp_shards_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPTConfig(vocab_size=1000, layers=12, width=768, heads=12)
    ddp_bytes, fsdp_bytes = (
        estimate.needed_bytes(model, TrainConfig(parallel=parallel), "fp32", 1, 4) for parallel in ("ddp", "fsdp")
    )
    assert ddp_bytes - fsdp_bytes == pytest.approx(estimate.weight_bytes(model, TrainConfig()) * 3 / 4)
    monkeypatch.setattr("model.device.free_memory", lambda device: 2 * ddp_bytes)
    training = TrainConfig(batch_size=4, precision="fp32")
    estimate.choose_execution(model, training, 4, CPU)
    with pytest.raises(BadConfig):
        estimate.choose_execution(model, training, 1, CPU, processes=4)


_MEASURED = """
import ctypes, gc, json, sys
from dataclasses import replace
import torch
torch.set_num_threads(1)
from model.training import estimate
from model.training.dataloader import to_device
from model.config import GPTConfig, TrainConfig
from model.training.distributed import World
from model.training.learner import Learner
import numpy as np

def memory(kind):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(kind))

def train(model, settings, steps=2):
    config = TrainConfig(precision="fp32", **settings)
    plan = estimate.choose_execution(model, config, config.batch_size, torch.device("cpu"))
    learner = Learner(model, config, torch.device("cpu"), plan.execution, config.batch_size, World())
    learner.initialise()
    ids = np.zeros((config.batch_size, model.block_size + 1), np.uint16)
    for step in range(steps):
        learner.step(to_device(ids, torch.device("cpu")), step, step, 0)
    return plan.bytes

for model, settings in json.loads(sys.argv[1]):
    train(GPTConfig(vocab_size=10, block_size=4, layers=1, heads=1, width=8), {**settings, "batch_size": 1})
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # so that no memory of the case before is reused
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    estimated = train(GPTConfig(**model), settings)
    print(json.dumps([estimated, memory("VmHWM") - before]))
"""


def test_estimated_memory_is_within_a_factor_of_two_of_the_peak() -> None:
    """Measured in another process, by the growth of its peak."""
    if not Path("/proc/self/clear_refs").exists():
        skip("the peak of a process's memory cannot be read here")
    narrow = {"vocab_size": 2000, "block_size": 256, "layers": 4, "heads": 4, "width": 256, "dropout": 0.1}
    wide = {"vocab_size": 8000, "block_size": 64, "layers": 6, "heads": 8, "width": 384}
    cases = [
        (narrow, {"batch_size": 8, "micro_batch": 8}),
        (wide, {"batch_size": 2, "optimizer": "muon", "ema": 0.9}),
    ]
    process = subprocess.run(
        [sys.executable, "-c", _MEASURED, json.dumps(cases)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    for line in process.stdout.splitlines():
        estimated, measured = json.loads(line)
        assert estimated / 2 <= measured <= estimated * 2, (
            f"{estimated / 1e6:.0f} MB estimated, {measured / 1e6:.0f} MB measured"
        )
    assert len(process.stdout.splitlines()) == 2
