"""A GPU that torch reports and that is not there, and what it would wait for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model import device as devices


def use_gpu(monkeypatch: pytest.MonkeyPatch, name: str = "NVIDIA H100 80GB HBM3", **functions: object) -> None:
    """Let torch report one GPU; `functions` replace others of torch.cuda."""
    devices._has_fast_bfloat16.cache_clear()
    defaults: dict[str, object] = {
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: name,
        "get_device_properties": lambda device=None: SimpleNamespace(major=9),
        "mem_get_info": lambda device=None: (8 << 30, 16 << 30),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
    }
    for function, fake in (defaults | functions).items():
        monkeypatch.setattr(torch.cuda, function, fake)


class HostReads(TorchDispatchMode):
    """Counts the numbers that the host reads from the device, for each of which it would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))
