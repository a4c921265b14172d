"""Architectures that other programs implement too, with the names of their tensors and config fields.

"gpt2" is transformers' GPT2LMHeadModel, "gpt_neox" its GPTNeoXForCausalLM without parallel residual, "llama" its
LlamaForCausalLM, "qwen2" and "qwen3" its Qwen2ForCausalLM and Qwen3ForCausalLM. GGUF has them too.

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
    has_biases     True if all modules except embeddings and head have biases; otherwise only q, k and v may have them
    model_modules  rows of module names (ours, transformers', GGUF's) outside the blocks
    block_modules  the same inside a block; several of ours, separated by spaces, are concatenated into one of theirs
    sizes          rows of config fields (ours, transformers', transformers' default)
    activation     transformers' config field of the activation
    activations    rows of values of that field (ours, transformers' names of it); the first name is written
    fixed_fields   transformers' config fields that must have one of some values; the first is written
    our_fields     our config fields with one value for the family
    defaults       transformers' default of the activation, and of fixed fields if it is not one of their values
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
    activation: str
    activations: tuple[tuple[str, tuple[str, ...]], ...]
    fixed_fields: dict[str, tuple[Any, ...]]
    our_fields: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)
    by_head: bool = False

    def activation_in_transformers(self, activation: str) -> str:
        """Return transformers' name of one of our activations."""
        return next(theirs[0] for ours, theirs in self.activations if ours == activation)

    def our_activation(self, name: object) -> str:
        """Return our name of one of transformers' activations, "" if we have none."""
        return next((ours for ours, theirs in self.activations if name in theirs), "")

    def name_in_transformers(self, module: str) -> str:
        """Return the name of one of our modules outside the blocks, such as "head", in transformers."""
        name = next(theirs for ours, theirs, _ in self.model_modules if ours == module)
        return name if module == "head" else self.prefix + name


_GELUS = (("gelu", ("gelu_new", "gelu_pytorch_tanh")), ("gelu_erf", ("gelu",)), ("relu", ("relu",)))
_QK_NORMS = (
    ("attention.q_norm", "self_attn.q_norm", "attn_q_norm"),
    ("attention.k_norm", "self_attn.k_norm", "attn_k_norm"),
)


def _llama(architecture: str, gguf: str, *, our_fields: dict[str, Any], **differences: Any) -> Family:
    """Return a family with the names of Llama. `differences` are `sizes`, `fixed_fields` and `defaults`."""
    return Family(
        architecture=architecture,
        gguf=gguf,
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
            *(_QK_NORMS if our_fields["qk_norm"] else ()),
            ("attention.out", "self_attn.o_proj", "attn_output"),
            ("feed_forward_norm", "post_attention_layernorm", "ffn_norm"),
            ("feed_forward.gate", "mlp.gate_proj", "ffn_gate"),
            ("feed_forward.up", "mlp.up_proj", "ffn_up"),
            ("feed_forward.out", "mlp.down_proj", "ffn_down"),
        ),
        activation="hidden_act",
        activations=(("swiglu", ("silu", "swish")),),
        our_fields={"positions": "rotary", "norm": "rms", "bias": False, **our_fields},
        **{"defaults": {"hidden_act": "silu"}, **differences},
    )


def _llama_sizes(vocab_size: int, positions: int, hidden: int, *rows: tuple[str, str, Any]) -> tuple[Any, ...]:
    """Return the rows of sizes with transformers' defaults; `rows` are those that not every family has."""
    return (
        ("vocab_size", "vocab_size", vocab_size),
        ("block_size", "max_position_embeddings", positions),
        ("layers", "num_hidden_layers", 32),
        ("heads", "num_attention_heads", 32),
        ("kv_heads", "num_key_value_heads", None),
        *rows,
        ("width", "hidden_size", 4096),
        ("hidden", "intermediate_size", hidden),
        ("rotary_base", "rope_theta", 10_000.0),
        ("attention_dropout", "attention_dropout", 0.0),
        ("norm_epsilon", "rms_norm_eps", 1e-6),
        ("tied", "tie_word_embeddings", False),
    )


_ROTARY = {"rope_scaling": (None,), "partial_rotary_factor": (None, 1.0), "quantization_config": (None,)}

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
            ("norm_epsilon", "layer_norm_epsilon", 1e-5),
            ("tied", "tie_word_embeddings", True),
        ),
        activation="activation_function",
        activations=_GELUS,
        fixed_fields={
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
            "quantization_config": (None,),
        },
        our_fields={"positions": "learned", "norm": "layer", "qk_norm": False},
        defaults={"activation_function": "gelu_new"},
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
            ("norm_epsilon", "layer_norm_eps", 1e-5),
            ("tied", "tie_word_embeddings", False),
        ),
        activation="hidden_act",
        activations=_GELUS,
        fixed_fields={
            "rotary_pct": (1.0,),
            "use_parallel_residual": (False,),
            "attention_bias": (True,),
            "rope_scaling": (None,),
            "quantization_config": (None,),
        },
        our_fields={"positions": "rotary", "norm": "layer", "qk_norm": False},
        defaults={"hidden_act": "gelu", "rotary_pct": 0.25, "use_parallel_residual": True},
        by_head=True,
    ),
    "llama": _llama(
        "LlamaForCausalLM",
        "llama",
        sizes=_llama_sizes(32_000, 2048, 11_008, ("head_dim", "head_dim", None)),
        fixed_fields={
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "rope_interleaved": (None, False),
            **_ROTARY,
        },
        our_fields={"qk_norm": False, "qkv_bias": False},
    ),
    "qwen2": _llama(
        "Qwen2ForCausalLM",
        "qwen2",
        sizes=_llama_sizes(151_936, 32_768, 22_016),
        fixed_fields={"use_sliding_window": (False,), **_ROTARY},
        our_fields={"qk_norm": False, "qkv_bias": True},
    ),
    "qwen3": _llama(
        "Qwen3ForCausalLM",
        "qwen3",
        sizes=_llama_sizes(151_936, 32_768, 22_016, ("head_dim", "head_dim", 128)),
        fixed_fields={"attention_bias": (False,), "use_sliding_window": (False,), **_ROTARY},
        our_fields={"qk_norm": True, "qkv_bias": False},
    ),
}

_QKV = ("attention.q", "attention.k", "attention.v")
_UNSUPPORTED_FIELDS = ("softcap", "scalars", "bigrams", "convolution", "values", "gates", "input_norm", "head_bias")


def family_of(config: GPTConfig) -> Family:
    """Return the family of a network. Raises BadConfig, naming the options without a counterpart, if it has none."""
    if config.family in FAMILIES:
        return FAMILIES[config.family]
    extensions = [name for name in _UNSUPPORTED_FIELDS if getattr(config, name)]
    mismatches = [_mismatches(config, family) for family in FAMILIES.values()]
    heads = [name for name in ("kv_heads", "head_dim") if getattr(config, name)]
    options = extensions + min(mismatches, key=len) or heads
    presets = ", ".join(name for name, preset in PRESETS.items() if preset.model.family in FAMILIES)
    raise BadConfig(
        f"other programs have no counterpart of {', '.join(options)}",
        hint=f"export with --to hf, which adds the network's code, or use one of the presets {presets}",
    )


def _mismatches(config: GPTConfig, family: Family) -> list[str]:
    """List the options of a network that the family does not have, each as "name=value"."""
    names = [name for name, value in family.our_fields.items() if getattr(config, name) != value]
    if all(config.activation != ours for ours, _ in family.activations):
        names.append("activation")
    return [f"{name}={getattr(config, name)}" for name in names]


@dataclass(frozen=True)
class TensorMapping:
    """One tensor of another program: its names there, and the names of ours that it concatenates along dimension 0.

    transposed  transformers stores its transpose, as GPT-2's Conv1D does
    heads       number of heads if transformers concatenates ours head by head; 0: one after the other
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
            has_bias = family.has_biases or (config.qkv_bias and ours in _QKV)
            for kind in ("weight", "bias") if has_bias else ("weight",):
                yield TensorMapping(
                    tuple(f"blocks.{layer}.{name}.{kind}" for name in ours.split()),
                    f"{family.prefix}{family.layers}.{layer}.{theirs}.{kind}",
                    f"blk.{layer}.{gguf}.{kind}",
                    transposed=config.family == "gpt2" and kind == "weight" and "norm" not in ours,
                    heads=config.heads if family.by_head and " " in ours else 0,
                )
