"""Configuration of modeling_inkstone.py: the options of a network of Inkstone's family `fast`."""

from __future__ import annotations

from transformers import PretrainedConfig

DEFAULTS = {
    "vocab_size": 0,
    "block_size": 256,  # tokens that attention reaches back, and rows of learned positions
    "layers": 6,
    "heads": 6,
    "head_dim": 64,
    "width": 384,  # of the residual stream
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "last_dropout": 0.0,  # on the input of the head
    "positions": "learned",  # or "rotary", "none"
    "rotary_base": 10_000.0,
    "norm": "layer",  # or "rms"
    "norm_epsilon": 1e-5,
    "activation": "gelu",  # or "gelu_erf", "relu", "relu2", "swiglu"
    "kv_heads": 6,
    "hidden": 1536,  # width of the feed-forward
    "bias": True,  # in the projections back into the stream, the feed-forward and layer norms
    "qkv_bias": False,
    "qk_norm": False,
    "softcap": 0.0,  # limit of the logits; 0: none
    "scalars": False,  # weigh the stream and its first value before each block
    "bigrams": 0,  # rows of a table of embeddings of token pairs
    "convolution": 0,  # width of causal convolutions before attention and feed-forward; 0: none
    "values": False,  # mix the values of attention with those of the first block
    "gates": False,  # on the output of each attention head
    "input_norm": False,
    "head_bias": False,
    "use_cache": True,
}


class InkstoneConfig(PretrainedConfig):
    """Options of the network by their names in Inkstone; transformers' names of the sizes are aliases."""

    model_type = "inkstone"
    # No annotations, which would make these fields of the configuration.
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "hidden_size": "width",
        "intermediate_size": "hidden",
        "max_position_embeddings": "block_size",
        "num_attention_heads": "heads",
        "num_hidden_layers": "layers",
        "num_key_value_heads": "kv_heads",
    }

    def __init__(self, tie_word_embeddings: bool = True, **kwargs) -> None:  # type: ignore[no-untyped-def]
        for name, default in DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, default))
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
