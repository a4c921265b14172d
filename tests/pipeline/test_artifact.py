"""An artifact: a key that says what it was made from, published whole or not at all, found again and checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import artifact, files
from pipeline.artifact import Content, FileRecord, Identity, Input
from pipeline.errors import BadConfig, BadData, InputMissing, InternalError, TooManyRejects, TryAgain

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
    assert (manifest.schema, manifest.key, manifest.options) == (artifact.SCHEMA, BOOK.key, BOOK.options)
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
    draft = artifact.draft_path(root, BOOK)
    assert os.listdir(draft) == ["half.txt"]
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
    assert [path.name for path in artifact.draft_path(root, BOOK).iterdir()] == ["half.txt"]

    def fail_at_once(draft: Path) -> Content:
        raise error

    other = Identity("corpora", "other", {}, ())
    with pytest.raises(type(error)):
        artifact.build(root, other, fail_at_once, keep_draft=True)
    assert not artifact.draft_path(root, other).exists()


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
    draft = artifact.draft_path(root, BOOK)
    with pytest.raises(TooManyRejects) as caught:
        artifact.build(root, BOOK, fails(TooManyRejects("2 of 3 are bad", hint="look")))
    assert str(draft) in caught.value.what
    assert os.listdir(draft) == ["half.txt"]
    assert artifact.names(root, "corpora") == []
    built = artifact.build(root, BOOK, writes("一"))
    assert [record.name for record in built.artifact.manifest.files] == ["part/00000.txt"]


def test_a_temporary_that_a_kill_left_in_the_draft_is_not_published(root: Path) -> None:
    draft = artifact.draft_path(root, BOOK)
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
        return dataclasses.replace(writes("一", "二")(draft), hashed=hashed)

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


def test_two_builds_of_one_name_do_not_run_at_once(root: Path) -> None:
    def build_again(draft: Path) -> Content:
        with pytest.raises(TryAgain) as caught:
            artifact.build(root, BOOK, must_not_be_called)
        assert caught.value.exit_code == 75
        assert "clean shuihu" in caught.value.what
        return writes("一")(draft)

    assert artifact.build(root, BOOK, build_again).result == "built"


def test_a_truncated_file_is_found_and_made_anew(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一", "二")).artifact
    os.truncate(built.file("part/00001.txt"), 1)
    assert "1 bytes where the manifest says 3" in artifact.problems(built)[0]
    with pytest.raises(BadData) as caught:
        artifact.require_whole(built)
    assert caught.value.exit_code == 65
    again = artifact.build(root, BOOK, writes("一", "二"))
    assert again.result == "built"
    assert artifact.problems(again.artifact, deep=True) == []


def test_a_missing_file_is_found_and_made_anew(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一", "二")).artifact
    built.file("part/00001.txt").unlink()
    assert artifact.problems(built) == [f"{built.file('part/00001.txt')}: missing"]
    assert artifact.build(root, BOOK, writes("一", "二")).result == "built"


def test_a_flipped_byte_is_found_only_by_a_deep_look(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("ink", "stone")).artifact
    path = built.file("part/00000.txt")
    path.write_bytes(b"inK")
    assert artifact.problems(built) == []
    assert artifact.problems(built, deep=True) == [f"{path}: content differs from the manifest's sha256"]


def test_an_artifact_without_its_manifest_is_made_anew(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    built.file("manifest.json").unlink()
    assert artifact.build(root, BOOK, writes("一")).result == "built"


@pytest.mark.parametrize("torn", [b"", b'{"schema": 1, "ki', b"\0\0\0"])
def test_an_artifact_with_a_torn_manifest_is_made_anew(root: Path, torn: bytes) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    built.file("manifest.json").write_bytes(torn)
    assert artifact.build(root, BOOK, writes("一")).result == "built"


@pytest.mark.parametrize("torn", [b"", b'{"schema": 1, "ki', b"\0\0\0", b"[]", b"{}"])
def test_a_torn_manifest_is_bad_data(root: Path, torn: bytes) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    built.file("manifest.json").write_bytes(torn)
    with pytest.raises(BadData, match="not a manifest"):
        artifact.read(built.path)


def test_an_artifact_of_a_newer_version_is_not_read(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    manifest = json.loads(built.file("manifest.json").read_text())
    built.file("manifest.json").write_text(json.dumps({**manifest, "schema": artifact.SCHEMA + 1}))
    with pytest.raises(BadConfig, match="newer version") as caught:
        artifact.read(built.path)
    assert caught.value.exit_code == 78


def test_a_newer_version_is_told_from_a_broken_manifest_whatever_its_fields(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    built.file("manifest.json").write_text(json.dumps({"schema": artifact.SCHEMA + 1, "content": {}}))
    with pytest.raises(BadConfig, match="newer version"):
        artifact.read(built.path)


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
    assert artifact.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "../x", "..", ".x", "-x", "_x", "a/b", "a\\b", "a b", "a\n", "a\0", "x" * 81, "x" * 200, "current link", "/"],
)
def test_a_name_that_could_be_another_path_is_refused(root: Path, name: str) -> None:
    with pytest.raises(BadConfig) as caught:
        artifact.check_name(name)
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
    assert artifact.name_from(path) == name


@given(st.text(st.characters(exclude_characters="+")))
def test_any_path_gives_a_name(path: str) -> None:
    assert artifact.is_name(artifact.name_from(path))


def test_a_path_that_begins_with_a_plus_gives_a_name() -> None:
    assert artifact.is_name(artifact.name_from("+more.txt"))
