"""nanoGPT's ckpt.pt: a pickle of GPT-2's weights, not transposed, and of the arguments of its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from torch import Tensor

from model.config import GPTConfig
from model.exchange.weight_files import load_pickle, require_tensors
from pipeline.errors import BadConfig, BadData

CHECKPOINT = "ckpt.pt"
_COMPILED = "_orig_mod."  # torch.compile puts it before the names


class _ModelArgs(msgspec.Struct, forbid_unknown_fields=True):
    n_layer: int
    n_head: int
    n_embd: int
    block_size: Annotated[int, msgspec.Meta(le=1 << 22)]
    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 28)]
    bias: bool = True
    dropout: float = 0.0


def read_config(path: Path) -> GPTConfig:
    """Return the network of a ckpt.pt.

    Raises BadData for a file that is not a ckpt.pt, BadConfig for a network with options that GPTConfig does not have.
    """
    content = _content(path)
    try:
        args = msgspec.convert(content["model_args"], _ModelArgs)
    except msgspec.ValidationError as error:
        raise BadConfig(
            f"{path}: model_args: {error}", hint="import a checkpoint of nanoGPT's own model.py, without changes to it"
        ) from None
    try:
        return GPTConfig(
            vocab_size=args.vocab_size,
            block_size=args.block_size,
            layers=args.n_layer,
            heads=args.n_head,
            width=args.n_embd,
            dropout=args.dropout,
            attention_dropout=args.dropout,
            activation="gelu_erf",
            bias=args.bias,
            qkv_bias=args.bias,
        )
    except BadConfig as error:
        raise BadData(f"{path}: model_args: {error.message}", hint="do not use it") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ckpt.pt by transformers' names. Raises BadData if a value is not a tensor."""
    tensors = require_tensors(_content(path)["model"], path)
    return {name.removeprefix(_COMPILED): tensor for name, tensor in tensors.items()}


def _content(path: Path) -> Mapping[str, Any]:
    content = load_pickle(path)
    if not isinstance(content, dict) or not {"model", "model_args"} <= content.keys():
        raise BadData(
            f"{path}: no model and model_args, as nanoGPT's train.py saves them", hint="name a ckpt.pt of nanoGPT"
        )
    return content
