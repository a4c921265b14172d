"""What is written down of a training: what it was begun with, and what it came to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from model import device as devices
from model.runs import checkpoint
from model.runs.plan import Annealed, begun
from model.runs.run import RESULT, Result
from model.training import loss_curve as curve
from model.training import metrics
from pipeline.store import files

if TYPE_CHECKING:
    from model.training.trainer import Training

_TABLES = ("metrics.csv", "log.jsonl", "samples.jsonl")


def ended(training: Training) -> Result:
    """The result and the curve, beside the last checkpoint and the best. The first process writes, all are told.

    Raises Annealed when a signal had ended the training: its run is then in a folder of its own.
    """
    made, folder = training.metrics.folder, training.folder
    result: Result = training.world.tell(_result(training, made) if made else None)
    if made is None:
        return result
    if folder != made:
        begun(folder, training.planned, training.store.tokenizer)
        for name in _TABLES:
            shutil.copyfile(made / name, folder / name)
    last, best = (training.checkpoints / name for name in (result.last, result.best))
    checkpoint.keep(training.checkpoints, {last, best})
    if best != last:
        checkpoint.drop_moments(best)
    files.write_file(folder / RESULT, msgspec.json.format(msgspec.json.encode(result), indent=2))
    title = f"{training.planned.name} ({training.planned.preset_name})"
    curve.draw(folder / "metrics.csv", folder, title, training.references)
    if folder != made:
        raise Annealed(folder, result)
    return result


def _result(training: Training, made: Path) -> Result:
    evaluated = [row for row in metrics.read(made / "metrics.csv") if row["val_loss"]]
    last = checkpoint.name(training.schedule.step)
    lowest = checkpoint.best(training.checkpoints)
    kept = lowest.name if lowest else last
    best = next((row for row in evaluated if checkpoint.name(int(row["step"])) == kept), evaluated[-1])
    seconds, model = training.schedule.seconds, training.planned.preset.model
    rate, peak = training.tokens / max(seconds, 1e-9), devices.peak_flops(training.device)
    return Result(
        steps=training.schedule.step,
        tokens=training.tokens,
        parameters=model.parameters,
        device=str(training.device),
        seconds=round(seconds, 3),
        tokens_per_second=round(rate, 1),
        mfu=round(rate * model.flops_per_token / peak / training.world.size, 4) if peak else None,
        val_loss=float(evaluated[-1]["val_loss"]),
        bits_per_char=float(evaluated[-1]["bits_per_char"]),
        bits_per_byte=float(evaluated[-1]["bits_per_byte"]),
        first_bits_per_char=float(evaluated[0]["bits_per_char"]),
        best_val_loss=float(best["val_loss"]),
        best_bits_per_char=float(best["bits_per_char"]),
        last=last,
        best=kept,
        steps_before=training.steps_before,
        epochs=round(training.sampler.epoch(training.data_step, training.config.batch_size), 3),
        waited=round(training.loader.waited / max(seconds, 1e-9), 4),
    )
