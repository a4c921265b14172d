"""Small networks with every option of the configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from model.config import GPTConfig
from model.network.gpt import GPT

SMALL = GPTConfig(vocab_size=50, block_size=16, layers=2, heads=2, width=16)


def build_network(config: GPTConfig) -> GPT:
    model = GPT(config)
    model.init_weights(1)
    return model.eval()


def config_variants() -> list[GPTConfig]:
    """Each choice of each option once; the last one combines those that have no counterpart elsewhere."""
    options: list[dict[str, Any]] = [
        *({"positions": choice} for choice in ("learned", "rotary", "none")),
        *({"activation": choice} for choice in ("gelu", "gelu_erf", "relu", "relu2", "swiglu")),
        *({name: True} for name in ("qkv_bias", "qk_norm", "scalars", "values", "gates", "input_norm", "head_bias")),
        *({"norm": norm, "bias": bias, "qk_norm": True} for norm in ("layer", "rms") for bias in (True, False)),
        {"tied": False},
        {"heads": 4, "kv_heads": 2},
        {"hidden": 24},
        {"head_dim": 12, "norm_epsilon": 1e-3},
        {"softcap": 10.0},
        {"bigrams": 64},
        {"convolution": 3},
    ]
    combined: dict[str, Any] = {"positions": "rotary", "bias": False, "bigrams": 64, "convolution": 3, "scalars": True}
    combined |= {"softcap": 9.0, "values": True, "gates": True, "zero_init": True}
    return [replace(SMALL, **changes) for changes in (*options, combined)]


def perturbed_network(config: GPTConfig) -> GPT:
    """A network in which every weight has an effect, also those that are initialised to zero."""
    model, generator = build_network(config), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.empty(weight.shape).normal_(0, 0.2, generator=generator))
    return model
