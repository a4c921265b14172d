"""Checkpoints: folders such as `checkpoints/step-00001200/` with safetensors files and `state.json`; no pickle.

A checkpoint gets its name only when it is complete. `state.json` holds the sha256 of each tensor file and a seal, the
hash of its own fields. Both are verified before loading, since a flipped bit in a tensor file loads without complaint
(docs/design/reliability.md, M14). Checkpoints are ordered by step, never by file time, since clocks jump.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import GPTConfig, TrainConfig, differences
from model.device import ExecutionConfig
from model.network.gpt import GPT
from model.network.ngrams import NGrams
from model.runs.run import NGRAMS, Report
from pipeline.errors import BadConfig, BadData, InputMissing, InternalError, StorageFailed
from pipeline.store import files

_WEIGHTS, _MOMENTS, _AVERAGE, _STATE = (
    "model.safetensors",
    "optimizer.safetensors",
    "average.safetensors",
    "state.json",
)

_SEAL = "seal"  # the field of state.json that holds the hash of the others
_MAX_LISTED = 5  # differences in an error message


class TrainState(msgspec.Struct, frozen=True):
    """Position and configuration of a training, as saved in `state.json`.

    seconds      of training so far; evaluating and saving do not count
    val_loss     in nats per token, None if the checkpoint was not evaluated
    skipped      steps of data that rollbacks skipped
    rollbacks    number of times that training was rolled back
    evaluations  number of evaluations so far
    share        the learning rates of the last step, as a fraction of their peaks
    cooldown     of an early decay of the learning rates to zero: its first and last step, and their fraction before
    ended_early  reason of the early decay, "" without one
    since_row    number of steps since the last row of the metrics, and the sums of their losses and gradient norms
    device       kind and model of the device that computed it, "" if it was saved before this was recorded
    """

    step: int
    seconds: float
    val_loss: float | None
    model: GPTConfig
    train: TrainConfig
    execution: ExecutionConfig
    skipped: int = 0
    rollbacks: int = 0
    evaluations: int = 0
    share: float = 0.0
    cooldown: tuple[int, int, float] | None = None
    ended_early: str = ""
    since_row: tuple[int, float, float] = (0, 0.0, 0.0)
    device: str = ""
    sha256: dict[str, str] = {}


@dataclass(frozen=True)
class CheckpointTensors:
    """The tensors of a checkpoint, on the CPU.

    `weights` are by name, the optimizer's `moments` by "weight/moment". `average` is the moving average of the weights,
    empty if there is none.
    """

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    average: Mapping[str, Tensor] = field(default_factory=dict)


def save(folder: Path, state: TrainState, tensors: CheckpointTensors) -> Path:
    """Write the checkpoint of `state.step` into `folder` and return its path. It gets its name once it is complete."""
    target = folder / folder_name(state.step)
    draft = folder / f"{files.TEMPORARY}{target.name}"
    files.remove_tree(draft)
    draft.mkdir(parents=True)
    parts = {_WEIGHTS: tensors.weights, _MOMENTS: tensors.moments, _AVERAGE: tensors.average}
    files.require_space(folder, 2 * sum(tensor.nbytes for part in parts.values() for tensor in part.values()))
    for file_name, part in parts.items():
        if part:
            write_tensors(draft / file_name, part)
            _require_names(draft / file_name, part)
    hashes = {file_name: files.sha256_of(draft / file_name) for file_name, part in parts.items() if part}
    state = msgspec.structs.replace(state, sha256=hashes)
    data = _encode_state(state)
    _require_same(data, state, target / _STATE)
    if _has_files(target, hashes):  # resumed training that evaluates again before its next step
        files.write_file(target / _STATE, data)
        files.remove_tree(draft)
        return target
    files.write_file(draft / _STATE, data)
    for file_name in hashes:  # safetensors creates files that only their owner can read
        (draft / file_name).chmod((draft / _STATE).stat().st_mode)
    files.remove_tree(target)  # damaged, or it would have the same files
    files.publish_directory(draft, target)
    return target


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError if the disk refuses it."""
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise OSError(None, str(error), str(path.parent)) from None


def _require_same(data: bytes, state: TrainState, path: Path) -> None:
    """Raise InternalError unless `data` reads back as `state`. For example, JSON would turn infinity into null."""
    try:
        is_same = _decode_state(data) == state
    except msgspec.DecodeError:
        is_same = False
    if not is_same:
        raise InternalError(f"{path}: does not read back as it was written", hint="this is a bug")


def _require_names(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise StorageFailed unless the header of a tensor file reads back with these names, and its size is right."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except SafetensorError as error:
        raise StorageFailed(f"{path}: does not read back: {error}", hint="check the disk") from None
    if names != set(tensors):
        raise StorageFailed(f"{path}: does not read back as it was written", hint="check the disk")


def _has_files(target: Path, hashes: Mapping[str, str]) -> bool:
    return target.is_dir() and all(
        (target / file_name).is_file() and files.sha256_of(target / file_name) == sha256
        for file_name, sha256 in hashes.items()
    )


def folder_name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    """Return the step of the checkpoint in a folder of that name."""
    return int(name.removeprefix("step-"))


def moments(model: GPT, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Collect the optimizers' state tensors, keyed by "weight/moment"."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, weight in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(weight, {}).items()
    }


def newest_first(folder: Path) -> list[Path]:
    """List the checkpoints in `folder`, the one of the latest step first."""
    return sorted(folder.glob("step-*"), reverse=True)


def read_state(path: Path) -> TrainState:
    """Read the state of the checkpoint in `path`.

    Raises InputMissing if there is no checkpoint, and BadData if its state changed since it was saved.
    """
    try:
        data = (path / _STATE).read_bytes()
        state = _decode_state(data)
        fields = msgspec.json.decode(data)
    except FileNotFoundError:
        raise InputMissing(f"{path}: no checkpoint here", hint="`status` lists the runs") from None
    except (msgspec.DecodeError, UnicodeDecodeError, BadConfig) as error:
        raise BadData(f"{path / _STATE}: {error}", hint="use an older checkpoint") from None
    if fields.pop(_SEAL, None) != _seal(fields):
        raise BadData(f"{path / _STATE}: changed since it was saved", hint="use an older checkpoint")
    return state


def _decode_state(data: bytes) -> TrainState:
    return msgspec.json.decode(data, type=TrainState)


def _encode_state(state: TrainState) -> bytes:
    """Encode a state as JSON with its seal: a flipped bit in a number would otherwise read as another number."""
    fields = msgspec.to_builtins(state)
    return msgspec.json.format(msgspec.json.encode({**fields, _SEAL: _seal(fields)}), indent=2)


def _seal(fields: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(fields, order="deterministic")).hexdigest()


def read(path: Path) -> CheckpointTensors:
    """Read and verify all tensors of a checkpoint. Before the first step there are no moments.

    Raises BadData if its bytes are not those that were saved.
    """
    state = read_state(path)
    moments, average = (_read_optional(path, file_name, state) for file_name in (_MOMENTS, _AVERAGE))
    return CheckpointTensors(_read_verified(path, _WEIGHTS, state), moments, average)


def load_newest(
    folder: Path, model: GPTConfig, train: TrainConfig, quarantine: Path, report: Report, *, best_only: bool = False
) -> tuple[TrainState, CheckpointTensors] | None:
    """Load the newest intact checkpoint in `folder`, or with `best_only` the best one; None if there never was one.

    A damaged checkpoint is moved into `quarantine`, and the one before is loaded instead. Raises BadData if all are
    damaged, so that training never silently starts from scratch. Raises BadConfig if the checkpoint is of another model
    or training.
    """
    best_path = best(folder) if best_only else None
    paths = [best_path] if best_path else newest_first(folder)
    for path in paths:
        try:
            state = read_state(path)
            changes = differences(state.model, model) + differences(state.train, train)
            if changes:
                raise BadConfig(
                    f"{path} has another configuration: {'; '.join(changes)}",
                    hint="use that configuration, or --no-resume to start again",
                )
            return state, read(path)
        except (BadData, InputMissing) as error:
            report(f"warning: {error}; trying the checkpoint before it")
            quarantine.mkdir(parents=True, exist_ok=True)
            files.remove_tree(quarantine / path.name)
            files.move(path, quarantine / path.name)
    if not paths and not newest_first(quarantine):
        return None
    raise BadData(
        f"{folder}: no checkpoint of the unfinished run is readable", hint="`train NAME --no-resume` starts again"
    )


def load_model(path: Path, device: torch.device) -> GPT:
    """Load the network of a checkpoint, and count the n-grams of its run if it is mixed with them.

    Raises BadData if their bytes are not those that were saved.
    """
    model = load_network(path, device)
    if model.config.ngram:
        model.ngrams = _read_ngrams(path.parents[1] / NGRAMS, model.config)
    return model


def load_network(path: Path, device: torch.device) -> GPT:
    """Load and verify the network of a checkpoint, with the average of its weights if there is one.

    Raises BadData if its bytes are not those that were saved.
    """
    weights, config = read_weights(path), read_state(path).model
    if config.parameters > (count := sum(weight.numel() for weight in weights.values())):
        raise BadData(
            f"{path}: {count:,} weights, expected {config.parameters:,} for its network", hint="use another checkpoint"
        )
    model = GPT.empty(config, device)
    require_fit(CheckpointTensors(weights, {}), model)
    model.load_state_dict(weights)
    return model


def _read_ngrams(path: Path, config: GPTConfig) -> NGrams:
    """Count the n-grams of the training text in `path`. Raises BadData if the file is missing or damaged."""
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadData(f"{path}: {error}", hint="`train` the run again") from None
    if ids.ndim != 1 or ids.dtype.kind != "u" or ids.max(initial=0) >= config.vocab_size:
        raise BadData(f"{path}: not the ids of a text, below {config.vocab_size:,}", hint="`train` the run again")
    return NGrams(ids.astype(np.int64), config.vocab_size, config.ngram)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read and verify the weights that a checkpoint is sampled with: their average if there is one."""
    state = read_state(path)
    return _read_verified(path, _WEIGHTS, state) | _read_optional(path, _AVERAGE, state)


def require_fit(tensors: CheckpointTensors, model: GPT) -> None:
    """Raise BadConfig with the differences if names, shapes or dtypes do not fit a training of `model`."""
    expected = {name: _describe(weight) for name, weight in model.named_parameters()}
    changes = _differences(tensors.weights, expected)
    if tensors.average:
        changes += _differences(tensors.average, expected)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    for name, moment in tensors.moments.items():
        if moment.dim() and moment.shape != shapes.get(name.rpartition("/")[0]):
            changes.append(f"{name}: {_describe(moment)}")
    if changes:
        raise BadConfig(
            f"the checkpoint is of another model: {'; '.join(changes[:_MAX_LISTED])}",
            hint="use another checkpoint, or start again with --no-resume",
        )


def _differences(tensors: Mapping[str, Tensor], expected: Mapping[str, str]) -> list[str]:
    actual = {name: _describe(tensor) for name, tensor in tensors.items()}
    names = [name for name in {**expected, **actual} if actual.get(name) != expected.get(name)]
    return [f"{name}: {actual.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}" for name in names]


def _describe(tensor: Tensor) -> str:
    return f"{' x '.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"


def _read_optional(path: Path, file_name: str, state: TrainState) -> dict[str, Tensor]:
    return _read_verified(path, file_name, state) if file_name in state.sha256 else {}


def _read_verified(path: Path, file_name: str, state: TrainState) -> dict[str, Tensor]:
    file = path / file_name
    if not file.is_file() or files.sha256_of(file) != state.sha256.get(file_name):
        raise BadData(f"{file}: missing, or changed since it was saved", hint="use an older checkpoint")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise BadData(f"{file}: {error}", hint="use an older checkpoint") from None


def best(folder: Path) -> Path | None:
    """Return the checkpoint with the lowest validation loss, the latest of several; None if none was evaluated."""
    losses = {}
    for path in newest_first(folder):
        try:
            loss = read_state(path).val_loss
        except (BadData, InputMissing):
            continue  # a damaged checkpoint cannot be the best
        if loss is not None:
            losses[path] = loss
    return min(losses, key=lambda path: losses[path]) if losses else None


def delete_except(folder: Path, keep: set[Path | None]) -> None:
    """Delete all checkpoints in `folder` except those in `keep`."""
    for path in newest_first(folder):
        if path not in keep:
            files.remove_tree(path)


def drop_moments(path: Path) -> None:
    """Delete the optimizer state of a checkpoint that is kept for sampling only."""
    (path / _MOMENTS).unlink(missing_ok=True)
