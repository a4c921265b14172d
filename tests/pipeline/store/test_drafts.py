"""Rebuilding a published artifact: the same bytes leave it as it is, others take its place, and no kill loses it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.errors import BadData, TryAgain, UpstreamChanged
from pipeline.store import artifact, files
from pipeline.store.artifact import SCRATCH, StageOutput
from pipeline.store.code import CodeState
from pipeline.store.generations import ROLLED_BACK, current_key, draft_path, generation_keys
from pipeline.store.manifest import Identity
from tests.pipeline.store.test_artifact import must_not_be_called
from tests.support.faults import leftovers

BOOK = Identity("corpora", "book", {"unit": "chapter"}, ())
SHELF = Path("corpora/book")


def writes(text: str) -> Callable[[Path], StageOutput]:
    def write(draft: Path) -> StageOutput:
        (draft / "text.txt").write_text(text)
        return StageOutput({"characters": len(text)})

    return write


def stops(draft: Path) -> StageOutput:
    (draft / "half.txt").write_text("half")
    raise TryAgain("stopped by a signal")


def text_of(root: Path) -> str:
    return artifact.find(root, "corpora", "book").file("text.txt").read_text()


def test_the_same_bytes_leave_the_published_artifact(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("one")).artifact
    inode = first.file("text.txt").stat().st_ino
    rebuilt = artifact.build(root, BOOK, writes("one"), rebuild=True)
    assert (rebuilt.result, rebuilt.rebuilt) == ("unchanged", True)
    assert first.file("text.txt").stat().st_ino == inode
    assert not leftovers(root)


def test_other_bytes_take_the_place_of_the_published_ones(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("one")).artifact
    rebuilt = artifact.build(root, BOOK, writes("two"), rebuild=True)
    assert (rebuilt.result, rebuilt.rebuilt) == ("built", True)
    assert rebuilt.artifact.path == first.path
    assert text_of(root) == "two"
    assert not leftovers(root)
    assert artifact.build(root, BOOK, writes("three")).result == "unchanged"


def test_a_rebuild_of_an_older_generation_makes_it_current(root: Path) -> None:
    artifact.build(root, BOOK, writes("one"))
    artifact.build(root, dataclasses.replace(BOOK, options={}), writes("other"))
    assert artifact.build(root, BOOK, writes("one"), rebuild=True).result == "unchanged"
    assert current_key(root / SHELF) == BOOK.key


def test_what_was_rolled_back_is_not_built(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("one")).artifact
    (root / SHELF / ROLLED_BACK).write_text(json.dumps([BOOK.key]))
    for rebuild in (False, True):
        with pytest.raises(UpstreamChanged, match=rf"{built.ref} was rolled back"):
            artifact.build(root, BOOK, must_not_be_called, rebuild=rebuild)


def test_a_rebuild_of_what_is_not_published_is_a_build(root: Path) -> None:
    built = artifact.build(root, BOOK, writes("one"), rebuild=True)
    assert (built.result, built.rebuilt) == ("built", False)


@pytest.mark.parametrize("keep_draft", [False, True])
def test_a_rebuild_that_fails_leaves_the_published_artifact(root: Path, keep_draft: bool) -> None:
    artifact.build(root, BOOK, writes("one"))
    with pytest.raises(TryAgain):
        artifact.build(root, BOOK, stops, rebuild=True, keep_draft=keep_draft)
    assert text_of(root) == "one"
    assert artifact.build(root, BOOK, writes("two"), keep_draft=keep_draft).result == "unchanged"
    assert not leftovers(root)


def test_a_rebuild_resumes_only_the_draft_of_a_rebuild(root: Path) -> None:
    contents: list[set[str]] = []

    def write(draft: Path) -> StageOutput:
        contents.append({path.name for path in draft.iterdir()} - {"run.json"})
        return stops(draft)

    def attempt(*, rebuild: bool) -> set[str]:
        with pytest.raises(TryAgain):
            artifact.build(root, BOOK, write, rebuild=rebuild, keep_draft=True)
        return contents[-1]

    assert attempt(rebuild=False) == set()
    assert attempt(rebuild=False) == {"half.txt"}
    assert attempt(rebuild=True) == set()
    assert attempt(rebuild=True) == {"half.txt"}


def test_a_rebuild_does_not_start_with_the_files_of_a_damaged_artifact(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("one")).artifact
    first.file("text.txt").write_text("damaged")

    def write(draft: Path) -> StageOutput:
        assert not (draft / "text.txt").exists()
        return writes("one")(draft)

    assert artifact.build(root, BOOK, write, rebuild=True, keep_draft=True).result == "built"
    assert text_of(root) == "one"


def test_an_artifact_that_is_read_is_not_replaced(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("one")).artifact
    with artifact.lease(first), pytest.raises(TryAgain, match="cannot be replaced while it is read"):
        artifact.build(root, BOOK, must_not_be_called, rebuild=True)
    assert text_of(root) == "one"


def test_an_artifact_that_is_read_since_the_rebuild_began_is_not_replaced(root: Path) -> None:
    first = artifact.build(root, BOOK, writes("one")).artifact
    with ExitStack() as reader:

        def write(draft: Path) -> StageOutput:
            reader.enter_context(artifact.lease(first))
            return writes("two")(draft)

        with pytest.raises(TryAgain, match="cannot be replaced while it is read"):
            artifact.build(root, BOOK, write, rebuild=True)
    assert text_of(root) == "one"


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_kill_between_the_steps_of_a_replacement_loses_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Fail at each rename of the replacement, and let nothing clean up, as after a kill."""
    artifact.build(root, BOOK, writes("one"))
    (killed := Killed(number)).install(monkeypatch)
    try:
        artifact.build(root, BOOK, writes("two"), rebuild=True)
    except BadData:
        assert killed.happened
    monkeypatch.undo()
    assert artifact.build(root, BOOK, writes("three")).result == "unchanged"
    assert text_of(root) in ("one", "two")
    assert generation_keys(root / SHELF) == [BOOK.key]
    assert not leftovers(root)


class Killed(files.Disk):
    """A disk on which every rename fails from the one of a number on."""

    def __init__(self, number: int) -> None:
        self.number, self.happened = number, False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "disk", self)

    def rename(self, old: Path, new: Path) -> None:
        self.number -= "replaced" in old.name + new.name or old.name.startswith(".draft-")
        if self.number <= 0:
            self.happened = True
            raise BadData("killed")
        super().rename(old, new)


def test_run_json_and_manifest_name_the_code(root: Path) -> None:
    edited = {"pipeline/clean/rules/headings.py": "ab" * 32}
    book = dataclasses.replace(BOOK, code=CodeState("0.1.0", "cd" * 32, edited))
    built = artifact.build(root, book, writes("one")).artifact
    assert json.loads(built.file("run.json").read_text())["code"] == {
        "version": "0.1.0",
        "digest": "cd" * 32,
        "edited": edited,
    }
    assert built.manifest.code == edited
    assert built.path.name != BOOK.key


def test_the_manifest_of_released_code_does_not_name_it(root: Path) -> None:
    released = dataclasses.replace(BOOK, code=CodeState("0.1.0", "cd" * 32))
    built = artifact.build(root, released, writes("one")).artifact
    assert built.path.name == BOOK.key
    assert "code" not in json.loads(built.file("manifest.json").read_text())
    assert SCRATCH not in {path.name for path in built.path.iterdir()}
    assert not draft_path(root, released).exists()
