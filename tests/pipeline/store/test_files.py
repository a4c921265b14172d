"""Durable files: complete or absent, and never replaced silently."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StorageFailed
from pipeline.store import files
from tests.support.faults import another_process

ROOT = Path(__file__).resolve().parents[3]

WRITE_HALF = """
import sys, time
from pathlib import Path
from pipeline.store import files
with files.new_file(Path(sys.argv[1])) as out:
    out.write(b"half of the new")
    print("half", flush=True)
    time.sleep(30)
"""


def test_new_file_holds_the_written_bytes_and_their_hash(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with files.new_file(target) as out:
        out.write(b"ink")
        assert not target.exists()
        out.write(b"stone")
    assert target.read_bytes() == b"inkstone"
    assert (out.size, out.sha256) == (8, hashlib.sha256(b"inkstone").hexdigest())
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exception_keeps_old_content_and_leaves_no_temporary(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_bytes(b"old")

    def write_and_fail() -> None:
        with files.new_file(target) as out:
            out.write(b"new")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_exception_before_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.new_file(tmp_path / "a.txt"):
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_failed_sync_keeps_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    target.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="input/output"):
        files.write_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_killed_writer_keeps_old_content(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_bytes(b"old")
    with another_process(WRITE_HALF, target) as (process, first_line):
        assert first_line == "half"
        process.kill()
        process.wait()
    assert target.read_bytes() == b"old"


def test_file_is_synced_before_rename_and_folder_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operations: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def sync(descriptor: int) -> None:
        operations.append("sync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        operations.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    files.write_file(tmp_path / "a.txt", b"new")
    assert operations == ["sync file", "rename", "sync folder"]


def write_and_read_back(path: Path) -> None:
    files.write_file(path, b"text")
    assert path.read_bytes() == b"text"


def test_longest_latin_file_name_can_be_written(tmp_path: Path) -> None:
    write_and_read_back(tmp_path / ("a" * 255))


def test_longest_chinese_file_name_can_be_written(tmp_path: Path) -> None:
    write_and_read_back(tmp_path / ("水" * 85))


@given(before=st.lists(st.binary()), after=st.lists(st.binary()))
def test_truncation_to_zero_resets_the_hash(before: list[bytes], after: list[bytes]) -> None:
    handle = io.BytesIO()
    out = files.HashingFile(handle, Path("unused"))
    for data in before:
        out.write(data)
    assert out.sha256 == hashlib.sha256(b"".join(before)).hexdigest()
    out.truncate(0)
    for data in after:
        out.write(data)
    expected = b"".join(after)
    assert (handle.getvalue(), out.size, out.sha256) == (
        expected,
        len(expected),
        hashlib.sha256(expected).hexdigest(),
    )


def folder_with(path: Path, text: str) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "a.txt").write_text(text)
    return path


def test_publishing_a_folder_moves_the_draft(tmp_path: Path) -> None:
    draft = folder_with(tmp_path / ".draft", "new")
    assert files.publish_directory(draft, tmp_path / "key")
    assert (tmp_path / "key" / "deep" / "a.txt").read_text() == "new"
    assert not draft.exists()


def test_publishing_never_replaces_a_folder(tmp_path: Path) -> None:
    existing = folder_with(tmp_path / "key", "old")
    draft = folder_with(tmp_path / ".draft", "new")
    assert not files.publish_directory(draft, existing)
    assert (existing / "deep" / "a.txt").read_text() == "old"
    assert not draft.exists()


def test_publishing_over_a_file_fails_and_keeps_both(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("old")
    draft = folder_with(tmp_path / ".draft", "new")
    with pytest.raises(NotADirectoryError):
        files.publish_directory(draft, tmp_path / "key")
    assert (tmp_path / "key").read_text() == "old"
    assert (draft / "deep" / "a.txt").read_text() == "new"


def test_point_replaces_a_relative_symlink(tmp_path: Path) -> None:
    for key in ("first", "second"):
        folder_with(tmp_path / key, key)
        files.point_symlink(tmp_path / "current", key)
        assert os.readlink(tmp_path / "current") == key
        assert (tmp_path / "current" / "deep" / "a.txt").read_text() == key
    assert sorted(os.listdir(tmp_path)) == ["current", "first", "second"]


def test_removing_a_missing_tree_does_nothing(tmp_path: Path) -> None:
    files.remove_tree(folder_with(tmp_path / "key", "old"))
    files.remove_tree(tmp_path / "key")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_sha256_of_matches_hashlib(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    assert files.sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_free_space_is_that_of_nearest_existing_folder(tmp_path: Path) -> None:
    files.require_space(tmp_path / "not" / "created" / "yet", 1)
    with pytest.raises(StorageFailed, match="GB needed") as caught:
        files.require_space(tmp_path / "not" / "created" / "yet", 1 << 62)
    assert caught.value.exit_code == 74
