"""Hashes of local files: computed once for each state of a file, and again when anything about it changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from pipeline.errors import BadData
from pipeline.sources import hashes, inputs
from pipeline.sources.hashes import local_hashes

LONG_AGO = 10**18  # ns


def book(folder: Path, text: str = "old", name: str = "book.txt", written: int = LONG_AGO) -> Path:
    """Write a file with the modification time `written` in ns."""
    path = folder / name
    path.write_text(text)
    os.utime(path, ns=(written, written))
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache the hashes of files that were written just now."""
    monkeypatch.setattr(hashes, "_SETTLED", 0)


@pytest.fixture
def hashed(root: Path, tmp_path: Path, settled: None) -> Path:
    """A file whose hash is cached."""
    path = book(tmp_path)
    assert local_hashes(root, [path]) == [sha256(b"old")]
    return path


def test_hashes_are_in_the_order_of_the_files(root: Path, tmp_path: Path) -> None:
    paths = [book(tmp_path, name, name) for name in ("b", "a", "c")]
    for _ in range(2):
        assert local_hashes(root, paths) == [sha256(path.name.encode()) for path in paths]
    assert local_hashes(root, [*reversed(paths), paths[0]]) == [sha256(name) for name in (b"c", b"a", b"b", b"b")]
    assert local_hashes(root, []) == []


def mark_cached(root: Path) -> None:
    """Change every cached hash to "cached", to see whether it is used."""
    entries = json.loads((root / ".hashes.json").read_bytes())
    (root / ".hashes.json").write_text(
        json.dumps({name: {**entry, "sha256": "cached"} for name, entry in entries.items()})
    )


def test_unchanged_file_is_not_hashed_again(root: Path, hashed: Path) -> None:
    mark_cached(root)
    assert local_hashes(root, [hashed]) == ["cached"]


def test_deep_hash_ignores_the_cache_and_mends_it(root: Path, hashed: Path) -> None:
    mark_cached(root)
    assert local_hashes(root, [hashed], deep=True) == [sha256(b"old")]
    assert local_hashes(root, [hashed]) == [sha256(b"old")]


def test_other_bytes_of_the_same_size_and_time_are_hashed_again(root: Path, hashed: Path) -> None:
    book(hashed.parent, "new")
    assert hashed.stat().st_mtime_ns == LONG_AGO
    assert local_hashes(root, [hashed]) == [sha256(b"new")]


def test_file_put_in_the_place_of_another_is_hashed_again(root: Path, hashed: Path) -> None:
    os.replace(book(hashed.parent, "new", "other.txt"), hashed)
    assert local_hashes(root, [hashed]) == [sha256(b"new")]


def test_cache_of_an_older_version_is_dropped(root: Path, hashed: Path) -> None:
    entry = {"size": 3, "mtime_ns": LONG_AGO, "sha256": "0" * 64}
    (root / ".hashes.json").write_text(json.dumps({str(hashed): entry}))
    assert local_hashes(root, [hashed]) == [sha256(b"old")]


def test_cache_that_cannot_be_read_or_written_is_no_error(root: Path, hashed: Path) -> None:
    (root / ".hashes.json").unlink()
    (root / ".hashes.json").mkdir()
    assert local_hashes(root, [hashed]) == [sha256(b"old")]


@pytest.mark.parametrize(
    ("text", "written"), [("new", LONG_AGO + 1), ("new", LONG_AGO - 1), ("newer", LONG_AGO), ("", LONG_AGO)]
)
def test_file_of_another_size_or_time_is_hashed_again(root: Path, hashed: Path, text: str, written: int) -> None:
    book(hashed.parent, text, written=written)
    assert local_hashes(root, [hashed]) == [sha256(text.encode())]
    assert local_hashes(root, [hashed]) == [sha256(text.encode())]


@pytest.mark.parametrize("ahead", [0, 10**9, 10**15])
def test_hash_of_a_recent_or_future_file_is_not_cached(root: Path, tmp_path: Path, ahead: int) -> None:
    written = time.time_ns() + ahead
    path = book(tmp_path, "old", written=written)
    assert local_hashes(root, [path]) == [sha256(b"old")]
    book(tmp_path, "new", written=written)
    assert local_hashes(root, [path]) == [sha256(b"new")]


def test_cached_hash_is_found_by_the_resolved_path(
    root: Path, hashed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link.txt").symlink_to(hashed)
    monkeypatch.chdir(tmp_path)
    mark_cached(root)
    for path in (Path("book.txt"), tmp_path / "link.txt", tmp_path / ".." / tmp_path.name / "book.txt"):
        assert local_hashes(root, [path]) == ["cached"]
    book(tmp_path, "other", "elsewhere.txt")
    (tmp_path / "link.txt").unlink()
    (tmp_path / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    assert local_hashes(root, [tmp_path / "link.txt"]) == [sha256(b"other")]


def test_hashes_of_deleted_files_are_dropped(root: Path, hashed: Path) -> None:
    other_path = book(hashed.parent, "other", "other.txt")
    hashed.unlink()
    local_hashes(root, [other_path])
    assert list(json.loads((root / ".hashes.json").read_bytes())) == [str(other_path)]


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        b'{"a": {"siz',
        b"[]",
        b'{"a": {}}',
        b'{"a": {"size": "3"}}',
        bytes(100),
        b"\xff",
        b'{"\xff": {}}',
    ],
)
def test_torn_hash_cache_is_rebuilt(root: Path, hashed: Path, torn: bytes) -> None:
    (root / ".hashes.json").write_bytes(torn)
    book(hashed.parent, "new")
    assert local_hashes(root, [hashed]) == [sha256(b"new")]
    assert json.loads((root / ".hashes.json").read_bytes())[str(hashed)]["sha256"] == sha256(b"new")


def test_file_in_a_folder_with_a_non_utf8_name_is_hashed(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    assert local_hashes(root, [book(folder)]) == [sha256(b"old")]


def test_hash_of_a_missing_file_raises_file_not_found(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        local_hashes(root, [tmp_path / "nothing.txt"])


@pytest.mark.parametrize("is_folder", [False, True])
def test_input_hashes_are_cached_unless_deep(root: Path, tmp_path: Path, settled: None, is_folder: bool) -> None:
    (tmp_path / "books").mkdir()
    path = book(tmp_path / "books")
    reference = str(path.parent if is_folder else path)

    def digest(*, deep: bool = False) -> str:
        (entry,) = inputs.resolve_inputs(root, reference, corpora=True, deep=deep)
        return entry.digest

    assert digest() == sha256(b"old")
    mark_cached(root)
    assert digest() == "cached"
    assert digest(deep=True) == sha256(b"old")


def test_change_is_noticed_while_a_file_is_read(root: Path, tmp_path: Path) -> None:
    path = book(tmp_path)
    (entry,) = inputs.resolve_inputs(root, str(path), corpora=False)
    os.link(path, tmp_path / "backup.txt")  # another ctime, the same bytes
    inputs.require_unchanged(entry)
    book(tmp_path, "new")
    with pytest.raises(BadData, match="changed while it was read"):
        inputs.require_unchanged(entry)
