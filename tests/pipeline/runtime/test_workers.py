"""Units of work in this process or in several: the same results in the same order, and no worker that outlives us."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import BadData, WorkerLost
from pipeline.runtime import workers as engines

ROOT = Path(__file__).resolve().parents[3]


def refuse(number: int) -> int:
    raise BadData(f"unit {number} is bad", hint="mend it")


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def process_id(_: int) -> int:
    return os.getpid()


def test_an_isolated_call_answers_from_another_process() -> None:
    assert engines.isolated(process_id, 1) not in (os.getpid(), None)
    assert engines.isolated(divmod, 7, 2) == (3, 1)


def test_an_error_of_an_isolated_call_arrives_with_its_hint_and_exit_code() -> None:
    with pytest.raises(BadData, match="unit 1 is bad") as caught:
        engines.isolated(refuse, 1)
    assert (caught.value.hint, caught.value.exit_code) == ("mend it", 65)


def test_an_isolated_call_that_is_killed_is_noticed_and_nothing_hangs() -> None:
    with pytest.raises(WorkerLost) as caught:
        engines.isolated(die, 1)
    assert caught.value.exit_code == 71


# Streams


def slow_square(task: int) -> int:
    """Some tasks take longer than those after them."""
    time.sleep(0.01 * (3 - task % 4))
    return task * task


def swell(task: tuple[int, bytes]) -> tuple[int, bytes, np.ndarray]:
    """As much as was asked for, of bytes and of an array."""
    size, given = task
    time.sleep(0.03)
    return len(given), bytes([size % 251]) * size, np.full(size // 8, size % 251, np.int64)


def refuse_third(task: int) -> int:
    if task == 3:
        raise BadData(f"task {task} is bad", hint="mend it")
    return task


def die_in_a_worker(task: int) -> int:
    time.sleep(0.02)
    if multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def where(task: int, more: bytes = b"") -> int:
    time.sleep(0.05)
    return os.getpid()


class DiesWhenItIsRead:
    def __reduce__(self) -> tuple[Callable[[int], int], tuple[int]]:
        return die_in_a_worker, (0,)

    def __call__(self, task: int) -> int:
        time.sleep(0.05)
        return task


def all_of(function: Callable[[Any], Any], tasks: Iterable[Any], jobs: int) -> list[tuple[Any, Any]]:
    return list(engines.stream(function, iter(tasks), jobs=jobs))


JOBS = pytest.mark.parametrize("jobs", [1, 3])


@JOBS
def test_answers_come_in_the_order_of_the_tasks_whatever_ends_first(jobs: int) -> None:
    assert all_of(slow_square, range(100), jobs) == [(number, number * number) for number in range(100)]
    assert multiprocessing.active_children() == []


@JOBS
def test_no_tasks_have_no_answers(jobs: int) -> None:
    assert all_of(slow_square, [], jobs) == []


@JOBS
def test_what_is_larger_than_a_slot_is_done_too(jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_SLOT", 10_000)  # in this process alone: a worker sees what it is given
    sizes = [10, 4000, 4990, 5000, 9990, 10_000, 10_010, 50_000, 0] * 4
    tasks = [(size, bytes(given)) for size in sizes for given in (1, 12_000)]
    for asked, (task, (length, text, array)) in zip(tasks, all_of(swell, tasks, jobs), strict=True):
        assert (task, length, text) == (asked, len(asked[1]), bytes([asked[0] % 251]) * asked[0])
        assert array.tolist() == [asked[0] % 251] * (asked[0] // 8)


@JOBS
def test_few_tasks_are_taken_ahead(jobs: int) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    most = 0
    for task, _ in engines.stream(slow_square, tasks(), jobs=jobs):
        most = max(most, len(taken) - (task + 1))
    assert most <= (0 if jobs == 1 else 4 * (jobs - 1) + 1)


@JOBS
def test_an_error_of_a_task_arrives_after_the_answers_before_it_and_ends_the_workers(jobs: int) -> None:
    found: list[int] = []

    def collect() -> None:
        for task, _ in engines.stream(refuse_third, iter(range(100)), jobs=jobs):
            found.append(task)

    with pytest.raises(BadData, match="task 3 is bad") as caught:
        collect()
    assert found == [0, 1, 2]
    assert (caught.value.hint, caught.value.exit_code) == ("mend it", 65)
    assert multiprocessing.active_children() == []


def test_an_error_in_a_worker_is_raised_here() -> None:
    tasks = [*range(4, 60), 3, *range(4, 60)]
    with pytest.raises(BadData, match="task 3 is bad"):
        all_of(refuse_third_slowly, tasks, 2)


def refuse_third_slowly(task: int) -> int:
    time.sleep(0.03)
    if task == 3 or multiprocessing.parent_process():
        raise BadData("task 3 is bad")
    return task


@JOBS
def test_an_error_in_the_making_of_tasks_ends_the_workers(jobs: int) -> None:
    def tasks() -> Iterator[int]:
        yield from range(10)
        raise BadData("the file is cut short")

    with pytest.raises(BadData, match="cut short"):
        all_of(slow_square, tasks(), jobs)
    assert multiprocessing.active_children() == []


def test_a_stream_that_is_closed_early_ends_its_workers() -> None:
    stream = engines.stream(slow_square, iter(range(1000)), jobs=3)
    assert next(stream)[0] == 0
    assert len(multiprocessing.active_children()) == 2
    start = time.monotonic()
    stream.close()
    assert multiprocessing.active_children() == []
    assert time.monotonic() - start < 10


class Unsendable(Exception):
    """Its pickle cannot be read: it asks for more than it kept."""

    def __init__(self, task: int, more: int) -> None:
        super().__init__(f"task {task} is bad")


def raise_unsendable(task: int) -> int:
    time.sleep(0.03)
    if task >= 40:
        raise Unsendable(task, 1)
    return task


def answer_unsendable(task: int) -> object:
    time.sleep(0.03)
    return (lambda: task) if task % 2 else task


def test_errors_and_results_that_cannot_travel_are_made_here() -> None:
    with pytest.raises(Unsendable, match="task 40 is bad"):
        all_of(raise_unsendable, range(60), 2)
    found = [answer if number % 2 == 0 else answer() for number, answer in all_of(answer_unsendable, range(60), 2)]
    assert found == list(range(60))


def test_a_function_too_large_to_send_works_here_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_SLOT", 100)
    large = functools.partial(where, more=b"x" * 1000)
    assert {process for _, process in all_of(large, range(5), 3)} == {os.getpid()}


def test_workers_end_where_the_signal_to_end_is_ignored(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import signal, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pipeline.runtime import workers as engines\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    list(engines.stream(time.sleep, iter([0.05] * 30), jobs=2))\n"
    )
    subprocess.run([sys.executable, str(script)], timeout=30, check=True)


def test_a_stream_that_was_never_begun_starts_no_worker() -> None:
    engines.stream(slow_square, iter([1]), jobs=3).close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("function", [die_in_a_worker, DiesWhenItIsRead()], ids=["at work", "at its start"])
def test_case_34_a_killed_worker_is_noticed_and_nothing_hangs(function: Callable[[int], int]) -> None:
    with pytest.raises(WorkerLost) as caught:
        all_of(function, range(400), 3)
    assert caught.value.exit_code == 71
    assert multiprocessing.active_children() == []


def test_the_work_is_done_here_for_one_job_and_elsewhere_too_for_more() -> None:
    assert {process for _, process in all_of(where, range(12), 1)} == {os.getpid()}
    found = [process for _, process in all_of(where, range(60), 3)]
    assert len({*found}) == 3
    assert os.getpid() in found


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize(
    ("call", "count"),
    [("engines.isolated(work, 1)", 1), ("list(engines.stream(work, iter(range(9)), jobs=3))", 3)],
    ids=["isolated", "stream"],
)
def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path, call: str, count: int) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, sys, time, pathlib\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pipeline.runtime import workers as engines\n"
        "def work(number):\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'worker-{{os.getpid()}}').touch()\n"
        "    time.sleep(0.1 if multiprocessing.parent_process() is None else 60)\n"
        "if __name__ == '__main__':\n"
        f"    {call}\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 30
    while len(workers := list(tmp_path.glob("worker-*"))) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == count
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
