"""Units of work in this process or in several: the same results in the same order, and no worker that outlives us."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
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


# Streams: tasks and their bytes in, results and arrays out, in order

SLOT = engines._SLOT
Answer = tuple[int, list[np.ndarray]]
Work = Callable[[Any, memoryview], Answer]


def mirror(task: int, data: memoryview) -> Answer:
    """The bytes backwards, as two arrays; some tasks take longer than those after them."""
    time.sleep(0.01 * (3 - task % 4))
    given = np.frombuffer(bytes(data), np.uint8)[::-1]
    middle = len(given) // 2
    return task * task, [given[:middle], given[middle:]]


def widths(task: int, data: memoryview) -> Answer:
    """Arrays of several types and shapes, one of them empty and one with gaps in memory."""
    return task, [np.arange(task, dtype="<u4"), np.empty(0), np.ones((2, 3), "<u2"), np.arange(10, dtype="<i8")[::3]]


def swell(task: int, data: memoryview) -> Answer:
    """`task` bytes."""
    return len(data), [np.full(task, task % 251, np.uint8)]


def refuse_third(task: int, data: memoryview) -> Answer:
    if task == 3:
        raise BadData(f"task {task} is bad", hint="mend it")
    return task, [np.zeros(10)]


def die_third(task: int, data: memoryview) -> Answer:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task, []


def answer_process(task: int, data: memoryview) -> Answer:
    time.sleep(0.05)
    return os.getpid(), []


def all_of(function: Work, tasks: Iterable[tuple[int, bytes]], jobs: int) -> list[tuple[int, int, bytes]]:
    return [(task, result, bytes(view)) for task, result, view in engines.stream(function, iter(tasks), jobs=jobs)]


JOBS = pytest.mark.parametrize("jobs", [1, 3])


@JOBS
def test_answers_come_in_the_order_of_the_tasks_whatever_ends_first(jobs: int) -> None:
    tasks = [(number, bytes([number, number + 1, number + 2]) * number) for number in range(30)]
    assert all_of(mirror, tasks, jobs) == [(number, number * number, data[::-1]) for number, data in tasks]


@JOBS
def test_no_tasks_have_no_answers(jobs: int) -> None:
    assert all_of(mirror, [], jobs) == []


def test_many_workers_give_what_one_gives() -> None:
    tasks = [(number, b"x" * number) for number in range(40)]
    one = all_of(widths, tasks, 1)
    assert one == all_of(widths, tasks, 3)
    assert [len(answer) for _, _, answer in one] == [4 * number + 12 + 32 for number in range(40)]


@JOBS
def test_what_is_larger_than_a_slot_travels_too_both_ways(jobs: int) -> None:
    sizes = [SLOT - 1, SLOT, SLOT + 1, 0, 3 * SLOT, 1, SLOT, SLOT + 1]
    inputs = [(size, kind(size)) for size, kind in zip(sizes, cycle([bytes, bytearray]), strict=False)]
    expected = [(size, size, bytes([size % 251]) * size) for size in sizes]
    for asked, (size, length, answer) in zip(expected, engines.stream(swell, iter(inputs), jobs=jobs), strict=True):
        assert (size, length, bytes(answer)) == asked


@JOBS
def test_no_more_tasks_are_taken_than_two_beyond_the_workers(jobs: int) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[tuple[int, bytes]]:
        for number in range(30):
            taken.append(number)
            yield number, b""

    most = 0
    for task, _, _ in engines.stream(mirror, tasks(), jobs=jobs):
        time.sleep(0.02)  # a slow reader
        most = max(most, len(taken) - (task + 1))
    assert most == (0 if jobs == 1 else jobs + 2)


@JOBS
def test_an_error_of_a_task_arrives_after_the_answers_before_it_and_ends_the_workers(jobs: int) -> None:
    found: list[int] = []

    def collect() -> None:
        for task, _, _ in engines.stream(refuse_third, ((number, b"") for number in range(100)), jobs=jobs):
            found.append(task)

    with pytest.raises(BadData, match="task 3 is bad") as caught:
        collect()
    assert found == [0, 1, 2]
    assert (caught.value.hint, caught.value.exit_code) == ("mend it", 65)
    assert multiprocessing.active_children() == []


@JOBS
def test_an_error_in_the_making_of_tasks_arrives_and_ends_the_workers(jobs: int) -> None:
    def tasks() -> Iterator[tuple[int, bytes]]:
        yield from ((number, b"") for number in range(10))
        raise BadData("the file is cut short")

    with pytest.raises(BadData, match="cut short"):
        all_of(mirror, tasks(), jobs)
    assert multiprocessing.active_children() == []


def test_a_stream_that_is_closed_early_ends_its_workers() -> None:
    stream = engines.stream(mirror, ((number, b"") for number in range(1000)), jobs=3)
    assert next(stream)[0] == 0
    assert len(multiprocessing.active_children()) == 3
    start = time.monotonic()
    stream.close()
    assert multiprocessing.active_children() == []
    assert time.monotonic() - start < 10


def test_a_stream_that_was_never_begun_starts_no_worker() -> None:
    engines.stream(mirror, iter([(1, b"")]), jobs=3).close()
    assert multiprocessing.active_children() == []


def test_case_34_a_killed_worker_is_noticed_and_nothing_hangs() -> None:
    with pytest.raises(WorkerLost) as caught:
        all_of(die_third, [(number, b"") for number in range(100)], 3)
    assert caught.value.exit_code == 71
    assert multiprocessing.active_children() == []


def test_the_work_is_done_here_for_one_job_and_elsewhere_for_more() -> None:
    tasks = [(number, b"") for number in range(12)]
    assert {process for _, process, _ in all_of(answer_process, tasks, 1)} == {os.getpid()}
    others = {process for _, process, _ in all_of(answer_process, tasks, 2)}
    assert 1 <= len(others) <= 2
    assert os.getpid() not in others


@pytest.mark.parametrize(
    ("send", "end"),
    [
        # What the pipe is given fits into one write, which no kill can cut in two.
        ("return os.write(pipe, data) if len(data) < 4096 else os._exit(1)", "assert len(list(stream)) == 9"),
        ("time.sleep(0.1); return os.write(pipe, data[:2000])", "next(stream); time.sleep(0.3); stream.close()"),
    ],
    ids=["small", "closed"],
)
def test_case_34_no_worker_can_end_in_the_middle_of_an_answer_and_leave_its_reader_waiting(
    tmp_path: Path, send: str, end: str
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from multiprocessing.connection import Connection\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pipeline import engines\n"
        f"def send(pipe, data): {send}\n"
        "def work(task, data):\n"
        "    Connection._send.__defaults__ = (send,)\n"
        "    return bytes(20_000), []\n"
        "if __name__ == '__main__':\n"
        "    stream = engines.stream(work, ((number, b'') for number in range(9)), jobs=3)\n"
        f"    try: {end}\n"
        "    finally: stream.close()\n"
    )
    subprocess.run([sys.executable, str(script)], timeout=30, check=True)


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
