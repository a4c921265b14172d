"""Causal depthwise convolution over the tokens before each one (Allen-Zhu 2025, Canon layers).

Shapes: B sequences, T tokens per sequence, C = width, W = width of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Convolution(nn.Module):
    """Causal depthwise convolution with a residual connection: the identity at initialisation."""

    def __init__(self, kernel_width: int, width: int) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.zeros(kernel_width, width))  # the kernel; checkpoints contain this name

    def forward(self, x: Tensor, tail: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). `tail` (B, W - 1, C) holds the inputs before x, and is updated in place.

        With `positions` (B, T) of the tokens in their documents, earlier documents do not affect a token.
        """
        if tail is None:
            return _convolve(x, self.shares, positions)
        x = torch.cat((tail, x), dim=1)
        tail.copy_(x[:, x.shape[1] - tail.shape[1] :])
        return _convolve(x, self.shares, None)[:, tail.shape[1] :]


class _Convolve(torch.autograd.Function):
    """y[t] = x[t] + sum of kernel[k] * x[t - k]. Makes no shifted copies of x, since memory bandwidth limits it.

    With positions, the sum ends at the beginning of a document; x is then copied once for each shift.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, positions: Tensor | None) -> Tensor:
        # (B, T, C), (W, C), (B, T) -> (B, T, C)
        ctx.save_for_backward(x, kernel, positions)
        y = x * (1 + kernel[0])
        for shift in range(1, min(len(kernel), x.shape[1])):
            y[:, shift:].addcmul_(_within(x[:, :-shift], positions, shift), kernel[shift])
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None]:
        x, kernel, positions = ctx.saved_tensors
        grad_x, grad_kernel = grad_y * (1 + kernel[0]), torch.zeros_like(kernel)
        grad_kernel[0] = (grad_y * x).sum((0, 1))
        for shift in range(1, min(len(kernel), x.shape[1])):
            grad = _within(grad_y[:, shift:], positions, shift)
            grad_x[:, :-shift].addcmul_(grad, kernel[shift])
            grad_kernel[shift] = (grad * x[:, :-shift]).sum((0, 1))
        return grad_x, grad_kernel, None


def _within(values: Tensor, positions: Tensor | None, shift: int) -> Tensor:
    """Zero the `values` (B, T - shift, C) that a shift moves into the next document."""
    return values if positions is None else values * (positions[:, shift:, None] >= shift)


_convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor] = _Convolve.apply


def convolve(
    x: Tensor, convolution: Convolution | None, tail: Tensor | None, positions: Tensor | None = None
) -> Tensor:
    if convolution is None:
        return x
    y: Tensor = convolution(x, tail, positions)
    return y
