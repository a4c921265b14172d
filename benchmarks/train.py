"""`bench train`: one network trained by Inkstone's learner and by a plain loop like nanoGPT's, alternately.

Both train the same network from the same weights on the same blocks. The plain loop materialises all logits and builds
AdamW as nanoGPT does on the device. On a GPU the network is GPT-2 small; on a CPU it is reduced to 6 layers of width
192.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.rows import Row
from model import device as devices
from model.config import GPTConfig, TrainConfig
from model.network.gpt import GPT
from model.presets import get_preset
from model.training import estimate
from model.training.dataloader import Loader, Sampler
from model.training.distributed import World
from model.training.learner import Learner
from model.training.lr_schedule import LRSchedule
from pipeline.tokens.store import TokenArray

_STEPS = {"cpu": 6, "cuda": 20}
_COMPARED = 12  # steps whose losses are compared


def bench(rounds: int, report: Callable[[str], None]) -> list[Row]:
    """Return a row of tokens per second for each plain loop, and a row of the losses after the same steps."""
    device = devices.pick_device()
    with tempfile.TemporaryDirectory() as folder:
        tokens = _zipf_tokens(Path(folder) / "train.bin")
        model = dataclasses.replace(get_preset("gpt2-124m").model, dropout=0.0, attention_dropout=0.0)
        if device.type == "cpu":
            model = dataclasses.replace(model, layers=6, heads=6, width=192, block_size=256)
        config = TrainConfig(batch_size=8 if device.type == "cpu" else 32, learning_rate=6e-4, warmup=4)
        return _compare(model, config, tokens, device, rounds, report)


def _zipf_tokens(path: Path) -> TokenArray:
    """Write random ids with the frequencies of words (Zipf's law), so that the network has something to learn."""
    ids = np.random.default_rng(1).zipf(1.2, 1 << 22) % 50_257
    ids.astype("<u2").tofile(path)
    return TokenArray((np.memmap(path, "<u2", "r"),))


def _compare(
    model: GPTConfig,
    config: TrainConfig,
    tokens: TokenArray,
    device: torch.device,
    rounds: int,
    report: Callable[[str], None],
) -> list[Row]:
    sampler = Sampler(tokens, model.block_size, config.seed, "random", "bench")
    steps, per_step = _STEPS.get(device.type, _STEPS["cuda"]), config.batch_size * model.block_size
    ours = _Ours(model, config, sampler, device)
    peers: dict[str, _Loop] = {"a plain loop": PlainLoop(model, config, sampler, device)}
    if devices.has_compiler():
        peers["a plain loop, compiled"] = PlainLoop(model, config, sampler, device, compiled=True)
    report(f"{model.parameters / 1e6:.1f}M parameters on {device}, {per_step:,} tokens a step")
    loops: dict[str, _Loop] = {"ours": ours, **peers}
    losses = {name: [loop.step() for _ in range(_COMPARED)] for name, loop in loops.items()}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            start = time.perf_counter()
            for _ in range(steps):
                loop.step()
            rates[name].append(steps * per_step / (time.perf_counter() - start))
    median = {name: statistics.median(values) for name, values in rates.items()}
    work = (
        f"train {model.layers} x {model.width}, {'bfloat16' if ours.learner.execution.precision == 'bf16' else 'fp32'}"
    )
    rows = [Row(work, median["ours"], median[name], name, "tokens/s") for name in peers]
    last = {name: statistics.mean(values[-3:]) for name, values in losses.items()}
    rows.append(
        Row(f"loss after {_COMPARED} of the same steps", last["ours"], last["a plain loop"], "a plain loop", "nats")
    )
    if peak := devices.peak_flops(device, ours.learner.execution.precision):
        report(f"MFU {median['ours'] * model.flops_per_token / peak:.1%}, waiting for data {ours.waiting:.2%}")
    return rows


class _Loop(Protocol):
    def step(self) -> float:
        """Train one step and return its loss in nats per token."""


class _Ours:
    """Inkstone's learner, loader and schedule."""

    def __init__(self, model: GPTConfig, config: TrainConfig, sampler: Sampler, device: torch.device) -> None:
        execution = estimate.choose_execution(model, config, config.batch_size, device).execution
        self.learner = Learner(model, config, device, execution, config.batch_size, World())
        self.learner.initialise()
        self._schedule = LRSchedule(config)
        self._loader = Loader(sampler, config.batch_size, device)
        self._seconds = 0.0

    def step(self) -> float:
        start = time.monotonic()
        self._schedule.apply(self.learner.optimizers)
        result = self.learner.step(next(self._loader), 1, self._schedule.step, 50_256)
        self._schedule.advance()
        loss = float(result.loss)
        self._seconds += time.monotonic() - start
        return loss

    @property
    def waiting(self) -> float:
        """Fraction of the time of the steps that was spent waiting for data."""
        return self._loader.waited / self._seconds


class PlainLoop:
    """The training step of nanoGPT's train.py, on our network."""

    def __init__(
        self, model: GPTConfig, config: TrainConfig, sampler: Sampler, device: torch.device, *, compiled: bool = False
    ) -> None:
        self.network = GPT(model)
        self.network.init_weights(config.seed)
        self.network.to(device)
        self._states = torch.compile(self._logits) if compiled else self._logits
        matrices = [weight for weight in self.network.parameters() if weight.dim() >= 2]
        vectors = [weight for weight in self.network.parameters() if weight.dim() < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=device.type == "cuda"
        )
        self._config, self._sampler, self._device = config, sampler, device
        self._ids = sampler.tokens.read(0, len(sampler.tokens))
        self._schedule = LRSchedule(config)

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        return F.linear(self.network.hidden_states(ids), self.network.embedding.weight)

    def run(self) -> int:
        """Train until the end of the schedule and return the number of steps."""
        with self._schedule.paused():
            pass  # at the end of a pause the clock runs
        while self._schedule.progress < 1:
            self.step()
        return self._schedule.step

    def step(self) -> float:
        lr_factor = self._schedule.lr_factor
        for group in self._optimizer.param_groups:
            group["lr"] = lr_factor * self._config.learning_rate
        offsets = self._sampler.offsets(self._schedule.step, self._config.batch_size)
        block = self._sampler.block_size
        x = torch.stack([torch.from_numpy(self._ids[i : i + block]) for i in offsets]).to(self._device)
        y = torch.stack([torch.from_numpy(self._ids[i + 1 : i + 1 + block]) for i in offsets])
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            loss = F.cross_entropy(self._states(x).flatten(0, 1), y.to(self._device).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self._config.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.advance()
        return float(loss.detach())
