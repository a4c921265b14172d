"""Spreading tasks over an engine: order, back-pressure, faults, lost workers and deadlines."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadConfig, BadData, TryAgain, WorkerLost
from pipeline.runtime import engines
from pipeline.runtime.signals import stop_on_sigterm
from pipeline.runtime.spread import TaskProgress, spread
from tests.support.engines import Processes, Threads


@dataclass(frozen=True)
class Numbered:
    """A task that notes its attempts and its finished units in a folder."""

    number: int
    size: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.number}.jsonl"

    def progress(self) -> TaskProgress:
        return TaskProgress(self.count("unit"), self.count("open"))

    def count(self, kind: str) -> int:
        return len(list(self.folder.glob(f"{kind}-{self.number}-*")))

    def note(self, kind: str) -> None:
        (self.folder / f"{kind}-{self.number}-{self.count(kind)}").touch()


def tasks_of(folder: Path, *sizes: int) -> list[Numbered]:
    return [Numbered(number, size, folder) for number, size in enumerate(sizes)]


def killed(task: Numbered) -> None:
    task.note("open")
    os.kill(os.getpid(), signal.SIGKILL)


def killed_twice(task: Numbered) -> int:
    task.note("open")
    if task.number == 1 and task.count("open") <= 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task.number


def killed_after_each_unit(task: Numbered) -> int:
    if task.count("unit") < 4:
        task.note("unit")
        os.kill(os.getpid(), signal.SIGKILL)
    return task.number


def test_every_task_is_done_once_and_the_largest_first(tmp_path: Path) -> None:
    sizes: list[int] = []

    def note_size(task: Numbered) -> int:
        sizes.append(task.size)
        return task.number

    with Threads(1) as engine:
        results = {task.size: number for task, number in spread(engine, note_size, tasks_of(tmp_path, 1, 3, 2))}
    assert (sizes, results) == ([3, 2, 1], {3: 1, 2: 2, 1: 0})


def test_at_most_two_tasks_a_slot_are_submitted(tmp_path: Path) -> None:
    class Counting(Threads):
        submitted = 0

        def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:  # type: ignore[override]
            self.submitted += 1
            return super().submit(call, *arguments)

    with Counting(2) as engine:
        results = spread(engine, lambda task: task.number, tasks_of(tmp_path, *range(20)))
        outstanding = [engine.submitted - received for received, _ in enumerate(results)]
    assert (len(outstanding), max(outstanding)) == (20, 4)


def test_the_first_fault_in_input_order_is_raised_after_the_tasks_before_it(tmp_path: Path) -> None:
    """The later, larger task fails first."""

    def fail(task: Numbered) -> int:
        if task.number in (2, 4):
            raise BadData(f"{task.name}: truncated")
        return task.number

    done = []
    with Threads(1) as engine, pytest.raises(BadData, match=r"2\.jsonl"):  # noqa: PT012
        for _, number in spread(engine, fail, tasks_of(tmp_path, 1, 2, 3, 4, 5)):
            done.append(number)
    assert sorted(done) in ([0, 1], [0, 1, 3])


def test_another_error_ends_at_once(tmp_path: Path) -> None:
    def refuse(task: Numbered) -> int:
        raise BadConfig(f"{task.name}: another version")

    with Threads(1) as engine, pytest.raises(BadConfig, match=r"1\.jsonl"):
        list(spread(engine, refuse, tasks_of(tmp_path, 1, 2)))


def test_a_task_whose_worker_was_killed_is_done_again(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path, 1, 2)
    assert sorted(result for _, result in spread(Processes(), killed_twice, tasks)) == [0, 1]
    assert tasks[1].count("open") == 3


def test_three_losses_without_a_finished_unit_name_the_file(tmp_path: Path) -> None:
    (task,) = tasks_of(tmp_path, 1)
    with pytest.raises(WorkerLost, match=r"^0\.jsonl: its worker was lost 3 times") as caught:
        list(spread(Processes(), killed, [task]))
    assert task.count("open") == 3
    assert "\n" not in str(caught.value)


def test_losses_with_finished_units_in_between_do_not_end_it(tmp_path: Path) -> None:
    (task,) = tasks_of(tmp_path, 1)
    assert [result for _, result in spread(Processes(), killed_after_each_unit, [task])] == [0]
    assert task.count("unit") == 4


def test_a_task_without_a_sign_of_work_until_the_deadline_is_submitted_again(tmp_path: Path) -> None:
    (task,) = tasks_of(tmp_path, 1)
    release = threading.Event()

    def hang_at_first(task: Numbered) -> str:
        task.note("open")
        if task.count("open") > 1:
            return "second"
        release.wait()
        return "first"

    with Threads(2) as engine:
        assert [result for _, result in spread(engine, hang_at_first, [task], deadline=0.6)] == ["second"]
        release.set()


def test_a_task_that_waits_for_a_slot_has_no_deadline(tmp_path: Path) -> None:
    first, second = tasks_of(tmp_path, 2, 1)
    release = threading.Timer(1.5, lambda: first.note("unit"))

    def work(task: Numbered) -> int:
        if task.number == 0:
            release.start()
            release.join()
        task.note("open")
        return task.number

    with Threads(1) as engine:
        results = [result for _, result in spread(engine, work, [first, second], deadline=0.5)]
    assert sorted(results) == [0, 1]
    assert (first.count("open"), second.count("open")) == (1, 1)


def test_sigterm_stops_and_cancels_what_waits(tmp_path: Path) -> None:
    stop, release = threading.Event(), threading.Event()

    def wait_for_the_stop(task: Numbered) -> None:
        task.note("open")
        os.kill(os.getpid(), signal.SIGTERM)
        release.wait()

    tasks = tasks_of(tmp_path, 2, 1)
    with Threads(1) as engine:
        with pytest.raises(TryAgain, match="finished units are kept"), stop_on_sigterm(stop, grace=60):
            list(spread(engine, wait_for_the_stop, tasks))
        release.set()
    assert [task.count("open") for task in tasks] == [1, 0]


@pytest.mark.parametrize("name", ["", "dask", "ray:", "ray:host", "ray://host:1", "ray:host:port"])
def test_unknown_engine_is_refused(name: str) -> None:
    with pytest.raises(BadConfig, match="unknown engine"):
        engines.engine_named(name, 1)


def test_local_engine_is_none() -> None:
    assert engines.engine_named("local", 1) is None
