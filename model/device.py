"""Device selection, precision, free memory and peak FLOP/s."""

from __future__ import annotations

import functools
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from pipeline.errors import BadConfig

# Dense bfloat16 FLOP/s from NVIDIA's data sheets (SXM parts).
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12}
_MAX_REASON = 200  # characters of an error of torch


def pick_device(name: str = "auto", report: Callable[[str], None] = lambda line: None) -> torch.device:
    """Return the named device, or for "auto" the first of cuda, mps and cpu that works; one that does not is reported.

    Raises BadConfig if this machine does not have the device. Also makes CPUs flush denormal numbers (below 1e-38) to
    zero, since products with them take a hundred times as long (benchmarks/NOTES.md). Threads inherit that setting
    when they start, so call this before torch starts any. And silences torch's warning that RMSNorm is not fused under
    autocast.
    """
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    names = [kind for kind, count in counts.items() if count]
    if name == "auto":
        for kind in names[:-1]:
            if not (problem := _problem(device := torch.device(kind))):
                return device
            report(f"{kind} cannot be used ({problem}); --device auto takes the next device")
        return torch.device("cpu")
    match = re.fullmatch(r"([a-z]+)(?::([0-9]{1,4}))?", name)
    if not match or int(match[2] or 0) >= counts.get(match[1], 0):
        listed = [f"{kind}:0 to {kind}:{counts[kind] - 1}" if counts[kind] > 1 else kind for kind in names]
        raise BadConfig(f"no device {name!r} on this machine", hint=f"use one of: {', '.join(listed)}")
    device = torch.device("cpu" if match[1] == "cpu" else name)
    if problem := _problem(device):
        raise BadConfig(f"device {name} cannot be used: {problem}", hint="--device auto takes one that can")
    return device


def _problem(device: torch.device) -> str:
    """Return the first line of the error of a first allocation on a device, "" if it works."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # no driver, no kernels for it, no memory left, not compiled in
        return (str(error).splitlines() or [type(error).__name__])[0][:_MAX_REASON]
    return ""


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

    "auto" compiles on CUDA only, since compiling rarely pays on CPUs (benchmarks/NOTES.md), and only if there is a
    compiler. Raises BadConfig for "yes" if there is none.
    """
    if setting == "yes" and not has_compiler():
        raise BadConfig("compile=yes needs a C++ compiler, and there is none", hint="install g++, or --set compile=no")
    return setting == "yes" or (setting == "auto" and device.type == "cuda" and has_compiler())


def has_compiler() -> bool:
    """True if there is a C++ compiler, which torch.compile needs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def is_out_of_memory(error: BaseException) -> bool:
    """True if memory, of the device or of the machine, could not be allocated."""
    is_host = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return is_host or isinstance(error, MemoryError | torch.OutOfMemoryError)


def is_compiler_error(error: BaseException) -> bool:
    """True if torch.compile failed, whether in its own stages or in the compiler that it calls."""
    return any(type(error).__module__.startswith(package) for package in ("torch._dynamo", "torch._inductor", "triton"))


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
