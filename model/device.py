"""Device selection, precision, free memory and peak FLOP/s."""

from __future__ import annotations

import functools
import math
import os
import shutil
import time
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from pipeline.errors import BadConfig

# Dense bfloat16 FLOP/s from NVIDIA's data sheets (SXM parts).
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12}


def pick_device(name: str = "auto") -> torch.device:
    """Return the named device, or for "auto" the first available of cuda, mps and cpu.

    Raises BadConfig if this machine does not have the device. Also makes CPUs flush denormal numbers (below 1e-38) to
    zero, since products with them take a hundred times as long (benchmarks/NOTES.md). Threads inherit that setting
    when they start, so call this before torch starts any. And silences torch's warning that RMSNorm is not fused under
    autocast.
    """
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    names = [kind for kind, is_available in available.items() if is_available]
    if name == "auto":
        return torch.device(names[0])
    if name.partition(":")[0] not in names:
        raise BadConfig(f"no device {name!r} on this machine", hint=f"use one of: {', '.join(names)}")
    return torch.device(name)


@dataclass(frozen=True)
class ExecutionConfig:
    """Settings of a training that depend on the machine.

    They change the rounding, so a resumed run keeps those that it was started with.
    """

    precision: str  # of the matrix products: "bf16" or "fp32"
    compiled: bool
    micro_batch: int  # sequences per forward pass

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


def pick_precision(device: torch.device, setting: str = "auto") -> str:
    """Return `setting`; for "auto" "bf16" if the device multiplies bfloat16 faster than fp32, else "fp32"."""
    if setting != "auto":
        return setting
    return "bf16" if _has_fast_bfloat16(device) else "fp32"


@functools.cache
def _has_fast_bfloat16(device: torch.device) -> bool:
    """True if bfloat16 is faster than fp32: on GPUs since Ampere, and on some CPUs with bfloat16 instructions.

    CPU flags do not distinguish them (Zen 4 gains half, Sapphire Rapids without AMX loses as much), so products are
    timed.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not torch.cpu._is_avx512_bf16_supported():
        return False
    size = 512  # rows and columns: 2 ms per product
    matrices = {dtype: torch.ones(size, size, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = dict.fromkeys(matrices, math.inf)
    for _ in range(9):  # alternate, so that load on the machine slows down both
        for dtype, matrix in matrices.items():
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.bfloat16] < 0.9 * seconds[torch.float32]


def should_compile(device: torch.device, setting: str = "auto") -> bool:
    """True if the network should be compiled.

    "auto" compiles on CUDA only, since compiling rarely pays on CPUs (benchmarks/NOTES.md).
    """
    return setting == "yes" or (setting == "auto" and device.type == "cuda")


def has_compiler() -> bool:
    """True if there is a C++ compiler, which torch.compile needs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def free_memory(device: torch.device) -> int:
    """Bytes of memory available on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            return next(int(line.split()[1]) << 10 for line in meminfo if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: half of the physical memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def peak_flops(device: torch.device) -> float | None:
    """Published dense bfloat16 FLOP/s of the device, None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for model, peak in _PEAK_FLOPS.items() if model in name), None)
