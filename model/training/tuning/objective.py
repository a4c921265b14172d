"""The losses of tuning: cross entropy of answers (sft), and direct preference optimization (dpo)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.network import masks
from model.network.gpt import GPT

Network = Callable[..., Tensor]
Objective = Callable[[Network, Tensor], Tensor]
"""Computes what packed rows (B, PLANES, T) contribute to the loss of their step. The network is called as a GPT is."""


@dataclass(frozen=True)
class Tuning:
    """The loss of a tuning, and the ids of the chat template's `special` tokens."""

    loss: Objective
    special: tuple[int, ...]


def answer_loss(network: Network, rows: Tensor) -> Tensor:
    """Return the mean cross entropy in nats of the targets with a loss."""
    inputs, targets, divisors, positions, _ = rows.unbind(1)
    weights = torch.where(divisors > 0, 1.0 / divisors.clamp(min=1), 0.0)
    return network(inputs, targets, masks.packed_mask(positions), positions, weights)


class PreferenceLoss:
    """Direct preference optimization (Rafailov et al. 2023, equation 7): the mean of -log sigmoid(margin) over pairs.

    The margin of a pair is beta (log p(chosen) / p_ref(chosen) - log p(rejected) / p_ref(rejected)). p is the
    probability that the network gives an answer, p_ref that of the frozen `reference`. A row has at most `segments`
    conversations.
    """

    def __init__(self, reference: GPT, beta: float, segments: int) -> None:
        self.reference = reference.eval().requires_grad_(False)
        self.beta, self._segments = beta, segments

    def __call__(self, network: Network, rows: Tensor) -> Tensor:
        inputs, targets, divisors, positions, segments = rows.unbind(1)
        arguments = (inputs, targets, masks.packed_mask(positions), positions, (divisors > 0).float())
        losses = network(*arguments, summed=False)
        with torch.no_grad():
            reference_losses = self.reference(*arguments, summed=False)
        margins, is_pair = self.margins(reference_losses - losses, segments)
        return (F.softplus(-margins) * is_pair).sum() / divisors.amax()

    def margins(self, ratios: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margins (B, P) of the pairs in each row, and a mask (B, P): 1 for a pair, 0 for padding.

        `ratios` (B, T) are log p / p_ref of the targets, 0 for those without a loss; `segments` (B, T) as in the rows.
        """
        # An addition by index would sum in any order on a GPU, and autocast would round a matrix product.
        members = F.one_hot(segments, self._segments + 1)[..., 1:].float()  # (B, T, S)
        sums = (ratios[..., None] * members).sum(1)
        return self.beta * (sums[:, ::2] - sums[:, 1::2]), members.amax(1)[:, ::2]
