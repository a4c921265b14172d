"""Dropout that draws one random byte per element on a CPU, where drawing is the largest cost."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MIN_INT64 = -(2**63)


class Dropout(nn.Module):
    """Set elements to zero with probability `p` and scale up the others (Srivastava et al. 2014), in training only.

    On a CPU torch's own dropout draws a float per element. The bytes of 64-bit draws take a third of the time, and
    round `p` to a multiple of 1/256 (benchmarks/NOTES.md).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.p):
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        threshold = min(max(round(self.p * 256), 1), 255)
        # 64 random bits, by a function that torch.compile supports. The flip of the highest bit keeps the bytes of
        # older versions.
        random = torch.randint(_MIN_INT64, -(_MIN_INT64 + 1), (-(-x.numel() // 8),)) ^ _MIN_INT64
        keep = random.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
        return x * keep.to(x.dtype).mul_(256 / (256 - threshold))

    def extra_repr(self) -> str:
        return f"p={self.p}"
