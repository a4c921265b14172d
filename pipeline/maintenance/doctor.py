"""Checks of this machine: everything that the rest of the program relies on, tested or measured.

Locks, syncs, links and renames are tested in a temporary folder beside the artifacts, because file systems differ.
"""

from __future__ import annotations

import codecs
import getpass
import importlib.metadata
import locale
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InkstoneError, from_os_error
from pipeline.store import files, locks

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_MOUNTS = Path("/proc/self/mountinfo")
_SHARED_TYPES = frozenset({"nfs", "nfs4", "lustre", "gpfs", "9p", "cifs", "smb3", "ceph", "afs", "beegfs"})
_TEMPORARY_TYPES = {
    "tmpfs": "lost when the machine restarts",
    "ramfs": "lost when the machine restarts",
    "overlay": "lost with the container, unless a volume is mounted there",
}
_SYNC_BYTES = 4 << 20
_SYNC_ROUNDS = 5
_SLOW_SYNC = 500  # ms
_LOW_SPACE, _NO_SPACE = 5e9, 0.5e9  # bytes
_LOW_INODES, _NO_INODES = 10_000, 100
_WRONG_CLOCK = 300  # seconds; beyond that, certificates and signed URLs are rejected
_FEW_OPEN_FILES = 256
_USE_LOCAL_DISK = "choose a folder on a local disk with --artifacts"


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    `state` is "ok", "warn" (works with limits) or "fail" (does not work). `what` is one line with the measurement,
    `hint` an instruction, "" if the state is "ok".
    """

    name: str
    state: str
    what: str
    hint: str = ""


def examine(root: Path, distribution: str, *, ask: Callable[[], str] | None) -> list[Finding]:
    """Run all checks for artifacts below `root`, which need not exist. They leave nothing behind.

    The requirements of the installed package `distribution` are compared with the installed versions. `ask` requests
    the server that data comes from and returns the Date header of its answer ("" without one), or raises an
    InkstoneError; None skips that check.
    """
    folder = root.absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    return [
        _guarded("file system", _file_system, folder),
        *_write_checks(folder),
        _guarded("space", _space, folder),
        _guarded("inodes", _inodes, folder),
        *_clock_and_endpoint(ask),
        *_versions(distribution),
        _encoding(),
        _open_files(),
    ]


def _file_system(folder: Path) -> Finding:
    name = "file system"
    kind = _file_system_type(folder.resolve(), os.fsdecode(_MOUNTS.read_bytes())) if _MOUNTS.exists() else ""
    if not kind:
        return Finding(name, "warn", f"{folder}: type unknown on this system", "make sure that it is a local disk")
    message = f"{folder}: {kind}"
    if kind in _SHARED_TYPES or kind == "fuse" or kind.startswith("fuse."):
        return Finding(name, "warn", f"{message}, where locks may not work", _USE_LOCAL_DISK)
    if kind in _TEMPORARY_TYPES:
        return Finding(name, "warn", f"{message}, {_TEMPORARY_TYPES[kind]}", _USE_LOCAL_DISK)
    return Finding(name, "ok", message)


def _file_system_type(folder: Path, mounts: str) -> str:
    """Return the type of the file system that holds `folder`: the deepest mount above it, the last one of equals.

    `mounts` is the content of /proc/self/mountinfo (proc(5)).
    """
    kind, depth = "", 0
    for line in mounts.splitlines():
        fields, _, options = line.partition(" - ")
        mount = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields.split()[4]))
        if len(mount.parts) >= depth and folder.is_relative_to(mount):
            kind, depth = options.split()[0], len(mount.parts)
    return kind


def _write_checks(folder: Path) -> list[Finding]:
    """Run the checks that write, in a temporary folder."""
    checks = {"locks": _locks, "sync": _sync, "hard links": _hard_links, "publishing": _publishing}
    try:
        # A temporary folder: if this process is killed, no command mistakes the folder for an artifact.
        with files.temporary_folder(folder / "doctor") as path:
            findings = [_guarded(name, check, path) for name, check in checks.items()]
    except OSError as error:
        message = "not tested: the folder is not writable"
        return [_failed("writable", error), *(Finding(name, "fail", message, "see above") for name in checks)]
    return [Finding("writable", "ok", str(folder)), *findings]


def _guarded(name: str, check: Callable[[Path], Finding], folder: Path) -> Finding:
    """Run a check; an error that it raises is a failure."""
    try:
        return check(folder)
    except (OSError, InkstoneError) as error:
        return _failed(name, error)


def _failed(name: str, error: OSError | InkstoneError) -> Finding:
    explained = from_os_error(error) if isinstance(error, OSError) else error
    return Finding(name, "fail", explained.message, explained.hint)


def _locks(folder: Path) -> Finding:
    path = folder / "lock"
    with locks.lock(path):
        excludes = locks.is_locked(path)  # opens the file again
    if not excludes:
        return Finding("locks", "fail", "flock has no effect: a held lock can be taken again", _USE_LOCAL_DISK)
    if locks.is_locked(path):
        return Finding("locks", "fail", "a released lock is still held", _USE_LOCAL_DISK)
    return Finding("locks", "ok", "flock excludes other processes until it is released")


def _sync(folder: Path) -> Finding:
    data, durations = os.urandom(_SYNC_BYTES), []
    for index in range(_SYNC_ROUNDS):
        with files.open_partial(folder / f"sync{index}") as out:
            out.write(data)
            start = time.perf_counter()
            out.sync()
            durations.append((time.perf_counter() - start) * 1000)
    median = statistics.median(durations)
    message = f"{_SYNC_BYTES >> 20} MiB durable in {median:.1f} ms, the median of {_SYNC_ROUNDS}"
    if median > _SLOW_SYNC:
        return Finding("sync", "warn", message, "use a faster disk: every checkpoint and every shard waits for a sync")
    return Finding("sync", "ok", message)


def _hard_links(folder: Path) -> Finding:
    old, new = folder / "old", folder / "new"
    old.touch()
    try:
        files.disk.link(old, new)
    except OSError as error:
        message = f"not supported: {from_os_error(error).message}"
        return Finding(
            "hard links", "warn", message, "plan for more space: artifacts copy files instead of sharing them"
        )
    if not old.samefile(new):
        return Finding("hard links", "warn", "a hard link makes a copy", "plan for more space")
    return Finding("hard links", "ok", "work")


def _publishing(folder: Path) -> Finding:
    """Check that a symbolic link can replace another atomically, as publishing moves `current`."""
    link = folder / "current"
    for generation in ("old", "new"):
        files.point_symlink(link, generation)
    if os.readlink(link) != "new":
        return Finding("publishing", "fail", "a renamed link does not replace the old one", _USE_LOCAL_DISK)
    return Finding("publishing", "ok", "a link replaces another in one step")


def _space(folder: Path) -> Finding:
    free = files.free_space(folder)
    state = "fail" if free < _NO_SPACE else "warn" if free < _LOW_SPACE else "ok"
    hint = "" if state == "ok" else "free some space, or choose another disk with --artifacts"
    return Finding("space", state, f"{free / 1e9:.2f} GB free", hint)


def _inodes(folder: Path) -> Finding:
    status = os.statvfs(folder)
    if not status.f_files:
        return Finding("inodes", "ok", "limited by space only")
    free = status.f_favail
    state = "fail" if free < _NO_INODES else "warn" if free < _LOW_INODES else "ok"
    hint = "" if state == "ok" else "delete files, or choose another disk with --artifacts"
    return Finding("inodes", state, f"{free:,} more files can be created", hint)


def _clock_and_endpoint(ask: Callable[[], str] | None) -> Iterator[Finding]:
    date, endpoint = "", Finding("endpoint", "ok", "not contacted")
    if ask:
        try:
            date = ask()
            endpoint = Finding("endpoint", "ok", f"answers, at {date}" if date else "answers, without a date")
        except InkstoneError as error:
            hint = error.hint or "check the network and its proxies"
            endpoint = Finding("endpoint", "warn", " ".join(error.message.split()), hint)
    yield _clock(time.time(), date)
    yield endpoint


def _clock(now: float, date: str) -> Finding:
    """Compare `now`, in seconds since 1970, with the program's newest file and with the endpoint's Date header."""
    local = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    hint = "set the clock, or enable its synchronisation (timedatectl set-ntp true)"
    newest = max((path.stat().st_mtime for path in Path(__file__).parent.parent.rglob("*.py")), default=0.0)
    if now < newest - _WRONG_CLOCK:
        return Finding("clock", "warn", f"{local}: the program's own files are newer", hint)
    remote = _timestamp(date)
    if remote is None:
        return Finding("clock", "ok", local)
    offset = now - remote
    message = f"{local}, {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the endpoint"
    return Finding("clock", "warn", message, hint) if abs(offset) > _WRONG_CLOCK else Finding("clock", "ok", message)


def _timestamp(date: str) -> float | None:
    """Return the seconds since 1970 of a Date header, in UTC if it has no zone; None for an invalid date."""
    try:
        parsed = parsedate_to_datetime(date)
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def _versions(distribution: str) -> Iterator[Finding]:
    """Compare Python and every required package, without extras, with the requirements of `distribution`."""
    from packaging.requirements import Requirement

    try:
        metadata = importlib.metadata.metadata(distribution)
    except importlib.metadata.PackageNotFoundError:
        message = f"{distribution} is not installed, so versions were not checked"
        yield Finding("packages", "warn", message, "install it with `pip install -e .` in the checkout")
        return
    yield _version(Requirement(f"python{metadata['Requires-Python'] or ''}"), platform.python_version())
    for line in metadata.get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            message = f"not installed; {requirement.specifier} is needed"
            yield Finding(requirement.name, "fail", message, _install(requirement))
        else:
            yield _version(requirement, version)


def _version(requirement: Requirement, version: str) -> Finding:
    from packaging.version import InvalidVersion

    try:
        is_supported = requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        is_supported = False
    if is_supported:
        return Finding(requirement.name, "ok", version)
    return Finding(requirement.name, "warn", f"{version}, but {requirement.specifier} is needed", _install(requirement))


def _install(requirement: Requirement) -> str:
    if requirement.name == "python":
        return f"install Python {requirement.specifier}"
    return f"pip install --upgrade '{requirement.name}{requirement.specifier}'"


def _encoding() -> Finding:
    # codecs resolves aliases: "UTF8", "utf_8" and "UTF-8" are the same.
    text, names = (
        codecs.lookup(name).name for name in (locale.getpreferredencoding(False), sys.getfilesystemencoding())
    )
    message = f"{text} for text, {names} for file names"
    if {text, names} != {"utf-8"}:
        return Finding("encoding", "warn", message, "set LANG=C.UTF-8, also in the crontab")
    return Finding("encoding", "ok", message)


def _open_files() -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return Finding("open files", "ok", "unlimited")
    message = f"{limit:,} at a time"
    if limit < _FEW_OPEN_FILES:
        return Finding("open files", "warn", message, f"raise the limit: ulimit -n {4 * _FEW_OPEN_FILES}")
    return Finding("open files", "ok", message)


def under_cron(
    arguments: Sequence[str], variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command as cron would: no terminal, no standard input and an almost empty environment.

    `variables` are those that the crontab sets. Returns its output and exit code. Raises OSError if it cannot be
    started.
    """
    home = Path.home()
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "LOGNAME": getpass.getuser(),
        "SHELL": "/bin/sh",
        **(variables or {}),
    }
    return subprocess.run(
        list(arguments),
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # detaches from the terminal, so that nothing can prompt on it
        check=False,
    )
