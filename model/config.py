"""Configuration of a model and of its training; settings.py says what each setting means and which values it may have.

presets.py holds named sets of them. Never imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from model.settings import SETTINGS
from pipeline.errors import BadConfig

GATE_WIDTH = 12  # input dimensions of an attention head's gate (modded-nanogpt)
NORM_EPSILON = {"layer": 1e-5, "rms": 1e-6}
# Settings that older versions lack. At its default, such a setting is not part of a key, so older keys stay valid.
_UNLISTED = (
    *("head_dim", "norm_epsilon", "deterministic", "patience", "ngram", "lora_rank", "beta", "replay", "epochs"),
    "document_starts",
)


@dataclass(frozen=True)
class GPTConfig:
    """Configuration of a decoder-only transformer. Its settings are described in `SETTINGS`."""

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
    head_dim: int = 0
    norm_epsilon: float = 0.0
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
    ngram: int = 0

    def __post_init__(self) -> None:
        _check(self)
        heads, kv_heads = self.heads, self.kv_heads
        if not self.head_dim and self.width % heads:
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

    @property
    def head_width(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def query_width(self) -> int:
        """Width of all query heads together: `width`, unless `head_dim` is set."""
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, and of all value heads together."""
        return (self.kv_heads or self.heads) * self.head_width

    @property
    def epsilon(self) -> float:
        return self.norm_epsilon or NORM_EPSILON[self.norm]

    @property
    def hidden_width(self) -> int:
        if self.hidden:
            return self.hidden
        return -(-self.width * 8 // 96) * 32 if self.activation == "swiglu" else 4 * self.width

    @property
    def family(self) -> str:
        """The matching model type of Hugging Face's transformers, one of architectures.FAMILIES; else "fast"."""
        extensions = (self.softcap, self.scalars, self.bigrams, self.convolution, self.values, self.gates)
        standard = not any((*extensions, self.input_norm, self.head_bias))
        has_equal_heads = self.kv_width == self.query_width == self.width
        if standard and (self.norm, self.qk_norm) == ("layer", False) and has_equal_heads:
            has_counterpart = self.activation in ("gelu", "gelu_erf", "relu")
            return {"learned": "gpt2", "rotary": "gpt_neox"}.get(self.positions, "fast") if has_counterpart else "fast"
        parts = (self.norm, self.activation, self.positions, self.bias)
        if not standard or parts != ("rms", "swiglu", "rotary", False):
            return "fast"
        if self.qk_norm:
            return "fast" if self.qkv_bias else "qwen3"
        if self.qkv_bias:
            return "qwen2" if self.query_width == self.width else "fast"
        return "llama"

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
        width, query_width, kv_width, hidden = self.width, self.query_width, self.kv_width, self.hidden_width
        attention = 2 * width * (query_width + kv_width) + self.qkv_bias * (query_width + 2 * kv_width)
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
        return 6 * (self.parameters - lookups) + 12 * self.layers * self.query_width * self.block_size


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of a training run.

    Its settings are described in `SETTINGS`. A step takes `batch_size` sequences, in micro-batches that fit into
    memory. The schedule ends after `steps`, or after `minutes` if that is set, or after `epochs` if that is earlier.

    The validation split is evaluated at the start, at the end and `evaluations` - 1 times in between. Evaluations are
    at least 10 steps apart and, if `minutes` is set, take at most a tenth of the time. Six are made in any case, if
    `evaluations` allows it; if `minutes` is set, only while they take less than a minute or less time than training.

    If the validation loss rises, a training with `minutes` or `patience` returns to its best checkpoint and ends early.
    """

    batch_size: int = 16
    micro_batch: int = 0
    steps: int = 2000
    minutes: float = 0.0
    epochs: float = 0.0
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
    document_starts: bool = False
    document_mask: bool = False
    ema: float = 0.0
    precision: str = "auto"
    compile: str = "auto"
    deterministic: bool = False
    recompute: bool = False
    parallel: str = "ddp"
    resident: str = "auto"
    evaluations: int = 10
    eval_bytes: int = 1 << 18
    patience: int = 0
    lora_rank: int = 0
    beta: float = 0.0
    replay: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Preset:
    """A model configuration, its training, and the `source` of its numbers.

    `family` equals `model.family`. `tokenizer` is the tokenizer that the preset was tuned with: "char", "bpe-8000" or a
    tiktoken encoding; "" for any.
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
        except msgspec.ValidationError:
            raise _bad_value(name, value) from None
    return dataclasses.replace(
        preset,
        model=dataclasses.replace(preset.model, **changes["model"]),
        train=dataclasses.replace(preset.train, **changes["train"]),
    )


def identity(config: GPTConfig | TrainConfig) -> dict[str, Any]:
    """Return the settings as part of a run's key."""
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if value or name not in _UNLISTED}


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


def _check(config: GPTConfig | TrainConfig) -> None:
    """Raise BadConfig for the first field whose value its setting does not allow."""
    for name in _fields(config):
        if not SETTINGS[name].allows(value := getattr(config, name)):
            raise _bad_value(name, value)


def _bad_value(name: str, value: object) -> BadConfig:
    setting = SETTINGS[name]
    return BadConfig(
        f"{name} must be {setting.expected}, got {value!s:.60}",
        hint=f"{setting.meaning}; `inkstone presets --settings` lists all settings",
    )


def defaults() -> dict[str, Any]:
    """Return the default of every setting."""
    return {**dataclasses.asdict(GPTConfig()), **dataclasses.asdict(TrainConfig())}


def _fields(config: GPTConfig | TrainConfig) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]
