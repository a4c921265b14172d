"""Architectures that other programs implement too, with the names of their tensors and config fields.

"gpt2" is transformers' GPT2LMHeadModel, "gpt_neox" its GPTNeoXForCausalLM without parallel residual, "qwen3" its
Qwen3ForCausalLM. GGUF has them too.

Each `Family` is one table for both directions: export looks up their names for ours, import our names for theirs. Two
tables could disagree. With one, the weights of an imported model are exported again bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from model.config import GPTConfig
from model.presets import PRESETS
from pipeline.errors import BadConfig


@dataclass(frozen=True)
class Family:
    """A table of names: ours, transformers' and GGUF's.

    architecture   class name in transformers
    gguf           name of the architecture in GGUF
    prefix         of the names of all modules except the head in transformers
    layers         name of the list of blocks in transformers
    has_biases     True if all modules except embeddings and head have biases
    model_modules  rows of module names (ours, transformers', GGUF's) outside the blocks
    block_modules  the same inside a block; several of ours, separated by spaces, are concatenated into one of theirs
    sizes          rows of config fields (ours, transformers', transformers' default)
    fixed_fields   transformers' config fields that must have one of some values; the first is written
    our_fields     our config fields with one value for the family
    defaults       transformers' defaults of the fixed fields that are none of those values
    by_head        transformers stores the queries, keys and values of a head next to each other
    """

    architecture: str
    gguf: str
    prefix: str
    layers: str
    has_biases: bool
    model_modules: tuple[tuple[str, str, str], ...]
    block_modules: tuple[tuple[str, str, str], ...]
    sizes: tuple[tuple[str, str, Any], ...]
    fixed_fields: dict[str, tuple[Any, ...]]
    our_fields: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)
    by_head: bool = False

    def name_in_transformers(self, module: str) -> str:
        """Return the name of one of our modules outside the blocks, such as "head", in transformers."""
        name = next(theirs for ours, theirs, _ in self.model_modules if ours == module)
        return name if module == "head" else self.prefix + name


FAMILIES = {
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        gguf="gpt2",
        prefix="transformer.",
        layers="h",
        has_biases=True,
        model_modules=(
            ("embedding", "wte", "token_embd"),
            ("position", "wpe", "position_embd"),
            ("norm", "ln_f", "output_norm"),
            ("head", "lm_head", "output"),
        ),
        block_modules=(
            ("attention_norm", "ln_1", "attn_norm"),
            ("attention.q attention.k attention.v", "attn.c_attn", "attn_qkv"),
            ("attention.out", "attn.c_proj", "attn_output"),
            ("feed_forward_norm", "ln_2", "ffn_norm"),
            ("feed_forward.up", "mlp.c_fc", "ffn_up"),
            ("feed_forward.out", "mlp.c_proj", "ffn_down"),
        ),
        sizes=(
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
        fixed_fields={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "layer_norm_epsilon": (1e-5,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
            "quantization_config": (None,),
        },
        our_fields={"positions": "learned", "norm": "layer", "activation": "gelu", "qk_norm": False},
    ),
    "gpt_neox": Family(
        architecture="GPTNeoXForCausalLM",
        gguf="gptneox",
        prefix="gpt_neox.",
        layers="layers",
        has_biases=True,
        model_modules=(
            ("embedding", "embed_in", "token_embd"),
            ("norm", "final_layer_norm", "output_norm"),
            ("head", "embed_out", "output"),
        ),
        block_modules=(
            ("attention_norm", "input_layernorm", "attn_norm"),
            ("attention.q attention.k attention.v", "attention.query_key_value", "attn_qkv"),
            ("attention.out", "attention.dense", "attn_output"),
            ("feed_forward_norm", "post_attention_layernorm", "ffn_norm"),
            ("feed_forward.up", "mlp.dense_h_to_4h", "ffn_up"),
            ("feed_forward.out", "mlp.dense_4h_to_h", "ffn_down"),
        ),
        sizes=(
            ("vocab_size", "vocab_size", 50_432),
            ("block_size", "max_position_embeddings", 2048),
            ("layers", "num_hidden_layers", 44),
            ("heads", "num_attention_heads", 64),
            ("width", "hidden_size", 6144),
            ("hidden", "intermediate_size", 24_576),
            ("rotary_base", "rotary_emb_base", 10_000.0),
            ("dropout", "hidden_dropout", 0.0),
            ("attention_dropout", "attention_dropout", 0.0),
            ("tied", "tie_word_embeddings", False),
        ),
        fixed_fields={
            "hidden_act": ("gelu_new", "gelu_pytorch_tanh"),
            "layer_norm_eps": (1e-5,),
            "rotary_pct": (1.0,),
            "use_parallel_residual": (False,),
            "attention_bias": (True,),
            "rope_scaling": (None,),
            "quantization_config": (None,),
        },
        our_fields={"positions": "rotary", "norm": "layer", "activation": "gelu", "qk_norm": False},
        defaults={"hidden_act": "gelu", "rotary_pct": 0.25, "use_parallel_residual": True},
        by_head=True,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        gguf="qwen3",
        prefix="model.",
        layers="layers",
        has_biases=False,
        model_modules=(
            ("embedding", "embed_tokens", "token_embd"),
            ("norm", "norm", "output_norm"),
            ("head", "lm_head", "output"),
        ),
        block_modules=(
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
        sizes=(
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
        fixed_fields={
            "hidden_act": ("silu",),
            "rms_norm_eps": (1e-6,),
            "attention_bias": (False,),
            "use_sliding_window": (False,),
            "rope_scaling": (None,),
            "partial_rotary_factor": (None, 1.0),
            "quantization_config": (None,),
        },
        our_fields={
            "positions": "rotary",
            "norm": "rms",
            "activation": "swiglu",
            "qk_norm": True,
            "bias": False,
            "qkv_bias": False,
        },
    ),
}

_UNSUPPORTED_FIELDS = ("softcap", "scalars", "bigrams", "convolution", "values", "gates", "input_norm", "head_bias")


def family_of(config: GPTConfig) -> Family:
    """Return the family of a network. Raises BadConfig, naming the options without a counterpart, if it has none."""
    if config.family in FAMILIES:
        return FAMILIES[config.family]
    extensions = [name for name in _UNSUPPORTED_FIELDS if getattr(config, name)]
    mismatches = (
        [
            f"{name}={getattr(config, name)}"
            for name, value in family.our_fields.items()
            if getattr(config, name) != value
        ]
        for family in FAMILIES.values()
    )
    options = extensions + min(mismatches, key=len) or ["kv_heads"]
    presets = ", ".join(name for name, preset in PRESETS.items() if preset.model.family in FAMILIES)
    raise BadConfig(
        f"other programs have no counterpart of {', '.join(options)}",
        hint=f"export with --to hf, which adds the network's code, or use one of the presets {presets}",
    )


@dataclass(frozen=True)
class TensorMapping:
    """One tensor of another program: its names there, and the names of ours that it concatenates along dimension 0.

    transposed  transformers stores its transpose, as GPT-2's Conv1D does
    heads       transformers concatenates ours head by head, of which there are so many; 0: one after the other
    """

    ours: tuple[str, ...]
    huggingface: str
    gguf: str
    transposed: bool = False
    heads: int = 0


def tensor_mappings(config: GPTConfig) -> Iterator[TensorMapping]:
    """Yield the mappings of all tensors of a network. Raises BadConfig if it has no family."""
    family = family_of(config)
    for ours, theirs, gguf in family.model_modules:
        if ours == "head" and config.tied:
            continue
        prefix = "" if ours == "head" else family.prefix
        for kind in ("weight", "bias") if family.has_biases and ours == "norm" else ("weight",):
            yield TensorMapping((f"{ours}.{kind}",), f"{prefix}{theirs}.{kind}", f"{gguf}.{kind}")
    for layer in range(config.layers):
        for ours, theirs, gguf in family.block_modules:
            for kind in ("weight", "bias") if family.has_biases else ("weight",):
                yield TensorMapping(
                    tuple(f"blocks.{layer}.{name}.{kind}" for name in ours.split()),
                    f"{family.prefix}{family.layers}.{layer}.{theirs}.{kind}",
                    f"blk.{layer}.{gguf}.{kind}",
                    transposed=config.family == "gpt2" and kind == "weight" and "norm" not in ours,
                    heads=config.heads if family.by_head and " " in ours else 0,
                )
