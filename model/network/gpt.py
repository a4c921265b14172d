"""The network, top to bottom: embedding, blocks of attention and feed-forward, norm, head.

Shapes in comments: B sequences, T tokens per sequence, C = width, H query heads of D = C / H dimensions, K key and
value heads, S keys to attend to (T, or more with a KV cache), F = width of the feed-forward, V = vocabulary size,
W = width of the convolutions. The "stream" is the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.config import GATE_WIDTH, GPTConfig
from model.network.causal_attention import causal_attention, is_fast
from model.network.convolution import Convolution, convolve
from model.network.cross_entropy import in_autocast_dtype, linear_cross_entropy, softcapped, token_losses
from model.network.dropout import Dropout
from model.network.kv_cache import CacheView, LayerCache
from model.network.ngrams import NGrams
from model.network.skip_init import SkipInit

VOCABULARY_TABLES = ("embedding.weight", "head.weight", "head_bias")
"""Names of the weights that have one row per id. A network may lack some of them."""


def norm(config: GPTConfig, width: int) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(width, eps=config.epsilon)
    return nn.LayerNorm(width, eps=config.epsilon, bias=config.bias)


class Rotary(nn.Module):
    """Rotary position embeddings: angles by which pairs of a head's dimensions are rotated.

    They grow with the position, so that attention depends on distances.
    """

    frequencies: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, head_width: int, block_size: int, base: float) -> None:
        super().__init__()
        frequencies = base ** (-torch.arange(0, head_width, 2) / head_width)  # (D/2,)
        angles = torch.outer(torch.arange(block_size), frequencies)  # (T, D/2)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, 1, T, D/2) of positions (B, T), which may exceed the block size."""
        angles = positions[:, None, :, None] * self.frequencies
        return angles.cos(), angles.sin()

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, D/2) of the first `length` positions."""
        return self.cos[:length], self.sin[:length]


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, H, T, D) -> (B, H, T, D)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    x1, x2 = x.chunk(2, dim=-1)  # dimension i is paired with i + D/2, as in Hugging Face's Llama
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)


class BlockContext(NamedTuple):
    """Inputs shared by all blocks: rotary cos and sin, attention mask (None: causal) and KV cache; and the positions
    (B, T) of tokens in their documents (None: a row is one document)."""

    cos_sin: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None
    cache: CacheView | None = None
    positions: Tensor | None = None


class Attention(nn.Module):
    """Causal self-attention with H query heads, which share K key and value heads."""

    def __init__(self, config: GPTConfig, *, is_first: bool) -> None:
        super().__init__()
        self.head_width, self.dropout, self.returns_values = config.head_width, config.attention_dropout, config.values
        # Three matrices, since Muon orthogonalises each of them separately.
        self.q = nn.Linear(config.width, config.query_width, bias=config.qkv_bias)
        self.k = nn.Linear(config.width, config.kv_width, bias=config.qkv_bias)
        self.v = nn.Linear(config.width, config.kv_width, bias=config.qkv_bias)
        self.fused_qkv: Callable[[Tensor], Tensor] | None = None  # replaces all three (generation/quantization.py)
        self._widths = [config.query_width, config.kv_width, config.kv_width]
        self.q_norm = norm(config, config.head_width) if config.qk_norm else nn.Identity()
        self.k_norm = norm(config, config.head_width) if config.qk_norm else nn.Identity()
        mixes_values = config.values and not is_first
        # Weights of this block's values and of the first block's.
        self.mix = nn.Parameter(torch.tensor([0.5, 0.5])) if mixes_values else None
        self.gate = nn.Linear(min(GATE_WIDTH, config.width), config.heads, bias=False) if config.gates else None
        self.out = nn.Linear(config.query_width, config.width, bias=config.bias)

    def forward(
        self, x: Tensor, context: BlockContext, layer_cache: LayerCache | None, first_v: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, C) -> (B, T, C), and this block's values (B, K, T, D) if the config mixes values.

        `first_v` are the values of the first block.
        """
        batch, length, _ = x.shape
        head_shape = (batch, length, -1, self.head_width)
        q, k, v = self._project(x)
        q = self.q_norm(q.view(head_shape)).transpose(1, 2)  # (B, H, T, D)
        k = self.k_norm(k.view(head_shape)).transpose(1, 2)  # (B, K, T, D)
        v = v.view(head_shape).transpose(1, 2)  # (B, K, T, D)
        if self.mix is not None and first_v is not None:
            v = self.mix[0] * v + self.mix[1] * first_v
        if context.cos_sin is not None:
            q, k = apply_rotary_emb(q, *context.cos_sin), apply_rotary_emb(k, *context.cos_sin)
        new_v = v
        if layer_cache is not None and context.cache is not None:
            k, v = layer_cache.update(context.cache, k, v)  # (B, K, S, D)
            # The dtype of the cache, fp32 on a CPU: in bfloat16 the rounding, and so the text, would depend on the
            # length of the other rows.
            q = q.to(k.dtype)
        dropout = self.dropout if self.training else 0.0
        enable_gqa = k.shape[1] != q.shape[1]
        is_causal = context.mask is None and k.shape[2] == q.shape[2]  # otherwise attend to all cached tokens
        if is_causal and not dropout and layer_cache is None and is_fast(q):
            y = causal_attention(q, k, v)
        else:
            y = F.scaled_dot_product_attention(
                q, k.to(q.dtype), v.to(q.dtype), context.mask, dropout, is_causal=is_causal, enable_gqa=enable_gqa
            )
        y = y.transpose(1, 2)  # (B, T, H, D)
        if self.gate is not None:
            y = y * (2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features])))[..., None]
        return self.out(y.flatten(2)), new_v.contiguous() if self.returns_values else None

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries (B, T, C), keys and values (B, T, K * D) of x (B, T, C)."""
        if self.fused_qkv is None:
            x = in_autocast_dtype(x)  # once: each product would do it
            return self.q(x), self.k(x), self.v(x)
        return torch.split(self.fused_qkv(x), self._widths, dim=-1)


class FeedForward(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation  # "" if `up` applies it (generation/quantization.py)
        is_gated = config.activation == "swiglu"
        self.gate = nn.Linear(config.width, config.hidden_width, bias=config.bias) if is_gated else None
        self.up = nn.Linear(config.width, config.hidden_width, bias=config.bias)
        self.out = nn.Linear(config.hidden_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        hidden = self.up(x)  # (B, T, F)
        if self.gate is not None:
            hidden = F.silu(self.gate(x)) * hidden
        elif self.activation == "gelu":
            hidden = F.gelu(hidden, approximate="tanh")  # GPT-2's GELU
        elif self.activation == "gelu_erf":
            hidden = F.gelu(hidden)
        elif self.activation == "relu":
            hidden = F.relu(hidden)
        elif self.activation == "relu2":
            hidden = _squared_relu(hidden)
        y: Tensor = self.out(hidden)
        return y


class _SquaredReLU(torch.autograd.Function):
    """relu(x)². Its slope 2 relu(x) is zero for x < 0, so the backward pass needs no mask; autograd would apply one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive: Tensor = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        grad_x: Tensor = (grad_y * positive).mul_(2)
        return grad_x


_squared_relu: Callable[[Tensor], Tensor] = _SquaredReLU.apply


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: GPTConfig, *, is_first: bool) -> None:
        super().__init__()
        self.attention_norm = norm(config, config.width)
        self.attention = Attention(config, is_first=is_first)
        self.feed_forward_norm = norm(config, config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)
        kernel_width, width = config.convolution, config.width
        self.attention_convolution = Convolution(kernel_width, width) if kernel_width else None
        self.feed_forward_convolution = Convolution(kernel_width, width) if kernel_width else None
        self.scalars = nn.Parameter(torch.tensor([1.05, 0.1])) if config.scalars else None

    def forward(
        self, x: Tensor, x0: Tensor, context: BlockContext, layer_cache: LayerCache | None, first_v: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, C) -> (B, T, C), and the values of the first block. `x0` is the stream before the first block.

        `first_v` is None in the first block, which returns its own values.
        """
        tails = layer_cache.tails if layer_cache is not None else (None, None)
        if self.scalars is not None:
            x = self.scalars[0] * x + self.scalars[1] * x0
        normed = convolve(self.attention_norm(x), self.attention_convolution, tails[0], context.positions)
        y, v = self.attention(normed, context, layer_cache, first_v)
        x = x + self.dropout(y)
        normed = convolve(self.feed_forward_norm(x), self.feed_forward_convolution, tails[1], context.positions)
        y = self.feed_forward(normed)
        return x + self.dropout(y), v if first_v is None else first_v


class Bigrams(nn.Module):
    """Embeddings of token pairs, in a table indexed by a hash of a token and the previous one; zero at initialisation.

    A batch uses few of the rows, so their gradient is sparse.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width, sparse=True)

    def forward(self, ids: Tensor, last_ids: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """(B, T) -> (B, T, C). `last_ids` (B, 1) are the ids before `ids`, and are updated in place.

        The first token of a document, at 0 of its `positions` (B, T), has no token before it.
        """
        previous = F.pad(ids[:, :-1], (1, 0)) if last_ids is None else torch.cat((last_ids, ids[:, :-1]), dim=1)
        if positions is not None:
            previous = previous.masked_fill(positions == 0, 0)
        if last_ids is not None:
            last_ids.copy_(ids[:, -1:])
        # Two odd factors of splitmix64 (Steele, Lea & Flood 2014), cut to fit int64; the upper bits are well mixed.
        hashes = previous * 0x3C6EF372FE94F82B + ids * 0x1D8E4E27C47D124F
        embeddings: Tensor = self.table((hashes >> 33) % self.table.num_embeddings)
        return embeddings


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False  # activation checkpointing: less memory, a third more time
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        is_learned = config.positions == "learned"
        self.position = nn.Embedding(config.block_size, config.width) if is_learned else None
        is_rotary = config.positions == "rotary"
        self.rotary = Rotary(config.head_width, config.block_size, config.rotary_base) if is_rotary else None
        self.bigrams = Bigrams(config.bigrams, config.width) if config.bigrams else None
        self.convolution = Convolution(config.convolution, config.width) if config.convolution else None
        self.input_norm = norm(config, config.width) if config.input_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, is_first=layer == 0) for layer in range(config.layers))
        self.norm = norm(config, config.width)
        self.last_dropout = Dropout(config.last_dropout)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None
        self.packed_head: Callable[[Tensor], Tensor] | None = None  # replaces the head (generation/quantization.py)
        self.ngrams: NGrams | None = None  # mixed into the probabilities by callers; not part of `logits`

    @classmethod
    def empty(cls, config: GPTConfig, device: torch.device) -> GPT:
        """Return a network on `device` with uninitialised weights, for a checkpoint to be loaded into it."""
        with torch.device(device), SkipInit():
            return cls(config)

    @torch.no_grad()
    def init_weights(self, seed: int, counts: Tensor | None = None) -> None:
        """Initialise as GPT-2: normal(0, 0.02), scaled by 1/sqrt(2 layers) in projections back into the stream.

        With `zero_init` those are zero. Biases, gates, convolutions and bigrams start at zero, the head's bias at the
        log frequencies of the token `counts` (V,); norms and scalars keep the values of their constructors. Draws on
        the CPU from a separate generator, so that every device starts with the same weights.
        """
        generator = torch.Generator().manual_seed(seed)
        residual_std = 0.0 if self.config.zero_init else 0.02 / math.sqrt(2 * max(self.config.layers, 1))
        for name, weight in self.named_parameters():
            if name.endswith(("table.weight", "attention.gate.weight", "shares", "bias")):
                weight.zero_()
            elif weight.dim() >= 2:
                std = residual_std if name.endswith(".out.weight") else 0.02
                weight.copy_(torch.empty(weight.shape).normal_(0, std, generator=generator))
        if self.head_bias is not None and counts is not None:
            frequencies = (counts + 1) / (counts + 1).sum()
            self.head_bias.copy_(frequencies.log())

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        summed: bool = True,
    ) -> Tensor:
        """Logits (B, T, V) of the next tokens; with `targets` (B, T) their mean cross entropy in nats.

        `mask` (B, 1, T, T) replaces the causal mask; True where attention is allowed. `positions` (B, T) are those of
        packed documents (see masks.packed_mask). With `weights` (B, T) of the targets the sum of the weighted cross
        entropies is returned or, unless `summed`, the weighted cross entropy (B, T) of each target.
        """
        x = self.hidden_states(ids, mask, positions=positions)
        if targets is None:
            return self.logits(x)
        head = (self._head_weight, targets.flatten(), self.config.softcap, self.head_bias)
        if weights is None:
            return linear_cross_entropy(x.flatten(0, 1), *head)
        if summed:
            return linear_cross_entropy(x.flatten(0, 1), *head, weights.flatten())
        return token_losses(x.flatten(0, 1), *head, weights.flatten()).view_as(targets)

    def next_logits(self, ids: Tensor, cache: CacheView) -> Tensor:
        """Logits (B, V) of the tokens after `ids` (B, T), which follow those in `cache` and are added to it."""
        return self.logits(self.hidden_states(ids, cache=cache)[:, -1])

    def logits(self, states: Tensor) -> Tensor:
        """(..., C) -> fp32 logits (..., V)."""
        head = self.packed_head
        products = F.linear(states, self._head_weight) if head is None else head(states)
        logits = softcapped(products.float(), self.config.softcap)
        return logits if self.head_bias is None else logits + self.head_bias

    @property
    def _head_weight(self) -> Tensor:
        return self.embedding.weight if self.head is None else self.head.weight

    def hidden_states(
        self, ids: Tensor, mask: Tensor | None = None, cache: CacheView | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Final hidden states, the input of the head: ids (B, T) -> (B, T, C)."""
        x = self.input_norm(self.embedding(ids))  # (B, T, C)
        if self.bigrams is not None:
            x = x + self.bigrams(ids, cache.previous_ids if cache else None, positions)
        absolute = cache.positions if cache else positions  # (B, T); None: each row begins at 0
        if self.position is not None:
            x = x + self.position.weight[slice(ids.shape[1]) if absolute is None else absolute]
        x = x0 = self.dropout(convolve(x, self.convolution, cache.tail if cache else None, positions))
        cos_sin = None
        if self.rotary is not None:
            cos_sin = self.rotary(ids.shape[1]) if absolute is None else self.rotary.at(absolute)
        context, first_v = BlockContext(cos_sin, cache.mask if cache else mask, cache, positions), None
        for layer, block in enumerate(self.blocks):
            layer_cache = cache.layers[layer] if cache else None
            if self.recompute and self.training:
                x, first_v = checkpoint(block, x, x0, context, layer_cache, first_v, use_reentrant=False)
            else:
                x, first_v = block(x, x0, context, layer_cache, first_v)
        y: Tensor = self.last_dropout(self.norm(x))
        return y
