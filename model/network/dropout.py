"""Dropout, with a byte of chance for each number on a CPU, where drawing is what it costs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Sets a share of the numbers to zero and scales the others up (Srivastava et al. 2014), in training only.

    torch's own draws a float each on a CPU; bytes of 64-bit draws take a third of the time, and round the share to a
    multiple of 1/256 (benchmarks/NOTES.md).
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.share):
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.share)
        least = min(max(round(self.share * 256), 1), 255)
        drawn = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
        kept = drawn.view(torch.uint8)[: x.numel()].view(x.shape) >= least
        return x * kept.to(x.dtype).mul_(256 / (256 - least))

    def extra_repr(self) -> str:
        return f"share={self.share}"
