"""Checkpoints of one training: when to save, how many to keep, and what to do with failed or damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from model.config import Preset
from model.runs import checkpoint
from model.runs.checkpoint import CheckpointTensors, TrainState
from model.runs.run import CHECKPOINTS, Report
from model.training.distributed import World
from model.training.metrics import Metrics
from model.training.progress import Every
from pipeline.errors import StorageFailed
from pipeline.store import artifact, files

QUARANTINE = "quarantine"  # in the scratch folder of the draft
_SECONDS = 300.0
_RECENT = 2
_MAX_FAILURES = 3  # in a row
T = TypeVar("T")


def read_on_main(
    world: World, read: Callable[[], tuple[T, CheckpointTensors] | None]
) -> tuple[T, CheckpointTensors] | None:
    """Call `read` in the main process and return its result in all processes.

    Only the main node needs the files. The tensors are sent one by one, so that no process needs twice the memory.
    """
    loaded: tuple[T, CheckpointTensors] | None = None

    def load() -> tuple[T] | None:
        nonlocal loaded
        loaded = read()
        return (loaded[0],) if loaded else None

    head = world.from_main(load)
    if head is None:
        return None
    tensors = loaded[1] if loaded else CheckpointTensors({}, {})
    parts = (tensors.weights, tensors.moments, tensors.average)
    return head[0], CheckpointTensors(*map(world.broadcast_tensors, parts))


class Checkpointer:
    """Saves and loads the checkpoints in the draft of a run. The main process writes, all processes take part.

    The last two and the best checkpoint are kept. `timer` is due every five minutes. With `threaded`, a thread writes
    while training continues, and the methods that read checkpoints wait for it.
    """

    def __init__(self, draft: Path, preset: Preset, world: World, report: Report, *, threaded: bool = False) -> None:
        self.folder = draft / CHECKPOINTS
        self.timer = Every(_SECONDS)
        self._saved_step = -1
        self._quarantine = draft / artifact.SCRATCH / QUARANTINE
        self._preset, self._world, self._report = preset, world, report
        self._failures = 0  # in a row
        self._thread = ThreadPoolExecutor(1, "checkpoint") if threaded else None
        self._writing: tuple[int, Future[OSError | StorageFailed | None]] | None = None

    @property
    def saved_step(self) -> int:
        """Step of the last checkpoint that was saved or loaded, -1 if there is none. A collective."""
        self._wait()
        return self._saved_step

    def load_newest(self, *, best_only: bool = False) -> tuple[TrainState, CheckpointTensors] | None:
        """Load the newest intact checkpoint, or the best, the same in all processes; None if there never was one."""
        self._wait()
        configs = (self._preset.model, self._preset.train)
        newest = read_on_main(
            self._world,
            lambda: checkpoint.load_newest(self.folder, *configs, self._quarantine, self._report, best_only=best_only),
        )
        self._saved_step = newest[0].step if newest else -1
        return newest

    def delete_later(self, step: int) -> None:
        """Delete the checkpoints of later steps, the newest first, so that a killed training can always resume."""
        self._wait()
        if self._world.is_main:
            names = [path.name for path in checkpoint.newest_first(self.folder)]
            earlier = {self.folder / name for name in names if name <= checkpoint.folder_name(step)}
            checkpoint.delete_except(self.folder, {*earlier, None})

    def save(self, state: TrainState, tensors: CheckpointTensors, metrics: Metrics, *, required: bool = False) -> None:
        """Save a checkpoint, after the rows of the metrics that lead to it, and delete those that are not kept.

        If writing fails, report that and continue; the next save tries again. Raises OSError or StorageFailed for the
        third failure in a row, and for any failure of a `required` save. Any other save may write in a thread: its
        `tensors` must not change.
        """
        self._wait()
        if self._thread and not required:
            self._writing = state.step, self._thread.submit(self._write, state, tensors, metrics)
        else:
            self._count(state.step, self._write(state, tensors, metrics), required=required)

    def _write(self, state: TrainState, tensors: CheckpointTensors, metrics: Metrics) -> OSError | StorageFailed | None:
        """Write a checkpoint in the main process, and return the error of the disk, if any."""
        if not self._world.is_main:
            return None
        try:
            metrics.sync()
            checkpoint.save(self.folder, state, tensors)
            recent = checkpoint.newest_first(self.folder)[:_RECENT]
            checkpoint.delete_except(self.folder, {*recent, checkpoint.best(self.folder)})
        except (OSError, StorageFailed) as error:
            files.remove_temporaries(self.folder, recursive=False)
            return error
        return None

    def _wait(self) -> None:
        """Wait for the thread, and handle its failure now. A collective."""
        if self._writing:
            (step, future), self._writing = self._writing, None
            self._count(step, future.result(), required=False)

    def _count(self, step: int, failure: OSError | StorageFailed | None, *, required: bool) -> None:
        if not self._world.any(failure is not None):
            self._failures, self._saved_step = 0, step
            return
        self._failures += 1
        self._report(f"warning: could not save the checkpoint of step {step:,}: {failure}")
        if required or self._failures >= _MAX_FAILURES:
            raise failure or StorageFailed(
                "the main process could not save a checkpoint", hint="see the error of that process"
            )
