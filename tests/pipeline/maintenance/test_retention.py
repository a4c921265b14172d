"""Generations after they are published: back to an older one, and away with those that nobody needs.

Numbers in the names of tests are those of the cases in reference/reliability.md, section 2.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadConfig, BadData, InputMissing, TryAgain, UpstreamChanged
from pipeline.maintenance.retention import Pruned, prune, rollback
from pipeline.store import artifact, files, locks
from pipeline.store.artifact import Artifact, Content
from pipeline.store.generations import draft_path, generation_keys, is_rolled_back
from pipeline.store.manifest import KINDS, Identity
from tests.pipeline.store.test_artifact import in_child, leftovers, must_not_be_called, tree

ROOT = Path(__file__).resolve().parents[3]
SHELF = Path("tokens", "pile")
SIZE = 20  # bytes of the one file of a generation


def identity(number: int, *made_from: Artifact, kind: str = "tokens", name: str = "pile") -> Identity:
    return Identity(kind, name, {"number": number}, tuple(each.as_input("x") for each in made_from))


def writes(number: int) -> Callable[[Path], Content]:
    def write(draft: Path) -> Content:
        (draft / "data.txt").write_text(f"{number:>{SIZE}}")
        return Content({"number": number})

    return write


def publish(root: Path, number: int, *made_from: Artifact, kind: str = "tokens", name: str = "pile") -> Artifact:
    return artifact.build(root, identity(number, *made_from, kind=kind, name=name), writes(number)).artifact


def published(root: Path, count: int, **where: str) -> list[Artifact]:
    """`count` generations, the last of them current."""
    return [publish(root, number, **where) for number in range(count)]


def now(root: Path) -> Artifact:
    return artifact.find(root, "tokens", "pile")


def there(root: Path) -> list[str]:
    """The kind/name/key of every generation."""
    return sorted(path.relative_to(root).as_posix() for path in artifact.generations(root))


def refs(*made: Artifact) -> list[str]:
    return sorted(each.ref for each in made)


def why_kept(rows: list[Pruned], made: Artifact) -> str:
    (row,) = (row for row in rows if row.ref == made.ref)
    assert not row.removed
    return row.why


# Rollback


def test_a_rollback_takes_the_generation_before(root: Path) -> None:
    made = published(root, 3)
    done = rollback(root, "tokens/pile")
    assert (done.artifact, done.left, done.result) == (made[1], made[2].ref, "rolled back")
    assert now(root) == made[1]
    assert rollback(root, "tokens/pile").artifact == now(root) == made[0]
    assert there(root) == refs(*made)


def test_a_rollback_to_a_key_takes_that_one_and_again_changes_nothing(root: Path) -> None:
    made = published(root, 3)
    assert rollback(root, "tokens/pile", to=made[0].manifest.key).left == made[2].ref
    before = {path: path.lstat().st_mtime_ns for path in (root / SHELF).iterdir() if path.name != ".lock"}
    again = rollback(root, "tokens/pile", to=made[0].manifest.key)
    assert (again.artifact, again.left, again.result) == (made[0], made[0].ref, "unchanged")
    assert {path: path.lstat().st_mtime_ns for path in (root / SHELF).iterdir() if path.name != ".lock"} == before


def test_the_generation_before_is_the_one_published_before_whatever_the_clock_said(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for number, year in enumerate((2030, 1970, 2026)):
        monkeypatch.setattr(time, "gmtime", lambda year=year: time.struct_time((year, 1, 1, 0, 0, 0, 0, 1, 0)))
        made.append(publish(root, number))
        os.utime(made[-1].file("manifest.json"), (year * 1e6, year * 1e6))
    assert generation_keys(root / SHELF) == [each.manifest.key for each in made]
    assert [rollback(root, "tokens/pile").artifact for _ in range(2)] == [made[1], made[0]]


def test_generations_of_an_earlier_version_are_in_the_order_of_their_times(root: Path) -> None:
    made = published(root, 3)
    for each, day in zip(made, (2, 1, 3), strict=True):
        each.file("run.json").write_text(json.dumps({"finished": f"2026-01-0{day}T00:00:00Z"}))
    assert generation_keys(root / SHELF) == [made[place].manifest.key for place in (1, 0, 2)]
    assert generation_keys(root / SHELF)[-1] != publish(root, 3).manifest.key == generation_keys(root / SHELF)[-1]


def test_what_was_rolled_back_is_not_taken_up_again_by_itself(root: Path) -> None:
    made = published(root, 2)
    rollback(root, "tokens/pile")
    assert is_rolled_back(root, identity(1))
    assert not is_rolled_back(root, identity(0))
    with pytest.raises(UpstreamChanged, match=rf"{made[1].ref} was rolled back") as caught:
        artifact.build(root, identity(1), must_not_be_called)
    assert caught.value.exit_code == 10
    assert caught.value.hint == f"`rollback tokens/pile --to {made[1].manifest.key}` makes it current again"
    assert now(root) == made[0]
    assert artifact.build(root, identity(0), must_not_be_called).result == "unchanged"


def test_what_was_rolled_back_is_not_made_again_because_it_is_damaged(root: Path) -> None:
    made = published(root, 2)
    rollback(root, "tokens/pile")
    made[1].file("data.txt").unlink()
    with pytest.raises(UpstreamChanged):
        artifact.build(root, identity(1), must_not_be_called)


def test_new_data_is_published_after_a_rollback_as_ever(root: Path) -> None:
    made = published(root, 2)
    rollback(root, "tokens/pile")
    made.append(publish(root, 2))
    assert now(root) == made[2]
    assert is_rolled_back(root, identity(1))
    assert rollback(root, "tokens/pile").artifact == made[0], "the one before it was itself rolled back"


def test_what_was_rolled_back_is_taken_again_by_its_key(root: Path) -> None:
    made = published(root, 3)
    rollback(root, "tokens/pile")
    rollback(root, "tokens/pile")
    assert rollback(root, "tokens/pile", to=made[2].manifest.key).artifact == now(root) == made[2]
    assert [is_rolled_back(root, identity(number)) for number in range(3)] == [False, True, False]
    assert artifact.build(root, identity(2), must_not_be_called).result == "unchanged"


def test_a_damaged_generation_is_not_gone_back_to(root: Path) -> None:
    made = published(root, 3)
    before = tree(root)
    made[1].file("data.txt").write_text("x" * SIZE)
    for asked in ({}, {"to": made[1].manifest.key}):
        with pytest.raises(BadData, match=r"data\.txt: content differs") as caught:
            rollback(root, "tokens/pile", **asked)
        assert made[0].manifest.key in caught.value.hint
    assert (now(root), tree(root)) == (made[2], before)


def test_a_current_generation_that_is_gone_is_gone_back_from(root: Path) -> None:
    made = published(root, 2)
    shutil.rmtree(made[1].path)
    assert rollback(root, "tokens/pile").artifact == now(root) == made[0]
    assert not is_rolled_back(root, identity(1)), "there is nothing to take up again"


def test_a_current_generation_with_a_torn_manifest_is_gone_back_from(root: Path) -> None:
    made = published(root, 2)
    made[1].file("manifest.json").write_bytes(b"")
    assert rollback(root, "tokens/pile").artifact == now(root) == made[0]
    assert is_rolled_back(root, identity(1))


def test_a_rollback_where_there_is_nothing_to_go_back_to_changes_nothing(root: Path) -> None:
    made = published(root, 1)
    before = tree(root)
    with pytest.raises(InputMissing, match="no generation to go back to") as caught:
        rollback(root, "tokens/pile")
    assert caught.value.exit_code == 66
    with pytest.raises(InputMissing, match=made[0].manifest.key):
        rollback(root, "tokens/pile", to="0" * 16)
    assert tree(root) == before


@pytest.mark.parametrize("reference", ["pile", "tokens", "tokens/", "tokens/book", "raw/pile", "tokens/../tokens/pile"])
def test_what_cannot_be_rolled_back_is_answered_with_what_can(root: Path, reference: str) -> None:
    published(root, 1)
    with pytest.raises(InputMissing, match="there: tokens/pile"):
        rollback(root, reference)


def test_a_rollback_waits_for_no_build(root: Path) -> None:
    made = published(root, 2)

    def write(draft: Path) -> Content:
        with pytest.raises(TryAgain) as caught:
            rollback(root, "tokens/pile")
        assert caught.value.exit_code == 75
        return writes(2)(draft)

    artifact.build(root, identity(2), write)
    assert now(root).manifest.key not in (made[0].manifest.key, made[1].manifest.key)


@pytest.mark.parametrize("content", [b"", b"{}", b'["\xff"]'])
def test_a_torn_list_of_what_was_rolled_back_is_bad_data_and_never_an_empty_one(root: Path, content: bytes) -> None:
    made = published(root, 2)
    rollback(root, "tokens/pile")
    (root / SHELF / "rolled-back").write_bytes(content)
    for ask in (lambda: artifact.build(root, identity(1), must_not_be_called), lambda: rollback(root, "tokens/pile")):
        with pytest.raises(BadData, match="rolled-back") as caught:
            ask()
        assert "delete it" in caught.value.hint
    assert now(root) == made[0]


def test_readers_of_a_torn_generation_are_never_sent_to_one_that_was_rolled_back(root: Path) -> None:
    made = published(root, 3)
    rollback(root, "tokens/pile")
    made[1].file("manifest.json").write_bytes(b"")
    with pytest.raises(BadData) as caught:
        now(root)
    assert made[0].ref in caught.value.hint


# Prune


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_stay_and_older_ones_go(root: Path, keep: int) -> None:
    made = published(root, 4)
    rows = prune(root, keep=keep)
    stay = made[-keep:]
    assert there(root) == refs(*stay)
    assert [(row.ref, row.removed) for row in rows] == [(each.ref, each not in stay) for each in made]
    assert now(root) == made[-1]


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_is_kept(root: Path, keep: int) -> None:
    with pytest.raises(BadConfig) as caught:
        prune(root, keep=keep)
    assert caught.value.exit_code == 78


def test_the_current_one_stays_however_old(root: Path) -> None:
    made = published(root, 4)
    rollback(root, "tokens/pile", to=made[0].manifest.key)
    rows = prune(root, keep=1)
    assert why_kept(rows, made[0]) == "current"
    assert now(root) == made[0]


def test_every_artifact_of_every_kind_is_pruned_by_itself(root: Path) -> None:
    made = [published(root, 3, kind=kind, name=name) for kind in KINDS for name in ("a", "水浒")]
    prune(root, keep=2)
    assert there(root) == refs(*(each for shelf in made for each in shelf[-2:]))


def test_damaged_ones_and_those_rolled_back_are_not_counted_among_the_newest(root: Path) -> None:
    made = published(root, 6)
    rollback(root, "tokens/pile")
    made[3].file("data.txt").unlink()
    prune(root, keep=2)
    assert there(root) == refs(*made[2:]), "two good ones, and what is newer"


def test_what_a_run_was_made_from_stays_and_goes_with_the_run(root: Path) -> None:
    corpora = published(root, 4, kind="corpora", name="book")
    tokenizers = published(root, 4, kind="tokenizers", name="book")
    tokens = [publish(root, number, *pair) for number, pair in enumerate(zip(corpora, tokenizers, strict=True))]
    run = publish(root, 0, tokens[1], kind="runs", name="sample")
    rows = prune(root, keep=1)
    chain = (corpora[1], tokenizers[1], tokens[1], run)
    assert there(root) == refs(*chain, corpora[3], tokenizers[3], tokens[3])
    assert why_kept(rows, tokens[1]) == f"{run.ref} is made from it"
    assert why_kept(rows, corpora[1]) == f"{tokens[1].ref} is made from it"
    newer = publish(root, 1, tokens[3], kind="runs", name="sample")
    prune(root, keep=1)
    assert there(root) == refs(newer, corpora[3], tokenizers[3], tokens[3])


def unfinished(root: Path, *made_from: Artifact, kind: str = "runs") -> Path:
    """The draft of something that was stopped before its end."""
    asked = identity(0, *made_from, kind=kind, name="stopped")

    def stop(draft: Path) -> Content:
        (draft / "checkpoint").touch()
        raise TryAgain("a signal came")

    with pytest.raises(TryAgain):
        artifact.build(root, asked, stop, keep_draft=True)
    return draft_path(root, asked)


@pytest.mark.parametrize("kind", ["runs", "tokens"])
def test_what_something_unfinished_is_made_from_stays_until_it_has_ended(root: Path, kind: str) -> None:
    corpora = published(root, 2, kind="corpora", name="book")
    made = [publish(root, number, corpora[number % 2]) for number in range(4)]
    draft = unfinished(root, made[0], kind=kind)
    rows = prune(root, keep=1)
    assert there(root) == refs(made[0], made[3], *corpora)
    assert why_kept(rows, made[0]) == f"{draft.relative_to(root)} is made from it"
    shutil.rmtree(draft)
    prune(root, keep=1)
    assert there(root) == refs(made[3], corpora[1])


def test_a_generation_is_kept_while_a_stage_works_on_what_is_made_from_it(root: Path) -> None:
    made = published(root, 2)

    def train(draft: Path) -> Content:
        assert why_kept(prune(root, keep=1), made[0]).endswith("is made from it")
        return writes(0)(draft)

    artifact.build(root, identity(0, made[0], kind="runs"), train, keep_draft=True)
    assert there(root) == refs(*made, artifact.find(root, "runs", "pile"))


def forget_what_it_is_made_from(root: Path) -> Path:
    (unfinished(root) / "run.json").unlink()
    return root / "runs" / "stopped"


def tear_its_manifest(root: Path) -> Path:
    run = publish(root, 0, kind="runs", name="torn")
    run.file("manifest.json").write_bytes(b"")
    return run.path


def lose_its_manifest(root: Path) -> Path:
    run = publish(root, 0, kind="runs", name="torn")
    run.file("manifest.json").unlink()
    return run.path


@pytest.mark.parametrize("make", [forget_what_it_is_made_from, tear_its_manifest, lose_its_manifest])
def test_everything_stays_while_a_run_does_not_say_what_it_was_made_from(
    root: Path, make: Callable[[Path], Path]
) -> None:
    made = published(root, 3)
    doubtful = make(root)
    rows = prune(root, keep=1)
    assert doubtful.relative_to(root).as_posix() in why_kept(rows, made[0])
    shutil.rmtree(doubtful)
    prune(root, keep=1)
    assert there(root) == refs(made[2])


HOLD_A_LEASE = """
import sys
from pathlib import Path
from pipeline.store import artifact
with artifact.lease(artifact.read(Path(sys.argv[1]))):
    print("reading", flush=True)
    sys.stdin.read()
"""


@contextmanager
def reader(made: Artifact) -> Iterator[None]:
    """Another process that reads an artifact."""
    command = [sys.executable, "-c", HOLD_A_LEASE, str(made.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "reading\n"
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_another_process_reads_stays_until_it_has_ended(root: Path, dry_run: bool) -> None:
    made = published(root, 3)
    with reader(made[0]):
        rows = prune(root, keep=1, dry_run=dry_run)
        assert why_kept(rows, made[0]) == "being read"
        assert [row.ref for row in rows if row.removed] == [made[1].ref]
        assert made[0].ref in there(root)
    assert {row.ref for row in prune(root, keep=1) if row.removed} == {*refs(*made[: 2 if dry_run else 1])}
    with pytest.raises(InputMissing, match="pruned meanwhile"), artifact.lease(made[0]):
        pytest.fail("what is gone was read")


def test_nobody_begins_to_read_what_is_being_deleted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = published(root, 2)
    codes = []

    def read() -> None:
        signal.alarm(1)  # one who waits for the deletion to end is waiting well
        with artifact.lease(made[0]):
            pass

    def throw_away(path: Path) -> None:
        codes.append(in_child(read))

    monkeypatch.setattr(files, "throw_away", throw_away)
    prune(root, keep=1)
    assert codes == [-signal.SIGALRM]


def test_a_shelf_in_use_is_left_alone_and_the_others_are_pruned(root: Path) -> None:
    busy, free = published(root, 3), published(root, 3, name="book")

    def write(draft: Path) -> Content:
        for dry_run in (True, False):
            rows = prune(root, keep=1, dry_run=dry_run)
            assert "in use by process" in why_kept(rows, busy[0])
        return writes(3)(draft)

    built = artifact.build(root, identity(3), write).artifact
    assert there(root) == refs(*busy, built, free[2])


def test_a_dry_run_says_what_a_prune_does_and_writes_nothing(root: Path) -> None:
    made = [*published(root, 4), *published(root, 3, kind="corpora", name="book")]
    for number, tokens in enumerate(made[:2]):
        publish(root, number, tokens, kind="runs", name="sample")
    (root / SHELF / f"{files.TRASH}{'0' * 16}.0badcafe").mkdir()
    before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    foreseen = prune(root, keep=1, dry_run=True)
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == before
    assert foreseen == prune(root, keep=1)
    assert not made[0].path.exists(), "the run that needed it would have gone first"


def test_bytes_count_when_the_last_link_to_them_goes(root: Path) -> None:
    first = publish(root, 0)

    def link(draft: Path) -> Content:
        files.link_or_copy(first.file("data.txt"), draft / "data.txt")
        (draft / "more.txt").write_text("x" * 100)
        return Content({})

    linked = artifact.build(root, identity(1), link).artifact
    publish(root, 2)

    def size(made: Artifact) -> int:
        return sum(path.stat().st_size for path in made.path.iterdir())

    wanted = [size(first) - SIZE, size(linked), 0]
    assert [row.bytes for row in prune(root, keep=1, dry_run=True)] == wanted
    assert [row.bytes for row in prune(root, keep=2)] == [wanted[0], 0, 0]
    assert [row.bytes for row in prune(root, keep=1)] == [wanted[1], 0]


def test_what_killed_commands_left_goes_and_its_bytes_are_counted(root: Path) -> None:
    made = published(root, 1)
    shelf = root / SHELF
    trash, torn, link = (shelf / name for name in (f"{files.TRASH}a", f"{files.TEMPORARY}b", f"{files.TEMPORARY}c"))
    trash.mkdir()
    (trash / "big").write_bytes(b"x" * 1000)
    torn.write_bytes(b"half")
    link.symlink_to(made[0].manifest.key)
    draft = unfinished(root)
    rows = {row.ref: (row.removed, row.bytes) for row in prune(root)}
    assert [rows[path.relative_to(root).as_posix()] for path in (trash, torn, link)] == [
        (True, 1000),
        (True, 4),
        (True, 0),
    ]
    assert sorted(os.listdir(shelf)) == sorted([".lock", made[0].manifest.key, "current"])
    assert (draft / "checkpoint").exists()


def test_a_key_is_forgotten_with_its_generation(root: Path) -> None:
    published(root, 2)
    rollback(root, "tokens/pile")
    for number in (2, 3):
        publish(root, number)
        prune(root, keep=2)
        assert is_rolled_back(root, identity(1)) == (number == 2)
    assert artifact.build(root, identity(1), writes(1)).result == "built"


def test_a_generation_that_is_a_link_to_elsewhere_is_not_followed(root: Path, tmp_path: Path) -> None:
    made = published(root, 3)
    made[0].path.rename(tmp_path / "elsewhere")
    made[0].path.symlink_to(tmp_path / "elsewhere")
    assert why_kept(prune(root, keep=1), made[0]) == "a link to a folder elsewhere"
    assert artifact.problems(made[0], deep=True) == []


def test_a_damaged_generation_without_a_manifest_goes_in_its_turn(root: Path) -> None:
    made = published(root, 3)
    made[0].file("manifest.json").unlink()
    prune(root, keep=1)
    assert sorted(os.listdir(root / SHELF)) == sorted([".lock", made[2].manifest.key, "current"])


def test_what_is_no_generation_is_not_touched(root: Path) -> None:
    published(root, 1)
    for name in ("notes", "0123456789abcdeX", ".draft-0123456789abcdef"):
        (root / SHELF / name).mkdir()
    (root / SHELF / "0123456789abcdef").write_text("a file")
    before = tree(root)
    prune(root, keep=1)
    assert tree(root) == before


def test_a_wrong_download_is_listed_once_a_later_one_was_right_and_never_touched(root: Path) -> None:
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


def test_an_empty_store_has_nothing_to_prune(root: Path) -> None:
    assert prune(root) == []
    assert not root.exists()


# Killed at every step


class Dies(files.Disk):
    """A disk whose user is killed just before its N-th operation, those of deleting a folder included."""

    def __init__(self, at: int) -> None:
        self._left = at

    def step(self) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


class Fails(Dies):
    """A disk whose N-th operation, and no other, fails."""

    def step(self) -> None:
        self._left -= 1
        if not self._left:
            raise OSError(5, "input/output error")


def stepping(owner: type | Any, name: str) -> Callable[..., Any]:
    """The function `name` of `owner`, which takes a step of the disk first."""
    real = getattr(owner, name)

    def operation(*arguments: Any, **options: Any) -> Any:
        files.disk.step()  # type: ignore[attr-defined]
        return real(*arguments, **options)

    return operation


for each in ("create", "write", "truncate", "sync", "rename", "link", "symlink", "unlink"):
    setattr(Dies, each, stepping(files.Disk, each))


def at_every_step(kind: type[Dies], prepare: Callable[[], None], work: Callable[[], object]) -> Iterator[int]:
    """Do `work` in processes that are killed, or see the disk fail, at their first step, at their second, and so on.

    Yields the step after each, until one comes to its end undisturbed.
    """

    def disturbed(at: int) -> None:
        files.disk = kind(at)
        os.unlink, os.rmdir = stepping(os, "unlink"), stepping(os, "rmdir")
        work()

    for at in range(1, 1000):
        prepare()
        code = in_child(lambda at=at: disturbed(at))
        yield at
        if code == 0:
            return
        assert code in (-signal.SIGKILL, 74), f"step {at} ended in {code}"
    pytest.fail("it never came to its end")


def assert_whole(root: Path) -> None:
    """`current` is valid, every generation is whole, and the lock is free."""
    assert artifact.problems(now(root), deep=True) == []
    for path in artifact.generations(root):
        assert artifact.problems(artifact.read(path), deep=True) == []
    assert not locks.is_locked(root / SHELF / ".lock")


@pytest.fixture
def before(root: Path, tmp_path: Path) -> Callable[[], None]:
    """Puts back, in the place of the store, the one that was there when this was called first."""
    saved = tmp_path / "before"

    def put_back() -> None:
        if not saved.exists():
            shutil.copytree(root, saved, symlinks=True)
        shutil.rmtree(root)
        shutil.copytree(saved, root, symlinks=True)

    return put_back


@pytest.mark.parametrize("disk", [Dies, Fails])
@pytest.mark.parametrize("keep_draft", [False, True])
def test_a_build_disturbed_at_any_step_leaves_the_old_generation_or_the_new(
    root: Path, tmp_path: Path, before: Callable[[], None], disk: type[Dies], keep_draft: bool
) -> None:
    old, wanted = publish(root, 0), publish(tmp_path / "other", 1)

    def build() -> Artifact:
        return artifact.build(root, identity(1), writes(1), keep_draft=keep_draft).artifact

    for _ in at_every_step(disk, before, build):
        assert_whole(root)
        assert now(root).digest in (old.digest, wanted.digest)
        assert set(there(root)) <= {old.ref, wanted.ref}
        assert build().digest == now(root).digest == wanted.digest
        assert (there(root), leftovers(root)) == (refs(old, wanted), [])


@pytest.mark.parametrize("disk", [Dies, Fails])
@pytest.mark.parametrize("keep_draft", [False, True])
def test_a_build_in_place_of_a_damaged_generation_disturbed_at_any_step_never_shows_half_of_it(
    root: Path, tmp_path: Path, before: Callable[[], None], disk: type[Dies], keep_draft: bool
) -> None:
    old, wanted = publish(root, 0), publish(tmp_path / "other", 1)
    publish(root, 1).file("data.txt").unlink()

    def build() -> Artifact:
        return artifact.build(root, identity(1), writes(1), keep_draft=keep_draft).artifact

    def opened() -> str:
        """The digest of what a reader gets, or what it is told to read instead."""
        try:
            return artifact.require_whole(now(root)).digest
        except BadData as error:
            return error.hint

    for _ in at_every_step(disk, before, build):
        assert opened() == wanted.digest or old.ref in opened()
        assert build().digest == now(root).digest == wanted.digest
        assert (there(root), leftovers(root)) == (refs(old, wanted), [])
        assert_whole(root)


@pytest.mark.parametrize("disk", [Dies, Fails])
def test_a_rollback_disturbed_at_any_step_leaves_either_generation_and_the_same_command_ends_it(
    root: Path, before: Callable[[], None], disk: type[Dies]
) -> None:
    made = published(root, 3)
    key = made[1].manifest.key
    for _ in at_every_step(disk, before, lambda: rollback(root, "tokens/pile", to=key)):
        assert_whole(root)
        assert now(root) in made[1:]
        assert now(root) == made[2] or is_rolled_back(root, identity(2)), "a refresh would undo it"
        assert rollback(root, "tokens/pile", to=key).artifact == now(root) == made[1]
        assert is_rolled_back(root, identity(2))
        assert (there(root), leftovers(root)) == (refs(*made), [])


@pytest.mark.parametrize("disk", [Dies, Fails])
def test_a_prune_disturbed_at_any_step_leaves_whole_generations_and_the_same_command_ends_it(
    root: Path, before: Callable[[], None], disk: type[Dies]
) -> None:
    made = published(root, 4)
    rollback(root, "tokens/pile", to=made[2].manifest.key)
    rollback(root, "tokens/pile", to=made[0].manifest.key)
    rollback(root, "tokens/pile", to=made[3].manifest.key)
    assert is_rolled_back(root, identity(2))
    run = publish(root, 0, made[1], kind="runs")
    stay = refs(made[1], made[3], run)
    for _ in at_every_step(disk, before, lambda: prune(root, keep=1)):
        assert_whole(root)
        assert now(root) == made[3]
        assert set(stay) <= set(there(root))
        prune(root, keep=1)
        assert (there(root), leftovers(root)) == (stay, [])
        assert not is_rolled_back(root, identity(2))
        assert_whole(root)
