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

_PIECE = {"cpu": 1 << 21, "cuda": 1 << 27}  # logits at once
_ROWS = 256  # at least: each piece adds to all of the head's gradient


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, softcap: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """Mean cross entropy in nats of `softcapped(x @ weight.T) + bias`, the logits in fp32.

    `x` (N, C), `weight` (V, C), `targets` (N,) ids, `bias` (V,). The products are in autocast's dtype where that is on.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    return _LinearCrossEntropy.apply(x, weight, targets, softcap, bias)


def softcapped(logits: Tensor, softcap: float) -> Tensor:
    """Bent to within +-softcap: c z / sqrt(c² + z²); 0 leaves them."""
    return softcap * logits * torch.rsqrt(logits.square() + softcap**2) if softcap else logits


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float, bias: Tensor | None
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return _forward(context, x, weight, targets, softcap, bias)

    @staticmethod
    def backward(context: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_weight, of_bias = context.saved_tensors
        bias = of_bias * scale if context.needs_input_grad[4] else None
        return (of_x * scale).to(of_x.dtype), of_weight * scale, None, None, bias


def _forward(context: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float, bias: Tensor | None) -> Tensor:
    """The softmax is never made: its rows are those of e = exp(logits - their maximum), each over its sum, and
    products of `e` are divided by the sums afterwards, when they are C and not V numbers a row."""
    count, vocabulary = len(targets), len(weight)
    rows = min(count, max(_ROWS, _PIECE.get(x.device.type, 1 << 24) // vocabulary))
    learns = any(context.needs_input_grad)
    narrow = weight.to(x.dtype)  # once, in the dtype of the products
    of_x, of_weight = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
    of_bias = of_weight.new_zeros(vocabulary)
    slopes = of_weight.new_ones(count, 1)  # of the softcap, where the target is
    # The same rooms for each piece: fresh memory would cost as much as the products.
    room = x.new_empty(rows, vocabulary)
    bends = of_weight.new_empty(rows, vocabulary) if softcap else of_weight
    total = of_weight.new_zeros(())
    for start in range(0, count, rows):
        here = slice(start, start + rows)
        piece, wanted = x[here], targets[here, None]
        logits = torch.mm(piece, narrow.t(), out=room[: len(piece)]).float()  # (rows, V)
        if softcap:
            bend = bends[: len(piece)].fill_(1).addcmul_(logits, logits, value=softcap**-2).rsqrt_()
            logits.mul_(bend)
        if bias is not None:
            logits.add_(bias)
        highest, chosen = logits.amax(-1, keepdim=True), logits.gather(-1, wanted)
        e = logits.sub_(highest).exp_()
        sums = e.sum(-1, keepdim=True)
        total += (sums.log() + highest - chosen).sum()
        if not learns:
            continue
        if bias is not None:
            of_bias.addmv_(e.t(), (1 / sums).squeeze(-1))
        if softcap:  # d/dz of c z / sqrt(c² + z²) is (1 + z² / c²) ^ -3/2
            e.mul_(bend.pow_(3))
            slopes[here] = bend.gather(-1, wanted)
        e = e.to(x.dtype)
        torch.mm(e, narrow, out=of_x[here])
        of_x[here] /= sums
        shared = (piece / sums).to(x.dtype)
        if x.dtype == of_weight.dtype:
            of_weight.addmm_(e.t(), shared)
        else:  # sums of many pieces stay in fp32
            of_weight += e.t() @ shared
    if learns:
        of_x -= narrow[targets] * slopes.to(x.dtype)
        of_weight.index_add_(0, targets, x * slopes, alpha=-1)
        of_bias.index_add_(0, targets, slopes.new_ones(count), alpha=-1)
        context.save_for_backward(of_x.div_(count), of_weight.div_(count).to(weight.dtype), of_bias.div_(count))
    return total / count
