"""Networks from elsewhere: a folder of Hugging Face's, read without running anything that is in it.

config.json                               which network it is
model.safetensors, or model.safetensors.index.json and its shards
pytorch_model.bin                         a pickle, which may run code: only where a person trusts it, and then
                                          torch's unpickler of tensors alone reads it
tokenizer.json or vocab.json              only compared, with the tokenizer that a person chose
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.config import GPTConfig, Preset, TrainConfig
from model.device import Execution
from model.exchange import convert as exchange
from model.exchange import import_model as foreign
from model.runs import checkpoint
from model.runs.checkpoint import Saved, State
from model.runs.plan import SCHEMA
from model.runs.run import CHECKPOINTS, CONFIG, RESULT, Result
from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.store import artifact, files
from pipeline.store.artifact import Built, Content
from pipeline.store.manifest import Identity, Input
from pipeline.tokenizers import Tokenizer, require_same_ids

PRESET = "imported"

_WEIGHTS, _INDEX, _PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_MASK = re.compile(r"(^|\.)attn\.(masked_)?bias$")  # GPT-2's causal masks, which old folders hold too
_GPT2_IDS = 50_257
# What torch's unpickler raises for a file that is not what it claims to be.
_UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)


@dataclass(frozen=True)
class Foreign:
    """A folder's network and the files that it is in."""

    folder: Path
    config: GPTConfig
    files: tuple[Path, ...]

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The files with their hashes."""
        listed = (self.folder / "config.json", *self.files)
        return tuple(Input("model", f"{self.folder.name}/{path.name}", files.sha256_of(path)) for path in listed)

    def weights(self) -> dict[str, Tensor]:
        """Our weights, in fp32. Raises BadData where they are not those of the config, or no tensors."""
        found: dict[str, Tensor] = {}
        for path in self.files:
            found |= {name: each for name, each in _tensors(path).items() if not _MASK.search(name)}
        return exchange.from_huggingface(self.config, found, str(self.folder))


def open_folder(folder: Path, *, trusted: bool = False) -> Foreign:
    """What is in a folder. With `trusted` its weights may be a pickle.

    Raises InputMissing for what is not there, BadData for a pickle or a file that is broken, BadConfig for a network
    that has a part which ours have not.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise InputMissing(f"{folder}: no such folder", hint="name the folder that holds config.json")
    config = exchange.config_from_huggingface(_json(folder / "config.json"), str(folder / "config.json"))
    return Foreign(folder, config, _files(folder, trusted=trusted))


def _files(folder: Path, *, trusted: bool) -> tuple[Path, ...]:
    if (folder / _WEIGHTS).is_file():
        return (folder / _WEIGHTS,)
    if (folder / _INDEX).is_file():
        shards = _json(folder / _INDEX).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        if outside := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise BadData(f"{folder / _INDEX}: {outside[0]!r} is no file beside it", hint="do not use it")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise InputMissing(f"{folder / missing[0]}: missing", hint="fetch all of the shards")
        return tuple(folder / name for name in names)
    if not (folder / _PICKLE).is_file():
        raise InputMissing(f"{folder / _WEIGHTS}: missing", hint="name a folder with weights as safetensors")
    if not trusted:
        raise BadData(
            f"{folder / _PICKLE}: a pickle, which may run code when it is loaded",
            hint="take its safetensors, or give --trust-checkpoint if you know who made it",
        )
    return (folder / _PICKLE,)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        whole = not zipfile.is_zipfile(path)  # as torch wrote them before 1.6
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=not whole)
    except SafetensorError as error:
        raise BadData(f"{path}: no safetensors: {error}", hint="fetch it again, or do not use it") from None
    except _UNREADABLE as error:
        said = " ".join(str(error).split())[:150]
        raise BadData(f"{path}: more than tensors, or broken: {said}", hint="do not use it") from None
    if not isinstance(found, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in found.items()):
        raise BadData(f"{path}: no table of tensors", hint="do not use it")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise InputMissing(f"{path}: missing", hint="name a folder as transformers saves it") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(f"{path}: {error}", hint="fetch it again") from None


def default_tokenizer(config: GPTConfig) -> str:
    """The tokenizer of a network that came without a word about it: GPT-2's, by the size of its vocabulary."""
    if config.vocab_size == _GPT2_IDS:
        return "r50k_base"
    raise BadConfig(
        f"nothing says which tokenizer a vocabulary of {config.vocab_size:,} is of",
        hint="give --tokenizer: an encoding, a trained one, or a .model file",
    )


def require_tokenizer(foreign: Foreign, tokenizer: Tokenizer) -> None:
    """Raise BadConfig where the network has fewer ids than the tokenizer, BadData where the folder's own has others."""
    if tokenizer.vocab_size > foreign.config.vocab_size:
        raise BadConfig(
            f"{tokenizer.name} has {tokenizer.vocab_size:,} ids, the network {foreign.config.vocab_size:,}",
            hint="choose the tokenizer that it was trained with, with --tokenizer",
        )
    for name in ("tokenizer.json", "vocab.json"):
        if (path := foreign.folder / name).is_file():
            require_same_ids(tokenizer, _vocabulary(path), str(path))


def _vocabulary(path: Path) -> dict[str, int]:
    """The id of each piece, from a vocab.json or a tokenizer.json."""
    found = _json(path)
    if path.name == "tokenizer.json":
        model, added = found.get("model"), found.get("added_tokens") or []
        pieces = model.get("vocab") if isinstance(model, dict) else None
        found = dict(pieces) if isinstance(pieces, dict) else {}
        tables = (each for each in added if isinstance(each, dict) and isinstance(each.get("content"), str))
        found |= {each["content"]: each.get("id") for each in tables}
    return found


def adopt(root: Path, folder: Path, name: str, *, tokenizer: str = "", trusted: bool = False) -> Built:
    """Publish the network in a folder of Hugging Face's as the run `name`. `tokenizer` is a reference as `tokenize`
    takes it, "" for what the size of the vocabulary says; `trusted` allows a pickle.

    Raises as `foreign.open_folder`, and BadData or BadConfig for a tokenizer that is not the network's.
    """
    found = foreign.open_folder(folder, trusted=trusted)
    chosen, _ = tokenizers.find(root, tokenizer or foreign.default_tokenizer(found.config))
    foreign.require_tokenizer(found, chosen)
    options = {"stage": SCHEMA, "imported": True, "model": asdict(found.config)}

    def write(draft: Path) -> Content:
        weights = found.weights()
        chosen.save(draft)
        preset = Preset(found.config.family, f"imported from {found.folder.name}", found.config)
        _write(draft / CONFIG, {"preset": PRESET, **asdict(preset)})
        state = State(0, 0.0, None, found.config, TrainConfig(), Execution("fp32", compiled=False, micro_batch=1))
        saved = checkpoint.save(draft / CHECKPOINTS, state, Saved(weights, {}))
        parameters = found.config.parameters
        _write(draft / RESULT, Result(steps=0, tokens=0, parameters=parameters, last=saved.name, best=saved.name))
        return Content({"steps": 0, "tokens": 0, "parameters": parameters})

    return artifact.build(root, Identity("runs", name, options, found.inputs, chosen.fingerprint), write)


def _write(path: Path, content: object) -> None:
    files.write_file(path, msgspec.json.format(msgspec.json.encode(content), indent=2))
