"""Import of a Hugging Face folder as a run, without executing code from it.

config.json                               the network
model.safetensors, or model.safetensors.index.json and its shards
pytorch_model.bin                         a pickle, which may run code; only read if the user trusts it, and then with
                                          torch's unpickler that accepts tensors only
tokenizer.json or vocab.json              only compared with the tokenizer that the user chose
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from model.config import GPTConfig, Preset, TrainConfig, identity
from model.device import ExecutionConfig
from model.exchange import convert
from model.exchange.weight_files import read_tensors, require_unique, require_weights
from model.runs import checkpoint
from model.runs.checkpoint import CheckpointTensors, TrainState
from model.runs.plan import CODE as _TRAINING
from model.runs.plan import SCHEMA
from model.runs.run import CHECKPOINTS, CONFIG, RESULT, Result
from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.runtime.regular_file import regular_file
from pipeline.store import artifact, code, files
from pipeline.store.artifact import BuildResult, StageOutput
from pipeline.store.manifest import Identity, Input
from pipeline.tokenizers import Tokenizer, require_same_ids

PRESET = "imported"
CODE = code.Code(
    (
        *("model/exchange/import_model.py", "model/exchange/weight_files.py"),
        *("model/exchange/convert.py", "model/exchange/architectures.py"),
        *("model/network", "model/config.py", "model/runs/checkpoint.py"),
    ),
    {**_TRAINING.harmless, "model/device.py": "chooses hardware, on which nothing is computed"},
)

_WEIGHTS, _INDEX, _PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_MASK_BUFFER = re.compile(r"(^|\.)attn\.(masked_)?bias$")  # GPT-2's causal masks, which old folders contain too
_GPT2_VOCAB_SIZE = 50_257


@dataclass(frozen=True)
class CheckpointFolder:
    """A Hugging Face folder: the config of its network and its weight files."""

    folder: Path
    config: GPTConfig
    files: tuple[Path, ...]

    @property
    def inputs(self) -> tuple[Input, ...]:
        """config.json and the weight files, with their hashes."""
        paths = (self.folder / "config.json", *self.files)
        return tuple(Input("model", f"{self.folder.name}/{path.name}", files.sha256_of(path)) for path in paths)

    def weights(self) -> dict[str, Tensor]:
        """Return our weights in fp32.

        Raises BadData for a damaged file, for tensors that are no weights, or that do not fit the config.
        """
        tensors: dict[str, Tensor] = {}
        for path in self.files:
            weights = {name: tensor for name, tensor in read_tensors(path).items() if not _MASK_BUFFER.search(name)}
            require_weights(weights, path)
            require_unique((*tensors, *weights), path)
            tensors |= weights
        return convert.from_huggingface(self.config, tensors, str(self.folder))


def open_checkpoint(folder: Path, *, trusted: bool = False) -> CheckpointFolder:
    """Read the config of a folder and find its weight files. `trusted` allows a pickle.

    Raises InputMissing for a missing file, BadData for a pickle or a damaged file, BadConfig for a network with options
    that GPTConfig does not have.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise InputMissing(f"{folder}: no such folder", hint="name the folder that contains config.json")
    config = convert.config_from_huggingface(_read_json(folder / "config.json"), str(folder / "config.json"))
    return CheckpointFolder(folder, config, _weight_files(folder, trusted=trusted))


def _weight_files(folder: Path, *, trusted: bool) -> tuple[Path, ...]:
    if (folder / _WEIGHTS).is_file():
        return (folder / _WEIGHTS,)
    if (folder / _INDEX).is_file():
        shards = _read_json(folder / _INDEX).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        if invalid := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise BadData(
                f"{folder / _INDEX}: {invalid[0]!r} is not a .safetensors file in the same folder", hint="do not use it"
            )
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise InputMissing(f"{folder / missing[0]}: missing", hint="download all shards")
        return tuple(folder / name for name in names)
    if not (folder / _PICKLE).is_file():
        raise InputMissing(f"{folder / _WEIGHTS}: missing", hint="name a folder with weights in safetensors")
    if not trusted:
        raise BadData(
            f"{folder / _PICKLE}: a pickle, which may run code when it is loaded",
            hint="use its safetensors, or pass --trust-checkpoint if you trust its source",
        )
    return (folder / _PICKLE,)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(regular_file(path).read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise InputMissing(f"{path}: missing", hint="name a folder that transformers saved") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(f"{path}: {error}", hint="download it again") from None


def default_tokenizer(config: GPTConfig) -> str:
    """Return GPT-2's tokenizer if the vocabulary has its size. Raises BadConfig otherwise."""
    if config.vocab_size == _GPT2_VOCAB_SIZE:
        return "r50k_base"
    raise BadConfig(
        f"no default tokenizer for a vocabulary of {config.vocab_size:,}",
        hint="name it with --tokenizer: an encoding, a trained tokenizer, or a .model file",
    )


def require_tokenizer(checkpoint_folder: CheckpointFolder, tokenizer: Tokenizer) -> None:
    """Raise BadConfig if the tokenizer has more ids than the network, BadData if the folder's vocabulary differs."""
    if tokenizer.vocab_size > checkpoint_folder.config.vocab_size:
        raise BadConfig(
            f"{tokenizer.name} has {tokenizer.vocab_size:,} ids, the network {checkpoint_folder.config.vocab_size:,}",
            hint="name the tokenizer that the network was trained with, with --tokenizer",
        )
    for name in ("tokenizer.json", "vocab.json"):
        if (path := checkpoint_folder.folder / name).is_file():
            require_same_ids(tokenizer, _read_vocabulary(path), str(path))


def _read_vocabulary(path: Path) -> dict[str, int]:
    """The id of each piece, from a vocab.json or a tokenizer.json."""
    content = _read_json(path)
    if path.name != "tokenizer.json":
        return content
    model, added_tokens = content.get("model"), content.get("added_tokens") or []
    pieces = model.get("vocab") if isinstance(model, dict) else None
    vocabulary = dict(pieces) if isinstance(pieces, dict) else {}
    for token in added_tokens:
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            vocabulary[token["content"]] = token.get("id")
    return vocabulary


def import_model(root: Path, folder: Path, name: str, *, tokenizer: str = "", trusted: bool = False) -> BuildResult:
    """Publish the network of a Hugging Face folder as the run `name`.

    `tokenizer` is a reference as for `tokenize`; "" selects one by the size of the vocabulary. `trusted` allows a
    pickle. Raises as `open_checkpoint` does, and BadData or BadConfig for a tokenizer that is not the network's.
    """
    source = open_checkpoint(folder, trusted=trusted)
    run_tokenizer, _ = tokenizers.find(root, tokenizer or default_tokenizer(source.config))
    require_tokenizer(source, run_tokenizer)
    options = {"stage": SCHEMA, "imported": True, "model": identity(source.config)}

    def write(draft: Path) -> StageOutput:
        weights = source.weights()
        run_tokenizer.save(draft)
        preset = Preset(source.config.family, f"imported from {source.folder.name}", source.config)
        _write_json(draft / CONFIG, {"preset": PRESET, **asdict(preset)})
        state = TrainState(
            0, 0.0, None, source.config, TrainConfig(), ExecutionConfig("fp32", compiled=False, micro_batch=1)
        )
        path = checkpoint.save(draft / CHECKPOINTS, state, CheckpointTensors(weights, {}))
        parameters = source.config.parameters
        _write_json(draft / RESULT, Result(steps=0, tokens=0, parameters=parameters, last=path.name, best=path.name))
        return StageOutput({"steps": 0, "tokens": 0, "parameters": parameters})

    fingerprint, state = run_tokenizer.fingerprint, code.state_of(CODE)
    return artifact.build(root, Identity("runs", name, options, source.inputs, fingerprint, code=state), write)


def _write_json(path: Path, content: object) -> None:
    files.write_file(path, msgspec.json.format(msgspec.json.encode(content), indent=2))
