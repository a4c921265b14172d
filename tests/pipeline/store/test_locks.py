"""Locks have one holder and end with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from pipeline.errors import BadConfig, TryAgain
from pipeline.store import locks
from tests.pipeline.store.test_artifact import in_child
from tests.support.faults import another_process

pytestmark = pytest.mark.usefixtures("no_descriptor_stays_open")

HOLD_THE_LOCK = """
import subprocess, sys
from pathlib import Path
from pipeline.store import locks
with locks.lock(Path(sys.argv[1]), action="clean pile"):
    child = subprocess.Popen(["sleep", "30"])
    print(child.pid, flush=True)
    child.wait()
"""


def refuse_flock(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    def refuse(descriptor: int, operation: int) -> NoReturn:
        raise error

    patch.setattr(fcntl, "flock", refuse)


@contextmanager
def lock_holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lock `path` and has a child process."""
    with another_process(HOLD_THE_LOCK, path) as (process, child):
        try:
            yield process
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_second_process_gets_try_again_at_once(tmp_path: Path) -> None:
    path = tmp_path / "shelf" / ".lock"
    with lock_holder(path) as holder:
        start = time.monotonic()
        with pytest.raises(TryAgain) as caught, locks.lock(path):
            pytest.fail("two processes hold the lock")
        assert time.monotonic() - start < 1
        assert caught.value.exit_code == 75
        assert str(holder.pid) in caught.value.message
        assert "clean pile" in caught.value.message
        assert locks.is_locked(path)


def test_killed_holder_frees_the_lock_though_its_child_lives(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with lock_holder(path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert not locks.is_locked(path)
        with locks.lock(path, action="tokenize"):
            holder_now = locks.current_holder(path)
            assert holder_now
            assert (holder_now.pid, holder_now.doing) == (os.getpid(), "tokenize")


def test_lock_waits_as_long_as_requested(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with locks.lock(path):
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    with pytest.raises(TryAgain), locks.lock(path, wait=0.15):
        pytest.fail("two threads hold the lock")
    release.set()
    with locks.lock(path, wait=10):
        pass
    thread.join()


def test_exception_frees_the_lock_and_keeps_its_file(tmp_path: Path) -> None:
    path = tmp_path / ".lock"

    def hold_and_fail() -> None:
        with locks.lock(path):
            assert locks.is_locked(path)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        hold_and_fail()
    assert path.exists()
    assert not locks.is_locked(path)


def test_missing_lock_file_is_not_locked(tmp_path: Path) -> None:
    assert locks.is_locked(tmp_path / ".lock") is False
    assert os.listdir(tmp_path) == []


def test_holder_in_the_file_of_a_free_lock_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_bytes(msgspec.json.encode(holder_of(os.getppid())))
    assert locks.is_locked(path) is False
    assert locks.current_holder(path) is None


def test_symlink_is_refused_as_lock_file(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep me")
    (tmp_path / ".lock").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic"), locks.lock(tmp_path / ".lock"):
        pytest.fail("the lock was taken through a symlink")
    assert (tmp_path / "precious").read_text() == "keep me"


@pytest.mark.parametrize("recreated", [False, True])
def test_lock_on_a_file_deleted_meanwhile_is_taken_on_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recreated: bool
) -> None:
    path, flock = tmp_path / ".lock", fcntl.flock

    def flock_a_deleted_file(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        if recreated:
            path.touch()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_a_deleted_file)
    with locks.lock(path):
        assert locks.is_locked(path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_system_without_locks_can_be_read_and_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "manifest.json"
    path.touch()
    refuse_flock(monkeypatch, OSError(code, os.strerror(code)))
    with pytest.raises(BadConfig) as caught, locks.lock(tmp_path / ".lock"):
        pytest.fail("a lock without effect")
    assert caught.value.message == f"{tmp_path}: this file system has no locks: {os.strerror(code).lower()}"
    assert "--artifacts" in caught.value.hint
    assert not locks.is_locked(tmp_path / ".lock")
    with locks.lease(path):
        pass
    with open(path) as temporary:
        locks.hold(temporary.fileno())
        assert not locks.is_held(path)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), KeyboardInterrupt()], ids=repr)
def test_any_other_error_of_flock_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / ".lock"
    path.touch()
    refuse_flock(monkeypatch, error)
    for use in (locks.lock, locks.lease, locks.if_unleased):
        with pytest.raises(type(error)) as caught, use(path):
            pytest.fail("used without a lock")
        assert caught.value is error
    with pytest.raises(type(error)):
        locks.is_locked(path)


def test_lock_file_describes_its_holder_and_is_empty_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "tokens" / "pile" / ".lock"
    with locks.lock(path, action="tokenize pile", run_id="seven") as held:
        held.set_stage("a stage with a long name")
        held.set_stage("unit 2")
        holder = locks.current_holder(path)
        assert holder
        assert (holder.pid, holder.started, holder.boot, holder.host) == (
            *(os.getpid(), locks.start_ticks(os.getpid())),
            *(locks.boot_id(), platform.node()),
        )
        assert (holder.doing, holder.stage, holder.run_id) == ("tokenize pile", "unit 2", "seven")
        description = rf"process {os.getpid()} \(tokenize pile, at unit 2, since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ\)"
        with pytest.raises(TryAgain, match=description), locks.lock(path):
            pytest.fail("two hold the lock")
    assert path.read_bytes() == b""
    with locks.lock(path):
        holder = locks.current_holder(path)
        assert holder
        assert (holder.doing, holder.stage, holder.run_id) == ("", "", "")


def test_lock_is_held_though_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with locks.lock(tmp_path / ".lock"):
        assert locks.is_locked(tmp_path / ".lock")
        assert locks.current_holder(tmp_path / ".lock") is None
        with pytest.raises(TryAgain, match="in use by another process"), locks.lock(tmp_path / ".lock"):
            pytest.fail("two hold the lock")
    assert not locks.is_locked(tmp_path / ".lock")


@pytest.mark.parametrize(
    ("wait", "stopped_at", "end"), [(0, 99, 0.2), (0.1, 99, 0.2), (1.5, 99, 1.5), (60, 99, 60), (60, 7, 7)]
)
def test_waiting_ends_at_its_deadline_or_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: float, stopped_at: float, end: float
) -> None:
    now = 0.0

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            nonlocal now
            now += 1 / 64
            return now >= stopped_at

    monkeypatch.setattr(time, "monotonic", lambda: now)
    with locks.lock(tmp_path / ".lock"):
        with pytest.raises(TryAgain), locks.lock(tmp_path / ".lock", wait=wait, stop=Clock()):
            pytest.fail("two hold the lock")
        assert 0 <= now - end < 1 / 64


# Processes, of which a lock file names one


@contextmanager
def sleeping(*command: str | Path) -> Iterator[int]:
    """Yield the process id of a program that sleeps while the block runs."""
    with subprocess.Popen(command or ("sleep", "60")) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def holder_of(pid: int, /, **fields: Any) -> locks.LockHolder:
    holder = locks.LockHolder(pid, locks.start_ticks(pid), locks.boot_id(), platform.node(), "clean", "today")
    return msgspec.structs.replace(holder, **fields)


NO_PROCESS = 2**22 + 1  # above the largest process id

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="NOT tested: no /proc here")


@needs_proc
@pytest.mark.parametrize(
    ("fields", "alive"),
    [
        ({}, True),
        ({"started": 1}, False),
        ({"boot": "another"}, False),
        ({"host": "another"}, False),
        ({"pid": NO_PROCESS, "started": 0}, False),
    ],
)
def test_without_locks_only_a_live_process_of_this_machine_holds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], alive: bool
) -> None:
    path = tmp_path / ".lock"
    refuse_flock(monkeypatch, OSError(errno.ENOLCK, "no locks available"))
    with sleeping() as pid:
        path.write_bytes(msgspec.json.encode(holder_of(pid, **fields)))
        assert locks.is_locked(path) is alive
        if holder := locks.current_holder(path):
            assert (holder.pid, holder.stage, holder.run_id) == (pid, "", "")
        monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)  # without effect, as on some mounts
        if alive:
            with pytest.raises(TryAgain), locks.lock(path):
                pytest.fail("two hold the lock")
        else:
            with locks.lock(path):
                pass


def test_this_process_is_never_another_holder(tmp_path: Path) -> None:
    """A lock file names it after its lock ended without a word, for example on a full disk."""
    path = tmp_path / ".lock"
    path.write_bytes(msgspec.json.encode(holder_of(os.getpid())))
    with locks.lock(path, action="tokenize"):
        pass


@needs_proc
def test_start_of_a_process_is_in_ticks_since_boot_whatever_its_name(tmp_path: Path) -> None:
    program = tmp_path / os.fsdecode(b"a) Z 1 (\xff")
    shutil.copy(shutil.which("sleep") or "", program)
    with sleeping(program, "60") as pid:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        age = uptime - locks.start_ticks(pid) / os.sysconf("SC_CLK_TCK")
        assert 0 <= age + 0.02 < 10


@needs_proc
def test_ended_process_has_no_start_even_before_its_parent_asks_for_its_result() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert locks.start_ticks(process.pid) == 0
    assert locks.start_ticks(NO_PROCESS) == 0


def test_boot_has_an_id_unless_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with suppress(FileNotFoundError):
        assert locks.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def fail(path: Path) -> NoReturn:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", fail)
    assert locks.boot_id() == ""


# Leases and temporaries


def test_any_number_of_leases_keep_a_file_and_none_is_taken_while_it_is_pruned(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.touch()
    with locks.lease(path), locks.lease(path), locks.if_unleased(path) as free:
        assert free is False
    with locks.if_unleased(path) as free:
        assert free is True
        assert locks.is_locked(path)
    assert not locks.is_locked(path)


@pytest.mark.parametrize("moment", ["deleted", "replaced"])
def test_lease_on_a_file_that_is_gone_once_it_is_locked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path, flock = tmp_path / "manifest.json", fcntl.flock
    path.touch()

    def wait_for_the_lock(descriptor: int, operation: int) -> None:
        path.unlink()
        if moment == "replaced":
            path.touch()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", wait_for_the_lock)
    with pytest.raises(FileNotFoundError) as caught, locks.lease(path):
        pytest.fail("a lease on another file")
    assert (caught.value.errno, str(caught.value.filename)) == (errno.ENOENT, str(path))


def test_temporary_is_held_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "folder"):
        descriptor = os.open(path, os.O_RDONLY)
        locks.hold(descriptor)
        assert locks.is_held(path) is True
        os.close(descriptor)
        assert locks.is_held(path) is False
    os.mkfifo(tmp_path / "fifo")
    assert not locks.is_held(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic"):
        locks.is_held(tmp_path / "link")


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600), (0o000, 0o666)])
def test_lock_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "shelf" / ".lock"
    previous = os.umask(umask)
    try:
        with locks.lock(path):
            assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (mode, 0o777 & ~umask)
    finally:
        os.umask(previous)


def test_lock_file_of_another_user_is_shared_in_a_writable_folder(tmp_path: Path) -> None:
    """A store that an earlier version wrote has lock files that only their owner can write to."""
    if os.getuid():
        pytest.skip("NOT tested with a second user: needs root")
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    shelf.chmod(0o777)
    (shelf / ".lock").touch(0o644)

    def as_nobody() -> None:
        os.setgroups([])
        os.setegid(65534)
        os.seteuid(65534)
        with locks.lock(shelf / ".lock"):
            pass

    assert in_child(as_nobody) == 0
    with locks.lock(shelf / ".lock"):
        assert in_child(as_nobody) == 75
    shelf.chmod(0o755)
    assert in_child(as_nobody) == 77, "nothing could be built there"
