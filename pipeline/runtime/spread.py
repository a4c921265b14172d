"""Spread tasks over an engine: calls that run in other processes, on this machine or on the nodes of a cluster.

An engine has the `submit` of `concurrent.futures.Executor`, so thread and process pools are engines too. Only tasks and
the return values of calls are sent through an engine, and both are small: the call reads and writes files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from pipeline.errors import BadData, InkstoneError, TryAgain, WorkerLost
from pipeline.runtime.signals import current_stop
from pipeline.runtime.terminal import counted
from pipeline.runtime.workers import Raised, Returned, run_task

_POLL = 0.5  # seconds between two checks of the stop event
_CHECKS = 30  # checks of the progress of a task before its deadline
_LOSSES = 3  # lost workers of one task, without progress in between, after which the command ends


class Engine(Protocol):
    """Runs calls elsewhere: `slots` calls at once, each with `cores` processes."""

    cores: int

    @property
    def slots(self) -> int: ...

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Return the future result of `call(*arguments)`. Its exceptions are those of the engine.

        An InkstoneError ends the command; any other exception is a lost worker.
        """


def describe(engine: Engine, count: int, plural: str) -> str:
    """Describe the work of an engine: "40 files on 8 slots of 4 cores"."""
    return f"{counted(count, plural)} on {counted(engine.slots, 'slots')} of {counted(engine.cores, 'cores')}"


class TaskProgress(NamedTuple):
    """Progress of a task: the number of its finished units, and the number of units that are begun but not finished."""

    finished: int
    begun: int


class SpreadTask(Protocol):
    """A task that any node can do, and repeat. The largest `size`, in bytes, is done first; `name` is for messages."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def progress(self) -> TaskProgress:
        """Return the progress that the files of this task show."""


Task = TypeVar("Task", bound=SpreadTask)
Result = TypeVar("Result")


def spread(
    engine: Engine, call: Callable[[Task], Result], tasks: Sequence[Task], *, deadline: float = 900.0
) -> Iterator[tuple[Task, Result]]:
    """Yield `(task, call(task))` of all tasks as they end, computed by an engine.

    The largest tasks come first, and at most two per slot are submitted at a time. A task is submitted again if its
    worker was lost, or if its progress stopped for `deadline` seconds after it began.

    Raises the BadData of the first task in order that has one, after all tasks before it; another error of `call` at
    once; WorkerLost for a task that was lost three times without finishing a unit in between; TryAgain after SIGTERM.
    """
    run = _Spread(engine, call, tasks, deadline)
    try:
        yield from run.results()
    finally:
        run.cancel()


@dataclass
class _Attempt:
    """A submitted task, by its index, with its progress at the submission and at the last check."""

    index: int
    first: TaskProgress
    last: TaskProgress
    changed: float = field(default_factory=time.monotonic)


class _Spread(Generic[Task, Result]):
    """The state of one `spread`: tasks that wait (the largest last), attempts that run, and indices that are done."""

    def __init__(self, engine: Engine, call: Callable[[Task], Result], tasks: Sequence[Task], deadline: float) -> None:
        self._engine, self._call, self._tasks, self._deadline = engine, call, tasks, deadline
        self._waiting = sorted(range(len(tasks)), key=lambda index: (tasks[index].size, -index))
        self._attempts: dict[Future[Any], _Attempt] = {}
        self._finished: set[int] = set()
        self._losses: dict[int, int] = {}
        self._fault: BadData | None = None
        self._needed = len(tasks)  # tasks before the first fault
        self._next_check = 0.0

    def results(self) -> Iterator[tuple[Task, Result]]:
        stop = current_stop()
        while self._unfinished():
            if stop.is_set():
                raise TryAgain(
                    "stopped by a signal; finished units are kept", hint="run the same command again to resume"
                )
            self._submit_waiting()
            for future in wait(self._attempts, _POLL, FIRST_COMPLETED).done:
                yield from self._received(future)
            self._resubmit_late()
        if self._fault:
            raise self._fault

    def _unfinished(self) -> bool:
        return any(index not in self._finished for index in range(self._needed))

    def _submit_waiting(self) -> None:
        while self._waiting and len(self._attempts) < max(2 * self._engine.slots, 1):
            self._submit(self._waiting.pop())

    def _submit(self, index: int) -> None:
        progress = self._tasks[index].progress()
        attempt = _Attempt(index, progress, progress)
        try:
            future = self._engine.submit(run_task, self._call, self._tasks[index])
        except Exception as error:  # noqa: BLE001 - of the engine, such as a pool that broke
            self._lose(attempt, error)
        else:
            self._attempts[future] = attempt

    def _received(self, future: Future[Any]) -> Iterator[tuple[Task, Result]]:
        """Take the outcome of a finished attempt; another outcome of a finished task is ignored."""
        attempt = self._attempts.pop(future)
        if attempt.index in self._finished or attempt.index >= self._needed:
            return
        try:
            outcome: Returned | Raised = future.result()
        except InkstoneError:  # the engine cannot do what it should
            raise
        except Exception as error:  # noqa: BLE001 - of the engine: the outcome holds those of the call
            self._lose(attempt, error)
            return
        if isinstance(outcome, Returned):
            self._finished.add(attempt.index)
            yield self._tasks[attempt.index], outcome.result
        elif isinstance(outcome.error, BadData):
            self._fault, self._needed = outcome.error, attempt.index
            self._waiting = [index for index in self._waiting if index < self._needed]
        else:
            raise outcome.error

    def _lose(self, attempt: _Attempt, error: Exception) -> None:
        """Submit a lost task again, unless another attempt at it runs. Raises WorkerLost for the last loss."""
        index, task = attempt.index, self._tasks[attempt.index]
        has_progress = task.progress().finished > attempt.first.finished
        self._losses[index] = 1 if has_progress else self._losses.get(index, 0) + 1
        if self._losses[index] >= _LOSSES:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise WorkerLost(
                f"{task.name}: its worker was lost {_LOSSES} times without finishing a unit; {reason}",
                hint="it may need more memory: use fewer --jobs, or split the file; finished units are kept",
            ) from None
        if not any(other.index == index for other in self._attempts.values()):
            self._waiting.append(index)

    def _resubmit_late(self) -> None:
        """Submit tasks again whose progress stopped, once the deadline has passed."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + self._deadline / _CHECKS
        for attempt in list(self._attempts.values()):
            progress = self._tasks[attempt.index].progress()
            if progress != attempt.last:
                attempt.last, attempt.changed = progress, now
            elif progress != attempt.first and now - attempt.changed > self._deadline:
                attempt.changed = now
                self._submit(attempt.index)

    def cancel(self) -> None:
        """Cancel the attempts that are not needed any more."""
        for future in self._attempts:
            future.cancel()
