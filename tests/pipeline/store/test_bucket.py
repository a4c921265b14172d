"""Buckets: conditional writes, pinned reads, the probe, and errors, on a folder and on moto's S3 server."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import errors
from pipeline.store.bucket import Bucket, Object, split_url
from tests.support import object_store
from tests.support.object_store import ENVIRONMENT, MotoServer

pytest.importorskip("obstore")


@pytest.fixture(params=["folder", "file-url", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Bucket:
    if request.param == "s3":
        return Bucket(request.getfixturevalue("s3"))
    folder = tmp_path / "bucket"
    return Bucket(str(folder) if request.param == "folder" else folder.as_uri())


def stat(bucket: Bucket, name: str) -> Object:
    entry = bucket.stat(name)
    assert entry
    return entry


def test_only_the_first_of_eight_creators_writes(bucket: Bucket) -> None:
    with ThreadPoolExecutor(8) as pool:
        for turn in range(5):
            texts = [f"{turn} {racer}".encode() for racer in range(8)]
            created = list(pool.map(lambda text, name=f"a/{turn}": bucket.create(name, text), texts))  # type: ignore[misc]
            stored = bucket.read(f"a/{turn}")
            assert created.count(True) == 1
            assert stored
            assert stored[0] == texts[created.index(True)]


def test_only_one_of_eight_replaces_a_version(bucket: Bucket) -> None:
    assert bucket.create("current", b"old")
    former = stat(bucket, "current")
    with ThreadPoolExecutor(8) as pool:
        replaced = list(pool.map(lambda racer: bucket.replace("current", f"new {racer}".encode(), former), range(8)))
    stored = bucket.read("current")
    assert replaced.count(True) == 1
    assert stored
    assert stored[0] == f"new {replaced.index(True)}".encode()


def test_files_come_back_and_are_listed(bucket: Bucket, tmp_path: Path) -> None:
    contents = {"a/empty": b"", "a/水浒 #%?.txt": b"text", "a/b/large": bytes(range(256)) * 100_000}
    for name, content in contents.items():
        (tmp_path / "file").write_bytes(content)
        bucket.put(name, tmp_path / "file", hashlib.sha256(content).hexdigest())
    assert {entry.name: entry.size for entry in bucket.objects("a")} == {
        name: len(text) for name, text in contents.items()
    }
    assert {name: b"".join(bucket.stream(name)) for name in contents} == contents
    assert bucket.folders("a") == ["b"]
    bucket.delete("a/empty")
    bucket.delete("a/empty")
    assert (bucket.read("a/empty"), bucket.stat("a/empty"), bucket.stat("a/b")) == (None, None, None)


def test_stored_file_is_known_by_its_sha256(s3: str, tmp_path: Path) -> None:
    bucket, sha256 = Bucket(s3), hashlib.sha256(b"text").hexdigest()
    (tmp_path / "file").write_bytes(b"text")
    assert not bucket.has("file", 4, sha256)
    bucket.put("file", tmp_path / "file", sha256)
    assert (bucket.has("file", 4, sha256), bucket.has("file", 4, "00"), bucket.has("file", 5, sha256)) == (
        True,
        False,
        False,
    )


def test_object_that_changed_after_it_was_listed_is_refused(bucket: Bucket) -> None:
    bucket.create("a", b"listed")
    listed = stat(bucket, "a")
    assert b"".join(bucket.stream("a", listed)) == b"listed"
    assert bucket.replace("a", b"newest", listed)
    with pytest.raises(errors.UpstreamChanged, match="changed after it was listed"):
        list(bucket.stream("a", listed))


def test_store_with_conditions_passes_the_probe_which_leaves_nothing(bucket: Bucket) -> None:
    assert bucket.require_conditions(one_writer=False) == ""
    assert bucket.conditional
    assert list(bucket.objects()) == [] or {entry.name for entry in bucket.objects()} == {".bucket.lock"}


def test_rclone_is_refused_or_used_by_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_store.rclone(tmp_path) as url:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        bucket = Bucket("s3://bucket/prefix")
        with pytest.raises(errors.BadConfig, match="overwrites an object that If-None-Match protects") as caught:
            bucket.require_conditions(one_writer=False)
        assert "--one-writer" in caught.value.hint
        assert "only one process" in bucket.require_conditions(one_writer=True)
        assert bucket.create("a", b"first")
        assert not bucket.create("a", b"second")
        assert bucket.replace("a", b"third", stat(bucket, "a"))


class Without(Bucket):
    """A store that lacks one thing."""

    def __init__(self, url: str, part: str) -> None:
        super().__init__(url)
        obstore, bucket = self._obstore, self

        class Lacking:
            exceptions = obstore.exceptions

            def __getattr__(self, name: str) -> Any:
                return getattr(obstore, name)

            def put(self, store: Any, name: str, data: Any, *, mode: Any = "overwrite", **options: Any) -> Any:
                lacks = (part == "If-Match" and isinstance(mode, dict)) or (
                    part == "If-None-Match" and mode == "create"
                )
                return obstore.put(bucket._store, name, data, mode="overwrite" if lacks else mode, **options)

            def get_range(self, store: Any, name: str, *, start: int, end: int) -> Any:
                return obstore.get(store, name).bytes() if part == "Range" else b"eco"

        self._obstore = Lacking()


@pytest.mark.parametrize("part", ["If-Match", "If-None-Match", "Range"])
def test_each_thing_that_a_store_lacks_is_detected(s3: str, part: str) -> None:
    assert part in Without(s3, part).problem()


def test_busy_store_is_asked_again(s3: str, moto: MotoServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    operations: list[Callable[[Bucket], object]] = [
        lambda bucket: bucket.put("file", tmp_path / "file", hashlib.sha256(b"text").hexdigest()),
        lambda bucket: bucket.create("new", b"text"),
        lambda bucket: list(bucket.objects()),
        lambda bucket: b"".join(bucket.stream("file")),
    ]
    for operation in operations:
        moto.busy = 2
        assert operation(Bucket(s3)) != []
        assert moto.busy == 0


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("s3://", errors.BadConfig),
        ("s3://key:secret@bucket/prefix", errors.BadConfig),
        ("s3://bucket/prefix?X-Amz-Signature=abc", errors.BadConfig),
        ("s3://bucket/a/../b", errors.BadConfig),
        ("az://container/prefix", errors.BadConfig),
        ("http://key:secret@bucket/prefix", errors.BadConfig),
        ("file://data/folder", errors.BadConfig),
        ("", errors.BadConfig),
        ("s3://none/prefix", errors.InputMissing),
    ],
)
def test_wrong_url_is_one_line_without_its_secrets(s3: str, url: str, error: type[errors.InkstoneError]) -> None:
    with pytest.raises(error) as caught:
        Bucket(url).create("a", b"text")
    assert not any(part in str(caught.value) for part in ("\n", "secret", "abc"))


def test_name_with_dots_is_one_line(bucket: Bucket) -> None:
    with pytest.raises(errors.BadConfig, match=r"a/\.\./b: "):
        bucket.stat("a/../b")


def test_object_with_an_impossible_name_is_no_temporary_obstacle(s3: str, moto: MotoServer) -> None:
    name = s3.removeprefix("s3://")
    urllib.request.urlopen(urllib.request.Request(f"{moto.url}/{name}/%2e%2e/b", data=b"text", method="PUT")).close()
    with pytest.raises(errors.BadData, match="invalid path"):
        list(Bucket(s3).objects())


def test_folder_with_artifacts_is_no_bucket(tmp_path: Path) -> None:
    shelf = tmp_path / "artifacts" / "corpora" / "book"
    shelf.mkdir(parents=True)
    (shelf / "current").symlink_to("0123456789abcdef")
    with pytest.raises(errors.BadConfig, match="a folder that stages write to"):
        Bucket(str(tmp_path / "artifacts"))
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["corpora"]


def test_reading_creates_no_folder(tmp_path: Path) -> None:
    with pytest.raises(errors.InputMissing, match="no such folder"):
        Bucket(str(tmp_path / "none"), must_exist=True)
    assert not [*tmp_path.iterdir()]


def test_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("text", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"book\.txt"):
        Bucket(str(tmp_path / "book.txt"))


def test_unreachable_store_exits_with_75(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(errors.TryAgain, match="cannot be reached"):
        Bucket("s3://bucket").stat("a")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a/b.txt", ("s3://bucket", "a/b.txt")),
        ("gs://bucket", ("gs://bucket", "")),
        ("file:///data/a.txt", ("file:///", "data/a.txt")),
        ("s3://bucket/pile/?.txt", ("s3://bucket", "pile/?.txt")),
    ],
)
def test_url_is_divided_into_bucket_and_name(url: str, expected: tuple[str, str]) -> None:
    assert split_url(url) == expected


def test_url_of_the_root_keeps_its_slashes() -> None:
    assert f"{Bucket('file:///').url}/data/a.txt" == "file:///data/a.txt"
