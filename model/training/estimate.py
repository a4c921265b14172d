"""Memory and time of a training, estimated before it starts, and the micro-batch that fits.

Settings that the user named and that the machine cannot have are refused. Those that were left to the program fall
back, with one line.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model import device as devices
from model.config import GPTConfig, Preset, TrainConfig
from model.device import ExecutionConfig
from model.runs.run import Report
from model.training.baselines import Baselines
from pipeline.errors import BadConfig

if TYPE_CHECKING:
    from model.training.learner import Learner

_USABLE_FRACTION = 0.85  # of the free memory: the allocator rounds up, and other processes run too
_LOGITS_BYTES = 1 << 28  # of logits and their gradients that exist at once, at most (cross_entropy.py)
_BYTES_PER_ID = 16  # of a batch: as stored, as int64, and the positions that they are read from
_PROBES = 3
_MAX_REASON = 200  # characters of an error of torch
_PROBE_VOCABULARY, _PROBE_ROWS = 8_000, 8
_CPU_TOKENS = 1 << 13  # per micro-batch on a CPU: more does not fit into its caches


@dataclass(frozen=True)
class ExecutionPlan:
    """Execution of a training on a device, the bytes that it needs, the bytes that are available, and what is missing.

    `note` names what the program would have chosen and the machine does not have, "" if it has all.
    """

    execution: ExecutionConfig
    bytes: int
    free: int
    note: str = ""


def choose_execution(
    model: GPTConfig, train: TrainConfig, rows: int, device: torch.device, processes: int = 1
) -> ExecutionPlan:
    """Choose the precision for the device and the largest micro-batch of at most `rows` sequences that fits.

    Each of `processes` computes such a micro-batch. Raises BadConfig if not even one sequence fits, and suggests a
    smaller model.
    """
    _require_batch(model, rows, processes)
    precision = devices.pick_precision(device, train.precision)
    free = int(devices.free_memory(device) * _USABLE_FRACTION)
    if device.type == "cpu":
        free //= processes  # they share the memory
    size = min(train.micro_batch or rows, rows)
    if device.type == "cpu" and not train.micro_batch:
        size = min(rows, max(1, _CPU_TOKENS // model.block_size))
    max_size = _max_micro_batch(model, train, precision, free, processes)
    if max_size < 1:
        gigabytes = needed_bytes(model, train, precision, 1, processes) / 1e9
        raise BadConfig(
            f"training {model.parameters / 1e6:,.1f}M parameters needs {gigabytes:.1f} GB with one sequence at a time; "
            f"{free / 1e9:.1f} GB available",
            hint=_suggest_smaller(model, train, precision, free, processes),
        )
    if train.micro_batch and size > max_size:
        gigabytes = needed_bytes(model, train, precision, size, processes) / 1e9
        raise BadConfig(
            f"a micro-batch of {size} sequences needs {gigabytes:.1f} GB; {free / 1e9:.1f} GB available",
            hint=f"--set micro_batch={max_size}, or 0 to choose it automatically",
        )
    size = min(size, max_size)
    while not train.micro_batch and rows % size:  # micro-batches of one size are compiled once
        size -= 1
    compiled = devices.should_compile(device, train.compile)
    would_compile = train.compile == "auto" and device.type == "cuda"
    note = "there is no C++ compiler: the network runs without torch.compile" if would_compile and not compiled else ""
    needed = needed_bytes(model, train, precision, size, processes)
    return ExecutionPlan(ExecutionConfig(precision, compiled, size), needed, free, note)


def _require_batch(model: GPTConfig, rows: int, processes: int) -> None:
    """Raise BadConfig unless the ids of a batch of `rows` sequences fit into the memory of the machine."""
    free = int(devices.free_memory(torch.device("cpu")) * _USABLE_FRACTION) // processes
    sequence = _BYTES_PER_ID * (model.block_size + 1)
    if rows * sequence > free:
        raise BadConfig(
            f"a batch of {rows:,} sequences needs {rows * sequence / 1e9:.1f} GB; {free / 1e9:.1f} GB available",
            hint=f"--set batch_size=N, {free // sequence * processes:,} at most",
        )


def needed_bytes(model: GPTConfig, train: TrainConfig, precision: str, micro_batch: int, processes: int = 1) -> int:
    """Return the bytes that a process needs to train with micro-batches of that many sequences."""
    weights = weight_bytes(model, train) // (processes if train.parallel == "fsdp" else 1)
    logits = min(_LOGITS_BYTES, micro_batch * _logit_bytes(model))
    return weights + micro_batch * activation_bytes(model, train, precision) + logits


def _max_micro_batch(model: GPTConfig, train: TrainConfig, precision: str, free: int, processes: int) -> int:
    """Return how many sequences fit into `free` bytes, whether their logits are computed at once or in chunks."""
    remaining = free - needed_bytes(model, train, precision, 0, processes)
    sequence = activation_bytes(model, train, precision)
    return max((remaining - _LOGITS_BYTES) // sequence, remaining // (sequence + _logit_bytes(model)), 0)


def _logit_bytes(model: GPTConfig) -> int:
    """Return the bytes of one sequence's logits in fp32, and of as many intermediate values."""
    return 4 * 2 * model.block_size * model.vocab_size


def weight_bytes(model: GPTConfig, train: TrainConfig) -> int:
    """Return the bytes of weights, gradients and moments (two for AdamW, one for Muon) and of the average, in fp32."""
    head = (1 if model.tied else 2) * model.vocab_size * model.width
    by_muon = model.parameters - head if train.optimizer == "muon" else 0
    return 4 * ((4 + (train.ema > 0)) * model.parameters - by_muon)


def activation_bytes(model: GPTConfig, train: TrainConfig, precision: str) -> int:
    """Return the bytes that one sequence keeps for the backward pass, counted from the operations in gpt.py.

    A block keeps the residual stream twice, the outputs of both norms, q, k, v, the output of the heads, the masks of
    the dropouts, and the feed-forward's hidden values before and after the activation. With `recompute` only the stream
    between blocks is kept.
    """
    value = 2 if precision == "bf16" else 4
    hidden = 3 if model.activation == "swiglu" else 2
    values = model.width + 2 * model.query_width + 2 * model.kv_width + hidden * model.hidden_width
    stream = 4 * model.width * (4 + (2 if model.dropout else 0))
    block = stream + value * values
    blocks = model.layers * (4 * model.width if train.recompute else block) + (block if train.recompute else 0)
    masks = model.block_size if train.document_mask else 0
    return model.block_size * (blocks + 12 * model.width + masks)


def plan_lines(
    preset_name: str,
    preset: Preset,
    train_tokens: int,
    plan: ExecutionPlan,
    execution: ExecutionConfig,
    device: torch.device,
    seconds: float,
) -> list[str]:
    """Describe a training for a person. `execution` is used instead of the plan's; a step takes `seconds`."""
    model, train = preset.model, preset.train
    step_tokens = train.batch_size * model.block_size
    epoch_steps, rate = train_tokens / step_tokens, step_tokens / seconds
    precision = f"{'bfloat16' if execution.precision == 'bf16' else 'fp32'}{', compiled' if execution.compiled else ''}"
    steps = int(train.minutes * 60 / seconds) if train.minutes else train.steps
    epochs = steps * step_tokens / max(train_tokens, 1)
    if train.minutes:
        length = f"{train.minutes:g} minutes, about {steps:,} steps"
    else:
        length = f"{train.steps:,} steps, about {_format_seconds(steps * seconds)}"
    return [
        f"model     {preset_name}: {model.parameters / 1e6:.2f}M parameters, family {model.family}",
        f"device    {device}, {precision}, {plan.bytes / 1e9:.1f} GB, {execution.micro_batch} of {train.batch_size} "
        "sequences at once",
        f"tokens    {train_tokens:,} to train on, {step_tokens:,} a step: {epoch_steps:,.0f} steps an epoch",
        f"schedule  {length}, {epochs:.1f} epochs, {rate:,.0f} tokens/s in {_PROBES} trial passes",
    ]


def scale(baselines: Baselines) -> str:
    """Describe the bits per character of the baselines, to compare the losses of the training with."""
    scores = ", ".join(f"{name} {bits:.2f}" for name, bits in baselines.scores.items())
    return f"baselines bits per character of {baselines.characters:,}: {scores}"


def _format_seconds(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _suggest_smaller(model: GPTConfig, train: TrainConfig, precision: str, free: int, processes: int) -> str:
    """Return a hint with a smaller model of the same kind that fits."""

    def fits(smaller: GPTConfig) -> bool:
        return _max_micro_batch(smaller, train, precision, free, processes) >= 1

    for layers in range(model.layers - 1, 0, -1):
        if fits(smaller := dataclasses.replace(model, layers=layers)):
            return f"--set layers={layers} would fit ({smaller.parameters / 1e6:,.1f}M parameters)"
    for width in range(model.width - model.heads * 2, 0, -model.heads * 2):
        if fits(dataclasses.replace(model, width=width, layers=1, hidden=0)):
            hidden = " --set hidden=0" if model.hidden else ""
            return f"--set layers=1 --set width={width}{hidden} would fit"
    return "choose a preset with a smaller vocabulary"


def measure_flops(preset: Preset, device: torch.device) -> float:
    """Measure the floating point operations a second of a training step of the preset, without the optimizer."""
    from model.training.distributed import World
    from model.training.learner import Learner

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
    for _ in range(_PROBES):
        start = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.monotonic() - start)
    return min(times)


def measure_step(learner: Learner, load: Callable[[int], Tensor], eos: int, report: Report) -> float:
    """Return the seconds of a trial pass of a micro-batch, and let the learner fall back until one succeeds.

    `load` returns the ids (rows, T + 1) of that many sequences. Raises BadConfig if the network cannot be compiled, or
    memory does not suffice, as the user wanted it.
    """
    while True:
        try:
            return _seconds(learner, load(learner.execution.micro_batch), eos)
        except Exception as error:  # torch has no common class for what a compiler or an allocator raises
            if devices.is_compiler_error(error):
                fallback = _eager(learner, error, report)
            elif devices.is_out_of_memory(error):
                fallback = _smaller(learner, report)
            else:
                raise
        learner.model.zero_grad(set_to_none=True)
        if learner.device.type == "cuda":
            torch.cuda.empty_cache()
        learner.use(fallback)


def _seconds(learner: Learner, ids: Tensor, eos: int) -> float:
    return seconds_of(lambda: learner.probe(ids, eos), learner.device)


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
