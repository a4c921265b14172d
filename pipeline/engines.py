"""Run one function over many units of work, in this process or in several.

A unit says by itself what it reads and where it writes, so the order in which units finish never shows in the bytes.
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
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from pipeline.errors import WorkerLost

Unit = TypeVar("Unit")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(
    function: Callable[[Unit], Result],
    units: Sequence[Unit],
    *,
    jobs: int,
    isolated: bool = False,
    done: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """`[function(unit) for unit in units]`, by up to `jobs` processes; `done` hears of each result as it comes.

    With one job or one unit the work is done here, unless `isolated` asks for a process of its own (C libraries
    that can take the interpreter down with them). Raises what the function raises, and WorkerLost when a worker
    was killed.
    """
    if (jobs <= 1 or len(units) <= 1) and not isolated:
        return [_told(function(unit), done) for unit in units]
    context = multiprocessing.get_context("spawn")
    workers = max(1, min(jobs, len(units)))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with, initargs=(os.getpid(),))
    try:
        futures = [pool.submit(function, unit) for unit in units]
        for future in as_completed(futures):
            done(future.result())
        return [future.result() for future in futures]
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():  # a unit may take minutes; its draft survives
            worker.terminate()
        raise
    except BrokenProcessPool:
        raise _worker_lost() from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


Work = Callable[[Unit, memoryview], tuple[Result, Sequence[np.ndarray]]]


def stream(
    function: Work[Unit, Result], tasks: Iterator[tuple[Unit, bytes | bytearray]], *, jobs: int
) -> Generator[tuple[Unit, Result, memoryview]]:
    """`function(task, data)` for each task and its bytes, in their order, by `jobs` processes.

    The function answers with a small result and with arrays, which must not be views of its data; the bytes of the
    arrays, one after the other, come back as a view that is good until the next step. No more than `jobs + 2` tasks
    are taken ahead of the one that is given back, so a slow reader holds up the maker of the tasks, and memory stays
    flat.

    With one job the work is done here. Else bytes travel both ways through memory that the processes share: a pipe
    costs as much as half of the tokenizing, and a worker that dies while it fills one leaves its reader waiting for
    ever. What does not fit there is done here. Raises what the function raises, and WorkerLost when a worker was
    killed.
    """
    if jobs <= 1:
        for task, data in tasks:
            yield task, *_here(function, task, memoryview(data))
        return
    context = multiprocessing.get_context("spawn")
    shared = [context.RawArray(ctypes.c_ubyte, _SLOT) for _ in range(jobs + 2)]
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_take_slots, initargs=(os.getpid(), shared))
    slots = [memoryview(slot).cast("B") for slot in shared]
    free, waiting = deque(range(len(slots))), deque[_Waiting[Unit]]()
    try:
        for task, data in tasks:
            if not free:
                yield _oldest(function, waiting[0], slots)
                free.append(waiting.popleft().slot)
            slot = free.popleft()
            future = None
            if len(data) <= _SLOT:
                slots[slot][: len(data)] = data
                future = pool.submit(_work, function, task, slot, len(data))
            waiting.append(_Waiting(task, slot, data, future))
        while waiting:
            yield _oldest(function, waiting[0], slots)
            waiting.popleft()
    except BrokenProcessPool:
        raise _worker_lost() from None
    finally:
        for worker in multiprocessing.active_children():  # one that died with the lock of the queue would hold up
            worker.terminate()  # the others, and so the shutdown, for ever
        pool.shutdown(wait=True, cancel_futures=True)


_SLOT = 8 << 20  # bytes: four times the piece that tokenizing sends, so that nearly every answer fits too
_slots: list[memoryview] = []  # in a worker: the memory it shares with its parent


@dataclass(frozen=True)
class _Waiting(Generic[Unit]):
    """A task that was taken, and where its bytes and its answer lie; without a future it is to be done here."""

    task: Unit
    slot: int
    data: bytes | bytearray
    future: Future[tuple[int, int] | None] | None


def _oldest(
    function: Work[Unit, Result], taken: _Waiting[Unit], slots: Sequence[memoryview]
) -> tuple[Unit, Result, memoryview]:
    sizes = taken.future.result() if taken.future else None
    if sizes is None:
        return taken.task, *_here(function, taken.task, memoryview(taken.data))
    answer, end = sizes
    slot = slots[taken.slot]
    return taken.task, pickle.loads(slot[answer:end]), slot[:answer]


def _here(function: Work[Unit, Result], task: Unit, data: memoryview) -> tuple[Result, memoryview]:
    result, arrays = function(task, data)
    return result, memoryview(b"".join(map(_bytes, arrays)))


def _take_slots(parent: int, shared: Sequence[ctypes.Array[ctypes.c_ubyte]]) -> None:
    _die_with(parent)
    _slots.extend(memoryview(slot).cast("B") for slot in shared)


def _work(function: Work[Unit, Result], task: Unit, slot: int, size: int) -> tuple[int, int] | None:
    """In a worker: do the task whose bytes lie in a slot. Its arrays and then its result, pickled, take their place:
    where the arrays and where the result end, or None when they do not fit."""
    result, arrays = function(task, _slots[slot][:size])
    parts = [*map(_bytes, arrays), memoryview(pickle.dumps(result))]
    end = sum(map(len, parts))
    if end > _SLOT:
        return None
    place = 0
    for part in parts:
        _slots[slot][place : place + len(part)] = part
        place += len(part)
    return end - len(parts[-1]), end


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def default_jobs() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _worker_lost() -> WorkerLost:
    return WorkerLost(
        "a worker process was killed, most likely for lack of memory", hint="try again with a smaller --jobs"
    )


def _told(result: Result, done: Callable[[Result], None]) -> Result:
    done(result)
    return result


def _die_with(parent: int) -> None:
    """Let this worker end with its parent, however that ends (on Linux), and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before prctl took hold
            os._exit(1)
