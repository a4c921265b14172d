"""The token store under faults: cases 42 to 49 of docs/design/reliability.md, section 2, through the command line.

The same faults for artifacts of any kind are in test_artifact.py and test_retention.py.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.errors import BadData
from pipeline.maintenance import verify
from pipeline.store import artifact, files
from pipeline.tokens import hdf5
from pipeline.tokens.store import open_store
from tests.pipeline.store.test_artifact import in_child
from tests.support.tokenizing import checksums, lines, some
from tests.support.tokenizing import run as run_tokenize
from tests.support.upstream import (
    ROOT,
    Hub,
    Nightly,
    assert_settled,
    assert_survived,
    fill,
    generation,
    leftovers,
    letters,
    mounted_ext4,
    mounted_tmpfs,
    nightly,
    published,
    serving,
    stamps,
    texts,
)

CLI = (sys.executable, str(ROOT / "cli.py"))


def command(root: Path, tokenizer: Path, source: Path, *options: object) -> list[str]:
    arguments = ("--artifacts", root, "tokenize", source, "--tokenizer", tokenizer, "--name", "small", *options)
    return [*CLI, *map(str, arguments), "--val-fraction", "0.2", "--val-split", "document", "--jobs", "1"]


def run_command(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    process = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **options)
    assert "Traceback" not in process.stderr
    return process


def assert_one_line(process: subprocess.CompletedProcess[str], problem: str) -> None:
    """Check that the last line of stderr names the problem and what to do."""
    assert re.match(rf"error: .*{problem}.* — ", process.stderr.splitlines()[-1]), process.stderr


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return letters(tmp_path / "letters")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return lines(tmp_path / "some.jsonl", texts("some", 40)).path


# Killed while HDF5 is written


def test_hdf5_killed_at_any_write_is_complete_or_absent(
    root: Path, tmp_path: Path, tokenizer: Path, source: Path
) -> None:
    """Case 42 of docs/design/reliability.md."""
    if not shutil.which("strace"):
        pytest.skip("case 42 was NOT tested: no strace here")
    arguments = command(root, tokenizer, source, "--format", "hdf5")
    quiet = command(tmp_path / "quiet", tokenizer, source, "--format", "hdf5")
    assert run_command(*quiet).returncode == 0
    expected = generation(tmp_path / "quiet")
    assert expected
    victim = root / "tokens" / "small" / f".draft-{expected.manifest.key}" / "train.h5"
    inject = "inject=pwrite64:signal=SIGKILL:when={}"
    kills = 0
    for number in range(1, 40):
        strace = ["strace", "-qq", "-f", "-o", "/dev/null", "-P", str(victim), "-e", "trace=pwrite64", "-e"]
        process = run_command(*strace, inject.format(number), *arguments)
        if process.returncode == 0:
            break
        kills += 1
        assert process.returncode == 71, "the writer is a process of its own, and the command lives on to say so"
        assert_one_line(process, "a worker process was killed")
        assert generation(root) is None
        assert_survived(root)
    assert kills >= 3, "there are several writes"
    assert published(root) == published(tmp_path / "quiet")
    assert_settled(root)


# Full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_tmpfs(tmp_path / "disk", "size=6m") as folder:
        yield folder


@pytest.mark.parametrize(("case", "layout"), [(43, "hdf5"), (43, "both"), (44, "memmap")])
def test_full_disk_exits_74_and_keeps_the_old_generation(
    small_disk: Path, tmp_path: Path, tokenizer: Path, source: Path, case: int, layout: str
) -> None:
    """Cases 43 and 44 of docs/design/reliability.md."""
    root = small_disk / "artifacts"
    assert run_command(*command(root, tokenizer, source)).returncode == 0
    old = generation(root)
    assert old
    larger = lines(tmp_path / "more.jsonl", [text * 20 for text in texts("more", 400)]).path
    arguments = command(root, tokenizer, larger, "--format", layout)
    assert run_command(*command(tmp_path / "quiet", tokenizer, larger, "--format", layout)).returncode == 0
    expected = generation(tmp_path / "quiet")
    assert expected
    needed_bytes = sum(record.size for record in expected.manifest.files)
    for share in (0.3, 0.9, 1.3) if layout == "hdf5" else (0.3, 0.9):  # hdf5 is made of segments that are then gone
        left_room(
            small_disk,
            int(needed_bytes * share)
            - files.folder_size(root / "tokens" / "small" / f".draft-{expected.manifest.key}"),
        )
        process = run_command(*arguments)
        assert process.returncode == 74, f"{process.returncode} with room for {share:.0%}: {process.stderr}"
        assert_one_line(process, "no space left on device")
        assert_survived(root, old.digest)
        assert generation(root) == old
    (small_disk / "ballast").unlink()
    process = run_command(*arguments)
    assert process.returncode == 0, process.stderr
    assert published(root) == published(tmp_path / "quiet")
    assert_settled(root, old.digest, expected.digest)


def left_room(disk: Path, count: int) -> None:
    """Fill a disk so that about `count` bytes are free."""
    ballast = disk / "ballast"
    with suppress(FileNotFoundError):
        ballast.unlink()
    with open(ballast, "wb") as out:
        os.posix_fallocate(out.fileno(), 0, shutil.disk_usage(disk).free - count)


def test_refresh_without_inodes_exits_74_and_recovers(tmp_path: Path) -> None:
    """Case 49 of docs/design/reliability.md."""
    with serving(Hub()) as hub, mounted_tmpfs(tmp_path / "disk", "size=90m,nr_inodes=300") as disk:
        fill(hub, 2)
        job = nightly(tmp_path, hub, shards="0-1,val")
        root = disk / "artifacts"
        job.run(root)
        old = generation(root)
        assert old
        hub.put("train/01.jsonl.zst", texts("shard 1", edition=1))
        free = os.statvfs(disk).f_ffree
        for number in range(free - 8):
            (disk / f"ballast-{number}").touch()
        failure = job.run(root, code=74)
        failure.assert_refused()
        assert "inodes" in failure.outcome["hint"]
        assert_survived(root, old.digest)
        assert generation(root) == old
        for path in disk.glob("ballast-*"):
            path.unlink()
        job.run(root)
        assert_settled(root)


# Power cut while a generation is published


class Snapshots(files.Disk):
    """A disk that takes a snapshot of its durable state before each operation."""

    def __init__(self, take: Callable[[], None]) -> None:
        self._take = take


def _taking(name: str) -> Callable[..., Any]:
    real = getattr(files.Disk, name)

    def operation(self: Snapshots, *arguments: Any) -> Any:
        self._take()
        return real(self, *arguments)

    return operation


for _name in ("create", "sync", "rename", "link", "symlink", "unlink"):
    setattr(Snapshots, _name, _taking(_name))


def test_power_cut_at_any_step_leaves_the_old_or_new_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 45 of docs/design/reliability.md."""
    second = some(_folder(tmp_path / "second"), texts("other", 30), files=1)
    expected = run_tokenize(tmp_path / "quiet", second).artifact
    images: list[Path] = []
    with mounted_ext4(tmp_path, "store", megabytes=8) as store:
        root = store.folder / "artifacts"
        old = run_tokenize(root, some(_folder(tmp_path / "first"), texts("some", 30), files=1)).artifact

        def take() -> None:
            images.append(store.as_after_a_power_cut(tmp_path / f"cut-{len(images):03d}"))

        monkeypatch.setattr(files, "disk", Snapshots(take))
        run_tokenize(root, second)
        take()
        monkeypatch.undo()
    outcomes = []
    for number, image in enumerate(images):
        with mounted_ext4(tmp_path, f"mounted-{number}", image=image) as store:
            root = store.folder / "artifacts"
            current = artifact.find(root, "tokens", "some")
            assert current.digest in (old.digest, expected.digest)
            for path in artifact.generations(root):
                assert artifact.find_problems(artifact.read(path), deep=True) == []
            outcomes.append(current.digest == expected.digest)
            rebuilt = run_tokenize(root, second).artifact
            assert (rebuilt.digest, checksums(rebuilt)) == (expected.digest, checksums(expected))
            assert leftovers(root) == []
        image.unlink()
    assert len(outcomes) > 20
    assert outcomes == sorted(outcomes), "once it is published it stays"
    assert (outcomes[0], outcomes[-1]) == (False, True)


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


class Unsynced(files.Disk):
    """A disk that models a power cut: it may lose the bytes of files and the names in folders changed since their
    last sync.

    Before each operation it builds the states that a power cut could leave, and passes each to `check`.
    """

    def __init__(self, root: Path, scratch: Path, check: Callable[[Path, str], None]) -> None:
        self._root, self._scratch, self._check = root, scratch, check
        self._synced = {(path.stat().st_ino, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}
        self._renamed: list[tuple[Path, Path, str | None]] = []  # from, to, the link that was replaced
        self._count = 0

    def crash(self) -> None:
        """Report every state in which a power cut could leave the disk now."""
        self._count += 1
        for kind in ("everything survives", "unsynced files are empty", "unsynced files are torn", "names are lost"):
            if kind == "names are lost" and not self._renamed:
                continue
            state = self._scratch / "artifacts"
            shutil.copytree(self._root, state, symlinks=True)
            for path in [file for file in self._root.rglob("*") if file.is_file() and not file.is_symlink()]:
                status = path.stat()
                if (status.st_ino, status.st_mtime_ns) not in self._synced and "unsynced" in kind:
                    size = 0 if "empty" in kind else status.st_size // 2
                    os.truncate(state / path.relative_to(self._root), size)
            if kind == "names are lost":
                for old, new, link in reversed(self._renamed):
                    old, new = (state / path.relative_to(self._root) for path in (old, new))
                    old.parent.mkdir(exist_ok=True)  # its removal is lost too
                    new.rename(old)
                    if link:
                        new.symlink_to(link)
            self._check(state, f"{kind}, at step {self._count}")
            shutil.rmtree(state)

    def sync(self, descriptor: int, path: Path) -> None:
        self.crash()
        super().sync(descriptor, path)
        status = os.fstat(descriptor)
        self._synced.add((status.st_ino, status.st_mtime_ns))
        self._renamed = [entry for entry in self._renamed if path not in (entry[1].parent,)]

    def rename(self, old: Path, new: Path) -> None:
        self.crash()
        link = os.readlink(new) if new.is_symlink() else None
        super().rename(old, new)
        if new.is_relative_to(self._root):
            self._renamed.append((old, new, link))


def test_every_power_cut_state_has_the_old_or_new_generation(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 45 of docs/design/reliability.md.

    Uses a model of the disk: it needs no root and covers more than one file system.
    """
    second = some(_folder(tmp_path / "second"), texts("other", 20), files=1)
    expected = run_tokenize(tmp_path / "quiet", second).artifact
    old = run_tokenize(root, some(_folder(tmp_path / "first"), texts("some", 20), files=1)).artifact
    outcomes = []

    def check(state: Path, step: str) -> None:
        current = artifact.find(state, "tokens", "some")
        assert current.digest in (old.digest, expected.digest), step
        for path in artifact.generations(state):
            assert artifact.find_problems(artifact.read(path), deep=True) == [], step
        outcomes.append(current.digest == expected.digest)
        with monkeypatch.context() as patch:
            patch.setattr(files, "disk", files.Disk())
            rebuilt = run_tokenize(state, second).artifact
        assert (rebuilt.digest, checksums(rebuilt)) == (expected.digest, checksums(expected)), step
        assert leftovers(state) == [], step

    disk = Unsynced(root, _folder(tmp_path / "states"), check)
    monkeypatch.setattr(files, "disk", disk)
    run_tokenize(root, second)
    disk.crash()
    assert len(outcomes) > 40
    assert {*outcomes} == {True, False}


# Damage after publication


def flip(path: Path) -> None:
    with open(path, "r+b") as file:
        byte = os.pread(file.fileno(), 1, 100)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), 100)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


VICTIM = "train-00001-0000.bin"


def test_damage_is_named_and_only_that_file_is_encoded_again(job: Nightly, root: Path) -> None:
    """Cases 46 and 47 of docs/design/reliability.md."""
    job.run(root)
    tokens = generation(root)
    assert tokens
    before, expected = stamps(tokens.path), published(root)
    unaffected = {
        name: stamp for name, stamp in before.items() if re.match("(train|val)-", name) and "-00001-" not in name
    }
    damages: tuple[Callable[[Path], None], ...] = (flip, cut, Path.unlink)
    for number, damage in enumerate(damages):
        damage(tokens.file(VICTIM))
        (problem,) = (problem for _, problems in verify.verify(root) for problem in problems)
        assert VICTIM in problem
        if not number:
            verified = run_command(*CLI, "--artifacts", str(root), "verify")
            assert verified.returncode == 65
            assert_one_line(verified, VICTIM)
            trained = run_command(*CLI, "--artifacts", str(root), "train", "--tokens", "small", "--preset", "mini")
            assert trained.returncode == 65
            assert_one_line(trained, VICTIM)
            assert not list(root.glob("runs/*/[!.]*"))
            foreseen = job.run(root, "--dry-run").outcome["stages"]
            assert [stage["result"] for stage in foreseen] == ["fresh", "stale"]
            assert VICTIM in foreseen[1]["why"]
        assert job.run(root).results == {"download": "unchanged", "tokenize": "built"}
        after = stamps(tokens.path)
        assert {name: after[name] for name in unaffected} == unaffected, "the other shards are the same files"
        assert after[VICTIM] != before[VICTIM]
        assert published(root) == expected
        assert_settled(root)


def test_damage_shared_by_two_generations_is_repaired_in_the_current(
    job: Nightly, hub: Hub, root: Path, tmp_path: Path
) -> None:
    """Case 46 of docs/design/reliability.md."""
    job.run(root)
    old = generation(root)
    hub.put("train/02.jsonl.zst", texts("shard 2", edition=1))
    job.run(root)
    new = generation(root)
    assert old
    assert new
    expected = published(root)
    assert os.path.samefile(old.file(VICTIM), new.file(VICTIM))
    flip(new.file(VICTIM))
    damaged = {name for name, problems in verify.verify(root) if problems}
    assert damaged == {old.ref, new.ref}
    job.run(root)
    assert published(root) == expected
    assert artifact.find_problems(new, deep=True) == []
    assert not os.path.samefile(old.file(VICTIM), new.file(VICTIM)), "the damaged file is not written to"
    assert {name for name, problems in verify.verify(root) if problems} == {old.ref}


def test_unlisted_file_is_ignored_and_not_carried_over(job: Nightly, root: Path) -> None:
    """Case 47 of docs/design/reliability.md."""
    job.run(root)
    tokens, expected = generation(root), published(root)
    assert tokens
    tokens.file("train-00009-0000.bin").write_bytes(b"\0" * 8)
    tokens.file("notes.txt").write_text("a note")
    assert len(open_store(tokens).train) == tokens.manifest.counts["train_tokens"]
    listed = run_command(*CLI, "--artifacts", str(root), "verify")
    assert listed.returncode == 0
    assert "notes.txt: in no manifest" in listed.stderr
    assert job.run(root).outcome["result"] == "unchanged"
    tokens.file(VICTIM).unlink()
    job.run(root)
    current = generation(root)
    assert current
    assert current.digest == tokens.digest, "the same inputs give the same manifest"
    assert {name: published(root)[name] for name in expected} == expected


# Hostile HDF5 files


def link_to_elsewhere(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file["tokens"] = h5py.ExternalLink(str(secret), "/tokens")


def virtual(path: Path, secret: Path) -> None:
    layout = h5py.VirtualLayout(shape=(7,), dtype="<u2")
    layout[:] = h5py.VirtualSource(str(secret), "tokens", shape=(7,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("tokens", layout)


def external(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("tokens", shape=(7,), dtype="<u2", external=[(str(secret), 0, 14)])


def boundless(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("tokens", shape=(1 << 50,), dtype="<u2")


def boundless_with_a_place(path: Path, secret: Path) -> None:
    """The header declares 2 PiB for 14 bytes."""
    with h5py.File(path, "w") as file:
        file.create_dataset("tokens", data=np.arange(7, dtype="<u2"))
    data = path.read_bytes()
    seven, huge = (7).to_bytes(8, "little"), (1 << 50).to_bytes(8, "little")
    assert seven in data
    path.write_bytes(data.replace(seven, huge).replace((14).to_bytes(8, "little"), (1 << 51).to_bytes(8, "little")))


def soft_link_in_a_circle(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file["tokens"] = h5py.SoftLink("/tokens")


HOSTILE = (virtual, external, boundless, boundless_with_a_place, link_to_elsewhere, soft_link_in_a_circle)


@pytest.mark.parametrize("make", HOSTILE)
def test_hostile_hdf5_is_refused_and_its_target_not_opened(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    """Case 48 of docs/design/reliability.md."""
    secret, path = tmp_path / "secret.h5", tmp_path / "train.h5"
    with h5py.File(secret, "w") as file:
        file.create_dataset("tokens", data=np.arange(7, dtype="<u2"))
    make(path, secret)
    secret.unlink()
    os.mkfifo(secret)  # opening it blocks forever

    def open_it() -> None:
        signal.alarm(2)
        with pytest.raises(BadData, match=r"train\.h5"):
            hdf5.memmap_hdf5(path, "<u2")

    assert in_child(open_it) == 0
