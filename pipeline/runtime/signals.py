"""Signals that end a training at its next step: SIGINT, SIGTERM, and SIGUSR1, which batch systems send before a limit.

The first one asks; the second one ends the process at once, as it would have without us.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def asked(stopped: threading.Event | None = None) -> Iterator[threading.Event]:
    """The event, or a new one, which the first signal sets. Outside the main thread no signal arrives."""
    stopped = stopped or threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

    def stop(number: int, frame: object) -> None:
        if stopped.is_set():
            os._exit(128 + number)  # a checkpoint that is half written has not its name yet
        if number == signal.SIGTERM and callable(terminate := before[number]):
            terminate(number, frame)  # so that whoever waits above, a refresh, ends too
        stopped.set()

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stopped_by_sigterm(stop: threading.Event) -> Iterator[None]:
    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)  # whatever is half done is as after a kill, and workers end with this process
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
