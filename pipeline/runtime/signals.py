"""Signals as stop requests: the first one sets an event, the second one ends the process at once.

A training stops on SIGINT, SIGTERM and SIGUSR1, which batch systems send before a time limit; every command stops on
SIGTERM. The two may be nested: SIGTERM then sets the outer event too.

A training has no time limit for saving. Any other command has `GRACE` seconds after SIGTERM to reach a safe point; then
`Terminated` is raised in the main thread, even while it waits, as Ctrl-C raises KeyboardInterrupt.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.errors import Terminated

GRACE = 1.5  # seconds; with the end of the process, less than 3
_REPEAT = 0.5  # seconds until Terminated is raised again; Python discards an exception raised inside a destructor


@contextmanager
def stop_on_signals(stopped: threading.Event | None = None) -> Iterator[threading.Event]:
    """Yield `stopped` (or a new event), which the first SIGINT, SIGTERM or SIGUSR1 sets."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    with _set_by_signal(stopped or threading.Event(), signals, grace=None) as event:
        yield event


@contextmanager
def stop_on_sigterm(stop: threading.Event, grace: float = GRACE) -> Iterator[None]:
    """Set `stop` on the first SIGTERM. Raises Terminated if the block has not ended `grace` seconds later."""
    with _set_by_signal(stop, (signal.SIGTERM,), grace):
        yield


def current_stop() -> threading.Event:
    """Return the event that the next SIGTERM sets; a new one if SIGTERM sets none."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler.event if isinstance(handler, _Handler) else threading.Event()


@contextmanager
def _set_by_signal(
    event: threading.Event, signals: Sequence[signal.Signals], grace: float | None
) -> Iterator[threading.Event]:
    """Yield `event`, which the first of `signals` sets. The previous handlers are restored when the block ends.

    Does nothing outside the main thread: Python allows signal handlers only there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    handler = _Handler(event, {number: signal.getsignal(number) for number in signals}, grace)
    for number in signals:
        signal.signal(number, handler)
    try:
        yield event
    except BaseException:
        handler.uninstall()
        handler.start_outer_grace()
        raise
    handler.uninstall()  # without outer grace: a training that ended as planned is published despite the signal


class _Handler:
    """Handler of several signals. `previous` are the handlers that it replaces."""

    def __init__(self, event: threading.Event, previous: dict[signal.Signals, Any], grace: float | None) -> None:
        self.event, self._previous, self._grace = event, previous, grace
        self._previous_alarm: Any = None

    def __call__(self, number: int, frame: object) -> None:
        if self.event.is_set():
            # No cleanup is needed: unfinished files have no final names yet, and workers end with this process.
            os._exit(128 + number)
        self._request(number, frame)
        self._start_grace()

    def _request(self, number: int, frame: object) -> None:
        """Set the event, and that of an outer command such as a refresh, which must stop too."""
        outer = self._previous.get(signal.SIGTERM) if number == signal.SIGTERM else None
        if isinstance(outer, _Handler):
            outer._request(number, frame)
        elif callable(outer):
            outer(number, frame)
        self.event.set()

    def _start_grace(self) -> None:
        if self._grace is not None and self._previous_alarm is None:
            self._previous_alarm = signal.signal(signal.SIGALRM, _terminate)
            signal.setitimer(signal.ITIMER_REAL, self._grace, _REPEAT)

    def uninstall(self) -> None:
        if self._previous_alarm is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._previous_alarm)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def start_outer_grace(self) -> None:
        """Start the grace of the outer block if a signal in this block requested its stop."""
        outer = self._previous.get(signal.SIGTERM)
        if isinstance(outer, _Handler) and outer.event.is_set():
            outer._start_grace()


def _terminate(number: int, frame: object) -> None:
    raise Terminated
