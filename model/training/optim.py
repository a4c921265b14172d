"""Optimizers: AdamW (Loshchilov & Hutter 2019) for all weights, or Muon for the matrices of the blocks and AdamW for
the rest. Bigram embeddings use an Adam that updates only the rows of a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from model.config import TrainConfig
from model.network.gpt import GPT
from model.training.distributed import World, full_tensor, local_part

# Coefficients of a quintic that maps singular values towards 1, and its iterations (Jordan et al. 2024, Muon).
_QUINTIC = (3.4445, -4.7750, 2.0315)
_NEWTON_STEPS = 5
_EPSILON = 1e-10
_VECTORS = ("shares", "attention.gate.weight")  # two-dimensional, but their rows are independent


def make_optimizers(
    model: GPT, config: TrainConfig, precision: str = "fp32", world: World | None = None
) -> list[torch.optim.Optimizer]:
    """Build the optimizers that together train each weight once.

    Muon's matrix products have this `precision` and are divided among the processes of `world`. Frozen weights are left
    out. With low-rank factors, embeddings and heads are trained without decay: most of their rows are frozen.
    """
    bigrams = [model.bigrams.table.weight] if model.bigrams is not None else []
    heads = [model.head.weight] if model.head is not None else []
    embeddings = [table.weight for table in (model.embedding, model.position) if table is not None]
    named = model.blocks.named_parameters()
    matrices = [weight for name, weight in named if weight.dim() == 2 and not name.endswith(_VECTORS)]
    trained_matrices = [weight for weight in matrices if weight.requires_grad]
    grouped = {id(weight) for weight in (*bigrams, *heads, *embeddings, *matrices)}
    vectors = [weight for weight in model.parameters() if id(weight) not in grouped]
    betas = (config.beta1, config.beta2)
    optimizers: list[torch.optim.Optimizer] = []
    if bigrams and bigrams[0].requires_grad:  # moments change only for the rows of a batch
        optimizers.append(torch.optim.SparseAdam(bigrams, config.embedding_rate, betas, eps=_EPSILON))
    if config.optimizer == "adamw":
        rate, decay = config.learning_rate, config.weight_decay
        tables, table_decay = (*embeddings, *heads), 0.0 if config.lora_rank else decay
        groups = [(tables, rate, table_decay), (matrices, rate, decay), (vectors, rate, 0.0)]
    else:
        groups = [
            (embeddings, config.embedding_rate, config.embedding_decay),
            (heads, config.head_rate, config.embedding_decay),
            (vectors, config.vector_rate, 0.0),
        ]
        if trained_matrices:
            options = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "momentum": config.momentum}
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            optimizers.append(Muon(trained_matrices, **options, cautious=config.cautious, dtype=dtype, world=world))
    adamw = [
        {"params": trained, "lr": rate, "weight_decay": decay}
        for weights, rate, decay in groups
        if (trained := [weight for weight in weights if weight.requires_grad])
    ]
    # Fused: one kernel for all weights. Gradients of rare tokens are small, so epsilon must be small too.
    return [*optimizers, torch.optim.AdamW(adamw, config.learning_rate, betas, eps=_EPSILON, fused=True)]


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates: all directions of a matrix learn at one rate (Jordan et al. 2024).

    Like torch.optim.Muon with its original scaling, sqrt(max(1, rows / columns)), and Nesterov momentum. In addition,
    matrices of one shape are orthogonalized together, with products in `dtype`, each by one process of `world`, and
    `cautious` decays a weight only where the step shrinks it too (Chen et al. 2025).
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
        world: World | None = None,
    ) -> None:
        self.dtype, self.world = dtype, world or World()
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "cautious": cautious})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for weights in by_shape.values():
                self._step(weights, group)

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Update the N weights of one shape (R, S)."""
        rate, momentum = group["lr"], group["momentum"]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        nesterov = torch._foreach_lerp(gradients, buffers, momentum)
        stacked = torch.stack([full_tensor(update) for update in nesterov])
        updates = self.world.map_shared(orthogonal, stacked.to(self.dtype))  # (N, R, S)
        scale = max(1.0, weights[0].shape[0] / weights[0].shape[1]) ** 0.5
        for weight, update in zip(weights, updates.to(weights[0].dtype), strict=True):
            change = local_part(update, weight)
            if group["cautious"]:
                weight.mul_(1 - rate * group["weight_decay"] * (change * weight > 0))
            else:
                weight.mul_(1 - rate * group["weight_decay"])
            weight.add_(change, alpha=-rate * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """Orthogonalize matrices (N, R, S) by Newton-Schulz, roughly: singular values end up between 0.7 and 1.2."""
    a, b, c = _QUINTIC
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_NEWTON_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
