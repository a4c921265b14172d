"""Units of work in this process or in several: the same results in the same order, and no worker that outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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
