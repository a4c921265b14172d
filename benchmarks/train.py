"""`bench train`: one architecture trained by our learner and by a plain loop in nanoGPT's manner, in turn.

The same network, weights and blocks; the plain loop holds all logits, and has AdamW as nanoGPT makes it on the device.
On a CPU the network is GPT-2's, shrunk to 6 layers of 192; on a GPU it is GPT-2's.
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
from model.presets import preset
from model.training import estimate as preflight
from model.training.dataloader import Loader, Sampler
from model.training.distributed import World
from model.training.learner import Learner
from model.training.lr_schedule import Schedule
from pipeline.tokens.store import TokenArray

_STEPS = {"cpu": 6, "cuda": 20}
_COMPARED = 12  # steps whose losses must agree


def bench(rounds: int, report: Callable[[str], None]) -> list[Row]:
    device = devices.pick()
    with tempfile.TemporaryDirectory() as folder:
        tokens = _text_like(Path(folder) / "train.bin")
        model = dataclasses.replace(preset("gpt2-124m").model, dropout=0.0, attention_dropout=0.0)
        if device.type == "cpu":
            model = dataclasses.replace(model, layers=6, heads=6, width=192, block_size=256)
        config = TrainConfig(batch_size=8 if device.type == "cpu" else 32, learning_rate=6e-4, warmup=4)
        return _compare(model, config, tokens, device, rounds, report)


def _text_like(path: Path) -> TokenArray:
    """Ids as frequent as words are (Zipf's law), so that there is something to learn."""
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
    steps, per_step = _STEPS[device.type], config.batch_size * model.block_size
    ours = _Ours(model, config, sampler, device)
    ways: dict[str, _Way] = {"a plain loop": _Plain(model, config, sampler, device)}
    if devices.can_compile():
        ways["a plain loop, compiled"] = _Plain(model, config, sampler, device, compiled=True)
    report(f"{model.parameters / 1e6:.1f}M parameters on {device}, {per_step:,} tokens a step")
    every: dict[str, _Way] = {"ours": ours, **ways}
    curves = {name: [each.step() for _ in range(_COMPARED)] for name, each in every.items()}
    rates: dict[str, list[float]] = {name: [] for name in curves}
    for _ in range(rounds):
        for name, each in every.items():
            start = time.perf_counter()
            for _ in range(steps):
                each.step()
            rates[name].append(steps * per_step / (time.perf_counter() - start))
    median = {name: statistics.median(each) for name, each in rates.items()}
    work = f"train {model.layers} x {model.width}, {'bfloat16' if ours.learner.how.precision == 'bf16' else 'fp32'}"
    rows = [Row(work, median["ours"], median[name], name, "tokens/s") for name in ways]
    last = {name: statistics.mean(each[-3:]) for name, each in curves.items()}
    rows.append(
        Row(f"loss after {_COMPARED} of the same steps", last["ours"], last["a plain loop"], "a plain loop", "nats")
    )
    if peak := devices.peak_flops(device):
        report(f"MFU {median['ours'] * model.flops_per_token / peak:.1%}, waiting for data {ours.waiting:.2%}")
    return rows


class _Way(Protocol):
    def step(self) -> float:
        """Train one step; its loss in nats per token."""


class _Ours:
    def __init__(self, model: GPTConfig, config: TrainConfig, sampler: Sampler, device: torch.device) -> None:
        how = preflight.forecast(model, config, config.batch_size, device).how
        self.learner = Learner(model, config, device, how, config.batch_size, World())
        self.learner.begin()
        self._schedule = Schedule(config)
        self._loader = Loader(sampler, config.batch_size, device)
        self._start = time.monotonic()

    def step(self) -> float:
        self._schedule.apply(self.learner.optimizers)
        done = self.learner.step(next(self._loader), 1, self._schedule.step, 50_256)
        self._schedule.advance()
        return float(done.loss)

    @property
    def waiting(self) -> float:
        return self._loader.waited / (time.monotonic() - self._start)


class _Plain:
    """What nanoGPT's train.py does in a step, on our network."""

    def __init__(
        self, model: GPTConfig, config: TrainConfig, sampler: Sampler, device: torch.device, *, compiled: bool = False
    ) -> None:
        self._model = GPT(model)
        self._model.initialise(config.seed)
        self._model.to(device)
        self._states = torch.compile(self._logits) if compiled else self._logits
        matrices = [weight for weight in self._model.parameters() if weight.dim() >= 2]
        vectors = [weight for weight in self._model.parameters() if weight.dim() < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=device.type == "cuda"
        )
        self._config, self._sampler, self._device, self._done = config, sampler, device, 0
        self._schedule = Schedule(config)

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        return F.linear(self._model.states(ids), self._model.embedding.weight)

    def step(self) -> float:
        share = self._schedule.share
        for group in self._optimizer.param_groups:
            group["lr"] = share * self._config.learning_rate
        data = self._sampler.tokens.segments[0]
        places = self._sampler.places(self._schedule.step, self._config.batch_size)
        block = self._sampler.block_size
        x = torch.stack([torch.from_numpy(data[i : i + block].astype(np.int64)) for i in places]).to(self._device)
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + block].astype(np.int64)) for i in places])
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            loss = F.cross_entropy(self._states(x).flatten(0, 1), y.to(self._device).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.advance()
        return float(loss.detach())
