"""The network's code as part of an export, for the family "fast", which transformers does not have.

The files are in hub_code/. Their modules and options have the names of model/network, so that weights keep their names.
transformers runs them only with `trust_remote_code=True`. An import of such a folder runs our network instead.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from model.config import GPTConfig
from model.exchange.architectures import FAMILIES
from pipeline.errors import BadConfig, BadData

MODEL_TYPE = "inkstone"
_MAX_SIZE = 1 << 28  # of any size in a config.json, as for the other families
_CODE = Path(__file__).with_name("hub_code")
_FILES = ("configuration_inkstone.py", "modeling_inkstone.py")
NOTE = """

transformers has no class for this network, so this folder contains its code: `configuration_inkstone.py` and
`modeling_inkstone.py`, which import only torch and transformers. transformers runs code of a folder only with
`trust_remote_code=True`; read the two files before you pass it. Other tools have an option of that name, such as
`lm_eval --model_args pretrained=DIR,trust_remote_code=True`."""  # for the model card


def is_needed(config: GPTConfig) -> bool:
    """Return True for a network that transformers' own classes cannot compute."""
    return config.family not in FAMILIES


def write(folder: Path) -> None:
    """Copy the code into a folder."""
    for name in _FILES:
        shutil.copyfile(_CODE / name, folder / name)


def weights(config: GPTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our weights under the names of the code, which are ours."""
    return {name: tensor.detach() for name, tensor in tensors.items()}


def config_json(config: GPTConfig) -> dict[str, Any]:
    """Return the fields of a config.json that describe the network and name its classes."""
    options = asdict(config)
    is_tied = options.pop("tied")
    del options["zero_init"], options["ngram"]  # of training, and of the mixture with n-grams, which is not exported
    return {
        "architectures": ["InkstoneForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {
            "AutoConfig": "configuration_inkstone.InkstoneConfig",
            "AutoModelForCausalLM": "modeling_inkstone.InkstoneForCausalLM",
        },
        **options,
        "kv_heads": config.kv_heads or config.heads,
        "hidden": config.hidden_width,
        "head_dim": config.head_width,
        "norm_epsilon": config.epsilon,
        "tie_word_embeddings": is_tied,
    }


def config_from_json(content: Mapping[str, Any], path: str) -> GPTConfig:
    """Return the network that such a config.json describes. transformers omits options that have the default.

    `path` is for error messages. Raises BadData for a value of another type or outside its range.
    """
    content = {**config_json(GPTConfig()), **content}
    options: dict[str, Any] = {}
    for option in fields(GPTConfig):
        name = "tie_word_embeddings" if option.name == "tied" else option.name
        if option.name in ("zero_init", "ngram"):
            continue
        try:
            options[option.name] = msgspec.convert(content[name], type(option.default))
            if options[option.name].__class__ is int and options[option.name] > _MAX_SIZE:
                raise BadConfig(f"{name} is {options[option.name]:,}, at most {_MAX_SIZE:,} is possible")
        except (msgspec.ValidationError, BadConfig) as error:
            raise BadData(f"{path}: {name}: {error}", hint="check that it is the config.json of a model") from None
    try:
        return _without_defaults(GPTConfig(**options))
    except BadConfig as error:
        raise BadData(f"{path}: {error.message}", hint="check that it is the config.json of a model") from None


def _without_defaults(config: GPTConfig) -> GPTConfig:
    """Return the same network with 0, as in our presets, for each size that has its default."""
    for name in ("kv_heads", "hidden", "head_dim", "norm_epsilon"):
        default = replace(config, **{name: type(getattr(config, name))()})
        if config_json(default) == config_json(config):
            config = default
    return config
