"""An artifact: a key that says what it was made from, published whole or not at all, found again and checked.

Numbers in the names of tests are those of the cases in reference/reliability.md, section 2.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
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
from pipeline.store.artifact import Artifact, Content
from pipeline.store.generations import draft_path, generation_keys, run_of
from pipeline.store.manifest import SCHEMA, FileRecord, Identity, Input, check_name, is_name, name_from

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
    """The same JSON value with every dict in the opposite order."""
    if isinstance(value, dict):
        return {name: reversed_throughout(value[name]) for name in reversed(value)}
    if isinstance(value, list):
        return [reversed_throughout(entry) for entry in value]
    return value


def writes(*texts: str) -> Callable[[Path], Content]:
    """A stage that writes one document a file."""

    def write(draft: Path) -> Content:
        (draft / "part").mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (draft / "part" / f"{number:05d}.txt").write_text(text)
        return Content({"documents": len(texts)}, {"documents": {"in": len(texts), "out": len(texts), "dropped": {}}})

    return write


def fails(error: BaseException) -> Callable[[Path], Content]:
    """A stage that writes half of its work, then raises."""

    def write(draft: Path) -> Content:
        (draft / "half.txt").write_text("half")
        raise error

    return write


def must_not_be_called(draft: Path) -> Content:
    pytest.fail(f"the stage ran in {draft}")


def tree(root: Path) -> list[str]:
    """Every path below `root` but the lock files."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.name != ".lock")


@given(OPTIONS)
def test_a_key_does_not_depend_on_the_order_of_options(options: dict[str, Any]) -> None:
    one, other = options, reversed_throughout(options)
    assert changed(options=one, libraries=()).key == changed(options=other, libraries=()).key


@given(OPTIONS, OPTIONS)
def test_two_keys_are_equal_only_for_equal_options(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (changed(options=one, libraries=()).key == changed(options=other, libraries=()).key) == same


def test_a_key_does_not_depend_on_the_order_of_libraries_or_on_any_name() -> None:
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
def test_a_key_changes_with_all_that_decides_the_bytes(other: Identity) -> None:
    assert other.key != BOOK.key


def test_a_key_is_16_hex_digits() -> None:
    assert len(BOOK.key) == 16
    int(BOOK.key, 16)


def test_a_build_publishes_files_manifest_run_and_current(root: Path) -> None:
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


def test_a_second_build_is_unchanged_and_runs_nothing(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("一"))
    before = {path: path.lstat().st_mtime_ns for path in root.rglob("*") if path.name != ".lock"}
    second = artifact.build(root, BOOK, must_not_be_called)
    assert (second.result, second.artifact) == ("unchanged", first.artifact)
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*") if path.name != ".lock"} == before


def test_a_second_build_below_a_relative_root_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    artifact.build(Path("artifacts"), BOOK, writes("一"))
    link = tmp_path / "artifacts" / "corpora" / "shuihu" / "current"
    before = link.lstat().st_ino, link.lstat().st_mtime_ns
    artifact.build(Path("artifacts"), BOOK, must_not_be_called)
    assert (link.lstat().st_ino, link.lstat().st_mtime_ns) == before


def test_another_option_publishes_another_generation_beside_the_first(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("一")).artifact
    second = artifact.build(root, changed(options={}), writes("二")).artifact
    assert artifact.current(root, "corpora", "shuihu") == second
    assert artifact.problems(first, deep=True) == []
    assert artifact.build(root, BOOK, must_not_be_called).result == "unchanged"
    assert artifact.current(root, "corpora", "shuihu") == first


def test_equal_inputs_give_equal_manifests_in_two_roots(tmp_path: Path) -> None:
    one = artifact.build(tmp_path / "one", BOOK, writes("一", "二"))
    other = artifact.build(tmp_path / "other" / "deeper", BOOK, writes("一", "二"))
    assert one.artifact.file("manifest.json").read_bytes() == other.artifact.file("manifest.json").read_bytes()
    assert one.artifact.as_input("corpus") == other.artifact.as_input("corpus")


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), BadData("broken"), TryAgain("later")])
def test_a_failing_stage_publishes_nothing_and_leaves_no_draft(root: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        artifact.build(root, BOOK, fails(error))
    assert tree(root) == ["corpora", "corpora/shuihu"]
    assert artifact.names(root, "corpora") == []
    assert artifact.build(root, BOOK, writes("一")).result == "built"


def test_a_failing_stage_leaves_the_generation_before_it_as_it_was(root: Path) -> None:
    before = artifact.build(root, BOOK, writes("一")).artifact
    with pytest.raises(BadData):
        artifact.build(root, changed(options={}), fails(BadData("broken")))
    assert artifact.current(root, "corpora", "shuihu") == before
    assert artifact.problems(before, deep=True) == []


@pytest.mark.parametrize("error", [TryAgain("a signal came"), KeyboardInterrupt(), OSError("disk full")])
def test_a_kept_draft_is_handed_to_the_next_try(root: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        artifact.build(root, BOOK, fails(error), keep_draft=True)
    draft = draft_path(root, BOOK)
    assert sorted(os.listdir(draft)) == ["half.txt", "run.json"]
    assert artifact.names(root, "corpora") == []

    def go_on(folder: Path) -> Content:
        assert folder == draft
        assert (folder / "half.txt").read_text() == "half"
        return writes("一")(folder)

    artifact.build(root, BOOK, go_on, keep_draft=True)
    assert not draft.exists()


@pytest.mark.parametrize("error", [BadData("broken"), BadConfig("no such thing"), TryAgain("stopped")])
def test_a_kept_draft_stays_whatever_happens_unless_it_is_empty(root: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        artifact.build(root, BOOK, fails(error), keep_draft=True)
    assert (draft_path(root, BOOK) / "half.txt").exists()

    def fail_at_once(draft: Path) -> Content:
        raise error

    other = Identity("corpora", "other", {}, ())
    with pytest.raises(type(error)):
        artifact.build(root, other, fail_at_once, keep_draft=True)
    assert not draft_path(root, other).exists()


def test_a_damaged_artifact_that_kept_its_draft_is_handed_back_to_go_on_with(root: Path) -> None:
    def write(draft: Path) -> Content:
        (draft / "precious").touch()
        (draft / "redrawn").write_bytes(b"picture")
        return Content({})

    made = artifact.build(root, BOOK, write, keep_draft=True).artifact
    (made.path / "precious").write_bytes(b"")
    (made.path / "redrawn").unlink()
    found: list[str] = []

    def write_again(draft: Path) -> Content:
        found.extend(path.name for path in draft.iterdir())
        return write(draft)

    assert artifact.build(root, BOOK, write_again, keep_draft=True).result == "built"
    assert "precious" in found


def test_too_many_rejects_leave_the_draft_to_look_at_and_say_where_it_is(root: Path) -> None:
    draft = draft_path(root, BOOK)
    with pytest.raises(TooManyRejects) as caught:
        artifact.build(root, BOOK, fails(TooManyRejects("2 of 3 are bad", hint="look")))
    assert str(draft) in caught.value.what
    assert os.listdir(draft) == ["half.txt"]
    assert artifact.names(root, "corpora") == []
    built = artifact.build(root, BOOK, writes("一"))
    assert [record.name for record in built.artifact.manifest.files] == ["part/00000.txt"]


def test_a_temporary_that_a_kill_left_in_the_draft_is_not_published(root: Path) -> None:
    draft = draft_path(root, BOOK)
    draft.mkdir(parents=True)
    (draft / f"{files.TEMPORARY}unit-00000.json.0badcafe").write_text("half a rec")
    built = artifact.build(root, BOOK, writes("一"), keep_draft=True)
    assert [record.name for record in built.artifact.manifest.files] == ["part/00000.txt"]


def works(draft: Path) -> Content:
    """A stage that keeps notes to go on with after a kill."""
    (draft / artifact.SCRATCH / "deep").mkdir(parents=True, exist_ok=True)
    (draft / artifact.SCRATCH / "deep" / "notes").write_text("half")
    return writes("一")(draft)


def test_what_a_stage_works_with_is_neither_listed_nor_published(root: Path) -> None:
    built = artifact.build(root, BOOK, works, keep_draft=True)
    assert tree(built.artifact.path) == ["manifest.json", "part", "part/00000.txt", "run.json"]
    assert [record.name for record in built.artifact.manifest.files] == ["part/00000.txt"]
    assert built.artifact.digest == artifact.build(root / "other", BOOK, writes("一")).artifact.digest


def test_what_a_stage_works_with_is_there_when_it_goes_on(root: Path) -> None:
    def stop(draft: Path) -> Content:
        works(draft)
        raise TryAgain("a signal came")

    def go_on(draft: Path) -> Content:
        assert (draft / artifact.SCRATCH / "deep" / "notes").read_text() == "half"
        return works(draft)

    with pytest.raises(TryAgain):
        artifact.build(root, BOOK, stop, keep_draft=True)
    assert artifact.build(root, BOOK, go_on, keep_draft=True).result == "built"


def test_what_a_kill_left_in_a_published_folder_is_cleared_away(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    works(built.path)
    assert artifact.problems(built, deep=True) == []
    assert artifact.build(root, BOOK, must_not_be_called).result == "unchanged"
    assert not built.file(artifact.SCRATCH).exists()


def test_a_hash_that_was_taken_on_the_way_is_believed_where_the_size_is_right(root: Path) -> None:
    hashed = [FileRecord("part/00000.txt", 3, "taken"), FileRecord("part/00001.txt", 4, "of more")]

    def write(draft: Path) -> Content:
        content = writes("一", "二")(draft)
        os.utime(draft / "part" / "00000.txt", (1e9, 1e9))  # settled: not looked at again once it is published
        return dataclasses.replace(content, hashed=hashed)

    first, second = artifact.build(root, BOOK, write).artifact.manifest.files
    assert first == hashed[0]
    assert second == FileRecord("part/00001.txt", 3, hashlib.sha256("二".encode()).hexdigest())


def test_what_a_stage_says_of_its_run_is_beside_the_manifest_and_not_in_it(root: Path) -> None:
    def write(draft: Path) -> Content:
        return dataclasses.replace(writes("一")(draft), run={"inputs": {"a.txt": "/home/one/a.txt"}})

    built = artifact.build(root, BOOK, write).artifact
    run = json.loads(built.file("run.json").read_text())
    assert run["inputs"] == {"a.txt": "/home/one/a.txt"}
    assert {"seconds", "host", "python"} <= run.keys()
    assert built.digest == artifact.build(root / "other", BOOK, writes("一")).artifact.digest


def test_a_draft_to_go_on_with_says_what_it_is_made_from(root: Path) -> None:
    with pytest.raises(TryAgain):
        artifact.build(root, BOOK, fails(TryAgain("a signal came")), keep_draft=True)
    draft = draft_path(root, BOOK)
    assert run_of(draft).made_from == BOOK.inputs
    (draft / "run.json").unlink()
    assert run_of(draft).made_from is None


def test_a_generation_has_the_next_number_on_its_shelf_whatever_its_stage_says_of_its_run(root: Path) -> None:
    def write(draft: Path) -> Content:
        return dataclasses.replace(writes("一")(draft), run={"generation": 7})

    built = [artifact.build(root, changed(options={"x": x}), write).artifact for x in range(3)]
    assert [json.loads(made.file("run.json").read_text())["generation"] for made in built] == [1, 2, 3]
    assert generation_keys(built[0].path.parent) == [made.manifest.key for made in built]


def test_two_builds_of_one_name_do_not_run_at_once(root: Path) -> None:
    def build_again(draft: Path) -> Content:
        with pytest.raises(TryAgain) as caught:
            artifact.build(root, BOOK, must_not_be_called)
        assert caught.value.exit_code == 75
        assert "clean shuihu" in caught.value.what
        return writes("一")(draft)

    assert artifact.build(root, BOOK, build_again).result == "built"


def settle(made: Artifact) -> None:
    """Let the files of an artifact be old: what happens next to them has a time of its own."""
    for record in made.manifest.files:
        os.utime(made.file(record.name), (1e9, 1e9))


def flip(path: Path) -> None:
    """Change one bit of a file where it lies."""
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, bytes([os.pread(descriptor, 1, 0)[0] ^ 1]), 0)
    os.close(descriptor)


def unread(path: Path) -> str:
    pytest.fail(f"{path} was read")


def test_case_46_a_flipped_bit_is_found_by_whoever_opens_the_artifact_and_it_is_made_anew(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("ink", "stone")).artifact
    settle(built)
    path = built.file("part/00000.txt")
    flip(path)
    assert artifact.problems(built) == [f"{path}: content differs from the manifest's sha256"]
    with pytest.raises(BadData, match=r"00000\.txt: content differs") as caught:
        artifact.require_whole(built)
    assert (caught.value.exit_code, caught.value.hint) == (65, "`clean` it again")
    again = artifact.build(root, BOOK, writes("ink", "stone"))
    assert again.result == "built"
    assert (again.artifact.digest, artifact.problems(again.artifact, deep=True)) == (built.digest, [])


def test_case_46_a_change_within_the_grain_of_the_clock_is_found(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("ink")).artifact
    path, at = built.file("part/00000.txt"), built.file("manifest.json").stat().st_mtime_ns
    flip(path)
    os.utime(path, ns=(at, at))
    assert artifact.problems(built) == [f"{path}: content differs from the manifest's sha256"]


def test_case_46_bits_that_rot_are_found_by_a_deep_look(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("ink", "stone")).artifact
    path = built.file("part/00000.txt")
    flip(path)
    os.utime(path, (1e9, 1e9))  # a disk flips bits without touching the time
    assert artifact.problems(built) == []
    assert artifact.problems(built, deep=True) == [f"{path}: content differs from the manifest's sha256"]


def test_files_that_nobody_touched_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = artifact.build(root, BOOK, writes("ink", "stone")).artifact
    settle(built)
    monkeypatch.setattr(files, "sha256_of", unread)
    assert artifact.problems(built) == []
    assert artifact.build(root, BOOK, must_not_be_called).result == "unchanged"


def test_links_to_the_files_of_an_earlier_generation_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = artifact.build(root, BOOK, writes("ink")).artifact
    settle(first)

    def link(draft: Path) -> Content:
        files.link_or_copy(first.file("part/00000.txt"), draft / "00000.txt")
        return Content({})

    second = artifact.build(root, changed(options={}), link).artifact
    monkeypatch.setattr(files, "sha256_of", unread)
    assert artifact.problems(first) == artifact.problems(second) == []


def test_a_store_that_was_copied_without_its_times_is_whole(root: Path, tmp_path: Path) -> None:
    built = artifact.build(root, BOOK, writes("ink", "stone")).artifact
    copied = artifact.read(shutil.copytree(built.path, tmp_path / "copy", copy_function=shutil.copyfile))
    assert artifact.problems(copied) == []
    flip(copied.file("part/00001.txt"))
    assert artifact.problems(copied) == [f"{copied.file('part/00001.txt')}: content differs from the manifest's sha256"]


def test_case_47_a_truncated_file_is_found_and_made_anew(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一", "二")).artifact
    os.truncate(built.file("part/00001.txt"), 1)
    assert "1 bytes where the manifest says 3" in artifact.problems(built)[0]
    with pytest.raises(BadData) as caught:
        artifact.require_whole(built)
    assert caught.value.exit_code == 65
    again = artifact.build(root, BOOK, writes("一", "二"))
    assert again.result == "built"
    assert artifact.problems(again.artifact, deep=True) == []


def test_case_47_a_missing_file_is_found_and_made_anew(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一", "二")).artifact
    built.file("part/00001.txt").unlink()
    assert artifact.problems(built) == [f"{built.file('part/00001.txt')}: missing"]
    assert artifact.build(root, BOOK, writes("一", "二")).result == "built"


def test_case_47_a_file_more_is_listed_and_harms_nobody(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    assert artifact.unlisted(built) == []
    (built.path / "part" / "00001.txt").write_text("二")
    (built.path / "notes").touch()
    assert artifact.unlisted(built) == ["notes", "part/00001.txt"]
    assert artifact.problems(built, deep=True) == []
    assert artifact.build(root, BOOK, must_not_be_called).result == "unchanged"


def test_case_47_files_swapped_between_two_sets_are_found(root: Path) -> None:
    one = artifact.build(root, BOOK, writes("ink", "stone")).artifact
    other = artifact.build(root, changed(options={}), writes("INK", "brush!")).artifact
    for made in (one, other):
        settle(made)
    for name in ("part/00000.txt", "part/00001.txt"):
        aside = root / "aside"
        shutil.copyfile(one.file(name), aside)
        shutil.copyfile(other.file(name), one.file(name))
        shutil.copyfile(aside, other.file(name))
    for made in (one, other):
        same_size, other_size = artifact.problems(made)
        assert "00000.txt: content differs" in same_size
        assert "bytes where the manifest says" in other_size


def test_case_47_a_file_of_the_same_size_that_was_moved_in_with_its_time_is_found_by_a_deep_look(root: Path) -> None:
    one = artifact.build(root, BOOK, writes("ink")).artifact
    other = artifact.build(root, changed(options={}), writes("INK")).artifact
    settle(other)
    os.replace(other.file("part/00000.txt"), one.file("part/00000.txt"))
    assert artifact.problems(one) == []
    assert "content differs" in artifact.problems(one, deep=True)[0]


def damage_manifest(made: Artifact, content: bytes | None) -> None:
    """Replace the manifest by `content`, or delete it."""
    made.file("manifest.json").unlink()
    if content is not None:
        made.file("manifest.json").write_bytes(content)


TORN = [None, b"", b'{"schema": 1, "ki', b"\0\0\0", b"[]", b"{}", b'{"schema": 1, "kind": "\xff"}']


@pytest.mark.parametrize("content", TORN)
def test_case_50_an_artifact_with_a_torn_manifest_is_made_anew(root: Path, content: bytes | None) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    damage_manifest(built, content)
    again = artifact.build(root, BOOK, writes("一"))
    assert (again.result, again.artifact.digest) == ("built", built.digest)


@pytest.mark.parametrize("content", TORN[1:])
def test_case_50_a_torn_manifest_is_bad_data(root: Path, content: bytes) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    damage_manifest(built, content)
    with pytest.raises(BadData, match="not a manifest"):
        artifact.read(built.path)


@pytest.mark.parametrize("content", TORN)
def test_case_50_readers_of_a_torn_generation_are_told_of_the_newest_whole_one_and_can_take_it(
    root: Path, content: bytes | None
) -> None:
    """Told, not given: a reader that went on with old data would do so unawares."""
    texts = ("oldest", "whole", "damaged", "torn")
    made = [artifact.build(root, changed(options={"x": x}), writes(text)).artifact for x, text in enumerate(texts)]
    os.truncate(made[2].file("part/00000.txt"), 1)
    damage_manifest(made[3], content)
    for ask in (
        lambda: artifact.current(root, "corpora", "shuihu"),
        lambda: artifact.find(root, "corpora", "shuihu"),
        lambda: artifact.latest(root, "corpora"),
    ):
        with pytest.raises(BadData, match=made[3].manifest.key) as caught:
            ask()
        assert caught.value.exit_code == 65
        assert caught.value.hint == f"`clean` it again, or name {made[1].ref}, the newest that is whole"
    assert artifact.find(root, "corpora", made[1].ref) == made[1]


def test_case_50_readers_of_a_torn_generation_that_is_the_only_one_are_told_to_make_it_again(root: Path) -> None:
    damage_manifest(artifact.build(root, BOOK, writes("一")).artifact, b"")
    with pytest.raises(BadData, match="current generation of corpora/shuihu") as caught:
        artifact.find(root, "corpora", "shuihu")
    assert caught.value.hint == "`clean` it again"


def test_a_generation_that_is_gone_is_told_of_only_where_there_is_another(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("一")).artifact
    second = artifact.build(root, changed(options={}), writes("二")).artifact
    shutil.rmtree(second.path)
    with pytest.raises(BadData, match=second.manifest.key) as caught:
        artifact.find(root, "corpora", "shuihu")
    assert first.ref in caught.value.hint
    shutil.rmtree(first.path)
    assert artifact.current(root, "corpora", "shuihu") is None
    with pytest.raises(InputMissing, match="`clean` makes one"):
        artifact.find(root, "corpora", "shuihu")


def test_who_opens_a_damaged_artifact_is_told_of_the_newest_whole_one(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("一")).artifact
    second = artifact.build(root, changed(options={}), writes("二")).artifact
    second.file("part/00000.txt").unlink()
    with pytest.raises(BadData, match="missing") as caught:
        artifact.require_whole(second)
    assert first.ref in caught.value.hint


@pytest.mark.parametrize("further", [{}, {"content": {}, "files": "elsewhere"}])
def test_case_50_an_artifact_of_a_newer_version_is_not_read_whatever_its_fields(
    root: Path, further: dict[str, Any]
) -> None:
    artifact.build(root, changed(options={}), writes("older"))
    built = artifact.build(root, BOOK, writes("一")).artifact
    manifest = json.loads(built.file("manifest.json").read_text())
    newer = {**manifest, **further, "schema": SCHEMA + 1}
    built.file("manifest.json").write_text(json.dumps(newer))
    for ask in (lambda: artifact.read(built.path), lambda: artifact.find(root, "corpora", "shuihu")):
        with pytest.raises(BadConfig, match="newer version") as caught:
            ask()
        assert caught.value.exit_code == 78


def test_case_50_a_field_that_this_version_does_not_know_is_passed_over(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    manifest = json.loads(built.file("manifest.json").read_text())
    built.file("manifest.json").write_text(json.dumps({**manifest, "colour": "black"}))
    assert artifact.find(root, "corpora", "shuihu").manifest == built.manifest


def test_case_50_a_manifest_that_says_another_sha256_is_another_input_and_found_by_a_deep_look(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    manifest = json.loads(built.file("manifest.json").read_text())
    manifest["files"][0]["sha256"] = "0" * 64
    built.file("manifest.json").write_text(json.dumps(manifest))
    changed_later = artifact.read(built.path)
    assert "content differs" in artifact.problems(changed_later, deep=True)[0]
    assert changed_later.as_input("corpus") != built.as_input("corpus")


def test_an_artifact_without_files_is_a_bug_of_ours(root: Path) -> None:
    built = artifact.build(root, BOOK, lambda draft: Content({})).artifact
    with pytest.raises(InternalError):
        artifact.require_whole(built)


def test_an_artifact_is_found_by_name_key_and_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = artifact.build(root, BOOK, writes("一")).artifact
    new = artifact.build(root, changed(options={}), writes("二")).artifact
    shelf = root / "corpora" / "shuihu"
    for reference in ("shuihu", "shuihu/", "corpora/shuihu", new.ref, str(new.path), str(shelf / "current")):
        assert artifact.find(root, "corpora", reference) == new
    for reference in (f"shuihu/{BOOK.key}", old.ref, str(old.path), f"{old.path}/"):
        assert artifact.find(root, "corpora", reference) == old
    monkeypatch.chdir(shelf)
    assert artifact.find(root, "corpora", f"./{BOOK.key}") == old


def test_an_artifact_that_is_not_there_is_answered_with_those_that_are(root: Path) -> None:
    with pytest.raises(InputMissing, match=r"none yet; `clean` makes one") as caught:
        artifact.find(root, "corpora", "honglou")
    assert caught.value.exit_code == 66
    artifact.build(root, BOOK, writes("一"))
    artifact.build(root, changed(name="水浒"), writes("一"))
    for reference in ("honglou", "corpora/honglou", "shuihu/0000000000000000", str(root / "nowhere"), ""):
        with pytest.raises(InputMissing, match="there: shuihu, 水浒; `clean` makes one"):
            artifact.find(root, "corpora", reference)


def test_a_path_to_an_artifact_of_another_kind_is_refused(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    with pytest.raises(InputMissing, match="one of the corpora, not of the tokens"):
        artifact.find(root, "tokens", str(built.path))


def test_the_latest_is_the_one_published_last(root: Path) -> None:
    with pytest.raises(InputMissing, match="no corpora"):
        artifact.latest(root, "corpora")
    for name in ("b", "c", "a"):
        built = artifact.build(root, changed(name=name), writes(name)).artifact
        assert artifact.latest(root, "corpora") == built


def test_generations_are_every_published_folder_once(root: Path) -> None:
    built = [
        artifact.build(root, identity, writes("一")).artifact
        for identity in (BOOK, changed(options={}), changed(kind="tokens"))
    ]
    with pytest.raises(TryAgain):
        artifact.build(root, changed(options={"x": 1}), fails(TryAgain("later")), keep_draft=True)
    assert sorted(artifact.generations(root)) == sorted(made.path for made in built)


@pytest.mark.parametrize("name", ["水浒", "a", "pile-v2.1_x+y", "9", "a" * 80, "é"])
def test_a_name_may_be_of_any_script(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "../x", "..", ".x", "-x", "_x", "a/b", "a\\b", "a b", "a\n", "a\0", "x" * 81, "x" * 200, "current link", "/"],
)
def test_a_name_that_could_be_another_path_is_refused(root: Path, name: str) -> None:
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
    ],
)
def test_a_name_is_made_from_a_path(path: str, name: str) -> None:
    assert name_from(path) == name


@given(st.text(st.characters(exclude_characters="+")))
def test_any_path_gives_a_name(path: str) -> None:
    assert is_name(name_from(path))


def test_a_path_that_begins_with_a_plus_gives_a_name() -> None:
    assert is_name(name_from("+more.txt"))


def test_a_lease_ends_with_its_block_and_lets_errors_through(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    with artifact.lease(built), locks.if_unleased(built.file("manifest.json")) as free:
        assert not free
    with pytest.raises(FileNotFoundError, match="of mine"), artifact.lease(built):
        raise FileNotFoundError("of mine")
    with locks.if_unleased(built.file("manifest.json")) as free:
        assert free


def test_a_lease_on_what_was_pruned_says_so(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    files.throw_away(built.path)
    with pytest.raises(InputMissing, match="pruned meanwhile") as caught, artifact.lease(built):
        pytest.fail("a lease on nothing")
    assert (caught.value.exit_code, "again" in caught.value.hint) == (66, True)


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own: 0, its exit code after an error, or minus the signal that killed it."""
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
    """`current` names one of `generations`, all that is published is whole, and the lock is free."""
    now = artifact.find(root, "corpora", "shuihu")
    assert now.manifest.key in [made.manifest.key for made in generations]
    for path in artifact.generations(root):
        found = artifact.read(path)
        assert artifact.problems(found, deep=True) == []
        assert found.digest in [made.digest for made in generations]
    assert not locks.is_locked(root / "corpora" / "shuihu" / ".lock")


def leftovers(root: Path) -> list[str]:
    return [name for name in tree(root) if any(part in name for part in (files.TEMPORARY, files.TRASH, ".draft-"))]


PLAIN = changed(libraries=())  # whose key needs no file of the system's


def test_case_49_with_no_more_files_to_open_the_old_generation_stays_and_the_same_command_ends_it(root: Path) -> None:
    old = artifact.build(root, changed(options={}, libraries=()), writes("old")).artifact
    wanted = artifact.build(root / "other", PLAIN, writes("一", "二")).artifact
    codes = []
    while not codes or codes[-1]:

        def build(more: int = len(codes)) -> None:
            with open(os.devnull) as lowest:  # in the child, where libraries have closed what they close after a fork
                limit = lowest.fileno() + more
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            artifact.build(root, PLAIN, writes("一", "二"))

        codes.append(in_child(build))
        assert codes[-1] in (0, 74), codes
        assert_survived(root, old, wanted)
        assert artifact.build(root, PLAIN, writes("一", "二")).artifact.digest == wanted.digest
        assert leftovers(root) == []
        shutil.rmtree(root / "corpora" / "shuihu" / PLAIN.key)
        files.point(root / "corpora" / "shuihu" / "current", old.manifest.key)
    assert codes.count(74) >= 2, "too few for the lock, and too few for a file beside it"


BUILD_AND_READ = """
import sys
from pathlib import Path
from pipeline.store import artifact
from pipeline import errors
from pipeline.store.manifest import Identity
root = Path(sys.argv[1])
found = artifact.find(root, "corpora", "shuihu")
with artifact.lease(found):
    print(found.ref, artifact.problems(found, deep=True))
try:
    artifact.build(root, Identity("corpora", "shuihu", {"x": 2}, ()), lambda draft: artifact.Content({}))
except OSError as error:
    print(errors.from_os_error(error))
"""
MOUNT_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'


def in_read_only(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command to which the folder `root` is read-only."""
    if os.getuid():
        os.chmod(root / "corpora" / "shuihu", 0o555)
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    mount = ["unshare", "--mount", "sh", "-c", MOUNT_READ_ONLY + ' && shift && exec "$@"', "sh", str(root)]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("case 49 was NOT tested: root writes everywhere, and here it may not mount a folder read-only")
    return subprocess.run([*mount, *command], capture_output=True, text=True, cwd=ROOT, check=False)


def test_case_49_a_read_only_store_is_read_and_a_build_in_it_says_what_is_wrong(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    if os.getuid():
        os.chmod(root / "corpora" / "shuihu" / ".lock", 0o444)
    before = tree(root)
    done = in_read_only(root, sys.executable, "-c", BUILD_AND_READ, str(root))
    read, refused = done.stdout.splitlines()
    assert read == f"{built.ref} []"
    assert ".lock: " in refused
    assert "--artifacts" in refused
    assert tree(root) == before
    assert_survived(root, built)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose flock does nothing, as some that are mounted over a network."""
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)


@pytest.mark.usefixtures("no_locks")
def test_case_75_without_locks_a_process_that_is_seen_to_live_is_believed(root: Path) -> None:
    def refused(draft: Path) -> Content:
        assert in_child(lambda: artifact.build(root, BOOK, must_not_be_called)) == 75
        return writes("一")(draft)

    assert_survived(root, artifact.build(root, BOOK, refused).artifact)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("keep_draft", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_case_75_of_two_hosts_that_build_the_same_one_publishes_and_the_other_fails(
    root: Path, monkeypatch: pytest.MonkeyPatch, keep_draft: bool, when: str
) -> None:
    """A process of another host cannot be seen to live: here the other works in this process, inside the first."""
    monkeypatch.setattr(locks, "_lives", lambda holder: False)
    old = artifact.build(root, changed(options={}), writes("old")).artifact
    made = []

    def write(draft: Path) -> Content:
        if when == "after":
            writes("一")(draft)
        made.append(artifact.build(root, BOOK, writes("一"), keep_draft=keep_draft).artifact)
        return writes("一")(draft)

    with pytest.raises(FileNotFoundError):
        artifact.build(root, BOOK, write, keep_draft=keep_draft)
    assert_survived(root, old, *made)
    assert artifact.build(root, BOOK, must_not_be_called).artifact == made[0]
    assert leftovers(root) == []


class Publishes(files.Disk):
    """A disk on which another process publishes a generation just before this one would."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def rename(self, old: Path, new: Path) -> None:
        if new.name == self.source.name:
            shutil.copytree(self.source, new)
        super().rename(old, new)


@pytest.mark.parametrize("when", ["while it was made", "just before the rename"])
def test_case_75_what_another_process_published_first_is_not_replaced(
    root: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    theirs = artifact.build(root / "other", BOOK, writes("一")).artifact
    theirs.file("run.json").write_text('{"host": "theirs", "generation": 1}')

    def write(draft: Path) -> Content:
        if when == "while it was made":
            shutil.copytree(theirs.path, draft.with_name(BOOK.key))
        else:
            monkeypatch.setattr(files, "disk", Publishes(theirs.path))
        return writes("一")(draft)

    built = artifact.build(root, BOOK, write).artifact
    assert json.loads(built.file("run.json").read_text())["host"] == "theirs"
    assert (built.digest, artifact.current(root, "corpora", "shuihu")) == (theirs.digest, built)
    assert leftovers(root) == []


def test_case_75_what_is_not_whole_as_soon_as_it_is_published_is_taken_away(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = artifact.build(root, changed(options={}), writes("old")).artifact
    broken = artifact.build(root / "other", BOOK, writes("一")).artifact
    broken.file("part/00000.txt").write_text("half")
    monkeypatch.setattr(files, "disk", Publishes(broken.path))
    with pytest.raises(TryAgain, match="another process builds it too"):
        artifact.build(root, BOOK, writes("一"))
    monkeypatch.undo()
    assert artifact.find(root, "corpora", "shuihu") == old
    assert_survived(root, old, artifact.build(root, BOOK, writes("一")).artifact)


@pytest.mark.usefixtures("no_locks")
def test_case_75_two_processes_that_start_at_once_without_locks_leave_the_generation_whole(root: Path) -> None:
    wanted = artifact.build(root / "other", BOOK, writes("一", "二")).artifact
    for _ in range(5):
        start, go = os.pipe()
        children = []
        for _ in range(2):
            child = os.fork()
            if not child:
                os.close(go)
                os.read(start, 1)  # until all have let go of the other end
                os._exit(in_child(lambda: artifact.build(root, BOOK, writes("一", "二"))))
            children.append(child)
        os.close(start)
        os.close(go)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert set(codes) <= {0, 66, 74, 75}, codes  # 66 and 74: the other has taken its draft away
        for path in artifact.generations(root):
            assert artifact.problems(artifact.read(path), deep=True) == []
        assert_survived(root, artifact.build(root, BOOK, writes("一", "二")).artifact, wanted)
        assert leftovers(root) == []
        shutil.rmtree(root / "corpora" / "shuihu")


def test_a_folder_that_cannot_be_listed_is_not_left_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def fails_below(path: Any) -> Any:
        if str(path).endswith("/part"):
            raise OSError(errno.EMFILE, "too many open files")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fails_below)
    monkeypatch.setattr(files, "remove_tree", lambda path: None)  # which would stumble over the same
    with pytest.raises(OSError, match="too many open files"):
        artifact.build(root, BOOK, writes("一"))
    assert artifact.names(root, "corpora") == []
