"""Which device computes, in which precision, and how fast it could at best."""

from __future__ import annotations

import functools
import math
import os
import shutil
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from pipeline.errors import BadConfig

# Dense bfloat16 peaks in FLOP/s from NVIDIA's data sheets (SXM parts).
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12}


def pick(asked: str = "auto") -> torch.device:
    """cuda, else mps, else cpu; or the one that was asked for. Raises BadConfig when this machine lacks it.

    From here on a CPU takes numbers below 1e-38 for zero: a product with them takes a hundred times as long
    (benchmarks/NOTES.md). Its threads learn that when they start, so this must come before they do.
    """
    torch.set_flush_denormal(True)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    kind = asked.partition(":")[0]
    if not available.get(kind):
        there = ", ".join(name for name, yes in available.items() if yes)
        raise BadConfig(f"no device {asked!r} here", hint=f"this machine has: {there}")
    return torch.device(asked)


@dataclass(frozen=True)
class Execution:
    """How a machine computes a training. It changes the rounding, so a run that goes on keeps to what it began with."""

    precision: str  # "bf16": of the matrix products; or "fp32"
    compiled: bool
    micro_batch: int  # sequences at once

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


def precision(device: torch.device, asked: str = "auto") -> str:
    """ "bf16" where the device multiplies bfloat16 faster than fp32, or what was asked for."""
    if asked != "auto":
        return asked
    return "bf16" if _has_fast_bfloat16(device) else "fp32"


@functools.cache
def _has_fast_bfloat16(device: torch.device) -> bool:
    """GPUs since Ampere; of CPUs with bfloat16 some, and they do not say: Zen 4 gains half, Sapphire Rapids without
    AMX loses as much. So a CPU is tried."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.cpu._is_avx512_bf16_supported():
        return False
    matrices = {dtype: torch.ones(_TRIAL, _TRIAL, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = dict.fromkeys(matrices, math.inf)
    for _ in range(9):  # in turn: a machine that is busy for a moment is so for both
        for dtype, matrix in matrices.items():
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.bfloat16] < 0.9 * seconds[torch.float32]


_TRIAL = 512  # rows and columns: 2 ms a product


def compiles(device: torch.device, asked: str = "auto") -> bool:
    """Whether to compile the network: on CUDA it pays always, on a CPU seldom (benchmarks/NOTES.md)."""
    return asked == "yes" or (asked == "auto" and device.type == "cuda")


def can_compile() -> bool:
    """Whether there is a C++ compiler for what torch.compile makes."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def free_memory(device: torch.device) -> int:
    """Bytes that a training may take on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux: half of what there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def peak_flops(device: torch.device) -> float | None:
    """The device's published bfloat16 peak, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)
