"""The raw cache, and what a stage is given to read for a corpus, a source, a file or a folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pipeline import artifact, documents, raw
from pipeline.artifact import Artifact, Content, Identity
from pipeline.download import download
from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.progress import Silent
from pipeline.sources import Source, SourceFile

SHARDS = {"train/00.jsonl": "train", "train/01.jsonl": "train", "val.jsonl": "val"}


def line(text: str) -> bytes:
    return documents.json_line(text, "", "", None)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def pile(root: Path, tmp_path: Path) -> Path:
    """A small Pile in the cache; returns its folder."""
    files = []
    for name, split in SHARDS.items():
        path = tmp_path / "upstream" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(line(name))
        files.append(SourceFile(name, local=path, split=split))
    return download(root, Source("pile", tuple(files)), Silent()).path


def corpus(root: Path, name: str) -> Artifact:
    def write(draft: Path) -> Content:
        with documents.ZstdLines(draft / "documents.jsonl.zst") as out:
            out.write(line(name))
        return Content({"documents": 1})

    identity = Identity(kind="corpora", name=name, options={"name": name}, inputs=())
    return artifact.build(root, identity, write).artifact


def test_a_source_is_all_its_files_in_order_with_their_splits(root: Path, pile: Path) -> None:
    found = raw.inputs(root, "pile", corpora=True)
    assert [(entry.name, entry.split) for entry in found] == [(f"pile/{n}", split) for n, split in SHARDS.items()]
    assert [entry.path for entry in found] == [pile / name for name in SHARDS]
    assert [entry.digest for entry in found] == [sha256(line(name)) for name in SHARDS]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("pile/", list(SHARDS)),
        ("pile/train", ["train/00.jsonl", "train/01.jsonl"]),
        ("pile/train/", ["train/00.jsonl", "train/01.jsonl"]),
        ("pile/train/01.jsonl", ["train/01.jsonl"]),
        ("pile/val.jsonl", ["val.jsonl"]),
    ],
)
def test_a_part_of_a_source_is_a_folder_or_a_file_of_it(root: Path, pile: Path, part: str, expected: list[str]) -> None:
    assert [entry.path for entry in raw.inputs(root, part, corpora=False)] == [pile / name for name in expected]


def test_a_part_that_was_not_downloaded_is_answered_with_what_was(root: Path, pile: Path) -> None:
    for part in ("pile/tra", "pile/test.jsonl", "pile/train/0"):
        with pytest.raises(InputMissing, match=r"there: train/00.jsonl, train/01.jsonl, val.jsonl") as caught:
            raw.inputs(root, part, corpora=True)
        assert caught.value.exit_code == 66


def test_a_corpus_is_its_documents_under_the_digest_of_its_manifest(root: Path) -> None:
    made = corpus(root, "shuihu")
    for reference in ("shuihu", "corpora/shuihu", made.ref, str(made.path)):
        (found,) = raw.inputs(root, reference, corpora=True)
        assert (found.path, found.name, found.digest) == (made.file("documents.jsonl.zst"), made.ref, made.digest)
        assert found.as_input("corpus") == made.as_input("corpus")


def test_a_corpus_goes_before_a_source_of_its_name_where_corpora_are_read(root: Path, pile: Path) -> None:
    made = corpus(root, "pile")
    assert [entry.name for entry in raw.inputs(root, "pile", corpora=True)] == [made.ref]
    assert [entry.path for entry in raw.inputs(root, "pile", corpora=False)] == [pile / name for name in SHARDS]
    assert len(raw.inputs(root, "pile/train", corpora=True)) == 2


def test_a_damaged_corpus_is_refused(root: Path) -> None:
    made = corpus(root, "shuihu")
    os.truncate(made.file("documents.jsonl.zst"), 3)
    with pytest.raises(BadData, match="`clean` it again") as caught:
        raw.inputs(root, "shuihu", corpora=True)
    assert caught.value.exit_code == 65


def test_a_file_is_itself_under_its_sha256(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "水浒传.txt"
    path.write_text("第一回")
    for corpora in (True, False):
        (found,) = raw.inputs(root, str(path), corpora=corpora)
        assert (found.path, found.name, found.split) == (path, "水浒传.txt", "")
        assert found.digest == sha256("第一回".encode())


def test_a_folder_is_its_data_files_in_order(root: Path, tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl", "deep/c.json", "deep/d.jpg", "notes.md"):
        path = tmp_path / "books" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = raw.inputs(root, str(tmp_path / "books"), corpora=True)
    assert [entry.name for entry in found] == ["a.jsonl", "b.txt", "deep/c.json"]
    assert [entry.digest for entry in found] == [sha256(entry.name.encode()) for entry in found]


def test_a_file_has_the_same_digest_from_the_cache_and_from_its_path(root: Path, pile: Path) -> None:
    (cached,) = raw.inputs(root, "pile/val.jsonl", corpora=True)
    (plain,) = raw.inputs(root, str(pile / "val.jsonl"), corpora=True)
    assert cached.digest == plain.digest


def test_a_folder_named_like_a_data_file_is_not_read_as_one(root: Path, tmp_path: Path) -> None:
    (tmp_path / "books" / "chapters.txt").mkdir(parents=True)
    (tmp_path / "books" / "chapters.txt" / "1.txt").write_text("第一回")
    found = raw.inputs(root, str(tmp_path / "books"), corpora=True)
    assert [entry.name for entry in found] == ["chapters.txt/1.txt"]


def test_the_folder_of_a_cache_is_its_data_without_the_lock_file(root: Path, pile: Path) -> None:
    found = raw.inputs(root, str(pile), corpora=True)
    assert [entry.name for entry in found] == list(SHARDS)


def test_a_source_of_the_catalogue_that_is_not_downloaded_says_what_to_run(root: Path) -> None:
    for name in ("pile", "sample"):
        with pytest.raises(InputMissing, match=f"`download {name}") as caught:
            raw.inputs(root, name, corpora=True)
        assert caught.value.exit_code == 66


def test_a_part_of_a_source_that_is_not_downloaded_says_what_to_run(root: Path) -> None:
    with pytest.raises(InputMissing, match="`download pile"):
        raw.inputs(root, "pile/train", corpora=True)


def test_a_name_of_nothing_is_missing(root: Path) -> None:
    with pytest.raises(InputMissing, match="no corpus, no downloaded source and no path"):
        raw.inputs(root, "honglou", corpora=True)
    with pytest.raises(InputMissing, match="no downloaded source and no path"):
        raw.inputs(root, "../honglou", corpora=False)


def test_a_folder_without_data_is_not_said_to_be_missing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputMissing, match="no data"):
        raw.inputs(root, str(tmp_path / "empty"), corpora=True)


def test_an_empty_reference_is_missing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("private")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadConfig, match="an empty name"):
        raw.inputs(root, "", corpora=True)


@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 3), Path.unlink])
def test_a_file_damaged_in_the_cache_is_refused(root: Path, pile: Path, damage: object) -> None:
    assert callable(damage)
    damage(pile / "train" / "01.jsonl")
    with pytest.raises(BadData, match="not the file that was downloaded") as caught:
        raw.inputs(root, "pile", corpora=True)
    assert caught.value.exit_code == 65
    assert len(raw.inputs(root, "pile/val.jsonl", corpora=True)) == 1


def test_other_bytes_of_the_same_size_are_refused(root: Path, pile: Path) -> None:
    path = pile / "val.jsonl"
    path.write_bytes(line("VAL.jsonl"))
    os.utime(path, ns=(1, 1))
    with pytest.raises(BadData):
        raw.inputs(root, "pile", corpora=True)


def test_a_cache_that_was_moved_or_touched_is_still_whole(root: Path, pile: Path) -> None:
    before = raw.inputs(root, "pile", corpora=True)
    for name in SHARDS:
        os.utime(pile / name, ns=(1, 1))
    assert raw.inputs(root, "pile", corpora=True) == before


def test_a_lock_file_is_read_as_it_was_written(root: Path, pile: Path) -> None:
    pinned = raw.read_lock(root, "pile")
    assert {name: pin.split for name, pin in pinned.items()} == SHARDS
    raw.write_lock(root, "pile", pinned)
    assert raw.read_lock(root, "pile") == pinned
    assert raw.read_lock(root, "shuihu") == {}


@pytest.mark.parametrize("torn", [b"", b'{"a": {"siz', b"[]", b'{"a": {}}'])
def test_a_torn_lock_file_is_bad_data_and_says_what_to_do(root: Path, pile: Path, torn: bytes) -> None:
    (pile / "sources.lock.json").write_bytes(torn)
    with pytest.raises(BadData, match="delete it and download again"):
        raw.inputs(root, "pile", corpora=True)
