"""Worker processes: an ordered parallel map over a stream of tasks, and a single call isolated in its own process.

Workers are spawned, never forked: a fork copies the locks of threads that do not exist in the child.

Streams do not use ProcessPoolExecutor: it sends data through a pipe, which is slower (3 instead of 0.4 ms/MiB, see
benchmarks/NOTES.md) and leaves the reader waiting forever when a worker is killed in the middle of a write. Here this
process and each `WorkerProcess` share two slots of memory. Tasks and outcomes are pickled into a slot; the pipe
carries only the slot's number and the size in bytes.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import connection as connections
from multiprocessing import reduction
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, Generic, NamedTuple, TypeVar

from pipeline.errors import TryAgain, WorkerLost
from pipeline.runtime.signals import current_stop

Task = TypeVar("Task")
Result = TypeVar("Result")

_SLOT_BYTES = 12 << 20  # several times the size of a tokenizing task, so that nearly every result fits too
_TASKS_PER_WORKER = 4  # maximum number of tasks that are unfinished or whose result is not yet yielded
_STOP_INTERVAL = 0.1  # seconds between two checks of the stop event
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Python's default is to search for reference cycles after every 700 new objects. Lists of documents form no cycles.
_GC_THRESHOLDS = (100_000, 50, 100)
_PICKLE_ERRORS = (pickle.PickleError, TypeError, AttributeError)  # raised for an object that cannot be pickled


def default_jobs() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_isolated(function: Callable[..., Result], *arguments: object, stop: threading.Event | None = None) -> Result:
    """Return `function(*arguments)`, run in its own process. For C libraries that can crash or that ignore signals.

    The process is killed when `stop` is set (None: the event that SIGTERM sets) and on Ctrl-C. Raises what the function
    raises, TryAgain after a stop, and WorkerLost when the process was killed by something else.
    """
    stop = stop or current_stop()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_isolated_main, args=(os.getpid(), sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        while not receiver.poll(_STOP_INTERVAL):
            if stop.is_set():
                raise _stopped()
        with _as_worker_lost():
            outcome: Returned | Raised = receiver.recv()
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(outcome, Raised):
        raise outcome.error
    result: Result = outcome.result
    return result


def _isolated_main(
    parent: int, sender: Connection[Any, Any], function: Callable[..., Any], arguments: tuple[object, ...]
) -> None:
    """Send the outcome of one call to the parent."""
    _end_with_parent(parent)
    sender.send(run_task(lambda arguments: function(*arguments), arguments))


def map_ordered(
    function: Callable[[Task], Result], tasks: Iterator[Task], *, jobs: int
) -> Generator[tuple[Task, Result]]:
    """Yield `(task, function(task))` in task order, computed by this process and up to `jobs - 1` workers.

    This process reads `tasks` and runs a task itself when no worker has room for it. It reads at most four tasks per
    worker ahead of the last one yielded, so a slow consumer slows the producer and memory stays bounded. A worker
    takes half a second to start, so small inputs should use one job. Close the generator to abandon the remaining
    tasks.

    Raises an error of `function` when its task is due, an error of `tasks` at once, and WorkerLost when a worker was
    killed.
    """
    with rare_collections(), WorkerPool(function, jobs - 1) as pool:
        for task in tasks:
            pool.submit(task)
            while result := pool.next_result(wait=pool.is_full):
                yield result
        while result := pool.next_result(wait=True):
            yield result


@contextmanager
def rare_collections() -> Iterator[None]:
    """Run Python's search for reference cycles rarely within the block."""
    thresholds = gc.get_threshold()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


class Returned(NamedTuple):
    """Outcome of a task whose function returned."""

    result: Any


class Raised(NamedTuple):
    """Outcome of a task whose function raised."""

    error: Exception


@dataclass
class Pending(Generic[Task]):
    """A task that was submitted and not yet yielded. `outcome` is None until it has run."""

    task: Task
    outcome: Returned | Raised | None = None


class WorkerPool(Generic[Task, Result]):
    """This process and its workers, with a queue of pending tasks, oldest first."""

    def __init__(self, function: Callable[[Task], Result], worker_count: int) -> None:
        self._function, self._worker_count = function, worker_count
        self._workers: list[WorkerProcess[Task]] = []
        self._queue: deque[Pending[Task]] = deque()

    def __enter__(self) -> WorkerPool[Task, Result]:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()

    @property
    def is_full(self) -> bool:
        return len(self._queue) > _TASKS_PER_WORKER * self._worker_count

    def submit(self, task: Task) -> None:
        """Send a task to a worker that has room for it, or run it here."""
        if self._worker_count and not self._workers:
            self._start_workers()
        self._receive(wait=False)
        pending = Pending(task)
        self._queue.append(pending)
        if not any(worker.send(pending) for worker in self._workers):
            pending.outcome = run_task(self._function, task)

    def _start_workers(self) -> None:
        function = bytearray(_SLOT_BYTES)
        size = _dump(self._function, memoryview(function))
        if size is None:  # the function cannot be sent, so this process works alone
            self._worker_count = 0
        for _ in range(self._worker_count):
            self._workers.append(WorkerProcess(memoryview(function)[:size]))

    def next_result(self, *, wait: bool) -> tuple[Task, Result] | None:
        """Return the oldest task with its result, or raise its error.

        Returns None when the queue is empty, or when the task has not run yet and `wait` is False.
        """
        if not self._queue:
            return None
        while (outcome := self._queue[0].outcome) is None:
            if not wait:
                return None
            self._receive(wait=True)
        if isinstance(outcome, Raised):
            raise outcome.error
        return self._queue.popleft().task, outcome.result

    def _receive(self, *, wait: bool) -> None:
        """Receive the outcomes that workers have ready; with `wait`, at least one."""
        ready = connections.wait([worker.connection for worker in self._workers], None if wait else 0)
        for worker in self._workers:
            if worker.connection in ready and (unsent := worker.receive()) is not None:
                unsent.outcome = run_task(self._function, unsent.task)


def run_task(function: Callable[[Task], Any], task: Task) -> Returned | Raised:
    """Return the outcome of `function(task)`."""
    try:
        return Returned(function(task))
    except Exception as error:  # noqa: BLE001 - raised again when the task is due
        return Raised(error)


class WorkerProcess(Generic[Task]):
    """A worker process with one running and one queued task, each in a slot of shared memory."""

    def __init__(self, function: memoryview) -> None:
        """Start a process that runs the pickled `function`."""
        context = multiprocessing.get_context("spawn")
        memory = SharedMemory(2 * _SLOT_BYTES)
        self.connection, worker_end = context.Pipe()
        self._slots = memory.slots()
        # The function may be large. As an argument of the process, it would block `start` until the worker read it.
        self._slots[0][: len(function)] = function
        arguments = (os.getpid(), len(function), worker_end, memory)
        self._process = context.Process(target=_worker_main, args=arguments, daemon=True)
        with nullcontext() if b"__main__" in bytes(function) else _hidden_main():  # the pickle may need that module
            self._process.start()
        worker_end.close()
        memory.close_file()
        self._free_slots: list[int] = []  # the worker announces its slots once it has started
        self._pending: dict[int, Pending[Task]] = {}  # by slot

    def send(self, pending: Pending[Task]) -> bool:
        """Send a task to the worker. Return False if it has no free slot, or the task does not fit into one."""
        if not self._free_slots or (size := _dump(pending.task, self._slots[self._free_slots[-1]])) is None:
            return False
        slot = self._free_slots.pop()
        self._pending[slot] = pending
        with _as_worker_lost():
            self.connection.send((slot, size))
        return True

    def receive(self) -> Pending[Task] | None:
        """Receive one message: a free slot, with the outcome of its task.

        Returns the task instead if its outcome could not be pickled or did not fit into the slot.
        """
        with _as_worker_lost():
            slot, size = self.connection.recv()
        self._free_slots.append(slot)
        pending = self._pending.pop(slot, None)
        if pending is None or size is None:
            return pending
        try:
            pending.outcome = pickle.loads(self._slots[slot][:size])
        except _PICKLE_ERRORS:
            return pending
        return None

    def kill(self) -> None:
        """Kill the process. It has nothing to clean up, and ignores SIGTERM."""
        self._process.kill()

    def join(self) -> None:
        self._process.join()
        self.connection.close()


class SharedMemory:
    """Memory of two slots that is shared with a child process, as a file without a name.

    The arrays of multiprocessing are sparse files in /dev/shm or TMPDIR: if these are full, the first write into an
    array kills the process (SIGBUS). On Linux this file is in no folder; elsewhere all of it is written at once, which
    raises OSError.
    """

    def __init__(self, size: int) -> None:
        self._file, self._size = _unnamed_file(size), size
        self._map = mmap.mmap(self._file, size)

    def slots(self) -> list[memoryview]:
        view, half = memoryview(self._map), self._size // 2
        return [view[:half], view[half:]]

    def close_file(self) -> None:
        """Close the file once the child has started; the memory stays."""
        os.close(self._file)

    def __getstate__(self) -> tuple[int, Any]:
        return self._size, reduction.DupFd(self._file)

    def __setstate__(self, state: tuple[int, Any]) -> None:
        self._size, self._file = state[0], state[1].detach()
        self._map = mmap.mmap(self._file, self._size)
        self.close_file()


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Start processes in this block that do not import the main module: no worker needs the command line."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _unnamed_file(size: int) -> int:
    """Return the descriptor of a file of `size` zeros."""
    if sys.platform == "linux":
        file = os.memfd_create("inkstone")
        os.ftruncate(file, size)
        return file
    with tempfile.TemporaryFile() as written:
        written.write(bytes(size))
        written.flush()
        return os.dup(written.fileno())


def _worker_main(parent: int, function_size: int, connection: Connection[Any, Any], memory: SharedMemory) -> None:
    """Run a worker: unpickle the function from slot 0, then apply it to each task received, until killed."""
    _end_with_parent(parent)
    gc.set_threshold(*_GC_THRESHOLDS)
    slots = memory.slots()
    function = pickle.loads(slots[0][:function_size])
    for slot in range(len(slots)):
        connection.send((slot, None))
    while True:
        slot, size = connection.recv()
        outcome = run_task(function, pickle.loads(slots[slot][:size]))
        connection.send((slot, _dump(outcome, slots[slot])))


def _dump(value: object, slot: memoryview) -> int | None:
    """Pickle `value` into `slot`. Return its size in bytes, or None if it cannot be pickled or does not fit."""
    writer = SlotWriter(slot)
    try:
        pickle.Pickler(writer, pickle.HIGHEST_PROTOCOL).dump(value)
    except (SlotFull, *_PICKLE_ERRORS):
        return None
    return writer.size


class SlotFull(Exception):
    """A pickle does not fit into its slot."""


class SlotWriter:
    """A write-only file in a fixed piece of memory."""

    def __init__(self, slot: memoryview) -> None:
        self._slot, self.size = slot, 0

    def write(self, data: bytes | memoryview | pickle.PickleBuffer) -> int:
        data = memoryview(data).cast("B")
        end = self.size + len(data)
        if end > len(self._slot):
            raise SlotFull
        self._slot[self.size : end] = data
        self.size = end
        return len(data)


@contextmanager
def _as_worker_lost() -> Iterator[None]:
    """Turn the errors of a pipe to a killed worker into WorkerLost, or into TryAgain if this command must stop.

    A signal to the process group also ends a worker that has just started.
    """
    try:
        yield
    except (EOFError, ConnectionError):
        if current_stop().is_set():
            raise _stopped() from None
        raise WorkerLost(
            "a worker process was killed, most likely for lack of memory", hint="try again with a smaller --jobs"
        ) from None


def _stopped() -> TryAgain:
    return TryAgain("stopped by a signal; nothing was published", hint="run the same command again")


def _end_with_parent(parent: int) -> None:
    """Make this process die with its parent, however the parent ends (Linux only).

    Signals to the process group are for the parent, which ends its workers.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before prctl took effect
            os._exit(1)
