"""Durable files: complete or absent, and never replaced silently."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import CannotCreate, StorageFailed
from pipeline.store import files, locks
from tests.support.faults import LoggingDisk, another_process, disk

pytestmark = pytest.mark.usefixtures("no_descriptor_stays_open")

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
        assert locks.is_held(out.path)
        assert out.write(b"stone") == 5
    assert target.read_bytes() == b"inkstone"
    assert (out.size, out.sha256) == (8, hashlib.sha256(b"inkstone").hexdigest())
    assert os.listdir(tmp_path) == ["a.txt"]
    with pytest.raises(ValueError, match="closed"):
        out.write(b"more")


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


@given(before=st.lists(st.binary()), size=st.integers(0, 20) | st.just(0), after=st.lists(st.binary()))
def test_truncation_hashes_the_bytes_that_stay(before: list[bytes], size: int, after: list[bytes]) -> None:
    handle, written = io.BytesIO(), b"".join(before)
    out = files.HashingFile(handle, Path("unused"))
    for data in before:
        out.write(data)
    assert (out.size, out.sha256) == (len(written), hashlib.sha256(written).hexdigest())
    out.truncate(min(size, len(written)))
    for data in after:
        out.write(data)
    expected = written[:size] + b"".join(after)
    assert (handle.getvalue(), out.size, out.sha256) == (
        expected,
        len(expected),
        hashlib.sha256(expected).hexdigest(),
    )


def test_error_of_a_write_names_the_file_unless_it_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.part"
    for name in (None, "another"):

        class Full(files.Disk):
            def write(self, handle: BinaryIO, path: Path, data: bytes | memoryview, name: str | None = name) -> None:
                raise OSError(errno.ENOSPC, "no space left on device", name)

        monkeypatch.setattr(files, "disk", Full())
        with pytest.raises(OSError, match="no space") as caught, files.open_partial(path) as out:
            out.write(b"ink")
        assert caught.value.filename == (name or str(path))


def test_failed_writer_closes_its_file_even_if_it_was_deleted(tmp_path: Path) -> None:
    with suppress(RuntimeError), files.new_file(tmp_path / "a.txt") as out:
        out.path.unlink()
        raise RuntimeError
    with pytest.raises(ValueError, match="closed"):
        out.write(b"more")


def test_synced_bytes_are_in_the_file(tmp_path: Path) -> None:
    with files.open_partial(tmp_path / "a.part") as out:
        out.write(b"ink")
        out.sync()
        assert out.path.read_bytes() == b"ink"


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


def logged(root: Path, action: Callable[[], object]) -> list[str]:
    """Return the disk operations of `action`, with paths relative to `root`."""
    log = LoggingDisk()
    with disk(log):
        action()
    return [f"{operation.kind} {operation.path.relative_to(root)}" for operation in log.log]


def test_folder_is_synced_with_all_below_it_before_it_is_renamed(tmp_path: Path) -> None:
    draft = folder_with(tmp_path / ".draft", "new")
    operations = logged(tmp_path, lambda: files.publish_directory(draft, tmp_path / "key"))
    assert operations[-2:] == ["rename .draft", "sync ."]
    assert operations[:-2] == ["sync .draft", "sync .draft/deep/a.txt", "sync .draft/deep"]


def test_moving_syncs_both_folders_once(tmp_path: Path) -> None:
    folder_with(tmp_path / "one", "text")
    (tmp_path / "other").mkdir()
    move = partial(files.move, tmp_path / "one" / "deep", tmp_path / "other" / "deep")
    assert logged(tmp_path, move) == ["rename one/deep", "sync other", "sync one"]
    move = partial(files.move, tmp_path / "other" / "deep", tmp_path / "other" / "new")
    assert logged(tmp_path, move) == ["rename other/deep", "sync other"]


def test_syncing_files_syncs_each_and_then_their_folders(tmp_path: Path) -> None:
    paths = [folder_with(tmp_path / name, "text") / "deep" / "a.txt" for name in ("one", "other")]
    operations = logged(tmp_path, lambda: files.sync(paths))
    assert operations[:2] == ["sync one/deep/a.txt", "sync other/deep/a.txt"]
    assert set(operations[2:]) == {"sync one/deep", "sync other/deep"}


def test_writing_to_the_disk_is_started_for_all_bytes_where_the_system_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [folder_with(tmp_path / name, "text") / "deep" / "a.txt" for name in ("one", "other")]
    calls: list[tuple[object, ...]] = []

    def advise(descriptor: int, *arguments: object) -> None:
        calls.append((os.fstat(descriptor).st_ino, *arguments))

    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    files.start_writeback(paths)
    assert calls == [(path.stat().st_ino, 0, 0, 4) for path in paths]
    monkeypatch.delattr(os, "posix_fadvise")
    files.start_writeback(paths)


def test_symlink_is_renamed_and_its_folder_synced(tmp_path: Path) -> None:
    operations = logged(tmp_path, lambda: files.point_symlink(tmp_path / "current", "key"))
    assert [operation.split()[0] for operation in operations] == ["symlink", "rename", "sync"]
    assert operations[-1] == "sync ."


@pytest.mark.parametrize(("code", "tolerated"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_only_file_systems_that_cannot_sync_folders_are_tolerated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, tolerated: bool
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    if tolerated:
        files.sync_directory(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            files.sync_directory(tmp_path)
        assert caught.value.filename == str(tmp_path)


@pytest.mark.parametrize(("code", "copied"), [(errno.EXDEV, True), (errno.EMLINK, True), (errno.EIO, False)])
def test_file_is_copied_only_where_no_link_is_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, copied: bool
) -> None:
    def fail(old: Path, new: Path) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "old").write_text("text")
    monkeypatch.setattr(os, "link", fail)
    if copied:
        files.link_or_copy(tmp_path / "old", tmp_path / "new")
        assert (tmp_path / "new").read_text() == "text"
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            files.link_or_copy(tmp_path / "old", tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_link_shares_the_inode(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("text")
    files.link_or_copy(tmp_path / "old", tmp_path / "new")
    assert os.path.samefile(tmp_path / "old", tmp_path / "new")


def test_new_folder_is_refused_if_its_target_was_created_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with pytest.raises(CannotCreate, match="created meanwhile"), files.new_folder(target):
        folder_with(target, "old")
    assert (target / "deep" / "a.txt").read_text() == "old"
    assert os.listdir(target.parent) == ["out"]


@pytest.mark.parametrize("fails", [False, True])
def test_new_folder_appears_only_when_its_block_ends_without_an_error(tmp_path: Path, fails: bool) -> None:
    target = tmp_path / "not" / "created" / "out"
    with suppress(RuntimeError), files.new_folder(target) as draft:
        (draft / "a").write_text("new")
        assert locks.is_held(draft)
        assert not target.exists()
        if fails:
            raise RuntimeError
    assert os.listdir(target.parent) == ([] if fails else ["out"])


def test_discarded_folder_leaves_nothing(tmp_path: Path) -> None:
    files.discard_folder(folder_with(tmp_path / "key", "old"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [{}, {"recursive": True}, {"recursive": False}])
def test_temporaries_are_deleted_and_nothing_else(tmp_path: Path, options: dict[str, bool]) -> None:
    recursive = options.get("recursive", True)
    (tmp_path / "deep").mkdir()
    for folder in (tmp_path, tmp_path / "deep"):
        (folder / "a").write_text("text")
        (folder / ".tmp.a").write_text("half")
        folder_with(folder / ".trash.b", "old")
        (folder / ".tmp.link").symlink_to("a")
    files.remove_temporaries(tmp_path, **options)
    assert sorted(os.listdir(tmp_path)) == ["a", "deep"]
    assert sorted(os.listdir(tmp_path / "deep")) == (["a"] if recursive else [".tmp.a", ".tmp.link", ".trash.b", "a"])


class DiskThatReads(files.Disk):
    """A disk on which a file has its new name as content when it is renamed."""

    def rename(self, old: Path, new: Path) -> None:
        assert old.read_text() == new.name
        super().rename(old, new)


def test_unfinished_file_is_continued_and_deleted_only_if_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    with files.open_partial(path) as part:
        assert path.exists()
    assert not path.exists()
    with suppress(RuntimeError), files.open_partial(path) as part:
        part.write(b"half")
        raise RuntimeError
    with files.open_partial(path) as part:
        part.truncate(2)
        assert (part.size, part.sha256) == (2, hashlib.sha256(b"ha").hexdigest())
        part.write(b"t")
        assert part.flushed_path().read_bytes() == b"hat"
        part.write(b"e")
        part.truncate(4)  # of which one is in the buffer
        assert (part.size, part.sha256) == (4, hashlib.sha256(b"hate").hexdigest())
        part.write(b"d")
        with disk(DiskThatReads()):
            part.rotate_to(tmp_path / "hated")
        part.write(b"new")
        assert (part.size, part.sha256) == (3, hashlib.sha256(b"new").hexdigest())
    assert path.read_bytes() == b"new"


def test_unfinished_file_is_not_followed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "a.part").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic"), files.open_partial(tmp_path / "a.part"):
        pytest.fail("opened through a link")


def test_sizes(tmp_path: Path) -> None:
    folder_with(tmp_path / "key", "four")
    assert files.folder_size(tmp_path) == 4
    assert files.folder_size(tmp_path / "none") == 0
    assert files.file_size(tmp_path / "key" / "deep" / "a.txt") == 4
    assert files.file_size(tmp_path / "key") is None


def test_folder_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    assert list(files.walk(folder_with(tmp_path / "key", "text"))) == [
        (str(tmp_path / "key"), []),
        (str(tmp_path / "key" / "deep"), ["a.txt"]),
    ]
    with pytest.raises(FileNotFoundError):
        list(files.walk(tmp_path / "none"))


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
    assert files.free_space(tmp_path / "not" / "created" / "yet") == pytest.approx(files.free_space(tmp_path), rel=0.01)


def test_missing_space_is_an_error_that_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_space", lambda folder: 2 * 10**9)
    files.require_space(tmp_path, 2 * 10**9)
    for options, named in (({}, "--artifacts"), ({"option": "--out"}, "--out")):
        with pytest.raises(StorageFailed) as caught:
            files.require_space(tmp_path, 2 * 10**9 + 1, **options)
        assert caught.value.message == f"{tmp_path}: 2.00 GB needed, 2.00 GB free"
        assert caught.value.hint.endswith(named)
        assert caught.value.exit_code == 74


def test_new_folder_appears_in_a_new_and_in_an_existing_folder(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with files.new_folder(tmp_path / "exports" / name) as draft:
            (draft / "a").write_bytes(b"a")
            assert not (tmp_path / "exports" / name).exists()
        assert (tmp_path / "exports" / name / "a").read_bytes() == b"a"
