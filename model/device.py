"""Which device computes, and how fast it could at best."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from pipeline.errors import BadConfig

# Dense bfloat16 peaks in FLOP/s from NVIDIA's data sheets (SXM parts).
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12}


def pick(asked: str = "auto") -> torch.device:
    """cuda, else mps, else cpu; or the one that was asked for. Raises BadConfig when this machine lacks it."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    kind = asked.partition(":")[0]
    if not available.get(kind):
        there = ", ".join(name for name, yes in available.items() if yes)
        raise BadConfig(f"no device {asked!r} here", hint=f"this machine has: {there}")
    return torch.device(asked)


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 for the matrix products where the device is built for it; fp32 elsewhere."""
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def peak_flops(device: torch.device) -> float | None:
    """The device's published bfloat16 peak, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)
