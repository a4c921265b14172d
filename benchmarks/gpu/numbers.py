"""Claims about numbers: equal losses on every path, equal batches, steps that are passed over, equal texts."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import statistics
import time
from dataclasses import replace

import numpy as np
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.claims import Figure, Skipped
from benchmarks.gpu.machine import Machine, Training, greatest_difference, sampler_of
from model import device as devices
from model.device import ExecutionConfig
from model.generation import quantization
from model.generation.engine import sample
from model.generation.sampling import SampleOptions
from model.network.masks import document_mask
from model.presets import PRESETS
from model.training.dataloader import Loader
from pipeline.errors import BadConfig
from pipeline.tokenizers import Integers

_CPU = torch.device("cpu")
_STEPS, _BF16_STEPS, _COUNTING_STEPS, _GRAPH_STEPS, _BATCHES = 20, 100, 200, 5, 200


def parity(machine: Machine, name: str, steps: int = _STEPS) -> Figure:
    """Compare fp32 losses with those of a CPU that computes a quarter of each batch at once."""
    preset = machine.preset(name)
    size = preset.train.batch_size
    reference = Training(preset, _CPU, ExecutionConfig("fp32", False, max(size // 4, 1))).losses(steps)
    losses = Training(preset, machine.device, ExecutionConfig("fp32", False, size)).losses(steps)
    limit = 1e-4 if steps == 1 else 2e-3
    return Figure(greatest_difference(losses, reference), "nats", high=limit, note=f"{steps} steps of {name}")


def bfloat16(machine: Machine) -> Figure:
    """Compare the mean losses of the last tenth of a training in bfloat16 and in fp32."""
    preset = machine.preset("shuihu-fast")
    if machine.is_gpu and devices.pick_precision(machine.device) != "bf16":
        raise Skipped("no bfloat16")
    means = []
    for precision in ("fp32", "bf16"):
        losses = Training(preset, machine.device, ExecutionConfig(precision, False, preset.train.batch_size)).losses(
            _BF16_STEPS
        )
        means.append(statistics.mean(losses[-_BF16_STEPS // 10 :]))
    return Figure(abs(means[1] - means[0]), "nats", high=0.02, note=f"fp32 reaches {means[0]:.3f}")


def compiled(machine: Machine) -> Figure:
    """Compare the losses of the compiled network with those of the same network, eager."""
    preset = machine.preset("shuihu-fast")
    _require_compiler()
    losses = []
    for is_compiled in (False, True):
        execution = ExecutionConfig("fp32", is_compiled, preset.train.batch_size)
        losses.append(Training(preset, machine.device, execution).losses(_STEPS))
    return Figure(greatest_difference(*losses), "nats", high=2e-3, note=f"{_STEPS} steps of shuihu-fast, fp32")


def graphs(machine: Machine, name: str) -> Figure:
    """Count the graphs of a compiled training: one, so no break and no recompilation in the steps after it."""
    preset = machine.preset(name, batch_size=2)
    _require_compiler()
    torch._dynamo.reset()
    counters.clear()
    Training(preset, machine.device, replace(machine.execution(preset), compiled=True, micro_batch=2)).losses(
        _GRAPH_STEPS
    )
    breaks = sum(counters["graph_break"].values())
    return Figure(
        counters["stats"]["unique_graphs"], "graphs", high=1, low=1, note=f"{breaks} breaks in {_GRAPH_STEPS} steps"
    )


def _require_compiler() -> None:
    if not devices.has_compiler():
        raise Skipped("no C++ compiler")


def attention(machine: Machine) -> Figure:
    """Count the presets whose attention has only torch's slow kernel, causal or with a document mask."""
    dtype = torch.bfloat16 if machine.execution(machine.preset("mini")).precision == "bf16" else torch.float32
    fast = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    slow, backends = [], set()
    for name, preset in PRESETS.items():
        model = preset.model
        if not model.layers:
            continue
        length = model.block_size if machine.is_gpu else 64
        q, k, v = (
            torch.randn(2, heads, length, model.head_width, device=machine.device, dtype=dtype, requires_grad=True)
            for heads in (model.heads, model.kv_heads or model.heads, model.kv_heads or model.heads)
        )
        ids = torch.arange(length, device=machine.device).expand(2, -1) % 50
        for mask in (None, document_mask(ids, 0)):
            arguments = (q, k, v, mask, 0.0, mask is None)
            try:
                with sdpa_kernel(fast):
                    F.scaled_dot_product_attention(*arguments, enable_gqa=k.shape[1] != q.shape[1]).sum().backward()
            except RuntimeError:
                slow.append(name + " with a mask" * (mask is not None))
                continue
            kind = torch._fused_sdp_choice(*arguments, enable_gqa=k.shape[1] != q.shape[1])
            backends.add(SDPBackend(kind).name.lower())
    note = f"uses {', '.join(sorted(backends)) or 'none'}" + (f"; not {', '.join(slow)}" if slow else "")
    return Figure(len(slow), "cases without", high=0, note=note)


def batches(machine: Machine) -> Figure:
    """Compare the ids of batches that are resident, from a thread and direct."""
    preset = machine.preset("shuihu-fast")
    digests = set()
    for resident, threaded in (("no", False), ("no", True), ("yes", False)):
        digest = hashlib.sha256()
        sampler = sampler_of(preset.model, preset.train)
        with Loader(sampler, 16, machine.device, resident=resident, threaded=threaded) as loader:
            for _ in range(_BATCHES):
                digest.update(next(loader).cpu().numpy().tobytes())
        digests.add(digest.hexdigest())
    return Figure(len(digests), "digests", low=1, high=1, note=f"{_BATCHES} batches, 3 ways")


def waiting(machine: Machine) -> Figure:
    """Return the greatest fraction of a training that is spent waiting for batches, of the three ways."""
    preset = machine.preset("gpt2-124m", batch_size=8)
    training = Training(preset, machine.device, machine.execution(preset))
    training.losses(2)
    fractions = []
    for resident, threaded in (("no", False), ("no", True), ("yes", False)):
        sampler = sampler_of(preset.model, preset.train)
        with Loader(sampler, 8, machine.device, resident=resident, threaded=threaded) as training.loader:
            machine.synchronize()
            start = time.monotonic()
            training.losses(10)
            fractions.append(training.loader.waited / (time.monotonic() - start))
    return Figure(max(fractions) * 100, "% of the time", high=1)


def nan_gradient(machine: Machine) -> Figure:
    """Count the weights that a step with a gradient that is not a number changes."""
    preset = machine.preset("shuihu-fast")
    training = Training(preset, machine.device, machine.execution(preset))
    training.losses(2)
    before = {name: weight.detach().clone() for name, weight in training.learner.weights.items()}
    hook = next(iter(training.learner.weights.values())).register_hook(lambda gradient: gradient * math.nan)
    culprit = training.step().culprit
    hook.remove()
    changed = sum(not torch.equal(weight, before[name]) for name, weight in training.learner.weights.items())
    is_normal = not training.step().culprit
    if not culprit or not is_normal:
        return Figure(math.nan, "weights changed", high=0, note="the step was taken, or the next one was not")
    return Figure(changed, "weights changed", high=0, note=f"reported: {culprit}")


def greedy(machine: Machine) -> Figure:
    """Count the prompts after which bfloat16 weights generate the tokens of fp32, by a network that counts."""
    preset = replace(PRESETS["mini"], train=replace(PRESETS["mini"].train, steps=_COUNTING_STEPS))
    ids = np.tile(np.arange(1, 100), 500).astype("<u2")
    training = Training(preset, machine.device, ExecutionConfig("fp32", False, 32), ids)
    loss = training.losses(_COUNTING_STEPS)[-1]
    texts = []
    for precision in ("fp32", "bf16"):
        model = copy.deepcopy(training.learner.model).eval()
        try:
            model = quantization.prepare_for_decoding(model, precision)
        except BadConfig as error:
            raise Skipped(error.message) from None
        prompts = [(str(first), [first, first + 1]) for first in range(1, 97, 6)]
        options = SampleOptions(max_tokens=64, temperature=0.0)
        texts.append([candidate.token_ids for candidate in sample(model, Integers(100), prompts, options)])
    equal = sum(map(list.__eq__, *texts))
    return Figure(equal, "of 16 prompts", low=15, note=f"a network with loss {loss:.4f}")


first_step = functools.partial(parity, steps=1)
