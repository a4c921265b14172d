"""Records of a training: `metrics.csv` (a row for each report), `samples.jsonl` (a text for each evaluation),
`log.jsonl` (all events) and `losses.safetensors` (the loss of every validation token at the end).

When training resumes from a checkpoint, rows and samples of later steps are cut off, so that a run that was killed ends
with the same records as one that was not.
"""

from __future__ import annotations

import csv
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import numpy as safetensors
from torch import Tensor

from model import device as devices
from model.training.distributed import World
from model.training.evaluate import Evaluation
from model.training.lr_schedule import LRSchedule
from model.training.tuning.evaluation import AnyEvaluation
from pipeline.errors import BadConfig, install_command
from pipeline.store import files

METRICS, SAMPLES, LOG, LOSSES = "metrics.csv", "samples.jsonl", "log.jsonl", "losses.safetensors"

COLUMNS = (
    "step",
    "tokens",
    "seconds",
    "learning_rate",
    "train_loss",
    "gradient_norm",
    "val_loss",
    "bits_per_char",
    "bits_per_byte",
    "memory_mb",  # millions of bytes
)
_FORMATS = {"learning_rate": ".6g", "memory_mb": ".0f"}
OnRow = Callable[[dict[str, float]], None]

_MAX_SUM = torch.finfo(torch.float32).max
_LINE_STEP = re.compile(rb'(?:{"step": ?)?(\d+),')  # at the start of a row, and of a sample


@dataclass
class RunningSums:
    """Sums of loss and gradient norm over the steps since the last row of the metrics.

    They stay on the device, so that adding a step does not wait for it.
    """

    steps: int
    loss: Tensor
    norm: Tensor

    @classmethod
    def on(cls, device: torch.device, steps: int = 0, loss: float = 0.0, norm: float = 0.0) -> RunningSums:
        """Create sums on a device."""
        return cls(steps, *(torch.tensor(total, dtype=torch.float32, device=device) for total in (loss, norm)))

    def add(self, loss: Tensor, norm: Tensor) -> None:
        self.steps += 1
        self.loss = self.loss + loss
        self.norm = self.norm + norm

    def totals(self, world: World) -> tuple[int, float, float]:
        """Return the number of steps and both sums; the loss is the mean over all processes. A collective.

        A sum that overflows float32 becomes its largest number, since JSON has no infinity.
        """
        loss, norm = (min(float(total), _MAX_SUM) for total in (self.loss, self.norm))
        return self.steps, world.all_reduce_sum(loss) / world.size, norm


class Metrics:
    """Writer of the records, as a context manager. Rows and samples after `step` are dropped; -1 recreates all files.

    With `board`, TensorBoard events are written too, into `tensorboard/` beside them. `on_row` is called with the
    numbers of every row. Without a folder nothing is written or called. `columns` are added to those of every training.
    Raises OSError at the end of the context if a full disk still refuses some lines.
    """

    def __init__(
        self,
        folder: Path | None,
        step: int = -1,
        device: torch.device | None = None,
        *,
        board: bool = False,
        columns: tuple[str, ...] = (),
        on_row: OnRow | None = None,
    ) -> None:
        self.folder, self._device, self._on_row = folder, device, on_row if folder else None
        self._columns = (*COLUMNS, *columns)
        self._board = _open_board(folder / "tensorboard") if board and folder else None
        if folder and step < 0:
            for name in (LOG, LOSSES):
                (folder / name).unlink(missing_ok=True)
        self._open(step)

    def _open(self, step: int) -> None:
        for name, header in ((METRICS, ",".join(self._columns) + "\n"), (SAMPLES, "")):
            if self.folder:
                files.write_file(self.folder / name, header.encode() + _lines_until(self.folder / name, step))
        paths = (self.folder / name if self.folder else Path(os.devnull) for name in (METRICS, SAMPLES, LOG))
        self._rows, self._samples, self._log = self._files = tuple(map(_LineWriter, paths))

    def back_to(self, step: int) -> None:
        """Drop the rows and samples of later steps."""
        self._close()
        self._open(step)

    def add(
        self,
        schedule: LRSchedule,
        tokens: int,
        loss: float | None,
        norm: float | None,
        evaluation: AnyEvaluation | None = None,
    ) -> None:
        """Write a row. `loss` in nats per token and the gradient's `norm` are means since the last row."""
        values: dict[str, float | None] = {
            "learning_rate": schedule.learning_rate,
            "train_loss": loss,
            "gradient_norm": norm,
            "memory_mb": devices.used_memory(self._device) / 1e6 if self._device else None,
        }
        if evaluation:
            values |= evaluation.columns
        numbers = {name: value for name, value in values.items() if value is not None}
        texts = {name: format(value, _FORMATS.get(name, ".5f")) for name, value in numbers.items()}
        fields = {"step": schedule.step, "tokens": tokens, "seconds": f"{schedule.seconds:.2f}", **texts}
        self._rows.add(",".join(str(fields.get(name, "")) for name in self._columns))
        self.event("evaluation" if evaluation else "step", **fields)
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, schedule.step)
        if self._on_row:
            self._on_row({"step": schedule.step, "tokens": tokens, "seconds": schedule.seconds, **numbers})

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Record the text that the model generated after a prompt."""
        self._samples.add(json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False))

    def write_losses(self, step: int, ids: np.ndarray, evaluation: Evaluation) -> None:
        """Write the losses of an evaluation of `ids` (T,), in nats: by token and by position. Raises OSError."""
        if self.folder:
            losses = evaluation.token_losses
            arrays = {"ids": ids[: len(losses)].astype(np.uint32), "losses": losses}
            arrays["position_losses"] = evaluation.position_losses
            files.write_file(self.folder / LOSSES, safetensors.save(arrays, {"step": str(step)}))

    def event(self, kind: str, **fields: Any) -> None:
        """Append an event to the log, with the time in UTC."""
        timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._log.add(json.dumps({"ts": timestamp, "event": kind, **fields}, ensure_ascii=False))

    def sync(self) -> None:
        """Make rows and samples durable, before the checkpoint that they lead to. Raises OSError."""
        if self.folder:
            files.sync(self.folder / name for name in (METRICS, SAMPLES))

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()
        if self._board is not None:
            self._board.close()

    def _close(self) -> None:
        for file in self._files:
            file.close()


class _LineWriter:
    """Appends lines to a file. Lines that a full disk refuses are kept, and retried with the next one."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - `close` closes it
        self._pending = b""

    def add(self, line: str) -> None:
        self._pending += line.encode("utf-8", "replace") + b"\n"
        with suppress(OSError):
            self._write()

    def close(self) -> None:
        with self._file:
            self._write()

    def _write(self) -> None:
        while self._pending:
            self._pending = self._pending[self._file.write(self._pending) :]


def _lines_until(path: Path, step: int) -> bytes:
    """Read the rows or samples up to a step. Headers and torn lines are left out."""
    if not path.exists():
        return b""
    lines = path.read_bytes().splitlines(keepends=True)
    matches = [_LINE_STEP.match(line) for line in lines]
    return b"".join(
        line
        for line, match in zip(lines, matches, strict=True)
        if match and int(match[1]) <= step and line.endswith(b"\n")
    )


def _open_board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BadConfig("TensorBoard is not installed", hint=install_command("logging")) from None
    return SummaryWriter(str(folder))


def evaluations(folder: Path) -> list[tuple[int, float]]:
    """Return the step and the validation loss in nats per token of every evaluation so far."""
    return [(int(row["step"]), float(row["val_loss"])) for row in read(folder / METRICS) if row["val_loss"]]


def scores(folder: Path, best: int) -> dict[str, Any]:
    """Return the first, the last and the best scores as fields of a result. `best` is the step of the best one."""
    rows = [row for row in read(folder / METRICS) if row["val_loss"]]
    best_rows = [row for row in rows if int(row["step"]) == best]
    columns = ("val_loss", "bits_per_char", "bits_per_byte")
    values: dict[str, Any] = {name: _number(rows[-1:], name) for name in columns}
    values["first_bits_per_char"] = _number(rows, "bits_per_char")
    return values | {f"best_{name}": _number(best_rows or rows[-1:], name) for name in columns[:2]}


def _number(rows: list[dict[str, str]], column: str) -> float | None:
    """Return a number of the first row, None without rows or without this number."""
    return float(rows[0][column]) if rows and rows[0][column] else None


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows of a metrics.csv."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
