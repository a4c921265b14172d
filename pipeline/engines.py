"""Run one function over many units of work, in this process or in several.

A unit says by itself what it reads and where it writes, so the order in which units finish never shows in the bytes.
Workers are spawned, never forked: a fork copies the locks of threads that do not exist in the child.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

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
        _stop_workers()  # a unit may take minutes; its draft survives
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

    The function answers with a small result and with arrays; their bytes, one array after the other, come back as a
    view that is good until the next step. No more than `jobs + 2` tasks are taken ahead of the one that is given
    back, so a slow reader of the results holds up the maker of the tasks, and memory stays flat.

    With one job the work is done here. Else bytes travel both ways through memory that the processes share: a pipe
    costs as much as half of the tokenizing. Raises what the function raises, and WorkerLost when a worker was killed.
    """
    if jobs <= 1:
        for task, data in tasks:
            result, arrays = function(task, memoryview(data))
            yield task, result, memoryview(b"".join(map(_bytes, arrays)))
        return
    context = multiprocessing.get_context("spawn")
    shared = [context.RawArray(ctypes.c_ubyte, _SLOT) for _ in range(jobs + 2)]
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_take_slots, initargs=(os.getpid(), shared))
    slots = [memoryview(slot).cast("B") for slot in shared]
    free, waiting = deque(range(len(slots))), deque[tuple[Unit, int, Future[tuple[Result, int | bytes]]]]()

    def oldest() -> tuple[Unit, int, Result, memoryview]:
        task, slot, future = waiting.popleft()
        result, answer = future.result()
        return task, slot, result, slots[slot][:answer] if isinstance(answer, int) else memoryview(answer)

    try:
        for task, data in tasks:
            if not free:
                done, slot, result, view = oldest()
                yield done, result, view
                free.append(slot)
            slot = free.popleft()
            fits = len(data) <= _SLOT
            if fits:
                slots[slot][: len(data)] = data
            waiting.append((task, slot, pool.submit(_work, function, task, slot, len(data) if fits else data)))
        while waiting:
            done, slot, result, view = oldest()
            yield done, result, view
            free.append(slot)
    except BrokenProcessPool:
        raise _worker_lost() from None
    except BaseException:
        _stop_workers()  # nobody will ask for what they are doing
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_SLOT = 8 << 20  # bytes: four times the piece that tokenizing sends, so that its answer fits too
_slots: list[memoryview] = []  # in a worker: the memory it shares with its parent


def _take_slots(parent: int, shared: Sequence[ctypes.Array[ctypes.c_ubyte]]) -> None:
    _die_with(parent)
    _slots.extend(memoryview(slot).cast("B") for slot in shared)


def _work(
    function: Work[Unit, Result], task: Unit, slot: int, given: int | bytes | bytearray
) -> tuple[Result, int | bytes]:
    """In a worker: do a task whose bytes lie in a slot, and put the answer into the same slot if it fits."""
    result, arrays = function(task, _slots[slot][:given] if isinstance(given, int) else memoryview(given))
    size = sum(array.nbytes for array in arrays)
    if size > _SLOT:
        return result, b"".join(map(_bytes, arrays))
    place = 0
    for array in arrays:
        _slots[slot][place : place + array.nbytes] = _bytes(array)
        place += array.nbytes
    return result, size


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def default_jobs() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _stop_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.terminate()


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
