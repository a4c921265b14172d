"""Checkpoints: `checkpoints/step-00001200/` with safetensors and one JSON, whole or not there at all. No pickle.

`state.json` names the sha256 of the two tensor files; they are hashed before they are loaded, since a flipped bit
in a tensor file loads without complaint (reference/reliability.md, M14).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file

from model.config import GPTConfig
from model.gpt import GPT
from pipeline import files
from pipeline.errors import BadData, InputMissing

_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"


class State(msgspec.Struct, frozen=True):
    """Where training stood. `seconds` is the time trained so far; `val_loss` in nats per token, None: not evaluated."""

    step: int
    seconds: float
    val_loss: float | None
    model: GPTConfig
    sha256: dict[str, str] = {}


def save(folder: Path, state: State, model: GPT, optimizer: torch.optim.Optimizer) -> Path:
    """Write the checkpoint of `state.step` into `folder`; it appears under its name when it is whole."""
    target = folder / name(state.step)
    draft = folder / f"{files.TEMPORARY}{target.name}"
    files.remove_tree(draft)
    draft.mkdir(parents=True)
    save_file(_cpu(model.state_dict()), draft / _MODEL)
    save_file(_cpu(_moments(model, optimizer)), draft / _OPTIMIZER)
    hashes = {name: files.sha256_of(draft / name) for name in (_MODEL, _OPTIMIZER)}
    data = msgspec.json.encode(msgspec.structs.replace(state, sha256=hashes))
    files.write_file(draft / _STATE, msgspec.json.format(data, indent=2))
    files.remove_tree(target)  # it was damaged, or training would not have come by here again
    files.publish_directory(draft, target)
    return target


def name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def _cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _moments(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors under the names of the weights they belong to."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, weight in model.named_parameters()
        for key, value in optimizer.state.get(weight, {}).items()
    }


def steps(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def read_state(path: Path) -> State:
    try:
        return msgspec.json.decode((path / _STATE).read_bytes(), type=State)
    except FileNotFoundError:
        raise InputMissing(f"{path}: no checkpoint here", hint="`status` lists the runs") from None
    except msgspec.DecodeError as error:
        raise BadData(f"{path / _STATE}: {error}", hint="use an older checkpoint") from None


def load_model(path: Path, device: torch.device) -> GPT:
    """The model of a checkpoint, verified. Raises BadData when its bytes are not those that were saved."""
    state = read_state(path)
    model = GPT(state.model)
    model.load_state_dict(_verified(path, _MODEL, state))
    return model.to(device)


def load_optimizer(path: Path, model: GPT, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved moments back under the weights of `model`."""
    tensors = _verified(path, _OPTIMIZER, read_state(path))
    weights = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        weight = weights[name]
        optimizer.state[weight][key] = tensor.to(weight.device)


def _verified(path: Path, name: str, state: State) -> dict[str, torch.Tensor]:
    file = path / name
    if not file.is_file() or files.sha256_of(file) != state.sha256.get(name):
        raise BadData(f"{file}: missing or not as it was saved", hint="use an older checkpoint")
    return load_file(file)


def best(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, the later one of two equals; None where none was evaluated."""
    losses = {}
    for path in steps(folder):
        try:
            loss = read_state(path).val_loss
        except (BadData, InputMissing):
            continue  # damaged: not the best of anything
        if loss is not None:
            losses[path] = loss
    return min(losses, key=lambda path: losses[path]) if losses else None


def keep(folder: Path, kept: set[Path | None]) -> None:
    """Delete the checkpoints in `folder` that are not in `kept`."""
    for path in steps(folder):
        if path not in kept:
            files.remove_tree(path)


def drop_optimizer(path: Path) -> None:
    """Keep only what sampling needs of a checkpoint that training will not go on from."""
    (path / _OPTIMIZER).unlink(missing_ok=True)
