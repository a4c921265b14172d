"""Cross entropy of a linear output head without storing all logits, with gradients computed in the forward pass.

The logits of a batch are its largest tensor by far (32 x 1024 rows of 50,304 are 6.6 GB in fp32), and the loss needs
each of them only once. So the rows are processed in chunks: each chunk computes its logits, its loss, and immediately
the gradients of the head and of the stream, which `backward` only scales. These are the same three matrix products as
in the plain computation, in a fraction of the memory; on a CPU a chunk also stays in the cache (benchmarks/NOTES.md).
After Liger's fused cross entropy (Hsu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 27}  # logits per chunk, by device type
_MIN_ROWS = 256  # per chunk, since each chunk adds to the full gradient of the head


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float = 0.0,
    bias: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy in nats of the logits `softcapped(x @ weight.T) + bias`, which are in fp32.

    `x` (N, C), `weight` (V, C), `targets` (N,) ids, `bias` (V,). Under autocast the products are in its dtype. With
    `weights` (N,) of the targets, their weighted sum; rows whose weight is 0 cost nothing.
    """
    apply: Callable[..., Tensor] = _LinearCrossEntropy.apply
    return apply(in_autocast_dtype(x), weight, targets, softcap, bias, weights)


def token_losses(
    x: Tensor, weight: Tensor, targets: Tensor, softcap: float, bias: Tensor | None, weights: Tensor
) -> Tensor:
    """Weighted cross entropy (N,) in nats of each target, for a loss that is not their sum.

    Otherwise as `linear_cross_entropy`. The backward pass computes the logits again.
    """
    apply: Callable[..., Tensor] = _TokenLosses.apply
    return apply(in_autocast_dtype(x), weight, targets, softcap, bias, weights)


def in_autocast_dtype(x: Tensor) -> Tensor:
    """Convert to the dtype of products under autocast; without autocast return `x`."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def chunk_rows(count: int, vocab_size: int, device_type: str) -> int:
    """Return how many of `count` rows have their logits in memory at once."""
    return min(count, max(_MIN_ROWS, _CHUNK_LOGITS.get(device_type, 1 << 24) // vocab_size))


def softcapped(logits: Tensor, softcap: float) -> Tensor:
    """Limit logits to +-softcap by c z / sqrt(c² + z²); a softcap of 0 returns them unchanged."""
    return softcap * logits * torch.rsqrt(logits.square() + softcap**2) if softcap else logits


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        softcap: float,
        bias: Tensor | None,
        weights: Tensor | None,
    ) -> Tensor:
        ctx.rows = None if weights is None else _weighted_rows(weights)
        ctx.count = len(x)
        if ctx.rows is not None:
            assert weights is not None
            x, targets, weights = x[ctx.rows], targets[ctx.rows], weights[ctx.rows]
        with torch.autocast(x.device.type, enabled=False):
            return _forward(ctx, x, weight, targets, softcap, bias, weights)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, grad_bias = ctx.saved_tensors
        bias = grad_bias * grad_loss if ctx.needs_input_grad[4] else None
        grad_x = (grad_x * grad_loss).to(grad_x.dtype)
        return _all_rows(grad_x, ctx), grad_weight * grad_loss, None, None, bias, None


class _TokenLosses(torch.autograd.Function):
    """The backward pass is that of `linear_cross_entropy`, with the weights times the gradients of the losses."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float, bias: Tensor | None, weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, targets, bias, weights)
        ctx.softcap = softcap
        losses = torch.zeros_like(weights)
        rows = _weighted_rows(weights)
        rows = torch.arange(len(weights), device=weights.device) if rows is None else rows
        narrow_weight = weight.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            for chunk in torch.split(rows, chunk_rows(max(len(rows), 1), len(weight), x.device.type)):
                logits = softcapped((x[chunk] @ narrow_weight.t()).float(), softcap)
                logits = logits if bias is None else logits + bias
                losses[chunk] = F.cross_entropy(logits, targets[chunk], reduction="none") * weights[chunk]
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, targets, bias, weights = ctx.saved_tensors
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        bias = None if bias is None else bias.detach().requires_grad_()
        inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
        with torch.enable_grad():
            loss = linear_cross_entropy(x, weight, targets, ctx.softcap, bias, weights * grad_losses)
            grads = torch.autograd.grad(loss, inputs)
        return grads[0], grads[1], None, None, grads[2] if bias is not None else None, None


def _weighted_rows(weights: Tensor) -> Tensor | None:
    """Return the indices of the rows with a weight; None in a compiled network, whose shapes must not change."""
    return None if torch.compiler.is_compiling() else weights.nonzero().squeeze(-1)


def _all_rows(grad: Tensor, ctx: Any) -> Tensor:
    """Return the gradient (N, C) of all rows from the gradient of the weighted rows; it is zero elsewhere."""
    if ctx.rows is None:
        return grad
    full = grad.new_zeros(ctx.count, grad.shape[1])
    full[ctx.rows] = grad
    return full


def _forward(
    ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float, bias: Tensor | None, weights: Tensor | None
) -> Tensor:
    """Return the loss and save the gradients of `x`, `weight` and `bias` for `backward`.

    The softmax is `exp` = exp(logits - max) divided by the sums of its rows. To save time, the products of `exp` are
    divided instead: they have C numbers per row, not V. The gradient subtracts 1 at the target, which is the row's sum
    in units of `exp`. Weights divide the sums.
    """
    count, vocab_size = len(targets), len(weight)
    divisor = count if weights is None else 1
    rows = chunk_rows(max(count, 1), vocab_size, x.device.type)
    needs_grad = any(ctx.needs_input_grad)
    narrow_weight = weight.to(x.dtype)  # once, in the dtype of the products
    grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
    grad_bias = grad_weight.new_zeros(vocab_size)
    # The chunks share these buffers: reallocating them would cost as much as the products.
    logits_buffer = x.new_empty(rows, vocab_size)
    factors_buffer = grad_weight.new_empty(rows, vocab_size) if softcap else grad_weight
    total = grad_weight.new_zeros(())
    for start in range(0, count, rows):
        chunk = slice(start, start + rows)
        x_chunk, target_ids = x[chunk], targets[chunk, None]
        logits = torch.mm(x_chunk, narrow_weight.t(), out=logits_buffer[: len(x_chunk)]).float()  # (rows, V)
        if softcap:
            factors = factors_buffer[: len(x_chunk)].fill_(1).addcmul_(logits, logits, value=softcap**-2).rsqrt_()
            logits.mul_(factors)
        if bias is not None:
            logits.add_(bias)
        exp, sums, losses = _exponentials(logits, target_ids)
        total += losses.sum() if weights is None else (losses.squeeze(-1) * weights[chunk]).sum()
        if not needs_grad:
            continue
        # Each row has one target, so no address is written twice: the result does not depend on a GPU's order.
        exp.scatter_(-1, target_ids, exp.gather(-1, target_ids) - sums)
        if weights is not None:
            sums /= weights[chunk, None]
        if bias is not None:
            grad_bias.addmv_(exp.t(), (1 / sums).squeeze(-1))
        if softcap:  # d/dz of c z / sqrt(c² + z²) is (1 + z² / c²) ^ -3/2
            exp.mul_(factors.pow_(3))
        exp = exp.to(x.dtype)
        torch.mm(exp, narrow_weight, out=grad_x[chunk])
        grad_x[chunk] /= sums
        scaled_x = (x_chunk / sums).to(x.dtype)
        if x.dtype == grad_weight.dtype:
            grad_weight.addmm_(exp.t(), scaled_x)
        else:  # accumulate over the chunks in fp32
            grad_weight += exp.t() @ scaled_x
    if needs_grad:
        gradients = (grad_x.div_(divisor), grad_weight.div_(divisor).to(weight.dtype), grad_bias.div_(divisor))
        ctx.save_for_backward(*gradients)
    return total / divisor


def _exponentials(logits: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn logits (rows, V) into exp(logits - max) in place; return them, their sums and the losses, both (rows, 1)."""
    max_logits, target_logits = logits.amax(-1, keepdim=True), logits.gather(-1, target_ids)
    exp = logits.sub_(max_logits).exp_()
    sums = exp.sum(-1, keepdim=True)
    return exp, sums, sums.log() + max_logits - target_logits
