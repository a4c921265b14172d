"""Worker processes: results in task order for any number of jobs, and no worker outlives its parent."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import BadData, TryAgain, WorkerLost
from pipeline.runtime import signals, workers
from tests.support.bad_server import wait_for

ROOT = Path(__file__).resolve().parents[3]


def raise_bad_data(number: int) -> int:
    raise BadData(f"unit {number} is bad", hint="fix it")


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def process_id(_: int) -> int:
    return os.getpid()


def test_isolated_call_runs_in_another_process() -> None:
    assert workers.run_isolated(process_id, 1) not in (os.getpid(), None)
    assert workers.run_isolated(divmod, 7, 2) == (3, 1)


def test_isolated_error_keeps_its_hint_and_exit_code() -> None:
    with pytest.raises(BadData, match="unit 1 is bad") as caught:
        workers.run_isolated(raise_bad_data, 1)
    assert (caught.value.hint, caught.value.exit_code) == ("fix it", 65)


def test_killed_isolated_call_raises_worker_lost() -> None:
    with pytest.raises(WorkerLost) as caught:
        workers.run_isolated(die, 1)
    assert caught.value.exit_code == 71


def signal_this_process(started: Path) -> None:
    """Sleep in a process that signals to the process group have reached."""
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    started.touch()
    time.sleep(60)


def test_isolated_call_ends_with_the_stop_event_but_not_with_signals_to_the_group(tmp_path: Path) -> None:
    stop, started = threading.Event(), tmp_path / "started"

    def stop_when_started() -> None:
        wait_for(started.exists)
        stop.set()

    thread = threading.Thread(target=stop_when_started)
    thread.start()
    with pytest.raises(TryAgain, match="stopped by a signal"):
        workers.run_isolated(signal_this_process, started, stop=stop)
    thread.join()
    assert started.exists()
    assert multiprocessing.active_children() == []


# Streams


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_shared_with_workers_is_in_no_folder_that_can_be_full() -> None:
    """A write into a mapped file of a full /dev/shm or TMPDIR kills the process."""
    with workers.WorkerPool(process_id, 1) as pool:
        pool.submit(1)
        files = [line for line in Path("/proc/self/maps").read_text().splitlines() if "rw-s" in line]
        assert any("memfd:inkstone" in line for line in files)
        assert not any("pym-" in line for line in files)


def test_memory_without_memfd_is_written_before_it_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "other")
    file = workers._unnamed_file(1 << 20)
    try:
        assert os.fstat(file).st_blocks * 512 >= 1 << 20
    finally:
        os.close(file)


def slow_square(task: int) -> int:
    """Square the task, so that some tasks take longer than later ones."""
    time.sleep(0.01 * (3 - task % 4))
    return task * task


def make_result(task: tuple[int, bytes]) -> tuple[int, bytes, np.ndarray]:
    """Return the length of the payload, and `size` bytes twice: as bytes and as an array."""
    size, payload = task
    time.sleep(0.03)
    return len(payload), bytes([size % 251]) * size, np.full(size // 8, size % 251, np.int64)


def refuse_third(task: int) -> int:
    if task == 3:
        raise BadData(f"task {task} is bad", hint="fix it")
    return task


def die_in_a_worker(task: int) -> int:
    time.sleep(0.02)
    if multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def slow_process_id(task: int, ballast: bytes = b"") -> int:
    time.sleep(0.05)
    return os.getpid()


class DiesWhenUnpickled:
    def __reduce__(self) -> tuple[Callable[[int], int], tuple[int]]:
        return die_in_a_worker, (0,)

    def __call__(self, task: int) -> int:
        time.sleep(0.05)
        return task


def run_all(function: Callable[[Any], Any], tasks: Iterable[Any], jobs: int) -> list[tuple[Any, Any]]:
    return list(workers.map_ordered(function, iter(tasks), jobs=jobs))


JOBS = pytest.mark.parametrize("jobs", [1, 3])


@JOBS
def test_results_are_yielded_in_task_order(jobs: int) -> None:
    assert run_all(slow_square, range(100), jobs) == [(number, number * number) for number in range(100)]
    assert multiprocessing.active_children() == []


@JOBS
def test_no_tasks_yield_nothing(jobs: int) -> None:
    assert run_all(slow_square, [], jobs) == []


@JOBS
def test_tasks_and_results_larger_than_a_slot_run_here(jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_SLOT_BYTES", 10_000)  # only in this process; a worker uses the size of its arrays
    sizes = [10, 4000, 4990, 5000, 9990, 10_000, 10_010, 50_000, 0] * 4
    tasks = [(size, bytes(payload)) for size in sizes for payload in (1, 12_000)]
    results = run_all(make_result, tasks, jobs)
    assert [task for task, _ in results] == tasks
    for (size, payload), (length, text, array) in results:
        assert (length, text) == (len(payload), bytes([size % 251]) * size)
        assert array.tolist() == [size % 251] * (size // 8)


@JOBS
def test_few_tasks_are_read_ahead(jobs: int) -> None:
    tasks_read: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(100):
            tasks_read.append(number)
            yield number

    max_ahead = 0
    for task, _ in workers.map_ordered(slow_square, tasks(), jobs=jobs):
        max_ahead = max(max_ahead, len(tasks_read) - (task + 1))
    assert max_ahead <= (0 if jobs == 1 else 4 * (jobs - 1) + 1)


@JOBS
def test_task_error_is_raised_in_task_order_and_ends_workers(jobs: int) -> None:
    finished: list[int] = []

    def collect() -> None:
        for task, _ in workers.map_ordered(refuse_third, iter(range(100)), jobs=jobs):
            finished.append(task)

    with pytest.raises(BadData, match="task 3 is bad") as caught:
        collect()
    assert finished == [0, 1, 2]
    assert (caught.value.hint, caught.value.exit_code) == ("fix it", 65)
    assert multiprocessing.active_children() == []


def test_error_in_worker_is_raised_in_parent() -> None:
    tasks = [*range(4, 60), 3, *range(4, 60)]
    with pytest.raises(BadData, match="task 3 is bad"):
        run_all(refuse_third_slowly, tasks, 2)


def refuse_third_slowly(task: int) -> int:
    time.sleep(0.03)
    if task == 3 or multiprocessing.parent_process():
        raise BadData("task 3 is bad")
    return task


@JOBS
def test_error_of_task_iterator_ends_workers(jobs: int) -> None:
    def tasks() -> Iterator[int]:
        yield from range(10)
        raise BadData("the file is cut short")

    with pytest.raises(BadData, match="cut short"):
        run_all(slow_square, tasks(), jobs)
    assert multiprocessing.active_children() == []


def test_closing_stream_early_ends_workers() -> None:
    stream = workers.map_ordered(slow_square, iter(range(1000)), jobs=3)
    assert next(stream)[0] == 0
    assert len(multiprocessing.active_children()) == 2
    start = time.monotonic()
    stream.close()
    assert multiprocessing.active_children() == []
    assert time.monotonic() - start < 10


class LossyError(Exception):
    """An error that cannot be unpickled, because `__init__` needs an argument that it does not keep."""

    def __init__(self, task: int, missing: int) -> None:
        super().__init__(f"task {task} is bad")


def raise_lossy_error(task: int) -> int:
    time.sleep(0.03)
    if task >= 40:
        raise LossyError(task, 1)
    return task


def return_lambda_for_odd(task: int) -> object:
    time.sleep(0.03)
    return (lambda: task) if task % 2 else task


def test_unpicklable_outcomes_are_computed_in_parent() -> None:
    with pytest.raises(LossyError, match="task 40 is bad"):
        run_all(raise_lossy_error, range(60), 2)
    results = run_all(return_lambda_for_odd, range(60), 2)
    assert [result() if task % 2 else result for task, result in results] == list(range(60))


def test_function_larger_than_a_slot_runs_only_in_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_SLOT_BYTES", 100)
    large = functools.partial(slow_process_id, ballast=b"x" * 1000)
    assert {process for _, process in run_all(large, range(5), 3)} == {os.getpid()}


def test_workers_end_when_sigterm_is_ignored(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import signal, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pipeline.runtime import workers\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    list(workers.map_ordered(time.sleep, iter([0.05] * 30), jobs=2))\n"
    )
    subprocess.run([sys.executable, str(script)], timeout=120, check=True)


def test_unstarted_stream_starts_no_worker() -> None:
    workers.map_ordered(slow_square, iter([1]), jobs=3).close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("function", [die_in_a_worker, DiesWhenUnpickled()], ids=["running", "starting"])
def test_killed_worker_raises_worker_lost(function: Callable[[int], int]) -> None:
    """Case 34 of docs/design/reliability.md."""
    with pytest.raises(WorkerLost) as caught:
        run_all(function, range(400), 3)
    assert caught.value.exit_code == 71
    assert multiprocessing.active_children() == []


def test_worker_that_ends_after_a_signal_is_no_lack_of_memory() -> None:
    stop = threading.Event()
    stop.set()
    with signals.stop_on_sigterm(stop), pytest.raises(TryAgain, match="stopped by a signal"):
        run_all(die_in_a_worker, range(400), 3)


def test_one_job_runs_in_parent_and_more_jobs_use_workers() -> None:
    assert {process for _, process in run_all(slow_process_id, range(12), 1)} == {os.getpid()}
    processes = {process for _, process in run_all(slow_process_id, range(60), 3)}
    assert len(processes) == 3
    assert os.getpid() in processes


@pytest.mark.skipif(sys.platform != "linux", reason="prctl exists only on Linux")
@pytest.mark.parametrize(
    ("call", "count"),
    [("workers.run_isolated(work, 1)", 1), ("list(workers.map_ordered(work, iter(range(300)), jobs=3))", 3)],
    ids=["run_isolated", "map_ordered"],
)
def test_workers_die_with_killed_parent(tmp_path: Path, call: str, count: int) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, sys, time, pathlib\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pipeline.runtime import workers\n"
        "def work(number):\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'worker-{{os.getpid()}}').touch()\n"
        "    time.sleep(0.1 if multiprocessing.parent_process() is None else 60)\n"
        "if __name__ == '__main__':\n"
        f"    {call}\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 30
    while len(started := list(tmp_path.glob("worker-*"))) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(started) == count
    parent.kill()
    parent.wait()
    ids = [int(path.name.removeprefix("worker-")) for path in started]
    while any(is_alive(pid) for pid in ids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in ids)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
