"""Checkpoints: `checkpoints/step-00001200/` with safetensors and one JSON, whole or not there at all. No pickle.

`state.json` names the sha256 of the tensor files, and its own. They are hashed before they are loaded, since a flipped
bit in a tensor file loads without complaint (reference/reliability.md, M14). Their order is that of their steps: clocks
jump.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import GPTConfig, TrainConfig, differences
from model.device import Execution
from model.network.gpt import GPT
from model.runs.run import Report
from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.store import files

_WEIGHTS, _MOMENTS, _AVERAGE, _STATE = (
    "model.safetensors",
    "optimizer.safetensors",
    "average.safetensors",
    "state.json",
)

_SEAL = "seal"  # the field of state.json that is the hash of the others
_TOLD = 5  # differences that a message lists


class State(msgspec.Struct, frozen=True):
    """Where training stood. `seconds` is the time trained so far; `val_loss` in nats per token, None: not evaluated.

    `skipped` counts steps of data that were passed over after a roll back, `rollbacks` how often that was, and
    `evaluations` which of them were made. `share` is what the rates were of their peaks in the last step. `since_row`
    are the steps since the last row of the metrics, and the sums of their losses and of the norms of their gradients.
    """

    step: int
    seconds: float
    val_loss: float | None
    model: GPTConfig
    train: TrainConfig
    execution: Execution
    skipped: int = 0
    rollbacks: int = 0
    evaluations: int = 0
    share: float = 0.0
    since_row: tuple[int, float, float] = (0, 0.0, 0.0)
    sha256: dict[str, str] = {}


@dataclass(frozen=True)
class Saved:
    """A checkpoint's tensors, on the CPU: weights by name, the optimisers' moments as "weight/moment", and the average
    of the weights where there is one."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    average: Mapping[str, Tensor] = field(default_factory=dict)


def save(folder: Path, state: State, tensors: Saved) -> Path:
    """Write the checkpoint of `state.step` into `folder`; it appears under its name when it is whole."""
    target = folder / name(state.step)
    draft = folder / f"{files.TEMPORARY}{target.name}"
    files.remove_tree(draft)
    draft.mkdir(parents=True)
    parts = {_WEIGHTS: tensors.weights, _MOMENTS: tensors.moments, _AVERAGE: tensors.average}
    files.require_space(folder, 2 * sum(each.nbytes for part in parts.values() for each in part.values()))
    for part, content in parts.items():
        if content:
            write_tensors(draft / part, content)
    hashes = {part: files.sha256_of(draft / part) for part, content in parts.items() if content}
    data = _sealed(msgspec.structs.replace(state, sha256=hashes))
    if _holds(target, hashes):  # a training that goes on from here, and evaluates before its next step
        files.write_file(target / _STATE, data)
        files.remove_tree(draft)
        return target
    files.write_file(draft / _STATE, data)
    for part in hashes:  # which safetensors lets nobody else read
        (draft / part).chmod((draft / _STATE).stat().st_mode)
    files.remove_tree(target)  # it is damaged
    files.publish_directory(draft, target)
    return target


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file. Raises OSError where the disk does not take it."""
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise OSError(None, str(error), str(path.parent)) from None


def _holds(target: Path, hashes: Mapping[str, str]) -> bool:
    return target.is_dir() and all(
        (target / part).is_file() and files.sha256_of(target / part) == sha256 for part, sha256 in hashes.items()
    )


def name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def moments(model: GPT, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimisers' tensors under the names of the weights they belong to, as "weight/moment"."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, weight in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(weight, {}).items()
    }


def steps(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def read_state(path: Path) -> State:
    """What the checkpoint in `path` says of itself. Raises BadData when it is not what was saved."""
    try:
        data = (path / _STATE).read_bytes()
        state = msgspec.json.decode(data, type=State)
        fields = msgspec.json.decode(data)
    except FileNotFoundError:
        raise InputMissing(f"{path}: no checkpoint here", hint="`status` lists the runs") from None
    except (msgspec.DecodeError, UnicodeDecodeError, BadConfig) as error:
        raise BadData(f"{path / _STATE}: {error}", hint="use an older checkpoint") from None
    if fields.pop(_SEAL, None) != _seal(fields):
        raise BadData(f"{path / _STATE}: not as it was saved", hint="use an older checkpoint")
    return state


def _sealed(state: State) -> bytes:
    """As JSON, with a hash of it: a flipped bit of a number is another number."""
    fields = msgspec.to_builtins(state)
    return msgspec.json.format(msgspec.json.encode({**fields, _SEAL: _seal(fields)}), indent=2)


def _seal(fields: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(fields, order="deterministic")).hexdigest()


def read(path: Path) -> Saved:
    """All tensors of a checkpoint, verified; before the first step there are no moments.

    Raises BadData when its bytes are not those that were saved.
    """
    state = read_state(path)
    moments, average = (_verified(path, part, state) if part in state.sha256 else {} for part in (_MOMENTS, _AVERAGE))
    return Saved(_verified(path, _WEIGHTS, state), moments, average)


def newest(
    folder: Path, model: GPTConfig, train: TrainConfig, quarantine: Path, report: Report
) -> tuple[State, Saved] | None:
    """The newest checkpoint in `folder` that is whole; None where there is none at all.

    A damaged one is moved into `quarantine`, and the one before it is used. Raises BadData when all are damaged: a
    training never starts afresh in silence. Raises BadConfig when the checkpoint is of another model or training.
    """
    found = steps(folder)
    for path in found:
        try:
            state = read_state(path)
            changed = differences(state.model, model) + differences(state.train, train)
            if changed:
                raise BadConfig(f"{path} was trained otherwise: {'; '.join(changed)}", hint="or give --no-resume")
            return state, read(path)
        except (BadData, InputMissing) as error:
            report(f"warning: {error}; trying the one before it")
            quarantine.mkdir(parents=True, exist_ok=True)
            files.remove_tree(quarantine / path.name)
            files.move(path, quarantine / path.name)
    if found or steps(quarantine):
        raise BadData(f"{folder}: no checkpoint of the unfinished run can be read", hint="start again with --no-resume")
    return None


def load_model(path: Path, device: torch.device) -> GPT:
    """The model of a checkpoint, verified: with the average of its weights where there is one.

    Raises BadData when its bytes are not those that were saved.
    """
    weights = read_weights(path)
    model = GPT.empty(read_state(path).model, device)
    require_fit(Saved(weights, {}), model)
    model.load_state_dict(weights)
    return model


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights that a checkpoint is sampled with, verified: their average where there is one."""
    state = read_state(path)
    average = _verified(path, _AVERAGE, state) if _AVERAGE in state.sha256 else {}
    return _verified(path, _WEIGHTS, state) | average


def require_fit(saved: Saved, model: GPT) -> None:
    """Raise BadConfig, with what differs, when these are not the tensors of a training of this model."""
    wanted = {name: _shown(weight) for name, weight in model.named_parameters()}
    changed = _changes(saved.weights, wanted) + (_changes(saved.average, wanted) if saved.average else [])
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    for name, moment in saved.moments.items():
        if moment.dim() and moment.shape != shapes.get(name.rpartition("/")[0]):
            changed.append(f"{name}: {_shown(moment)}")
    if changed:
        what = f"a checkpoint of another model: {'; '.join(changed[:_TOLD])}"
        raise BadConfig(what, hint="use another one, or begin anew with --no-resume")


def _changes(found: Mapping[str, Tensor], wanted: Mapping[str, str]) -> list[str]:
    here = {name: _shown(tensor) for name, tensor in found.items()}
    names = [name for name in {**wanted, **here} if here.get(name) != wanted.get(name)]
    return [f"{name}: {here.get(name, 'missing')}, not {wanted.get(name, 'there')}" for name in names]


def _shown(tensor: Tensor) -> str:
    return f"{' x '.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"


def _verified(path: Path, part: str, state: State) -> dict[str, Tensor]:
    file = path / part
    if not file.is_file() or files.sha256_of(file) != state.sha256.get(part):
        raise BadData(f"{file}: missing or not as it was saved", hint="use an older checkpoint")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise BadData(f"{file}: {error}", hint="use an older checkpoint") from None


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


def drop_moments(path: Path) -> None:
    """Keep only what sampling needs of a checkpoint that training will not go on from."""
    (path / _MOMENTS).unlink(missing_ok=True)
