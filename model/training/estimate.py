"""What a training will need, before it begins: memory, and with it how many sequences are computed at once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from model import device as devices
from model.config import GPTConfig, TrainConfig
from model.device import Execution
from model.runs.plan import Plan
from model.training.baselines import References
from pipeline.errors import BadConfig

_SHARE = 0.85  # of the free memory: the rest is for what the allocator rounds up, and for who else is there
_PIECE = 1 << 28  # bytes of the logits and their gradients that exist at once, at most (cross_entropy.py)
_PROBES = 3
_CPU_TOKENS = 1 << 13  # computed at once on a CPU: more only leaves its caches


@dataclass(frozen=True)
class Forecast:
    """How a machine will compute a training, the bytes that it takes, and those that may be taken."""

    how: Execution
    bytes: int
    free: int


def forecast(model: GPTConfig, train: TrainConfig, rows: int, device: torch.device, processes: int = 1) -> Forecast:
    """The precision that suits the device, and the largest micro-batch of at most `rows` sequences that fits into
    its free memory, as each of `processes` computes them.

    Raises BadConfig where not even one sequence fits, with a size that would.
    """
    precision = devices.precision(device, train.precision)
    free = int(devices.free_memory(device) * _SHARE)
    if device.type == "cpu":
        free //= processes  # they share it
    wanted = min(train.micro_batch or rows, rows)
    if device.type == "cpu" and not train.micro_batch:
        wanted = min(rows, max(1, _CPU_TOKENS // model.block_size))
    fits = _most(model, train, precision, free, processes)
    if fits < 1:
        raise BadConfig(
            f"training {model.parameters / 1e6:,.1f}M parameters takes "
            f"{needed(model, train, precision, 1, processes) / 1e9:.1f} GB with one sequence at once, and "
            f"{free / 1e9:.1f} GB can be taken",
            hint=_what_would_fit(model, train, precision, free, processes),
        )
    if train.micro_batch and wanted > fits:
        raise BadConfig(
            f"{wanted} sequences at once take {needed(model, train, precision, wanted, processes) / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB can be taken",
            hint=f"--set micro_batch={fits}, or 0 for what fits",
        )
    micro = min(wanted, fits)
    while not train.micro_batch and rows % micro:  # pieces of one size: compiled once
        micro -= 1
    how = Execution(precision, devices.compiles(device, train.compile), micro)
    return Forecast(how, needed(model, train, precision, micro, processes), free)


def needed(model: GPTConfig, train: TrainConfig, precision: str, sequences: int, processes: int = 1) -> int:
    """Bytes that a process takes to train, with so many sequences at once."""
    weights = weight_bytes(model, train) // (processes if train.parallel == "fsdp" else 1)
    logits = min(_PIECE, sequences * _logit_bytes(model))
    return weights + sequences * activation_bytes(model, train, precision) + logits


def _most(model: GPTConfig, train: TrainConfig, precision: str, free: int, processes: int) -> int:
    """How many sequences at once `free` bytes are enough for: with logits of one piece, or all of them."""
    left = free - needed(model, train, precision, 0, processes)
    each = activation_bytes(model, train, precision)
    return max((left - _PIECE) // each, left // (each + _logit_bytes(model)), 0)


def _logit_bytes(model: GPTConfig) -> int:
    """The logits of one sequence in fp32, and as much again for what lies between."""
    return 4 * 2 * model.block_size * model.vocab_size


def weight_bytes(model: GPTConfig, train: TrainConfig) -> int:
    """Weights and gradients in fp32, two moments each for AdamW and one for Muon, and the average of the weights."""
    head = (1 if model.tied else 2) * model.vocab_size * model.width
    by_muon = model.parameters - head if train.optimizer == "muon" else 0
    return 4 * ((4 + (train.ema > 0)) * model.parameters - by_muon)


def activation_bytes(model: GPTConfig, train: TrainConfig, precision: str) -> int:
    """What one sequence keeps for the backward pass, counted from the operations in gpt.py.

    In a block: the stream twice and both norms' outputs, q, k, v, the heads' output, what each dropout kept, and the
    feed-forward's inside before and after its activation. With `recompute` only the stream between blocks.
    """
    narrow = 2 if precision == "bf16" else 4
    inside = 3 if model.activation == "swiglu" else 2
    narrow_widths = 3 * model.width + 2 * model.key_width + inside * model.hidden_width
    stream = 4 * model.width * (4 + (2 if model.dropout else 0))
    block = stream + narrow * narrow_widths
    kept = 4 * model.width if train.recompute else block
    blocks = model.layers * kept + (block if train.recompute else 0)
    masks = model.block_size if train.document_mask else 0
    return model.block_size * (blocks + 12 * model.width + masks)


def lines(
    planned: Plan, train_tokens: int, made: Forecast, how: Execution, device: torch.device, seconds: float
) -> list[str]:
    """The plan as a person reads it; `seconds` is what one step takes."""
    model, train = planned.preset.model, planned.preset.train
    per_step = train.batch_size * model.block_size
    computed = f"{'bfloat16' if how.precision == 'bf16' else 'fp32'}{', compiled' if how.compiled else ''}"
    steps = int(train.minutes * 60 / seconds) if train.minutes else train.steps
    epochs = steps * per_step / max(train_tokens, 1)
    end = f"{train.minutes:g} minutes" if train.minutes else f"{train.steps:,} steps"
    left = f"about {steps:,} steps" if train.minutes else f"about {_shown(steps * seconds)}"
    return [
        f"model     {planned.preset_name}: {model.parameters / 1e6:.2f}M parameters, family {model.family}",
        f"device    {device}, {computed}, {made.bytes / 1e9:.1f} GB, {how.micro_batch} of {train.batch_size} "
        "sequences at once",
        f"tokens    {train_tokens:,} to train on, {per_step:,} a step: {train_tokens / per_step:,.0f} steps an epoch",
        f"schedule  {end}, {left}, {epochs:.1f} epochs, {per_step / seconds:,.0f} tokens/s by {_PROBES} passes",
    ]


def scale(known: References) -> str:
    """What bits per character mean here: what guessing, counting and a compressor come to."""
    losses = {
        "guessing": known.uniform,
        "counting tokens": known.unigram,
        "counting pairs": known.bigram,
        "zstd": known.zstd,
    }
    said = ", ".join(
        f"{name} {known.bits_per_char(loss):.2f}" for name, loss in losses.items() if loss <= known.uniform
    )
    return f"scale     bits per character of {known.characters:,}: {said}"


def _shown(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _what_would_fit(model: GPTConfig, train: TrainConfig, precision: str, free: int, processes: int) -> str:
    """A smaller size of the same shape that fits, as a hint."""

    def fits(changed: GPTConfig) -> bool:
        return _most(changed, train, precision, free, processes) >= 1

    for layers in range(model.layers - 1, 0, -1):
        if fits(smaller := dataclasses.replace(model, layers=layers)):
            return f"--set layers={smaller.layers} would fit ({smaller.parameters / 1e6:,.1f}M parameters)"
    for width in range(model.width - model.heads * 2, 0, -model.heads * 2):
        if fits(dataclasses.replace(model, width=width, layers=1, hidden=0)):
            inside = " --set hidden=0" if model.hidden else ""
            return f"--set layers=1 --set width={width}{inside} would fit"
    return "a preset with a smaller vocabulary"


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """What `work` takes: the fastest of a few times, since the first ones also load and compile."""
    times = []
    for _ in range(_PROBES):
        start = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.monotonic() - start)
    return min(times)
