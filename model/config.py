"""What a model and its training look like as numbers, and the presets: named sets of numbers with their source."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pipeline.errors import BadConfig

POSITIONS = ("learned", "rotary", "none")


@dataclass(frozen=True)
class GPTConfig:
    """A decoder-only transformer. `vocab_size` 0 means the tokenizer's own.

    `positions`: "learned" (GPT-2), "rotary" (RoPE, Su et al. 2021), or "none". `tied` shares the embedding with the
    output head (Press & Wolf 2017).
    """

    vocab_size: int = 0
    block_size: int = 256
    layers: int = 6
    heads: int = 6
    width: int = 384
    dropout: float = 0.0
    positions: str = "learned"
    qkv_bias: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise BadConfig(f"positions={self.positions} is unknown", hint=f"one of {', '.join(POSITIONS)}")
        if min(self.block_size, self.heads, self.width) < 1 or min(self.layers, self.vocab_size) < 0:
            raise BadConfig("block_size, heads and width must be 1 or more", hint="see --set")
        if self.width % self.heads:
            raise BadConfig(f"width {self.width} is no multiple of heads {self.heads}", hint="change one with --set")
        if self.positions == "rotary" and (self.width // self.heads) % 2:
            raise BadConfig(f"rotary positions need an even head width, not {self.width // self.heads}")
        if not 0 <= self.dropout < 1:
            raise BadConfig(f"dropout {self.dropout} is no share", hint="from 0 to below 1")

    @property
    def parameters(self) -> int:
        """Number of weights: what `sum(p.numel() for p in GPT(config).parameters())` gives."""
        block = 12 * self.width**2 + 10 * self.width + 3 * self.width * self.qkv_bias
        positions = self.block_size * self.width if self.positions == "learned" else 0
        heads = 1 if self.tied else 2
        return heads * self.vocab_size * self.width + positions + self.layers * block + 2 * self.width

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations to train on one token: 6 a weight, and attention (PaLM, appendix B)."""
        positions = self.block_size * self.width if self.positions == "learned" else 0
        lookups = 0 if self.tied else self.vocab_size * self.width
        return 6 * (self.parameters - positions - lookups) + 12 * self.layers * self.width * self.block_size


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. `batch_size` counts sequences, and `accumulate` of those batches make one step.

    The schedule ends after `steps`, or, when `minutes` is set, after that much time; the learning rate warms up over
    `warmup` steps and falls by a cosine to `final_share` of its peak. The validation split is evaluated at the start,
    at the end and `evaluations` - 1 times between, on its first `eval_tokens` tokens: by steps, never less than 10
    apart; by the clock, less often when that would take over a tenth of the time.
    """

    batch_size: int = 16
    accumulate: int = 1
    steps: int = 2000
    minutes: float = 0.0
    learning_rate: float = 1e-3
    final_share: float = 0.1
    warmup: int = 50
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    evaluations: int = 10
    eval_tokens: int = 1 << 16
    seed: int = 1

    def __post_init__(self) -> None:
        counts = (self.steps, self.batch_size, self.accumulate, self.evaluations)
        amounts = (self.minutes, self.warmup, self.seed, self.weight_decay)
        rules = (
            (min(counts) >= 1, "steps, batch_size, accumulate and evaluations must be 1 or more"),
            (min(amounts) >= 0, "minutes, warmup, seed and weight_decay must be 0 or more"),
            (self.minutes < math.inf and self.seed < 1 << 31, "minutes must be finite and seed below 2**31"),
            (0 < self.learning_rate < math.inf and self.clip > 0, "learning_rate and clip must be above 0"),
            (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, "beta1 and beta2 must be from 0 to below 1"),
            (0 <= self.final_share <= 1, "final_share must be from 0 to 1"),
            (self.eval_tokens >= 2, "eval_tokens must be 2 or more"),
        )
        for holds, rule in rules:
            if not holds:
                raise BadConfig(rule, hint="see --set")


@dataclass(frozen=True)
class Preset:
    """A model, a training, and where the numbers come from."""

    source: str
    model: GPTConfig
    train: TrainConfig = field(default_factory=TrainConfig)


PRESETS: dict[str, Preset] = {
    "mini": Preset(
        "the counting toy: small enough to read every weight",
        GPTConfig(vocab_size=100, block_size=16, layers=2, heads=4, width=32),
        TrainConfig(batch_size=32, steps=400, learning_rate=3e-3, warmup=20, evaluations=4),
    ),
    "bigram": Preset(
        "the first model of Karpathy's lecture 'Let's build GPT': the next token from the last one alone",
        GPTConfig(block_size=64, layers=0, heads=1, width=128, positions="none", tied=False),
        TrainConfig(batch_size=32, steps=1000, learning_rate=3e-3),
    ),
    "sample": Preset(
        "for the embedded sample: a minute on two CPU cores",
        GPTConfig(block_size=128, layers=4, heads=4, width=128, dropout=0.1, positions="rotary"),
        TrainConfig(batch_size=16, steps=300, learning_rate=2e-3, warmup=30, evaluations=6),
    ),
    "babygpt": Preset(
        "nanoGPT's train_shakespeare_char and buildyourownllm's babygpt_v12, characters on Song ci",
        GPTConfig(block_size=256, layers=6, heads=6, width=384, dropout=0.2),
        TrainConfig(batch_size=64, steps=5000, learning_rate=1e-3, warmup=100, beta2=0.99),
    ),
    "shuihu-8m": Preset(
        "8.0M weights for one novel in SentencePiece 8,000; MoiraiLM's architecture (untied head, 4x GELU), wider",
        GPTConfig(block_size=128, layers=5, heads=4, width=256, dropout=0.1, tied=False),
        TrainConfig(batch_size=8, steps=3000, learning_rate=1e-3),
    ),
    "shuihu-8m-rope": Preset(
        "shuihu-8m with the rotary positions of MoiraiLM's train_gpt_RoPE.py",
        GPTConfig(block_size=128, layers=5, heads=4, width=256, dropout=0.1, positions="rotary", tied=False),
        TrainConfig(batch_size=8, steps=3000, learning_rate=1e-3),
    ),
    "13m": Preset(
        "train-llm-from-scratch's 13M model: r50k_base padded to 50,304, one block",
        GPTConfig(vocab_size=50_304, block_size=128, layers=1, heads=8, width=128, tied=False),
        TrainConfig(batch_size=8, steps=5000, learning_rate=2e-3, eval_tokens=1 << 14),
    ),
    "2b": Preset(
        "train-llm-from-scratch's config/config.py: 2,048 wide, 64 blocks, 16 heads, context 512",
        GPTConfig(vocab_size=50_304, block_size=512, layers=64, heads=16, width=2048, tied=False),
        TrainConfig(batch_size=8, accumulate=4, steps=200_000, learning_rate=2e-4, warmup=2000),
    ),
    "gpt2-124m": Preset(
        "GPT-2 small (Radford et al. 2019) as in Raschka's LLMs-from-scratch: no qkv bias, dropout 0.1",
        GPTConfig(vocab_size=50_257, block_size=1024, layers=12, heads=12, width=768, dropout=0.1),
        TrainConfig(batch_size=8, accumulate=4, steps=20_000, learning_rate=6e-4, warmup=700),
    ),
}


def preset(name: str) -> Preset:
    if name not in PRESETS:
        raise BadConfig(f"no preset {name!r}", hint=f"presets: {', '.join(PRESETS)}")
    return PRESETS[name]


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


def _fields(config: GPTConfig | TrainConfig) -> list[str]:
    return [entry.name for entry in dataclasses.fields(config)]


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
