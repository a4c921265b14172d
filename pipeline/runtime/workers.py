"""Work in other processes: one function over a stream of tasks, or one call that may take its process down.

Workers are spawned, never forked: a fork copies the locks of threads that do not exist in the child.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from typing import Any, Generic, NamedTuple, TypeVar

from pipeline.errors import WorkerLost

Task = TypeVar("Task")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def isolated(function: Callable[..., Result], *arguments: object) -> Result:
    """`function(*arguments)` in a process of its own, for C libraries that can take the interpreter down with them.

    Raises what the function raises, and WorkerLost when its process was killed.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=_die_with, initargs=(os.getpid(),))
    try:
        return pool.submit(function, *arguments).result()
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():  # it may take minutes; its draft survives
            worker.terminate()
        raise
    except BrokenProcessPool:
        raise _worker_lost() from None
    finally:
        pool.shutdown()


def stream(function: Callable[[Task], Result], tasks: Iterator[Task], *, jobs: int) -> Generator[tuple[Task, Result]]:
    """`function(task)` for each task, in their order, by this process and up to `jobs - 1` others.

    This one makes the tasks, and does one itself where no other has room for it. At most four a worker are taken
    ahead of the one that is given back, so a slow reader holds up the maker of the tasks, and memory stays flat. A
    worker takes half a second to start, for which small work need not ask. Raises what the function raises in its
    turn, what the maker raises at once, and WorkerLost when a worker was killed; close the stream to leave the rest
    undone.
    """
    with _Crew(function, jobs - 1) as crew:
        for task in tasks:
            crew.take(task)
            while answer := crew.oldest(wait=crew.is_full):
                yield answer
        while answer := crew.oldest(wait=True):
            yield answer


_SLOT = 12 << 20  # bytes: several times what tokenizing sends at once, so that nearly every answer fits too


class _Raised(NamedTuple):
    error: Exception


@dataclass
class _Taken(Generic[Task, Result]):
    """A task, and what became of it: nothing yet, a result in a tuple, or an error."""

    task: Task
    answer: tuple[Result] | _Raised | None = None


class _Crew(Generic[Task, Result]):
    """This process and its workers, and the tasks that were taken and not given back, the oldest first."""

    def __init__(self, function: Callable[[Task], Result], others: int) -> None:
        self._function, self._others = function, others
        self._workers: list[_Worker[Task, Result]] = []
        self._taken: deque[_Taken[Task, Result]] = deque()

    def __enter__(self) -> _Crew[Task, Result]:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()

    @property
    def is_full(self) -> bool:
        return len(self._taken) > 4 * self._others

    def take(self, task: Task) -> None:
        """Give a task to a worker, or do it here."""
        if self._others and not self._workers:
            self._start()
        self._collect(wait=False)
        taken = _Taken[Task, Result](task)
        self._taken.append(taken)
        if not any(worker.give(taken) for worker in self._workers):
            taken.answer = _answer(self._function, task)

    def _start(self) -> None:
        function = bytearray(_SLOT)
        size = _dump(self._function, memoryview(function))
        self._others = self._others if size else 0
        for _ in range(self._others):
            self._workers.append(_Worker(memoryview(function)[:size]))

    def oldest(self, *, wait: bool) -> tuple[Task, Result] | None:
        """The oldest task with its result; None when there is none, or it is not done and not to be waited for."""
        if not self._taken:
            return None
        while (answer := self._taken[0].answer) is None:
            if not wait:
                return None
            self._collect(wait=True)
        if isinstance(answer, _Raised):
            raise answer.error
        return self._taken.popleft().task, answer[0]

    def _collect(self, *, wait: bool) -> None:
        """Take in what the workers have done; with `wait`, at least one answer."""
        for connection in connections.wait([worker.connection for worker in self._workers], None if wait else 0):
            (worker,) = (worker for worker in self._workers if worker.connection is connection)
            if (undone := worker.collect()) is not None:
                undone.answer = _answer(self._function, undone.task)


def _answer(function: Callable[[Task], Result], task: Task) -> tuple[Result] | _Raised:
    try:
        return (function(task),)
    except Exception as error:  # noqa: BLE001 - it is raised again where its turn comes
        return _Raised(error)


class _Worker(Generic[Task, Result]):
    """A process that does tasks: one in its hands, and one that waits for it.

    Tasks and answers travel through memory that both share, and the pipe says only which of its slots and how many
    bytes: a worker that is killed while it fills a pipe would leave its reader waiting for ever.
    """

    def __init__(self, function: memoryview) -> None:
        """Start one; `function` is pickled."""
        context = multiprocessing.get_context("spawn")
        shared = [context.RawArray(ctypes.c_ubyte, _SLOT) for _ in range(2)]
        self.connection, theirs = context.Pipe()
        self._slots = [memoryview(slot).cast("B") for slot in shared]
        # It may be large, and as an argument `start` would wait until the worker has read it.
        self._slots[0][: len(function)] = function
        self._process = context.Process(target=_serve, args=(os.getpid(), len(function), theirs, shared), daemon=True)
        self._process.start()
        theirs.close()
        self._free: list[int] = []  # none before the worker says that it has begun
        self._doing: dict[int, _Taken[Task, Result]] = {}

    def give(self, taken: _Taken[Task, Result]) -> bool:
        """Whether there is room for a task: then it is on its way."""
        if not self._free or (size := _dump(taken.task, self._slots[self._free[-1]])) is None:
            return False
        slot = self._free.pop()
        self._doing[slot] = taken
        with _reported():
            self.connection.send((slot, size))
        return True

    def collect(self) -> _Taken[Task, Result] | None:
        """Take in one answer, which is there. The task, where its answer did not travel."""
        with _reported():
            slot, size = self.connection.recv()
        self._free.append(slot)
        taken = self._doing.pop(slot, None)
        if taken and size is not None:
            try:
                taken.answer = pickle.loads(self._slots[slot][:size])
            except _NO_PICKLE:
                return taken
            return None
        return taken

    def kill(self) -> None:
        """End the process: it has nothing to put in order, and may have been told to ignore a kinder signal."""
        self._process.kill()

    def join(self) -> None:
        self._process.join()
        self.connection.close()


def _serve(
    parent: int, size: int, connection: Connection[Any, Any], shared: Sequence[ctypes.Array[ctypes.c_ubyte]]
) -> None:
    """What a worker does until it is ended: the function in its first slot, for the task in each slot it is told of."""
    _die_with(parent)
    slots = [memoryview(slot).cast("B") for slot in shared]
    function = pickle.loads(slots[0][:size])
    for slot in range(len(slots)):
        connection.send((slot, None))
    while True:
        slot, size = connection.recv()
        connection.send((slot, _dump(_answer(function, pickle.loads(slots[slot][:size])), slots[slot])))


def _dump(found: object, slot: memoryview) -> int | None:
    """Pickle something into a slot: its size, None where that cannot be or it does not fit."""
    out = _Into(slot)
    try:
        pickle.Pickler(out, pickle.HIGHEST_PROTOCOL).dump(found)
    except (_TooLarge, *_NO_PICKLE):
        return None
    return out.size


_NO_PICKLE = (pickle.PickleError, TypeError, AttributeError)  # what is raised for an object that cannot travel


class _TooLarge(Exception):
    """It does not fit into the slot."""


class _Into:
    """A file to write, in memory."""

    def __init__(self, slot: memoryview) -> None:
        self._slot, self.size = slot, 0

    def write(self, data: bytes | memoryview | pickle.PickleBuffer) -> int:
        data = memoryview(data).cast("B")
        end = self.size + len(data)
        if end > len(self._slot):
            raise _TooLarge
        self._slot[self.size : end] = data
        self.size = end
        return len(data)


@contextmanager
def _reported() -> Iterator[None]:
    """What the pipe to a worker raises when that has been killed, as WorkerLost."""
    try:
        yield
    except (EOFError, ConnectionError):
        raise _worker_lost() from None


def default_jobs() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _worker_lost() -> WorkerLost:
    return WorkerLost(
        "a worker process was killed, most likely for lack of memory", hint="try again with a smaller --jobs"
    )


def _die_with(parent: int) -> None:
    """Let this worker end with its parent, however that ends (on Linux), and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before prctl took hold
            os._exit(1)
