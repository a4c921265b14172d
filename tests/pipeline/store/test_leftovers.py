"""What killed commands leave is found and deleted; what a live process uses is not."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import CannotCreate
from pipeline.readers import compression
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.decompress import decompress
from pipeline.store import leftovers, locks
from tests.pipeline.store.test_artifact import in_child
from tests.support.faults import another_process

KILLED, OTHER_BOOT = 2**22 + 1, "0badb007"  # a process id above the largest one, and another boot


def temporary(target: Path, *, boot: str = locks.boot_id()[:8], writer: int = KILLED, prefix: str = ".tmp") -> Path:
    """Create a temporary of a process that no longer lives."""
    path = target.with_name(f"{prefix}.{target.name}.{boot}.{writer}.0123abcd")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    return path


def test_leftovers_are_found_everywhere_in_a_store(root: Path) -> None:
    expected = [
        temporary(root / "doctor"),
        temporary(root / ".state" / "small.json"),
        temporary(root / "exports" / "small-hf"),
        temporary(root / "raw" / "small" / "decompressed" / "a.jsonl", boot=OTHER_BOOT),
        temporary(root / "tokens" / "small" / "0123456789abcdef", prefix=".trash"),
    ]
    folder = root / "exports" / ".tmp.of-an-earlier-version.1a2b3c4d"
    folder.mkdir()
    temporary(folder / "inside")  # goes with its folder
    link = root / "runs" / "small" / ".tmp.current.0badb007.1.0123abcd"
    link.parent.mkdir(parents=True)
    link.symlink_to("0123456789abcdef")
    temporary(root / "tokens" / "small" / ".draft-0123456789abcdef" / "data")  # a resumed build deletes it
    temporary(root / "tokens" / "small" / "0123456789abcdef" / "data")
    assert leftovers.leftovers(root) == sorted([*expected, folder, link])


def test_empty_store_has_no_leftovers(root: Path) -> None:
    assert leftovers.leftovers(root) == []
    assert not root.exists()


@contextmanager
def writer(kind: str, target: Path) -> Iterator[None]:
    """Write a file or a folder in another process while the block runs."""
    script = f"""
import sys
import time
from pathlib import Path
from pipeline.store import files
with files.{kind}(Path(sys.argv[1])):
    print("writes", flush=True)
    time.sleep(60)
"""
    with another_process(script, target) as (process, line):
        assert line == "writes"
        yield
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["new_file", "new_folder"])
@pytest.mark.parametrize("namespace", ["of this machine", "of another container"])
def test_temporary_in_use_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, namespace: str) -> None:
    """A process of another container has an id that is unknown here; its lock is not."""
    target = tmp_path / "out"
    if namespace == "of another container":
        monkeypatch.setattr(locks, "start_ticks", lambda pid: 0)
    with writer(kind, target):
        (path,) = tmp_path.iterdir()
        assert not leftovers.is_abandoned(path)
        leftovers.remove_leftovers_of(target)
        assert path.exists()
    assert leftovers.is_abandoned(path)
    leftovers.remove_leftovers_of(target)
    assert os.listdir(tmp_path) == []


def test_only_leftovers_of_the_target_are_removed(tmp_path: Path) -> None:
    mine, other = temporary(tmp_path / "out"), temporary(tmp_path / "outer")
    leftovers.require_new(tmp_path / "out", outside=tmp_path / "artifact")
    assert (mine.exists(), other.exists()) == (False, True)
    temporary(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(CannotCreate):
        leftovers.require_new(tmp_path / "out", outside=tmp_path / "artifact")


def test_decompression_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zstandard

    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress("一".encode() * 1000))

    def killed() -> None:
        monkeypatch.setattr(compression, "read_blocks", lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
        decompress([path], None, SilentProgress(threading.Event()))

    assert in_child(killed) == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    decompress([path], None, SilentProgress(threading.Event()))
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "a.txt.zst"]
