"""The end of a training: result.json, the loss curve, and the checkpoints that a run keeps."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from model.runs import checkpoint
from model.runs.run import CHECKPOINTS, RESULT, Result
from model.training import loss_curve
from model.training.baselines import Baselines
from model.training.metrics import LOG, METRICS, SAMPLES
from pipeline.store import files


def finish(folder: Path, result: Result, baselines: Baselines | None, title: str) -> None:
    """Write the result and the loss curve into the folder of a run; keep its last and its best checkpoint only."""
    checkpoints = folder / CHECKPOINTS
    last, best = checkpoints / result.last, checkpoints / result.best
    checkpoint.delete_except(checkpoints, {last, best})
    if best != last:
        checkpoint.drop_moments(best)
    files.write_file(folder / RESULT, msgspec.json.format(msgspec.json.encode(result), indent=2))
    loss_curve.draw(folder / METRICS, folder, title, baselines)


def copy_records(source: Path, target: Path) -> None:
    """Copy the metrics, the log and the samples of a training into another folder."""
    for name in (METRICS, LOG, SAMPLES):
        shutil.copyfile(source / name, target / name)
