"""Causal attention of short blocks in bfloat16 on a CPU, as batched products that keep the probabilities.

torch's kernel for CPUs computes the probabilities again in the backward pass, and is slow in bfloat16. For blocks of
128 to 512 tokens this takes a quarter to half of its time; in fp32 it would gain nothing (benchmarks/NOTES.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MAX_LENGTH = 512  # tokens of a block: the probabilities take memory for each pair of them
_ROWS = 128  # queries of one product; it leaves out the keys after the last of them


def is_fast(q: Tensor) -> bool:
    """True if `causal_attention` of these queries (B, H, T, D) is faster than torch's attention."""
    return q.device.type == "cpu" and torch.is_autocast_enabled("cpu") and q.shape[2] <= _MAX_LENGTH


def pairs(length: int) -> int:
    """Return the number of probabilities that `causal_attention` stores per head for a block of `length` tokens."""
    if length > _MAX_LENGTH:
        return 0
    ends = [min(start + _ROWS, length) for start in range(0, length, _ROWS)]
    return sum((end - start) * end for start, end in zip(range(0, length, _ROWS), ends, strict=True))


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries (B, H, T, D) to keys and values (B, K, T, D) of the same and of earlier tokens.

    H / K consecutive heads share keys and values. Scores are in fp32, the other products in the dtype of autocast.
    """
    apply: Callable[..., Tensor] = _CausalAttention.apply
    return apply(q, k, v, torch.get_autocast_dtype("cpu"))


class _CausalAttention(torch.autograd.Function):
    """G = B * K groups of R = H / K heads. The queries of a group are the rows of one product."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return _forward(ctx, q, k, v, dtype)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *probabilities = ctx.saved_tensors  # (G, R, T, D), (G, T, D), (G, T, D), (G, R * rows, keys)
        groups, _, length, width = q.shape
        grad_y = grad_y.reshape(q.shape)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for p, start in zip(probabilities, range(0, length, _ROWS), strict=True):
            rows, keys = slice(start, start + _ROWS), slice(p.shape[-1])
            grad_rows, q_rows = (x[:, :, rows].reshape(groups, -1, width) for x in (grad_y, q))
            grad_p = torch.bmm(grad_rows, v[:, keys].mT)
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, :, rows] = torch.bmm(grad_scores, k[:, keys]).view_as(grad_q[:, :, rows])
            grad_k[:, keys] += torch.bmm(grad_scores.mT, q_rows)
            grad_v[:, keys] += torch.bmm(p.mT, grad_rows)
        scale, (q_shape, kv_shape), (q_dtype, k_dtype) = width**-0.5, ctx.shapes, ctx.dtypes
        grad_q, grad_k = grad_q.mul_(scale).to(q_dtype), grad_k.mul_(scale).to(k_dtype)
        return grad_q.view(q_shape), grad_k.view(kv_shape), grad_v.view(kv_shape), None


def _forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the results (B, H, T, D), laid out as (B, T, H, D) since the heads are joined next."""
    (batch, heads, length, width), kv_shape = q.shape, k.shape
    y = q.new_empty(batch, length, heads, width, dtype=dtype).transpose(1, 2)
    ctx.shapes, ctx.dtypes = (q.shape, kv_shape), (q.dtype, k.dtype)
    q = q.reshape(batch * kv_shape[1], -1, length, width)  # (G, R, T, D)
    k, v = k.flatten(0, 1), v.flatten(0, 1).to(dtype)  # (G, T, D)
    wide_k, probabilities = k.float(), []
    for start in range(0, length, _ROWS):
        end = min(start + _ROWS, length)
        rows = q[:, :, start:end].flatten(1, 2).float()  # (G, R * rows, D)
        mask = rows.new_full((end - start, end), -torch.inf).triu(start + 1).repeat(q.shape[1], 1)
        p = torch.baddbmm(mask, rows, wide_k[:, :end].mT, alpha=width**-0.5).softmax(-1).to(dtype)
        y[:, :, start:end] = torch.bmm(p, v[:, :end]).view(batch, heads, -1, width)
        probabilities.append(p)
    ctx.save_for_backward(q.to(dtype), k.to(dtype), v, *probabilities)
    return y
