"""Training on a GPU: what can be checked without one, on a fake `torch.cuda`, and what needs one."""

from __future__ import annotations

import os
import re
import signal
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from model import device as devices
from model.commands import doctor
from model.config import GPTConfig, TrainConfig, identity
from model.device import ExecutionConfig
from model.runs import checkpoint
from model.runs.checkpoint import TrainState
from model.training import dataloader, distributed, estimate
from model.training.dataloader import Loader
from model.training.distributed import World
from model.training.estimate import ExecutionPlan
from model.training.learner import Learner
from pipeline.errors import BadConfig
from tests.support.faults import ROOT
from tests.support.training import STEP, before_call, current_run, metric_rows, no_loss_curve, preloaded, send, train

__all__ = ["no_loss_curve", "preloaded"]  # fixtures

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MODEL = GPTConfig(vocab_size=16, block_size=8, layers=1, heads=1, width=8)
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def use_gpu(monkeypatch: pytest.MonkeyPatch, name: str = "NVIDIA H100 80GB HBM3", **functions: object) -> None:
    """Let torch report one GPU; `functions` replace others of torch.cuda."""
    devices._has_fast_bfloat16.cache_clear()
    defaults: dict[str, object] = {
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (8 << 30, 16 << 30),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
    }
    for function, fake in (defaults | functions).items():
        monkeypatch.setattr(torch.cuda, function, fake)


def small_learner(micro_batch: int = 8, **settings: Any) -> Learner:
    config = TrainConfig(batch_size=8, precision="fp32", **settings)
    learner = Learner(MODEL, config, CPU, ExecutionConfig("fp32", False, micro_batch), 8, World())
    learner.initialise()
    return learner


def ids(rows: int = 8) -> torch.Tensor:
    return torch.zeros(rows, MODEL.block_size + 1, dtype=torch.int64)


# A1, A2: what is silently wrong


def test_only_copies_to_cuda_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A1: MPS reads pageable memory after it was freed."""
    waits: dict[str, bool] = {}
    for kind in ("cuda", "mps"):
        tensor = SimpleNamespace(to=lambda device, non_blocking: waits.update({device.type: not non_blocking}))
        dataloader._send(tensor, torch.device(kind))  # type: ignore[arg-type]
    assert waits == {"cuda": False, "mps": True}
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "model").rglob("*.py")]
    assert sum(source.count("non_blocking") for source in sources) == 1


def test_the_model_adds_nothing_by_atomics() -> None:
    """A2: their order, and so the rounding, differs from run to run on a GPU."""
    atomic = re.compile(r"index_add|scatter_add|scatter_reduce|index_put|bincount\(.*weights")
    assert [path for path in (ROOT / "model").rglob("*.py") if atomic.search(path.read_text(encoding="utf-8"))] == []


def test_deterministic_setting_reaches_torch_and_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A2."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    plan = estimate.choose_execution(MODEL, TrainConfig(deterministic=True, precision="fp32"), 8, CPU)
    assert plan.execution.deterministic
    state = TrainState(1, 1.0, None, MODEL, TrainConfig(deterministic=True), plan.execution)
    assert msgspec.json.decode(msgspec.json.encode(state), type=TrainState).execution.deterministic
    try:
        devices.set_deterministic(True)
        import torch._inductor.config as inductor

        assert torch.are_deterministic_algorithms_enabled()
        assert inductor.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        devices.set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not inductor.deterministic


def test_operation_without_a_deterministic_form_is_a_sentence() -> None:
    """A2."""
    learner = small_learner(deterministic=True)
    learner.execution = replace(learner.execution, deterministic=True)
    error = RuntimeError("efficient_attention_backward does not have a deterministic implementation, but you set …")
    with pytest.raises(BadConfig, match="deterministic=true: efficient_attention_backward"):
        estimate.fall_back(learner, error, print)


def test_default_of_the_new_setting_is_not_in_the_key_nor_in_a_comparison(root: Path) -> None:
    """A run that was begun before the setting existed resumes."""
    assert "deterministic" not in identity(TrainConfig())
    assert identity(TrainConfig(deterministic=True))["deterministic"] is True
    assert train(root, constants={STEP: before_call(7, Learner.step, send(signal.SIGTERM))}).code == 75
    for path in root.glob("runs/*/.draft-*/checkpoints/*/state.json"):
        fields = msgspec.json.decode(path.read_bytes())
        for section, name in ((fields["train"], "deterministic"), (fields["execution"], "deterministic")):
            assert section.pop(name) is False
        assert fields.pop("device") == "cpu"
        del fields[checkpoint._SEAL]
        path.write_bytes(msgspec.json.encode({**fields, checkpoint._SEAL: checkpoint._seal(fields)}))
    resumed = train(root)
    assert resumed.code == 0, resumed.err
    assert "resuming from step 7 " in resumed.err
    assert "chosen again" not in resumed.err
    assert "unchanged" in train(root).out


# A3, A7: compiling


class Compiler:
    """Passes that take `seconds`, by whether the network is compiled, and the calls of `use`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, learner: Learner, eager: float, compiled: float | None) -> None:
        self.attempts = 0

        def seconds(learner: Learner, ids: torch.Tensor, eos: int) -> float:
            if not learner.execution.compiled:
                return eager
            self.attempts += 1
            if compiled is None:
                raise torch._dynamo.exc.BackendCompilerFailed("inductor", RuntimeError("no Python.h"), None)
            return compiled

        def use(execution: ExecutionConfig) -> None:
            learner.execution = execution

        monkeypatch.setattr(estimate, "_seconds", seconds)
        monkeypatch.setattr(learner, "use", use)


@pytest.mark.parametrize(
    ("steps", "compiled_seconds", "is_compiled", "attempts", "line"),
    [
        (100, 0.5, False, 0, ""),  # 100 s without compiling
        (1000, 0.5, True, 1, ""),
        (1000, 1.5, False, 1, "with which a trial pass takes longer"),
        (1000, None, False, 1, "cannot be compiled"),
    ],
)
def test_network_is_compiled_only_where_that_pays(
    steps: int,
    compiled_seconds: float | None,
    is_compiled: bool,
    attempts: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A3, A7: eager passes take one second."""
    learner, lines = small_learner(steps=steps), list[str]()
    compiler = Compiler(monkeypatch, learner, 1.0, compiled_seconds)
    seconds = estimate.measure_step(learner, ids, 0, lines.append, compiles=True)
    assert learner.execution.compiled == is_compiled
    assert compiler.attempts == attempts
    assert seconds == (compiled_seconds if is_compiled else 1.0)
    assert [text for text in lines if line in text] == lines
    assert len(lines) == bool(line)


# A4 to A6: memory


def test_later_step_without_memory_is_repeated_with_half_the_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A4."""
    learner, reference, lines = small_learner(), small_learner(), list[str]()
    backward = learner.backward

    def limited(rows: torch.Tensor, fraction: float, eos: int) -> torch.Tensor:
        if len(rows) > 2:
            backward(rows, fraction, eos)  # leaves a gradient, which the repetition must not add to
            raise OUT_OF_MEMORY
        return backward(rows, fraction, eos)

    monkeypatch.setattr(learner, "backward", limited)
    batch = torch.arange(8 * 9).reshape(8, 9) % 16
    estimate.retried(learner, lambda: learner.step(batch, 1, 0, 0), lines.append)
    reference.step(batch, 1, 0, 0)
    assert learner.execution.micro_batch == 2
    assert [line.rpartition(" ")[2] for line in lines] == ["4", "2"]
    for name, weight in reference.weights.items():
        torch.testing.assert_close(learner.weights[name], weight, atol=1e-6, rtol=0)


def test_run_out_of_memory_at_a_later_step_ends_well_or_names_the_setting(root: Path) -> None:
    """A4: never as a bug of this program."""
    constants = {"model.training.learner.Learner.backward": scarce_from_step(5)}
    result = train(root, constants=constants)
    assert result.code == 0, result.err
    assert "16 sequences at once do not fit into the memory of cpu: trying 8" in result.err
    assert len(metric_rows(current_run(root))) >= 2
    full = train(root, constants={"model.training.learner.Learner.initialise": fail_to_allocate}, seed=3)
    assert full.code == 78, full.err
    named = train(root, constants=constants, micro_batch=16, seed=2)
    assert named.code == 78, named.err
    assert "--set micro_batch=8" in named.err


def fail_to_allocate(*arguments: object) -> None:
    raise OUT_OF_MEMORY


def scarce_from_step(number: int) -> object:
    """Return `Learner.backward` with memory for eight sequences from that step on."""
    calls, backward = iter(range(number + 3)), Learner.backward  # after the trial passes

    def limited(self: Learner, rows: torch.Tensor, fraction: float, eos: int) -> torch.Tensor:
        if next(calls, None) is None and len(rows) > 8:
            raise OUT_OF_MEMORY
        return backward(self, rows, fraction, eos)

    return limited


def test_optimizer_without_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A4: a smaller micro-batch would not help, and some weights may be updated already."""
    learner = small_learner()
    monkeypatch.setattr(learner.optimizers[0], "step", fail_to_allocate)
    with pytest.raises(BadConfig, match="does not fit into the memory"):
        estimate.retried(learner, lambda: learner.step(ids(), 1, 0, 0), print)


def test_memory_that_the_allocator_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A6."""
    use_gpu(
        monkeypatch,
        mem_get_info=lambda device: (1 << 20, 16 << 30),
        memory_reserved=lambda device: 9 << 30,
        memory_allocated=lambda device: 4 << 30,
    )
    assert devices.free_memory(CUDA) == (5 << 30) + (1 << 20)


@pytest.mark.parametrize("failure", [OUT_OF_MEMORY, MemoryError(), KeyError("x")])
def test_sample_that_fails_does_not_end_the_training(failure: Exception, root: Path) -> None:
    """A6."""

    def fail(*arguments: object) -> None:
        raise failure

    result = train(root, constants={"model.generation.engine.Engine.step": fail})
    assert result.code == 0, result.err


def test_sample_without_free_memory_does_not_end_the_training(root: Path) -> None:
    """A6."""
    result = train(root, constants={"model.generation.engine.free_memory": lambda device: 1000})
    assert result.code == 0, result.err


# A8: another device


def test_run_resumed_on_another_device_chooses_its_execution_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A8."""
    use_gpu(monkeypatch)
    on_cpu = TrainState(5, 1.0, None, MODEL, TrainConfig(), ExecutionConfig("fp32", False, 1), device="cpu")
    plan, lines = ExecutionPlan(ExecutionConfig("bf16", True, 16), 0, 1 << 40), list[str]()
    execution = estimate.resumed_execution(plan, on_cpu, CUDA, 1, lines.append)
    assert (execution.precision, execution.micro_batch) == ("bf16", 16)
    assert len(lines) == 1
    assert "continues on cuda NVIDIA H100 80GB HBM3, not on cpu" in lines[0]
    for name in ("cuda NVIDIA H100 80GB HBM3", ""):  # "": saved before the name was
        state = msgspec.structs.replace(on_cpu, device=name)
        assert estimate.resumed_execution(plan, state, CUDA, 1, never) == state.execution


def never(line: str) -> None:
    raise AssertionError(line)


# A9: tests


def test_gpus_are_hidden_from_the_tests_and_their_processes() -> None:
    """A9."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert torch.cuda.device_count() == 0


@pytest.mark.cuda
def test_deterministic_training_on_a_gpu_repeats_bit_for_bit() -> None:
    """A2, with Muon, QK-norm, a softcap and the head of the fast family."""
    from model.presets import get_preset

    preset = get_preset("shuihu-fast")
    model = replace(preset.model, vocab_size=1000)
    weights = []
    for _ in range(2):
        config = replace(preset.train, deterministic=True)
        learner = Learner(model, config, CUDA, ExecutionConfig("bf16", False, 8, True), 8, World())
        learner.initialise()
        generator = torch.Generator().manual_seed(1)
        for step in range(10):
            batch = torch.randint(1000, (8, model.block_size + 1), generator=generator).to(CUDA)
            learner.step(batch, step, step, 0)
        weights.append({name: weight.detach().cpu() for name, weight in learner.weights.items()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# A10, A13, A15: devices


def test_gpu_without_kernels_in_this_build_gives_one_line_and_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A10."""
    use_gpu(monkeypatch, name="Tesla P100")

    def fail(*arguments: object, **options: Any) -> torch.Tensor:
        if torch.device(options["device"]).type == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")
        return torch.zeros(1)

    monkeypatch.setattr(torch, "ones", fail)
    lines: list[str] = []
    assert devices.pick_device("auto", lines.append) == CPU
    assert len(lines) == 1
    assert "no kernel image" in lines[0]
    with pytest.raises(BadConfig, match="device cuda cannot be used: CUDA error: no kernel image"):
        devices.pick_device("cuda")


def test_old_driver_gives_one_line_and_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A10."""

    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update it.")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(devices, "_DRIVER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "init", fail)
    lines: list[str] = []
    assert devices.pick_device("auto", lines.append) == CPU
    assert lines == ["the GPU cannot be used (The NVIDIA driver on your system is too old (found version 11040))"]


@pytest.mark.parametrize("name", ["cuda:1", "mps", "cuda:99999", "gpu"])
def test_named_device_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A10."""
    use_gpu(monkeypatch)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BadConfig, match=f"no device '{name}' on this machine") as caught:
        devices.pick_device(name)
    assert caught.value.exit_code == 78
    assert caught.value.hint == "use one of: cuda, cpu"


@pytest.mark.parametrize(
    ("environment", "device", "message"),
    [
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "cuda", "2 processes on this machine need 2 GPUs, and it has 1"),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "cuda:0", "--device cuda:0 names one GPU for 2 processes"),
    ],
)
def test_processes_that_would_share_a_gpu_are_refused(
    environment: dict[str, str], device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A13."""
    use_gpu(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadConfig, match=message):
        distributed._own_gpu(torch.device(device))


def test_process_takes_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A13."""
    use_gpu(monkeypatch, device_count=lambda: 8)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert distributed._own_gpu(CUDA) == 3


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A15."""
    use_gpu(monkeypatch, name="Tesla T4", is_bf16_supported=lambda including_emulation=True: including_emulation)
    assert devices.pick_precision(CUDA) == "fp32"
    with pytest.raises(BadConfig, match="Tesla T4 does not multiply bfloat16"):
        devices.pick_precision(CUDA, "bf16")
    devices._has_fast_bfloat16.cache_clear()


# A11, A12, A14


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H100 NVL", 835e12, 60e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA H20", 148e12, 44e12),
        ("NVIDIA H800", 989e12, 67e12),
        ("NVIDIA A800-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 19.5e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("Tesla T4", None, 8.1e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("NVIDIA GeForce RTX 4090 D", 147e12, 73.5e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA GeForce RTX 3060", 25.4e12, 12.7e12),
        ("NVIDIA GeForce RTX 3060 Ti", 32.4e12, 16.2e12),
        ("NVIDIA TITAN Xp", None, None),
    ],
)
def test_peak_is_that_of_the_very_card_and_precision(
    name: str, bf16: float | None, fp32: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A11."""
    use_gpu(monkeypatch, name=name)
    assert devices.peak_flops(CUDA, "bf16") == pytest.approx(bf16)
    assert devices.peak_flops(CUDA, "fp32") == pytest.approx(fp32)
    assert devices.peak_flops(CPU) is None


def test_trial_passes_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A12."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("cuda"))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: calls.append("mps"))
    for kind in ("cuda", "mps", "cpu"):
        estimate.seconds_of(lambda: None, torch.device(kind))
    assert calls == ["cuda"] * 3 + ["mps"] * 3


def test_closed_loader_frees_the_tokens_on_the_device(tmp_path: Path) -> None:
    """A14: a rollback loads them again, and there may not be room for two copies."""
    import numpy as np

    from pipeline.tokens.store import TokenArray

    tokens = TokenArray((np.arange(100, dtype="<u2"),))
    loader = Loader(dataloader.Sampler(tokens, 8, 1, "random", "key"), 4, CPU, resident="yes")
    next(loader)
    store = weakref.ref(loader._store.untyped_storage())  # type: ignore[union-attr]
    loader.close()
    assert store() is None


def test_least_memory_of_all_processes_decides() -> None:
    """A13: `free_memory` of the main process alone would not do."""

    class Pair(World):
        def least(self, value: float) -> float:
            return min(value, 1 << 20)

    plan = estimate.choose_together(MODEL, TrainConfig(batch_size=64, precision="fp32"), 64, CPU, Pair(), 0)
    assert plan.free == int(0.85 * (1 << 20))


# The machine


def test_doctor_names_the_gpu_and_what_it_can_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A10: name, capability, memory, driver, bfloat16 and compiler."""
    properties = SimpleNamespace(name="NVIDIA GeForce RTX 3060", major=8, minor=6, total_memory=12_000_000_000)
    use_gpu(
        monkeypatch,
        get_device_properties=lambda index: properties,
        mem_get_info=lambda index=None: (11_000_000_000, 12_000_000_000),
    )
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  560.35.03  Fri Aug 16\nGCC version: 12.2.0\n")
    monkeypatch.setattr(devices, "_DRIVER", driver)
    monkeypatch.setattr(devices, "_problem", lambda device: "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CXX", "none")
    monkeypatch.setenv("PATH", "/nonexistent")
    findings = {finding.name: finding for finding in doctor.device_findings()}
    assert findings["device"].what == "cuda, bf16"
    assert findings["cuda:0"].what == (
        "NVIDIA GeForce RTX 3060, capability 8.6, 11.0 of 12.0 GB free, driver 560.35.03, torch for CUDA 13.0, bfloat16"
    )
    assert findings["compiler"].state == "warn"
    assert "g++" in findings["compiler"].hint


def test_doctor_says_why_a_gpu_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A10."""
    monkeypatch.setattr(devices, "driver_problem", lambda: "The NVIDIA driver on your system is too old")
    (finding, _) = doctor.device_findings()
    assert finding.state == "warn"
    assert "too old" in finding.what
