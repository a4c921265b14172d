"""Signals: the first one sets the event, the second one ends the process, and blocks may be nested."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from pipeline.runtime import signals


def exit_code_of(work: Callable[[], None]) -> int:
    """Run `work` in a fork; its exit code, or minus the signal that killed it."""
    if not (child := os.fork()):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_first_signal_sets_the_event_and_second_one_ends_the_process(number: int) -> None:
    def work() -> None:
        with signals.stop_on_signals() as stopped:
            assert not stopped.is_set()
            os.kill(os.getpid(), number)
            assert stopped.is_set()
            os.kill(os.getpid(), number)
            os._exit(1)

    assert exit_code_of(work) == 128 + number


def test_sigterm_in_a_nested_block_sets_both_events() -> None:
    outer = threading.Event()
    with signals.stop_on_sigterm(outer), signals.stop_on_signals() as inner:
        os.kill(os.getpid(), signal.SIGTERM)
        assert inner.is_set()
        assert outer.is_set()


def test_second_sigterm_after_a_nested_block_ends_the_process() -> None:
    def work() -> None:
        with signals.stop_on_sigterm(threading.Event()):
            with signals.stop_on_signals():
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)

    assert exit_code_of(work) == 128 + signal.SIGTERM


def test_handlers_are_restored_when_the_block_ends() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with signals.stop_on_sigterm(threading.Event()), signals.stop_on_signals():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_outside_the_main_thread_no_handler_is_installed() -> None:
    handlers: list[object] = []

    def work() -> None:
        with signals.stop_on_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
