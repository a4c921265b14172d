"""Artifacts in a bucket: nothing incomplete is ever visible, whoever is killed and however many publish at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import cli
from pipeline import errors
from pipeline.store import artifact, files, remote
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.bucket import Bucket, Object
from pipeline.store.generations import current_key, generation_keys
from pipeline.store.manifest import Identity, Input
from tests.support import object_store
from tests.support.object_store import ENVIRONMENT

pytest.importorskip("obstore")
TEXTS = {"a.txt": "一", "part/b.txt": "二" * 5000, "part/empty.txt": ""}


def identity(number: int = 1) -> Identity:
    return Identity("tokens", "book", {"number": number}, (Input("text", "book.txt", "aa"),))


def write(texts: dict[str, str]) -> Callable[[Path], StageOutput]:
    def stage(draft: Path) -> StageOutput:
        for name, text in texts.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_text(text, encoding="utf-8")
        return StageOutput({"documents": len(texts)})

    return stage


def built(root: Path, number: int = 1, texts: dict[str, str] | None = None) -> Artifact:
    return artifact.build(root, identity(number), write(texts or TEXTS)).artifact


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("s3") if request.param == "s3" else tmp_path / "bucket")


def visible(url: str, root: Path) -> str:
    """Fetch the current generation as a reader does; return its key, "" if there is none."""
    bucket = Bucket(url)
    key = remote.remote_key(bucket, "tokens", "book")
    if key:
        folder, _ = remote.pull(bucket, root, f"tokens/book/{key}")
        assert not artifact.find_problems(artifact.read(folder), deep=True)
    manifests = [entry.name for entry in bucket.objects("tokens") if entry.name.endswith("/manifest.json")]
    for name in manifests:
        remote.pull(bucket, root, name.rpartition("/")[0])
    return key


def test_pulled_artifact_is_the_pushed_one(url: str, tmp_path: Path) -> None:
    pushed = built(tmp_path / "a")
    assert remote.push(Bucket(url), pushed.path, promote=True) == "built"
    assert remote.push(Bucket(url), pushed.path, promote=True) == "unchanged"
    folder, result = remote.pull(Bucket(url), tmp_path / "b", pushed.ref)
    pulled = artifact.read(folder)
    assert (result, pulled.digest, artifact.find_problems(pulled, deep=True)) == ("built", pushed.digest, [])
    assert remote.pull(Bucket(url), tmp_path / "b", pushed.ref)[1] == "unchanged"
    assert not list(folder.parent.glob(".pull-[0-9a-f]*"))


class Dying(Bucket):
    """A bucket whose process ends before its N-th write."""

    def __init__(self, url: str, left: int) -> None:
        super().__init__(url)
        self.left = left

    def _put(self, name: str, content: Any, **options: Any) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        super()._put(name, content, **options)


def test_publish_killed_at_any_write_shows_nothing_incomplete(url: str, tmp_path: Path) -> None:
    old, new = built(tmp_path / "a", 1), built(tmp_path / "a", 2)
    for writes in range(len(TEXTS) + 3):  # the files, run.json, the manifest, current
        place, reader = f"{url}/{writes}", tmp_path / f"reader-{writes}"
        remote.push(Bucket(place), old.path, promote=True)
        with pytest.raises(KeyboardInterrupt):
            remote.push(Dying(place, writes), new.path, promote=True)
        assert visible(place, reader) == old.manifest.key
        assert (reader / new.ref).exists() == (writes == len(TEXTS) + 2)
        remote.push(Dying(place, len(TEXTS) + 3), new.path, promote=True)
        assert visible(place, reader) == new.manifest.key


class Deaf(Bucket):
    """A bucket whose answers to conditional writes are lost: a retry is told that the condition failed."""

    def _write(self, name: str, data: bytes, mode: Any) -> bool:
        super()._write(name, data, mode)
        return False


def test_lost_answer_is_settled_by_reading_back(url: str, tmp_path: Path) -> None:
    pushed = built(tmp_path / "a")
    assert remote.push(Deaf(url), pushed.path, promote=True) == "unchanged"
    assert visible(url, tmp_path / "b") == pushed.manifest.key


def test_of_two_publishers_one_built_and_one_finds_it_unchanged(url: str, tmp_path: Path) -> None:
    pushed = [built(tmp_path / name) for name in "ab"]
    files.write_file(pushed[1].file("run.json"), b'{"host": "another, with a longer name"}')
    barrier = threading.Barrier(2)

    class Meeting(Bucket):
        def create(self, name: str, data: bytes) -> bool:
            if name.endswith("manifest.json"):
                barrier.wait(30)
            return super().create(name, data)

    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda entry: remote.push(Meeting(url), entry.path, promote=True), pushed)
        assert sorted(results) == ["built", "unchanged"]
    assert visible(url, tmp_path / "c") == pushed[0].manifest.key


def test_two_publishers_of_different_generations_both_end(url: str, tmp_path: Path) -> None:
    pushed = [built(tmp_path / "a", number) for number in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda entry: remote.push(Bucket(url), entry.path, promote=True), pushed))
    assert results == ["built", "built"]
    assert visible(url, tmp_path / "b") in {entry.manifest.key for entry in pushed}


def test_other_bytes_under_the_same_key_are_refused(url: str, tmp_path: Path) -> None:
    remote.push(Bucket(url), built(tmp_path / "a").path, promote=True)
    other = built(tmp_path / "b", texts={"a.txt": "other"})
    with pytest.raises(errors.BadData, match="other bytes under this key"):
        remote.push(Bucket(url), other.path, promote=True)
    with pytest.raises(errors.BadData, match="differs from"):
        remote.pull(Bucket(url), tmp_path / "b", other.ref)


def test_damaged_file_is_never_published_and_never_pulled(url: str, tmp_path: Path) -> None:
    pushed = built(tmp_path / "a")
    remote.push(Bucket(url), pushed.path, promote=True)
    (tmp_path / "damage").write_text("三" * 5000, encoding="utf-8")
    Bucket(url).put(f"{pushed.ref}/part/b.txt", tmp_path / "damage", "")
    with pytest.raises(errors.BadData, match=r"part/b\.txt: differs from the sha256"):
        remote.pull(Bucket(url), tmp_path / "b", pushed.ref)
    assert not (tmp_path / "b" / pushed.ref).exists()
    damaged = built(tmp_path / "c", 2)
    damaged.file("a.txt").write_text("三", encoding="utf-8")
    with pytest.raises(errors.BadData, match=r"a\.txt: not as it was published"):
        remote.push(Bucket(url), damaged.path, promote=True)
    assert not Bucket(url).stat(f"{damaged.ref}/manifest.json")


def test_pull_of_a_url_alone_lists_the_generations(url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Bucket(url)  # creates the folder
    assert cli.main(["pull", url, "--artifacts", str(tmp_path / "b")]) == 0
    assert capfd.readouterr().out == f"no artifacts in {url} (the URL that `push` copies to, without KIND/NAME)\n"
    refs = []
    for number in (1, 2):
        pushed = built(tmp_path / "a", number)
        remote.push(Bucket(url), pushed.path, promote=True)
        refs.append(pushed.ref)
    Bucket(url).create(f"{refs[0][:-4]}beef/train.bin", b"of a push that was killed")
    assert cli.main(["pull", url, "--artifacts", str(tmp_path / "b")]) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == sorted([refs[0], f"{refs[1]}  current"])
    assert cli.main(["status", "--artifacts", "s3://lab/store"]) == errors.BadConfig.exit_code
    assert "`pull URL` lists what is there" in capfd.readouterr().err


def test_error_names_the_url_of_a_bucket_used_as_a_folder_of_artifacts(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    remote.push(Bucket(str(bucket)), built(tmp_path / "a").path, promote=True)
    with pytest.raises(errors.BadConfig, match="made by `push`") as raised:
        artifact.find(bucket, "tokens", "book")
    assert raised.value.hint == f"--artifacts {bucket.as_uri()}"


def test_interrupted_pull_resumes(url: str, tmp_path: Path) -> None:
    pushed = built(tmp_path / "a")
    remote.push(Bucket(url), pushed.path, promote=True)
    streamed: list[str] = []

    class Counting(Bucket):
        limit = 2

        def stream(self, name: str, pinned: Object | None = None) -> Any:
            streamed.append(name)
            if len(streamed) == self.limit:
                raise KeyboardInterrupt
            return super().stream(name, pinned)

    with pytest.raises(KeyboardInterrupt):
        remote.pull(Counting(url), tmp_path / "b", pushed.ref)
    Counting.limit = 0
    folder, _ = remote.pull(Counting(url), tmp_path / "b", pushed.ref)
    assert not artifact.find_problems(artifact.read(folder), deep=True)
    names = [name.removeprefix(f"{pushed.ref}/") for name in streamed]
    assert names == ["a.txt", "part/b.txt", "part/b.txt", "part/empty.txt"]


def test_manifest_that_names_files_outside_is_refused(url: str, tmp_path: Path) -> None:
    pushed = built(tmp_path / "a")
    data = pushed.file("manifest.json").read_bytes().replace(b'"a.txt"', b'"../../../a.txt"')
    Bucket(url).create(f"{pushed.ref}/manifest.json", data)
    with pytest.raises(errors.BadData, match="not a path inside"):
        remote.pull(Bucket(url), tmp_path / "b", pushed.ref)


@pytest.mark.parametrize("name", ["manifest.json", "a.txt"])
def test_incomplete_artifact_is_named_by_its_url(url: str, tmp_path: Path, name: str) -> None:
    pushed = built(tmp_path / "a")
    remote.push(Bucket(url), pushed.path, promote=True)
    Bucket(url).delete(f"{pushed.ref}/{name}")
    if name == "manifest.json":
        Bucket(url).create(f"{pushed.ref}/{name}", pushed.file(name).read_bytes()[:100])
    with pytest.raises(errors.BadData, match=r"not a manifest|its manifest lists it") as caught:
        remote.pull(Bucket(url), tmp_path / "b", pushed.ref)
    assert caught.value.message.startswith(f"{Bucket(url).url}/{pushed.ref}/{name}: ")
    assert caught.value.hint == "delete the manifest in the bucket, then push the artifact again"


def test_mirror_builds_once_for_all_machines(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = []
    for machine in "ab":
        monkeypatch.setenv("INKSTONE_CACHE", str(tmp_path / machine))
        roots.append(remote.open_mirror(url))
    first = artifact.build(roots[0], identity(1), write(TEXTS))
    second = artifact.build(roots[1], identity(1), write({}))
    assert (first.result, second.result) == ("built", "unchanged")
    newer = artifact.build(roots[1], identity(2), write(TEXTS)).artifact
    seen = artifact.find(roots[0], "tokens", "book")
    assert (seen.digest, current_key(seen.path.parent)) == (newer.digest, newer.manifest.key)
    assert generation_keys(seen.path.parent) == [first.artifact.manifest.key, newer.manifest.key]
    assert artifact.read_ref(roots[0], first.artifact.ref).digest == first.artifact.digest
    with pytest.raises(errors.BadConfig, match="none of the tokens is named"):
        artifact.latest(roots[0], "tokens")


def test_build_that_was_killed_before_publishing_publishes_when_run_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INKSTONE_CACHE", str(tmp_path / "cache"))
    root = remote.open_mirror(url)
    files.disk.unlink(root / remote.MIRROR)  # a build that never reaches the bucket
    assert built(root)
    remote.open_mirror(url)
    assert artifact.build(root, identity(), write({})).result == "unchanged"
    assert visible(url, tmp_path / "b") == identity().key


def test_build_in_a_store_that_ignores_conditions_needs_one_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INKSTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Bucket, "problem", lambda bucket: "ignores If-Match")
    book = tmp_path / "book.txt"
    book.write_text("话说天明，众人起身。行了一里，到了一处！\n" * 9, encoding="utf-8")
    command = ["clean", str(book), "--jobs", "1", "--artifacts", (tmp_path / "bucket").as_uri()]
    assert cli.main(command) == errors.BadConfig.exit_code
    assert "built" not in capfd.readouterr().out
    monkeypatch.setenv("INKSTONE_ONE_WRITER", "1")
    assert cli.main(command) == 0
    assert "only one process may publish" in capfd.readouterr().err
    assert remote.remote_key(Bucket(str(tmp_path / "bucket")), "corpora", "book")


def test_seaweedfs_keeps_conditions_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_store.seaweedfs(tmp_path) as endpoint:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        test_pulled_artifact_is_the_pushed_one("s3://bucket/one", tmp_path / "one")
        test_publish_killed_at_any_write_shows_nothing_incomplete("s3://bucket/two", tmp_path / "two")
        test_of_two_publishers_one_built_and_one_finds_it_unchanged("s3://bucket/three", tmp_path / "three")
        assert Bucket("s3://bucket/four").require_conditions(one_writer=False) == ""
