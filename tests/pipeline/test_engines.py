"""Units of work in this process or in several: the same results in the same order, and no worker that outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from pipeline import engines
from pipeline.errors import BadData, WorkerLost

ROOT = Path(__file__).resolve().parents[2]


def square(number: int) -> int:
    time.sleep(0.02 * (3 - number % 4))
    return number * number


def refuse(number: int) -> int:
    raise BadData(f"unit {number} is bad", hint="mend it")


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def process_id(_: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_results_come_in_the_order_of_the_units_whatever_ends_first(jobs: int) -> None:
    heard: list[int] = []
    assert engines.run(square, range(6), jobs=jobs, done=heard.append) == [0, 1, 4, 9, 16, 25]
    assert sorted(heard) == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_a_unit_arrives_with_its_hint_and_exit_code(jobs: int) -> None:
    with pytest.raises(BadData, match=r"unit . is bad") as caught:
        engines.run(refuse, [1, 2], jobs=jobs)
    assert (caught.value.hint, caught.value.exit_code) == ("mend it", 65)


def test_a_killed_worker_is_noticed_and_nothing_hangs() -> None:
    with pytest.raises(WorkerLost) as caught:
        engines.run(die, [1, 2], jobs=2)
    assert caught.value.exit_code == 71


def test_an_isolated_unit_runs_in_another_process_and_a_plain_one_here() -> None:
    assert engines.run(process_id, [1], jobs=1) == [os.getpid()]
    assert engines.run(process_id, [1], jobs=1, isolated=True) != [os.getpid()]


# Streams


def slow_square(task: int) -> int:
    """Some tasks take longer than those after them."""
    time.sleep(0.01 * (3 - task % 4))
    return task * task


def refuse_third(task: int) -> int:
    if task == 3:
        raise BadData(f"task {task} is bad", hint="mend it")
    return task


def all_of(function: Callable[[int], int], tasks: Iterable[int], jobs: int) -> list[tuple[int, int]]:
    return list(engines.stream(function, iter(tasks), jobs=jobs))


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


JOBS = pytest.mark.parametrize("jobs", [1, 3])


@JOBS
def test_answers_come_in_the_order_of_the_tasks_whatever_ends_first(jobs: int) -> None:
    assert all_of(slow_square, range(30), jobs) == [(number, number * number) for number in range(30)]


@JOBS
def test_no_tasks_have_no_answers(jobs: int) -> None:
    assert all_of(slow_square, [], jobs) == []


@JOBS
def test_no_more_tasks_are_taken_than_two_beyond_the_workers(jobs: int) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(30):
            taken.append(number)
            yield number

    most = 0
    for task, _ in engines.stream(slow_square, tasks(), jobs=jobs):
        time.sleep(0.02)  # a slow reader
        most = max(most, len(taken) - (task + 1))
    assert most == (0 if jobs == 1 else jobs + 2)  # one of them waits in the hand of its maker


@JOBS
def test_an_error_of_a_task_arrives_after_the_answers_before_it_and_ends_the_workers(jobs: int) -> None:
    found: list[int] = []
    before = threads()

    def collect() -> None:
        for task, _ in engines.stream(refuse_third, iter(range(100)), jobs=jobs):
            found.append(task)

    with pytest.raises(BadData, match="task 3 is bad") as caught:
        collect()
    assert found == [0, 1, 2]
    assert (caught.value.hint, caught.value.exit_code) == ("mend it", 65)
    assert threads() == before


@JOBS
def test_an_error_in_the_making_of_tasks_arrives_after_the_answers_before_it(jobs: int) -> None:
    def tasks() -> Iterator[int]:
        yield from range(10)
        raise BadData("the file is cut short")

    def collect() -> None:
        for task, _ in engines.stream(slow_square, tasks(), jobs=jobs):
            found.append(task)

    before, found = threads(), list[int]()
    with pytest.raises(BadData, match="cut short"):
        collect()
    assert found == list(range(10))
    assert threads() == before


def test_a_stream_that_is_closed_early_ends_its_workers_and_asks_for_no_more() -> None:
    taken, before, interval = [], threads(), sys.getswitchinterval()

    def tasks() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    stream = engines.stream(slow_square, tasks(), jobs=3)
    assert next(stream)[0] == 0
    assert threads() > before
    stream.close()
    assert threads() == before
    assert len(taken) < 10
    assert sys.getswitchinterval() == interval


def test_a_stream_that_was_never_begun_starts_no_worker() -> None:
    before = threads()
    engines.stream(slow_square, iter([1]), jobs=3).close()
    assert threads() == before


def test_the_work_is_done_here_for_one_job_and_in_other_threads_for_more() -> None:
    def where(task: int) -> int:
        time.sleep(0.05)
        return threading.get_ident()

    assert {thread for _, thread in all_of(where, range(12), 1)} == {threading.get_ident()}
    others = {thread for _, thread in all_of(where, range(12), 2)}
    assert len(others) == 2
    assert threading.get_ident() not in others


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time, pathlib\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pipeline import engines\n"
        "def work(number):\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'worker-{{os.getpid()}}').touch()\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    engines.run(work, [1, 2], jobs=2)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 30
    while len(workers := list(tmp_path.glob("worker-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    ids = [int(path.name.removeprefix("worker-")) for path in workers]
    while any(alive(each) for each in ids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(each) for each in ids)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
