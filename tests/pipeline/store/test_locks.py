"""Locks have one holder and end with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pipeline.errors import BadConfig, TryAgain
from pipeline.store import locks
from tests.pipeline.store.test_artifact import in_child
from tests.support.faults import another_process

ROOT = Path(__file__).resolve().parents[3]

HOLD_THE_LOCK = """
import subprocess, sys
from pathlib import Path
from pipeline.store import locks
with locks.lock(Path(sys.argv[1]), action="clean pile"):
    child = subprocess.Popen(["sleep", "30"])
    print(child.pid, flush=True)
    child.wait()
"""


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
    assert not locks.is_locked(tmp_path / ".lock")
    assert os.listdir(tmp_path) == []


def test_symlink_is_refused_as_lock_file(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep me")
    (tmp_path / ".lock").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic"), locks.lock(tmp_path / ".lock"):
        pytest.fail("the lock was taken through a symlink")
    assert (tmp_path / "precious").read_text() == "keep me"


def test_waiter_on_deleted_lock_file_does_not_share_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    waiter_holds, finish = threading.Event(), threading.Event()

    def wait() -> None:
        with locks.lock(path, wait=10):
            waiter_holds.set()
            finish.wait(10)

    waiter = threading.Thread(target=wait)
    with ExitStack() as second:
        with locks.lock(path):
            waiter.start()
            time.sleep(0.2)
            path.unlink()
            second.enter_context(locks.lock(path))
        both_hold = waiter_holds.wait(0.5)
        finish.set()
    waiter.join()
    assert not both_hold


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_system_without_locks_can_be_read_and_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "manifest.json"
    path.touch()

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(BadConfig) as caught, locks.lock(tmp_path / ".lock"):
        pytest.fail("a lock without effect")
    assert caught.value.message == f"{tmp_path}: this file system has no locks: {os.strerror(code).lower()}"
    assert "--artifacts" in caught.value.hint
    assert not locks.is_locked(tmp_path / ".lock")
    with locks.lease(path):
        pass


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
