"""A GPU that torch reports and that is not there."""

from __future__ import annotations

import pytest
import torch

from model import device as devices


def use_gpu(monkeypatch: pytest.MonkeyPatch, name: str = "NVIDIA H100 80GB HBM3", **functions: object) -> None:
    """Let torch report one GPU; `functions` replace others of torch.cuda."""
    devices._has_fast_bfloat16.cache_clear()
    defaults: dict[str, object] = {
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (8 << 30, 16 << 30),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
    }
    for function, fake in (defaults | functions).items():
        monkeypatch.setattr(torch.cuda, function, fake)
