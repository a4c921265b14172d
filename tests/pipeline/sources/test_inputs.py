"""The raw cache, and the input files of a corpus, a source, a file or a folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import zstandard

from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.maintenance import verify
from pipeline.readers import compression, jsonl
from pipeline.runtime.progress import SilentProgress
from pipeline.sources import cache, inputs
from pipeline.sources.catalogue import Source, SourceFile, resolve_source
from pipeline.sources.download import download
from pipeline.sources.walk import LeftOut, NotText
from pipeline.store import artifact
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.manifest import Identity
from tests.support.notes import Notes

SHARDS = {"train/00.jsonl": "train", "train/01.jsonl": "train", "val.jsonl": "val"}


def line(text: str) -> bytes:
    return jsonl.encode_line(text, "", "", None)


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
    return download(root, Source("pile", tuple(files)), SilentProgress()).path


def corpus(root: Path, name: str) -> Artifact:
    def write(draft: Path) -> StageOutput:
        with jsonl.ZstdWriter(draft / "documents.jsonl.zst") as out:
            out.write(line(name))
        return StageOutput({"documents": 1})

    identity = Identity(kind="corpora", name=name, options={"name": name}, inputs=())
    return artifact.build(root, identity, write).artifact


def test_source_resolves_to_its_files_in_order_with_splits(root: Path, pile: Path) -> None:
    entries = inputs.resolve_inputs(root, "pile", corpora=True)
    assert [(entry.name, entry.split) for entry in entries] == [(f"pile/{n}", split) for n, split in SHARDS.items()]
    assert [entry.path for entry in entries] == [pile / name for name in SHARDS]
    assert [entry.digest for entry in entries] == [sha256(line(name)) for name in SHARDS]


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
def test_part_of_a_source_is_a_folder_or_a_file(root: Path, pile: Path, part: str, expected: list[str]) -> None:
    assert [entry.path for entry in inputs.resolve_inputs(root, part, corpora=False)] == [
        pile / name for name in expected
    ]


def test_missing_part_lists_the_downloaded_files(root: Path, pile: Path) -> None:
    for part in ("pile/tra", "pile/test.jsonl", "pile/train/0"):
        with pytest.raises(InputMissing, match=r"downloaded: train/00.jsonl, train/01.jsonl, val.jsonl") as caught:
            inputs.resolve_inputs(root, part, corpora=True)
        assert caught.value.exit_code == 66


def test_corpus_resolves_to_its_documents_and_manifest_digest(root: Path) -> None:
    built = corpus(root, "shuihu")
    for reference in ("shuihu", "corpora/shuihu", built.ref, str(built.path)):
        (input_file,) = inputs.resolve_inputs(root, reference, corpora=True)
        assert (input_file.path, input_file.name, input_file.digest) == (
            built.file("documents.jsonl.zst"),
            built.ref,
            built.digest,
        )
        assert input_file.as_input("corpus") == built.as_input("corpus")


def test_corpus_wins_over_a_source_of_the_same_name(root: Path, pile: Path) -> None:
    built = corpus(root, "pile")
    assert [entry.name for entry in inputs.resolve_inputs(root, "pile", corpora=True)] == [built.ref]
    assert [entry.path for entry in inputs.resolve_inputs(root, "pile", corpora=False)] == [
        pile / name for name in SHARDS
    ]
    assert len(inputs.resolve_inputs(root, "pile/train", corpora=True)) == 2


def test_damaged_corpus_raises_bad_data(root: Path) -> None:
    built = corpus(root, "shuihu")
    os.truncate(built.file("documents.jsonl.zst"), 3)
    with pytest.raises(BadData, match="`clean`") as caught:
        inputs.resolve_inputs(root, "shuihu", corpora=True)
    assert caught.value.exit_code == 65


def test_local_file_resolves_to_itself_and_its_sha256(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "水浒传.txt"
    path.write_text("第一回")
    for corpora in (True, False):
        (input_file,) = inputs.resolve_inputs(root, str(path), corpora=corpora)
        assert (input_file.path, input_file.name, input_file.split) == (path, "水浒传.txt", "")
        assert input_file.digest == sha256("第一回".encode())


def test_folder_resolves_to_its_data_files_in_order(root: Path, tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl", "deep/c.json", "deep/d.jpg", "notes.md"):
        path = tmp_path / "books" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    entries = inputs.resolve_inputs(root, str(tmp_path / "books"), corpora=True)
    assert [entry.name for entry in entries] == ["a.jsonl", "b.txt", "deep/c.json", "notes.md"]
    assert [entry.digest for entry in entries] == [sha256(entry.name.encode()) for entry in entries]


def test_file_has_the_same_digest_as_source_and_as_path(root: Path, pile: Path) -> None:
    (cached,) = inputs.resolve_inputs(root, "pile/val.jsonl", corpora=True)
    (plain,) = inputs.resolve_inputs(root, str(pile / "val.jsonl"), corpora=True)
    assert cached.digest == plain.digest


def test_folder_named_like_a_data_file_is_not_read_as_a_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "books" / "chapters.txt").mkdir(parents=True)
    (tmp_path / "books" / "chapters.txt" / "1.txt").write_text("第一回")
    entries = inputs.resolve_inputs(root, str(tmp_path / "books"), corpora=True)
    assert [entry.name for entry in entries] == ["chapters.txt/1.txt"]


def test_folder_of_a_cache_excludes_its_lock_file(root: Path, pile: Path) -> None:
    entries = inputs.resolve_inputs(root, str(pile), corpora=True)
    assert [entry.name for entry in entries] == list(SHARDS)


def test_missing_catalogue_source_names_the_download_command(root: Path) -> None:
    for name in ("pile", "sample"):
        with pytest.raises(InputMissing, match=f"`download {name}") as caught:
            inputs.resolve_inputs(root, name, corpora=True)
        assert caught.value.exit_code == 66


def test_part_of_a_missing_source_names_the_download_command(root: Path) -> None:
    with pytest.raises(InputMissing, match="`download pile"):
        inputs.resolve_inputs(root, "pile/train", corpora=True)


def test_unknown_name_raises_input_missing(root: Path) -> None:
    with pytest.raises(InputMissing, match="no corpus, no downloaded source and no file or folder has this name"):
        inputs.resolve_inputs(root, "honglou", corpora=True)
    with pytest.raises(InputMissing, match="no file or folder and no downloaded source has this name"):
        inputs.resolve_inputs(root, "../honglou", corpora=False)


def test_all_missing_names_are_in_one_error_with_similar_ones(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed.txt").write_text("text")
    one, two = str(tmp_path / "mixd.txt"), str(tmp_path / "nothing.json")
    with pytest.raises(InputMissing, match=r"2 inputs do not exist: .*/mixd.txt \(did you mean mixed.txt\?\), .*json "):
        inputs.gather_inputs(root, [one, str(tmp_path / "mixed.txt"), two], SilentProgress(), corpora=False)
    with pytest.raises(InputMissing, match=r"did you mean mixed.txt\? check the names") as caught:
        inputs.gather_inputs(root, [one], SilentProgress(), corpora=False)
    assert caught.value.exit_code == 66


def test_folder_without_data_has_its_own_message(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputMissing, match="no file in this folder"):
        inputs.resolve_inputs(root, str(tmp_path / "empty"), corpora=True)


def test_empty_reference_raises_bad_config(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("private")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadConfig, match="input name is empty"):
        inputs.resolve_inputs(root, "", corpora=True)


@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 3), Path.unlink])
def test_damaged_cached_file_raises_bad_data(root: Path, pile: Path, damage: object) -> None:
    assert callable(damage)
    damage(pile / "train" / "01.jsonl")
    with pytest.raises(BadData, match="not the file that was downloaded") as caught:
        inputs.resolve_inputs(root, "pile", corpora=True)
    assert caught.value.exit_code == 65
    assert len(inputs.resolve_inputs(root, "pile/val.jsonl", corpora=True)) == 1


def test_other_content_of_the_same_size_is_refused(root: Path, pile: Path) -> None:
    path = pile / "val.jsonl"
    path.write_bytes(line("VAL.jsonl"))
    os.utime(path, ns=(1, 1))
    with pytest.raises(BadData):
        inputs.resolve_inputs(root, "pile", corpora=True)


def test_touched_cache_is_still_intact(root: Path, pile: Path) -> None:
    before = inputs.resolve_inputs(root, "pile", corpora=True)
    for name in SHARDS:
        os.utime(pile / name, ns=(1, 1))
    assert inputs.resolve_inputs(root, "pile", corpora=True) == before


def test_lock_file_round_trips(root: Path, pile: Path) -> None:
    pinned = cache.read_lock_file(root, "pile")
    assert {name: pin.split for name, pin in pinned.items()} == SHARDS
    cache.write_lock_file(root, "pile", pinned)
    assert cache.read_lock_file(root, "pile") == pinned
    assert cache.read_lock_file(root, "shuihu") == {}


@pytest.mark.parametrize("torn", [b"", b'{"a": {"siz', b"[]", b'{"a": {}}'])
def test_torn_lock_file_raises_bad_data_with_a_hint(root: Path, pile: Path, torn: bytes) -> None:
    (pile / "sources.lock.json").write_bytes(torn)
    with pytest.raises(BadData, match="delete it and download again"):
        inputs.resolve_inputs(root, "pile", corpora=True)


def book(folder: Path, text: str = "old", name: str = "book.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# Case 26: a flipped bit in zstd without a checksum may give other text; the hash of the file detects it


def undetected_flip(compressed: bytes, plain: bytes) -> bytes:
    """Return a zstd frame with one flipped bit that decompresses to other content without an error."""
    for position in reversed(range(len(compressed))):
        for bit in range(8):
            flipped = bytearray(compressed)
            flipped[position] ^= 1 << bit
            try:
                if zstandard.ZstdDecompressor().decompress(flipped, max_output_size=1 << 20) != plain:
                    return bytes(flipped)
            except zstandard.ZstdError:
                continue
    raise AssertionError("every flipped bit is detected")


def test_flipped_bit_that_decompresses_is_detected_by_the_file_hash(root: Path, tmp_path: Path) -> None:
    """Case 26."""
    plain = b"".join(line(f"{n}: {sha256(b'%d' % n)}") for n in range(100))
    compressed = zstandard.ZstdCompressor().compress(plain)
    flipped = undetected_flip(compressed, plain)
    upstream = tmp_path / "pile.jsonl.zst"
    upstream.write_bytes(compressed)
    cached = (
        download(root, Source("pile", (SourceFile("00.jsonl.zst", local=upstream),)), SilentProgress()).path
        / "00.jsonl.zst"
    )
    before = cached.stat()
    cached.write_bytes(flipped)
    assert b"".join(compression.read_blocks(cached)) != plain
    with pytest.raises(BadData, match="not the file that was downloaded"):
        inputs.resolve_inputs(root, "pile", corpora=True)
    os.utime(cached, ns=(before.st_atime_ns, before.st_mtime_ns))  # a disk error does not change the time
    with pytest.raises(BadData, match="not the file that was downloaded") as caught:
        inputs.resolve_inputs(root, "pile", corpora=True, deep=True)
    assert caught.value.exit_code == 65
    (problems_found,) = [problems for name, problems in verify.verify(root, deep=True) if name == "raw/pile"]
    assert "00.jsonl.zst" in problems_found[0]


def test_flipped_bit_in_a_corpus_is_detected_by_manifest_and_checksum(root: Path) -> None:
    """Case 26."""
    built = corpus(root, "shuihu")
    path = built.file("documents.jsonl.zst")
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(BadData, match="`clean`"):
        inputs.resolve_inputs(root, "shuihu", corpora=True, deep=True)
    with pytest.raises(BadData):
        list(compression.read_blocks(path))


# Several inputs, folders with other files, and names that are both a path and a source


def test_overlapping_inputs_count_once(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    first, second = book(folder, "one", "1.txt"), book(folder, "two", "2.txt")
    progress = Notes()
    gathered = inputs.gather_inputs(root, [str(folder), str(first), str(first)], progress, corpora=False)
    assert [file.path for file in gathered.files] == [first, second]
    assert gathered.left_out == [LeftOut("1.txt", "same as 1.txt")] * 2
    assert progress.lines == ["left out 2 of 4 files: 2 same as 1.txt (--json lists all)"]


def test_all_named_files_without_text_are_in_one_error(root: Path, tmp_path: Path) -> None:
    for name in ("5.txt", "6.txt"):
        (tmp_path / name).touch()
    paths = [str(book(tmp_path)), str(tmp_path / "5.txt"), str(tmp_path / "6.txt")]
    with pytest.raises(NotText, match=r"2 inputs are not text: .*5\.txt \(empty\), .*6\.txt \(empty\)") as caught:
        inputs.gather_inputs(root, paths, SilentProgress(), corpora=False)
    assert caught.value.exit_code == 65


def test_files_of_a_folder_are_chosen_and_in_natural_order(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for name in ("第10回.txt", "第2回.txt", "tool.py", "old.txt"):
        book(folder, name, name)
    progress = Notes()
    gathered = inputs.gather_inputs(
        root, [str(folder)], progress, corpora=True, include=["*.txt", "*.py"], exclude=["old*"]
    )
    assert [file.name for file in gathered.files] == ["tool.py", "第2回.txt", "第10回.txt"]
    assert progress.lines == ["left out 1 of 4 files: 1 excluded (--json lists all)"]


def test_downloaded_folder_has_the_order_of_the_folder(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for name in ("第10回.txt", "第2回.txt"):
        book(folder, name, name)
    download(root, resolve_source(str(folder), environment={}), SilentProgress())
    for reference in ("books", str(folder)):
        entries = inputs.resolve_inputs(root, reference, corpora=False)
        assert [Path(entry.name).name for entry in entries] == ["第2回.txt", "第10回.txt"]
    (chosen,) = inputs.resolve_inputs(root, "books", corpora=False, exclude=["第2*"])
    assert chosen.name == "books/第10回.txt"
    with pytest.raises(InputMissing, match="leave none of its files"):
        inputs.resolve_inputs(root, "books", corpora=False, include=["*.md"])


def test_path_wins_over_a_downloaded_source_of_its_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("novels").mkdir()
    book(Path("novels"), "old", "a.txt")
    download(root, resolve_source("novels", environment={}), SilentProgress())
    book(Path("novels"), "new", "c.txt")
    progress = Notes()
    for corpora in (False, True):
        read = inputs.gather_inputs(root, ["novels"], progress, corpora=corpora)
        assert [file.name for file in read.files] == ["a.txt", "c.txt"]
    raw = root / "raw" / "novels"
    assert progress.lines == [f"novels: using the path; write {raw} for the downloaded source of this name"] * 2
    assert [file.name for file in inputs.resolve_inputs(root, str(raw), corpora=False)] == ["a.txt"]
    Path("novels").rename("elsewhere")
    assert [file.name for file in inputs.resolve_inputs(root, "novels", corpora=False)] == ["novels/a.txt"]
    Path("elsewhere").rename("novels")
    assert [file.name for file in inputs.resolve_inputs(root, "./novels", corpora=False)] == ["a.txt", "c.txt"]
    assert [file.path for file in inputs.resolve_inputs(root, "novels/c.txt", corpora=False)] == [Path("novels/c.txt")]


def test_source_folder_with_artifacts_in_it_stays_the_same(tmp_path: Path) -> None:
    book(tmp_path)
    for root in (tmp_path / "artifacts", tmp_path / "artifacts", tmp_path / "other"):
        corpus(root, "books")
        entries = inputs.resolve_inputs(root, str(tmp_path), corpora=False)
        assert [entry.name for entry in entries] == ["book.txt"]
