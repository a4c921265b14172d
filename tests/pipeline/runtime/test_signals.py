"""Signals: the first one sets the event, the second one ends the process, blocks may be nested, waits are bounded."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import Terminated, TryAgain
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


def wait_after_sigterm() -> None:
    with signals.stop_on_sigterm(threading.Event(), grace=0.05):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)


def train_after_sigterm(steps: list[int]) -> None:
    """Take three steps and stop as a training does, then wait."""
    with signals.stop_on_sigterm(threading.Event(), grace=0.05):
        with suppress(TryAgain), signals.stop_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            for step in range(3):
                time.sleep(0.05)
                steps.append(step)
            raise TryAgain("stopped by a signal")
        time.sleep(20)


def test_wait_after_sigterm_ends_with_the_grace() -> None:
    start, alarm = time.monotonic(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(Terminated):
        wait_after_sigterm()
    assert time.monotonic() - start < 5
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)) == (alarm, (0.0, 0.0))


def test_grace_begins_when_a_nested_training_has_saved() -> None:
    steps: list[int] = []
    with pytest.raises(Terminated):
        train_after_sigterm(steps)
    assert steps == [0, 1, 2]


def test_training_that_ends_as_planned_after_sigterm_is_not_interrupted() -> None:
    with signals.stop_on_sigterm(threading.Event(), grace=0.02):
        with signals.stop_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # it is published


def test_pipe_without_a_writer_is_left_after_sigterm(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Terminated), signals.stop_on_sigterm(threading.Event(), grace=0.05):
        (tmp_path / "pipe").read_bytes()


def test_block_that_ends_in_time_is_not_interrupted() -> None:
    with signals.stop_on_sigterm(threading.Event(), grace=0.02):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)


def test_current_stop_is_the_event_of_the_innermost_block() -> None:
    stop = threading.Event()
    assert not signals.current_stop().is_set()
    with signals.stop_on_sigterm(stop):
        assert signals.current_stop() is stop
        with signals.stop_on_signals() as inner:
            assert signals.current_stop() is inner
