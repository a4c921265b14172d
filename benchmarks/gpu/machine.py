"""The device that is checked, and trainings on it: full-size networks on a GPU, reduced ones on a CPU."""

from __future__ import annotations

import functools
import gc
import math
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import device as devices
from model.config import GPTConfig, Preset, TrainConfig
from model.device import ExecutionConfig
from model.presets import get_preset
from model.training import estimate
from model.training.dataloader import Loader, Sampler
from model.training.distributed import World
from model.training.learner import Learner, StepResult
from model.training.lr_schedule import LRSchedule
from pipeline.tokens.store import TokenArray

_VOCABULARY, _CPU_VOCABULARY = 8_000, 512  # of presets that take that of a tokenizer; of reduced networks
_CPU_HEAD_WIDTH, _CPU_LAYERS, _CPU_BLOCK, _CPU_ROWS = 16, 2, 64, 4
_TOKENS = 1 << 20


@dataclass(frozen=True)
class Machine:
    """A device, a folder for files, and whether only the short claims are measured."""

    device: torch.device
    folder: Path
    quick: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.device.type != "cpu"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def preset(self, name: str, steps: int = 100, **settings: Any) -> Preset:
        """Return a preset without dropout, of `steps` steps; on a CPU reduced to 2 layers and short blocks.

        `settings` replace those of its training, on every device.
        """
        preset = get_preset(name)
        model = replace(
            preset.model,
            vocab_size=preset.model.vocab_size or _VOCABULARY,
            dropout=0.0,
            attention_dropout=0.0,
            last_dropout=0.0,
        )
        train = replace(preset.train, steps=steps, minutes=0.0)
        if not self.is_gpu:
            model = _reduced(model)
            train = replace(train, batch_size=min(train.batch_size, _CPU_ROWS), momentum_warmup=0)
        return replace(preset, model=model, train=replace(train, **settings))

    def execution(self, preset: Preset) -> ExecutionConfig:
        """Return the execution that a training of the preset would choose."""
        return estimate.choose_execution(preset.model, preset.train, preset.train.batch_size, self.device).execution

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Free the memory of the last claim, and the graphs that were compiled for it."""
        gc.collect()
        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def describe(self) -> dict[str, Any]:
        """Return what identifies the card and the software, for the report."""
        fields: dict[str, Any] = {
            "device": self.name,
            "free_bytes": devices.free_memory(self.device),
            "precision": devices.pick_precision(self.device),
            "compiler": devices.has_compiler(),
            "torch": str(torch.__version__),
            "date": time.strftime("%Y-%m-%d"),
            "quick": self.quick,
        }
        if self.device.type == "cuda":
            fields |= {
                "capability": ".".join(map(str, torch.cuda.get_device_capability(self.device))),
                "total_bytes": torch.cuda.get_device_properties(self.device).total_memory,
                "wheel": torch.cuda.get_arch_list(),
                "cuda": torch.version.cuda,
                "driver": _driver(),
                "devices": torch.cuda.device_count(),
            }
        return fields


class Training:
    """A learner on Zipf-distributed ids, with its batches and schedule, that is stepped by hand."""

    def __init__(
        self, preset: Preset, device: torch.device, execution: ExecutionConfig, ids: np.ndarray | None = None
    ) -> None:
        model, config = preset.model, preset.train
        self.learner = Learner(model, config, device, execution, config.batch_size, World())
        self.learner.initialise()
        self.loader = Loader(sampler_of(model, config, ids), config.batch_size, device)
        self.schedule = LRSchedule(config)
        self.tokens = config.batch_size * model.block_size  # of a step

    def step(self) -> StepResult:
        self.schedule.apply(self.learner.optimizers)
        result = self.learner.step(next(self.loader), self.schedule.step, self.schedule.step, 0)
        self.schedule.advance()
        return result

    def losses(self, steps: int) -> list[float]:
        """Train and return the loss of each step in nats per token."""
        return [float(self.step().loss) for _ in range(steps)]


def sampler_of(model: GPTConfig, config: TrainConfig, ids: np.ndarray | None = None) -> Sampler:
    """Return a sampler of `ids`, by default random ones with the frequencies of words (Zipf's law)."""
    data = zipf_ids(model.vocab_size) if ids is None else ids
    return Sampler(TokenArray((data,)), model.block_size, config.seed, config.order, "gpu-check")


@functools.lru_cache(maxsize=2)
def zipf_ids(vocab_size: int) -> np.ndarray:
    return (np.random.default_rng(1).zipf(1.2, _TOKENS) % vocab_size).astype("<u2")


def greatest_difference(losses: list[float], reference: list[float]) -> float:
    """Return the greatest difference of two loss curves, infinite if a loss is not finite."""
    differences = [abs(a - b) for a, b in zip(losses, reference, strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def _reduced(model: GPTConfig) -> GPTConfig:
    return replace(
        model,
        vocab_size=_CPU_VOCABULARY,
        layers=min(model.layers, _CPU_LAYERS),
        width=model.heads * _CPU_HEAD_WIDTH,
        block_size=_CPU_BLOCK,
        hidden=0,
    )


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return output.split("\n")[0].strip()
