"""What a training leaves to read: `metrics.csv`, a row for each look at it; `samples.jsonl`, how it writes at each
evaluation; `log.jsonl`, all that happened.

Rows and samples are those of the steps that count: what a training did after the checkpoint that it goes on from is
cut off, so that a run that was killed leaves the rows of one that was not.
"""

from __future__ import annotations

import csv
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from model.training.evaluate import Evaluation
from model.training.lr_schedule import Schedule
from pipeline.errors import BadConfig
from pipeline.store import files

METRICS, SAMPLES, LOG = "metrics.csv", "samples.jsonl", "log.jsonl"

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
)


_STEP_OF = re.compile(rb'(?:{"step": ?)?(\d+),')  # at the beginning of a row, and of a sample


class Metrics:
    """Writes these files as things happen, after the rows of the steps up to `step`: -1 for a training that begins.

    `board` writes TensorBoard's events too, into `tensorboard/` beside them. Without a folder nothing is kept. A
    context; what a full disk never took is an OSError at its end.
    """

    def __init__(self, folder: Path | None, step: int = -1, *, board: bool = False) -> None:
        self.folder = folder
        self._board = _board(folder / "tensorboard") if board and folder else None
        if folder and step < 0:
            (folder / LOG).unlink(missing_ok=True)
        self._open(step)

    def _open(self, step: int) -> None:
        for name, first in ((METRICS, ",".join(COLUMNS) + "\n"), (SAMPLES, "")):
            if self.folder:
                files.write_file(self.folder / name, first.encode() + _lines_until(self.folder / name, step))
        paths = (self.folder / name if self.folder else Path(os.devnull) for name in (METRICS, SAMPLES, LOG))
        self._rows, self._samples, self._log = self._files = tuple(map(_Lines, paths))

    def back_to(self, step: int) -> None:
        """Forget the rows and the samples of later steps."""
        self._close()
        self._open(step)

    def add(
        self,
        schedule: Schedule,
        tokens: int,
        rate: float,
        loss: float | None,
        norm: float | None,
        found: Evaluation | None = None,
    ) -> None:
        """One row: `loss` in nats per token and `norm` of the gradient are means since the last row."""
        values = {"learning_rate": rate, "train_loss": loss, "gradient_norm": norm}
        if found:
            values |= {
                "val_loss": found.loss,
                "bits_per_char": found.bits_per_char,
                "bits_per_byte": found.bits_per_byte,
            }
        known = {name: value for name, value in values.items() if value is not None}
        row = {name: f"{value:.6g}" if name == "learning_rate" else f"{value:.5f}" for name, value in known.items()}
        at = {"step": schedule.step, "tokens": tokens, "seconds": f"{schedule.seconds:.2f}"}
        fields = at | row
        self._rows.add(",".join(str(fields.get(name, "")) for name in COLUMNS))
        self.event("evaluation" if found else "step", **fields)
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, schedule.step)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """How the model goes on after a prompt at that step."""
        self._samples.add(json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False))

    def event(self, what: str, **fields: Any) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._log.add(json.dumps({"ts": now, "event": what, **fields}, ensure_ascii=False))

    def sync(self) -> None:
        """Make durable what was written, before a checkpoint that these rows lead to. Raises OSError."""
        if self.folder:
            files.sync(self.folder / name for name in (METRICS, SAMPLES))

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()
        if self._board is not None:
            self._board.close()

    def _close(self) -> None:
        for each in self._files:
            each.close()


class _Lines:
    """A file of lines that grows. What a full disk does not take waits, and is tried again with the next line."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by whoever opened it
        self._waiting = b""

    def add(self, line: str) -> None:
        self._waiting += line.encode("utf-8", "replace") + b"\n"
        with suppress(OSError):
            self._write()

    def close(self) -> None:
        with self._file:
            self._write()

    def _write(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]


def _lines_until(path: Path, step: int) -> bytes:
    """The rows or samples up to a step, in their order. Whatever is torn, or no row, is left out."""
    if not path.exists():
        return b""
    lines = path.read_bytes().splitlines(keepends=True)
    starts = [_STEP_OF.match(line) for line in lines]
    return b"".join(
        line
        for line, start in zip(lines, starts, strict=True)
        if start and int(start[1]) <= step and line.endswith(b"\n")
    )


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BadConfig("TensorBoard is not installed", hint="pip install 'inkstone[logging]'") from None
    return SummaryWriter(str(folder))


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv."""
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))
