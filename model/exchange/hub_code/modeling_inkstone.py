"""Networks of Inkstone's family `fast` for transformers 4.56 or later, with a KV cache.

Its options are in configuration_inkstone.py. All weights have the names of Inkstone's checkpoints. Shapes in comments:
B sequences, T new tokens, S tokens (T and those in the cache), C = width, H query heads, K key and value heads of D
dimensions, V = vocabulary size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_inkstone import InkstoneConfig

GATE_WIDTH = 12  # dimensions of the stream that a gate reads
CACHE = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"  # its name in transformers 4


def norm(config: InkstoneConfig, width: int) -> nn.Module:
    eps = config.norm_epsilon
    return nn.RMSNorm(width, eps) if config.norm == "rms" else nn.LayerNorm(width, eps, bias=config.bias)


class Step:
    """Inputs of one forward pass that all blocks share.

    cache    a layer of keys and values for each block, then layers of ids and of convolution inputs, whole for `crop`
    mask     (B or 1, 1, T, S), True where attention is allowed; None: causal, or one token that attends to all
    real     (B, T, 1), False at padding; None: no padding
    cos_sin  (B, 1, T, D / 2), of rotary positions
    """

    def __init__(self, config: InkstoneConfig, ids: Tensor, cache: Cache | None, padding: Tensor | None) -> None:
        past = int(cache.get_seq_length()) if cache is not None else 0
        keys = torch.arange(past + ids.shape[1], device=ids.device)
        queries = keys[past:, None]
        self.cache, self.positions = cache, keys[None, past:]
        self.mask: Tensor | None = None
        self.real: Tensor | None = None
        self.cos_sin: tuple[Tensor, Tensor] | None = None
        allowed = ((keys <= queries) & (keys > queries - config.block_size))[None, None]
        if padding is not None and not padding.all():
            padding = padding.bool()
            self.real, self.positions = padding[:, past:, None], (padding.cumsum(-1) - 1).clamp(min=0)[:, past:]
            self.mask = allowed & padding[:, None, None] | (keys == queries)  # a softmax needs a key
        elif len(keys) > config.block_size or (past and len(queries) > 1):
            self.mask = allowed

    def history(self, layer: int, x: Tensor) -> Tensor:
        """Append x (B, T, C), with zeros at padding, to a layer of the cache; return all of it (B, S, C)."""
        x = x if self.real is None else x * self.real
        if self.cache is None:
            return x
        while len(self.cache.layers) <= layer:
            self.cache.layers.append(DynamicLayer())
        return self.cache.update(x[:, None], x[:, None, :, :0], layer)[0][:, 0]


def shifted(history: Tensor, shift: int, length: int) -> Tensor:
    """Inputs `shift` places before the last `length` ones; zero before the first."""
    history = history[:, -(length + shift) :]
    return F.pad(history, (0, 0, shift, 0))[:, history.shape[1] - length : history.shape[1]]


class Convolution(nn.Module):
    """Causal depthwise convolution with a residual connection."""

    def __init__(self, config: InkstoneConfig, cache_layer: int) -> None:
        super().__init__()
        self.cache_layer = cache_layer
        self.shares = nn.Parameter(torch.zeros(config.convolution, config.width))  # the kernel

    def forward(self, x: Tensor, step: Step) -> Tensor:  # (B, T, C) -> (B, T, C)
        history, y = step.history(self.cache_layer, x), x * (1 + self.shares[0])
        for shift in range(1, len(self.shares)):
            y = y + shifted(history, shift, x.shape[1]) * self.shares[shift]
        return y


class Attention(nn.Module):
    def __init__(self, config: InkstoneConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_width, self.dropout = layer, config.head_dim, config.attention_dropout
        q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = nn.Linear(config.width, q_width, bias=config.qkv_bias)
        self.k, self.v = (nn.Linear(config.width, kv_width, bias=config.qkv_bias) for _ in "kv")
        self.q_norm, self.k_norm = (norm(config, self.head_width) if config.qk_norm else nn.Identity() for _ in "qk")
        self.mix = nn.Parameter(torch.tensor([0.5, 0.5])) if config.values and layer else None
        self.gate = nn.Linear(min(GATE_WIDTH, config.width), config.heads, bias=False) if config.gates else None
        self.out = nn.Linear(q_width, config.width, bias=config.bias)

    def forward(self, x: Tensor, step: Step, first_v: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, C), and the values (B, K, T, D), which later blocks mix with theirs."""
        heads = (*x.shape[:2], -1, self.head_width)
        q = rotate(self.q_norm(self.q(x).view(heads)).transpose(1, 2), step.cos_sin)  # (B, H, T, D)
        k = rotate(self.k_norm(self.k(x).view(heads)).transpose(1, 2), step.cos_sin)  # (B, K, T, D)
        v = self.v(x).view(heads).transpose(1, 2)  # (B, K, T, D)
        if self.mix is not None and first_v is not None:
            v = self.mix[0] * v + self.mix[1] * first_v
        all_k, all_v = (k, v) if step.cache is None else step.cache.update(k, v, self.layer)  # (B, K, S, D)
        options = {"is_causal": step.mask is None and q.shape[2] > 1, "enable_gqa": k.shape[1] != q.shape[1]}
        y = F.scaled_dot_product_attention(q, all_k, all_v, step.mask, self.dropout * self.training, **options)
        y = y.transpose(1, 2)  # (B, T, H, D)
        if self.gate is not None:
            y = y * (2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features])))[..., None]
        return self.out(y.flatten(2)), v


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> Tensor:  # (B, H, T, D) -> (B, H, T, D)
    if cos_sin is None:
        return x
    (cos, sin), (x1, x2) = cos_sin, x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)


class FeedForward(nn.Module):
    def __init__(self, config: InkstoneConfig) -> None:
        super().__init__()
        width, hidden, self.activation = config.width, config.hidden, config.activation
        self.gate = nn.Linear(width, hidden, bias=config.bias) if self.activation == "swiglu" else None
        self.up, self.out = nn.Linear(width, hidden, bias=config.bias), nn.Linear(hidden, width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        hidden = self.up(x)
        if self.gate is not None:
            hidden = F.silu(self.gate(x)) * hidden
        elif self.activation in ("gelu", "gelu_erf"):
            hidden = F.gelu(hidden, approximate="tanh" if self.activation == "gelu" else "none")
        else:
            hidden = F.relu(hidden).square() if self.activation == "relu2" else F.relu(hidden)
        return self.out(hidden)


class Block(nn.Module):
    def __init__(self, config: InkstoneConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = norm(config, config.width), Attention(config, layer)
        self.feed_forward_norm, self.feed_forward = norm(config, config.width), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)
        cache_layer = config.layers + 2 + 2 * layer  # after those of the ids and of the network's own convolution
        self.attention_convolution = Convolution(config, cache_layer) if config.convolution else None
        self.feed_forward_convolution = Convolution(config, cache_layer + 1) if config.convolution else None
        self.scalars = nn.Parameter(torch.tensor([1.05, 0.1])) if config.scalars else None

    def forward(self, x: Tensor, x0: Tensor, step: Step, first_v: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, C), and the values of the first block. `x0` is the stream before the first block."""
        if self.scalars is not None:
            x = self.scalars[0] * x + self.scalars[1] * x0
        y = self.attention_norm(x)
        y = y if self.attention_convolution is None else self.attention_convolution(y, step)
        y, v = self.attention(y, step, first_v)
        x = x + self.dropout(y)
        y = self.feed_forward_norm(x)
        y = y if self.feed_forward_convolution is None else self.feed_forward_convolution(y, step)
        return x + self.dropout(self.feed_forward(y)), v if first_v is None else first_v


class Bigrams(nn.Module):
    """Embeddings of token pairs, in a table indexed by a hash of a token and the previous one."""

    def __init__(self, config: InkstoneConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.bigrams, config.width)

    def forward(self, ids: Tensor, history: Tensor) -> Tensor:  # (B, T), (B, S, 1) -> (B, T, C)
        previous = shifted(history, 1, ids.shape[1])[..., 0]
        hashes = previous * 0x3C6EF372FE94F82B + ids * 0x1D8E4E27C47D124F
        return self.table((hashes >> 33) % self.table.num_embeddings)


class InkstoneForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = InkstoneConfig
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True
    _input_embed_layer = "embedding"

    def __init__(self, config: InkstoneConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.block_size, config.width) if config.positions == "learned" else None
        self.bigrams = Bigrams(config) if config.bigrams else None
        self.convolution = Convolution(config, config.layers + 1) if config.convolution else None
        self.input_norm = norm(config, config.width) if config.input_norm else nn.Identity()
        self.dropout, self.last_dropout = nn.Dropout(config.dropout), nn.Dropout(config.last_dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = norm(config, config.width)
        self.head = None if config.tie_word_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None
        self.post_init()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.head = new_embeddings

    def forward(  # type: ignore[no-untyped-def]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,  # (B, S), 0 at padding
        position_ids: Tensor | None = None,  # (B or 1, T)
        labels: Tensor | None = None,  # (B, T), the ids themselves; -100 where there is none
        cache: Cache | None = None,
        past_key_values: Cache | None = None,  # its name in transformers 4
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,  # compute only the last ones; 0: all
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Return the logits (B, T, V) in fp32 and, with `labels`, their mean cross entropy."""
        cache = past_key_values if cache is None else cache
        if cache is None and (self.config.use_cache and not self.training if use_cache is None else use_cache):
            cache = DynamicCache()
        if cache is not None and not isinstance(cache, DynamicCache):
            raise ValueError(f"expected a DynamicCache, got a {type(cache).__name__}")
        step = Step(self.config, input_ids, cache, attention_mask)
        states = self.hidden_states(input_ids, step, step.positions if position_ids is None else position_ids)
        x = self.last_dropout(states[-1])[:, -logits_to_keep:]
        logits = F.linear(x, self.embedding.weight if self.head is None else self.head.weight).float()
        if c := self.config.softcap:
            logits = c * logits * torch.rsqrt(logits.square() + c**2)
        logits = logits if self.head_bias is None else logits + self.head_bias
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        optional = {"hidden_states": states if wants_states else None, CACHE: cache}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **optional)

    def hidden_states(self, ids: Tensor, step: Step, positions: Tensor) -> tuple[Tensor, ...]:
        """The stream (B, T, C) before each block, and the input of the head."""
        history = step.history(self.config.layers, ids[..., None])  # (B, S, 1)
        x = self.input_norm(self.embedding(ids))
        if self.bigrams is not None:
            x = x + self.bigrams(ids, history)
        if self.position is not None:
            x = x + self.position(positions)
        if self.config.positions == "rotary":
            width = self.config.head_dim
            frequencies = self.config.rotary_base ** (-torch.arange(0, width, 2, device=ids.device) / width)
            angles = positions[:, None, :, None] * frequencies
            step.cos_sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        x = x0 = self.dropout(x if self.convolution is None else self.convolution(x, step))
        states, first_v = [x], None
        for block in self.blocks:
            x, first_v = block(x, x0, step, first_v)
            states.append(x)
        return (*states[:-1], self.norm(x))
