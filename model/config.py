"""What a model and its training look like as numbers. Named sets of them are in presets.py."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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


GATE_WIDTH = 12  # dimensions of the stream that the gate of a head reads (modded-nanogpt)


@dataclass(frozen=True)
class GPTConfig:
    """A decoder-only transformer. `vocab_size` 0 means the tokenizer's own.

    dropout     share of the stream that is dropped at its beginning and after each half of a block;
                `attention_dropout` of who attends to whom, which leaves the fast kernel of a CPU; `last_dropout`
                of what the head reads
    positions   "learned" (GPT-2), "rotary" (RoPE, Su et al. 2021) over angles of `rotary_base`, or "none"
    norm        "layer" (Ba et al. 2016), "rms" (Zhang & Sennrich 2019)
    activation  "gelu" (GPT-2's tanh form), "relu", "relu2" (So et al. 2021), "swiglu" (Shazeer 2020)
    kv_heads    heads of keys and values that the query heads share (Ainslie et al. 2023); 0: as many as `heads`
    hidden      width inside the feed-forward; 0: 4 x width, or 8/3 x for swiglu, rounded up to a multiple of 32
    bias        in what writes to the stream, the feed-forward and layer norms; `qkv_bias` in queries, keys, values
    qk_norm     each head's queries and keys are normed too (Henry et al. 2020)
    tied        the embedding is the output head too (Press & Wolf 2017)
    softcap     logits are bent to within +-softcap by c z / sqrt(c² + z²) (modded-nanogpt); 0: not
    scalars     each block gets r x + s x0: the stream and the embedding, both with learned weights (modded-nanogpt)
    bigrams     rows of a table of embeddings of pairs, by a hash of a token and the one before, which are added to
                those of tokens (modded-nanogpt's bigram hash); 0: none
    convolution width of a causal convolution, channel by channel, over the first stream and what each half of a
                block reads (Allen-Zhu 2025, Canon layers); 0: none
    values      each block's values are mixed with the first block's, by learned weights (Zhou et al. 2024)
    gates       each head's output is multiplied by a gate that reads the stream (Qiu et al. 2025)
    input_norm  the stream begins with a norm (modded-nanogpt)
    head_bias   the head has a bias, which begins with the logarithms of how often each token is in the training text
    zero_init   what writes to the stream starts at zero instead of normal(0, 0.02 / sqrt(2 layers))
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
        heads, keys = self.heads, self.kv_heads
        sizes = (self.layers, self.vocab_size, keys, self.hidden, self.bigrams, self.convolution)
        if min(self.block_size, heads, self.width) < 1 or min(sizes) < 0:
            raise BadConfig("block_size, heads and width must be 1 or more", hint="see --set")
        if self.width % heads:
            raise BadConfig(f"width {self.width} is no multiple of heads {heads}", hint="change one with --set")
        if keys and heads % keys:
            raise BadConfig(f"heads {heads} is no multiple of kv_heads {keys}", hint="change one with --set")
        if self.positions == "rotary" and self.head_width % 2:
            raise BadConfig(f"rotary positions need an even head width, not {self.head_width}")
        if not all(0 <= share < 1 for share in (self.dropout, self.attention_dropout, self.last_dropout)):
            raise BadConfig("dropout, attention_dropout and last_dropout are shares", hint="from 0 to below 1")
        if not (0 <= self.softcap < math.inf and 1 < self.rotary_base < math.inf):
            raise BadConfig("softcap must be 0 or more, rotary_base above 1", hint="see --set")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def key_width(self) -> int:
        """Width of all heads of keys together, and of values."""
        return (self.kv_heads or self.heads) * self.head_width

    @property
    def hidden_width(self) -> int:
        if self.hidden:
            return self.hidden
        return -(-self.width * 8 // 96) * 32 if self.activation == "swiglu" else 4 * self.width

    @property
    def family(self) -> str:
        """What the architecture maps to in Hugging Face's transformers, "gpt2" or "qwen3"; "fast" if to nothing."""
        special = (self.softcap, self.scalars, self.bigrams, self.convolution, self.values, self.gates)
        plain = not any((*special, self.input_norm, self.head_bias))
        gpt2 = (self.positions, self.norm, self.activation, self.qk_norm) == ("learned", "layer", "gelu", False)
        qwen3 = (self.positions, self.norm, self.activation, self.qk_norm) == ("rotary", "rms", "swiglu", True)
        if plain and gpt2 and self.key_width == self.width:
            return "gpt2"
        return "qwen3" if plain and qwen3 and not (self.bias or self.qkv_bias) else "fast"

    @property
    def parameters(self) -> int:
        """Number of weights: what `sum(p.numel() for p in GPT(config).parameters())` gives."""
        heads = 1 if self.tied else 2
        lookups = (heads * self.vocab_size + self.bigrams) * self.width + self._positions
        norms = self._norm(self.width) * (1 + self.input_norm)
        once = norms + self.head_bias * self.vocab_size + self.convolution * self.width
        once += self.values * 2 * max(self.layers - 1, 0)
        return lookups + self.layers * self._block + once

    @property
    def _positions(self) -> int:
        return self.block_size * self.width if self.positions == "learned" else 0

    def _norm(self, width: int) -> int:
        return width * (2 if self.norm == "layer" and self.bias else 1)

    @property
    def _block(self) -> int:
        c, keys, hidden = self.width, self.key_width, self.hidden_width
        attention = 2 * c * c + 2 * c * keys + self.qkv_bias * (c + 2 * keys)
        attention += self.qk_norm * 2 * self._norm(self.head_width)
        feed_forward = (3 if self.activation == "swiglu" else 2) * c * hidden
        biases = self.bias * (c + (hidden if self.activation != "swiglu" else 2 * hidden) + c)
        attention += self.gates * self.heads * min(GATE_WIDTH, c)
        return attention + feed_forward + biases + 2 * self._norm(c) + 2 * self.convolution * c + 2 * self.scalars

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations to train on one token: 6 a weight, and attention (PaLM, appendix B)."""
        lookups = (self.bigrams + (0 if self.tied else self.vocab_size)) * self.width + self._positions
        return 6 * (self.parameters - lookups) + 12 * self.layers * self.width * self.block_size


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. `batch_size` counts the sequences of one step; `micro_batch` those computed at once,
    0: as many as fit, so that a step is the same whatever the machine.

    The schedule ends after `steps`, or, when `minutes` is set, after that much time. Rates warm up over `warmup`
    steps; then "cosine" falls to `final_share` of the peak at the end, "wsd" stays there and falls in a straight line
    over the last `cooldown` share (Hägele et al. 2024).

    `optimizer` "adamw" trains all with `learning_rate`. "muon" trains matrices by Muon with it (Jordan 2024), and by
    AdamW the embeddings with `embedding_rate`, an untied head with `head_rate`, vectors with `vector_rate`; momentum
    rises from 0.85 to `momentum` over `momentum_warmup` steps. `weight_decay` is for matrices, `embedding_decay` for
    embeddings and head; `cautious` decays only where the update shrinks a weight too (Chen et al. 2025).

    Gradients are clipped to the norm `clip`. `document_mask` hides what came before a document. `precision`,
    `compile` and `micro_batch` say how the machine computes it, "auto" what suits it; `recompute` computes activations
    again in the backward pass, for less memory and a third more time; `resident` keeps all tokens on the device;
    several processes share the work by `parallel`, "ddp" or "fsdp".

    `order` "random" draws blocks with replacement, "epoch" sees each once an epoch. `ema` above 0 evaluates and
    samples from an average of the weights with that decay. The validation split is evaluated at the start, at the end
    and `evaluations` - 1 times between, on its first `eval_bytes` bytes of text, 0: on all of it: by steps, never less
    than 10 apart; by the clock, less often when that would take over a tenth of the time.
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
        shares = (self.beta1, self.beta2, self.momentum, self.ema)
        rules = (
            (min(counts) >= 1, "steps, batch_size and evaluations must be 1 or more"),
            (min(amounts) >= 0, "minutes, warmup, momentum_warmup, micro_batch, eval_bytes and seed must be 0 or more"),
            (min(self.weight_decay, self.embedding_decay) >= 0, "weight_decay and embedding_decay must be 0 or more"),
            (self.minutes < math.inf and self.seed < 1 << 31, "minutes must be finite and seed below 2**31"),
            (all(0 < rate < math.inf for rate in rates) and self.clip > 0, "rates and clip must be above 0"),
            (all(0 <= share < 1 for share in shares), "beta1, beta2, momentum and ema must be from 0 to below 1"),
            (0 <= self.final_share <= 1 and 0 <= self.cooldown <= 1, "final_share and cooldown must be from 0 to 1"),
        )
        for holds, rule in rules:
            if not holds:
                raise BadConfig(rule, hint="see --set")


@dataclass(frozen=True)
class Preset:
    """A model of a `family` (see GPTConfig), a training, and where the numbers come from. `tokenizer` is what it was
    tuned with: "char", "bpe-8000" or an encoding of tiktoken's; "" where any will do."""

    family: str
    source: str
    model: GPTConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    tokenizer: str = ""


def override(chosen: Preset, settings: Mapping[str, Any]) -> Preset:
    """`chosen` with fields of its model or its training replaced, as by `--set width=256`.

    Values may be text and are read as the field's type. Raises BadConfig for an unknown field or a wrong value.
    """
    changes: dict[str, dict[str, Any]] = {"model": {}, "train": {}}
    for key, value in settings.items():
        part = next((part for part in changes if key in _fields(getattr(chosen, part))), None)
        if part is None:
            known = ", ".join((*_fields(chosen.model), *_fields(chosen.train)))
            raise BadConfig(f"there is no setting {key!r}", hint=f"settings: {known}")
        kind = type(getattr(getattr(chosen, part), key))
        try:
            changes[part][key] = msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as error:
            raise BadConfig(f"{key}={value}: {error}", hint="see model/config.py") from None
    return dataclasses.replace(
        chosen,
        model=dataclasses.replace(chosen.model, **changes["model"]),
        train=dataclasses.replace(chosen.train, **changes["train"]),
    )


def differences(one: GPTConfig | TrainConfig, other: GPTConfig | TrainConfig) -> list[str]:
    """Fields in which two configurations of one kind differ, each as "name: its value here, not there"."""
    pairs = ((name, getattr(one, name), getattr(other, name)) for name in _fields(one))
    return [f"{name}: {here}, not {there}" for name, here, there in pairs if here != there]


def fit(config: GPTConfig, tokenizer_vocab: int) -> GPTConfig:
    """`config` for a tokenizer: its vocabulary size filled in, or checked to be large enough."""
    if not config.vocab_size:
        return dataclasses.replace(config, vocab_size=tokenizer_vocab)
    if config.vocab_size < tokenizer_vocab:
        raise BadConfig(
            f"the tokenizer has {tokenizer_vocab:,} ids, the model's vocabulary is {config.vocab_size:,}",
            hint="choose another preset, or --set vocab_size=0 for the tokenizer's own",
        )
    return config


def _check_choices(config: GPTConfig | TrainConfig) -> None:
    for name in _fields(config):
        if name in CHOICES and getattr(config, name) not in CHOICES[name]:
            raise BadConfig(f"{name}={getattr(config, name)} is unknown", hint=f"one of {', '.join(CHOICES[name])}")


def _fields(config: GPTConfig | TrainConfig) -> list[str]:
    return [entry.name for entry in dataclasses.fields(config)]
