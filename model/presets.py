"""Named presets: a model configuration, its training, and the source of the numbers.

Presets of the families "gpt2", "gpt_neox" and "qwen3" use only parts that Hugging Face's transformers has too; the
family "fast" uses the parts with the fastest training. benchmarks/NOTES.md has the experiments behind tuned presets.
`choose` picks a preset for a text, a device and a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.config import GPTConfig, Preset, TrainConfig
from pipeline.errors import BadConfig, BadData, suggestion
from pipeline.runtime.terminal import about

PRESETS: dict[str, Preset] = {
    "mini": Preset(
        "gpt2",
        "the counting toy: small enough to read every weight",
        GPTConfig(vocab_size=100, block_size=16, layers=2, heads=4, width=32),
        TrainConfig(batch_size=32, steps=400, learning_rate=3e-3, warmup=20, evaluations=4),
    ),
    "bigram": Preset(
        "fast",
        "the first model of Karpathy's lecture 'Let's build GPT': the next token from the last one alone",
        GPTConfig(block_size=64, layers=0, heads=1, width=128, positions="none", tied=False),
        TrainConfig(batch_size=32, steps=1000, learning_rate=3e-3),
    ),
    "sample": Preset(
        "gpt_neox",
        "for the embedded sample: a minute on two CPU cores",
        GPTConfig(block_size=128, layers=4, heads=4, width=128, dropout=0.1, positions="rotary"),
        TrainConfig(batch_size=16, steps=300, learning_rate=2e-3, warmup=30, evaluations=6),
    ),
    "babygpt": Preset(
        "gpt2",
        "nanoGPT's train_shakespeare_char and buildyourownllm's babygpt_v12, characters on Song ci",
        GPTConfig(block_size=256, layers=6, heads=6, width=384, dropout=0.2, attention_dropout=0.2),
        TrainConfig(batch_size=64, steps=5000, learning_rate=1e-3, warmup=100, beta2=0.99),
    ),
    "shuihu-8m": Preset(
        "gpt2",
        "8.0M weights for one novel in SentencePiece 8,000; MoiraiLM's architecture (untied head, 4x GELU), wider",
        GPTConfig(block_size=128, layers=5, heads=4, width=256, dropout=0.1, tied=False),
        TrainConfig(batch_size=8, steps=3000, learning_rate=1e-3),
    ),
    "shuihu-8m-rope": Preset(
        "gpt_neox",
        "shuihu-8m with the rotary positions of MoiraiLM's train_gpt_RoPE.py",
        GPTConfig(block_size=128, layers=5, heads=4, width=256, dropout=0.1, positions="rotary", tied=False),
        TrainConfig(batch_size=8, steps=3000, learning_rate=1e-3),
    ),
    "shuihu-fast": Preset(
        "fast",
        "for one novel and five minutes on two CPU cores, tuned on a tenth of its training text (benchmarks/NOTES.md)",
        GPTConfig(
            block_size=128,
            layers=4,
            heads=3,
            width=192,
            dropout=0.1,
            last_dropout=0.1,
            positions="rotary",
            activation="relu2",
            bias=False,
            qk_norm=True,
            softcap=15.0,
            scalars=True,
            convolution=3,
            values=True,
            gates=True,
            input_norm=True,
            head_bias=True,
            zero_init=True,
            ngram=4,
        ),
        TrainConfig(
            batch_size=16,
            optimizer="muon",
            learning_rate=0.02,
            embedding_rate=0.01,
            vector_rate=0.02,
            momentum_warmup=180,
            weight_decay=0.3,
            embedding_decay=0.5,
            cautious=True,
            beta1=0.9,
            schedule="wsd",
            cooldown=0.7,
            warmup=0,
            final_share=0.0,
            order="epoch",
            document_starts=True,
        ),
        tokenizer="bpe-6000",
    ),
    "13m": Preset(
        "gpt2",
        "train-llm-from-scratch's 13M model: r50k_base padded to 50,304, one block",
        GPTConfig(vocab_size=50_304, block_size=128, layers=1, heads=8, width=128, tied=False),
        TrainConfig(batch_size=8, steps=5000, learning_rate=2e-3, eval_bytes=1 << 16),
    ),
    "2b": Preset(
        "gpt2",
        "train-llm-from-scratch's config/config.py: 2,048 wide, 64 blocks, 16 heads, context 512",
        GPTConfig(vocab_size=50_304, block_size=512, layers=64, heads=16, width=2048, tied=False),
        TrainConfig(batch_size=32, steps=200_000, learning_rate=2e-4, warmup=2000),
    ),
    "gpt2-124m": Preset(
        "gpt2",
        "GPT-2 small (Radford et al. 2019) as in Raschka's LLMs-from-scratch: no qkv bias, dropout 0.1",
        GPTConfig(
            vocab_size=50_257, block_size=1024, layers=12, heads=12, width=768, dropout=0.1, attention_dropout=0.1
        ),
        TrainConfig(batch_size=32, steps=20_000, learning_rate=6e-4, warmup=700),
    ),
    "qwen-8m": Preset(
        "qwen3",
        "the parts of Qwen3 (rotary, RMSNorm, SwiGLU, QK-norm, shared keys) at the size of shuihu-8m; trained by Muon",
        GPTConfig(
            block_size=256,
            layers=6,
            heads=4,
            kv_heads=2,
            width=256,
            positions="rotary",
            norm="rms",
            activation="swiglu",
            bias=False,
            qk_norm=True,
        ),
        TrainConfig(
            batch_size=16,
            optimizer="muon",
            learning_rate=0.02,
            schedule="wsd",
            order="epoch",
            warmup=0,
            final_share=0.0,
        ),
    ),
    "small": Preset(
        "qwen3",
        "for one book and five minutes on two CPU cores; qwen-8m with shorter blocks and the decays of shuihu-fast",
        GPTConfig(
            block_size=128,
            layers=6,
            heads=4,
            kv_heads=2,
            width=256,
            dropout=0.1,
            positions="rotary",
            norm="rms",
            activation="swiglu",
            bias=False,
            qk_norm=True,
            zero_init=True,
        ),
        TrainConfig(
            batch_size=16,
            minutes=5.0,
            optimizer="muon",
            learning_rate=0.02,
            embedding_rate=0.01,
            momentum_warmup=100,
            weight_decay=0.3,
            embedding_decay=0.5,
            cautious=True,
            schedule="wsd",
            cooldown=0.7,
            warmup=0,
            final_share=0.0,
            order="epoch",
            document_starts=True,
        ),
    ),
    "fast-124m": Preset(
        "fast",
        "GPT-2 small's size for a GPU: modded-nanogpt's track 3 baseline, rates for embeddings of deviation 0.02",
        GPTConfig(
            vocab_size=50_304,
            block_size=1024,
            layers=12,
            heads=6,
            width=768,
            positions="rotary",
            norm="rms",
            activation="relu2",
            bias=False,
            qk_norm=True,
            tied=False,
            softcap=15.0,
            scalars=True,
            input_norm=True,
            zero_init=True,
        ),
        TrainConfig(
            batch_size=512,
            steps=3250,
            optimizer="muon",
            learning_rate=0.025,
            embedding_rate=0.014,
            head_rate=0.004,
            vector_rate=0.015,
            momentum_warmup=300,
            weight_decay=0.05,
            cautious=True,
            beta1=0.8,
            schedule="wsd",
            cooldown=0.7,
            warmup=0,
            final_share=0.0,
            order="epoch",
        ),
        tokenizer="r50k_base",
    ),
}


def get_preset(name: str) -> Preset:
    """Return the preset with that name. Raises BadConfig if there is none."""
    if name not in PRESETS:
        raise BadConfig(
            f"no preset {name!r}", hint=f"{suggestion(name, PRESETS)}use one of: {', '.join(sorted(PRESETS))}"
        )
    return PRESETS[name]


DEFAULT_MINUTES = 5.0  # of a training for which the user names neither preset nor length

# Tokens a second of a training of `small`: measured on two CPU cores, guessed for a GPU. Only `choose` uses them.
_CPU_RATE, _GPU_RATE = 5_500, 200_000
# Limit of epochs of a training that `choose` plans, and its dropout; more of either is worse (benchmarks/NOTES.md).
CHOSEN_EPOCHS, _LAST_DROPOUT = 8.0, 0.2
_FASTER = 4  # how many times as fast as estimated a machine may be
MAX_EPOCHS = 60  # of any training: beyond that the validation loss of a short text only rises
_DROPOUTS = ((1.5, 0.0), (10, 0.1), (30, 0.2))  # (maximum number of epochs, dropout); 0.3 beyond
_MIN_BLOCK, _BLOCKS = 8, 8  # tokens of a block, and blocks of a text, at least
_TUNED_VOCABULARY = 4_000
_LARGE_VOCABULARY = 20_000  # ids: on a CPU the head of `small` then takes half of the time
_BYTES_PER_WEIGHT = 16  # weight, gradient and two moments in fp32 (estimate.weight_bytes)


@dataclass(frozen=True)
class Choice:
    """A preset for a text, the settings that differ from it, the maximum length in minutes, and the reason."""

    preset: str
    settings: Mapping[str, Any]
    minutes: float
    reason: str


@dataclass(frozen=True)
class _Size:
    """The size of a network, and the least number of training tokens and minutes that it is chosen for."""

    tokens: int
    minutes: float
    model: Mapping[str, Any]
    batch_size: int = 16


def _size(layers: int, heads: int, kv_heads: int, width: int, block_size: int) -> dict[str, Any]:
    return {"layers": layers, "heads": heads, "kv_heads": kv_heads, "width": width, "block_size": block_size}


_TINY, _LITTLE, _SMALL = _size(4, 2, 2, 128, 64), _size(4, 3, 3, 192, 128), _size(6, 4, 2, 256, 128)
_MEDIUM, _LARGE, _124M = _size(8, 6, 3, 384, 256), _size(12, 8, 4, 512, 512), _size(12, 12, 6, 768, 1024)
_CPU_SIZES = (_Size(0, 0, _TINY), _Size(30_000, 0, _LITTLE), _Size(100_000, 2, _SMALL), _Size(3_000_000, 60, _MEDIUM))
_GPU_SIZES = (
    *(_Size(0, 0, _TINY), _Size(30_000, 0, _LITTLE), _Size(100_000, 0, _SMALL), _Size(1_000_000, 2, _MEDIUM, 32)),
    *(_Size(10_000_000, 5, _LARGE, 64), _Size(100_000_000, 30, _124M, 64)),
)


def _require_tokens(tokens: int) -> None:
    if tokens < _MIN_BLOCK * _BLOCKS:
        raise BadData(
            f"{tokens:,} training tokens are too few for a model: at least {_MIN_BLOCK * _BLOCKS} are needed, "
            f"{_BLOCKS} blocks of {_MIN_BLOCK}",
            hint="train on a longer text",
        )


def choose(
    tokens: int,
    vocab_size: int,
    device: str,
    minutes: float | None = None,
    memory: int | None = None,
    *,
    is_estimate: bool = False,
) -> Choice:
    """Choose a preset for `tokens` training tokens (or an estimate of them), a vocabulary, a device and a length.

    The network has the family "qwen3", so that it can be exported. It is `small`, or smaller for little text or for
    less than two minutes on a CPU, or larger for more text and time. `device` is "cpu", "cuda" or "mps"; `memory` its
    free bytes, if known. The default length is 5 minutes. A training that could reach 8 epochs on a faster machine is
    limited to 8, since more make the result worse. Raises BadData for fewer than 64 tokens, 8 blocks of 8.
    """
    _require_tokens(tokens)
    is_gpu = device.startswith("cuda")
    length = DEFAULT_MINUTES if minutes is None else minutes
    sizes = [
        size for size in (_GPU_SIZES if is_gpu else _CPU_SIZES) if tokens >= size.tokens and length >= size.minutes
    ]
    if not is_gpu and vocab_size > _LARGE_VOCABULARY:
        sizes = [size for size in sizes if size.model["width"] <= _LITTLE["width"]]
    fitting = [size for size in sizes if memory is None or _weight_bytes(size, vocab_size) < memory / 2]
    size = (fitting or sizes[:1])[-1]

    epochs = 60 * length * _tokens_per_second(size, vocab_size, is_gpu) / max(tokens, 1)
    dropout = dropout_for(epochs) if epochs <= CHOSEN_EPOCHS else _LAST_DROPOUT
    block_size = min(size.model["block_size"], 1 << max((tokens // _BLOCKS).bit_length() - 1, 0))
    settings = {**size.model, "block_size": block_size, "batch_size": size.batch_size, "dropout": dropout}
    settings["epochs"] = limit = CHOSEN_EPOCHS if _FASTER * epochs > CHOSEN_EPOCHS else 0.0
    preset = PRESETS["small"]
    settings = {
        name: value
        for name, value in settings.items()
        if value != getattr(preset.model if hasattr(preset.model, name) else preset.train, name)
    }
    amount = about(tokens) if is_estimate else f"{tokens:,}"
    return Choice("small", settings, length, _reason(amount, vocab_size, device, bool(limit), dropout, size))


def dropout_for(epochs: float) -> float:
    """Return the dropout for a training of that many epochs."""
    return next((dropout for limit, dropout in _DROPOUTS if epochs <= limit), 0.3)


def _model(size: _Size, vocab_size: int) -> GPTConfig:
    return dataclasses.replace(PRESETS["small"].model, **size.model, vocab_size=vocab_size)


def _weight_bytes(size: _Size, vocab_size: int) -> int:
    return _BYTES_PER_WEIGHT * _model(size, vocab_size).parameters


def _tokens_per_second(size: _Size, vocab_size: int, is_gpu: bool) -> float:
    """Estimate the speed of a network from the measured speed of `small` with `_TUNED_VOCABULARY` ids."""
    cost = _model(size, vocab_size).flops_per_token / _model(_CPU_SIZES[2], _TUNED_VOCABULARY).flops_per_token
    return (_GPU_RATE if is_gpu else _CPU_RATE) / cost


def _reason(tokens: str, vocab_size: int, device: str, is_limited: bool, dropout: float, size: _Size) -> str:
    """Describe the text, and the settings that differ from `small`.

    The time is not part of it: the speed of the machine is measured later (estimate.py).
    """
    length = f", at most {CHOSEN_EPOCHS:g} epochs (more would overfit)" if is_limited else ""
    parts = [f"{tokens} training tokens{length}"]
    if dropout != PRESETS["small"].model.dropout:
        parts.append(f"dropout {dropout:g}")
    if size.model is not _SMALL:
        parts.append(f"{size.model['layers']} layers, {size.model['width']} wide")
        if not device.startswith("cuda") and vocab_size > _LARGE_VOCABULARY:
            parts.append(f"narrow because of {vocab_size:,} ids")
    return "; ".join(parts)
