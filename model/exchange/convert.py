"""Conversion of weights and configs to and from other programs' formats, by the tables in architectures.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import torch
from torch import Tensor

from model.config import NORM_EPSILON, GPTConfig
from model.exchange.architectures import FAMILIES, Family, TensorMapping, family_of, tensor_mappings
from model.exchange.weight_files import require_unique
from model.network.gpt import GPT
from pipeline.errors import BadConfig, BadData

_MAX_LISTED = 5  # tensors in an error message
_MAX_SIZE = 1 << 28  # of any size in a config.json: a larger one would not fit a file, nor a product of two an integer
_POSITIVE = ("head_dim", "norm_epsilon")
_MAX_POSITIONS = 1 << 22  # networks have a million at most, and tables of positions take memory
_CHECK_CONFIG = "check that it is the config.json of a model"
# Types of the config fields that are read and are not in `Family.sizes` or `Family.fixed_fields`.
_TYPES: dict[str, Any] = {
    "model_type": str,
    "head_dim": int,
    "rope_interleaved": bool,
    "layer_types": list[str],
    "partial_rotary_factor": float,
    "rope_theta": float,
    "quantization_config": dict[str, Any],
    "rope_parameters": dict[str, Any],
    "rope_scaling": dict[str, Any] | str,
}
_ROPE_TYPES: dict[str, Any] = {"rope_type": str, "type": str, "rope_theta": float, "partial_rotary_factor": float}
_ROTARY_FIELDS = ("rope_theta", "partial_rotary_factor")
_CHECK_FOLDER = "check that the folder is complete, and that its config.json belongs to its weights"


def to_huggingface(config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert our weights to transformers' names and shapes. A bias that our config omits becomes zero."""
    return _joined(tensor_mappings(config), weights)


def _joined(mappings: Iterable[TensorMapping], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    joined = ((mapping, _join(mapping, weights, mapping.heads)) for mapping in mappings)
    return {
        mapping.huggingface: tensor.t().contiguous() if mapping.transposed else tensor for mapping, tensor in joined
    }


def to_gguf(config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert our weights to GGUF's names and shapes.

    llama.cpp does not read a tied head of GPT-NeoX, so the head is written as a copy of the embedding. For Llama it
    rotates neighbouring dimensions of a head, and we rotate dimension i with i + D/2, so the rows of queries and keys
    are reordered.
    """
    tensors = {mapping.gguf: _join(mapping, weights) for mapping in tensor_mappings(config)}
    if config.family == "llama":
        for name in tensors:
            if name.endswith(("attn_q.weight", "attn_k.weight")):
                halves = tensors[name].view(-1, 2, config.head_width // 2, config.width)
                tensors[name] = halves.transpose(1, 2).reshape(-1, config.width)
    if config.family == "gpt_neox" and config.tied:
        tensors["output.weight"] = tensors["token_embd.weight"]
    return tensors


def _join(mapping: TensorMapping, weights: Mapping[str, Tensor], heads: int = 0) -> Tensor:
    """Concatenate our tensors along dimension 0; head by head if `heads` is not 0."""
    parts = [_weight_or_zero_bias(weights, name) for name in mapping.ours]
    if not heads:
        return torch.cat(parts)
    return torch.cat([part.reshape(heads, -1, *part.shape[1:]) for part in parts], dim=1).flatten(0, 1)


def _split(mapping: TensorMapping, tensor: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Split transformers' tensor into ours, with these sizes of dimension 0."""
    tensor = tensor.t() if mapping.transposed else tensor
    if not mapping.heads:
        return torch.split(tensor, list(sizes))
    by_head = tensor.reshape(mapping.heads, -1, *tensor.shape[1:])
    return [part.flatten(0, 1) for part in torch.split(by_head, [size // mapping.heads for size in sizes], dim=1)]


def _weight_or_zero_bias(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name in weights:
        return weights[name].detach()
    weight = weights[name.removesuffix("bias") + "weight"]
    return weight.new_zeros(len(weight))


def from_huggingface(
    config: GPTConfig, tensors: Mapping[str, Tensor], path: str, writer: str = "transformers"
) -> dict[str, Tensor]:
    """Convert transformers' tensors to our fp32 weights. Their names may lack the prefix of the architecture.

    `writer` is "nanogpt" for tensors with the same names, but none transposed, and no bias that our config omits, and
    "inkstone" for tensors with our names. `path` is for error messages. Raises BadData, listing tensors that are
    missing, unexpected or of another shape, and for one that is named twice or not finite.
    """
    if config.layers > len(tensors):
        raise BadData(f"{path}: {len(tensors):,} tensors are too few for {config.layers:,} layers", hint=_CHECK_FOLDER)
    with torch.device("meta"):
        our_shapes = dict(GPT(config).named_parameters())
    if writer == "inkstone":
        mappings = [TensorMapping((name,), name, "") for name in our_shapes]
    else:
        tensors = _without_tied_head(config, _with_prefix(family_of(config), tensors, path), path)
        mappings = list(tensor_mappings(config))
    if writer == "nanogpt":
        mappings = [replace(mapping, transposed=False) for mapping in mappings if mapping.ours[0] in our_shapes]
    _require_shapes(tensors, _joined(mappings, our_shapes), path)
    weights: dict[str, Tensor] = {}
    for mapping in mappings:
        tensor = tensors[mapping.huggingface]
        sizes = [len(our_shapes[name]) for name in mapping.ours]
        for name, part in zip(mapping.ours, _split(mapping, tensor, sizes), strict=True):
            weights[name] = part.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            if not _is_finite(weights[name]):
                raise BadData(
                    f"{path}: {mapping.huggingface} holds values that are not finite in fp32 (NaN or infinity)",
                    hint="download it again, or do not use it",
                )
    return weights


def _with_prefix(family: Family, tensors: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Add the prefix of the architecture to names without it. Raises BadData if a tensor is named twice."""
    complete = (f"{family.name_in_transformers('head')}.", family.prefix)
    names = {name: name if name.startswith(complete) else family.prefix + name for name in tensors}
    require_unique(names.values(), path)
    return {names[name]: tensor for name, tensor in tensors.items()}


def _is_finite(tensor: Tensor) -> bool:
    """Return True if no value is NaN or infinite. Unlike torch.isfinite, aminmax makes no copy."""
    return not tensor.numel() or all(math.isfinite(limit) for limit in tensor.aminmax())


def _require_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str) -> None:
    problems = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    problems += [f"{name} is unexpected" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} is {_shape(tensors[name])}, not {_shape(expected[name])}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    if problems:
        omitted = f" and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise BadData(f"{path}: {'; '.join(sorted(problems)[:_MAX_LISTED])}{omitted}", hint=_CHECK_FOLDER)


def _without_tied_head(config: GPTConfig, tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """Drop the copy of the embedding that some folders store as a tied head. Raises BadData if it differs."""
    family = family_of(config)
    head_name = family.name_in_transformers("head")
    head = tensors.get(f"{head_name}.weight")
    embedding = tensors.get(f"{family.name_in_transformers('embedding')}.weight")
    if not config.tied or head is None or embedding is None:
        return tensors
    if head.shape != embedding.shape or not torch.equal(head, embedding):
        raise BadData(
            f"{path}: {head_name} differs from the embedding, but tie_word_embeddings is set", hint=_CHECK_FOLDER
        )
    return {name: tensor for name, tensor in tensors.items() if name != f"{head_name}.weight"}


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def config_to_huggingface(config: GPTConfig) -> dict[str, Any]:
    """Return the fields of a config.json that describe the network."""
    family = family_of(config)
    defaults: dict[str, Any] = {"hidden": config.hidden_width, "kv_heads": config.kv_heads or config.heads}
    defaults |= {"head_dim": config.head_width, "norm_epsilon": config.epsilon}
    sizes = {theirs: defaults.get(ours, getattr(config, ours)) for ours, theirs, _ in family.sizes}
    fixed = {name: values[0] for name, values in family.fixed_fields.items() if values[0] is not None}
    fields: dict[str, Any] = {"architectures": [family.architecture], "model_type": config.family}
    fields |= {family.activation: family.activation_in_transformers(config.activation), **fixed, **sizes}
    if config.family == "gpt2":
        fields |= {"embd_pdrop": config.dropout, "n_ctx": config.block_size}  # llama.cpp's converter reads n_ctx
    return fields


def config_from_huggingface(config_json: Mapping[str, Any], path: str) -> GPTConfig:
    """Return the network that a config.json describes. `path` is for error messages.

    Raises BadConfig for a model type or an option that GPTConfig does not have, BadData for values of another type or
    outside their range.
    """
    _require_types(config_json, _TYPES, path)
    model_type = config_json.get("model_type")
    if model_type not in list(FAMILIES):  # a list, since the value may not be hashable
        raise BadConfig(
            f"{path}: model_type {model_type!r} is not supported", hint=f"use one of: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    fixed_types = {name: type(values[0]) for name, values in family.fixed_fields.items() if name not in _TYPES}
    size_types = {theirs: type(getattr(GPTConfig, ours)) for ours, theirs, _ in family.sizes}
    _require_types(config_json, fixed_types | size_types | {family.activation: str}, path)
    fields = {**family.defaults, **_normalized(config_json, path)}
    unsupported = [
        f"{name}={fields[name]}"
        for name, values in family.fixed_fields.items()
        if name in fields and fields[name] not in values
    ]
    activation = family.our_activation(fields[family.activation])
    if not activation:
        unsupported.append(f"{family.activation}={fields[family.activation]}")
        activation = family.activations[0][0]
    try:
        config = _with_sizes(family, {**family.our_fields, "activation": activation}, fields)
    except BadConfig as error:
        raise BadData(f"{path}: {error.message}", hint=_CHECK_CONFIG) from None
    if fields.get("head_dim") not in (None, config.head_width):
        unsupported.append(f"head_dim={fields['head_dim']}, not width / heads = {config.head_width}")
    layer_types = {*(fields.get("layer_types") or ())} - {"full_attention", "sliding_attention"}
    unsupported += [f"layer_types={kind}" for kind in sorted(layer_types)]
    if unsupported:
        raise BadConfig(
            f"{path}: {'; '.join(unsupported)} is not supported", hint="import a network without these options"
        )
    return config


def _with_sizes(family: Family, options: Mapping[str, Any], fields: Mapping[str, Any]) -> GPTConfig:
    """Return the network of a family with the sizes in fields of a config.json. Raises BadConfig."""
    sizes: dict[str, Any] = {}
    for ours, theirs, default in family.sizes:
        value, limit = fields.get(theirs, default), _MAX_POSITIONS if ours == "block_size" else _MAX_SIZE
        size_type = type(getattr(GPTConfig, ours))
        sizes[ours] = size_type() if value is None else msgspec.convert(value, size_type)
        if sizes[ours] > limit:
            raise BadConfig(f"{theirs} is {value:,}, at most {limit:,} is possible")
        if ours in _POSITIVE and value == 0:
            raise BadConfig(f"{theirs} is 0, expected more")  # 0 stands for our default
    config = GPTConfig(**{"bias": True, "qkv_bias": True, **options, **sizes})
    is_default = {
        "head_dim": config.head_dim * config.heads == config.width,
        "norm_epsilon": config.norm_epsilon == NORM_EPSILON[config.norm],
    }
    return replace(config, **{name: type(sizes[name])() for name in sizes if is_default.get(name)})


def _require_types(fields: Mapping[str, Any], types: Mapping[str, Any], path: str) -> None:
    """Raise BadData, naming the field, if one that is present and not null has another type."""
    for name, field_type in types.items():
        try:
            msgspec.convert(fields.get(name), field_type | None)
        except msgspec.ValidationError as error:
            raise BadData(f"{path}: {name}: {error}", hint=_CHECK_CONFIG) from None


def _normalized(config_json: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the fields, with one name for each field of rotary positions and attention windows.

    Versions of transformers use different names.
    """
    fields = dict(config_json)
    is_neox = fields.get("model_type") == "gpt_neox"
    names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"} if is_neox else {}
    old, new = fields.pop("rope_scaling", None), fields.pop("rope_parameters", None)
    rope = new or old or {}
    rope = rope if isinstance(rope, dict) else {"rope_type": rope}
    _require_types(rope, _ROPE_TYPES, path)
    rotary = {name: source[name] for source in (fields, rope) for name in _ROTARY_FIELDS if name in source}
    fields |= {names.get(name, name): value for name, value in rotary.items()}
    if (rope_type := rope.get("rope_type", rope.get("type", "default"))) != "default":
        fields["rope_scaling"] = rope_type
    if "sliding_attention" in (fields.get("layer_types") or ()):
        fields["use_sliding_window"] = True
    return fields
