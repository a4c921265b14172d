"""What a training leaves to read: `metrics.csv`, a row for each look at it; `log.jsonl`, all that happened."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

from model.evaluate import Evaluation
from model.schedule import Schedule
from pipeline.errors import BadConfig

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


class Metrics:
    """Writes both files as things happen. A resumed run goes on after the row of the step that it resumes from.

    `board` writes TensorBoard's events too, into `tensorboard/` beside them. Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None, step: int = 0, *, board: bool = False) -> None:
        self.folder = folder
        path, log = (folder / name if folder else Path(os.devnull) for name in ("metrics.csv", "log.jsonl"))
        kept = [row for row in read(path) if int(row["step"]) <= step] if step and path.exists() else []
        self._file = open(path, "w", encoding="utf-8", newline="")  # noqa: SIM115 - closed in __exit__
        self._writer = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")
        self._writer.writeheader()
        self._writer.writerows(kept)
        self._log = open(log, "a" if step else "w", encoding="utf-8")  # noqa: SIM115
        self._board = _board(folder / "tensorboard") if board and folder else None

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
        self._writer.writerow(at | row)
        self._file.flush()
        self.event("evaluation" if found else "step", **at, **row)
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, schedule.step)

    def event(self, what: str, **fields: Any) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._log.write(json.dumps({"ts": now, "event": what, **fields}, ensure_ascii=False) + "\n")
        self._log.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self._log.close()
        if self._board is not None:
            self._board.close()


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
