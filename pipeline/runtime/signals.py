"""Signals as stop requests: the first one sets an event, the second one ends the process at once.

A training stops on SIGINT, SIGTERM and SIGUSR1, which batch systems send before a time limit; every command stops on
SIGTERM. The two may be nested: SIGTERM then sets the outer event too.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_on_signals(stopped: threading.Event | None = None) -> Iterator[threading.Event]:
    """Yield `stopped` (or a new event), which the first SIGINT, SIGTERM or SIGUSR1 sets."""
    with _set_by_signal(stopped or threading.Event(), (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)) as event:
        yield event


@contextmanager
def stop_on_sigterm(stop: threading.Event) -> Iterator[None]:
    """Set `stop` on the first SIGTERM."""
    with _set_by_signal(stop, (signal.SIGTERM,)):
        yield


@contextmanager
def _set_by_signal(event: threading.Event, signals: Sequence[signal.Signals]) -> Iterator[threading.Event]:
    """Yield `event`, set by the first of `signals`. The old handlers come back when the block ends.

    Does nothing outside the main thread: Python allows signal handlers only there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in signals}

    def on_signal(number: int, frame: object) -> None:
        if event.is_set():
            # No cleanup is needed: unfinished files have no final names yet, and workers end with this process.
            os._exit(128 + number)
        if number == signal.SIGTERM and callable(outer := previous[number]):
            outer(number, frame)  # an outer command, such as a refresh, must stop as well
        event.set()

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
