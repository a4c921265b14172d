"""Engines of tests: threads of this process, and a new process for each call, which a test can kill."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pipeline.runtime.engines import OpenEngine
from pipeline.runtime.spread import Engine


class Threads(ThreadPoolExecutor):
    """A standard executor is an engine if it says how many calls it runs at once."""

    cores = 1

    def __init__(self, slots: int = 2) -> None:
        super().__init__(slots)
        self.slots = slots


class Processes:
    """Runs each call in a process of its own, as a cluster would on a node."""

    cores = 1

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots
        self.submitted = 0

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        self.submitted += 1
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        future = pool.submit(call, *arguments)
        pool.shutdown(wait=False)
        return future


def opening(engine: Engine) -> OpenEngine:
    """Return the function that opens an engine which is open already."""

    @contextmanager
    def open_engine() -> Iterator[Engine]:
        yield engine

    return open_engine
