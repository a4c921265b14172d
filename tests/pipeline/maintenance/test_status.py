"""Status and its check: what a person and a monitor are told, quickly, and without being in anybody's way."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.maintenance import retention as generations
from pipeline.maintenance import status
from pipeline.refresh import state
from pipeline.refresh.state import State
from pipeline.sources import cache
from pipeline.store import artifact, files, locks
from pipeline.store.artifact import Artifact, Content
from pipeline.store.manifest import Identity
from tests.support.upstream import ROOT

Inkstone = Callable[..., dict[str, Any]]


def publish(root: Path, number: int, kind: str = "tokens", name: str = "small") -> Artifact:
    def write(draft: Path) -> Content:
        (draft / "data").write_bytes(bytes(1000 + number))
        return Content({"documents": number, "tokens": 10 * number})

    return artifact.build(root, Identity(kind, name, {"number": number}, ()), write).artifact


def ago(hours: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600 * hours))


def remember(root: Path, recipe: str = "small", **fields: Any) -> None:
    """A refresh that ended well half an hour ago, but for `fields`."""
    told = {"run_id": "x", "ended": ago(0.5), "last_success": ago(0.5), "result": "unchanged", **fields}
    state.write(root, State(recipe, **told))


HOLD = """
import sys
from contextlib import ExitStack
from pathlib import Path
from pipeline.store import locks
with ExitStack() as held:
    for path in sys.argv[1:]:
        held.enter_context(locks.lock(Path(path), doing="refresh small", run_id="x")).say("tokenize")
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(*paths: Path) -> Iterator[int]:
    """Another process that holds these locks, by its process id."""
    command = [sys.executable, "-c", HOLD, *map(str, paths)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.kill()


# The check


def with_damage(root: Path) -> None:
    remember(root)
    publish(root, 1).file("data").unlink()


def with_two(root: Path) -> None:
    remember(root)
    remember(root, "other", last_success="")


NAGIOS: dict[str, tuple[int, str, Callable[[Path], object]]] = {
    "one that went well lately": (0, "OK - small: last success 30 min ago", remember),
    "one that failed, after one that went well lately": (
        1,
        "WARNING - small: last success 2.0 h ago, the disk is full",
        lambda root: remember(root, result="failed", error="the disk is full", last_success=ago(2)),
    ),
    "one that was killed": (1, "the last run was killed", lambda root: remember(root, result="running")),
    "none that went well for too long": (
        2,
        "CRITICAL - small: last success 2 d ago",
        lambda root: remember(root, last_success=ago(49)),
    ),
    "none that ever went well": (
        2,
        "CRITICAL - small: last success never",
        lambda root: remember(root, last_success=""),
    ),
    "something damaged": (2, "is damaged; small: last success", with_damage),
    "the worst of two": (
        2,
        "CRITICAL - other: last success never; small: last success 30 min ago",
        with_two,
    ),
    "no refresh at all": (3, "UNKNOWN - nothing was ever refreshed", lambda root: publish(root, 1)),
    "an empty store": (3, "UNKNOWN - nothing was ever refreshed", lambda root: None),
}


@pytest.mark.parametrize("case", NAGIOS)
def test_a_monitor_is_told_of(root: Path, case: str) -> None:
    code, line, prepare = NAGIOS[case]
    prepare(root)
    found = status.check(root, 36)
    assert (found.code, line in found.line) == (code, True), found.line
    assert "\n" not in found.line


def test_the_check_is_an_exit_code_and_one_line_for_every_code(inkstone: Inkstone, root: Path) -> None:
    for case in ("an empty store", "one that went well lately", "one that was killed", "none that ever went well"):
        code, line, prepare = NAGIOS[case]
        prepare(root)
        command = [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "-q", "status", "--check"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (code, "", 1)
        assert line in done.stdout
    assert inkstone("status", "--check", code=2)["exit_code"] == 2
    assert inkstone("status", "--check", "--max-age", "soon", code=78)["hint"] == "for example 90m, 36h or 7d"


@pytest.mark.parametrize(("limit", "code"), [("90m", 2), ("2h", 2), ("3h", 0), ("1d", 0)])
def test_the_age_that_is_allowed_is_in_minutes_hours_or_days(
    inkstone: Inkstone, root: Path, limit: str, code: int
) -> None:
    remember(root, last_success=ago(2.5))
    assert inkstone("status", "--check", "--max-age", limit, code=code)["exit_code"] == code


def test_one_that_runs_is_named_with_its_process_and_stage_and_is_no_failure(root: Path) -> None:
    remember(root, result="running", last_success=ago(2))
    with held(state.lock_of(root, "small")) as process:
        (found,) = status.refreshes(root)
        assert f"process {process} (refresh small, at tokenize, since 20" in found.running
        assert found.lines()[0].startswith(f"refresh small: running, process {process}")
        assert status.check(root, 36).code == 0
        assert ", running" in status.check(root, 36).line
        state.lock_of(root, "small").write_bytes(b"")
        (found,) = status.refreshes(root)
        assert found.running, "one that has just begun has not written yet who it is"
    (found,) = status.refreshes(root)
    assert found.running == ""
    assert "was killed" in found.lines()[0]
    assert status.check(root, 36).code == 1


def test_one_that_failed_is_told_with_its_cause_and_what_to_do(inkstone: Inkstone, root: Path) -> None:
    remember(root, result="failed", exit_code=74, error="disk: no space", hint="free some", last_success=ago(30))
    (told,) = inkstone("status")["refreshes"]
    assert (told["result"], told["exit_code"], told["error"], told["hint"]) == (
        "failed",
        74,
        "disk: no space",
        "free some",
    )
    assert told["success_hours"] == pytest.approx(30, abs=0.1)
    (line,) = status.refreshes(root)[0].lines()
    assert line == "refresh small: failed 30 min ago, exit 74: disk: no space — free some; last success 30.0 h ago"


# The shelves


def test_every_artifact_is_listed_with_its_age_size_and_how_many_are_older(root: Path) -> None:
    for number in range(3):
        made = publish(root, number)
    link = root / "tokens" / "small" / "current"
    os.utime(link, (time.time() - 7200,) * 2, follow_symlinks=False)
    (row,) = status.status(root)
    assert (row.ref, row.state, row.bytes, row.summary) == (
        made.ref,
        "current",
        1002,
        "2 documents, 20 tokens, 2 older",
    )
    assert row.age_hours == pytest.approx(2, abs=0.01)


def test_what_is_unfinished_being_built_or_damaged_is_told_apart(root: Path) -> None:
    made = publish(root, 1)
    draft = made.path.with_name(".draft-0123456789abcdef")
    draft.mkdir()
    (draft / "half").write_bytes(bytes(77))
    assert [(row.state, row.bytes) for row in status.status(root)] == [("current", 1001), ("unfinished", 77)]
    with held(root / "tokens" / "small" / ".lock"):
        assert [row.state for row in status.status(root)] == ["current", "in use"]
    made.file("data").write_bytes(b"short")
    assert [row.state for row in status.status(root)] == ["damaged", "unfinished"]


def test_a_raw_source_that_lost_a_file_or_its_list_is_damaged(root: Path) -> None:
    folder = root / "raw" / "book"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"text")
    cache.write_lock(root, "book", {"a.txt": cache.RawFile(4, "x", 0, "there")})
    assert [(row.ref, row.state, row.summary) for row in status.status(root)] == [("raw/book", "current", "1 files")]
    (folder / "a.txt").unlink()
    assert [row.state for row in status.status(root)] == ["damaged"]
    (folder / "sources.lock.json").write_bytes(b"{")
    assert [row.state for row in status.status(root)] == ["damaged"]


def test_one_may_look_while_others_build_and_prune(root: Path) -> None:
    """What vanishes while one looks is no error, and nothing that is whole is called damaged."""
    stop = threading.Event()

    def build(number: int, *, keep_draft: bool) -> None:
        def write(draft: Path) -> Content:
            for file in range(30):
                (draft / f"{file}").write_bytes(bytes(100))
                (draft / f"passing-{file}").write_bytes(b"x")
                (draft / f"passing-{file}").unlink()
            return Content({"tokens": 1})

        artifact.build(root, Identity("tokens", "small", {"number": number}, ()), write, keep_draft=keep_draft)

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            build(number % 5, keep_draft=bool(number % 2))
            if number % 5 == 0:
                generations.prune(root, keep=1)

    build(0, keep_draft=False)
    worker = threading.Thread(target=work)
    worker.start()
    states, looked = set(), 0
    deadline = time.monotonic() + 2
    try:
        while time.monotonic() < deadline:
            states |= {row.state for row in status.status(root)}
            looked += 1
    finally:
        stop.set()
        worker.join()
    assert looked > 50
    assert {"current"} < states <= {"current", "in use", "unfinished"}


# In nobody's way


def test_status_answers_at_once_in_a_store_of_50_generations(root: Path) -> None:
    for number in range(50):
        publish(root, number)
    remember(root)
    command = [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "--json", "status"]
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)  # what it used: others may use the machine as well
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert json.loads(done.stdout)["rows"][0]["summary"].endswith("49 older")
    assert min(seconds) < 0.3, seconds


def test_status_loads_nothing_heavy_and_asks_for_no_network(root: Path) -> None:
    publish(root, 1)
    remember(root)
    script = f"import sys, cli; cli.main(['--artifacts', {str(root)!r}, 'status']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert not loaded & {"torch", "h5py", "tiktoken", "sentencepiece", "matplotlib", "requests", "rich", "urllib3"}


def test_status_waits_for_no_lock_and_writes_nothing(root: Path) -> None:
    publish(root, 1)
    (root / "tokens" / "small" / ".draft-0123456789abcdef").mkdir()
    remember(root)
    every = [root / "tokens" / "small" / ".lock", state.lock_of(root, "small")]
    with held(*every), ExitStack() as leases:
        leases.enter_context(artifact.lease(artifact.find(root, "tokens", "small")))
        before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
        start = time.monotonic()
        assert [row.state for row in status.status(root)] == ["current", "in use"]
        assert status.check(root, 36).code == 0
        assert time.monotonic() - start < 1
        assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == before
        assert all(locks.is_locked(path) for path in every)


def test_one_who_looks_all_the_time_holds_no_refresh_up(root: Path) -> None:
    path = state.lock_of(root, "small")
    remember(root)
    path.touch()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            status.refreshes(root)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(50):
            with locks.lock(path):
                pass
    finally:
        stop.set()
        for looker in lookers:
            looker.join()
    assert not locks.is_locked(path)


def test_lengths_and_sizes_are_said_as_a_person_says_them() -> None:
    assert [status.age(hours) for hours in (0, 0.5, 1, 47.9, 72)] == ["0 min", "30 min", "1.0 h", "47.9 h", "3 d"]
    assert [status.duration(seconds) for seconds in (None, 3, 89, 600, 7200)] == ["?", "3 s", "89 s", "10 min", "2.0 h"]
    assert [status.size(count) for count in (None, 0, 999, 1500, 2_000_000, 3_000_000_000)] == [
        *("?", "0 B", "999 B", "1.5 KB", "2.0 MB", "3.0 GB")
    ]
    assert files.bytes_below(ROOT / "no such folder") == 0
    assert files.size_of(ROOT / "no such file") is None
