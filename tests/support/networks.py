"""Small networks of every kind, for the tests that hold for each of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from model.config import GPTConfig
from model.network.gpt import GPT

SMALL = GPTConfig(vocab_size=50, block_size=16, layers=2, heads=2, width=16)


def made(config: GPTConfig) -> GPT:
    model = GPT(config)
    model.initialise(1)
    return model.eval()


def variants() -> list[GPTConfig]:
    """Every choice of each part once, and all that is special together."""
    parts: list[dict[str, object]] = [
        *({"positions": each} for each in ("learned", "rotary", "none")),
        *({"activation": each} for each in ("gelu", "relu", "relu2", "swiglu")),
        *({each: True} for each in ("qkv_bias", "qk_norm", "scalars", "values", "gates", "input_norm", "head_bias")),
        *({"norm": each, "bias": bias, "qk_norm": True} for each in ("layer", "rms") for bias in (True, False)),
        {"tied": False},
        {"heads": 4, "kv_heads": 2},
        {"hidden": 24},
        {"softcap": 10.0},
        {"bigrams": 64},
        {"convolution": 3},
    ]
    special = {"positions": "rotary", "bias": False, "bigrams": 64, "convolution": 3, "scalars": True, "softcap": 9.0}
    special |= {"values": True, "gates": True, "zero_init": True}
    return [replace(SMALL, **each) for each in (*parts, special)]  # type: ignore[arg-type]


def stirred(config: GPTConfig) -> GPT:
    """A network of which every weight does something, also those that begin at zero."""
    model, generator = made(config), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.empty(weight.shape).normal_(0, 0.2, generator=generator)
    return model
