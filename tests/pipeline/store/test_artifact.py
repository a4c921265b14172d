"""Artifacts: keys, atomic publication, lookup and detection of damage.

Cases are those of docs/design/reliability.md, section 2.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import (
    BadConfig,
    BadData,
    InkstoneError,
    InputMissing,
    InternalError,
    TooManyRejects,
    TryAgain,
    from_os_error,
)
from pipeline.store import artifact, files, locks
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.generations import draft_path, generation_keys, read_run_info
from pipeline.store.manifest import SCHEMA, FileRecord, Identity, Input, check_name, is_valid_name, name_from_path

ROOT = Path(__file__).resolve().parents[3]

BOOK = Identity(
    kind="corpora",
    name="shuihu",
    options={"unit": "chapter", "script": "hans"},
    inputs=(Input("text", "shuihu/raw_shuihu.txt", "aa"), Input("text", "more.txt", "bb")),
    tokenizer="f00d",
    libraries=("numpy", "msgspec"),
)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OPTIONS = st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4)


def changed(**fields: Any) -> Identity:
    return dataclasses.replace(BOOK, **fields)


def reversed_throughout(value: Any) -> Any:
    """Return the same JSON value with every dict in the opposite order."""
    if isinstance(value, dict):
        return {name: reversed_throughout(value[name]) for name in reversed(value)}
    if isinstance(value, list):
        return [reversed_throughout(entry) for entry in value]
    return value


def writes(*texts: str) -> Callable[[Path], StageOutput]:
    """Return a stage that writes one document per file."""

    def write(draft: Path) -> StageOutput:
        (draft / "part").mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (draft / "part" / f"{number:05d}.txt").write_text(text)
        return StageOutput(
            {"documents": len(texts)}, {"documents": {"in": len(texts), "out": len(texts), "dropped": {}}}
        )

    return write


def fails(error: BaseException) -> Callable[[Path], StageOutput]:
    """Return a stage that writes half of its work, then raises."""

    def write(draft: Path) -> StageOutput:
        (draft / "half.txt").write_text("half")
        raise error

    return write


def must_not_be_called(draft: Path) -> StageOutput:
    pytest.fail(f"the stage ran in {draft}")


def tree(root: Path) -> list[str]:
    """List every path below `root` except the lock files."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.name != ".lock")


@given(OPTIONS)
def test_key_does_not_depend_on_order_of_options(options: dict[str, Any]) -> None:
    one, other = options, reversed_throughout(options)
    assert changed(options=one, libraries=()).key == changed(options=other, libraries=()).key


@given(OPTIONS, OPTIONS)
def test_keys_are_equal_only_for_equal_options(one: dict[str, Any], other: dict[str, Any]) -> None:
    equal = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (changed(options=one, libraries=()).key == changed(options=other, libraries=()).key) == equal


def test_key_does_not_depend_on_names_or_order_of_libraries() -> None:
    renamed = tuple(Input(entry.role, "another name", entry.digest) for entry in BOOK.inputs)
    assert changed(libraries=("msgspec", "numpy")).key == BOOK.key
    assert changed(name="another-book").key == BOOK.key
    assert changed(inputs=renamed).key == BOOK.key


@pytest.mark.parametrize(
    "other",
    [
        changed(kind="tokens"),
        changed(options={"unit": "section", "script": "hans"}),
        changed(options={"unit": "chapter"}),
        changed(inputs=BOOK.inputs[:1]),
        changed(inputs=BOOK.inputs[::-1]),
        changed(inputs=(Input("text", BOOK.inputs[0].name, "cc"), BOOK.inputs[1])),
        changed(inputs=(Input("val", BOOK.inputs[0].name, "aa"), BOOK.inputs[1])),
        changed(tokenizer="beef"),
        changed(libraries=("numpy",)),
    ],
)
def test_key_changes_with_everything_that_decides_the_bytes(other: Identity) -> None:
    assert other.key != BOOK.key


def test_key_is_16_hex_digits() -> None:
    assert len(BOOK.key) == 16
    int(BOOK.key, 16)


def test_build_publishes_files_manifest_run_and_current(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一", "二"))
    shelf = root / "corpora" / "shuihu"
    assert built.result == "built"
    assert built.artifact.path == shelf / BOOK.key
    assert built.artifact.ref == f"corpora/shuihu/{BOOK.key}"
    assert os.readlink(shelf / "current") == BOOK.key
    names = ["manifest.json", "part", "part/00000.txt", "part/00001.txt", "run.json"]
    assert tree(shelf / BOOK.key) == names
    assert sorted(os.listdir(shelf)) == sorted([".lock", BOOK.key, "current"])
    manifest = built.artifact.manifest
    assert [(record.name, record.size) for record in manifest.files] == [("part/00000.txt", 3), ("part/00001.txt", 3)]
    assert [record.sha256 for record in manifest.files] == [
        files.sha256_of(shelf / BOOK.key / record.name) for record in manifest.files
    ]
    assert built.artifact.digest == files.sha256_of(shelf / BOOK.key / "manifest.json")
    assert (manifest.schema, manifest.key, manifest.options) == (SCHEMA, BOOK.key, BOOK.options)
    assert set(manifest.libraries) == {"numpy", "msgspec"}
    assert "seconds" in json.loads((shelf / BOOK.key / "run.json").read_text())


def test_second_build_is_unchanged_and_runs_nothing(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("一"))
    before = {path: path.lstat().st_mtime_ns for path in root.rglob("*") if path.name != ".lock"}
    second = artifact.build(root, BOOK, must_not_be_called)
    assert (second.result, second.artifact) == ("unchanged", first.artifact)
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*") if path.name != ".lock"} == before


def test_second_build_below_relative_root_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    artifact.build(Path("artifacts"), BOOK, writes("一"))
    link = tmp_path / "artifacts" / "corpora" / "shuihu" / "current"
    before = link.lstat().st_ino, link.lstat().st_mtime_ns
    artifact.build(Path("artifacts"), BOOK, must_not_be_called)
    assert (link.lstat().st_ino, link.lstat().st_mtime_ns) == before


def test_other_options_publish_another_generation(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("一")).artifact
    second = artifact.build(root, changed(options={}), writes("二")).artifact
    assert artifact.current(root, "corpora", "shuihu") == second
    assert artifact.find_problems(first, deep=True) == []
    assert artifact.build(root, BOOK, must_not_be_called).result == "unchanged"
    assert artifact.current(root, "corpora", "shuihu") == first


def test_equal_inputs_give_equal_manifests_in_two_roots(tmp_path: Path) -> None:
    one = artifact.build(tmp_path / "one", BOOK, writes("一", "二"))
    other = artifact.build(tmp_path / "other" / "deeper", BOOK, writes("一", "二"))
    assert one.artifact.file("manifest.json").read_bytes() == other.artifact.file("manifest.json").read_bytes()
    assert one.artifact.as_input("corpus") == other.artifact.as_input("corpus")


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), BadData("broken"), TryAgain("later")])
def test_failing_stage_publishes_nothing_and_leaves_no_draft(root: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        artifact.build(root, BOOK, fails(error))
    assert tree(root) == ["corpora", "corpora/shuihu"]
    assert artifact.list_names(root, "corpora") == []
    assert artifact.build(root, BOOK, writes("一")).result == "built"


def test_failing_stage_keeps_the_previous_generation(root: Path) -> None:
    before = artifact.build(root, BOOK, writes("一")).artifact
    with pytest.raises(BadData):
        artifact.build(root, changed(options={}), fails(BadData("broken")))
    assert artifact.current(root, "corpora", "shuihu") == before
    assert artifact.find_problems(before, deep=True) == []


@pytest.mark.parametrize("error", [TryAgain("stopped by a signal"), KeyboardInterrupt(), OSError("disk full")])
def test_kept_draft_is_passed_to_the_next_build(root: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        artifact.build(root, BOOK, fails(error), keep_draft=True)
    draft = draft_path(root, BOOK)
    assert sorted(os.listdir(draft)) == ["half.txt", "run.json"]
    assert artifact.list_names(root, "corpora") == []

    def resume(folder: Path) -> StageOutput:
        assert folder == draft
        assert (folder / "half.txt").read_text() == "half"
        return writes("一")(folder)

    artifact.build(root, BOOK, resume, keep_draft=True)
    assert not draft.exists()


@pytest.mark.parametrize("error", [BadData("broken"), BadConfig("no such option"), TryAgain("stopped")])
def test_kept_draft_survives_any_error_unless_it_is_empty(root: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        artifact.build(root, BOOK, fails(error), keep_draft=True)
    assert (draft_path(root, BOOK) / "half.txt").exists()

    def fail_at_once(draft: Path) -> StageOutput:
        raise error

    other = Identity("corpora", "other", {}, ())
    with pytest.raises(type(error)):
        artifact.build(root, other, fail_at_once, keep_draft=True)
    assert not draft_path(root, other).exists()


def test_damaged_artifact_becomes_the_draft_to_resume(root: Path) -> None:
    def write(draft: Path) -> StageOutput:
        (draft / "precious").touch()
        (draft / "redrawn").write_bytes(b"picture")
        return StageOutput({})

    built = artifact.build(root, BOOK, write, keep_draft=True).artifact
    (built.path / "precious").write_bytes(b"")
    (built.path / "redrawn").unlink()
    draft_names: list[str] = []

    def write_again(draft: Path) -> StageOutput:
        draft_names.extend(path.name for path in draft.iterdir())
        return write(draft)

    assert artifact.build(root, BOOK, write_again, keep_draft=True).result == "built"
    assert "precious" in draft_names


def test_too_many_rejects_keep_the_draft_and_name_it(root: Path) -> None:
    draft = draft_path(root, BOOK)
    with pytest.raises(TooManyRejects) as caught:
        artifact.build(root, BOOK, fails(TooManyRejects("2 of 3 are bad", hint="look")))
    assert (caught.value.message, caught.value.hint) == ("2 of 3 are bad", f"look; the rejects are in {draft}")
    assert os.listdir(draft) == ["half.txt"]
    assert artifact.list_names(root, "corpora") == []
    built = artifact.build(root, BOOK, writes("一"))
    assert [record.name for record in built.artifact.manifest.files] == ["part/00000.txt"]


def test_leftover_temporary_in_draft_is_not_published(root: Path) -> None:
    draft = draft_path(root, BOOK)
    draft.mkdir(parents=True)
    (draft / f"{files.TEMPORARY}unit-00000.json.0badcafe").write_text("half a rec")
    built = artifact.build(root, BOOK, writes("一"), keep_draft=True)
    assert [record.name for record in built.artifact.manifest.files] == ["part/00000.txt"]


def write_with_scratch(draft: Path) -> StageOutput:
    """A stage that keeps notes for resuming after a kill."""
    (draft / artifact.SCRATCH / "deep").mkdir(parents=True, exist_ok=True)
    (draft / artifact.SCRATCH / "deep" / "notes").write_text("half")
    return writes("一")(draft)


def test_scratch_is_neither_listed_nor_published(root: Path) -> None:
    built = artifact.build(root, BOOK, write_with_scratch, keep_draft=True)
    assert tree(built.artifact.path) == ["manifest.json", "part", "part/00000.txt", "run.json"]
    assert [record.name for record in built.artifact.manifest.files] == ["part/00000.txt"]
    assert built.artifact.digest == artifact.build(root / "other", BOOK, writes("一")).artifact.digest


def test_scratch_is_kept_for_resuming(root: Path) -> None:
    def stop(draft: Path) -> StageOutput:
        write_with_scratch(draft)
        raise TryAgain("stopped by a signal")

    def resume(draft: Path) -> StageOutput:
        assert (draft / artifact.SCRATCH / "deep" / "notes").read_text() == "half"
        return write_with_scratch(draft)

    with pytest.raises(TryAgain):
        artifact.build(root, BOOK, stop, keep_draft=True)
    assert artifact.build(root, BOOK, resume, keep_draft=True).result == "built"


def test_leftover_scratch_in_published_folder_is_deleted(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    write_with_scratch(built.path)
    assert artifact.find_problems(built, deep=True) == []
    assert artifact.build(root, BOOK, must_not_be_called).result == "unchanged"
    assert not built.file(artifact.SCRATCH).exists()


def test_leftover_scratch_of_another_generation_is_deleted(root: Path) -> None:
    """A kill right after publishing, and then the input changes: that generation never becomes current."""
    old = artifact.build(root, BOOK, writes("一")).artifact
    write_with_scratch(old.path)
    artifact.build(root, changed(options={"unit": "line"}), writes("二"))
    assert not old.file(artifact.SCRATCH).exists()


def test_hash_of_the_stage_is_used_if_the_size_matches(root: Path) -> None:
    hashed = [FileRecord("part/00000.txt", 3, "5" * 64), FileRecord("part/00001.txt", 4, "0" * 64)]

    def write(draft: Path) -> StageOutput:
        content = writes("一", "二")(draft)
        os.utime(draft / "part" / "00000.txt", (1e9, 1e9))  # older than the manifest, so not hashed after publishing
        return dataclasses.replace(content, hashed=hashed)

    first, second = artifact.build(root, BOOK, write).artifact.manifest.files
    assert first == hashed[0]
    assert second == FileRecord("part/00001.txt", 3, hashlib.sha256("二".encode()).hexdigest())


def test_run_fields_of_a_stage_go_to_run_json_only(root: Path) -> None:
    def write(draft: Path) -> StageOutput:
        return dataclasses.replace(writes("一")(draft), run={"inputs": {"a.txt": "/home/one/a.txt"}})

    built = artifact.build(root, BOOK, write).artifact
    run = json.loads(built.file("run.json").read_text())
    assert run["inputs"] == {"a.txt": "/home/one/a.txt"}
    assert {"seconds", "host", "python"} <= run.keys()
    assert built.digest == artifact.build(root / "other", BOOK, writes("一")).artifact.digest


def test_kept_draft_records_its_inputs(root: Path) -> None:
    with pytest.raises(TryAgain):
        artifact.build(root, BOOK, fails(TryAgain("stopped by a signal")), keep_draft=True)
    draft = draft_path(root, BOOK)
    assert read_run_info(draft).made_from == BOOK.inputs
    (draft / "run.json").unlink()
    assert read_run_info(draft).made_from is None


def test_generations_are_numbered_regardless_of_run_fields(root: Path) -> None:
    def write(draft: Path) -> StageOutput:
        return dataclasses.replace(writes("一")(draft), run={"generation": 7})

    built = [artifact.build(root, changed(options={"x": x}), write).artifact for x in range(3)]
    assert [json.loads(generation.file("run.json").read_text())["generation"] for generation in built] == [1, 2, 3]
    assert generation_keys(built[0].path.parent) == [generation.manifest.key for generation in built]


def writes_aside(text: str) -> Callable[[Path], StageOutput]:
    """Return a stage that publishes a generation which is not to become current."""
    write = writes(text)
    return lambda draft: dataclasses.replace(write(draft), promote=False, run={"reason": "worse"})


def test_generation_without_promotion_becomes_current_only_if_accepted(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("a")).artifact
    other = changed(options={"n": 2})
    aside = artifact.build(root, other, writes_aside("b"))
    assert aside.result == "built"
    assert artifact.current(root, "corpora", "shuihu") == first
    assert (read_run_info(aside.artifact.path).promoted, read_run_info(aside.artifact.path).reason) == (False, "worse")
    assert artifact.build(root, other, must_not_be_called).result == "unchanged"
    assert artifact.current(root, "corpora", "shuihu") == first, "a later build leaves it aside too"
    assert artifact.build(root, other, must_not_be_called, accept=True).artifact == aside.artifact
    assert artifact.current(root, "corpora", "shuihu") == aside.artifact
    artifact.build(root, BOOK, must_not_be_called)
    artifact.build(root, other, must_not_be_called)
    assert artifact.current(root, "corpora", "shuihu") == aside.artifact, "accepted once is accepted for good"
    assert artifact.find_problems(aside.artifact, deep=True) == []


def test_concurrent_build_of_same_name_raises_try_again(root: Path) -> None:
    def build_again(draft: Path) -> StageOutput:
        with pytest.raises(TryAgain) as caught:
            artifact.build(root, BOOK, must_not_be_called)
        assert caught.value.exit_code == 75
        assert "clean shuihu" in caught.value.message
        return writes("一")(draft)

    assert artifact.build(root, BOOK, build_again).result == "built"


def age_files(target: Artifact) -> None:
    """Make the files of an artifact old, so that any later change gives them a newer timestamp."""
    for record in target.manifest.files:
        os.utime(target.file(record.name), (1e9, 1e9))


def flip(path: Path) -> None:
    """Flip one bit of a file in place."""
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, bytes([os.pread(descriptor, 1, 0)[0] ^ 1]), 0)
    os.close(descriptor)


def fail_if_read(path: Path) -> str:
    pytest.fail(f"{path} was read")


def test_flipped_bit_is_found_and_artifact_is_rebuilt(root: Path) -> None:
    """Case 46."""
    built = artifact.build(root, BOOK, writes("ink", "stone")).artifact
    age_files(built)
    path = built.file("part/00000.txt")
    flip(path)
    assert artifact.find_problems(built) == [f"{path}: content differs from the manifest's sha256"]
    with pytest.raises(BadData, match=r"00000\.txt: content differs") as caught:
        artifact.require_intact(built)
    assert (caught.value.exit_code, caught.value.hint) == (65, "`clean` it again")
    again = artifact.build(root, BOOK, writes("ink", "stone"))
    assert again.result == "built"
    assert (again.artifact.digest, artifact.find_problems(again.artifact, deep=True)) == (built.digest, [])


def test_change_at_the_timestamp_of_the_manifest_is_found(root: Path) -> None:
    """Case 46."""
    built = artifact.build(root, BOOK, writes("ink")).artifact
    path, published_at = built.file("part/00000.txt"), built.file("manifest.json").stat().st_mtime_ns
    flip(path)
    os.utime(path, ns=(published_at, published_at))
    assert artifact.find_problems(built) == [f"{path}: content differs from the manifest's sha256"]


def test_deep_check_finds_bit_rot(root: Path) -> None:
    """Case 46."""
    built = artifact.build(root, BOOK, writes("ink", "stone")).artifact
    path = built.file("part/00000.txt")
    flip(path)
    os.utime(path, (1e9, 1e9))  # a disk flips bits without changing the timestamp
    assert artifact.find_problems(built) == []
    assert artifact.find_problems(built, deep=True) == [f"{path}: content differs from the manifest's sha256"]


def test_unmodified_files_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = artifact.build(root, BOOK, writes("ink", "stone")).artifact
    age_files(built)
    monkeypatch.setattr(files, "sha256_of", fail_if_read)
    assert artifact.find_problems(built) == []
    assert artifact.build(root, BOOK, must_not_be_called).result == "unchanged"


def test_links_to_an_earlier_generation_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = artifact.build(root, BOOK, writes("ink")).artifact
    age_files(first)

    def link(draft: Path) -> StageOutput:
        files.link_or_copy(first.file("part/00000.txt"), draft / "00000.txt")
        return StageOutput({})

    second = artifact.build(root, changed(options={}), link).artifact
    monkeypatch.setattr(files, "sha256_of", fail_if_read)
    assert artifact.find_problems(first) == artifact.find_problems(second) == []


def test_copy_without_timestamps_is_intact(root: Path, tmp_path: Path) -> None:
    built = artifact.build(root, BOOK, writes("ink", "stone")).artifact
    copied = artifact.read(shutil.copytree(built.path, tmp_path / "copy", copy_function=shutil.copyfile))
    assert artifact.find_problems(copied) == []
    flip(copied.file("part/00001.txt"))
    assert artifact.find_problems(copied) == [
        f"{copied.file('part/00001.txt')}: content differs from the manifest's sha256"
    ]


def test_truncated_file_is_found_and_rebuilt(root: Path) -> None:
    """Case 47."""
    built = artifact.build(root, BOOK, writes("一", "二")).artifact
    os.truncate(built.file("part/00001.txt"), 1)
    assert "1 bytes where the manifest says 3" in artifact.find_problems(built)[0]
    with pytest.raises(BadData) as caught:
        artifact.require_intact(built)
    assert caught.value.exit_code == 65
    again = artifact.build(root, BOOK, writes("一", "二"))
    assert again.result == "built"
    assert artifact.find_problems(again.artifact, deep=True) == []


def test_missing_file_is_found_and_rebuilt(root: Path) -> None:
    """Case 47."""
    built = artifact.build(root, BOOK, writes("一", "二")).artifact
    built.file("part/00001.txt").unlink()
    assert artifact.find_problems(built) == [f"{built.file('part/00001.txt')}: missing"]
    built.file("part/00001.txt").mkdir()
    assert artifact.find_problems(built) == [f"{built.file('part/00001.txt')}: missing"], "a folder is not the file"
    built.file("part/00001.txt").rmdir()
    assert artifact.build(root, BOOK, writes("一", "二")).result == "built"


def test_additional_file_is_listed_and_harmless(root: Path) -> None:
    """Case 47."""
    built = artifact.build(root, BOOK, writes("一")).artifact
    assert artifact.unlisted_files(built) == []
    (built.path / "part" / "00001.txt").write_text("二")
    (built.path / "notes").touch()
    assert artifact.unlisted_files(built) == ["notes", "part/00001.txt"]
    assert artifact.find_problems(built, deep=True) == []
    assert artifact.build(root, BOOK, must_not_be_called).result == "unchanged"


def test_files_swapped_between_artifacts_are_found(root: Path) -> None:
    """Case 47."""
    one = artifact.build(root, BOOK, writes("ink", "stone")).artifact
    other = artifact.build(root, changed(options={}), writes("INK", "brush!")).artifact
    for built in (one, other):
        age_files(built)
    for name in ("part/00000.txt", "part/00001.txt"):
        swap = root / "swap"
        shutil.copyfile(one.file(name), swap)
        shutil.copyfile(other.file(name), one.file(name))
        shutil.copyfile(swap, other.file(name))
    for built in (one, other):
        same_size, other_size = artifact.find_problems(built)
        assert "00000.txt: content differs" in same_size
        assert "bytes where the manifest says" in other_size


def test_deep_check_finds_moved_in_file_of_same_size(root: Path) -> None:
    """Case 47."""
    one = artifact.build(root, BOOK, writes("ink")).artifact
    other = artifact.build(root, changed(options={}), writes("INK")).artifact
    age_files(other)
    os.replace(other.file("part/00000.txt"), one.file("part/00000.txt"))
    assert artifact.find_problems(one) == []
    assert "content differs" in artifact.find_problems(one, deep=True)[0]


def damage_manifest(target: Artifact, content: bytes | None) -> None:
    """Replace the manifest by `content`, or delete it."""
    target.file("manifest.json").unlink()
    if content is not None:
        target.file("manifest.json").write_bytes(content)


TORN = [None, b"", b'{"schema": 1, "ki', b"\0\0\0", b"[]", b"{}", b'{"schema": 1, "kind": "\xff"}']


@pytest.mark.parametrize("content", TORN)
def test_artifact_with_torn_manifest_is_rebuilt(root: Path, content: bytes | None) -> None:
    """Case 50."""
    built = artifact.build(root, BOOK, writes("一")).artifact
    damage_manifest(built, content)
    again = artifact.build(root, BOOK, writes("一"))
    assert (again.result, again.artifact.digest) == ("built", built.digest)


@pytest.mark.parametrize("content", TORN[1:])
def test_torn_manifest_raises_bad_data(root: Path, content: bytes) -> None:
    """Case 50."""
    built = artifact.build(root, BOOK, writes("一")).artifact
    damage_manifest(built, content)
    with pytest.raises(BadData, match="not a manifest"):
        artifact.read(built.path)


@pytest.mark.parametrize("content", TORN)
def test_error_of_torn_generation_names_newest_intact_one(root: Path, content: bytes | None) -> None:
    """Case 50. The error names it but does not return it, so that old data is never read unnoticed."""
    texts = ("oldest", "intact", "damaged", "torn")
    built = [artifact.build(root, changed(options={"x": x}), writes(text)).artifact for x, text in enumerate(texts)]
    _, intact, damaged, torn = built
    os.truncate(damaged.file("part/00000.txt"), 1)
    damage_manifest(torn, content)
    for look_up in (
        lambda: artifact.current(root, "corpora", "shuihu"),
        lambda: artifact.find(root, "corpora", "shuihu"),
        lambda: artifact.latest(root, "corpora"),
    ):
        with pytest.raises(BadData, match=torn.manifest.key) as caught:
            look_up()
        assert caught.value.exit_code == 65
        assert caught.value.hint == f"`clean` it again, or name {intact.ref}, the newest intact generation"
    assert artifact.find(root, "corpora", intact.ref) == intact


def test_error_of_only_generation_suggests_to_rebuild_it(root: Path) -> None:
    """Case 50."""
    damage_manifest(artifact.build(root, BOOK, writes("一")).artifact, b"")
    with pytest.raises(BadData, match="current generation of corpora/shuihu") as caught:
        artifact.find(root, "corpora", "shuihu")
    assert caught.value.hint == "`clean` it again"


def test_missing_current_generation_is_an_error_if_others_exist(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("一")).artifact
    second = artifact.build(root, changed(options={}), writes("二")).artifact
    shutil.rmtree(second.path)
    with pytest.raises(BadData, match=second.manifest.key) as caught:
        artifact.find(root, "corpora", "shuihu")
    assert first.ref in caught.value.hint
    shutil.rmtree(first.path)
    assert artifact.current(root, "corpora", "shuihu") is None
    assert artifact.list_names(root, "corpora") == []
    with pytest.raises(InputMissing, match="`clean` creates one"):
        artifact.find(root, "corpora", "shuihu")


def test_error_of_damaged_artifact_names_newest_intact_one(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("一")).artifact
    second = artifact.build(root, changed(options={}), writes("二")).artifact
    second.file("part/00000.txt").unlink()
    with pytest.raises(BadData, match="missing") as caught:
        artifact.require_intact(second)
    assert first.ref in caught.value.hint


@pytest.mark.parametrize("fields", [{}, {"content": {}, "files": "elsewhere"}])
def test_artifact_of_newer_version_is_not_read(root: Path, fields: dict[str, Any]) -> None:
    """Case 50."""
    artifact.build(root, changed(options={}), writes("older"))
    built = artifact.build(root, BOOK, writes("一")).artifact
    manifest = json.loads(built.file("manifest.json").read_text())
    newer = {**manifest, **fields, "schema": SCHEMA + 1}
    built.file("manifest.json").write_text(json.dumps(newer))
    for look_up in (lambda: artifact.read(built.path), lambda: artifact.find(root, "corpora", "shuihu")):
        with pytest.raises(BadConfig, match="newer version") as caught:
            look_up()
        assert caught.value.exit_code == 78


def test_unknown_manifest_field_is_ignored(root: Path) -> None:
    """Case 50."""
    built = artifact.build(root, BOOK, writes("一")).artifact
    manifest = json.loads(built.file("manifest.json").read_text())
    built.file("manifest.json").write_text(json.dumps({**manifest, "colour": "black"}))
    assert artifact.find(root, "corpora", "shuihu").manifest == built.manifest


def test_manifest_with_other_sha256_is_another_input(root: Path) -> None:
    """Case 50. A deep check finds it too."""
    built = artifact.build(root, BOOK, writes("一")).artifact
    manifest = json.loads(built.file("manifest.json").read_text())
    manifest["files"][0]["sha256"] = "0" * 64
    built.file("manifest.json").write_text(json.dumps(manifest))
    tampered = artifact.read(built.path)
    assert "content differs" in artifact.find_problems(tampered, deep=True)[0]
    assert tampered.as_input("corpus") != built.as_input("corpus")


def test_artifact_without_files_raises_internal_error(root: Path) -> None:
    built = artifact.build(root, BOOK, lambda draft: StageOutput({})).artifact
    with pytest.raises(InternalError):
        artifact.require_intact(built)


def test_artifact_is_found_by_name_key_and_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = artifact.build(root, BOOK, writes("一")).artifact
    new = artifact.build(root, changed(options={}), writes("二")).artifact
    shelf = root / "corpora" / "shuihu"
    for reference in ("shuihu", "shuihu/", "corpora/shuihu", new.ref, str(new.path), str(shelf / "current")):
        assert artifact.find(root, "corpora", reference) == new
    for reference in (f"shuihu/{BOOK.key}", old.ref, str(old.path), f"{old.path}/"):
        assert artifact.find(root, "corpora", reference) == old
    monkeypatch.chdir(shelf)
    assert artifact.find(root, "corpora", f"./{BOOK.key}") == old


def test_error_of_missing_artifact_suggests_a_similar_name_and_a_first_command(root: Path) -> None:
    with pytest.raises(InputMissing, match="none yet; `train` creates one, `start FILE` from any text"):
        artifact.find(root, "runs", "bob")
    with pytest.raises(InputMissing, match="`start FILE` from any text"):
        artifact.latest(root, "runs")
    artifact.build(root, BOOK, writes("一"))
    with pytest.raises(InputMissing, match=r"did you mean shuihu\? available: shuihu;"):
        artifact.find(root, "corpora", "shuhu")


def test_error_of_missing_artifact_lists_available_ones(root: Path) -> None:
    with pytest.raises(InputMissing, match=r"none yet; `clean` creates one") as caught:
        artifact.find(root, "corpora", "honglou")
    assert caught.value.exit_code == 66
    artifact.build(root, BOOK, writes("一"))
    artifact.build(root, changed(name="水浒"), writes("一"))
    for reference in ("honglou", "corpora/honglou", "shuihu/0000000000000000", str(root / "nowhere"), ""):
        with pytest.raises(InputMissing, match=r"\(available: shuihu, 水浒; `clean` creates one"):
            artifact.find(root, "corpora", reference)


def test_path_of_artifact_of_other_kind_is_refused(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    with pytest.raises(InputMissing, match="expected an artifact of kind tokens, got corpora"):
        artifact.find(root, "tokens", str(built.path))


def test_latest_is_the_artifact_published_last(root: Path) -> None:
    with pytest.raises(InputMissing, match="no corpora"):
        artifact.latest(root, "corpora")
    for name in ("b", "c", "a"):
        built = artifact.build(root, changed(name=name), writes(name)).artifact
        assert artifact.latest(root, "corpora") == built


def test_generations_lists_every_published_folder_once(root: Path) -> None:
    built = [
        artifact.build(root, identity, writes("一")).artifact
        for identity in (BOOK, changed(options={}), changed(kind="tokens"))
    ]
    with pytest.raises(TryAgain):
        artifact.build(root, changed(options={"x": 1}), fails(TryAgain("later")), keep_draft=True)
    assert sorted(artifact.generations(root)) == sorted(generation.path for generation in built)


@pytest.mark.parametrize("name", ["水浒", "a", "pile-v2.1_x+y", "9", "a" * 80, "é"])
def test_name_may_use_any_script(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "../x", "..", ".x", "-x", "_x", "a/b", "a\\b", "a b", "a\n", "a\0", "x" * 81, "x" * 200, "current link", "/"],
)
def test_name_that_could_be_a_path_is_refused(root: Path, name: str) -> None:
    with pytest.raises(BadConfig) as caught:
        check_name(name)
    assert caught.value.exit_code == 78
    with pytest.raises(BadConfig):
        artifact.build(root, changed(name=name), must_not_be_called)
    assert not root.exists()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("../data/a b.jsonl.zst", "a-b"),
        ("https://example.org/x/水浒传.txt", "水浒传"),
        ("shuihu_raw.txt", "shuihu_raw"),
        ("data/", "data"),
        ("ci.song.0.json", "ci.song.0"),
        (".hidden.txt", "hidden"),
        ("v1.2.txt.gz", "v1.2"),
        ("/", "unnamed"),
        ("", "unnamed"),
        (".zst", "unnamed"),
        ("字" * 300, "字" * 80),
        ("novel.TXT", "novel"),
        ("My Novel (final).md", "My-Novel-final"),
        ("水浒 全传.txt", "水浒-全传"),
        ("cafe\u0301.txt", "caf\u00e9"),
        ("a.tar.gz", "a"),
        ("posts.JSONL.ZST", "posts"),
        ("..data", "data"),
    ],
)
def test_name_is_derived_from_path(path: str, name: str) -> None:
    assert name_from_path(path) == name


def test_name_of_the_current_folder_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my notes" / "2024"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert [name_from_path(path) for path in (".", "./", "..", "../../my notes/.")] == [
        "2024",
        "2024",
        "my-notes",
        "my-notes",
    ]


@given(st.text(st.characters(exclude_characters="+")))
def test_name_from_any_path_is_valid(path: str) -> None:
    assert is_valid_name(name_from_path(path))


def test_name_from_path_that_starts_with_plus_is_valid() -> None:
    assert is_valid_name(name_from_path("+more.txt"))


def test_lease_ends_with_its_block_and_passes_errors_on(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    with artifact.lease(built), locks.if_unleased(built.file("manifest.json")) as free:
        assert not free
    with pytest.raises(FileNotFoundError, match="from the block"), artifact.lease(built):
        raise FileNotFoundError("from the block")
    with locks.if_unleased(built.file("manifest.json")) as free:
        assert free


def test_lease_on_pruned_artifact_raises_input_missing(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    files.discard_folder(built.path)
    with pytest.raises(InputMissing, match="pruned meanwhile") as caught, artifact.lease(built):
        pytest.fail("got a lease on a deleted artifact")
    assert (caught.value.exit_code, "again" in caught.value.hint) == (66, True)


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a fork. Return 0, the exit code of its error, or minus the signal that killed it."""
    child = os.fork()
    if not child:
        code = 70
        try:
            work()
            code = 0
        except InkstoneError as error:
            code = error.exit_code
        except OSError as error:
            code = from_os_error(error).exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def assert_survived(root: Path, *generations: Artifact) -> None:
    """Check that `current` is one of `generations`, all published artifacts are intact, and the lock is free."""
    current = artifact.find(root, "corpora", "shuihu")
    assert current.manifest.key in [generation.manifest.key for generation in generations]
    for path in artifact.generations(root):
        published = artifact.read(path)
        assert artifact.find_problems(published, deep=True) == []
        assert published.digest in [generation.digest for generation in generations]
    assert not locks.is_locked(root / "corpora" / "shuihu" / ".lock")


def leftovers(root: Path) -> list[str]:
    return [name for name in tree(root) if any(part in name for part in (files.TEMPORARY, files.TRASH, ".draft-"))]


PLAIN = changed(libraries=())  # computing its key opens no file


def test_running_out_of_file_descriptors_keeps_old_generation(root: Path) -> None:
    """Case 49, for every number of descriptors with which a build still fails."""
    old = artifact.build(root, changed(options={}, libraries=()), writes("old")).artifact
    expected = artifact.build(root / "other", PLAIN, writes("一", "二")).artifact
    codes: list[int] = []
    while not codes or codes[-1]:

        def build(available: int = len(codes)) -> None:
            with open(os.devnull) as lowest:  # in the child, after libraries have closed their files
                limit = lowest.fileno() + available
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            artifact.build(root, PLAIN, writes("一", "二"))

        codes.append(in_child(build))
        assert codes[-1] in (0, 74), codes
        assert_survived(root, old, expected)
        assert artifact.build(root, PLAIN, writes("一", "二")).artifact.digest == expected.digest
        assert leftovers(root) == []
        shutil.rmtree(root / "corpora" / "shuihu" / PLAIN.key)
        files.point_symlink(root / "corpora" / "shuihu" / "current", old.manifest.key)
    assert codes.count(74) >= 2, "one failure at the lock, and one at a file after it"


BUILD_AND_READ = """
import sys
from pathlib import Path
from pipeline.store import artifact
from pipeline import errors
from pipeline.store.manifest import Identity
root = Path(sys.argv[1])
book = artifact.find(root, "corpora", "shuihu")
with artifact.lease(book):
    print(book.ref, artifact.find_problems(book, deep=True))
try:
    artifact.build(root, Identity("corpora", "shuihu", {"x": 2}, ()), lambda draft: artifact.StageOutput({}))
except OSError as error:
    print(errors.from_os_error(error))
"""
MOUNT_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'


def in_read_only(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command for which the folder `root` is read-only."""
    if os.getuid():
        os.chmod(root / "corpora" / "shuihu", 0o555)
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    mount = ["unshare", "--mount", "sh", "-c", MOUNT_READ_ONLY + ' && shift && exec "$@"', "sh", str(root)]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("case 49 was NOT tested: root can write anywhere, and may not mount a folder read-only here")
    return subprocess.run([*mount, *command], capture_output=True, text=True, cwd=ROOT, check=False)


def test_read_only_store_can_be_read_and_build_names_the_cause(root: Path) -> None:
    """Case 49."""
    built = artifact.build(root, BOOK, writes("一")).artifact
    if os.getuid():
        os.chmod(root / "corpora" / "shuihu" / ".lock", 0o444)
    before = tree(root)
    process = in_read_only(root, sys.executable, "-c", BUILD_AND_READ, str(root))
    read, refused = process.stdout.splitlines()
    assert read == f"{built.ref} []"
    assert ".lock: " in refused
    assert "--artifacts" in refused
    assert tree(root) == before
    assert_survived(root, built)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a file system on which flock has no effect, such as some network mounts."""
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)


@pytest.mark.usefixtures("no_locks")
def test_without_flock_a_live_holder_still_blocks(root: Path) -> None:
    """Case 75."""

    def refused(draft: Path) -> StageOutput:
        assert in_child(lambda: artifact.build(root, BOOK, must_not_be_called)) == 75
        return writes("一")(draft)

    assert_survived(root, artifact.build(root, BOOK, refused).artifact)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("keep_draft", [False, True])
@pytest.mark.parametrize("moment", ["before writing", "after writing"])
def test_of_two_hosts_that_build_the_same_only_one_publishes(
    root: Path, monkeypatch: pytest.MonkeyPatch, keep_draft: bool, moment: str
) -> None:
    """Case 75. Whether a process of another host is alive is unknown; here the other build runs inside the first."""
    monkeypatch.setattr(locks, "_is_alive", lambda holder: False)
    old = artifact.build(root, changed(options={}), writes("old")).artifact
    published = []

    def write(draft: Path) -> StageOutput:
        if moment == "after writing":
            writes("一")(draft)
        published.append(artifact.build(root, BOOK, writes("一"), keep_draft=keep_draft).artifact)
        return writes("一")(draft)

    with pytest.raises(FileNotFoundError):
        artifact.build(root, BOOK, write, keep_draft=keep_draft)
    assert_survived(root, old, *published)
    assert artifact.build(root, BOOK, must_not_be_called).artifact == published[0]
    assert leftovers(root) == []


class DiskWithRival(files.Disk):
    """A disk on which another process publishes a generation just before this process does."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def rename(self, old: Path, new: Path) -> None:
        if new.name == self.source.name:
            shutil.copytree(self.source, new)
        super().rename(old, new)


@pytest.mark.parametrize("moment", ["during the build", "just before the rename"])
def test_generation_published_by_another_process_is_not_replaced(
    root: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Case 75."""
    rival = artifact.build(root / "other", BOOK, writes("一")).artifact
    rival.file("run.json").write_text('{"host": "rival", "generation": 1}')

    def write(draft: Path) -> StageOutput:
        if moment == "during the build":
            shutil.copytree(rival.path, draft.with_name(BOOK.key))
        else:
            monkeypatch.setattr(files, "disk", DiskWithRival(rival.path))
        return writes("一")(draft)

    built = artifact.build(root, BOOK, write).artifact
    assert json.loads(built.file("run.json").read_text())["host"] == "rival"
    assert (built.digest, artifact.current(root, "corpora", "shuihu")) == (rival.digest, built)
    assert leftovers(root) == []


def test_damaged_generation_of_another_process_is_replaced(root: Path) -> None:
    """Case 75."""
    rival = artifact.build(root / "other", BOOK, writes("一")).artifact
    rival.file("part/00000.txt").write_text("half")

    def write(draft: Path) -> StageOutput:
        shutil.copytree(rival.path, draft.with_name(BOOK.key))
        return writes("一")(draft)

    built = artifact.build(root, BOOK, write).artifact
    assert artifact.find_problems(built, deep=True) == []
    assert leftovers(root) == []


def test_generation_damaged_right_after_publishing_is_deleted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 75."""
    old = artifact.build(root, changed(options={}), writes("old")).artifact
    broken = artifact.build(root / "other", BOOK, writes("一")).artifact
    broken.file("part/00000.txt").write_text("half")
    monkeypatch.setattr(files, "disk", DiskWithRival(broken.path))
    with pytest.raises(TryAgain, match="another process builds it too"):
        artifact.build(root, BOOK, writes("一"))
    monkeypatch.undo()
    assert not (root / "corpora" / "shuihu" / BOOK.key).exists()
    assert artifact.find(root, "corpora", "shuihu") == old
    assert_survived(root, old, artifact.build(root, BOOK, writes("一")).artifact)


@pytest.mark.usefixtures("no_locks")
def test_two_simultaneous_builds_without_flock_leave_an_intact_generation(root: Path) -> None:
    """Case 75."""
    expected = artifact.build(root / "other", BOOK, writes("一", "二")).artifact
    for _ in range(5):
        start, go = os.pipe()
        children = []
        for _ in range(2):
            child = os.fork()
            if not child:
                os.close(go)
                os.read(start, 1)  # returns once every process has closed the other end
                os._exit(in_child(lambda: artifact.build(root, BOOK, writes("一", "二"))))
            children.append(child)
        os.close(start)
        os.close(go)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert set(codes) <= {0, 66, 74, 75}, codes  # 66 and 74: the other process took the draft away
        for path in artifact.generations(root):
            assert artifact.find_problems(artifact.read(path), deep=True) == []
        assert_survived(root, artifact.build(root, BOOK, writes("一", "二")).artifact, expected)
        assert leftovers(root) == []
        shutil.rmtree(root / "corpora" / "shuihu")


def test_folder_that_cannot_be_listed_is_not_skipped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def fails_below(path: Any) -> Any:
        if str(path).endswith("/part"):
            raise OSError(errno.EMFILE, "too many open files")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fails_below)
    monkeypatch.setattr(files, "remove_tree", lambda path: None)  # it would fail in the same way
    with pytest.raises(OSError, match="too many open files"):
        artifact.build(root, BOOK, writes("一"))
    assert artifact.list_names(root, "corpora") == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_file_system_without_links_is_noticed_before_the_work(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(target_name: str, link: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(BadConfig, match="corpora/shuihu: this file system has no symbolic links") as caught:
        artifact.build(root, BOOK, must_not_be_called)
    assert "--artifacts" in caught.value.hint
    assert os.listdir(root / "corpora" / "shuihu") == [".lock"]


@pytest.mark.parametrize("value", [math.inf, math.nan, [1.0, -math.inf], {"rate": math.inf}, 1 << 64], ids=str)
def test_what_json_cannot_hold_reaches_neither_a_key_nor_a_manifest(root: Path, value: object) -> None:
    with pytest.raises(BadConfig, match=r"options\.clip"):
        artifact.find_published(root, Identity("runs", "book", {"clip": value}, ()))
    identity = Identity("runs", "book", {"clip": 1.0}, ())
    with pytest.raises(BadConfig, match=r"counts\.share"):
        artifact.build(root, identity, lambda draft: StageOutput({"share": value}))
    assert artifact.current(root, "runs", "book") is None
