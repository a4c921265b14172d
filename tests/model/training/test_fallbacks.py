"""What the user named and the machine lacks is refused before work begins; what was left to the program falls back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import InvalidCxxCompiler

from model import device as devices
from model.config import GPTConfig, TrainConfig
from model.device import ExecutionConfig
from model.network.gpt import GPT
from model.training import distributed, estimate, trial
from model.training.distributed import World
from model.training.learner import Learner
from pipeline.errors import BadConfig

CPU = torch.device("cpu")
MODEL = GPTConfig(vocab_size=16, block_size=8, layers=1, heads=1, width=8)


def learner(*, compiled: bool = False, **settings: Any) -> Learner:
    network = Learner(MODEL, TrainConfig(**settings), CPU, ExecutionConfig("fp32", False, 8), 8, World())
    network.initialise()
    network.execution = ExecutionConfig("fp32", compiled, 8)  # nothing is compiled: that takes 9 seconds
    return network


def load(rows: int) -> Tensor:
    """Return ids of that many sequences, as if there were memory for two."""
    if rows > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return torch.zeros(rows, MODEL.block_size + 1, dtype=torch.int64)


def test_automatic_micro_batch_is_halved_until_it_fits() -> None:
    small, lines = learner(), list[str]()
    assert trial.measure_step(small, load, 0, lines.append)[0] > 0
    assert small.execution.micro_batch == 2
    assert [line.rpartition(" ")[2] for line in lines] == ["4", "2"]


def test_named_micro_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadConfig, match="8 sequences at once do not fit") as caught:
        trial.measure_step(learner(micro_batch=8), load, 0, print)
    assert "--set micro_batch=4" in caught.value.hint


def test_network_that_cannot_be_compiled_runs_without_unless_that_was_named() -> None:
    def load_for(network: Learner) -> Callable[[int], Tensor]:
        def load_or_fail(rows: int) -> Tensor:
            if network.execution.compiled:
                raise InvalidCxxCompiler
            return load(2)

        return load_or_fail

    lines: list[str] = []
    eager, named = learner(compiled=True), learner(compiled=True, compile="yes")
    trial.measure_step(eager, load_for(eager), 0, lines.append)
    assert not eager.execution.compiled
    assert len(lines) == 2
    assert lines[0].startswith("compiling the network")
    assert "without torch.compile" in lines[1]
    with pytest.raises(BadConfig, match="compile=yes, and the network cannot be compiled: No working C"):
        trial.measure_step(named, load_for(named), 0, print)


def test_compiling_without_a_compiler_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CXX", "none")
    with pytest.raises(BadConfig, match="found none"):
        estimate.choose_execution(MODEL, TrainConfig(compile="yes", precision="fp32"), 8, CPU)
    assert not devices.should_compile(torch.device("cuda"), "auto")


def test_batch_beyond_the_memory_of_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.device.free_memory", lambda device: 1 << 20)
    sequences = int(0.85 * (1 << 20)) // (16 * 9)
    with pytest.raises(BadConfig, match=r"a batch of 1,000,000,000 sequences needs 144\.0 GB") as caught:
        estimate.choose_execution(MODEL, TrainConfig(precision="fp32"), 10**9, CPU)
    assert f"{sequences:,} at most" in caught.value.hint
    assert estimate.choose_execution(MODEL, TrainConfig(precision="fp32"), sequences, CPU).execution.micro_batch >= 1


def test_compiled_network_on_a_cpu_is_deterministic() -> None:
    """Otherwise Inductor sums the gradient of the embedding by atomics of several threads."""
    network = learner()
    for is_compiled in (True, False):
        network.use(ExecutionConfig("fp32", is_compiled, 8))
        assert torch.are_deterministic_algorithms_enabled() == is_compiled


def test_shards_are_on_the_device_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default torch would take GPUs, where there are any, for `--device cpu` too."""
    meshes: list[object] = []
    monkeypatch.setattr(distributed, "init_device_mesh", lambda kind, shape: (kind, shape))
    monkeypatch.setattr(distributed, "fully_shard", lambda module, mesh=None: meshes.append(mesh))
    distributed.wrap(GPT(MODEL), World(0, 2), "fsdp")
    assert meshes == [("cpu", (2,))] * 2  # of a block, and of the rest
