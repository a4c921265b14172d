"""A FIFO, a device or a folder in the place of a file of the store: refused with a message, and never a hang."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import BadData, InkstoneError
from pipeline.maintenance import retention
from pipeline.runtime.regular_file import read_regular
from pipeline.store import artifact, files, locks
from pipeline.store.generations import current_key, read_run_info, rolled_back_keys
from pipeline.store.manifest import MANIFEST, Identity
from tests.pipeline.store.test_artifact import in_child, writes

BOOK = Identity("corpora", "book", {"unit": "chapter"}, ())
NEWER = Identity("corpora", "book", {"unit": "sentence"}, ())


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_RDONLY)  # the path of a socket has at most 107 bytes
        server.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


KINDS: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


def in_place_of(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    KINDS[kind](path)


def outcome(work: Callable[[], object]) -> str:
    """Return the message of the error of `work`, "" without one. Work that takes 5 s fails the test."""

    def in_time() -> None:
        signal.alarm(5)
        work()

    assert in_child(in_time) >= 0, "it hangs"
    try:
        work()
    except InkstoneError as error:
        return error.message
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "manifest.json"
    in_place_of(path, kind)
    assert outcome(lambda: read_regular(path)) == f"{path}: expected a file, got {kind}"
    path = tmp_path / "text"
    path.write_bytes(b"text")
    assert read_regular(path) == b"text"


@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a socket"])
def test_lock_in_whose_place_something_else_is_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ".lock"
    in_place_of(path, kind)

    def hold() -> None:
        with locks.lock(path):
            pytest.fail("it was locked")

    assert outcome(hold) == f"{path}: expected a file, got {kind}"
    assert outcome(lambda: locks.is_locked(path)) == ""
    assert not locks.is_locked(path)


@pytest.mark.parametrize("kind", ["a FIFO", "a folder"])
def test_manifest_in_whose_place_something_else_is_is_built_again(root: Path, kind: str) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    manifest = built.file(MANIFEST)
    in_place_of(manifest, kind)
    message = outcome(lambda: artifact.find(root, "corpora", "book"))
    assert message == f"{manifest}: expected a file, got {kind}; it is the current generation of corpora/book"
    assert outcome(lambda: retention.prune(root)) == ""
    assert artifact.build(root, BOOK, writes("一")).artifact.digest == built.digest


@pytest.mark.parametrize("kind", ["a FIFO", "a folder"])
def test_run_info_in_whose_place_something_else_is_counts_as_lost(root: Path, kind: str) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    in_place_of(built.file("run.json"), kind)
    assert outcome(lambda: read_run_info(built.path)) == ""
    assert artifact.build(root, NEWER, writes("二")).result == "built"


def test_record_of_rollbacks_in_whose_place_something_else_is_is_refused(root: Path) -> None:
    shelf = artifact.build(root, BOOK, writes("一")).artifact.path.parent
    in_place_of(shelf / "rolled-back", "a FIFO")
    assert outcome(lambda: rolled_back_keys(shelf)).startswith(f"{shelf / 'rolled-back'}: expected a file, got a FIFO")


@pytest.mark.parametrize("kind", ["a FIFO", "a folder"])
def test_current_that_is_no_link_is_refused_before_a_build(root: Path, kind: str) -> None:
    built = artifact.build(root, BOOK, writes("一")).artifact
    shelf = built.path.parent
    in_place_of(shelf / "current", kind)
    message = f"{shelf / 'current'}: expected a link to a generation, got {kind}"
    works: list[Callable[[], object]] = [
        lambda: artifact.build(root, NEWER, lambda draft: pytest.fail("the work began")),
        lambda: artifact.find(root, "corpora", "book"),
        lambda: retention.rollback(root, "corpora/book"),
        lambda: current_key(shelf),
    ]
    assert [outcome(work) for work in works] == [message] * len(works)
    files.move(shelf / "current", shelf / "away")
    assert retention.rollback(root, "corpora/book", to=BOOK.key).artifact == built


def test_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadData) as caught:
        read_regular(tmp_path)
    assert (caught.value.exit_code, caught.value.hint) == (65, "move it away, then run the same command again")
