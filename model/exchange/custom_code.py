"""The network's code as part of an export, for the family "fast", which transformers does not have.

hub_code/ has the files. Their module names and options are those of our own network, so that the weights keep their
names. transformers runs them only with `trust_remote_code=True`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from model.config import GPTConfig
from model.exchange.architectures import FAMILIES

_CODE = Path(__file__).with_name("hub_code")
_FILES = ("configuration_inkstone.py", "modeling_inkstone.py")
NOTE = """

transformers has no class for this network, so its code lies beside the weights: `configuration_inkstone.py` and
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
    fields = asdict(config)
    is_tied = fields.pop("tied")
    del fields["zero_init"]  # of training only
    return {
        "architectures": ["InkstoneForCausalLM"],
        "model_type": "inkstone",
        "auto_map": {
            "AutoConfig": "configuration_inkstone.InkstoneConfig",
            "AutoModelForCausalLM": "modeling_inkstone.InkstoneForCausalLM",
        },
        **fields,
        "kv_heads": config.kv_heads or config.heads,
        "hidden": config.hidden_width,
        "head_dim": config.head_width,
        "norm_epsilon": config.epsilon,
        "tie_word_embeddings": is_tied,
    }
