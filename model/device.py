"""Device selection, precision, free memory and peak FLOP/s."""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import os
import re
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import BadConfig

# (words that the name of a GPU contains, teraFLOP/s of dense products in bfloat16 with fp32 sums, and in fp32), by the
# data sheets and white papers of NVIDIA. The first row that matches counts. None: no bfloat16, or not published.
_PEAKS: tuple[tuple[str, float | None, float | None], ...] = (
    ("Laptop", None, None),  # their clocks differ between notebooks
    ("GB200", 2500, 80),
    ("B200", 2250, 75),
    ("H200 NVL", 835, 60),
    ("H200", 989, 67),
    ("H100 NVL", 835, 60),
    ("H100 PCIe", 756, 51),
    ("H100", 989, 67),
    ("H800 PCIe", 756, 51),
    ("H800", 989, 67),
    ("H20", 148, 44),
    ("A100", 312, 19.5),
    ("A800", 312, 19.5),
    ("A40", 150, 37.4),
    ("A30", 165, 10.3),
    ("A10G", 70, 35),
    ("A10", 125, 31.2),
    ("L40S", 362, 91.6),
    ("L40", 181, 90.5),
    ("L4", 121, 30.3),
    ("V100", None, 15.7),
    ("T4", None, 8.1),
    ("RTX 6000 Ada", 364, 91.1),
    ("RTX A6000", 155, 38.7),
    ("RTX A5000", 111, 27.8),
    ("RTX A4000", 76.7, 19.2),
    ("RTX 5090 D", None, None),
    ("RTX 5090", 209.5, 104.8),
    ("RTX 5080", 112.6, 56.3),
    ("RTX 5070 Ti", 87.9, 43.9),
    ("RTX 5070", 61.7, 30.9),
    ("RTX 5060 Ti", 47.4, 23.7),
    ("RTX 5060", 38.4, 19.2),
    ("RTX 4090 D", 147, 73.5),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 4080 SUPER", 104.4, 52.2),
    ("RTX 4080", 97.5, 48.7),
    ("RTX 4070 Ti SUPER", 88.2, 44.1),
    ("RTX 4070 Ti", 80.2, 40.1),
    ("RTX 4070 SUPER", 71, 35.5),
    ("RTX 4070", 58.3, 29.1),
    ("RTX 4060 Ti", 44.1, 22.1),
    ("RTX 4060", 30.2, 15.1),
    ("RTX 3090 Ti", 80, 40),
    ("RTX 3090", 71, 35.6),
    ("RTX 3080 Ti", 68.2, 34.1),
    ("RTX 3080", 59.5, 29.8),
    ("RTX 3070 Ti", 43.5, 21.7),
    ("RTX 3070", 40.6, 20.3),
    ("RTX 3060 Ti", 32.4, 16.2),
    ("RTX 3060", 25.4, 12.7),
)
_DRIVER = Path("/proc/driver/nvidia/version")
_MAX_REASON = 200  # characters of an error of torch
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc; the values are in bytes


def pick_device(name: str = "auto", report: Callable[[str], None] = lambda line: None) -> torch.device:
    """Return the named device; for "auto" the first of cuda, mps and cpu that works, and report those that do not.

    Raises BadConfig if this machine does not have the device. Also makes CPUs flush denormal numbers (below 1e-38) to
    zero, since products with them take a hundred times as long (benchmarks/NOTES.md). Threads inherit that setting
    when they start, so call this before torch starts any. Also lets the process keep the memory that it frees, and
    silences torch where a user can do nothing about it.
    """
    torch.set_flush_denormal(True)
    _keep_freed_memory()
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # RMSNorm is not fused under autocast
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # precision=fp32 is not TF32
    logging.getLogger("torch._inductor.utils").setLevel(logging.ERROR)  # a small GPU has no mode that is not used
    counts = {"cuda": _gpu_count(report), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
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


def _keep_freed_memory() -> None:
    """Let the allocator of glibc reuse the memory of large tensors, where it has such a setting.

    Otherwise each step returns it to the system, which fills it with zeros again (benchmarks/NOTES.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 28)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def _gpu_count(report: Callable[[str], None]) -> int:
    """Return the number of GPUs; a driver that is too old for this build of torch is reported."""
    count = torch.cuda.device_count()
    if not count and (problem := driver_problem()):
        report(f"the GPU cannot be used ({problem})")
    return count


def driver_problem() -> str:
    """Return why CUDA does not start although this build of torch supports it; "" if it starts or has no driver."""
    if not (torch.version.cuda and _DRIVER.exists()) or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).split(". ")[0][:_MAX_REASON]
    return ""


def _problem(device: torch.device) -> str:
    """Return the first line of the error of a first computation on a device, "" if it works.

    Of several processes on a machine each computes on a GPU of its own: even a small tensor takes 0.5 GB of a GPU.
    """
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and device.index is None and 0 < rank < torch.cuda.device_count():
        device = torch.device("cuda", rank)
    try:
        torch.ones(1, device=device).add(1).item()  # an allocation, a kernel, and the wait for its end
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
    deterministic: bool = False  # use only operations that repeat bit for bit

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


def set_deterministic(enabled: bool) -> None:
    """Restrict torch, its compiler and cuBLAS to operations that repeat bit for bit on the same GPU, or allow all.

    Under the restriction, an operation without a deterministic form raises RuntimeError. New memory is not filled.
    """
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
    torch.use_deterministic_algorithms(enabled)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if enabled or "torch._inductor.config" in sys.modules:  # importing it takes a second
        import torch._inductor.config as inductor

        inductor.deterministic = enabled


def is_nondeterministic(error: BaseException) -> bool:
    """True if an operation has no form that repeats bit for bit."""
    return isinstance(error, RuntimeError) and "deterministic" in str(error)


def describe(device: torch.device) -> str:
    """Return the kind and the model of a device. A run that resumes keeps its execution settings if they are equal."""
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def describe_gpus() -> list[str]:
    """Describe every GPU that torch can see: its name, capability, memory, driver and bfloat16."""
    driver = re.search(r"Module.*?(\d+\.[\d.]+)", _DRIVER.read_text("utf-8")) if _DRIVER.exists() else None
    lines = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free = torch.cuda.mem_get_info(index)[0]
        lines.append(
            f"{properties.name}, capability {properties.major}.{properties.minor}, {free / 1e9:.1f} of "
            f"{properties.total_memory / 1e9:.1f} GB free, driver {driver[1] if driver else 'unknown'}, torch for CUDA "
            f"{torch.version.cuda}, {'bfloat16' if has_bfloat16(torch.device('cuda', index)) else 'no bfloat16'}"
        )
    return lines


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def pick_precision(device: torch.device, setting: str = "auto") -> str:
    """Return `setting`; for "auto" "bf16" if the device multiplies bfloat16 faster than fp32, else "fp32".

    Raises BadConfig for "bf16" on a GPU that has no instructions for it.
    """
    if setting == "bf16" and device.type == "cuda" and not has_bfloat16(device):
        raise BadConfig(
            f"precision=bf16 needs bfloat16 instructions, and {torch.cuda.get_device_name(device)} has none",
            hint="--set precision=fp32, or auto",
        )
    if setting != "auto":
        return setting
    return "bf16" if _has_fast_bfloat16(device) else "fp32"


def has_bfloat16(gpu: torch.device) -> bool:
    """True if a GPU has instructions for bfloat16: one of AMD, or of NVIDIA since Ampere.

    Not torch.cuda.is_bf16_supported, which asks the current GPU: there may be others.
    """
    return bool(torch.version.hip) or torch.cuda.get_device_properties(gpu).major >= 8


@functools.cache
def _has_fast_bfloat16(device: torch.device) -> bool:
    """True if bfloat16 is faster than fp32: on GPUs since Ampere, and on some CPUs with bfloat16 instructions.

    CPU flags do not distinguish them (Zen 4 gains half, Sapphire Rapids without AMX loses as much), so products are
    timed.
    """
    if device.type == "cuda":
        return has_bfloat16(device)
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
        raise BadConfig("compile=yes needs a C++ compiler, found none", hint="install g++, or --set compile=no")
    return setting == "yes" or (setting == "auto" and device.type == "cuda" and has_compiler())


def has_compiler() -> bool:
    """True if there is a C++ compiler, which torch.compile needs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def is_out_of_memory(error: BaseException) -> bool:
    """True if memory, of the device or of the machine, could not be allocated."""
    is_host = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return is_host or isinstance(error, MemoryError | torch.OutOfMemoryError)


@contextmanager
def out_of_memory_refused(device: torch.device) -> Iterator[None]:
    """Turn an out-of-memory error into BadConfig. For work that a smaller micro-batch would not make fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BadConfig(
            f"the training does not fit into the memory of {device}",
            hint="choose a smaller model, or close other programs; the same command resumes from the last checkpoint",
        ) from None


def is_compiler_error(error: BaseException) -> bool:
    """True if torch.compile failed, whether in its own stages or in the compiler that it calls."""
    return any(type(error).__module__.startswith(package) for package in ("torch._dynamo", "torch._inductor", "triton"))


def free_memory(device: torch.device) -> int:
    """Bytes of memory available on the device, including the unused reserve of torch's allocator."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            return next(int(line.split()[1]) << 10 for line in meminfo if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: half of the physical memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def used_memory(device: torch.device) -> int:
    """Bytes of memory that torch's allocator has reserved on the device; on a CPU, the memory of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # macOS: the peak, in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_flops(device: torch.device, precision: str = "bf16") -> float | None:
    """Published FLOP/s of dense products of that precision on the device, None if unknown."""
    if device.type != "cuda":
        return None
    words = set(torch.cuda.get_device_name(device).replace("-", " ").split())
    for model, *peaks in _PEAKS:
        if words.issuperset(model.split()):
            peak = peaks[precision == "fp32"]
            return peak and peak * 1e12
    return None
