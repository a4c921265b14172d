"""Fault injection: failing, torn and full disks, killed processes and power cuts, and the invariants after each fault
(`assert_survived`). See docs/design/reliability.md, section 2.

A test that needs root or a missing tool is skipped with a warning. INKSTONE_REQUIRE_FAULTS makes that a failure.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import pytest

import cli
from pipeline.maintenance import verify
from pipeline.sources import cache
from pipeline.sources.walk import LOCK_FILE
from pipeline.store import artifact, files, locks
from pipeline.store.manifest import KINDS

ROOT = Path(__file__).resolve().parents[2]
LEFTOVERS = (files.TEMPORARY, files.TRASH, ".draft-")
UNFINISHED = (".part", ".part.json")
_TIMEOUT = 60.0  # seconds; a command that takes longer hangs


def skip(reason: str) -> NoReturn:
    """Skip a test that cannot run here, with a warning."""
    assert not os.environ.get("INKSTONE_REQUIRE_FAULTS"), reason
    warnings.warn(f"not tested here: {reason}", stacklevel=3)
    pytest.skip(reason)


def require(*tools: str, root: bool = False) -> None:
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        skip(f"{', '.join(missing)} is not installed")
    if root and os.geteuid() != 0:
        skip("this needs root")


# The command line in its own process


@dataclass(frozen=True)
class Run:
    """Result of a command: its exit code (negative: the signal that killed it), stdout and stderr."""

    code: int
    out: str
    err: str
    seconds: float = 0.0


_DRIVER = """
import json, sys
from tests.support import faults
constants, fault = json.loads(sys.argv[1])
faults.arrange(constants, fault)
sys.exit(faults.cli.main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Command:
    """A command line on an artifacts folder, in its own environment.

    constants  module constants set in its process, such as {"pipeline.sources.transfer.DURABLE_EVERY": 1 << 16}
    before     words in front of the command, such as `unshare -n`
    """

    root: Path
    arguments: tuple[object, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, object] = field(default_factory=dict)
    before: tuple[str, ...] = ()

    def start(self, fault: Fault | None = None) -> subprocess.Popen[str]:
        home = self.root.parent / "home"
        home.mkdir(exist_ok=True)
        minimal = {"PATH": os.environ["PATH"], "HOME": str(home), "NO_PROXY": "*", "LANG": "C.UTF-8"}
        setting = json.dumps([dict(self.constants), fault.as_list() if fault else None])
        command = (sys.executable, "-c", _DRIVER, setting, "--artifacts", str(self.root), *map(str, self.arguments))
        return subprocess.Popen(
            [*self.before, *command],
            cwd=ROOT,
            env={**minimal, "PYTHONPATH": str(ROOT), **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, fault: Fault | None = None) -> Run:
        return wait_for(self.start(fault))

    def run_forked(self, fault: Fault | None = None, *, kill_after: float | None = None) -> Run:
        """Run in a fork of this process, which takes milliseconds; kill it after `kill_after` seconds if given.

        `constants` may be functions here.
        """
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            start = time.monotonic()
            if not (child := os.fork()):
                _run_in_fork(self, fault, out.fileno(), err.fileno())
            if kill_after is not None:
                time.sleep(kill_after)
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            seconds = time.monotonic() - start
            out.seek(0)
            err.seek(0)
            return Run(code, out.read(), err.read(), seconds)


def _run_in_fork(command: Command, fault: Fault | None, out: int, err: int) -> NoReturn:
    code = 70
    try:
        signal.alarm(int(_TIMEOUT))  # kills a command that hangs
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.environ.update({"NO_PROXY": "*", **command.environment})
        arrange(command.constants, fault.as_list() if fault else None)
        code = cli.main(["--artifacts", str(command.root), *map(str, command.arguments)])
    finally:  # the fork must never continue as the test process
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait_for(process: subprocess.Popen[str]) -> Run:
    """Wait for a process and return its result. A process that hangs fails the test."""
    start = time.monotonic()
    try:
        out, err = process.communicate(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"the command hung: {err}")
    return Run(process.returncode, out, err, time.monotonic() - start)


def arrange(constants: Mapping[str, object], fault: Sequence[Any] | None) -> None:
    """Set constants and the disk of this process before the command starts."""
    for name, value in constants.items():
        owner, _, attribute = name.rpartition(".")
        assert hasattr(pkgutil.resolve_name(owner), attribute), name
        setattr(pkgutil.resolve_name(owner), attribute, value)
    if fault:
        files.disk = FaultyDisk(Fault(*fault))


# Disks that fail


@dataclass(frozen=True)
class Fault:
    """A fault at the `number`-th operation of a kind ("any" counts all).

    what     an errno by its name; "kill" kills the process before the operation, "torn" in the middle of a write
    lasting  all later operations fail too
    """

    operation: str
    number: int
    effect: str
    lasting: bool = False

    def as_list(self) -> list[object]:
        return [self.operation, self.number, self.effect, self.lasting]


@dataclass(frozen=True)
class Operation:
    """An entry of a disk's log. `other` is the new name or the link's target, `data` was written at `position`."""

    kind: str
    path: Path
    other: str = ""
    position: int = 0
    data: bytes = b""


class LoggingDisk(files.Disk):
    """A disk that logs its operations."""

    def __init__(self) -> None:
        self.log: list[Operation] = []

    def about_to(self, operation: Operation) -> None:
        self.log.append(operation)

    def create(self, path: Path) -> BinaryIO:
        if not os.path.lexists(path):  # opening an existing file is not logged
            self.about_to(Operation("create", path))
        return super().create(path)

    def write(self, handle: BinaryIO, path: Path, data: bytes | memoryview) -> None:
        self.about_to(Operation("write", path, position=handle.tell(), data=bytes(data)))
        super().write(handle, path, data)

    def truncate(self, handle: BinaryIO, path: Path, size: int) -> None:
        self.about_to(Operation("truncate", path, position=size))
        super().truncate(handle, path, size)

    def sync(self, descriptor: int, path: Path) -> None:
        self.about_to(Operation("sync", path))
        super().sync(descriptor, path)

    def rename(self, old: Path, new: Path) -> None:
        self.about_to(Operation("rename", old, str(new)))
        super().rename(old, new)

    def link(self, old: Path, new: Path) -> None:
        self.about_to(Operation("link", old, str(new)))
        super().link(old, new)

    def symlink(self, target_name: str, link: Path) -> None:
        self.about_to(Operation("symlink", link, target_name))
        super().symlink(target_name, link)

    def unlink(self, path: Path) -> None:
        self.about_to(Operation("unlink", path))
        super().unlink(path)


class FaultyDisk(LoggingDisk):
    """A disk with one fault. `reached` is True once the fault has occurred."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault
        self.reached = False
        self._count = 0

    def about_to(self, operation: Operation) -> None:
        fault = self.fault
        super().about_to(operation)
        if fault.operation not in ("any", operation.kind):
            return
        self._count += 1
        if self._count == fault.number or (fault.lasting and self.reached):
            self.reached = True
            if fault.effect == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault.effect != "torn":
                code = getattr(errno, fault.effect)
                has_name = operation.kind not in ("write", "sync", "truncate")  # their system calls take descriptors
                raise OSError(code, os.strerror(code), str(operation.path) if has_name else None)

    def write(self, handle: BinaryIO, path: Path, data: bytes | memoryview) -> None:
        self.about_to(Operation("write", path, position=handle.tell(), data=bytes(data)))
        if self.fault.effect == "torn" and self.reached:
            handle.write(data[: len(data) // 2])
            handle.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        handle.write(data)


@contextmanager
def disk(one: files.Disk) -> Iterator[None]:
    """Replace the disk of this process while the block runs."""
    before, files.disk = files.disk, one
    try:
        yield
    finally:
        files.disk = before


def sweep(attempt: Callable[[int], bool], max_operations: int = 1000) -> int:
    """Call `attempt` with 1, 2, 3, ... until it returns False (fault not reached). Return the number of faults."""
    for number in range(1, max_operations):
        if not attempt(number):
            return number - 1
    raise AssertionError(f"the fault was still reached after {max_operations} operations")


# Power cuts


@dataclass
class _Inode:
    live: bytearray = field(default_factory=bytearray)
    durable: bytes = b""


def power_cuts(log: Sequence[Operation], before: Mapping[Path, bytes]) -> list[dict[Path, bytes]]:
    """Return the distinct states of files that a power cut may leave at any point of a log.

    The system may keep only what was synced; all names, but only synced bytes; or everything. `before` is the durable
    state at the start. Folders are assumed durable, and links are not followed: the raw cache has none.
    """
    inodes = {path: _Inode(bytearray(data), data) for path, data in before.items()}
    names, durable_names = dict(inodes), dict(inodes)
    states: list[dict[Path, bytes]] = []
    for operation in (*log, None):
        for state in (
            {path: inode.durable for path, inode in durable_names.items()},
            {path: inode.durable for path, inode in names.items()},
            {path: bytes(inode.live) for path, inode in names.items()},
        ):
            states += [state] if state not in states else []
        if operation:
            _apply(operation, names, durable_names)
    return states


def _apply(operation: Operation, names: dict[Path, _Inode], durable_names: dict[Path, _Inode]) -> None:
    path = operation.path
    match operation.kind:
        case "create":
            names[path] = _Inode()
        case "write":
            live = names[path].live
            live[operation.position : operation.position + len(operation.data)] = operation.data
        case "truncate":
            del names[path].live[operation.position :]
        case "sync" if path in names:
            names[path].durable = bytes(names[path].live)
        case "sync":  # a folder
            for name in [name for name in durable_names if name.parent == path]:
                del durable_names[name]
            durable_names |= {name: inode for name, inode in names.items() if name.parent == path}
        case "rename":
            names[Path(operation.other)] = names.pop(path)
        case "unlink":
            names.pop(path, None)
        case other:
            raise AssertionError(f"power cuts do not support the operation {other}")


# Mounted disks


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small tmpfs at `folder`."""
    require("mount", "umount", root=True)
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield folder


@contextmanager
def ext4(folder: Path, image: Path, *, megabytes: int = 16, inodes: int = 256, fresh: bool = True) -> Iterator[Path]:
    """Mount a small ext4 at `folder` from the file `image`; it commits its journal only on sync."""
    require("mount", "umount", "mkfs.ext4", root=True)
    if fresh:
        with open(image, "wb") as blocks:
            blocks.truncate(megabytes << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-N", str(inodes), str(image)], check=True, capture_output=True)
    with _mounted(folder, "-t", "ext4", "-o", "loop,commit=300", str(image)):
        yield folder


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if process.returncode:
        skip(f"cannot mount a disk here: {process.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def power_cut(image: Path, folder: Path) -> Iterator[Path]:
    """Mount the state of the disk `image` after a power cut at `folder`, by replaying the journal of a copy."""
    copy = image.with_name(f"{image.name}.cut")
    shutil.copyfile(image, copy)
    with ext4(folder, copy, fresh=False):
        yield folder


# Prefixes of a command


def limited(**limits: int) -> tuple[str, ...]:
    """Return a prefix that sets limits of prlimit, such as fsize, nofile, as."""
    require("prlimit")
    return ("prlimit", *(f"--{name}={value}" for name, value in limits.items()))


def offline() -> tuple[str, ...]:
    """Return a prefix that runs a command without any network, not even loopback."""
    require("unshare", root=True)
    return ("unshare", "-n")


def injected(call: str, what: str, path: Path | None = None) -> tuple[str, ...]:
    """Return an strace prefix that makes a system call fail, e.g. `injected("fsync", "error=EIO:when=2")`; with `path`,
    only on that file."""
    require("strace")
    path_filter = ("-P", str(path)) if path else ()
    return (
        "strace",
        "-qq",
        "-f",
        "-o",
        "/dev/null",
        *path_filter,
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:{what}",
    )


# Invariants after every fault


def published(root: Path) -> dict[str, str]:
    """Return the published names below `root`: sha256 of pinned files, digest of current generations."""
    digests: dict[str, str] = {}
    for lock_file in sorted((root / "raw").glob(f"*/{LOCK_FILE}")):
        source = lock_file.parent.name
        digests |= {f"raw/{source}/{name}": pin.sha256 for name, pin in cache.read_lock_file(root, source).items()}
    for kind in KINDS:
        for link in sorted((root / kind).glob("*/current")):
            digests[f"{kind}/{link.parent.name}"] = artifact.read(link.resolve()).digest
    return digests


def leftovers(root: Path) -> list[str]:
    """Return temporary files left by killed or failed writers."""
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.name.startswith(LEFTOVERS) or path.name.endswith(UNFINISHED)
    )


def assert_one_error(run: Run, code: int, names: Sequence[str]) -> None:
    """Assert I3: the exit code, and one line with the file, the cause and a hint."""
    assert run.code == code, f"exit code {run.code}, expected {code}: {run.err}"
    lines = [line for line in run.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, run.err
    assert run.err.rstrip().splitlines()[-1] == lines[0], run.err
    assert " — " in lines[0], f"no hint: {lines[0]}"
    assert "Traceback" not in run.err
    for name in names:
        assert name in lines[0], f"{name!r} is not named: {lines[0]}"


def assert_published(root: Path, allowed: Sequence[Mapping[str, str]], at_least: Mapping[str, str]) -> None:
    """Assert I1: published names match one of the `allowed` states, none of `at_least` is lost, and all verify."""
    current = published(root)
    for name, digest in current.items():
        assert digest in {state.get(name) for state in allowed}, f"{name} is neither old nor new"
    assert not at_least.keys() - current.keys(), "a published name is missing"
    problems = [problem for _, problems in verify.verify(root, deep=True) for problem in problems]
    assert not problems, problems


def assert_survived(
    root: Path,
    run_again: Callable[[], Run],
    expected: Mapping[str, str],
    disturbed: Sequence[Run],
    *,
    code: int | None = None,
    names: Sequence[str] = (),
    old: Mapping[str, str] | None = None,
    damaged: bool = False,
    bytes_fetched_twice: Callable[[], int] = lambda: 0,
    max_fetched_twice: int = 0,
    secrets: Sequence[str] = (),
) -> Run:
    """Assert the seven invariants (I1 to I7) after the `disturbed` runs. Returns the clean run that `run_again` makes.

    expected  published state of an undisturbed run, as `published` returns it
    old       published state before the disturbed runs
    damaged   True if the test itself destroyed some of `old`
    code      exit code of the last disturbed run, whose error names all of `names`; None if it was killed or succeeded
    secrets   texts that must not appear in any output or file

    `bytes_fetched_twice` returns a number of bytes, at most `max_fetched_twice`.
    """
    old = old or {}
    if code is not None and disturbed:
        assert_one_error(disturbed[-1], code, names)
    if not damaged:
        assert_published(root, (old, expected), old)  # I1
    for path in root.rglob("*.lock"):  # I6
        assert not locks.is_locked(path), f"{path} is still locked"
    clean = run_again()
    assert clean.code == 0, clean.err
    assert "error" not in clean.err.lower(), clean.err
    assert_published(root, (expected,), expected)  # I2
    assert published(root) == dict(expected)
    assert leftovers(root) == []  # I4
    assert bytes_fetched_twice() <= max_fetched_twice, (
        f"{bytes_fetched_twice():,} bytes were fetched twice, more than {max_fetched_twice:,}"
    )  # I5
    for run in (*disturbed, clean):  # I7
        assert_silent(run.out + run.err, secrets)
    for path in root.rglob("*"):
        if path.is_file():
            assert_silent(path.read_bytes().decode("utf-8", "replace"), secrets)
    return clean


def assert_silent(text: str, secrets: Sequence[str]) -> None:
    for secret in secrets:
        assert secret not in text, f"a secret was printed or written: {text[:300]}"


@contextmanager
def paused(process: subprocess.Popen[str]) -> Iterator[None]:
    """Stop a process with SIGSTOP while the block runs."""
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)


def kill(process: subprocess.Popen[str]) -> Run:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return wait_for(process)


@contextmanager
def another_process(script: str, path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `script` on `path` in another process while the block runs; yields it and its first line of output."""
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()
