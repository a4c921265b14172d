"""The optimisers: AdamW (Loshchilov & Hutter 2019) for everything, or Muon for the matrices of the blocks and AdamW for
what remains; embeddings of pairs by Adam on those rows alone that a batch has met."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from model.config import TrainConfig
from model.network.gpt import GPT
from model.training.distributed import plain

# Five steps of a polynomial that takes singular values towards 1 (Jordan et al. 2024, Muon).
_QUINTIC = (3.4445, -4.7750, 2.0315)
_NEWTON_STEPS = 5
_SMALL = 1e-10
_NO_MATRICES = ("shares", "attention.gate.weight")  # of two dimensions, but each row is by itself


def make(model: GPT, config: TrainConfig, precision: str = "fp32") -> list[torch.optim.Optimizer]:
    """The optimisers that together train each weight of the model once. `precision` is that of Muon's products."""
    pairs = [model.bigrams.table.weight] if model.bigrams is not None else []
    heads = [model.head.weight] if model.head is not None else []
    tables = [each.weight for each in (model.embedding, model.position) if each is not None]
    named = model.blocks.named_parameters()
    blocks = [weight for name, weight in named if weight.dim() == 2 and not name.endswith(_NO_MATRICES)]
    chosen = {id(weight) for weight in (*pairs, *heads, *tables, *blocks)}
    vectors = [weight for weight in model.parameters() if id(weight) not in chosen]
    betas = (config.beta1, config.beta2)
    made: list[torch.optim.Optimizer] = []
    if pairs:  # only rows that came have moments that move
        made.append(torch.optim.SparseAdam(pairs, config.embedding_rate, betas, eps=_SMALL))
    if config.optimizer == "adamw":
        rate, decay = config.learning_rate, config.weight_decay
        groups = [((*tables, *heads, *blocks), rate, decay), (vectors, rate, 0.0)]
    else:
        groups = [
            (tables, config.embedding_rate, config.embedding_decay),
            (heads, config.head_rate, config.embedding_decay),
            (vectors, config.vector_rate, 0.0),
        ]
        if blocks:
            numbers = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "momentum": config.momentum}
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            made.append(Muon(blocks, **numbers, cautious=config.cautious, dtype=dtype))
    trained = [{"params": each, "lr": rate, "weight_decay": decay} for each, rate, decay in groups if each]
    # Fused: one call for all weights. The gradients of rare tokens are small, so the second moments' floor is too.
    return [*made, torch.optim.AdamW(trained, config.learning_rate, betas, eps=_SMALL, fused=True)]


class Muon(torch.optim.Optimizer):
    """Momentum of the gradient, made orthogonal: every direction of a matrix learns alike (Jordan et al. 2024).

    As torch.optim.Muon with its original scaling, sqrt(max(1, rows / columns)), and Nesterov momentum; but matrices of
    one shape are made orthogonal together, their products in `dtype`, and `cautious` decays a weight only where the
    step shrinks it too (Chen et al. 2025).
    """

    def __init__(
        self,
        weights: Iterable[Tensor],
        lr: float,
        weight_decay: float,
        momentum: float,
        *,
        cautious: bool = False,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.dtype = dtype
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "cautious": cautious})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
            for weights in alike.values():
                self._step(weights, group)

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """One step of the N weights of one shape (R, S)."""
        rate, momentum = group["lr"], group["momentum"]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        nesterov = torch._foreach_lerp(gradients, buffers, momentum)
        updates = orthogonal(torch.stack([plain(each) for each in nesterov]).to(self.dtype))  # (N, R, S)
        scale = max(1.0, weights[0].shape[0] / weights[0].shape[1]) ** 0.5
        for weight, update in zip(weights, updates.to(weights[0].dtype), strict=True):
            change = _like(update, weight)
            if group["cautious"]:
                weight.mul_(1 - rate * group["weight_decay"] * (change * weight > 0))
            else:
                weight.mul_(1 - rate * group["weight_decay"])
            weight.add_(change, alpha=-rate * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices of (N, R, S), roughly: singular values between 0.7 and 1.2, by Newton-Schulz."""
    a, b, c = _QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_NEWTON_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _like(whole: Tensor, weight: Tensor) -> Tensor:
    """The part of a whole matrix that this process holds of `weight`."""
    if not isinstance(weight, DTensor):
        return whole
    return distribute_tensor(whole, weight.device_mesh, weight.placements)
