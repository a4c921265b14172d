"""The optimiser and the learning-rate schedule."""

from __future__ import annotations

import math

import torch

from model.config import TrainConfig
from model.gpt import GPT


def adamw(model: GPT, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); matrices decay, norms and biases do not."""
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(config: TrainConfig, step: int, done: float) -> float:
    """The rate at `step`, when the share `done` (0 to 1) of the schedule has passed: linear warm-up, then cosine."""
    warm = min((step + 1) / max(config.warmup, 1), 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return config.learning_rate * warm * (config.final_share + (1 - config.final_share) * cosine)
