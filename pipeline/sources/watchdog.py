"""Watchdog over requests: a slow server, proxy or name server cannot make a command exceed its time limits.

A socket timeout applies to one read, and a server that sends single bytes never exceeds it. So the total time until the
headers are complete is limited, and a body is shut down when the command must end.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress

import requests

_INTERVAL = 0.05  # seconds between two checks


def send_in_time(send: Callable[[], requests.Response], seconds: float, check: Callable[[], None]) -> requests.Response:
    """Return `send()`, run in a thread that is abandoned when `check` raises, or after `seconds`.

    Raises requests' ReadTimeout after `seconds`. A thread is needed because host names are resolved in C code that
    cannot be interrupted. It is a daemon: this process can end while the thread waits.
    """
    future: Future[requests.Response] = Future()
    delivery = threading.Lock()  # while it is held and the future is not done, the thread is running

    def run() -> None:
        try:
            response = send()
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            with delivery:
                future.set_exception(error)
        else:
            with delivery:
                future.set_result(response)

    thread = threading.Thread(target=run, name="request", daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    try:
        while not wait([future], _INTERVAL).done:
            check()
            if time.monotonic() > end:
                raise requests.exceptions.ReadTimeout(f"no complete headers in {seconds:.0f} seconds")
        return future.result()
    except BaseException:
        future.add_done_callback(lambda done: None if done.exception() else done.result().close())
        with delivery:  # the identifier of a thread that has ended may belong to a new one already
            if not future.done():
                _end_at_next_byte(thread)
        raise


def _end_at_next_byte(thread: threading.Thread) -> None:
    """Raise SystemExit in a running thread as soon as it leaves the system call that it waits in."""
    if thread.ident:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


@contextmanager
def shut_down_when(must_end: Callable[[], bool], response: requests.Response) -> Iterator[None]:
    """Shut down a response when `must_end()` is true, even while a read waits for more of its body."""
    is_complete = threading.Event()

    def watch() -> None:
        while not is_complete.wait(_INTERVAL):
            if must_end():
                with suppress(OSError, ValueError, RuntimeError):  # the response has just ended
                    response.raw.shutdown()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_complete.set()
