"""Named presets: a model configuration, its training, and the source of the numbers.

Presets of the family "gpt2" or "qwen3" use only parts that Hugging Face's transformers has too; those of the family
"fast" use the parts that learn fastest. benchmarks/NOTES.md has the experiments behind the tuned presets.
"""

from __future__ import annotations

from model.config import GPTConfig, Preset, TrainConfig
from pipeline.errors import BadConfig

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
        "fast",
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
        "fast",
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
        raise BadConfig(f"no preset {name!r}", hint=f"use one of: {', '.join(PRESETS)}")
    return PRESETS[name]
