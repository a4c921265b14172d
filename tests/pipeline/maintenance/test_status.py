"""Status and its check for monitors: correct, fast and without locks."""

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

import cli
from pipeline.maintenance import retention, status
from pipeline.refresh import state
from pipeline.refresh.state import RefreshState
from pipeline.runtime.terminal import sparkline
from pipeline.sources import cache
from pipeline.store import artifact, files, locks
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.leftovers import leftovers
from pipeline.store.manifest import Identity
from tests.pipeline.store.test_leftovers import temporary
from tests.support.upstream import ROOT

Inkstone = Callable[..., dict[str, Any]]


def publish(root: Path, number: int, kind: str = "tokens", name: str = "small") -> Artifact:
    def write(draft: Path) -> StageOutput:
        (draft / "data").write_bytes(bytes(1000 + number))
        return StageOutput({"documents": number, "tokens": 10 * number})

    return artifact.build(root, Identity(kind, name, {"number": number}, ()), write).artifact


def ago(hours: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600 * hours))


def write_state(root: Path, recipe: str = "small", **fields: Any) -> None:
    """Write the state of a refresh that succeeded half an hour ago, changed by `fields`."""
    values = {"run_id": "x", "ended": ago(0.5), "last_success": ago(0.5), "result": "unchanged", **fields}
    state.write(root, RefreshState(recipe, **values))


HOLD = """
import sys
from contextlib import ExitStack
from pathlib import Path
from pipeline.store import locks
with ExitStack() as stack:
    for path in sys.argv[1:]:
        stack.enter_context(locks.lock(Path(path), action="refresh small", run_id="x")).set_stage("tokenize")
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(*paths: Path) -> Iterator[int]:
    """Hold these locks in another process while the block runs; yields its process id."""
    command = [sys.executable, "-c", HOLD, *map(str, paths)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.kill()


# Check for monitors


def with_damage(root: Path) -> None:
    write_state(root)
    publish(root, 1).file("data").unlink()


def with_two(root: Path) -> None:
    write_state(root)
    write_state(root, "other", last_success="")


def fifo_record(root: Path) -> None:
    state.path_of(root, "small").parent.mkdir(parents=True)
    os.mkfifo(state.path_of(root, "small"))


NAGIOS: dict[str, tuple[int, str, Callable[[Path], object]]] = {
    "recent success": (0, "OK - small: last success 30 minutes ago", write_state),
    "failure after recent success": (
        1,
        "WARNING - small: last success 2 hours ago, the disk is full",
        lambda root: write_state(root, result="failed", error="the disk is full", last_success=ago(2)),
    ),
    "killed run": (1, "the last run was killed", lambda root: write_state(root, result="running")),
    "old success": (
        2,
        "CRITICAL - small: last success 2 days and 1 hour ago",
        lambda root: write_state(root, last_success=ago(49)),
    ),
    "no success": (
        2,
        "CRITICAL - small: last success never",
        lambda root: write_state(root, last_success=""),
    ),
    "success in the future": (
        2,
        "CRITICAL - small: last success in the future: check the clock of this machine",
        lambda root: write_state(root, last_success=ago(-24 * 365)),
    ),
    "clock of another machine": (
        0,
        "OK - small: last success 0 seconds ago",
        lambda r: write_state(r, last_success=ago(-0.05)),
    ),
    "record that is a folder": (
        2,
        "CRITICAL - small: last success never",
        lambda root: state.path_of(root, "small").mkdir(parents=True),
    ),
    "record that is a FIFO": (2, "CRITICAL - small: last success never", fifo_record),
    "damaged artifact": (2, "is damaged; small: last success", with_damage),
    "the worst of two": (
        2,
        "CRITICAL - other: last success never; small: last success 30 minutes ago",
        with_two,
    ),
    "no refresh": (3, "UNKNOWN - nothing was ever refreshed", lambda root: publish(root, 1)),
    "an empty store": (3, "UNKNOWN - nothing was ever refreshed", lambda root: None),
}


@pytest.mark.parametrize("case", NAGIOS)
def test_check_reports(root: Path, case: str) -> None:
    code, line, prepare = NAGIOS[case]
    prepare(root)
    result = status.check(root, 36)
    assert (result.code, line in result.line) == (code, True), result.line
    assert "\n" not in result.line


def test_check_prints_one_line_and_exits_with_its_code(inkstone: Inkstone, root: Path) -> None:
    for case in ("an empty store", "recent success", "killed run", "no success"):
        code, line, prepare = NAGIOS[case]
        prepare(root)
        command = [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "-q", "status", "--check"]
        process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert (process.returncode, process.stderr, process.stdout.count("\n")) == (code, "", 1)
        assert line in process.stdout
    assert inkstone("status", "--check", code=2)["exit_code"] == 2
    assert inkstone("status", "--check", "--max-age", "soon", code=78)["hint"] == "for example 90m, 36h or 7d"


@pytest.mark.parametrize(("limit", "code"), [("90m", 2), ("2h", 2), ("3h", 0), ("1d", 0)])
def test_max_age_accepts_minutes_hours_and_days(inkstone: Inkstone, root: Path, limit: str, code: int) -> None:
    write_state(root, last_success=ago(2.5))
    assert inkstone("status", "--check", "--max-age", limit, code=code)["exit_code"] == code


def test_running_refresh_is_reported_with_process_and_stage(root: Path) -> None:
    write_state(root, result="running", last_success=ago(2))
    with held(state.lock_of(root, "small")) as process:
        (refresh_status,) = status.refreshes(root)
        assert f"process {process} (refresh small, at tokenize, since 20" in refresh_status.running
        assert refresh_status.line().startswith(f"refresh small: running, process {process}")
        assert status.check(root, 36).code == 0
        assert ", running" in status.check(root, 36).line
        state.lock_of(root, "small").write_bytes(b"")
        (refresh_status,) = status.refreshes(root)
        assert refresh_status.running, "a refresh that has just started has not written its holder yet"
    (refresh_status,) = status.refreshes(root)
    assert refresh_status.running == ""
    assert "was killed" in refresh_status.line()
    assert status.check(root, 36).code == 1


def test_failed_refresh_is_reported_with_cause_and_hint(inkstone: Inkstone, root: Path) -> None:
    write_state(root, result="failed", exit_code=74, error="disk: no space", hint="free some", last_success=ago(30))
    (record,) = inkstone("status")["refreshes"]
    assert (record["result"], record["exit_code"], record["error"], record["hint"]) == (
        "failed",
        74,
        "disk: no space",
        "free some",
    )
    assert record["success_hours"] == pytest.approx(30, abs=0.1)
    line = status.refreshes(root)[0].line()
    expected = "failed 30 minutes ago, exit 74: disk: no space — free some; last success 1 day and 6 hours ago"
    assert line == f"refresh small: {expected}"


# Artifacts


def test_artifact_row_has_age_size_and_number_of_older_generations(root: Path) -> None:
    for number in range(3):
        built = publish(root, number)
    link = root / "tokens" / "small" / "current"
    os.utime(link, (time.time() - 7200,) * 2, follow_symlinks=False)
    (row,) = status.status(root)
    assert (row.ref, row.state, row.bytes, row.summary) == (
        built.ref,
        "current",
        1002,
        "2 documents, 20 tokens, 2 older",
    )
    assert row.age_hours == pytest.approx(2, abs=0.01)


def test_unfinished_running_and_damaged_artifacts_have_own_states(root: Path) -> None:
    built = publish(root, 1)
    draft = built.path.with_name(".draft-0123456789abcdef")
    draft.mkdir()
    (draft / "half").write_bytes(bytes(77))
    assert [(row.state, row.bytes) for row in status.status(root)] == [("current", 1001), ("unfinished", 77)]
    with held(root / "tokens" / "small" / ".lock"):
        assert [row.state for row in status.status(root)] == ["current", "in use"]
    built.file("data").write_bytes(b"short")
    assert [row.state for row in status.status(root)] == ["damaged", "unfinished"]


def test_every_draft_and_every_leftover_has_a_row(root: Path) -> None:
    shelf = publish(root, 1).path.parent
    for number in range(2):
        (shelf / f".draft-000000000000000{number}").mkdir()
    temporary(root / "exports" / "small-hf")
    unused = temporary(shelf / "current")
    rows = [(row.ref, row.state, row.bytes) for row in status.status(root)[1:]]
    assert rows == [
        ("tokens/small/0000000000000000", "unfinished", 0),
        ("tokens/small/0000000000000001", "unfinished", 0),
        *((str(path.relative_to(root)), "leftover", 4) for path in leftovers(root)),
    ]
    assert "`prune` deletes it" in status.status(root)[-1].summary
    retention.prune(root)
    assert not unused.exists()
    assert [row.state for row in status.status(root)] == ["current", "unfinished", "unfinished"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_current_that_is_no_link_is_damaged(root: Path, make: Callable[[Path], None]) -> None:
    link = publish(root, 1).path.with_name("current")
    link.unlink()
    make(link)
    (row,) = status.status(root)
    assert (row.ref, row.state) == ("tokens/small", "damaged")
    assert "expected a link to a generation" in row.summary


def test_tokenizer_row_has_its_number_of_pieces(root: Path) -> None:
    artifact.build(root, Identity("tokenizers", "small", {}, ()), lambda draft: StageOutput({"vocab_size": 1000}))
    assert status.status(root)[0].summary == "1,000 pieces"


RESULTS = {
    '{"bits_per_char": 2.1, "best_bits_per_char": 2.085}': ", 2.08 bits per character (last 2.10)",
    '{"best_bits_per_char": 2.085}': ", 2.08 bits per character",
    '{"bits_per_char": 2.1, "seconds": 7}': ", 2.10 bits per character, 7 seconds",
    '{"bits_per_char": null, "seconds": 0}': "",
    "{": "",
}


@pytest.mark.parametrize("result", RESULTS)
def test_run_row_has_bits_per_character_and_minutes(root: Path, result: str) -> None:
    def write(draft: Path) -> StageOutput:
        (draft / "result.json").write_text(result)
        return StageOutput({"steps": 12})

    artifact.build(root, Identity("runs", "small", {}, ()), write)
    assert status.status(root)[0].summary == f"12 steps{RESULTS[result]}"


def test_run_row_has_the_curve_of_its_evaluations(
    root: Path, inkstone: Inkstone, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(draft: Path) -> StageOutput:
        (draft / "metrics.csv").write_text("step,train_loss,bits_per_char\n0,,5.2\n5,7.1,\n10,6.9,3.5\n20,6.8,4.5\n")
        return StageOutput({"steps": 20})

    artifact.build(root, Identity("runs", "small", {}, ()), write)
    assert status.status(root)[0].curve == (5.2, 3.5, 4.5)
    assert inkstone("status")["rows"][0]["curve"] == [5.2, 3.5, 4.5]
    assert cli.main(["--artifacts", str(root), "status"]) == 0
    heading, row = capsys.readouterr().out.splitlines()[:2]
    assert heading.split() == ["artifact", "state", "age", "size", "content"]
    assert row.endswith(f"20 steps  {sparkline((5.2, 3.5, 4.5))}")


def test_run_row_without_readable_metrics_has_no_curve(root: Path) -> None:
    def write(draft: Path) -> StageOutput:
        (draft / "metrics.csv").write_text("step,bits_per_char\n0,high\n")
        return StageOutput({"steps": 20})

    artifact.build(root, Identity("runs", "small", {}, ()), write)
    assert status.status(root)[0].curve == ()


def test_publications_are_those_of_the_last_day_newest_first(root: Path) -> None:
    built = [publish(root, number) for number in range(4)]
    for generation, hours in zip(built, (50, 3, 23, 1), strict=True):
        generation.file("run.json").write_text(json.dumps({"finished": ago(hours)}))
    assert [entry.ref for entry in status.publications(root)] == [built[number].ref for number in (3, 1, 2)]
    assert status.publications(root)[0].age_hours == pytest.approx(1, abs=0.01)


def test_status_ends_with_what_is_new_and_with_sums(inkstone: Inkstone, root: Path) -> None:
    first = publish(root, 1)
    os.link(first.file("data"), first.path / "linked")
    record = inkstone("status")
    assert record["published"] == [{"ref": first.ref, "age_hours": pytest.approx(0, abs=0.1)}]
    names = ("data", "manifest.json", "run.json")
    expected = sum(first.file(name).stat().st_size for name in names)
    assert record["counts"]["bytes"] == status.store_size(root) == expected


def test_source_with_missing_file_or_broken_lock_is_damaged(root: Path) -> None:
    folder = root / "raw" / "book"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"text")
    cache.write_lock_file(root, "book", {"a.txt": cache.RawFile(4, "x", 0, "there")})
    assert [(row.ref, row.state, row.summary) for row in status.status(root)] == [("raw/book", "current", "1 file")]
    (folder / "a.txt").unlink()
    assert [row.state for row in status.status(root)] == ["damaged"]
    (folder / "sources.lock.json").write_bytes(b"{")
    assert [row.state for row in status.status(root)] == ["damaged"]


def test_status_is_correct_during_builds_and_prunes(root: Path) -> None:
    """A file that vanishes during status is not an error, and no valid artifact is reported as damaged."""
    stop = threading.Event()

    def build(number: int, *, keep_draft: bool) -> None:
        def write(draft: Path) -> StageOutput:
            for file in range(30):
                (draft / f"{file}").write_bytes(bytes(100))
                (draft / f"temporary-{file}").write_bytes(b"x")
                (draft / f"temporary-{file}").unlink()
            return StageOutput({"tokens": 1})

        artifact.build(root, Identity("tokens", "small", {"number": number}, ()), write, keep_draft=keep_draft)

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            build(number % 5, keep_draft=bool(number % 2))
            if number % 5 == 0:
                retention.prune(root, keep=1)

    build(0, keep_draft=False)
    worker = threading.Thread(target=work)
    worker.start()
    states, rounds = set(), 0
    deadline = time.monotonic() + 2
    try:
        while time.monotonic() < deadline:
            states |= {row.state for row in status.status(root)}
            rounds += 1
    finally:
        stop.set()
        worker.join()
    assert rounds > 50
    assert {"current"} < states <= {"current", "in use", "unfinished"}


# Speed and locks


def test_status_of_50_generations_takes_under_300_ms(root: Path) -> None:
    for number in range(50):
        publish(root, number)
    write_state(root)
    command = [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "--json", "status"]
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)  # CPU time, which does not depend on other load
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert json.loads(process.stdout)["rows"][0]["summary"].endswith("49 older")
    assert min(seconds) < 0.3, seconds


def test_status_imports_nothing_heavy_and_uses_no_network(root: Path) -> None:
    publish(root, 1)
    write_state(root)
    script = f"import sys, cli; cli.main(['--artifacts', {str(root)!r}, 'status']); print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {name.split(".")[0] for name in process.stdout.splitlines()[-1].split()}
    assert not loaded & {"torch", "h5py", "tiktoken", "sentencepiece", "matplotlib", "requests", "rich", "urllib3"}


def test_status_waits_for_no_lock_and_writes_nothing(root: Path) -> None:
    publish(root, 1)
    (root / "tokens" / "small" / ".draft-0123456789abcdef").mkdir()
    write_state(root)
    lock_paths = [root / "tokens" / "small" / ".lock", state.lock_of(root, "small")]
    with held(*lock_paths), ExitStack() as leases:
        leases.enter_context(artifact.lease(artifact.find(root, "tokens", "small")))
        before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
        start = time.monotonic()
        assert [row.state for row in status.status(root)] == ["current", "in use"]
        assert status.check(root, 36).code == 0
        assert time.monotonic() - start < 1
        assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == before
        assert all(locks.is_locked(path) for path in lock_paths)


def test_reading_status_in_a_loop_does_not_block_refresh(root: Path) -> None:
    path = state.lock_of(root, "small")
    write_state(root)
    path.touch()
    stop = threading.Event()

    def read_status() -> None:
        while not stop.is_set():
            status.refreshes(root)

    readers = [threading.Thread(target=read_status) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(50):
            with locks.lock(path):
                pass
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not locks.is_locked(path)


def test_durations_and_sizes_are_readable() -> None:
    hours = {None: "never", 0: "0 seconds ago", 0.5: "30 minutes ago", 1: "1 hour ago", 72.4: "3 days ago"}
    assert {value: status.age(value) for value in hours} == hours
    seconds = {None: "?", 3: "3 seconds", 89: "1 minute", 600: "10 minutes", 9000: "2 hours and 30 minutes"}
    assert {value: status.duration(value) for value in seconds} == seconds
    assert [status.size(count) for count in (None, 0, 999, 1500, 2_000_000, 3_000_000_000)] == [
        *("?", "0 Bytes", "999 Bytes", "1.5 kB", "2.0 MB", "3.0 GB")
    ]
    assert files.folder_size(ROOT / "no such folder") == 0
    assert files.file_size(ROOT / "no such file") is None
