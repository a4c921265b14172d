"""Training on a GPU: memory, compiling, repeatable results and another device, on a fake `torch.cuda` or a real one."""

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
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from model import device as devices
from model.config import GPTConfig, TrainConfig, identity
from model.device import ExecutionConfig
from model.presets import get_preset
from model.runs import checkpoint
from model.runs.checkpoint import TrainState
from model.training import dataloader, distributed, estimate, trial
from model.training.dataloader import Loader
from model.training.distributed import World
from model.training.estimate import ExecutionPlan
from model.training.learner import Learner
from model.training.lr_schedule import LRSchedule
from pipeline.errors import BadConfig
from pipeline.store import artifact
from pipeline.tokens.store import open_store
from tests.support.faults import ROOT
from tests.support.gpu import use_gpu
from tests.support.training import STEP, before_call, current_run, metric_rows, no_loss_curve, preloaded, send, train

__all__ = ["no_loss_curve", "preloaded"]  # fixtures

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MODEL = GPTConfig(vocab_size=16, block_size=8, layers=1, heads=1, width=8)
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def small_learner(micro_batch: int = 8, **settings: Any) -> Learner:
    config = TrainConfig(batch_size=8, precision="fp32", **settings)
    learner = Learner(MODEL, config, CPU, ExecutionConfig("fp32", False, micro_batch), 8, World())
    learner.initialise()
    return learner


def ids(rows: int = 8) -> torch.Tensor:
    return torch.zeros(rows, MODEL.block_size + 1, dtype=torch.int64)


def test_only_copies_to_cuda_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS reads pageable memory after it was freed."""
    waits: dict[str, bool] = {}
    for kind in ("cuda", "mps"):
        tensor = SimpleNamespace(to=lambda device, non_blocking: waits.update({device.type: not non_blocking}))
        dataloader._send(tensor, torch.device(kind))  # type: ignore[arg-type]
    assert waits == {"cuda": False, "mps": True}
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "model").rglob("*.py")]
    assert sum(source.count("non_blocking") for source in sources) == 2, "here, and in distributed.py"


class Copies(TorchDispatchMode):
    """Counts tensors in pinned memory, and copies between tensors that are not waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned = self.asynchronous = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.pinned += bool((options or {}).get("pin_memory"))
        self.asynchronous += function is torch.ops.aten.copy_.default and arguments[2]
        return function(*arguments, **(options or {}))


def test_checkpoint_of_a_gpu_is_copied_into_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors are on the way at once, and then the device is waited for."""
    with FakeTensorMode(), Copies() as copies:
        weights = {"a": torch.empty(3, 2, device=CUDA).t(), "b": torch.empty(5, device=CUDA)}
        tensors = distributed.full_state_dict(weights)
    assert (copies.pinned, copies.asynchronous) == (2, 2)
    assert [(tensor.device, tensor.shape) for tensor in tensors.values()] == [(CPU, (2, 3)), (CPU, (5,))]
    learner, synchronized = small_learner(), list[torch.device]()
    monkeypatch.setattr(devices, "synchronize", synchronized.append)
    learner.state_tensors()
    assert synchronized == [CPU]


def test_checkpoint_of_a_gpu_is_copied_where_no_memory_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*shape: object, **options: object) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    with FakeTensorMode():
        weight = torch.empty(3, 2, device=CUDA)
        monkeypatch.setattr(torch, "empty", refuse)
        assert distributed.full_state_dict({"a": weight})["a"].device == CPU


def test_the_model_adds_nothing_by_atomics() -> None:
    """Their order, and so the rounding, differs from run to run on a GPU."""
    atomic = re.compile(r"index_add|scatter_add|scatter_reduce|index_put|bincount\(.*weights")
    assert [path for path in (ROOT / "model").rglob("*.py") if atomic.search(path.read_text(encoding="utf-8"))] == []


def test_deterministic_setting_reaches_torch_and_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_learner_on_a_gpu_makes_torch_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, learner = list[bool](), small_learner()
    monkeypatch.setattr(devices, "set_deterministic", calls.append)
    learner.device = CUDA
    for deterministic in (True, False):
        learner.use(ExecutionConfig("fp32", False, 8, deterministic))
    assert calls == [True, False]


@pytest.mark.parametrize(("precision", "missing"), [("auto", True), ("fp32", False)])
def test_plan_names_a_gpu_that_computes_in_fp32(precision: str, missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user wants that."""
    use_gpu(monkeypatch, name="Tesla T4", get_device_properties=lambda device: SimpleNamespace(major=7))
    train = TrainConfig(precision=precision, compile="no")
    plan = estimate.choose_execution(MODEL, train, 8, CUDA)
    assert plan.execution.precision == "fp32"
    assert plan.note.startswith("Tesla T4 has no bfloat16 instructions: it computes in fp32") == missing
    devices._has_fast_bfloat16.cache_clear()


def test_operation_without_a_deterministic_form_is_a_sentence() -> None:
    learner = small_learner(deterministic=True)
    learner.execution = replace(learner.execution, deterministic=True)
    error = RuntimeError("efficient_attention_backward does not have a deterministic implementation, but you set …")
    with pytest.raises(BadConfig, match="deterministic=true: efficient_attention_backward"):
        trial.fall_back(learner, error, print)


def test_run_begun_before_deterministic_was_a_setting_resumes(root: Path) -> None:
    """The default is not in the key, and a checkpoint without it compares as equal."""
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

        monkeypatch.setattr(trial, "_seconds", seconds)
        monkeypatch.setattr(learner, "use", use)


@pytest.mark.parametrize(
    ("steps", "compiled_seconds", "is_compiled", "attempts", "line"),
    [
        (100, 0.5, False, 0, ""),  # 100 s without compiling
        (300, 0.5, False, 0, ""),  # of the default length, five minutes
        (1000, 0.5, True, 1, ""),
        (1000, 1.5, False, 1, "which makes a trial pass slower"),
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
    """Eager passes take one second."""
    learner, lines = small_learner(steps=steps), list[str]()
    compiler = Compiler(monkeypatch, learner, 1.0, compiled_seconds)
    seconds, compiling = trial.measure_step(learner, ids, 0, lines.append, compiles=True)
    assert learner.execution.compiled == is_compiled
    assert compiler.attempts == attempts
    assert (compiling > 0) == bool(attempts)
    assert seconds == (compiled_seconds if is_compiled else 1.0)
    reasons = [text for text in lines if text != trial.COMPILING]
    assert len(lines) - len(reasons) == attempts
    assert [text for text in reasons if line in text] == reasons
    assert len(reasons) == bool(line)


def test_training_that_its_epochs_end_soon_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = small_learner(minutes=60.0)
    compiler = Compiler(monkeypatch, learner, 1.0, 0.5)
    assert trial.measure_step(learner, ids, 0, print, 299, compiles=True) == (1.0, 0.0)
    assert compiler.attempts == 0


def test_compiling_counts_towards_minutes_and_not_towards_steps() -> None:
    """A minute of two leaves half of the schedule."""
    for settings, progress in (({"minutes": 2.0}, 0.5), ({"steps": 10}, 0.0)):
        schedule = LRSchedule(TrainConfig(**settings))  # type: ignore[arg-type]
        schedule.spend(60.0)
        assert schedule.progress == progress
    preset = replace(get_preset("mini"), train=TrainConfig(minutes=2.0))
    plan = ExecutionPlan(ExecutionConfig("fp32", True, 8), 0, 0)
    line = estimate.plan_lines("mini", preset, 1000, plan, plan.execution, CPU, 0.1, 60.0)[3]
    assert "2 minutes, 60 s of them for compiling, about 600 steps" in line


def test_later_step_without_memory_is_repeated_with_half_the_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, reference, lines = small_learner(), small_learner(), list[str]()
    backward = learner.backward

    def limited(rows: torch.Tensor, fraction: float, eos: int) -> torch.Tensor:
        if len(rows) > 2:
            backward(rows, fraction, eos)  # leaves a gradient, which the repetition must not add to
            raise OUT_OF_MEMORY
        return backward(rows, fraction, eos)

    monkeypatch.setattr(learner, "backward", limited)
    batch = torch.arange(8 * 9).reshape(8, 9) % 16
    trial.retried(learner, lambda: learner.step(batch, 1, 0, 0), lines.append)
    reference.step(batch, 1, 0, 0)
    assert learner.execution.micro_batch == 2
    assert [line.rpartition(" ")[2] for line in lines] == ["4", "2"]
    for name, weight in reference.weights.items():
        torch.testing.assert_close(learner.weights[name], weight, atol=1e-6, rtol=0)


def test_run_out_of_memory_at_a_later_step_ends_well_or_names_the_setting(root: Path) -> None:
    """Exit code 0 or 78, never 70."""
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
    """A smaller micro-batch would not help, and some weights may be updated already."""
    learner = small_learner()
    monkeypatch.setattr(learner.optimizers[0], "step", fail_to_allocate)
    with pytest.raises(BadConfig, match="does not fit into the memory"):
        trial.retried(learner, lambda: learner.step(ids(), 1, 0, 0), print)


@pytest.mark.parametrize("failure", [OUT_OF_MEMORY, MemoryError(), KeyError("x")])
def test_sample_that_fails_does_not_end_the_training(failure: Exception, root: Path) -> None:
    def fail(*arguments: object) -> None:
        raise failure

    result = train(root, constants={"model.generation.engine.Engine.step": fail})
    assert result.code == 0, result.err


def test_sample_without_free_memory_does_not_end_the_training(root: Path) -> None:
    result = train(root, constants={"model.generation.engine.free_memory": lambda device: 1000})
    assert result.code == 0, result.err


def test_run_resumed_on_another_device_chooses_its_execution_again(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.cuda
def test_deterministic_training_on_a_gpu_repeats_bit_for_bit() -> None:
    """With Muon, QK-norm, a softcap and the head of the fast family."""
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
    use_gpu(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadConfig, match=message):
        distributed._own_gpu(torch.device(device))


def test_process_takes_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu(monkeypatch, device_count=lambda: 8)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert distributed._own_gpu(CUDA) == 3


def test_trial_passes_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("cuda"))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: calls.append("mps"))
    for kind in ("cuda", "mps", "cpu"):
        trial.seconds_of(lambda: None, torch.device(kind))
    assert calls == ["cuda"] * 3 + ["mps"] * 3


def test_closed_loader_frees_the_tokens_on_the_device(tmp_path: Path) -> None:
    """A rollback loads them again, and there may not be room for two copies."""
    import numpy as np

    from pipeline.tokens.store import TokenArray

    tokens = TokenArray((np.arange(100, dtype="<u2"),))
    loader = Loader(dataloader.Sampler(tokens, 8, 1, "random", "key"), 4, CPU, resident="yes")
    next(loader)
    store = weakref.ref(loader._store.untyped_storage())  # type: ignore[union-attr]
    loader.close()
    assert store() is None


def test_training_plans_its_resident_tokens_and_saves_the_name_of_its_device(root: Path, tmp_path: Path) -> None:
    choose = estimate.choose_together

    def recorded(*arguments: Any) -> ExecutionPlan:
        (tmp_path / "planned").write_text(str(arguments[-1]))
        return choose(*arguments)

    result = train(root, constants={"model.training.estimate.choose_together": recorded}, resident="yes")
    assert result.code == 0, result.err
    tokens = open_store(artifact.find(root, "tokens", "counting")).train
    assert (tmp_path / "planned").read_text() == str(len(tokens) * tokens.dtype.itemsize)
    (newest, *_) = checkpoint.newest_first(current_run(root).path / "checkpoints")
    assert checkpoint.read_state(newest).device == "cpu"


def test_least_memory_of_all_processes_decides() -> None:
    """The main process may have more free memory than the others."""

    class Pair(World):
        def min(self, value: float) -> float:
            return min(value, 1 << 20)

    plan = estimate.choose_together(MODEL, TrainConfig(batch_size=64, precision="fp32"), 64, CPU, Pair(), 0)
    assert plan.free == int(0.85 * (1 << 20))
