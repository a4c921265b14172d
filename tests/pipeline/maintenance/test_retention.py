"""Retention: rollback to an older generation, and pruning of those that nothing needs.

Case numbers in docstrings are those of docs/design/reliability.md, section 2.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadConfig, BadData, InputMissing, TryAgain, UpstreamChanged
from pipeline.maintenance.retention import PruneRow, prune, rollback
from pipeline.store import artifact, files, locks
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.generations import draft_path, generation_keys, is_rolled_back
from pipeline.store.manifest import KINDS, Identity
from tests.pipeline.store.test_artifact import in_child, leftovers, must_not_be_called, tree
from tests.pipeline.store.test_leftovers import temporary

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path("tokens", "pile")
SIZE = 20  # bytes of the one file of a generation


def identity(number: int, *inputs: Artifact, kind: str = "tokens", name: str = "pile") -> Identity:
    return Identity(kind, name, {"number": number}, tuple(entry.as_input("x") for entry in inputs))


def writes(number: int) -> Callable[[Path], StageOutput]:
    def write(draft: Path) -> StageOutput:
        (draft / "data.txt").write_text(f"{number:>{SIZE}}")
        return StageOutput({"number": number})

    return write


def publish(root: Path, number: int, *inputs: Artifact, kind: str = "tokens", name: str = "pile") -> Artifact:
    return artifact.build(root, identity(number, *inputs, kind=kind, name=name), writes(number)).artifact


def publish_many(root: Path, count: int, **options: str) -> list[Artifact]:
    """Publish `count` generations; the last one is current."""
    return [publish(root, number, **options) for number in range(count)]


def current(root: Path) -> Artifact:
    return artifact.find(root, "tokens", "pile")


def generation_refs(root: Path) -> list[str]:
    """Return the kind/name/key of every generation."""
    return sorted(path.relative_to(root).as_posix() for path in artifact.generations(root))


def refs(*artifacts: Artifact) -> list[str]:
    return sorted(entry.ref for entry in artifacts)


def reason_kept(rows: list[PruneRow], generation: Artifact) -> str:
    (row,) = (row for row in rows if row.ref == generation.ref)
    assert not row.removed
    return row.why


# Rollback


def test_rollback_returns_to_previous_generation(root: Path) -> None:
    generations = publish_many(root, 3)
    rolled = rollback(root, "tokens/pile")
    assert (rolled.artifact, rolled.previous, rolled.result) == (generations[1], generations[2].ref, "rolled back")
    assert current(root) == generations[1]
    assert rollback(root, "tokens/pile").artifact == current(root) == generations[0]
    assert generation_refs(root) == refs(*generations)


def test_rollback_to_key_is_idempotent(root: Path) -> None:
    generations = publish_many(root, 3)
    assert rollback(root, "tokens/pile", to=generations[0].manifest.key).previous == generations[2].ref
    times = {path: path.lstat().st_mtime_ns for path in (root / FOLDER).iterdir() if path.name != ".lock"}
    second = rollback(root, "tokens/pile", to=generations[0].manifest.key)
    assert (second.artifact, second.previous, second.result) == (generations[0], generations[0].ref, "unchanged")
    assert {path: path.lstat().st_mtime_ns for path in (root / FOLDER).iterdir() if path.name != ".lock"} == times


@pytest.mark.parametrize("act", [lambda root: rollback(root, "tokens/pile"), lambda root: publish(root, 2)])
def test_temporaries_are_deleted_except_those_of_a_draft(root: Path, act: Callable[[Path], object]) -> None:
    publish_many(root, 2)
    torn, of_draft = temporary(root / FOLDER / "x"), temporary(root / FOLDER / ".draft-0123456789abcdef" / "x")
    act(root)
    assert (torn.exists(), of_draft.exists()) == (False, True)


def test_generation_order_does_not_depend_on_clock(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generations = []
    for number, year in enumerate((2030, 1970, 2026)):
        monkeypatch.setattr(time, "gmtime", lambda year=year: time.struct_time((year, 1, 1, 0, 0, 0, 0, 1, 0)))
        generations.append(publish(root, number))
        os.utime(generations[-1].file("manifest.json"), (year * 1e6, year * 1e6))
    assert generation_keys(root / FOLDER) == [generation.manifest.key for generation in generations]
    assert [rollback(root, "tokens/pile").artifact for _ in range(2)] == [generations[1], generations[0]]


def test_generations_without_number_are_ordered_by_time(root: Path) -> None:
    generations = publish_many(root, 3)
    for generation, day in zip(generations, (2, 1, 3), strict=True):
        generation.file("run.json").write_text(json.dumps({"finished": f"2026-01-0{day}T00:00:00Z"}))
    assert generation_keys(root / FOLDER) == [generations[index].manifest.key for index in (1, 0, 2)]
    assert generation_keys(root / FOLDER)[-1] != publish(root, 3).manifest.key == generation_keys(root / FOLDER)[-1]


def test_build_refuses_rolled_back_generation(root: Path) -> None:
    generations = publish_many(root, 2)
    rollback(root, "tokens/pile")
    assert is_rolled_back(root, identity(1))
    assert not is_rolled_back(root, identity(0))
    with pytest.raises(UpstreamChanged, match=rf"{generations[1].ref} was rolled back") as caught:
        artifact.build(root, identity(1), must_not_be_called)
    assert caught.value.exit_code == 10
    assert caught.value.hint == f"`rollback tokens/pile --to {generations[1].manifest.key}` makes it current again"
    assert current(root) == generations[0]
    assert artifact.build(root, identity(0), must_not_be_called).result == "unchanged"


def test_build_refuses_damaged_rolled_back_generation(root: Path) -> None:
    generations = publish_many(root, 2)
    rollback(root, "tokens/pile")
    generations[1].file("data.txt").unlink()
    with pytest.raises(UpstreamChanged):
        artifact.build(root, identity(1), must_not_be_called)


def test_new_data_is_published_after_rollback(root: Path) -> None:
    generations = publish_many(root, 2)
    rollback(root, "tokens/pile")
    generations.append(publish(root, 2))
    assert current(root) == generations[2]
    assert is_rolled_back(root, identity(1))
    assert rollback(root, "tokens/pile").artifact == generations[0], "the previous one was itself rolled back"


def test_rollback_to_rolled_back_key_removes_it_from_record(root: Path) -> None:
    generations = publish_many(root, 3)
    rollback(root, "tokens/pile")
    rollback(root, "tokens/pile")
    assert rollback(root, "tokens/pile", to=generations[2].manifest.key).artifact == current(root) == generations[2]
    assert [is_rolled_back(root, identity(number)) for number in range(3)] == [False, True, False]
    assert artifact.build(root, identity(2), must_not_be_called).result == "unchanged"


def publish_aside(root: Path, number: int) -> Artifact:
    """Publish a generation that does not become current."""

    def write(draft: Path) -> StageOutput:
        return dataclasses.replace(writes(number)(draft), promote=False)

    return artifact.build(root, identity(number), write).artifact


def test_rollback_returns_to_a_generation_that_was_current(root: Path) -> None:
    first, aside, _ = publish(root, 0), publish_aside(root, 1), publish(root, 2)
    assert rollback(root, "tokens/pile").artifact == first
    assert rollback(root, "tokens/pile", to=aside.manifest.key).artifact == current(root) == aside
    publish(root, 3)
    assert rollback(root, "tokens/pile").artifact == aside, "named once, it counts as any other"


def test_generations_that_never_were_current_do_not_count_as_newest(root: Path) -> None:
    generations = [publish(root, 0), publish(root, 1), publish_aside(root, 2), publish_aside(root, 3)]
    prune(root, keep=2)
    assert generation_refs(root) == refs(*generations)


def test_rollback_refuses_damaged_generation(root: Path) -> None:
    generations = publish_many(root, 3)
    files_before = tree(root)
    generations[1].file("data.txt").write_text("x" * SIZE)
    for options in ({}, {"to": generations[1].manifest.key}):
        with pytest.raises(BadData, match=r"data\.txt: content differs") as caught:
            rollback(root, "tokens/pile", **options)
        assert generations[0].manifest.key in caught.value.hint
    assert (current(root), tree(root)) == (generations[2], files_before)


def test_rollback_works_if_current_generation_is_missing(root: Path) -> None:
    generations = publish_many(root, 2)
    shutil.rmtree(generations[1].path)
    assert rollback(root, "tokens/pile").artifact == current(root) == generations[0]
    assert not is_rolled_back(root, identity(1)), "generation_refs is nothing to publish again"


def test_rollback_works_if_current_manifest_is_torn(root: Path) -> None:
    generations = publish_many(root, 2)
    generations[1].file("manifest.json").write_bytes(b"")
    assert rollback(root, "tokens/pile").artifact == current(root) == generations[0]
    assert is_rolled_back(root, identity(1))


def test_rollback_without_earlier_generation_changes_nothing(root: Path) -> None:
    generations = publish_many(root, 1)
    files_before = tree(root)
    with pytest.raises(InputMissing, match="no earlier generation") as caught:
        rollback(root, "tokens/pile")
    assert caught.value.exit_code == 66
    assert caught.value.hint == "other generations for --to: none"
    with pytest.raises(InputMissing, match=generations[0].manifest.key):
        rollback(root, "tokens/pile", to="0" * 16)
    assert tree(root) == files_before
    newer = publish(root, 1)
    assert rollback(root, "tokens/pile").artifact == generations[0]
    with pytest.raises(InputMissing, match="no earlier generation") as caught:
        rollback(root, "tokens/pile")
    assert caught.value.hint == f"other generations for --to: {newer.manifest.key}"


def test_beginning_of_a_key_names_its_generation(root: Path) -> None:
    generations = publish_many(root, 3)
    key = generations[0].manifest.key
    others = [generation.manifest.key for generation in generations[1:]]
    length = next(length for length in range(1, 17) if not any(other.startswith(key[:length]) for other in others))
    assert rollback(root, "tokens/pile", to=key[:length]).artifact == current(root) == generations[0]


def test_beginning_of_several_keys_names_none(root: Path) -> None:
    generations = [*publish_many(root, 2)]
    while len({generation.manifest.key[0] for generation in generations}) == len(generations):
        generations.append(publish(root, len(generations)))
    prefix = generations[-1].manifest.key[0]
    same = [key for key in generation_keys(root / FOLDER) if key.startswith(prefix)]
    with pytest.raises(BadConfig, match=f"2 generations begin with {prefix}") as caught:
        rollback(root, "tokens/pile", to=prefix)
    assert caught.value.hint == f"name one: {', '.join(same)}"
    with pytest.raises(InputMissing, match="no generation g"):
        rollback(root, "tokens/pile", to="g")


@pytest.mark.parametrize("reference", ["pile", "tokens", "tokens/", "tokens/book", "raw/pile", "tokens/../tokens/pile"])
def test_rollback_of_unknown_artifact_lists_existing_ones(root: Path, reference: str) -> None:
    with pytest.raises(InputMissing, match="existing: none yet"):
        rollback(root, reference)
    for kind, name in (("tokens", "pile"), ("corpora", "pile"), ("tokens", "other")):
        publish_many(root, 1, kind=kind, name=name)
    with pytest.raises(InputMissing, match=r"existing: corpora/pile, tokens/other, tokens/pile\)?$"):
        rollback(root, reference)


def test_rollback_during_build_raises_try_again(root: Path) -> None:
    generations = publish_many(root, 2)

    def write(draft: Path) -> StageOutput:
        with pytest.raises(TryAgain) as caught:
            rollback(root, "tokens/pile")
        assert caught.value.exit_code == 75
        return writes(2)(draft)

    artifact.build(root, identity(2), write)
    assert current(root).manifest.key not in (generations[0].manifest.key, generations[1].manifest.key)


@pytest.mark.parametrize("content", [b"", b"{}", b'["\xff"]'])
def test_torn_rollback_record_raises_bad_data(root: Path, content: bytes) -> None:
    generations = publish_many(root, 2)
    rollback(root, "tokens/pile")
    (root / FOLDER / "rolled-back").write_bytes(content)
    actions = (lambda: artifact.build(root, identity(1), must_not_be_called), lambda: rollback(root, "tokens/pile"))
    for action in actions:
        with pytest.raises(BadData, match="rolled-back") as caught:
            action()
        assert "delete it" in caught.value.hint
    assert current(root) == generations[0]


def test_hint_for_torn_generation_never_names_rolled_back_one(root: Path) -> None:
    generations = publish_many(root, 3)
    rollback(root, "tokens/pile")
    generations[1].file("manifest.json").write_bytes(b"")
    with pytest.raises(BadData) as caught:
        current(root)
    assert generations[0].ref in caught.value.hint


# Prune


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_prune_keeps_newest_generations(root: Path, keep: int) -> None:
    generations = publish_many(root, 4)
    rows = prune(root, keep=keep)
    kept = generations[-keep:]
    assert generation_refs(root) == refs(*kept)
    assert [(row.ref, row.removed) for row in rows] == [(entry.ref, entry not in kept) for entry in generations]
    assert current(root) == generations[-1]


@pytest.mark.parametrize("keep", [0, -1])
def test_keep_below_one_raises_bad_config(root: Path, keep: int) -> None:
    with pytest.raises(BadConfig) as caught:
        prune(root, keep=keep)
    assert caught.value.exit_code == 78


def test_prune_keeps_current_generation_of_any_age(root: Path) -> None:
    generations = publish_many(root, 4)
    rollback(root, "tokens/pile", to=generations[0].manifest.key)
    rows = prune(root, keep=1)
    assert reason_kept(rows, generations[0]) == "current"
    assert current(root) == generations[0]


def test_prune_treats_every_artifact_separately(root: Path) -> None:
    artifacts = [publish_many(root, 3, kind=kind, name=name) for kind in KINDS for name in ("a", "水浒")]
    prune(root, keep=2)
    assert generation_refs(root) == refs(*(entry for generations in artifacts for entry in generations[-2:]))


def test_damaged_and_rolled_back_generations_do_not_count_as_newest(root: Path) -> None:
    generations = publish_many(root, 6)
    rollback(root, "tokens/pile")
    generations[3].file("data.txt").unlink()
    prune(root, keep=2)
    assert generation_refs(root) == refs(*generations[2:]), "two usable ones, and everything newer"


def test_inputs_of_run_are_kept_as_long_as_the_run(root: Path) -> None:
    corpora = publish_many(root, 4, kind="corpora", name="book")
    tokenizers = publish_many(root, 4, kind="tokenizers", name="book")
    tokens = [publish(root, number, *pair) for number, pair in enumerate(zip(corpora, tokenizers, strict=True))]
    run = publish(root, 0, tokens[1], kind="runs", name="sample")
    rows = prune(root, keep=1)
    chain = (corpora[1], tokenizers[1], tokens[1], run)
    assert generation_refs(root) == refs(*chain, corpora[3], tokenizers[3], tokens[3])
    assert reason_kept(rows, tokens[1]) == f"an input of {run.ref}"
    assert reason_kept(rows, corpora[1]) == f"an input of {tokens[1].ref}"
    newer = publish(root, 1, tokens[3], kind="runs", name="sample")
    prune(root, keep=1)
    assert generation_refs(root) == refs(newer, corpora[3], tokenizers[3], tokens[3])


def training(number: int, tokens: Artifact, *parents: Artifact) -> Identity:
    """Return the identity of a run that continues `parents`."""
    inputs = (tokens.as_input("tokens"), *(parent.as_input("parent") for parent in parents))
    return Identity("runs", "book", {"number": number}, inputs)


def unfinished(root: Path, *inputs: Artifact, kind: str = "runs", parents: Sequence[Artifact] = ()) -> Path:
    """Return the draft of a build that was stopped."""
    stopped = identity(0, *inputs, kind=kind, name="stopped")
    stopped = dataclasses.replace(stopped, inputs=(*stopped.inputs, *(parent.as_input("parent") for parent in parents)))

    def stop(draft: Path) -> StageOutput:
        (draft / "checkpoint").touch()
        raise TryAgain("a signal came")

    with pytest.raises(TryAgain):
        artifact.build(root, stopped, stop, keep_draft=True)
    return draft_path(root, stopped)


@pytest.mark.parametrize("kind", ["runs", "tokens"])
def test_inputs_of_unfinished_work_are_kept(root: Path, kind: str) -> None:
    corpora = publish_many(root, 2, kind="corpora", name="book")
    generations = [publish(root, number, corpora[number % 2]) for number in range(4)]
    draft = unfinished(root, generations[0], kind=kind)
    rows = prune(root, keep=1)
    assert generation_refs(root) == refs(generations[0], generations[3], *corpora)
    assert reason_kept(rows, generations[0]) == f"an input of {draft.relative_to(root)}"
    shutil.rmtree(draft)
    prune(root, keep=1)
    assert generation_refs(root) == refs(generations[3], corpora[1])


def test_parent_of_unfinished_training_is_kept_and_that_of_finished_one_is_not(root: Path) -> None:
    tokens = publish(root, 0)
    parent, unused, finished = (
        artifact.build(root, training(number, tokens), writes(number)).artifact for number in range(3)
    )
    draft = unfinished(root, tokens, parents=[parent])
    rows = prune(root, keep=1)
    assert generation_refs(root) == refs(tokens, parent, finished)
    assert reason_kept(rows, parent) == f"an input of {draft.relative_to(root)}"
    assert not unused.path.exists()
    shutil.rmtree(draft)
    continued = artifact.build(root, training(3, tokens, finished), writes(3)).artifact
    prune(root, keep=1)
    assert generation_refs(root) == refs(tokens, continued), "a finished run has its own weights"


@pytest.mark.parametrize("annealed", [False, True])
@pytest.mark.parametrize("dry_run", [True, False])
def test_draft_of_a_run_is_deleted_once_a_later_run_is_current(root: Path, annealed: bool, dry_run: bool) -> None:
    """A run that was ended early with falling learning rates leaves its draft, so that it can be resumed."""
    tokens = publish_many(root, 2)
    stopped = identity(0, tokens[0], kind="runs", name="stopped")
    draft = unfinished(root, tokens[0])
    os.utime(draft / "checkpoint", (1e9, 1e9))
    assert [row.ref for row in prune(root, keep=1, dry_run=True) if row.removed] == [], "nothing is current"
    options = {"number": 0, "ended": 7} if annealed else {"number": 1}
    artifact.build(root, dataclasses.replace(stopped, options=options), writes(1))
    for path in (draft, *draft.iterdir()):
        os.utime(path, (1e9, 1e9))
    removed = {row.ref: row.why for row in prune(root, keep=1, dry_run=dry_run) if row.removed}
    assert removed == ({} if annealed else {draft.relative_to(root).as_posix(): "unfinished, and older than current"})
    assert draft.exists() == (annealed or dry_run)


def test_draft_with_a_later_checkpoint_is_kept(root: Path) -> None:
    draft = unfinished(root)
    artifact.build(root, identity(1, kind="runs", name="stopped"), writes(1))
    later = time.time() + 10
    os.utime(draft / "checkpoint", (later, later))
    prune(root, keep=1)
    assert draft.exists()


def test_input_of_running_stage_is_kept(root: Path) -> None:
    generations = publish_many(root, 2)

    def train(draft: Path) -> StageOutput:
        assert reason_kept(prune(root, keep=1), generations[0]).startswith("an input of runs/")
        return writes(0)(draft)

    artifact.build(root, identity(0, generations[0], kind="runs"), train, keep_draft=True)
    assert generation_refs(root) == refs(*generations, artifact.find(root, "runs", "pile"))


def remove_draft_inputs(root: Path) -> Path:
    (unfinished(root) / "run.json").unlink()
    return root / "runs" / "stopped"


def tear_manifest(root: Path) -> Path:
    run = publish(root, 0, kind="runs", name="torn")
    run.file("manifest.json").write_bytes(b"")
    return run.path


def remove_manifest(root: Path) -> Path:
    run = publish(root, 0, kind="runs", name="torn")
    run.file("manifest.json").unlink()
    return run.path


@pytest.mark.parametrize("make", [remove_draft_inputs, tear_manifest, remove_manifest])
def test_everything_is_kept_if_inputs_of_a_run_are_unknown(root: Path, make: Callable[[Path], Path]) -> None:
    generations = publish_many(root, 3)
    unreadable = make(root)
    rows = prune(root, keep=1)
    assert unreadable.relative_to(root).as_posix() in reason_kept(rows, generations[0])
    shutil.rmtree(unreadable)
    prune(root, keep=1)
    assert generation_refs(root) == refs(generations[2])


HOLD_LEASE = """
import sys
from pathlib import Path
from pipeline.store import artifact
with artifact.lease(artifact.read(Path(sys.argv[1]))):
    print("reading", flush=True)
    sys.stdin.read()
"""


@contextmanager
def reader(generation: Artifact) -> Iterator[None]:
    """Read an artifact in another process while the block runs."""
    command = [sys.executable, "-c", HOLD_LEASE, str(generation.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "reading\n"
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("dry_run", [False, True])
def test_generation_read_by_another_process_is_kept(root: Path, dry_run: bool) -> None:
    generations = publish_many(root, 3)
    with reader(generations[0]):
        rows = prune(root, keep=1, dry_run=dry_run)
        assert reason_kept(rows, generations[0]) == "being read"
        assert [row.ref for row in rows if row.removed] == [generations[1].ref]
        assert generations[0].ref in generation_refs(root)
    assert {row.ref for row in prune(root, keep=1) if row.removed} == {*refs(*generations[: 2 if dry_run else 1])}
    with pytest.raises(InputMissing, match="pruned meanwhile"), artifact.lease(generations[0]):
        pytest.fail("a deleted generation was read")


def test_generation_being_deleted_cannot_be_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generations = publish_many(root, 2)
    codes = []

    def read() -> None:
        signal.alarm(1)  # a reader that waits for the deletion is correct
        with artifact.lease(generations[0]):
            pass

    def throw_away(path: Path) -> None:
        codes.append(in_child(read))

    monkeypatch.setattr(files, "discard_folder", throw_away)
    prune(root, keep=1)
    assert codes == [-signal.SIGALRM]


def test_artifact_in_use_is_skipped(root: Path) -> None:
    busy, free = publish_many(root, 3), publish_many(root, 3, name="book")

    def write(draft: Path) -> StageOutput:
        for dry_run in (True, False):
            rows = prune(root, keep=1, dry_run=dry_run)
            assert "in use by process" in reason_kept(rows, busy[0])
        return writes(3)(draft)

    built = artifact.build(root, identity(3), write).artifact
    assert generation_refs(root) == refs(*busy, built, free[2])


def test_dry_run_predicts_prune_and_writes_nothing(root: Path) -> None:
    generations = [*publish_many(root, 4), *publish_many(root, 3, kind="corpora", name="book")]
    for number, tokens in enumerate(generations[:2]):
        publish(root, number, tokens, kind="runs", name="sample")
    (root / FOLDER / f"{files.TRASH}{'0' * 16}.0badcafe").mkdir()
    times = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    predicted = prune(root, keep=1, dry_run=True)
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == times
    assert predicted == prune(root, keep=1)
    assert not generations[0].path.exists(), "the run that needed it was deleted first"


def test_freed_bytes_count_with_last_hard_link(root: Path) -> None:
    first = publish(root, 0)

    def link(draft: Path) -> StageOutput:
        files.link_or_copy(first.file("data.txt"), draft / "data.txt")
        (draft / "more.txt").write_text("x" * 100)
        return StageOutput({})

    linked = artifact.build(root, identity(1), link).artifact
    publish(root, 2)

    def size(generation: Artifact) -> int:
        return sum(path.stat().st_size for path in generation.path.iterdir())

    freed = [size(first) - SIZE, size(linked), 0]
    assert [row.bytes for row in prune(root, keep=1, dry_run=True)] == freed
    assert [row.bytes for row in prune(root, keep=2)] == [freed[0], 0, 0]
    assert [row.bytes for row in prune(root, keep=1)] == [freed[1], 0]


def test_links_and_folders_free_no_bytes(root: Path, tmp_path: Path) -> None:
    old, *_ = publish_many(root, 3)
    before = [row.bytes for row in prune(root, keep=1, dry_run=True) if row.ref == old.ref]
    (tmp_path / "elsewhere").write_bytes(bytes(1000))
    (old.path / "file").symlink_to(tmp_path / "elsewhere")
    (old.path / "broken").symlink_to(tmp_path / "missing")
    (old.path / "folder").mkdir()
    assert [row.bytes for row in prune(root, keep=1) if row.ref == old.ref] == before
    assert (tmp_path / "elsewhere").stat().st_size == 1000


def test_leftovers_of_killed_commands_are_deleted_and_counted(root: Path) -> None:
    generations = publish_many(root, 1)
    folder = root / FOLDER
    trash, torn, link = (folder / name for name in (f"{files.TRASH}a", f"{files.TEMPORARY}b", f"{files.TEMPORARY}c"))
    trash.mkdir()
    (trash / "big").write_bytes(b"x" * 1000)
    torn.write_bytes(b"half")
    link.symlink_to(generations[0].manifest.key)
    draft = unfinished(root)
    rows = {row.ref: (row.removed, row.bytes) for row in prune(root)}
    assert [rows[path.relative_to(root).as_posix()] for path in (trash, torn, link)] == [
        (True, 1000),
        (True, 4),
        (True, 0),
    ]
    assert sorted(os.listdir(folder)) == sorted([".lock", generations[0].manifest.key, "current"])
    assert (draft / "checkpoint").exists()


def test_unfinished_copy_from_a_bucket_is_deleted_unless_it_is_continued(root: Path) -> None:
    folder = publish_many(root, 1)[0].path.parent
    copy = folder / ".pull-0123456789abcdef"
    copy.mkdir()
    (copy / "train.bin").write_bytes(b"half")
    with locks.lock(folder / ".pull-lock", action="pull"):
        prune(root)
        assert copy.exists()
    assert PruneRow(f"{FOLDER}/{copy.name}", True, 4, "an unfinished copy from a bucket") in prune(root, dry_run=True)
    assert copy.exists()
    prune(root)
    assert not copy.exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_leftovers_outside_of_artifacts_are_deleted(root: Path, dry_run: bool) -> None:
    paths = [temporary(root / folder / "x") for folder in (".state", "exports", "objects/a/b", "raw/pile/train")]
    (root / "exports" / "whole").mkdir()
    in_use = temporary(root / "exports" / "y", writer=os.getpid())
    rows = prune(root, dry_run=dry_run)
    expected = [PruneRow(path.relative_to(root).as_posix(), True, 4, "left by a killed command") for path in paths]
    assert rows == expected
    assert [path.exists() for path in paths] == [dry_run] * 4
    assert in_use.exists()
    assert (root / "exports" / "whole").exists()


def test_rollback_record_forgets_deleted_generations(root: Path) -> None:
    publish_many(root, 2)
    rollback(root, "tokens/pile")
    for number in (2, 3):
        publish(root, number)
        prune(root, keep=2)
        assert is_rolled_back(root, identity(1)) == (number == 2)
    assert artifact.build(root, identity(1), writes(1)).result == "built"


def test_generation_that_is_a_symlink_is_kept(root: Path, tmp_path: Path) -> None:
    generations = publish_many(root, 3)
    generations[0].path.rename(tmp_path / "elsewhere")
    generations[0].path.symlink_to(tmp_path / "elsewhere")
    assert reason_kept(prune(root, keep=1), generations[0]) == "a link to a folder elsewhere"
    assert artifact.find_problems(generations[0], deep=True) == []


def test_old_generation_without_manifest_is_deleted(root: Path) -> None:
    generations = publish_many(root, 3)
    generations[0].file("manifest.json").unlink()
    prune(root, keep=1)
    assert sorted(os.listdir(root / FOLDER)) == sorted([".lock", generations[2].manifest.key, "current"])


def test_other_files_and_folders_are_not_touched(root: Path) -> None:
    publish_many(root, 1)
    for name in ("notes", "0123456789abcdeX", ".draft-0123456789abcdef"):
        (root / FOLDER / name).mkdir()
    (root / FOLDER / "0123456789abcdef").write_text("a file")
    temporary(root / FOLDER / ".draft-0123456789abcdef" / "x")  # it belongs to the draft
    files_before = tree(root)
    prune(root, keep=1)
    assert tree(root) == files_before


def test_quarantined_download_is_listed_but_not_deleted(root: Path) -> None:
    folder = root / "raw" / "pile" / "train" / "quarantine"
    folder.mkdir(parents=True)
    (folder / "00.jsonl.zst").write_bytes(b"wrong")
    assert prune(root) == []
    lock = root / "raw" / "pile" / "sources.lock.json"
    lock.write_text("{}")
    later = time.time() + 10
    os.utime(lock, (later, later))
    (row,) = prune(root)
    assert (row.ref, row.removed, row.bytes) == ("raw/pile/train/quarantine", False, 0)
    assert "5 bytes" in row.why
    assert (folder / "00.jsonl.zst").read_bytes() == b"wrong"


def test_prune_of_empty_store_does_nothing(root: Path) -> None:
    assert prune(root) == []
    assert not root.exists()


# Interrupted at every step


class Dies(files.Disk):
    """A disk that kills the process just before its N-th operation, including the deletion of folders."""

    def __init__(self, at: int) -> None:
        self._remaining = at

    def step(self) -> None:
        self._remaining -= 1
        if not self._remaining:
            os.kill(os.getpid(), signal.SIGKILL)


class Fails(Dies):
    """A disk on which only the N-th operation fails."""

    def step(self) -> None:
        self._remaining -= 1
        if not self._remaining:
            raise OSError(5, "input/output error")


def counted(owner: type | Any, name: str) -> Callable[..., Any]:
    """Return the function `name` of `owner`, counting one disk operation before each call."""
    real = getattr(owner, name)

    def operation(*arguments: Any, **options: Any) -> Any:
        files.disk.step()  # type: ignore[attr-defined]
        return real(*arguments, **options)

    return operation


for method in ("create", "write", "truncate", "sync", "rename", "link", "symlink", "unlink"):
    setattr(Dies, method, counted(files.Disk, method))


def at_every_step(kind: type[Dies], prepare: Callable[[], None], work: Callable[[], object]) -> Iterator[int]:
    """Run `work` in child processes that are killed, or whose disk fails, at operation 1, 2, 3 and so on.

    Yields the number of the operation after each run, until a run ends without being interrupted.
    """

    def interrupted(at: int) -> None:
        files.disk = kind(at)
        os.unlink, os.rmdir = counted(os, "unlink"), counted(os, "rmdir")
        work()

    for at in range(1, 1000):
        prepare()
        code = in_child(partial(interrupted, at))
        yield at
        if code == 0:
            return
        assert code in (-signal.SIGKILL, 74), f"step {at} ended in {code}"
    pytest.fail("every run was interrupted")


def assert_valid(root: Path) -> None:
    """Assert that `current` is valid, every generation is complete, and the lock is free."""
    assert artifact.find_problems(current(root), deep=True) == []
    for path in artifact.generations(root):
        assert artifact.find_problems(artifact.read(path), deep=True) == []
    assert not locks.is_locked(root / FOLDER / ".lock")


@pytest.fixture
def restore(root: Path, tmp_path: Path) -> Callable[[], None]:
    """Return a function that saves the store on its first call and restores it on every call."""
    saved = tmp_path / "restore"

    def restore() -> None:
        if not saved.exists():
            shutil.copytree(root, saved, symlinks=True)
        shutil.rmtree(root)
        shutil.copytree(saved, root, symlinks=True)

    return restore


@pytest.mark.parametrize("disk", [Dies, Fails])
@pytest.mark.parametrize("keep_draft", [False, True])
def test_interrupted_build_leaves_old_or_new_generation(
    root: Path, tmp_path: Path, restore: Callable[[], None], disk: type[Dies], keep_draft: bool
) -> None:
    old, new = publish(root, 0), publish(tmp_path / "other", 1)

    def build() -> Artifact:
        return artifact.build(root, identity(1), writes(1), keep_draft=keep_draft).artifact

    for _ in at_every_step(disk, restore, build):
        assert_valid(root)
        assert current(root).digest in (old.digest, new.digest)
        assert set(generation_refs(root)) <= {old.ref, new.ref}
        assert build().digest == current(root).digest == new.digest
        assert (generation_refs(root), leftovers(root)) == (refs(old, new), [])


@pytest.mark.parametrize("disk", [Dies, Fails])
@pytest.mark.parametrize("keep_draft", [False, True])
def test_interrupted_rebuild_of_damaged_generation_is_never_partial(
    root: Path, tmp_path: Path, restore: Callable[[], None], disk: type[Dies], keep_draft: bool
) -> None:
    old, new = publish(root, 0), publish(tmp_path / "other", 1)
    publish(root, 1).file("data.txt").unlink()

    def build() -> Artifact:
        return artifact.build(root, identity(1), writes(1), keep_draft=keep_draft).artifact

    def opened() -> str:
        """Return the digest that a reader gets, or the hint with the generation to read instead."""
        try:
            return artifact.require_intact(current(root)).digest
        except BadData as error:
            return error.hint

    for _ in at_every_step(disk, restore, build):
        assert opened() == new.digest or old.ref in opened()
        assert build().digest == current(root).digest == new.digest
        assert (generation_refs(root), leftovers(root)) == (refs(old, new), [])
        assert_valid(root)


@pytest.mark.parametrize("disk", [Dies, Fails])
def test_interrupted_rollback_can_be_repeated(root: Path, restore: Callable[[], None], disk: type[Dies]) -> None:
    generations = publish_many(root, 3)
    key = generations[1].manifest.key
    for _ in at_every_step(disk, restore, lambda: rollback(root, "tokens/pile", to=key)):
        assert_valid(root)
        assert current(root) in generations[1:]
        assert current(root) == generations[2] or is_rolled_back(root, identity(2)), "a refresh would undo the rollback"
        assert rollback(root, "tokens/pile", to=key).artifact == current(root) == generations[1]
        assert is_rolled_back(root, identity(2))
        assert (generation_refs(root), leftovers(root)) == (refs(*generations), [])


@pytest.mark.parametrize("disk", [Dies, Fails])
def test_interrupted_prune_can_be_repeated(root: Path, restore: Callable[[], None], disk: type[Dies]) -> None:
    generations = publish_many(root, 4)
    rollback(root, "tokens/pile", to=generations[2].manifest.key)
    rollback(root, "tokens/pile", to=generations[0].manifest.key)
    rollback(root, "tokens/pile", to=generations[3].manifest.key)
    assert is_rolled_back(root, identity(2))
    run = publish(root, 0, generations[1], kind="runs")
    kept = refs(generations[1], generations[3], run)
    for _ in at_every_step(disk, restore, lambda: prune(root, keep=1)):
        assert_valid(root)
        assert current(root) == generations[3]
        assert set(kept) <= set(generation_refs(root))
        prune(root, keep=1)
        assert (generation_refs(root), leftovers(root)) == (kept, [])
        assert not is_rolled_back(root, identity(2))
        assert_valid(root)
