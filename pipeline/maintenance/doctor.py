"""Can this machine be trusted with the work? What the rest of the program takes for granted, tried out or measured.

Locks, syncs, links and renames are tried where the artifacts lie, in a folder that is gone afterwards: what holds
for one file system holds for no other.
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
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path

from pipeline.errors import InkstoneError, from_os_error
from pipeline.store import files, locks

# The lowest versions to trust. What is older than torch's, requests' and urllib3's has known security holes; the
# others are what setup.cfg asks for.
FLOORS = {
    "torch": "2.10",
    "numpy": "2.0",
    "h5py": "3.11",
    "zstandard": "0.25",
    "sentencepiece": "0.2.3",
    "tiktoken": "0.12",
    "requests": "2.32.4",
    "urllib3": "2.7.0",
    "click": "8.1",
}
PYTHON_FLOOR = "3.11"

_MOUNTS = Path("/proc/self/mountinfo")
_SHARED = frozenset({"nfs", "nfs4", "lustre", "gpfs", "9p", "cifs", "smb3", "ceph", "afs", "beegfs"})
_PASSING = {
    "tmpfs": "lost when the machine starts anew",
    "ramfs": "lost when the machine starts anew",
    "overlay": "lost with the container, unless a volume is mounted there",
}
_SYNCED = 4 << 20  # bytes
_ROUNDS = 5
_SLOW_SYNC = 500  # ms
_LOW_SPACE, _NO_SPACE = 5e9, 0.5e9  # bytes
_LOW_INODES, _NO_INODES = 10_000, 100
_WRONG_CLOCK = 300  # seconds: from there on certificates and signed addresses are refused
_FEW_FILES = 256
_ELSEWHERE = "choose a folder on a local disk with --artifacts"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `state`: "ok", "warn" (it will work, but), "fail" (it will not).

    `what` is one line with what was measured, `hint` what to do about it ("" where it is ok).
    """

    name: str
    state: str
    what: str
    hint: str = ""


def examine(root: Path, *, ask: Callable[[], str] | None) -> list[Finding]:
    """Look at everything, for artifacts below `root`, or where it will lie. Nothing is left there.

    `ask` asks the endpoint that data comes from and returns the Date header of its answer ("" without one), or raises
    an InkstoneError; None: do not ask.
    """
    folder = root.absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    return [
        _survived("file system", _file_system, folder),
        *_tried(folder),
        _survived("space", _space, folder),
        _survived("inodes", _inodes, folder),
        *_clock_and_endpoint(ask),
        *_versions(),
        _encoding(),
        _open_files(),
    ]


def _file_system(folder: Path) -> Finding:
    name = "file system"
    kind = _kind_of(folder.resolve(), os.fsdecode(_MOUNTS.read_bytes())) if _MOUNTS.exists() else ""
    if not kind:
        return Finding(name, "warn", f"{folder}: this system does not say", "make sure that it is a local disk")
    what = f"{folder}: {kind}"
    if kind in _SHARED or kind == "fuse" or kind.startswith("fuse."):
        return Finding(name, "warn", f"{what}, where locks may not work", _ELSEWHERE)
    if kind in _PASSING:
        return Finding(name, "warn", f"{what}, {_PASSING[kind]}", _ELSEWHERE)
    return Finding(name, "ok", what)


def _kind_of(folder: Path, mounts: str) -> str:
    """The type of the file system that holds `folder`, by proc(5): of the mounts above it the deepest, and the last."""
    found, depth = "", 0
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4]))
        if len(point.parts) >= depth and folder.is_relative_to(point):
            found, depth = after.split()[0], len(point.parts)
    return found


def _tried(folder: Path) -> list[Finding]:
    """The findings that need a folder to write in."""
    trials = {"locks": _locks, "sync": _sync, "hard links": _hard_links, "publishing": _publishing}
    try:
        # Named like all that is unfinished, and so never taken for anything else should this be killed.
        with tempfile.TemporaryDirectory(dir=folder, prefix=f"{files.TEMPORARY}doctor.") as name:
            found = [_survived(trial, look, Path(name)) for trial, look in trials.items()]
    except OSError as error:
        why = "not tried: the folder cannot be written"
        return [_failed("writable", error), *(Finding(trial, "fail", why, "see above") for trial in trials)]
    return [Finding("writable", "ok", str(folder)), *found]


def _survived(name: str, look: Callable[[Path], Finding], folder: Path) -> Finding:
    try:
        return look(folder)
    except (OSError, InkstoneError) as error:
        return _failed(name, error)


def _failed(name: str, error: OSError | InkstoneError) -> Finding:
    said = from_os_error(error) if isinstance(error, OSError) else error
    return Finding(name, "fail", said.what, said.hint)


def _locks(folder: Path) -> Finding:
    path = folder / "lock"
    with locks.lock(path):
        excludes = locks.is_locked(path)  # through a descriptor of its own
    if not excludes:
        return Finding("locks", "fail", "flock does nothing: a lock that is held can be taken again", _ELSEWHERE)
    if locks.is_locked(path):
        return Finding("locks", "fail", "a lock that was given back is still held", _ELSEWHERE)
    return Finding("locks", "ok", "flock excludes, and ends when it is given back")


def _sync(folder: Path) -> Finding:
    data, took = os.urandom(_SYNCED), []
    for round_ in range(_ROUNDS):
        with files.part_file(folder / f"sync{round_}") as out:
            out.write(data)
            start = time.perf_counter()
            out.sync()
            took.append((time.perf_counter() - start) * 1000)
    median = statistics.median(took)
    what = f"{_SYNCED >> 20} MiB durable in {median:.1f} ms, the median of {_ROUNDS}"
    if median > _SLOW_SYNC:
        return Finding("sync", "warn", what, "every checkpoint and every shard waits for it; another disk is faster")
    return Finding("sync", "ok", what)


def _hard_links(folder: Path) -> Finding:
    old, new = folder / "old", folder / "new"
    old.touch()
    try:
        files.disk.link(old, new)
    except OSError as error:
        what = f"none here: {from_os_error(error).what}"
        return Finding("hard links", "warn", what, "what two artifacts could share is copied: count on more space")
    if not old.samefile(new):
        return Finding("hard links", "warn", "a link is a copy here", "count on more space")
    return Finding("hard links", "ok", "work")


def _publishing(folder: Path) -> Finding:
    """How `current` moves on: a symbolic link takes the place of another, in one step."""
    link = folder / "current"
    for generation in ("old", "new"):
        files.point(link, generation)
    if os.readlink(link) != "new":
        return Finding("publishing", "fail", "a renamed link does not take the place of the old one", _ELSEWHERE)
    return Finding("publishing", "ok", "a link takes the place of another in one step")


def _space(folder: Path) -> Finding:
    free = files.free_space(folder)
    state = "fail" if free < _NO_SPACE else "warn" if free < _LOW_SPACE else "ok"
    hint = "" if state == "ok" else "free some space, or choose another disk with --artifacts"
    return Finding("space", state, f"{free / 1e9:.2f} GB free", hint)


def _inodes(folder: Path) -> Finding:
    found = os.statvfs(folder)
    if not found.f_files:
        return Finding("inodes", "ok", "as many as there is space for")
    free = found.f_favail
    state = "fail" if free < _NO_INODES else "warn" if free < _LOW_INODES else "ok"
    hint = "" if state == "ok" else "delete files, or choose another disk with --artifacts"
    return Finding("inodes", state, f"{free:,} files more can be made", hint)


def _clock_and_endpoint(ask: Callable[[], str] | None) -> Iterator[Finding]:
    date, endpoint = "", Finding("endpoint", "ok", "not asked")
    if ask:
        try:
            date = ask()
            endpoint = Finding("endpoint", "ok", f"answers, at {date}" if date else "answers, without a date")
        except InkstoneError as error:
            hint = error.hint or "check the network and its proxies"
            endpoint = Finding("endpoint", "warn", " ".join(error.what.split()), hint)
    yield _clock(time.time(), date)
    yield endpoint


def _clock(now: float, date: str) -> Finding:
    """`now` in seconds since 1970, beside the newest file of the program and the endpoint's `date`, if it gave one."""
    says = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    set_it = "set the clock, or switch its synchronisation on (timedatectl set-ntp true)"
    newest = max((path.stat().st_mtime for path in Path(__file__).parent.parent.rglob("*.py")), default=0.0)
    if now < newest - _WRONG_CLOCK:
        return Finding("clock", "warn", f"{says}: the program's own files are newer", set_it)
    theirs = _seconds(date)
    if theirs is None:
        return Finding("clock", "ok", says)
    off = now - theirs
    what = f"{says}, {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the endpoint"
    return Finding("clock", "warn", what, set_it) if abs(off) > _WRONG_CLOCK else Finding("clock", "ok", what)


def _seconds(date: str) -> float | None:
    """Seconds since 1970 of a Date header; None for one that is no date. Without a zone it means UTC."""
    try:
        found = parsedate_to_datetime(date)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _versions() -> Iterator[Finding]:
    yield _version("python", platform.python_version(), PYTHON_FLOOR, "install a newer Python")
    for name, floor in FLOORS.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fail", f"not installed; {floor} or later is needed", f"pip install '{name}>={floor}'")
        else:
            yield _version(name, found, floor, f"pip install --upgrade '{name}>={floor}'")


def _version(name: str, found: str, floor: str, hint: str) -> Finding:
    if _numbers(found) < _numbers(floor):
        return Finding(name, "warn", f"{found}, older than {floor}", hint)
    return Finding(name, "ok", found)


def _numbers(version: str) -> tuple[int, ...]:
    """What a version is compared by: 2.10.0+cu128 → (2, 10), which is more than (2, 9, 1)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in re.sub(r"(\.0+)+$", "", numbers[0]).split(".")) if numbers else ()


def _encoding() -> Finding:
    # "UTF8", "utf_8" and "UTF-8" are one; codecs knows.
    text, names = (
        codecs.lookup(name).name for name in (locale.getpreferredencoding(False), sys.getfilesystemencoding())
    )
    what = f"{text} for text, {names} for file names"
    if {text, names} != {"utf-8"}:
        return Finding("encoding", "warn", what, "set LANG=C.UTF-8, also in the crontab")
    return Finding("encoding", "ok", what)


def _open_files() -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return Finding("open files", "ok", "as many as wanted")
    state, hint = ("warn", f"raise it: ulimit -n {4 * _FEW_FILES}") if limit < _FEW_FILES else ("ok", "")
    return Finding("open files", state, f"{limit:,} at a time", hint)


def under_cron(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command, its program and all its words, as cron would: no terminal, nothing to read, almost no environment.

    Returns what it printed and its exit code, whatever that is. Raises OSError where it cannot be started.
    """
    home = Path.home()
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "LOGNAME": getpass.getuser(),
        "SHELL": "/bin/sh",
    }
    return subprocess.run(
        list(arguments),
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # so that there is no terminal to ask at
        check=False,
    )
