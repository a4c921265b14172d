"""Cross entropy of a linear head that never holds all logits: a piece of rows at a time, gradients at once.

The logits of a batch are its largest tensor by far (32 x 1024 rows of 50,304 are 6.6 GB in fp32), and the loss needs
each of them only for a moment. So each piece makes its logits, its loss, and at once the gradients of the head and of
the stream, which wait for `backward`. The same three matrix products as without it, in a fraction of the memory; on
a CPU a piece also stays in the cache (benchmarks/NOTES.md). After Liger's fused cross entropy (Hsu et al. 2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_PIECE = {"cpu": 1 << 22, "cuda": 1 << 27}  # logits at once


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, softcap: float = 0.0) -> Tensor:
    """Mean cross entropy in nats of `softcapped(x @ weight.T)`, the logits in fp32.

    `x` (N, C), `weight` (V, C), `targets` (N,) ids. The products are in autocast's dtype where autocast is on.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    return _LinearCrossEntropy.apply(x, weight, targets, softcap)


def softcapped(logits: Tensor, softcap: float) -> Tensor:
    """Bent to within +-softcap: c z / sqrt(c² + z²); 0 leaves them."""
    return softcap * logits * torch.rsqrt(logits.square() + softcap**2) if softcap else logits


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return _forward(context, x, weight, targets, softcap)

    @staticmethod
    def backward(context: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_weight = context.saved_tensors
        return of_x * scale.to(of_x.dtype), of_weight * scale, None, None


def _forward(context: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    count, vocabulary = len(targets), len(weight)
    rows = min(count, max(1, _PIECE.get(x.device.type, 1 << 24) // vocabulary))
    learns = any(context.needs_input_grad)
    narrow = weight.to(x.dtype)  # once, in the dtype of the products
    of_x, of_weight = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
    room = x.new_empty(rows, vocabulary)  # the same for each piece: fresh memory would cost as much as the products
    total = torch.zeros((), dtype=torch.float32, device=x.device)
    for start in range(0, count, rows):
        piece, wanted = x[start : start + rows], targets[start : start + rows, None]
        raw = torch.mm(piece, narrow.t(), out=room[: len(piece)]).float()  # (rows, V)
        scores = softcapped(raw, softcap).log_softmax(-1)
        total -= scores.gather(-1, wanted).sum()
        if not learns:
            continue
        slope = scores.exp_()
        slope.scatter_add_(-1, wanted, slope.new_full((len(wanted), 1), -1.0))
        if softcap:  # d/dz of c z / sqrt(c² + z²) is (1 + z² / c²) ^ -3/2
            bend = torch.addcmul(torch.ones((), device=raw.device), raw, raw, value=softcap**-2).rsqrt_()
            slope *= bend
            slope *= bend.square_()
        slope = slope.to(x.dtype)
        torch.mm(slope, narrow, out=of_x[start : start + rows])
        if x.dtype == of_weight.dtype:
            of_weight.addmm_(slope.t(), piece)
        else:  # sums of many pieces stay in fp32
            of_weight += slope.t() @ piece
    if learns:
        context.save_for_backward(of_x.div_(count), of_weight.div_(count).to(weight.dtype))
    return total / count
