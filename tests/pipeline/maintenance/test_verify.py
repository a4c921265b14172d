"""Verification: a store that is missing, empty or unreadable is an error, and never "0 intact"."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.maintenance import status, verify
from pipeline.store import artifact
from pipeline.store.artifact import StageOutput
from pipeline.store.manifest import Identity
from tests.pipeline.store.test_artifact import in_child
from tests.support.faults import Command


def publish(root: Path) -> artifact.Artifact:
    def write(draft: Path) -> StageOutput:
        return StageOutput({"documents": (draft / "data").write_text("one")})

    return artifact.build(root, Identity("tokens", "small", {}, ()), write).artifact


def test_missing_store_is_an_error_of_the_command(root: Path) -> None:
    command = Command(root, ("verify",))
    missing = command.run_forked()
    assert (missing.code, missing.err.count("artifacts: no such folder")) == (66, 1)
    (root / "notes").mkdir(parents=True)
    empty = command.run_forked()
    assert (empty.code, empty.err.count("no artifacts and no sources here")) == (66, 1)


@pytest.mark.parametrize("unreadable", [".", "tokens", "tokens/small", "tokens/small/KEY", "tokens/small/KEY/data"])
def test_what_may_not_be_read_is_not_permitted(root: Path, tmp_path: Path, unreadable: str) -> None:
    if os.getuid():
        pytest.skip("NOT tested with a second user: needs root")
    built = publish(root)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    path = root / unreadable.replace("KEY", built.manifest.key)
    path.chmod(0)

    def as_nobody(*, deep: bool) -> None:
        os.setgroups([])
        os.setegid(65534)
        os.seteuid(65534)
        list(verify.verify(root, deep=deep))

    assert in_child(lambda: as_nobody(deep=True)) == 77
    path.chmod(0o755)
    assert in_child(lambda: as_nobody(deep=True)) == 0


def test_status_of_an_unreadable_store_is_not_an_empty_one(root: Path, tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("NOT tested with a second user: needs root")
    publish(root)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    (root / "tokens").chmod(0)

    def as_nobody() -> None:
        os.setgroups([])
        os.setegid(65534)
        os.seteuid(65534)
        status.status(root)

    assert in_child(as_nobody) == 77


def test_run_info_that_is_no_file_is_reported(root: Path) -> None:
    built = publish(root)
    assert list(verify.verify(root)) == [(built.ref, [])]
    built.file("run.json").unlink()
    os.mkfifo(built.file("run.json"))
    assert list(verify.verify(root)) == [(built.ref, [f"{built.file('run.json')}: expected a file, got a FIFO"])]
