"""The end of a training: result.json, the loss curve, the checkpoints, and the comparison with the run before."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from model import device as devices
from model.config import Preset, TrainConfig
from model.runs import checkpoint
from model.runs.plan import TrainPlan, read_config
from model.runs.run import (
    CHECKPOINTS,
    CONFIG,
    RESULT,
    Report,
    Result,
    checkpoint_path,
    describe_tuning,
    open_tokenizer,
    read_result,
    require_intact,
)
from model.runs.tuning import SFT
from model.training import loss_curve
from model.training.baselines import Baselines
from model.training.distributed import World
from model.training.evaluate import ValidationSet, encode_again, evaluate, validation_set
from model.training.lr_schedule import LRSchedule
from model.training.metrics import LOG, LOSSES, METRICS, SAMPLES, scores
from model.training.resume import Parent
from model.training.tuning.forgetting import conclude
from model.training.tuning.task import open_task
from pipeline.errors import BadConfig, InkstoneError, InternalError
from pipeline.store import files
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer
from pipeline.tokens.store import open_store

_TOLERANCE = 1.01  # a run that is worse by more than this factor does not replace the current one


def finish(folder: Path, result: Result, baselines: Baselines | None, title: str) -> None:
    """Write the result and the loss curve into the folder of a run; keep its last and its best checkpoint only."""
    checkpoints = folder / CHECKPOINTS
    last, best = checkpoints / result.last, checkpoints / result.best
    checkpoint.delete_except(checkpoints, {last, best})
    if best != last:
        checkpoint.drop_moments(best)
    files.write_file(folder / RESULT, msgspec.json.format(msgspec.json.encode(result), indent=2))
    title = "\n".join([title, *describe_tuning(result)])
    loss_curve.draw(
        folder / METRICS, folder, title, baselines, "pair" if "accuracy_after" in result.tuning else "token"
    )


def make_result(
    records: Path,
    folder: Path,
    schedule: LRSchedule,
    preset: Preset,
    device: torch.device,
    precision: str,
    processes: int,
    parent: Parent | None,
    **values: Any,
) -> Result:
    """Return the final numbers of a training, from the metrics in `records` and the checkpoints in `folder`.

    `values` are further fields of the result. Those of a tuning compare it with the `parent` run.
    """
    model, seconds = preset.model, schedule.seconds
    last, best = checkpoint.folder_name(schedule.step), checkpoint.best(folder / CHECKPOINTS)
    best_name = best.name if best else last
    tokens = schedule.step * preset.train.batch_size * model.block_size
    rate, peak = tokens / max(seconds, 1e-9), devices.peak_flops(device, precision)
    result = Result(
        steps=schedule.step,
        tokens=tokens,
        parameters=model.parameters,
        device=str(device),
        seconds=round(seconds, 3),
        tokens_per_second=round(rate, 1),
        mfu=round(rate * model.flops_per_token / peak / processes, 4) if peak else None,
        last=last,
        best=best_name,
        steps_before=parent.steps if parent else 0,
        **scores(records, checkpoint.step_of(best_name)),
        **values,
    )
    return conclude(folder, records, result, parent.path, device) if result.task and parent else result


def require_readable(folder: Path, result: Result, plan: TrainPlan) -> None:
    """Raise InternalError unless the configuration, the result and the checkpoints of a new run read back as written.

    `sample`, `serve`, `export` and `train --from` read them. It takes about a millisecond: tensors are checked when
    their checkpoint is saved.
    """
    states = [checkpoint.read_state(folder / CHECKPOINTS / name) for name in {result.last, result.best}]
    parts = {
        RESULT: (read_result(folder), result),
        CONFIG: (read_config(folder), plan.preset),
        CHECKPOINTS: (
            [(state.model, state.train) for state in states],
            [(plan.preset.model, plan.preset.train)] * len(states),
        ),
    }
    for name, (actual, expected) in parts.items():
        if actual != expected:
            raise InternalError(f"{folder / name}: does not read back as it was written", hint="this is a bug")


def copy_records(source: Path, target: Path) -> None:
    """Copy the metrics, the log, the samples and the losses of a training into another folder."""
    for name in (METRICS, LOG, SAMPLES, LOSSES):
        if (source / name).exists():  # there are no losses without validation text
            shutil.copyfile(source / name, target / name)


@dataclass(frozen=True)
class Comparison:
    """Scores of the best checkpoints of a new run and of the current one on the same held-out text, answers or pairs.

    They are in `unit`; lower is better.
    """

    new: float
    current: float
    unit: str = "bits per character"

    @property
    def is_worse(self) -> bool:
        """True if the new run is worse by more than 1 %, or its loss is not finite."""
        return not self.new <= _TOLERANCE * self.current and math.isfinite(self.current)

    def __str__(self) -> str:
        return f"{self.new:.3f} against {self.current:.3f} {self.unit}"


def compare(
    folder: Path, result: Result, plan: TrainPlan, current: Artifact, device: str, report: Report
) -> Comparison | None:
    """Evaluate the new run in `folder` and the current one on the part of the validation text that `plan` evaluates.

    The current run scores the same text with its own tokenizer. Return None if the tokens have no validation part.
    Raises InkstoneError if the current run cannot be read.
    """
    store, train = open_store(plan.tokens), plan.preset.train
    if not len(store.val):
        return None
    report(f"comparing with {current.ref}")
    if store.chat:
        return _compare_tuned(folder, result, plan, current, devices.pick_device(device))
    validation = validation_set(store, train.eval_bytes)
    path, tokenizer = checkpoint_path(current, "best"), open_tokenizer(current)
    require_intact(current, path)
    was_trained = "train" in current.manifest.options
    old_train = current.manifest.option("train", TrainConfig) if was_trained else train
    old_set = encode_again(store.tokenizer, validation, tokenizer)
    return Comparison(
        _bits_per_char(folder / CHECKPOINTS / result.best, validation, store.tokenizer, train, device),
        _bits_per_char(path, old_set, tokenizer, old_train, device),
    )


def _compare_tuned(
    folder: Path, result: Result, plan: TrainPlan, current: Artifact, device: torch.device
) -> Comparison:
    """Evaluate two tuned runs on the held-out conversations or pairs of a plan."""
    if current.manifest.tokenizer != plan.tokens.manifest.tokenizer:
        raise BadConfig(f"it has the tokenizer {current.manifest.tokenizer}", hint="tune it under another --name")
    path = checkpoint_path(current, "best")
    require_intact(current, path)
    task = open_task(open_store(plan.tokens), plan, device, World(), lambda line: None)
    scores = []
    for checkpoint_folder in (folder / CHECKPOINTS / result.best, path):
        model, precision = checkpoint.load_model(checkpoint_folder, device), plan.preset.train.precision
        scores.append(task.score(model, device, devices.pick_precision(device, precision)))
    unit = "bits per character of answers" if task.name == SFT else "loss on held-out pairs"
    return Comparison(scores[0], scores[1], unit)


def _bits_per_char(
    path: Path, validation: ValidationSet, tokenizer: Tokenizer, train: TrainConfig, device_name: str
) -> float:
    device = devices.pick_device(device_name)
    model, precision = checkpoint.load_model(path, device), devices.pick_precision(device, train.precision)
    mask_eos = tokenizer.end_of_text if train.document_mask else None
    evaluation = evaluate(model, validation, device, precision, mask_eos=mask_eos)
    assert evaluation is not None  # only a stopped evaluation returns None
    return evaluation.bits_per_char


def report_comparison(
    folder: Path, result: Result, plan: TrainPlan, current: Artifact, device: str, report: Report, *, accept: bool
) -> str:
    """Compare a new run with the current one and report both figures.

    Return the reason to keep the current run, "" if the new run replaces it: it is not worse, or `accept` is set.
    """
    try:
        comparison = compare(folder, result, plan, current, device, report)
    except InkstoneError as error:
        report(f"not compared with {current.ref}: {error.message}")
        return ""
    if comparison is None:
        report(f"not compared with {current.ref}: the tokens have no validation text")
        return ""
    if not comparison.is_worse:
        report(f"compared with {current.ref}: {comparison}")
        return ""
    if accept:
        report(f"worse than {current.ref}, and accepted: {comparison}")
        return ""
    report(f"worse than {current.ref}, which stays current: {comparison}; --accept-worse makes it current")
    return f"worse than current ({comparison})"
