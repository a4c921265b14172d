"""The raw cache: each source has a folder of its own, whatever its last name."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.runtime.progress import Progress, SilentProgress
from pipeline.sources import cache, origin
from pipeline.sources.catalogue import Source, resolve_source
from pipeline.sources.download import DownloadResult, download
from tests.support.notes import Notes


def folder(parent: Path, text: str, name: str = "corp") -> Path:
    (parent / name).mkdir(parents=True)
    (parent / name / "a.txt").write_text(text)
    return parent / name


def fetch(root: Path, reference: Path | str, progress: Progress | None = None) -> DownloadResult:
    return download(root, resolve_source(str(reference), environment={}), progress or SilentProgress())


def text_of(result: DownloadResult) -> str:
    return (result.path / result.names[0]).read_text()


def test_folders_of_one_name_are_cached_apart(root: Path, tmp_path: Path) -> None:
    one, two = folder(tmp_path / "A", "one"), folder(tmp_path / "B", "two")
    progress = Notes()
    first, second = fetch(root, one), fetch(root, two, progress)
    assert first.source == "corp"
    assert second.source.startswith("corp-")
    assert progress.lines == [f"another source has the same name; the files go to raw/{second.source}"]
    assert (text_of(first), text_of(second)) == ("one", "two")
    assert [fetch(root, path).result for path in (one, two, one)] == ["unchanged"] * 3


def test_file_and_folder_of_one_name_are_cached_apart(root: Path, tmp_path: Path) -> None:
    corp = folder(tmp_path, "folder")
    (tmp_path / "corp.txt").write_text("file")
    results = [fetch(root, corp), fetch(root, tmp_path / "corp.txt")]
    assert [text_of(result) for result in results] == ["folder", "file"]
    assert fetch(root, corp).result == fetch(root, tmp_path / "corp.txt").result == "unchanged"


def test_names_hold_when_the_first_cache_is_deleted(root: Path, tmp_path: Path) -> None:
    one, two = folder(tmp_path / "A", "one"), folder(tmp_path / "B", "two")
    fetch(root, one)
    name = fetch(root, two).source
    for path in (root / "raw" / "corp").iterdir():
        path.unlink()
    (root / "raw" / "corp").rmdir()
    assert fetch(root, two).source == name
    assert fetch(root, one).source == "corp"


def test_path_with_the_name_of_a_catalogue_source(root: Path, tmp_path: Path) -> None:
    names = {fetch(root, folder(tmp_path / parent, parent, "shuihu")).source for parent in ("A", "B")}
    assert len(names) == 2
    assert all(name.startswith("my-shuihu") for name in names)


def test_list_of_a_recipe_with_the_name_of_a_catalogue_source_leaves_its_folder_free(root: Path) -> None:
    source = Source("shuihu", (), origin=origin.recipe_origin("shuihu"))
    assert origin.with_folder(root, source).name.startswith("shuihu-")


def without_origin(root: Path, name: str) -> None:
    """Bring a cache into the state of the versions before `.origin`, which recorded resolved paths."""
    (root / "raw" / name / ".origin").unlink()


def test_cache_of_an_older_version_stays_with_its_source(root: Path, tmp_path: Path) -> None:
    one, two = folder(tmp_path / "A", "one"), folder(tmp_path / "B", "two")
    fetch(root, one)
    without_origin(root, "corp")
    assert fetch(root, two).source.startswith("corp-")
    again = fetch(root, one)
    assert (again.source, again.result, text_of(again)) == ("corp", "unchanged", "one")


def test_cache_of_a_folder_behind_a_link_stays_with_it(root: Path, tmp_path: Path) -> None:
    real = folder(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fetch(root, real)
    without_origin(root, "corp")
    again = fetch(root, tmp_path / "link" / "corp")
    assert (again.source, again.result) == ("corp", "unchanged")


def test_subfolder_of_the_same_name_does_not_take_the_cache(root: Path, tmp_path: Path) -> None:
    outer = folder(tmp_path, "outer")
    inner = folder(outer, "inner")
    fetch(root, outer)
    without_origin(root, "corp")
    assert fetch(root, inner).source.startswith("corp-")


def test_url_has_the_cache_of_its_own_pins(root: Path) -> None:
    def source(host: str) -> Source:
        return resolve_source(f"https://{host}/data/book.txt", environment={})

    pin = cache.RawFile(3, "0" * 64, 0, "https://one.example/data/book.txt")
    (root / "raw" / "book").mkdir(parents=True)
    cache.write_lock_file(root, "book", {"book.txt": pin})
    assert origin.with_folder(root, source("one.example")).name == "book"
    other = origin.with_folder(root, source("two.example"))
    assert other.name.startswith("book-")
    assert origin.with_folder(root, other) == other


@pytest.mark.parametrize("trial", range(10))
def test_sources_that_start_at_once_get_different_folders(root: Path, tmp_path: Path, trial: int) -> None:
    """Case 53: both see that raw/corp is free."""
    paths = [folder(tmp_path / name, name) for name in "ABCD"]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda path: fetch(root, path), paths))
    assert len({result.source for result in results}) == 4
    assert [text_of(result) for result in results] == ["A", "B", "C", "D"]
    for result in results:
        assert list(json.loads((result.path / "sources.lock.json").read_bytes())) == ["a.txt"]


def test_source_planned_before_another_took_its_folder(root: Path, tmp_path: Path) -> None:
    planned = origin.with_folder(root, resolve_source(str(folder(tmp_path / "B", "two")), environment={}))
    assert planned.name == "corp"
    fetch(root, folder(tmp_path / "A", "one"))
    result = download(root, planned, SilentProgress())
    assert text_of(result) == "two"
    assert (root / "raw" / "corp" / "a.txt").read_text() == "one"


def test_longest_name_has_room_for_the_hash(root: Path, tmp_path: Path) -> None:
    results = [fetch(root, folder(tmp_path / parent, parent, "x" * 80)) for parent in ("A", "B")]
    assert [len(result.source) for result in results] == [80, 80]
    assert fetch(root, tmp_path / "B" / ("x" * 80)).result == "unchanged"
