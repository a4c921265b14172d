"""The planned memory is that of the operations: they run on tensors without data, and their storages are counted."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import presets
from model.config import GPTConfig, TrainConfig
from model.device import ExecutionConfig
from model.network import cross_entropy
from model.network.gpt import GPT
from model.training import estimate, evaluate
from model.training.distributed import World
from model.training.evaluate import ValidationSet
from model.training.learner import Learner

CPU = torch.device("cpu")


class Storages(TorchDispatchMode):
    """Bytes of the storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._alive = set[int]()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.bytes -= size

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


class _FusedNorm(torch.autograd.Function):
    """The memory of CUDA's RMSNorm: in fp32 under autocast, it keeps its input for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.empty_like(x)


def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the network on a CPU use the memory that it uses on CUDA."""

    def in_fp32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def apply(x: Tensor, *arguments: Any) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return norm(x.float(), *arguments)

        return apply

    apply: Callable[[Tensor], Tensor] = _FusedNorm.apply
    monkeypatch.setattr(F, "rms_norm", in_fp32(lambda x, *arguments: apply(x)))
    monkeypatch.setattr(F, "layer_norm", in_fp32(F.layer_norm))
    monkeypatch.setattr(GPT, "to", lambda network, device: network)  # weights without data cannot move
    monkeypatch.setitem(cross_entropy._CHUNK_LOGITS, "cpu", cross_entropy._CHUNK_LOGITS["cuda"])


def traced_peak(model: GPTConfig, config: TrainConfig, precision: str, micro_batch: int) -> int:
    """Return the bytes of a pass after the first one, with weights and gradients, without the optimizer's moments."""
    with FakeTensorMode(allow_non_fake_inputs=True), Storages() as storages:
        execution = ExecutionConfig(precision, compiled=False, micro_batch=micro_batch)
        network = Learner(model, config, CPU, execution, micro_batch, World())
        for weight in network.model.parameters():
            storages.add(weight)
        ids = torch.zeros(micro_batch, model.block_size + 1, dtype=torch.int64)
        for _ in range(2):
            network.backward(ids, 1.0, 0)
        return storages.peak


@pytest.mark.parametrize("micro_batch", [4, 16])
@pytest.mark.parametrize("preset_name", ["gpt2-124m", "fast-124m"])
def test_planned_memory_on_cuda_is_within_15_percent_of_the_traced_peak(
    preset_name: str, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of logits and copies in bfloat16 are counted."""
    as_on_cuda(monkeypatch)
    preset = presets.get_preset(preset_name)
    model = replace(preset.model, attention_dropout=0.0)  # with it, a CPU computes all attention weights
    weights_and_gradients = 8 * model.parameters
    moments = estimate.weight_bytes(model, preset.train) - weights_and_gradients
    peak = traced_peak(model, preset.train, "bf16", micro_batch) + moments
    planned = estimate.needed_bytes(model, preset.train, "bf16", micro_batch, kind="cuda")
    assert planned == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("preset_name", ["gpt2-124m", "fast-124m", "shuihu-fast", "small"])
def test_evaluation_on_cuda_needs_no_more_memory_than_a_step(preset_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Than one of a single sequence, or 0.7 GB: so a training that fits into a nearly full GPU is also evaluated."""
    as_on_cuda(monkeypatch)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *arguments, **options: torch.empty_like(q))
    monkeypatch.setitem(evaluate._BATCH_VALUES, "cpu", evaluate._BATCH_VALUES["cuda"])
    monkeypatch.setattr(evaluate._Sums, "add", lambda sums, spans, losses: None)
    monkeypatch.setattr(evaluate._Sums, "totals", lambda sums, world: (1.0, None, None))
    preset = presets.get_preset(preset_name)
    model = replace(preset.model, vocab_size=preset.model.vocab_size or 8000)
    weights = 4 * model.parameters
    step = estimate.needed_bytes(model, preset.train, "bf16", 1, kind="cuda")
    moments = estimate.weight_bytes(model, preset.train) - 2 * weights
    validation = ValidationSet(np.zeros(1 << 16, np.int64), 1, 1)
    with FakeTensorMode(allow_non_fake_inputs=True), Storages() as storages:
        evaluate.evaluate(GPT(model), validation, CPU, "bf16")
    assert moments + storages.peak <= max(step, moments + weights + 700_000_000)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("preset_name", ["shuihu-fast", "qwen-8m"])
def test_planned_memory_on_a_cpu_is_within_a_quarter_of_the_traced_peak(
    preset_name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 attention keeps its probabilities."""
    monkeypatch.setattr(GPT, "to", lambda network, device: network)
    preset = presets.get_preset(preset_name)
    model = replace(preset.model, vocab_size=4000)
    moments = estimate.weight_bytes(model, preset.train) - 8 * model.parameters
    peak = traced_peak(model, preset.train, precision, 16) + moments
    assert estimate.needed_bytes(model, preset.train, precision, 16) == pytest.approx(peak, rel=0.25)


def test_tokens_on_the_device_are_planned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of tokens takes memory from the micro-batch."""
    model, config = replace(presets.get_preset("babygpt").model, vocab_size=1000), TrainConfig(precision="fp32")
    free = int(estimate.needed_bytes(model, config, "fp32", 8) / 0.85) + (1 << 10)
    monkeypatch.setattr("model.device.free_memory", lambda device: free)
    sizes = [
        estimate.choose_together(model, config, 16, CPU, World(), store_bytes).execution.micro_batch
        for store_bytes in (0, 1 << 20)
    ]
    assert sizes == [8, 4]
