"""Trial passes of a network: their time, and the fallback if one fails.

If compiling fails, the network runs without torch.compile. If a micro-batch does not fit into memory, it is halved.
Each fallback is reported in one line. If the user chose the setting that failed, it is an error instead.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from model import device as devices
from model.config import Preset
from model.device import ExecutionConfig
from model.runs.run import Report
from model.training.distributed import World
from model.training.estimate import PROBES, choose_execution
from model.training.learner import Learner
from pipeline.errors import BadConfig

T = TypeVar("T")

_MAX_REASON = 200  # characters of an error of torch
_PROBE_VOCABULARY, _PROBE_ROWS = 8_000, 8
COMPILING = "compiling the network, which takes a minute or two"
_MIN_COMPILED = 300.0  # seconds of a training: compiling takes one or two minutes


def measure_flops(preset: Preset, device: torch.device) -> float:
    """Measure the floating point operations a second of a training step of the preset, without the optimizer."""
    model = dataclasses.replace(preset.model, vocab_size=preset.model.vocab_size or _PROBE_VOCABULARY)
    execution = choose_execution(model, preset.train, preset.train.batch_size, device).execution
    execution = dataclasses.replace(execution, compiled=False)
    rows = min(execution.micro_batch, _PROBE_ROWS)
    learner = Learner(model, preset.train, device, dataclasses.replace(execution, micro_batch=rows), rows, World())
    learner.initialise()
    ids = torch.randint(model.vocab_size, (rows, model.block_size + 1), device=device)
    seconds = seconds_of(lambda: learner.probe(ids, 0), device)
    return ids[:, 1:].numel() * model.flops_per_token / seconds


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Time `work`: the fastest of a few calls, since the first ones also load and compile."""
    times = []
    for _ in range(PROBES):
        start = time.monotonic()
        work()
        devices.synchronize(device)
        times.append(time.monotonic() - start)
    return min(times)


def measure_step(
    learner: Learner,
    load: Callable[[int], Tensor],
    eos: int,
    report: Report,
    steps: float = math.inf,
    *,
    compiles: bool = False,
) -> tuple[float, float]:
    """Return the seconds of a step, estimated by trial passes of a micro-batch, and the seconds spent compiling.

    The learner falls back until a pass succeeds. `load` returns the ids (rows, T + 1) of that many sequences. With
    `compiles`, compiling is tried if the training, of at most `steps`, would take longer than five minutes without, and
    kept if it is faster. Raises BadConfig if the user's setting of `compile` or `micro_batch` fails.
    """
    start, is_compiled, world, config = time.monotonic(), learner.execution.compiled, learner.world, learner.config
    if is_compiled:
        report(COMPILING)
    seconds = _step_seconds(learner, load, eos, report)
    if is_compiled:
        return seconds, time.monotonic() - start
    total = min(60 * config.minutes or config.steps * seconds, steps * seconds)
    if not compiles or world.broadcast(total) <= _MIN_COMPILED:
        return seconds, 0.0
    eager, start = learner.execution, time.monotonic()
    report(COMPILING)
    learner.use(replace(eager, compiled=True))
    compiled_seconds = _step_seconds(learner, load, eos, report)
    is_compiled = not world.any(not learner.execution.compiled)
    if is_compiled and world.broadcast(compiled_seconds) < world.broadcast(seconds):
        return compiled_seconds, time.monotonic() - start
    if is_compiled:
        report("the network runs without torch.compile, which makes a trial pass slower")
    learner.use(eager)
    return seconds, time.monotonic() - start


def _step_seconds(learner: Learner, load: Callable[[int], Tensor], eos: int, report: Report) -> float:
    seconds = retried(learner, lambda: _seconds(learner, load(learner.execution.micro_batch), eos), report)
    return seconds * math.ceil(learner.rows / learner.execution.micro_batch)


def _seconds(learner: Learner, ids: Tensor, eos: int) -> float:
    return seconds_of(lambda: learner.probe(ids, eos), learner.device)


def retried(learner: Learner, work: Callable[[], T], report: Report) -> T:
    """Call `work`, which uses the learner, until it succeeds, with a fallback after each failure. Return its result."""
    while True:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - torch has no class for errors of compilers and allocators
            fall_back(learner, error, report)


def fall_back(learner: Learner, error: Exception, report: Report) -> None:
    """Switch off compiling, or halve the micro-batch, depending on `error`.

    Raises BadConfig if the user chose the setting that failed, and any other error again.
    """
    if devices.is_compiler_error(error):
        execution = _eager(learner, error, report)
    elif devices.is_out_of_memory(error):
        execution = _smaller(learner, report)
    elif learner.execution.deterministic and devices.is_nondeterministic(error):
        reason = (str(error).splitlines() or [""])[0][:_MAX_REASON]
        raise BadConfig(f"deterministic=true: {reason}", hint="--set deterministic=false") from None
    else:
        raise error
    learner.model.zero_grad(set_to_none=True)
    if learner.device.type == "cuda":
        torch.cuda.empty_cache()
    learner.use(execution)


def _eager(learner: Learner, error: Exception, report: Report) -> ExecutionConfig:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:_MAX_REASON]
    if learner.config.compile == "yes":
        raise BadConfig(
            f"compile=yes, and the network cannot be compiled: {reason}", hint="--set compile=no, or check the compiler"
        ) from None
    report(f"the network cannot be compiled ({reason}): it runs without torch.compile")
    return replace(learner.execution, compiled=False)


def _smaller(learner: Learner, report: Report) -> ExecutionConfig:
    size = learner.execution.micro_batch
    if learner.config.micro_batch or size == 1 or learner.world.size > 1:
        raise BadConfig(
            f"{size} sequences at once do not fit into the memory of {learner.device}",
            hint=f"--set micro_batch={max(size // 2, 1)}, or a smaller model",
        ) from None
    report(f"{size} sequences at once do not fit into the memory of {learner.device}: trying {size // 2}")
    return replace(learner.execution, micro_batch=size // 2)
