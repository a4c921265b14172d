"""Claims about speed: of a training, of its parts, of evaluating and of generating."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.claims import Figure
from benchmarks.gpu.machine import Machine, Training, sampler_of, zipf_ids
from benchmarks.rows import median_rates
from benchmarks.train import PlainLoop
from model import device as devices
from model.generation.engine import sample
from model.generation.sampling import SampleOptions
from model.network.cross_entropy import linear_cross_entropy
from model.network.gpt import GPT
from model.training.evaluate import ValidationSet, evaluate
from model.training.trial import seconds_of
from pipeline.tokenizers import Integers

_WARM, _STEPS, _ROUNDS = 3, 10, 3
_GPU_ROWS = 64  # sequences of a timed step: those of fast-124m would take a minute each on a small card
_DATA_CENTRE = ("H100", "H200", "H800", "B200")  # cards that small products and launches keep from their peak


def host_reads(machine: Machine) -> Figure:
    """Count how often a step waits for a value of the device."""
    preset = machine.preset("shuihu-fast")
    training = Training(preset, machine.device, machine.execution(preset))
    training.losses(_WARM)
    count = (_synchronizations if machine.device.type == "cuda" else _scalar_reads)(training.step)
    return Figure(count / _STEPS, "reads a step", high=1)


def _synchronizations(step: Callable[[], object]) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(_STEPS):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


class _ReadCounter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def _scalar_reads(step: Callable[[], object]) -> int:
    with _ReadCounter() as counter:
        for _ in range(_STEPS):
            step()
    return counter.count


def tokens_per_second(machine: Machine, name: str) -> float:
    """Train a preset as it would run, with at most 64 sequences a step, and return the tokens a second."""
    batch_size = min(machine.preset(name).train.batch_size, _GPU_ROWS)
    preset = machine.preset(name, batch_size=batch_size if machine.is_gpu else 4)
    training = Training(preset, machine.device, machine.execution(preset))
    training.losses(_WARM)
    machine.synchronize()
    start = time.perf_counter()
    for _ in range(_STEPS):
        training.step()
    machine.synchronize()
    return _STEPS * training.tokens / (time.perf_counter() - start)


def utilisation(machine: Machine, name: str, data_centre: float, consumer: float) -> Figure:
    """Return the model FLOP/s of a training as a percentage of the card's, with a bound for each kind of card."""
    peak = devices.peak_flops(machine.device)
    source = "published peak" if peak else "measured product"
    rate = tokens_per_second(machine, name)
    share = rate * machine.preset(name).model.flops_per_token / (peak or product_flops(machine))
    low = data_centre if any(card in machine.name for card in _DATA_CENTRE) else consumer
    return Figure(100 * share, f"% of the {source}", low=low, note=f"{rate:,.0f} tokens/s")


def small_preset(machine: Machine) -> Figure:
    """Return the tokens a second of shuihu-8m, which launches limit."""
    return Figure(tokens_per_second(machine, "shuihu-8m"), "tokens/s", low=600_000)


def plain_loop(machine: Machine) -> Figure:
    """Compare the speed of our training step with that of a plain loop, compiled where there is a compiler."""
    preset = machine.preset("gpt2-124m", batch_size=4)
    model = preset.model
    if not machine.is_gpu:
        model = replace(model, vocab_size=50_257, heads=6, width=192, block_size=256)
        preset = replace(preset, model=model)
    compiled = machine.is_gpu and devices.has_compiler()
    sampler = sampler_of(model, preset.train)
    peer = PlainLoop(model, preset.train, sampler, machine.device, compiled=compiled)
    training = Training(preset, machine.device, machine.execution(preset))
    steps = _STEPS if machine.is_gpu else 2

    def rate(step: Callable[[], object]) -> float:
        machine.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        machine.synchronize()
        return steps * training.tokens / (time.perf_counter() - start)

    ours, plain = median_rates(functools.partial(rate, training.step), functools.partial(rate, peer.step), _ROUNDS)
    return Figure(ours / plain, "x the plain loop", low=1, note=f"{ours:,.0f} and {plain:,.0f} tokens/s")


def optimizer_share(machine: Machine, name: str, high: float) -> Figure:
    """Return the optimizers' percentage of the time of a step."""
    preset = machine.preset(name)
    execution = replace(machine.execution(preset), compiled=False)
    training = Training(
        replace(preset, train=replace(preset.train, batch_size=execution.micro_batch)), machine.device, execution
    )
    learner = training.learner
    ids = next(training.loader)
    computing = seconds_of(lambda: learner.probe(ids, 0), machine.device)
    computing *= preset.train.batch_size / execution.micro_batch
    learner.backward(ids, 1.0, 0)
    updating = seconds_of(lambda: [optimizer.step() for optimizer in learner.optimizers], machine.device)
    return Figure(100 * updating / (computing + updating), "% of a step", high=high, note=f"{name}, not compiled")


def evaluation(machine: Machine) -> Figure:
    """Time the evaluation of 256 KiB of text, of 4 bytes a token, by gpt2-124m."""
    preset = machine.preset("gpt2-124m")
    model = GPT(preset.model).to(machine.device)
    count = (1 << 16) if machine.is_gpu else (1 << 12)
    validation = ValidationSet(zipf_ids(preset.model.vocab_size)[:count].astype("<i8"), 4 * count, 4 * count)
    precision = devices.pick_precision(machine.device)
    seconds = seconds_of(lambda: evaluate(model, validation, machine.device, precision), machine.device)
    return Figure(seconds, "s", high=1, note=f"{count:,} tokens")


def head(machine: Machine) -> Figure:
    """Return the FLOP/s of the output head with its loss, as a percentage of those of one large product."""
    rows, width, vocab_size = (1 << 15, 768, 50_257) if machine.is_gpu else (1 << 10, 192, 8_000)
    dtype = torch.bfloat16 if devices.pick_precision(machine.device) == "bf16" else torch.float32
    x = torch.randn(rows, width, device=machine.device, dtype=dtype, requires_grad=True)
    weight = (0.02 * torch.randn(vocab_size, width, device=machine.device)).requires_grad_()
    targets = torch.randint(vocab_size, (rows,), device=machine.device)
    seconds = seconds_of(lambda: linear_cross_entropy(x, weight, targets).backward(), machine.device)
    share = 6 * rows * width * vocab_size / seconds / product_flops(machine)
    return Figure(100 * share, "% of a product", low=60)


def product_flops(machine: Machine) -> float:
    """Measure the floating point operations a second of a large product in the precision that is chosen."""
    size = 8192 if machine.is_gpu else 1024
    dtype = torch.bfloat16 if devices.pick_precision(machine.device) == "bf16" else torch.float32
    matrix = torch.randn(size, size, device=machine.device, dtype=dtype)

    def multiply() -> None:
        for _ in range(_STEPS):
            torch.mm(matrix, matrix)

    return 2 * size**3 * _STEPS / seconds_of(multiply, machine.device)


def generating(machine: Machine) -> Figure:
    """Return the tokens a second of one text by gpt2-124m."""
    config = machine.preset("gpt2-124m").model
    model = GPT(config)
    model.init_weights(1)
    model = model.to(machine.device).eval()
    if devices.pick_precision(machine.device) == "bf16":
        from model.generation.quantization import prepare_for_decoding

        model = prepare_for_decoding(model, "bf16")
    tokenizer = Integers(config.vocab_size)

    def run(count: int) -> int:
        (text,) = sample(model, tokenizer, [("", [1])], SampleOptions(max_tokens=count))
        return len(text.token_ids)

    run(8)
    start = time.perf_counter()
    return Figure(run(128) / (time.perf_counter() - start), "tokens/s", low=250)
