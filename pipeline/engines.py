"""Run one function over many units of work, in this process or in several.

A unit says by itself what it reads and where it writes, so the order in which units finish never shows in the bytes.
`run` has processes for it, `stream` threads. Processes are spawned, never forked: a fork copies the locks of threads
that do not exist in the child.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from queue import SimpleQueue
from threading import Event, Semaphore
from typing import TypeVar

from pipeline.errors import WorkerLost

Unit = TypeVar("Unit")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Seconds after which a thread asks another for the interpreter's lock. With the usual 5 ms the thread that makes the
# tasks, which lets go of it often, waits for longer than it works.
_SWITCH_INTERVAL = 1e-4


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


def stream(function: Callable[[Unit], Result], tasks: Iterator[Unit], *, jobs: int) -> Generator[tuple[Unit, Result]]:
    """`function(task)` for each task, in their order, by `jobs` threads: for work that lets go of the interpreter's
    lock, as tokenizers and decompressors do.

    Another thread makes the tasks. No more than `jobs + 2` are taken ahead of the one that is given back, so a slow
    reader holds up their maker, and memory stays flat. With one job all is done here. Raises what the function or the
    maker raises, in its turn; close the stream to leave the rest undone.
    """
    if jobs <= 1:
        for task in tasks:
            yield task, function(task)
        return
    line: SimpleQueue[tuple[Unit, Future[Result]] | None] = SimpleQueue()
    room, closing = Semaphore(jobs + 2), Event()
    pool, aside = ThreadPoolExecutor(jobs), ThreadPoolExecutor(1)

    def make() -> None:
        for task in tasks:
            room.acquire()
            if closing.is_set():
                return
            line.put((task, pool.submit(function, task)))

    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        maker = aside.submit(make)
        maker.add_done_callback(lambda _: line.put(None))
        while entry := line.get():
            task, future = entry
            yield task, future.result()
            room.release()
        maker.result()
    finally:
        closing.set()
        room.release()
        aside.shutdown()
        pool.shutdown(cancel_futures=True)
        sys.setswitchinterval(switch_interval)


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
