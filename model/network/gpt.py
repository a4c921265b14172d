"""The network, top to bottom: embedding, blocks of attention and feed-forward, norm, head.

Shapes in comments: B sequences, T tokens of each, C = width, H heads of D = C / H, K of them with keys and values of
their own, F = width of the feed-forward, V = vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from model.config import GATE_WIDTH, GPTConfig
from model.network.cross_entropy import linear_cross_entropy, softcapped
from model.network.dropout import Dropout
from model.network.kv_cache import Memory, Past


def norm(config: GPTConfig, width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-6) if config.norm == "rms" else nn.LayerNorm(width, bias=config.bias)


class Rotary(nn.Module):
    """Turns each pair of a head's dimensions by an angle that grows with the position: attention sees distances."""

    frequency: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(self, head_width: int, block_size: int, base: float) -> None:
        super().__init__()
        frequency = base ** (-torch.arange(0, head_width, 2) / head_width)  # (D/2,)
        angle = torch.outer(torch.arange(block_size), frequency)  # (T, D/2)
        self.register_buffer("frequency", frequency, persistent=False)
        self.register_buffer("cosine", angle.cos(), persistent=False)
        self.register_buffer("sine", angle.sin(), persistent=False)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, 1, T, D/2) of positions (B, T), which may lie beyond the block's size."""
        angle = positions[:, None, :, None] * self.frequency
        return angle.cos(), angle.sin()

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Those of the first positions (T, D/2)."""
        return self.cosine[:length], self.sine[:length]


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:  # (B, H, T, D) -> (B, H, T, D)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    left, right = x.chunk(2, dim=-1)  # dimension i is paired with i + D/2, as in Hugging Face's Llama
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)


class Around(NamedTuple):
    """What every block needs beside the stream: the cosines and sines of positions, who may see whom (None: all that
    came before), and the text before these tokens."""

    turns: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None
    past: Past | None = None


class Attention(nn.Module):
    """Causal self-attention: H heads of queries, which share K heads of keys and values."""

    def __init__(self, config: GPTConfig, *, first: bool) -> None:
        super().__init__()
        self.head_width, self.dropout, self.shares_values = config.head_width, config.attention_dropout, config.values
        # Three matrices, since Muon makes each orthogonal by itself.
        self.q = nn.Linear(config.width, config.width, bias=config.qkv_bias)
        self.k = nn.Linear(config.width, config.key_width, bias=config.qkv_bias)
        self.v = nn.Linear(config.width, config.key_width, bias=config.qkv_bias)
        self.qkv: Callable[[Tensor], Tensor] | None = None  # in place of the three, for generating (packed.py)
        self._widths = (config.width, config.key_width, config.key_width)
        self.q_norm = norm(config, config.head_width) if config.qk_norm else nn.Identity()
        self.k_norm = norm(config, config.head_width) if config.qk_norm else nn.Identity()
        mixes = config.values and not first
        self.mix = nn.Parameter(torch.tensor([0.5, 0.5])) if mixes else None  # own values, the first block's
        self.gate = nn.Linear(min(GATE_WIDTH, config.width), config.heads, bias=False) if config.gates else None
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(
        self, x: Tensor, around: Around, memory: Memory | None, values: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, C) -> (B, T, C), and this block's values where they are mixed; `values` are the first block's."""
        batch, length, width = x.shape
        heads = (batch, length, -1, self.head_width)
        q, k, v = self._projected(x)
        q = self.q_norm(q.view(heads)).transpose(1, 2)  # (B, H, T, D)
        k = self.k_norm(k.view(heads)).transpose(1, 2)  # (B, K, T, D)
        v = v.view(heads).transpose(1, 2)  # (B, K, T, D)
        if self.mix is not None and values is not None:
            v = self.mix[0] * v + self.mix[1] * values
        if around.turns is not None:
            q, k = turned(q, *around.turns), turned(k, *around.turns)
        own = v
        if memory is not None and around.past is not None:
            k, v = memory.extended(around.past, k, v)  # (B, K, S, D)
            q = q.to(k.dtype)  # fp32 on a CPU: bfloat16 would round otherwise in a longer row, and a text be another
        dropout = self.dropout if self.training else 0.0
        shared = k.shape[1] != q.shape[1]
        causal = around.mask is None and k.shape[2] == q.shape[2]  # else all that is remembered may be seen
        y = F.scaled_dot_product_attention(
            q, k.to(q.dtype), v.to(q.dtype), around.mask, dropout, is_causal=causal, enable_gqa=shared
        )
        y = y.transpose(1, 2)  # (B, T, H, D)
        if self.gate is not None:
            y = y * (2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features])))[..., None]
        return self.out(y.reshape(batch, length, width)), own.contiguous() if self.shares_values else None

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, T, C) -> (B, T, C) of queries, (B, T, K * D) of keys and of values."""
        if self.qkv is None:
            return self.q(x), self.k(x), self.v(x)
        return self.qkv(x).split(self._widths, dim=-1)


class FeedForward(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        gated = config.activation == "swiglu"
        self.gate = nn.Linear(config.width, config.hidden_width, bias=config.bias) if gated else None
        self.up = nn.Linear(config.width, config.hidden_width, bias=config.bias)
        self.out = nn.Linear(config.hidden_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        up = self.up(x)  # (B, T, F)
        if self.gate is not None:
            return self.out(F.silu(self.gate(x)) * up)
        if self.activation == "gelu":
            up = F.gelu(up, approximate="tanh")  # GPT-2's GELU
        elif self.activation == "relu":
            up = F.relu(up)
        elif self.activation == "relu2":
            up = _SquaredReLU.apply(up)
        return self.out(up)  # else it was part of the product before (packed.py)


class _SquaredReLU(torch.autograd.Function):
    """relu(x)², by hand: its slope 2 relu(x) is zero where it should be, which autograd would see to once more."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        context.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(context: Any, of_y: Tensor) -> Tensor:
        (positive,) = context.saved_tensors
        return (of_y * positive).mul_(2)


class Block(nn.Module):
    """Pre-norm: each half adds to the stream what it computes from a normalised copy of it."""

    def __init__(self, config: GPTConfig, *, first: bool) -> None:
        super().__init__()
        self.attention_norm = norm(config, config.width)
        self.attention = Attention(config, first=first)
        self.feed_forward_norm = norm(config, config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)
        reach, width = config.convolution, config.width
        self.attention_convolution = Convolution(reach, width) if reach else None
        self.feed_forward_convolution = Convolution(reach, width) if reach else None
        self.scalars = nn.Parameter(torch.tensor([1.05, 0.1])) if config.scalars else None

    def forward(
        self, x: Tensor, first: Tensor, around: Around, memory: Memory | None, values: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, C) -> (B, T, C), and the values; `first` is the stream before any block, `values` the first ones."""
        tails = memory.tails if memory is not None else (None, None)
        if self.scalars is not None:
            x = self.scalars[0] * x + self.scalars[1] * first
        read = convolved(self.attention_norm(x), self.attention_convolution, tails[0])
        attended, own = self.attention(read, around, memory, values)
        x = x + self.dropout(attended)
        read = convolved(self.feed_forward_norm(x), self.feed_forward_convolution, tails[1])
        return x + self.dropout(self.feed_forward(read)), own if values is None else values


class Convolution(nn.Module):
    """Adds to each channel a learned share of what it was a few tokens before; at first nothing."""

    def __init__(self, reach: int, width: int) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.zeros(reach, width))

    def forward(self, x: Tensor, tail: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). `tail` (B, reach - 1, C) is what came before, and becomes what comes before next."""
        if tail is None:
            return _Convolve.apply(x, self.shares)
        x = torch.cat((tail, x), dim=1)
        tail.copy_(x[:, x.shape[1] - tail.shape[1] :])
        return _Convolve.apply(x, self.shares)[:, tail.shape[1] :]


class _Convolve(torch.autograd.Function):
    """y[t] = x[t] + sum of shares[k] * x[t - k]. By hand, since it is memory that it takes: no copies are shifted."""

    @staticmethod
    def forward(context: Any, x: Tensor, shares: Tensor) -> Tensor:  # (B, T, C), (reach, C) -> (B, T, C)
        context.save_for_backward(x, shares)
        y = x * (1 + shares[0])
        for back in range(1, min(len(shares), x.shape[1])):
            y[:, back:].addcmul_(x[:, :-back], shares[back])
        return y

    @staticmethod
    def backward(context: Any, of_y: Tensor) -> tuple[Tensor, Tensor]:
        x, shares = context.saved_tensors
        of_x, of_shares = of_y * (1 + shares[0]), torch.zeros_like(shares)
        of_shares[0] = (of_y * x).sum((0, 1))
        for back in range(1, min(len(shares), x.shape[1])):
            of_x[:, :-back].addcmul_(of_y[:, back:], shares[back])
            of_shares[back] = (of_y[:, back:] * x[:, :-back]).sum((0, 1))
        return of_x, of_shares


def convolved(x: Tensor, convolution: Convolution | None, tail: Tensor | None) -> Tensor:
    return x if convolution is None else convolution(x, tail)


class Bigrams(nn.Module):
    """An embedding for each pair of a token and the one before it, as a hash finds it in a table; at first zero.

    A batch meets few of the rows, so their gradient is sparse.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width, sparse=True)

    def forward(self, ids: Tensor, last: Tensor | None = None) -> Tensor:
        """(B, T) -> (B, T, C). `last` (B, 1) is the id before these, and becomes the last of these."""
        before = F.pad(ids[:, :-1], (1, 0)) if last is None else torch.cat((last, ids[:, :-1]), dim=1)
        if last is not None:
            last.copy_(ids[:, -1:])
        # Two odd factors of splitmix64 (Steele, Lea & Flood 2014), cut to what int64 holds; the upper bits are mixed.
        mixed = before * 0x3C6EF372FE94F82B + ids * 0x1D8E4E27C47D124F
        return self.table((mixed >> 33) % self.table.num_embeddings)


class _Unfilled(TorchFunctionMode):
    """Leaves out torch.nn.init. The "meta" device would do that too, but loads sympy and torch's compiler (1 s)."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False  # activations in backward instead of keeping them: less memory, a third more time
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        learned = config.positions == "learned"
        self.position = nn.Embedding(config.block_size, config.width) if learned else None
        rotary = config.positions == "rotary"
        self.rotary = Rotary(config.head_width, config.block_size, config.rotary_base) if rotary else None
        self.bigrams = Bigrams(config.bigrams, config.width) if config.bigrams else None
        self.convolution = Convolution(config.convolution, config.width) if config.convolution else None
        self.input_norm = norm(config, config.width) if config.input_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, first=not number) for number in range(config.layers))
        self.norm = norm(config, config.width)
        self.last_dropout = Dropout(config.last_dropout)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None
        self.packed_head: Callable[[Tensor], Tensor] | None = None  # in place of the head, for generating (packed.py)

    @classmethod
    def empty(cls, config: GPTConfig, device: torch.device) -> GPT:
        """A network whose weights are still to be filled in: no time is spent on what nobody will see."""
        with torch.device(device), _Unfilled():
            return cls(config)

    @torch.no_grad()
    def initialise(self, seed: int, counts: Tensor | None = None) -> None:
        """GPT-2's initialisation: normal(0, 0.02); what writes to the stream is scaled by 1/sqrt(2 layers), or zero.

        On the CPU with a generator of its own, so that every device starts from the same weights. Norms and scalars
        start as they are made; biases, gates, convolutions and pairs at 0, the head's bias at the logarithms of
        `counts` (V,).
        """
        generator = torch.Generator().manual_seed(seed)
        residual = 0.0 if self.config.zero_init else 0.02 / math.sqrt(2 * max(self.config.layers, 1))
        for name, weight in self.named_parameters():
            if name.endswith(("table.weight", "attention.gate.weight", "shares", "bias")):
                weight.zero_()
            elif weight.dim() >= 2:
                deviation = residual if name.endswith(".out.weight") else 0.02
                weight.copy_(torch.empty(weight.shape).normal_(0, deviation, generator=generator))
        if self.head_bias is not None and counts is not None:
            seen = (counts + 1) / (counts + 1).sum()
            self.head_bias.copy_(seen.log())

    def forward(self, ids: Tensor, targets: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the next token at each place; with `targets` (B, T), their mean cross entropy in nats.

        `mask` (B, 1, T, T) says who may see whom, instead of all that came before.
        """
        x = self.states(ids, mask)
        if targets is None:
            return self.logits(x)
        return linear_cross_entropy(
            x.flatten(0, 1), self._head_weight, targets.flatten(), self.config.softcap, self.head_bias
        )

    def following(self, ids: Tensor, past: Past) -> Tensor:
        """Logits (B, V) of what follows after `ids` (B, T), which go on from `past` and are added to it."""
        return self.logits(self.states(ids, past=past)[:, -1])

    def logits(self, states: Tensor) -> Tensor:
        """(..., C) to fp32 logits (..., V)."""
        packed = self.packed_head
        products = F.linear(states, self._head_weight) if packed is None else packed(states)
        logits = softcapped(products.float(), self.config.softcap)
        return logits if self.head_bias is None else logits + self.head_bias

    @property
    def _head_weight(self) -> Tensor:
        return self.embedding.weight if self.head is None else self.head.weight

    def states(self, ids: Tensor, mask: Tensor | None = None, past: Past | None = None) -> Tensor:
        """What the head reads: (B, T) ids to (B, T, C)."""
        x = self.input_norm(self.embedding(ids))  # (B, T, C)
        if self.bigrams is not None:
            x = x + self.bigrams(ids, past.before if past else None)
        if self.position is not None:
            x = x + self.position.weight[past.positions if past else slice(ids.shape[1])]
        x = first = self.dropout(convolved(x, self.convolution, past.tail if past else None))
        turns = None
        if self.rotary is not None:
            turns = self.rotary.at(past.positions) if past else self.rotary(ids.shape[1])
        around, values = Around(turns, past.mask if past else mask, past), None
        for number, block in enumerate(self.blocks):
            memory = past.blocks[number] if past else None
            if self.recompute and self.training:
                x, values = checkpoint(block, x, first, around, memory, values, use_reentrant=False)
            else:
                x, values = block(x, first, around, memory, values)
        return self.last_dropout(self.norm(x))
