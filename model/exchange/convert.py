"""Our weights and numbers as others have them, and theirs as ours, by the tables of families.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor

from model.config import GPTConfig
from model.exchange.architectures import FAMILIES, Place, family, places
from model.network.gpt import GPT
from pipeline.errors import BadConfig, BadData

_TOLD = 5  # tensors that a message lists
_LARGEST = 1 << 28  # of any size in a config.json: more would not fit a file, nor a pair of them an integer
_WHOLE = "is the folder whole, and its config.json that of its weights?"


def for_huggingface(config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the names and in the shapes of transformers. A bias that we do without is zero there."""
    joined = ((place, _joined(place, weights)) for place in places(config))
    return {place.huggingface: tensor.t().contiguous() if place.transposed else tensor for place, tensor in joined}


def for_gguf(config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the names and in the shapes of GGUF."""
    return {place.gguf: _joined(place, weights) for place in places(config)}


def _joined(place: Place, weights: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([_weight(weights, name) for name in place.ours])


def _weight(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name in weights:
        return weights[name].detach()
    weight = weights[name.removesuffix("bias") + "weight"]
    return weight.new_zeros(len(weight))


def from_huggingface(config: GPTConfig, theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our fp32 weights of a network from transformers' tensors, whose names may lack the prefix.

    Raises BadData with what is missing, too much, or of another shape.
    """
    if config.layers > len(theirs):
        raise BadData(f"{where}: {len(theirs):,} tensors are none of {config.layers:,} layers", hint=_WHOLE)
    with torch.device("meta"):
        shapes = dict(GPT(config).named_parameters())
    prefix = family(config).prefix
    found = {name if name.startswith(("lm_head.", prefix)) else prefix + name: each for name, each in theirs.items()}
    found = _untied(config, found, where)
    wanted = for_huggingface(config, shapes)
    wrong = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    wrong += [f"{name} is too much" for name in found.keys() - wanted.keys()]
    wrong += [
        f"{name} is {_shown(found[name])}, not {_shown(wanted[name])}"
        for name in wanted.keys() & found.keys()
        if found[name].shape != wanted[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
        raise BadData(f"{where}: {'; '.join(sorted(wrong)[:_TOLD])}{more}", hint=_WHOLE)
    weights: dict[str, Tensor] = {}
    for place in places(config):
        tensor = found[place.huggingface]
        parts = (tensor.t() if place.transposed else tensor).split([len(shapes[name]) for name in place.ours])
        for name, part in zip(place.ours, parts, strict=True):
            weights[name] = part.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return weights


def _untied(config: GPTConfig, found: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Without the head that some folders keep beside the embedding that it is."""
    head, embedding = (
        found.get("lm_head.weight"),
        found.get(f"{family(config).prefix}{family(config).outer[0][1]}.weight"),
    )
    if not config.tied or head is None or embedding is None:
        return found
    if head.shape != embedding.shape or not torch.equal(head, embedding):
        raise BadData(f"{where}: lm_head is not the embedding, though tie_word_embeddings says so", hint=_WHOLE)
    return {name: tensor for name, tensor in found.items() if name != "lm_head.weight"}


def _shown(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def config_for_huggingface(config: GPTConfig) -> dict[str, Any]:
    """The fields of a config.json that say what the network is."""
    chosen = family(config)
    numbers = {theirs: getattr(config, ours) for ours, theirs, _ in chosen.numbers}
    written = {name: values[0] for name, values in chosen.fixed.items() if values[0] is not None}
    made = {"architectures": [chosen.architecture], "model_type": config.family, **written, **numbers}
    if config.family == "gpt2":
        return made | {"n_inner": config.hidden_width, "embd_pdrop": config.dropout}
    return made | {
        "intermediate_size": config.hidden_width,
        "num_key_value_heads": config.kv_heads or config.heads,
        "head_dim": config.head_width,
    }


def config_from_huggingface(theirs: Mapping[str, Any], where: str) -> GPTConfig:
    """The network that a config.json describes. Raises BadConfig for a kind or a field that we have no part for."""
    kind = theirs.get("model_type")
    if kind not in list(FAMILIES):
        raise BadConfig(f"{where}: model_type {kind!r} cannot be read", hint=f"one of {', '.join(FAMILIES)}")
    chosen, fields = FAMILIES[kind], _flat(theirs)
    odd = [
        f"{name}={fields[name]}"
        for name, values in chosen.fixed.items()
        if name in fields and fields[name] not in values
    ]
    try:
        numbers = {
            ours: _number(fields.get(their, default), type(getattr(GPTConfig, ours)))
            for ours, their, default in chosen.numbers
        }
        if max(numbers.values()) > _LARGEST:
            raise BadConfig(f"a size of {max(numbers.values()):,}")
        made = GPTConfig(**{"bias": True, "qkv_bias": True, **chosen.ours, **numbers})
    except msgspec.ValidationError as error:
        raise BadData(f"{where}: {error}", hint="is it the config.json of a model?") from None
    except BadConfig as error:
        raise BadData(f"{where}: {error.what}", hint="is it the config.json of a model?") from None
    if fields.get("head_dim", made.head_width) != made.head_width:
        odd.append(f"head_dim={fields['head_dim']}, where width by heads is {made.head_width}")
    if odd:
        raise BadConfig(f"{where}: {'; '.join(odd)} cannot be read", hint="only networks that can be trained here can")
    return made


def _number(value: Any, kind: type) -> Any:
    return kind() if value is None else msgspec.convert(value, kind)


def _flat(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with those about rotary positions and windows, that changed places over the years, in one."""
    fields = dict(theirs)
    old, new = fields.pop("rope_scaling", None), fields.pop("rope_parameters", None)
    rope = new or old or {}
    rope = rope if isinstance(rope, dict) else {"rope_type": rope}
    fields |= {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    if (scaled := rope.get("rope_type", rope.get("type", "default"))) != "default":
        fields["rope_scaling"] = scaled
    if "sliding_attention" in (fields.get("layer_types") or ()):
        fields["use_sliding_window"] = True
    return fields
