"""The families of networks that other programs have too, and what each tensor and each number is called there.

"gpt2" is transformers' GPT2LMHeadModel, "qwen3" its Qwen3ForCausalLM; GGUF has both by the same names. One table each
says what is what, and is read in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.config import GPTConfig
from model.presets import PRESETS
from pipeline.errors import BadConfig


@dataclass(frozen=True)
class Family:
    """`outer` and `block` hold rows of (ours, transformers', GGUF's) names of modules; of ours those that are joined.

    `numbers` are rows of (ours, transformers', its default), `fixed` the fields that must hold one of some values, of
    which the first is its default; `ours` is what all of the family have in common.
    """

    architecture: str
    prefix: str
    layer: str
    biased: bool  # all but embeddings and head
    outer: tuple[tuple[str, str, str], ...]
    block: tuple[tuple[str, str, str], ...]
    numbers: tuple[tuple[str, str, Any], ...]
    fixed: dict[str, tuple[Any, ...]]
    ours: dict[str, Any]


FAMILIES = {
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        prefix="transformer.",
        layer="h",
        biased=True,
        outer=(
            ("embedding", "wte", "token_embd"),
            ("position", "wpe", "position_embd"),
            ("norm", "ln_f", "output_norm"),
            ("head", "lm_head", "output"),
        ),
        block=(
            ("attention_norm", "ln_1", "attn_norm"),
            ("attention.q attention.k attention.v", "attn.c_attn", "attn_qkv"),
            ("attention.out", "attn.c_proj", "attn_output"),
            ("feed_forward_norm", "ln_2", "ffn_norm"),
            ("feed_forward.up", "mlp.c_fc", "ffn_up"),
            ("feed_forward.out", "mlp.c_proj", "ffn_down"),
        ),
        numbers=(
            ("vocab_size", "vocab_size", 50_257),
            ("block_size", "n_positions", 1024),
            ("layers", "n_layer", 12),
            ("heads", "n_head", 12),
            ("width", "n_embd", 768),
            ("hidden", "n_inner", None),
            ("dropout", "resid_pdrop", 0.1),
            ("attention_dropout", "attn_pdrop", 0.1),
            ("tied", "tie_word_embeddings", True),
        ),
        fixed={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "layer_norm_epsilon": (1e-5,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
            "quantization_config": (None,),
        },
        ours={"positions": "learned", "norm": "layer", "activation": "gelu", "qk_norm": False},
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        prefix="model.",
        layer="layers",
        biased=False,
        outer=(
            ("embedding", "embed_tokens", "token_embd"),
            ("norm", "norm", "output_norm"),
            ("head", "lm_head", "output"),
        ),
        block=(
            ("attention_norm", "input_layernorm", "attn_norm"),
            ("attention.q", "self_attn.q_proj", "attn_q"),
            ("attention.k", "self_attn.k_proj", "attn_k"),
            ("attention.v", "self_attn.v_proj", "attn_v"),
            ("attention.q_norm", "self_attn.q_norm", "attn_q_norm"),
            ("attention.k_norm", "self_attn.k_norm", "attn_k_norm"),
            ("attention.out", "self_attn.o_proj", "attn_output"),
            ("feed_forward_norm", "post_attention_layernorm", "ffn_norm"),
            ("feed_forward.gate", "mlp.gate_proj", "ffn_gate"),
            ("feed_forward.up", "mlp.up_proj", "ffn_up"),
            ("feed_forward.out", "mlp.down_proj", "ffn_down"),
        ),
        numbers=(
            ("vocab_size", "vocab_size", 151_936),
            ("block_size", "max_position_embeddings", 32_768),
            ("layers", "num_hidden_layers", 32),
            ("heads", "num_attention_heads", 32),
            ("kv_heads", "num_key_value_heads", None),
            ("width", "hidden_size", 4096),
            ("hidden", "intermediate_size", 22_016),
            ("rotary_base", "rope_theta", 10_000.0),
            ("attention_dropout", "attention_dropout", 0.0),
            ("tied", "tie_word_embeddings", False),
        ),
        fixed={
            "hidden_act": ("silu",),
            "rms_norm_eps": (1e-6,),
            "attention_bias": (False,),
            "use_sliding_window": (False,),
            "rope_scaling": (None,),
            "partial_rotary_factor": (None, 1.0),
            "quantization_config": (None,),
        },
        ours={
            "positions": "rotary",
            "norm": "rms",
            "activation": "swiglu",
            "qk_norm": True,
            "bias": False,
            "qkv_bias": False,
        },
    ),
}

_NOWHERE = ("softcap", "scalars", "bigrams", "convolution", "values", "gates", "input_norm", "head_bias")


def family(config: GPTConfig) -> Family:
    """The family of a network. Raises BadConfig, with the parts that have no counterpart, where it has none."""
    if config.family in FAMILIES:
        return FAMILIES[config.family]
    special = [name for name in _NOWHERE if getattr(config, name)]
    others = (
        [f"{name}={getattr(config, name)}" for name, value in each.ours.items() if getattr(config, name) != value]
        for each in FAMILIES.values()
    )
    parts = special + min(others, key=len) or ["kv_heads"]
    presets = ", ".join(name for name, preset in PRESETS.items() if preset.model.family in FAMILIES)
    raise BadConfig(
        f"other tools have no counterpart of {', '.join(parts)}", hint=f"presets that have one throughout: {presets}"
    )


@dataclass(frozen=True)
class Place:
    """One of their tensors, and those of ours that it holds, one below the other. GPT-2's Conv1D are transposed."""

    ours: tuple[str, ...]
    huggingface: str
    gguf: str
    transposed: bool


def places(config: GPTConfig) -> Iterator[Place]:
    """All tensors of a network that has a counterpart."""
    chosen = family(config)
    for ours, theirs, gguf in chosen.outer:
        if ours == "head" and config.tied:
            continue
        prefix = "" if ours == "head" else chosen.prefix
        for kind in ("weight", "bias") if chosen.biased and ours == "norm" else ("weight",):
            yield Place((f"{ours}.{kind}",), f"{prefix}{theirs}.{kind}", f"{gguf}.{kind}", transposed=False)
    for number in range(config.layers):
        for ours, theirs, gguf in chosen.block:
            for kind in ("weight", "bias") if chosen.biased else ("weight",):
                yield Place(
                    tuple(f"blocks.{number}.{name}.{kind}" for name in ours.split()),
                    f"{chosen.prefix}{chosen.layer}.{number}.{theirs}.{kind}",
                    f"blk.{number}.{gguf}.{kind}",
                    transposed=config.family == "gpt2" and kind == "weight" and "norm" not in ours,
                )
