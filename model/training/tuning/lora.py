"""Low-rank adaptation (Hu et al. 2022): a matrix becomes W + 2 B A, and only the low-rank factors B and A are trained.

The matrices of the blocks get factors. In the tables of the vocabulary, only the rows of the chat template's special
tokens are trained, since they are new. All other weights are frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.gpt import GPT, VOCABULARY_TABLES

_SCALE = 2.0  # alpha / rank, the usual choice
_A, _B = ".lora_a", ".lora_b"


class LoRALinear(nn.Linear):
    """A linear layer with the factors A (rank, in) and B (out, rank)."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(self.weight.new_empty(self.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + _SCALE * F.linear(F.linear(x, self.lora_a), self.lora_b)


def add(model: GPT, rank: int, special: Collection[int]) -> None:
    """Add factors of this rank to the matrices of a network. Freeze all but them and the rows of the `special` ids."""
    model.requires_grad_(False)
    for block in model.blocks:
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear) and not name.endswith("attention.gate"):
                block.set_submodule(name, LoRALinear(layer, rank))
    for name, table in model.named_parameters():
        if name in VOCABULARY_TABLES:
            _train_rows(table, special)


def _train_rows(table: nn.Parameter, ids: Collection[int]) -> None:
    is_trained = torch.zeros(len(table), *[1] * (table.dim() - 1), device=table.device)
    is_trained[list(ids)] = 1.0
    table.requires_grad_().register_hook(lambda grad: grad * is_trained)  # type: ignore[no-untyped-call]


def with_factors(weights: Mapping[str, Tensor], model: GPT, seed: int) -> dict[str, Tensor]:
    """Return `weights` with the factors that they lack: A uniform in +-1 / sqrt(in), B zero, so that B A is zero."""
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        if name.endswith(_A):
            bound = weight.shape[1] ** -0.5
            factors[name] = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)
        elif name.endswith(_B):
            factors[name] = torch.zeros(weight.shape)
    return {**factors, **weights}


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge the factors into the matrices. Return the weights of an equivalent network without factors."""
    result = {name: weight for name, weight in weights.items() if not name.endswith((_A, _B))}
    for name, factor in weights.items():
        if name.endswith(_A):
            owner = name.removesuffix(_A)
            change = weights[owner + _B].double() @ factor.double()
            result[f"{owner}.weight"] = (weights[f"{owner}.weight"].double() + _SCALE * change).float()
    return result
