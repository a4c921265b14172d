"""Memory and time of a training, estimated before it starts, and the micro-batch that fits.

A setting of the user that the machine does not support is an error. An automatic one is replaced, and the report says
so in one line.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from model import device as devices
from model.config import GPTConfig, Preset, TrainConfig
from model.device import ExecutionConfig
from model.network import causal_attention
from model.network.cross_entropy import chunk_rows
from model.presets import MAX_EPOCHS, dropout_for
from model.runs.run import Report
from model.training.baselines import Baselines
from pipeline.errors import BadConfig
from pipeline.runtime.terminal import counted

if TYPE_CHECKING:
    from model.runs.checkpoint import TrainState
    from model.training.distributed import World

_USABLE_FRACTION = 0.85  # of the free memory: the allocator rounds up, and other processes run too
PROBES = 3  # trial passes of a step
_BYTES_PER_ID = 16  # of a batch: as stored, as int64, and the positions that they are read from
_CPU_TOKENS = 1 << 13  # per micro-batch on a CPU: more does not fit into its caches


@dataclass(frozen=True)
class ExecutionPlan:
    """Execution of a training on a device, the bytes that it needs and the bytes that are available.

    `note` names what makes the training slower because the machine lacks it, "" if nothing.
    """

    execution: ExecutionConfig
    bytes: int
    free: int
    note: str = ""


def choose_execution(
    model: GPTConfig,
    train: TrainConfig,
    rows: int,
    device: torch.device,
    processes: int = 1,
    *,
    available: float | None = None,
) -> ExecutionPlan:
    """Choose the precision for the device and the largest micro-batch of at most `rows` sequences that fits.

    Each of `processes` computes such a micro-batch, in `available` bytes, by default those that are free on the device.
    Raises BadConfig if not even one sequence fits, and suggests a smaller model.
    """
    _require_batch(model, rows, processes)
    precision = devices.pick_precision(device, train.precision)
    free = int((devices.free_memory(device) if available is None else available) * _USABLE_FRACTION)
    if device.type == "cpu":
        free //= processes  # they share the memory
    size = min(train.micro_batch or rows, rows)
    if device.type == "cpu" and not train.micro_batch:
        size = min(rows, max(1, _CPU_TOKENS // model.block_size))
    max_size = _max_micro_batch(model, train, precision, free, processes, device.type)
    if max_size < 1:
        gigabytes = needed_bytes(model, train, precision, 1, processes, device.type) / 1e9
        raise BadConfig(
            f"training {model.parameters / 1e6:,.1f}M parameters needs {gigabytes:.1f} GB with one sequence at a time; "
            f"{free / 1e9:.1f} GB available",
            hint=_suggest_smaller(model, train, precision, free, processes, device.type),
        )
    if train.micro_batch and size > max_size:
        gigabytes = needed_bytes(model, train, precision, size, processes, device.type) / 1e9
        raise BadConfig(
            f"a micro-batch of {size} sequences needs {gigabytes:.1f} GB; {free / 1e9:.1f} GB available",
            hint=f"--set micro_batch={max_size}, or 0 to choose it automatically",
        )
    size = min(size, max_size)
    while not train.micro_batch and rows % size:  # micro-batches of one size are compiled once
        size -= 1
    compiled = devices.should_compile(device, train.compile)
    needed = needed_bytes(model, train, precision, size, processes, device.type)
    execution = ExecutionConfig(precision, compiled, size, train.deterministic)
    return ExecutionPlan(execution, needed, free, _note(train, execution, device))


def _note(train: TrainConfig, execution: ExecutionConfig, device: torch.device) -> str:
    """Return which features for automatic settings a GPU machine lacks, "" if none."""
    missing = []
    if device.type == "cuda" and train.compile == "auto" and not execution.compiled:
        missing.append("there is no C++ compiler: the network runs without torch.compile")
    if device.type == "cuda" and train.precision == "auto" and execution.precision == "fp32":
        name = torch.cuda.get_device_name(device)
        missing.append(f"{name} has no bfloat16 instructions: it computes in fp32, without tensor cores (docs/gpu.md)")
    return "; ".join(missing)


def choose_together(
    model: GPTConfig, train: TrainConfig, rows: int, device: torch.device, world: World, store_bytes: int
) -> ExecutionPlan:
    """Choose the execution of all processes. Each has `store_bytes` of tokens on its device.

    Measured speed and free memory differ between them, so the main process decides, by the smallest free memory.
    """
    available = world.min(devices.free_memory(device)) - store_bytes
    plan: ExecutionPlan = world.broadcast_object(
        choose_execution(model, train, rows, device, world.size, available=available)
    )
    return plan


def resumed_execution(
    plan: ExecutionPlan, state: TrainState, device: torch.device, processes: int, report: Report
) -> ExecutionConfig:
    """Return the execution of a checkpoint, with a smaller micro-batch if less memory is free now.

    If the checkpoint comes from another device, return the plan's execution, and report that: the rounding differs
    anyway.
    """
    execution, name = state.execution, devices.describe(device)
    if state.device and state.device != name:
        execution = replace(plan.execution, compiled=plan.execution.compiled and state.train.compile == "yes")
        report(
            f"continues on {name}, not on {state.device}: precision, micro-batch and compilation are chosen again, "
            "and the rounding differs"
        )
    size = execution.micro_batch
    if needed_bytes(state.model, state.train, execution.precision, size, processes, device.type) > plan.free:
        execution = replace(execution, micro_batch=plan.execution.micro_batch)
    return execution


def _require_batch(model: GPTConfig, rows: int, processes: int) -> None:
    """Raise BadConfig unless the ids of a batch of `rows` sequences fit into the memory of the machine."""
    free = int(devices.free_memory(torch.device("cpu")) * _USABLE_FRACTION) // processes
    sequence = _BYTES_PER_ID * (model.block_size + 1)
    if rows * sequence > free:
        raise BadConfig(
            f"a batch of {rows:,} sequences needs {rows * sequence / 1e9:.1f} GB; {free / 1e9:.1f} GB available",
            hint=f"--set batch_size=N, {free // sequence * processes:,} at most",
        )


def needed_bytes(
    model: GPTConfig, train: TrainConfig, precision: str, micro_batch: int, processes: int = 1, kind: str = "cpu"
) -> int:
    """Return the bytes that a process needs to train with micro-batches of that many sequences on a `kind` of device.

    The tokens on the device are not among them.
    """
    weights = weight_bytes(model, train) // (processes if train.parallel == "fsdp" else 1)
    copies = 2 * (model.parameters - model.vocab_size * model.width) if precision == "bf16" else 0
    activations = micro_batch * activation_bytes(model, train, precision, kind)
    return weights + copies + activations + _head_bytes(model, precision, micro_batch, kind)


def _head_bytes(model: GPTConfig, precision: str, micro_batch: int, kind: str) -> int:
    """Return the bytes of a chunk of logits, and of the head's gradient and copies (cross_entropy.py).

    A logit is stored as a product, in fp32 and as its exponential, which share memory if the products are in fp32. A
    softcap also stores its slope.
    """
    logits = chunk_rows(micro_batch * model.block_size, model.vocab_size, kind) * model.vocab_size
    logit = (8 if precision == "bf16" else 4) + (4 if model.softcap else 0)
    return logits * logit + 8 * model.vocab_size * model.width


def _max_micro_batch(model: GPTConfig, train: TrainConfig, precision: str, free: int, processes: int, kind: str) -> int:
    """Return how many sequences fit into `free` bytes."""

    def bytes_of(size: int) -> int:
        return needed_bytes(model, train, precision, size, processes, kind)

    return bisect.bisect_right(range(1, 1 << 31), free, key=bytes_of)


def weight_bytes(model: GPTConfig, train: TrainConfig) -> int:
    """Return the bytes of weights, gradients and moments (two for AdamW, one for Muon) and of the average, in fp32."""
    head = (1 if model.tied else 2) * model.vocab_size * model.width
    by_muon = model.parameters - head if train.optimizer == "muon" else 0
    return 4 * ((4 + (train.ema > 0)) * model.parameters - by_muon)


def activation_bytes(model: GPTConfig, train: TrainConfig, precision: str, kind: str = "cpu") -> int:
    """Return the bytes that one sequence keeps for the backward pass, counted from the operations in gpt.py.

    A block keeps in fp32: the inputs of its norms, and of the scalars and convolutions. In the precision of products:
    the inputs of attention and feed-forward; q, k, v and the results of the heads; the feed-forward's hidden values
    before and after the activation; the masks of the dropouts, and of documents for pairs of tokens; and the
    probabilities of causal_attention.py. With `recompute` only the stream between blocks is kept.
    """
    value = 2 if precision == "bf16" else 4
    hidden = 4 if model.activation == "swiglu" else 2
    heads = model.query_width + model.kv_width
    stream = 4 * model.width * (2 + model.scalars + (2 if model.convolution else 0))
    values = 2 * model.width + 2 * heads + hidden * model.hidden_width
    values += (2 * model.width if model.dropout else 0) + (model.block_size if train.document_mask else 0)
    values += model.kv_width if model.values else 0
    block = stream + value * values + (4 * heads if model.qk_norm else 0)
    if kind == "cpu" and precision == "bf16" and not (train.document_mask or model.attention_dropout):
        block += value * model.heads * causal_attention.pairs(model.block_size) // model.block_size
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
    compiling: float = 0.0,
    epoch_steps: float = 0.0,
    noun: str = "",
) -> list[str]:
    """Describe a training by `execution`, whose steps take `seconds`; `compiling` seconds are part of its minutes.

    `epoch_steps` is the number of steps in an epoch of the items that `noun` names; by default, of all tokens.
    """
    model, train = preset.model, preset.train
    step_tokens = train.batch_size * model.block_size
    epoch_steps, rate = epoch_steps or max(train_tokens, 1) / step_tokens, step_tokens / seconds
    of_what = f" of the {noun}" if noun else ""
    precision = f"{'bfloat16' if execution.precision == 'bf16' else 'fp32'}{', compiled' if execution.compiled else ''}"
    steps = max(int((train.minutes * 60 - compiling) / seconds), 1) if train.minutes else train.steps
    by_epochs = math.ceil(train.epochs * epoch_steps) or steps
    epochs = min(steps, by_epochs) / epoch_steps
    if by_epochs < steps:
        length = f"{train.epochs:g} epochs, about {counted(by_epochs, 'steps')}, {_format_seconds(by_epochs * seconds)}"
    elif train.minutes:
        compilation = f", {compiling:.0f} s of them for compiling" if compiling >= 1 else ""
        length = f"{counted(train.minutes, 'minutes')}{compilation}, about {counted(steps, 'steps')}"
    else:
        length = f"{counted(train.steps, 'steps')}, about {_format_seconds(steps * seconds)}"
    return [
        f"model     {preset_name}: {model.parameters / 1e6:.2f}M parameters, family {model.family}",
        f"device    {device}, {precision}, {plan.bytes / 1e9:.1f} GB, {execution.micro_batch} of {train.batch_size} "
        "sequences at once",
        f"tokens    {train_tokens:,} to train on, {step_tokens:,} a step: {epoch_steps:,.0f} steps an epoch, "
        f"{model.parameters / max(train_tokens, 1):,.3g} parameters per token",
        f"schedule  {length}, {epochs:.1f} epochs{of_what}, {rate:,.0f} tokens/s in {PROBES} trial passes",
        *(f"warning: {text}" for text in [overfitting_risk(model, epochs)] if text),
    ]


def overfitting_risk(model: GPTConfig, epochs: float) -> str:
    """Return a warning if the validation loss will probably rise before the end, "" otherwise.

    A dropout for half as many epochs is accepted: the demo, with 0.1 for 12.5 epochs, improves to its end.
    """
    if epochs > MAX_EPOCHS:
        return f"{epochs:,.0f} epochs: beyond {MAX_EPOCHS}, the validation loss of a short text only rises"
    if max(model.dropout, model.attention_dropout) < dropout_for(epochs / 2):
        better = dropout_for(epochs)
        return f"{epochs:.1f} epochs with dropout {model.dropout:g} may overfit: try --set dropout={better:g}"
    return ""


def describe_baselines(baselines: Baselines | None) -> str:
    """Return the bits per character of the baselines as a line of the report, or why there are none."""
    if baselines is None:
        return "the tokens have no validation part: nothing is evaluated, and the last checkpoint is the best"
    scores = ", ".join(f"{name} {bits:.2f}" for name, bits in baselines.scores.items())
    return f"baselines bits per character of {baselines.characters:,}: {scores}"


def _format_seconds(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _suggest_smaller(model: GPTConfig, train: TrainConfig, precision: str, free: int, processes: int, kind: str) -> str:
    """Return a hint with a smaller model of the same kind that fits."""

    def fits(smaller: GPTConfig) -> bool:
        return _max_micro_batch(smaller, train, precision, free, processes, kind) >= 1

    for layers in range(model.layers - 1, 0, -1):
        if fits(smaller := dataclasses.replace(model, layers=layers)):
            return f"--set layers={layers} would fit ({smaller.parameters / 1e6:,.1f}M parameters)"
    for width in range(model.width - model.heads * 2, 0, -model.heads * 2):
        if fits(dataclasses.replace(model, width=width, layers=1, hidden=0)):
            hidden = " --set hidden=0" if model.hidden else ""
            return f"--set layers=1 --set width={width}{hidden} would fit"
    return "choose a preset with a smaller vocabulary"
