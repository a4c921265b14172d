"""Requests in threads: limits, and threads that end while others start."""

from __future__ import annotations

import threading
import time

import pytest
import requests

from pipeline.sources.watchdog import send_in_time


def refuse() -> requests.Response:
    raise requests.exceptions.ConnectionError


def no_check() -> None:
    pass


def test_request_is_abandoned_after_its_seconds() -> None:
    ended = threading.Event()

    def drip() -> requests.Response:
        try:
            while True:
                time.sleep(0.01)
        finally:
            ended.set()

    with pytest.raises(requests.exceptions.ReadTimeout):
        send_in_time(drip, 0.1, no_check)
    assert ended.wait(30)


def test_a_failed_request_does_not_end_the_thread_of_another() -> None:
    """The system gives a new thread the identifier of one that has just ended, so SystemExit must not be sent to it.

    Thread.start waits for ever for a thread that ends before it is ready.
    """

    def run() -> None:
        for _ in range(250):
            with pytest.raises(requests.exceptions.ConnectionError):
                send_in_time(refuse, 30, no_check)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    for thread in threads:
        thread.join(end - time.monotonic())
    assert not any(thread.is_alive() for thread in threads), "a request waits for ever"
