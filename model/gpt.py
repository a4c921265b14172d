"""The network, top to bottom: embedding, blocks of attention and feed-forward, norm, head.

Shapes in comments: B sequences, T tokens of each, C = width, H heads of D = C / H, V = vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import GPTConfig

ROTARY_BASE = 10_000.0  # Su et al. 2021, RoFormer


class Rotary(nn.Module):
    """Turns each pair of a head's dimensions by an angle that grows with the position: attention sees distances."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, head_width: int, block_size: int) -> None:
        super().__init__()
        frequency = ROTARY_BASE ** (-torch.arange(0, head_width, 2) / head_width)
        angle = torch.outer(torch.arange(block_size), frequency)  # (T, D/2)
        self.register_buffer("cosine", angle.cos(), persistent=False)
        self.register_buffer("sine", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, T, D) -> (B, H, T, D)
        length = x.shape[2]
        cosine, sine = self.cosine[:length].to(x.dtype), self.sine[:length].to(x.dtype)
        left, right = x.chunk(2, dim=-1)  # dimension i is paired with i + D/2, as in Hugging Face's Llama
        return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with H heads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.out = nn.Linear(config.width, config.width)
        self.rotary = Rotary(config.width // config.heads, config.block_size) if config.positions == "rotary" else None

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)  # (B, H, T, D)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width)
        self.out = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        return self.out(F.gelu(self.up(x), approximate="tanh"))  # GPT-2's GELU


class Block(nn.Module):
    """Pre-norm: each half adds to the stream what it computes from a normalised copy of it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        learned = config.positions == "learned"
        self.position = nn.Embedding(config.block_size, config.width) if learned else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """GPT-2's initialisation: normal(0, 0.02); what writes to the stream is scaled by 1/sqrt(2 layers); biases 0.

        On the CPU with a generator of its own, so that every device starts from the same weights.
        """
        generator = torch.Generator().manual_seed(seed)
        residual = 0.02 / math.sqrt(2 * max(self.config.layers, 1))
        for name, weight in self.named_parameters():
            if weight.dim() >= 2:
                deviation = residual if name.endswith(".out.weight") else 0.02
                weight.copy_(torch.empty(weight.shape).normal_(0, deviation, generator=generator))
            elif name.endswith("bias"):
                weight.zero_()

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the next token at each place; with `targets` (B, T), their mean cross entropy in nats."""
        x = self.embedding(ids)  # (B, T, C)
        if self.position is not None:
            x = x + self.position.weight[: ids.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits = F.linear(x, self.embedding.weight if self.head is None else self.head.weight)  # (B, T, V)
        if targets is None:
            return logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
