"""Claims about memory, which only CUDA's allocator can count."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from benchmarks.gpu.claims import Figure, Skipped
from benchmarks.gpu.machine import Machine, Training, zipf_ids
from model.generation.engine import sample
from model.generation.sampling import SampleOptions
from model.network.cross_entropy import linear_cross_entropy
from model.training import estimate
from model.training.evaluate import ValidationSet, evaluate
from pipeline.tokenizers import Integers

_FREE = 1 << 30  # bytes that are left on a filled card
_PIECE = 1 << 28


def estimated_peak(machine: Machine, name: str) -> Figure:
    """Divide the bytes that the plan of a training names by the peak of a step."""
    _require_cuda(machine)
    preset = machine.preset(name)
    plan = estimate.choose_execution(preset.model, preset.train, preset.train.batch_size, machine.device)
    rows = plan.execution.micro_batch
    torch.cuda.reset_peak_memory_stats(machine.device)
    before = torch.cuda.memory_allocated(machine.device)
    Training(replace(preset, train=replace(preset.train, batch_size=rows)), machine.device, plan.execution).losses(2)
    peak = torch.cuda.max_memory_allocated(machine.device) - before
    note = f"{plan.bytes / 1e9:.2f} of {peak / 1e9:.2f} GB, {rows} sequences at once"
    return Figure(plan.bytes / peak, "of the peak", low=0.9, high=1.25, note=note)


def filled_card(machine: Machine) -> Figure:
    """Fill the card to 1 GiB; return the micro-batch as a fraction of the usual, not a number if a loss is not."""
    _require_cuda(machine)
    preset = machine.preset("qwen-8m", batch_size=512)
    usual = machine.execution(preset).micro_batch
    pieces = []
    while torch.cuda.mem_get_info(machine.device)[0] > _FREE + _PIECE:
        pieces.append(torch.empty(_PIECE, dtype=torch.uint8, device=machine.device))
    execution = machine.execution(preset)
    training = Training(preset, machine.device, execution)
    losses = training.losses(2)
    sample(training.learner.model, Integers(preset.model.vocab_size), [("", [1])], SampleOptions(max_tokens=8))
    validation = ValidationSet(zipf_ids(preset.model.vocab_size)[: 1 << 16].astype("<i8"), 1, 1)
    evaluation = evaluate(training.learner.model, validation, machine.device, execution.precision)
    losses += [evaluation.loss if evaluation else math.nan, *training.losses(2)]
    share = execution.micro_batch / usual if all(map(math.isfinite, losses)) else math.nan
    return Figure(share, "of the sequences at once", high=0.99, note=f"{execution.micro_batch} instead of {usual}")


def head_peak(machine: Machine) -> Figure:
    """Return the memory of the output head with its loss, over that of its results."""
    _require_cuda(machine)
    rows, width, vocab_size = 1 << 15, 768, 50_257
    x = torch.randn(rows, width, device=machine.device, dtype=torch.bfloat16, requires_grad=True)
    weight = (0.02 * torch.randn(vocab_size, width, device=machine.device)).requires_grad_()
    targets = torch.randint(vocab_size, (rows,), device=machine.device)
    torch.cuda.reset_peak_memory_stats(machine.device)
    before = torch.cuda.memory_allocated(machine.device)
    linear_cross_entropy(x, weight, targets).backward()
    results = rows * width * 2 + vocab_size * width * 4
    peak = torch.cuda.max_memory_allocated(machine.device) - before - results
    return Figure(peak / 1e9, "GB", high=1.5)


def _require_cuda(machine: Machine) -> None:
    if machine.device.type != "cuda":
        raise Skipped("only CUDA counts the memory of a device")
