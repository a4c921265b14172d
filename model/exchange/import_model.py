"""Import of a Hugging Face folder as a run, without executing code from it.

config.json                               the network
model.safetensors, or model.safetensors.index.json and its shards
pytorch_model.bin                         a pickle, which may run code; only read if the user trusts it, and then with
                                          torch's unpickler that accepts tensors only
ckpt.pt                                   nanoGPT's, a pickle with the network and its weights, read in the same way
tokenizer.json, tokenizer.model           the tokenizer: see import_tokenizer.py
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
from model.exchange import convert, custom_code, nanogpt
from model.exchange.import_tokenizer import find_tokenizer
from model.exchange.weight_files import read_tensors, require_unique, require_weights
from model.runs import checkpoint
from model.runs.checkpoint import CheckpointTensors, TrainState
from model.runs.plan import CODE as _TRAINING
from model.runs.plan import SCHEMA
from model.runs.run import CHECKPOINTS, CONFIG, RESULT, Result
from pipeline.errors import BadData, InputMissing
from pipeline.runtime.regular_file import regular_file
from pipeline.store import artifact, code, files
from pipeline.store.artifact import BuildResult, StageOutput
from pipeline.store.manifest import Identity, Input

PRESET = "imported"
CODE = code.Code(
    (
        *("model/exchange/import_model.py", "model/exchange/weight_files.py"),
        *("model/exchange/convert.py", "model/exchange/architectures.py", "model/exchange/nanogpt.py"),
        "model/exchange/custom_code.py",
        *("model/network", "model/config.py", "model/runs/checkpoint.py"),
    ),
    {
        **_TRAINING.harmless,
        "model/device.py": "chooses hardware, on which nothing is computed",
        "model/exchange/import_tokenizer.py": "chooses and compares the tokenizer, which is part of the key",
        "model/exchange/nanogpt_vocabulary.py": "opens the tokenizer, which is part of the key",
        "pipeline/runtime/plain_pickle.py": "reads the vocabulary of the tokenizer, which is part of the key",
        "model/exchange/probe_texts.py": "texts for the comparison of tokenizers",
    },
)

_WEIGHTS, _INDEX, _PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_MASK_BUFFER = re.compile(r"(^|\.)attn\.(masked_)?bias$")  # GPT-2's causal masks, which old folders contain too


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder with a network: its config and its weight files.

    `writer` is "transformers", "nanogpt" for a ckpt.pt, or "inkstone" for an export of the family "fast".
    """

    folder: Path
    config: GPTConfig
    files: tuple[Path, ...]
    writer: str = "transformers"

    @property
    def inputs(self) -> tuple[Input, ...]:
        """config.json and the weight files, with their hashes."""
        paths = self.files if self.writer == "nanogpt" else (self.folder / "config.json", *self.files)
        return tuple(Input("model", f"{self.folder.name}/{path.name}", files.sha256_of(path)) for path in paths)

    def weights(self) -> dict[str, Tensor]:
        """Return our weights in fp32.

        Raises BadData for a damaged file, for tensors that are not weights, or do not fit the config.
        """
        tensors: dict[str, Tensor] = {}
        for path in self.files:
            tensors_of_file = nanogpt.read_tensors(path) if self.writer == "nanogpt" else read_tensors(path)
            weights = {name: tensor for name, tensor in tensors_of_file.items() if not _MASK_BUFFER.search(name)}
            require_weights(weights, path)
            require_unique((*tensors, *weights), path)
            tensors |= weights
        return convert.from_huggingface(self.config, tensors, str(self.folder), self.writer)


def open_checkpoint(folder: Path, *, trusted: bool = False) -> CheckpointFolder:
    """Read the config of a folder, or of a ckpt.pt, and find its weight files. `trusted` allows a pickle.

    Raises InputMissing for a missing file, BadData for a pickle or a damaged file, BadConfig for a network with options
    that GPTConfig does not have.
    """
    folder = folder.resolve()
    file = folder if folder.suffix == ".pt" and folder.is_file() else folder / nanogpt.CHECKPOINT
    if regular_file(file).is_file() and not (file.parent / "config.json").is_file():
        _require_trusted(file, trusted=trusted)
        return CheckpointFolder(file.parent, nanogpt.read_config(file), (file,), "nanogpt")
    if not folder.is_dir():
        raise InputMissing(f"{folder}: no such folder", hint="name the folder that contains config.json or ckpt.pt")
    content, path = _read_json(folder / "config.json"), str(folder / "config.json")
    is_own = content.get("model_type") == custom_code.MODEL_TYPE
    config = (custom_code.config_from_json if is_own else convert.config_from_huggingface)(content, path)
    files_of_weights = _weight_files(folder, trusted=trusted)
    return CheckpointFolder(folder, config, files_of_weights, "inkstone" if is_own else "transformers")


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
    _require_trusted(folder / _PICKLE, trusted=trusted)
    return (folder / _PICKLE,)


def _require_trusted(path: Path, *, trusted: bool) -> None:
    if not trusted:
        raise BadData(
            f"{path}: a pickle, which may run code when it is loaded",
            hint="use safetensors, or pass --trust-checkpoint if you trust its source",
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(regular_file(path).read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise InputMissing(f"{path}: missing", hint="name a folder that transformers saved") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(f"{path}: {error}", hint="download it again") from None


def import_model(
    root: Path,
    folder: Path,
    name: str,
    *,
    tokenizer: str = "",
    trusted: bool = False,
    assumed: bool = False,
    end_of_text: str = "",
) -> BuildResult:
    """Publish the network of a Hugging Face folder, or of a ckpt.pt of nanoGPT, as the run `name`.

    `tokenizer` is a reference as for `tokenize`; "" selects the folder's own. It is `assumed` to be the network's if no
    file in the folder proves it. `trusted` allows a pickle. Raises as `open_checkpoint` and `find_tokenizer` do.
    """
    source = open_checkpoint(folder, trusted=trusted)
    run_tokenizer = find_tokenizer(
        root, source.folder, source.config.vocab_size, tokenizer, assumed=assumed, end_of_text=end_of_text
    )
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
