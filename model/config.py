"""Configuration of a model and of its training; presets.py holds named sets of them. Never imports torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.errors import BadConfig

CHOICES = {
    "positions": ("learned", "rotary", "none"),
    "norm": ("layer", "rms"),
    "activation": ("gelu", "relu", "relu2", "swiglu"),
    "optimizer": ("adamw", "muon"),
    "schedule": ("cosine", "wsd"),
    "order": ("random", "epoch"),
    "precision": ("auto", "fp32", "bf16"),
    "compile": ("auto", "yes", "no"),
    "resident": ("auto", "yes", "no"),
    "parallel": ("ddp", "fsdp"),
}

GATE_WIDTH = 12  # input dimensions of an attention head's gate (modded-nanogpt)


@dataclass(frozen=True)
class GPTConfig:
    """Configuration of a decoder-only transformer. The residual stream is `width` dimensions wide.

    vocab_size  rows of the embedding; 0: the vocabulary size of the tokenizer
    dropout     dropout probability on the embeddings and on the output of each attention and feed-forward layer;
                `attention_dropout` applies to the attention weights, without the fast kernel on a CPU;
                `last_dropout` to the input of the output head
    positions   "learned" (GPT-2), "rotary" (RoPE, Su et al. 2021) with base `rotary_base`, or "none"
    norm        "layer" (Ba et al. 2016) or "rms" (Zhang & Sennrich 2019)
    activation  "gelu" (GPT-2's tanh form), "relu", "relu2" (So et al. 2021) or "swiglu" (Shazeer 2020)
    kv_heads    key and value heads that the query heads share (Ainslie et al. 2023); 0: as many as `heads`
    hidden      hidden width of the feed-forward; 0: 4 x width, or 8/3 x for swiglu, rounded up to a multiple of 32
    bias        biases in the projections back into the stream, the feed-forward and layer norms; `qkv_bias` in
                those of queries, keys and values
    qk_norm     normalise each head's queries and keys (Henry et al. 2020)
    tied        use the embedding as the output head (Press & Wolf 2017)
    softcap     limit logits to +-softcap by c z / sqrt(c² + z²) (modded-nanogpt); 0: no limit
    scalars     the input of each block is r x + s x0, with learned r and s for the stream x and the embedding x0
                (modded-nanogpt)
    bigrams     rows of a table of bigram embeddings, indexed by a hash of a token and the previous one, which are
                added to the token embeddings (modded-nanogpt's bigram hash); 0: no table
    convolution width of a causal depthwise convolution over the embeddings and over the input of each attention and
                feed-forward layer (Allen-Zhu 2025, Canon layers); 0: no convolution
    values      mix each block's values with those of the first block, with learned weights (Zhou et al. 2024)
    gates       multiply each head's output by a gate computed from the stream (Qiu et al. 2025)
    input_norm  normalise the embeddings (modded-nanogpt)
    head_bias   give the output head a bias, initialised to the log frequencies of the tokens in the training text
    zero_init   initialise the projections back into the stream to zero, instead of normal(0, 0.02 / sqrt(2 layers))
    """

    vocab_size: int = 0
    block_size: int = 256
    layers: int = 6
    heads: int = 6
    width: int = 384
    dropout: float = 0.0
    attention_dropout: float = 0.0
    last_dropout: float = 0.0
    positions: str = "learned"
    rotary_base: float = 10_000.0
    norm: str = "layer"
    activation: str = "gelu"
    kv_heads: int = 0
    hidden: int = 0
    bias: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    softcap: float = 0.0
    scalars: bool = False
    bigrams: int = 0
    convolution: int = 0
    values: bool = False
    gates: bool = False
    input_norm: bool = False
    head_bias: bool = False
    zero_init: bool = False

    def __post_init__(self) -> None:
        _check_choices(self)
        heads, kv_heads = self.heads, self.kv_heads
        if min(self.block_size, heads, self.width) < 1:
            raise BadConfig("block_size, heads and width must be 1 or more", hint="change them with --set")
        if min(self.layers, self.vocab_size, kv_heads, self.hidden, self.bigrams, self.convolution) < 0:
            raise BadConfig(
                "layers, vocab_size, kv_heads, hidden, bigrams and convolution must be 0 or more",
                hint="change them with --set",
            )
        if self.width % heads:
            raise BadConfig(
                f"width must be a multiple of heads, got width {self.width} and heads {heads}",
                hint="change one of them with --set",
            )
        if kv_heads and heads % kv_heads:
            raise BadConfig(
                f"heads must be a multiple of kv_heads, got heads {heads} and kv_heads {kv_heads}",
                hint="change one of them with --set",
            )
        if self.positions == "rotary" and self.head_width % 2:
            raise BadConfig(
                f"rotary positions need an even head width, got {self.head_width}", hint="change --set width or heads"
            )
        if not all(0 <= rate < 1 for rate in (self.dropout, self.attention_dropout, self.last_dropout)):
            raise BadConfig(
                "dropout, attention_dropout and last_dropout must be in [0, 1)", hint="change them with --set"
            )
        if not (0 <= self.softcap < math.inf and 1 < self.rotary_base < math.inf):
            raise BadConfig(
                "softcap must be 0 or more, rotary_base above 1, and both finite", hint="change them with --set"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, which is also that of all value heads."""
        return (self.kv_heads or self.heads) * self.head_width

    @property
    def hidden_width(self) -> int:
        if self.hidden:
            return self.hidden
        return -(-self.width * 8 // 96) * 32 if self.activation == "swiglu" else 4 * self.width

    @property
    def family(self) -> str:
        """The matching model type of Hugging Face's transformers, "gpt2" or "qwen3"; "fast" if there is none."""
        extensions = (self.softcap, self.scalars, self.bigrams, self.convolution, self.values, self.gates)
        standard = not any((*extensions, self.input_norm, self.head_bias))
        gpt2 = (self.positions, self.norm, self.activation, self.qk_norm) == ("learned", "layer", "gelu", False)
        qwen3 = (self.positions, self.norm, self.activation, self.qk_norm) == ("rotary", "rms", "swiglu", True)
        if standard and gpt2 and self.kv_width == self.width:
            return "gpt2"
        return "qwen3" if standard and qwen3 and not (self.bias or self.qkv_bias) else "fast"

    @property
    def parameters(self) -> int:
        """Number of weights, equal to `sum(p.numel() for p in GPT(config).parameters())`."""
        vocab_matrices = 1 if self.tied else 2
        lookups = (vocab_matrices * self.vocab_size + self.bigrams) * self.width + self._position_parameters
        norms = self._norm_parameters(self.width) * (1 + self.input_norm)
        mixes = self.values * 2 * max(self.layers - 1, 0)
        head_bias, convolution = self.head_bias * self.vocab_size, self.convolution * self.width
        return lookups + self.layers * self._block_parameters + norms + head_bias + convolution + mixes

    @property
    def _position_parameters(self) -> int:
        return self.block_size * self.width if self.positions == "learned" else 0

    def _norm_parameters(self, width: int) -> int:
        return width * (2 if self.norm == "layer" and self.bias else 1)

    @property
    def _block_parameters(self) -> int:
        width, kv_width, hidden = self.width, self.kv_width, self.hidden_width
        attention = 2 * width * width + 2 * width * kv_width + self.qkv_bias * (width + 2 * kv_width)
        attention += self.qk_norm * 2 * self._norm_parameters(self.head_width)
        attention += self.gates * self.heads * min(GATE_WIDTH, width)
        matrices = 3 if self.activation == "swiglu" else 2
        feed_forward = matrices * width * hidden
        biases = self.bias * (width + (matrices - 1) * hidden + width)
        norms, convolutions = 2 * self._norm_parameters(width), 2 * self.convolution * width
        return attention + feed_forward + biases + norms + convolutions + 2 * self.scalars

    @property
    def flops_per_token(self) -> float:
        """FLOPs to train on one token: 6 per weight in a matrix product, plus attention (PaLM, appendix B)."""
        lookups = (self.bigrams + (0 if self.tied else self.vocab_size)) * self.width + self._position_parameters
        return 6 * (self.parameters - lookups) + 12 * self.layers * self.width * self.block_size


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of a training run.

    A step takes `batch_size` sequences, computed in micro-batches of `micro_batch` (0: as many as fit into memory), so
    that a step is the same on every machine.

    The schedule ends after `steps`, or after `minutes` if that is set. Learning rates warm up over `warmup` steps. Then
    "cosine" decays them to `final_share` of their peak. "wsd" keeps them at the peak and decays them linearly over the
    last `cooldown` fraction of the training (Hägele et al. 2024).

    `optimizer` "adamw" trains all weights with `learning_rate`. "muon" trains matrices by Muon with it (Jordan 2024)
    and the other weights by AdamW: embeddings with `embedding_rate`, an untied head with `head_rate`, vectors with
    `vector_rate`. Muon's momentum rises from 0.85 to `momentum` over `momentum_warmup` steps. `weight_decay` applies to
    matrices, `embedding_decay` to embeddings and head; `cautious` decays a weight only where the update shrinks it too
    (Chen et al. 2025). Gradients are clipped to the norm `clip`.

    `document_mask` hides earlier documents of the same row from attention. "auto" in `precision` and `compile` selects
    the fastest setting for the machine. `recompute` repeats the forward pass of each block in the backward pass, which
    takes less memory and a third more time. `resident` keeps all tokens on the device. `parallel` selects "ddp" or
    "fsdp" for several processes.

    `order` "random" draws blocks with replacement, "epoch" visits each block once per epoch. `ema` above 0 evaluates
    and samples from an exponential moving average of the weights with that decay.

    The validation split is evaluated at the start, at the end and `evaluations` - 1 times in between, on its first
    `eval_bytes` bytes of text (0: on all of it). Evaluations are at least 10 steps apart; if `minutes` is set, there
    are fewer when they would take over a tenth of the time. But six are made, if `evaluations` allows it, unless they
    would take longer than a minute and than the training by the clock.
    """

    batch_size: int = 16
    micro_batch: int = 0
    steps: int = 2000
    minutes: float = 0.0
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    embedding_rate: float = 0.02
    head_rate: float = 0.004
    vector_rate: float = 0.02
    momentum: float = 0.95
    momentum_warmup: int = 300
    weight_decay: float = 0.1
    embedding_decay: float = 0.0
    cautious: bool = False
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    schedule: str = "cosine"
    warmup: int = 50
    cooldown: float = 0.4
    final_share: float = 0.1
    order: str = "random"
    document_mask: bool = False
    ema: float = 0.0
    precision: str = "auto"
    compile: str = "auto"
    recompute: bool = False
    parallel: str = "ddp"
    resident: str = "auto"
    evaluations: int = 10
    eval_bytes: int = 1 << 18
    seed: int = 1

    def __post_init__(self) -> None:
        _check_choices(self)
        counts = (self.steps, self.batch_size, self.evaluations)
        rates = (self.learning_rate, self.embedding_rate, self.head_rate, self.vector_rate)
        amounts = (self.minutes, self.warmup, self.momentum_warmup, self.seed, self.micro_batch, self.eval_bytes)
        decays = (self.beta1, self.beta2, self.momentum, self.ema)
        checks = (
            (min(counts) >= 1, "steps, batch_size and evaluations must be 1 or more"),
            (min(amounts) >= 0, "minutes, warmup, momentum_warmup, micro_batch, eval_bytes and seed must be 0 or more"),
            (min(self.weight_decay, self.embedding_decay) >= 0, "weight_decay and embedding_decay must be 0 or more"),
            (self.minutes < math.inf and self.seed < 1 << 31, "minutes must be finite and seed below 2**31"),
            (all(0 < rate < math.inf for rate in rates) and self.clip > 0, "rates and clip must be above 0"),
            (all(0 <= decay < 1 for decay in decays), "beta1, beta2, momentum and ema must be in [0, 1)"),
            (0 <= self.final_share <= 1 and 0 <= self.cooldown <= 1, "final_share and cooldown must be in [0, 1]"),
        )
        for valid, message in checks:
            if not valid:
                raise BadConfig(message, hint="change it with --set")


@dataclass(frozen=True)
class Preset:
    """A model configuration, its training, and the `source` of its numbers.

    `family` is that of the model (see `GPTConfig.family`). `tokenizer` is the one that the preset was tuned with:
    "char", "bpe-8000" or a tiktoken encoding; "" if any will do.
    """

    family: str
    source: str
    model: GPTConfig
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    tokenizer: str = ""


def override(preset: Preset, settings: Mapping[str, Any]) -> Preset:
    """Return `preset` with fields of its model or its training replaced, as by `--set width=256`.

    Values may be text and are converted to the type of the field. Raises BadConfig for an unknown field or an invalid
    value.
    """
    changes: dict[str, dict[str, Any]] = {"model": {}, "train": {}}
    for name, value in settings.items():
        section = next((section for section in changes if name in _fields(getattr(preset, section))), None)
        if section is None:
            names = ", ".join((*_fields(preset.model), *_fields(preset.train)))
            raise BadConfig(f"unknown setting {name!r}", hint=f"use one of: {names}")
        field_type = type(getattr(getattr(preset, section), name))
        try:
            changes[section][name] = msgspec.convert(value, field_type, strict=False)
        except msgspec.ValidationError as error:
            raise BadConfig(f"{name}={value}: {error}", hint="see model/config.py") from None
    return dataclasses.replace(
        preset,
        model=dataclasses.replace(preset.model, **changes["model"]),
        train=dataclasses.replace(preset.train, **changes["train"]),
    )


def differences(config: GPTConfig | TrainConfig, reference: GPTConfig | TrainConfig) -> list[str]:
    """List the fields in which `config` differs from `reference`, each as "name: VALUE, not REFERENCE VALUE"."""
    pairs = ((name, getattr(config, name), getattr(reference, name)) for name in _fields(config))
    return [f"{name}: {value}, not {expected}" for name, value, expected in pairs if value != expected]


def resolve_vocab_size(config: GPTConfig, tokenizer_vocab: int) -> GPTConfig:
    """Return `config` with the vocabulary size of the tokenizer filled in if it is 0.

    Raises BadConfig if it is set and smaller than the tokenizer's.
    """
    if not config.vocab_size:
        return dataclasses.replace(config, vocab_size=tokenizer_vocab)
    if config.vocab_size < tokenizer_vocab:
        raise BadConfig(
            f"the tokenizer has {tokenizer_vocab:,} ids, but the model's vocab_size is {config.vocab_size:,}",
            hint="choose another preset, or take the tokenizer's size with --set vocab_size=0",
        )
    return config


def _check_choices(config: GPTConfig | TrainConfig) -> None:
    for name in _fields(config):
        if name in CHOICES and getattr(config, name) not in CHOICES[name]:
            raise BadConfig(f"unknown {name} {getattr(config, name)!r}", hint=f"use one of: {', '.join(CHOICES[name])}")


def _fields(config: GPTConfig | TrainConfig) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]
