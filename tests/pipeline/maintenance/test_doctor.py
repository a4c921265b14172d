"""The doctor: each thing that can be wrong with a machine is seen, measured, and leaves nothing behind."""

from __future__ import annotations

import configparser
import errno
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from pipeline.errors import TryAgain
from pipeline.maintenance import doctor
from pipeline.maintenance.doctor import Finding
from pipeline.store import files, locks

ROOT = Path(__file__).resolve().parents[3]
IN_THE_TRIAL_FOLDER = ("locks", "sync", "hard links", "publishing")
HOUR = 3600

LOOK = """
import dataclasses, json, os, resource, sys
from pathlib import Path
from pipeline.maintenance import doctor
{first}
print(json.dumps([dataclasses.asdict(each) for each in doctor.examine(Path(sys.argv[1]), ask=None)]))
"""


def look(root: Path, ask: Callable[[], str] | None = None) -> dict[str, Finding]:
    """The findings by name, when nothing was changed by looking."""
    before = sorted(root.parent.rglob("*"))
    found = doctor.examine(root, ask=ask)
    assert sorted(root.parent.rglob("*")) == before, "something was left behind"
    names = [each.name for each in found]
    assert len(names) == len(set(names))
    for each in found:
        assert each.state in ("ok", "warn", "fail")
        assert each.what
        assert "\n" not in each.what + each.hint
        assert (each.hint == "") == (each.state == "ok"), each
    return {each.name: each for each in found}


def look_elsewhere(
    root: Path, *, started_by: Sequence[str] = (), first: str = "", **variables: str
) -> dict[str, Finding]:
    """The same from another process, which does `first` before."""
    command = [*started_by, sys.executable, "-c", LOOK.format(first=first), str(root)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {each["name"]: Finding(**each) for each in json.loads(done.stdout)}


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """`folder` as a tmpfs of its own."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_sound_machine_has_nothing_against_it(root: Path) -> None:
    root.mkdir()
    found = look(root)
    assert {found[name].state for name in ("writable", *IN_THE_TRIAL_FOLDER, "clock", "python")} == {"ok"}
    assert re.fullmatch(r"4 MiB durable in \d+\.\d ms, the median of 5", found["sync"].what)
    assert found["endpoint"] == Finding("endpoint", "ok", "not asked")


def test_a_root_that_is_not_there_is_not_made(root: Path) -> None:
    found = look(root / "deep" / "down")
    assert found["writable"] == Finding("writable", "ok", str(root.parent))
    assert not root.exists()


def test_a_full_disk_in_memory_is_seen_and_survived(root: Path) -> None:
    with mounted(root, "size=2m"):
        found = look(root)
        assert found["file system"].state == "warn"
        assert "tmpfs, lost when the machine starts anew" in found["file system"].what
        assert (found["space"].state, found["space"].what) == ("fail", "0.00 GB free")
        assert found["sync"].state == "fail"
        assert found["sync"].what.endswith(": no space left on device")
        assert {found[name].state for name in ("writable", "locks", "hard links", "publishing")} == {"ok"}
        assert not list(root.iterdir())


@pytest.mark.parametrize(("inodes", "state"), [(60, "fail"), (1000, "warn"), (20_000, "ok")])
def test_inodes_that_run_out_are_counted(root: Path, inodes: int, state: str) -> None:
    with mounted(root, f"size=64m,nr_inodes={inodes}"):
        found = look(root)["inodes"]
        assert found.state == state
        assert inodes - 20 < int(found.what.split()[0].replace(",", "")) < inodes


@pytest.mark.parametrize(
    ("free", "state", "what"),
    [(0.4e9, "fail", "0.40 GB free"), (4.9e9, "warn", "4.90 GB free"), (5.1e9, "ok", "5.10 GB free")],
)
def test_space_that_runs_out_is_measured(
    root: Path, monkeypatch: pytest.MonkeyPatch, free: float, state: str, what: str
) -> None:
    monkeypatch.setattr(files, "free_space", lambda folder: int(free))
    found = look(root)["space"]
    assert (found.state, found.what) == (state, what)


def assert_all_failed_for_want_of_a_folder(found: dict[str, Finding], said: str) -> None:
    assert found["writable"].state == "fail"
    assert said in found["writable"].what
    for name in IN_THE_TRIAL_FOLDER:
        assert found[name] == Finding(name, "fail", "not tried: the folder cannot be written", "see above")
    assert {"space", "inodes", "clock", "open files"} <= found.keys()


def test_a_read_only_disk_fails_what_needs_to_write(root: Path) -> None:
    with mounted(root, "size=2m,ro"):
        assert_all_failed_for_want_of_a_folder(look(root), "read-only file system")


def test_a_folder_that_may_not_be_entered_fails_what_needs_to_write(root: Path) -> None:
    if os.getuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("nothing here to take away the rights of root with")
    without_rights = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if os.getuid() == 0 else ()
    root.mkdir()
    root.chmod(0)
    try:
        found = look_elsewhere(root / "below", started_by=without_rights)
    finally:
        root.chmod(0o700)
    assert_all_failed_for_want_of_a_folder(found, "permission denied")


def test_a_file_in_the_place_of_the_folder_fails_what_needs_to_write(root: Path) -> None:
    root.write_text("no folder")
    assert_all_failed_for_want_of_a_folder(look(root), "not a directory")


def test_a_link_to_nowhere_in_the_place_of_the_folder_fails_what_needs_to_write(root: Path) -> None:
    root.symlink_to("gone")
    assert_all_failed_for_want_of_a_folder(look(root), "no such file")


@pytest.mark.parametrize(
    ("kind", "state", "said"),
    [
        *(
            (kind, "warn", "where locks may not work")
            for kind in ("nfs", "nfs4", "lustre", "gpfs", "9p", "cifs", "smb3")
        ),
        ("fuse.sshfs", "warn", "where locks may not work"),
        ("overlay", "warn", "lost with the container"),
        ("tmpfs", "warn", "lost when the machine starts anew"),
        ("ext4", "ok", "ext4"),
        ("fuseblk", "ok", "fuseblk"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, state: str, said: str
) -> None:
    data = root / "my data"
    data.mkdir(parents=True)
    escaped = str(data).replace(" ", "\\040")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"30 22 0:40 / {escaped} rw - xfs /dev/sdb1 rw\n"
        f"31 30 0:41 / {escaped} rw,relatime shared:7 master:1 - {kind} server:/export rw\n"  # covers the one before
        f"32 22 0:42 / {escaped}2 rw - btrfs /dev/sdc1 rw\n"
        "33 22 0:43 / /proc rw - proc proc rw\n"
        "22 1 8:1 / / rw,relatime shared:1 - xfs /dev/sda1 rw\n"
    )
    monkeypatch.setattr(doctor, "_MOUNTS", mounts)
    found = look(data)["file system"]
    assert found.state == state
    assert found.what.startswith(f"{data}: {kind}")
    assert said in found.what
    assert look(root)["file system"].what == f"{root}: xfs"


def test_a_system_that_does_not_tell_its_mounts_is_not_called_sound(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_MOUNTS", tmp_path / "none")
    assert look(root)["file system"].state == "warn"


def test_a_flock_that_does_nothing_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda descriptor, operation: None)
    found = look(root)["locks"]
    assert found.state == "fail"
    assert "flock does nothing" in found.what


def test_a_flock_that_the_file_system_refuses_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    assert look(root)["locks"].state == "fail"


def test_a_lock_that_stays_held_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "is_locked", lambda path: True)
    found = look(root)["locks"]
    assert (found.state, found.what) == ("fail", "a lock that was given back is still held")


class OddDisk(files.Disk):
    """A disk that takes `seconds` to sync, and refuses links of the kind `refused`."""

    def __init__(self, *, seconds: float = 0.0, refused: str = "", renames: bool = True) -> None:
        self.seconds, self.refused, self.renames = seconds, refused, renames

    def sync(self, descriptor: int, path: Path) -> None:
        time.sleep(self.seconds)

    def link(self, old: Path, new: Path) -> None:
        if self.refused == "link":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        super().link(old, new)

    def symlink(self, target_name: str, link: Path) -> None:
        if self.refused == "symlink":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        super().symlink(target_name, link)

    def rename(self, old: Path, new: Path) -> None:
        if self.renames or not os.path.lexists(new):
            super().rename(old, new)


def test_a_slow_disk_is_measured(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SLOW_SYNC", 20)  # ms

    def measured(seconds: float) -> tuple[str, float]:
        monkeypatch.setattr(files, "disk", OddDisk(seconds=seconds))
        found = look(root)["sync"]
        return found.state, float(found.what.split()[4])

    state, median = measured(0.03)
    assert state == "warn"
    assert 30 <= median < 300
    state, median = measured(0)
    assert state == "ok"
    assert median < 20


def test_a_disk_without_hard_links_costs_space_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "disk", OddDisk(refused="link"))
    found = look(root)
    assert (found["hard links"].state, found["publishing"].state) == ("warn", "ok")
    assert "not permitted" in found["hard links"].what


@pytest.mark.parametrize("disk", [OddDisk(refused="symlink"), OddDisk(renames=False)])
def test_a_disk_that_cannot_move_a_link_cannot_publish(
    root: Path, monkeypatch: pytest.MonkeyPatch, disk: OddDisk
) -> None:
    monkeypatch.setattr(files, "disk", disk)
    found = look(root)
    assert (found["hard links"].state, found["publishing"].state) == ("ok", "fail")


@pytest.mark.parametrize(
    ("ahead", "state", "said"),
    [
        (-HOUR, "warn", r"36\d\d s ahead of the endpoint"),  # the endpoint's clock is an hour behind
        (HOUR, "warn", r"3[56]\d\d s behind the endpoint"),
        (100, "ok", r"\d+ s behind the endpoint"),
        (-100, "ok", r"1\d\d s ahead of the endpoint"),
    ],
)
def test_the_clock_is_compared_with_the_endpoint_s(root: Path, ahead: float, state: str, said: str) -> None:
    date = formatdate(time.time() + ahead, usegmt=True)
    found = look(root, lambda: date)
    assert found["clock"].state == state
    assert re.search(said, found["clock"].what)
    assert found["endpoint"] == Finding("endpoint", "ok", f"answers, at {date}")


def test_a_date_without_a_zone_means_utc(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    date = formatdate(time.time() - HOUR)
    assert date.endswith("-0000")
    with monkeypatch.context() as here:
        here.setenv("TZ", "Asia/Shanghai")
        time.tzset()
        said = look(root, lambda: date)["clock"].what
    time.tzset()
    assert re.search(r"36\d\d s ahead of the endpoint", said)


@pytest.mark.parametrize(("date", "said"), [("", "answers, without a date"), ("yesterday", "answers, at yesterday")])
def test_an_answer_without_a_date_says_nothing_about_the_clock(root: Path, date: str, said: str) -> None:
    found = look(root, lambda: date)
    assert (found["clock"].state, found["endpoint"].what) == ("ok", said)
    assert "endpoint" not in found["clock"].what


def test_a_clock_from_before_the_program_was_made_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 86400.0)
    found = look(root)["clock"]
    assert (found.state, found.what) == ("warn", "1970-01-02 00:00:00 UTC: the program's own files are newer")


@pytest.mark.parametrize("hint", ["try again later", ""])
def test_an_endpoint_that_does_not_answer_is_a_warning_in_its_own_words(root: Path, hint: str) -> None:
    def ask() -> str:
        raise TryAgain("huggingface.co: no answer\nin 10 s", hint=hint)

    found = look(root, ask)
    hint = hint or "check the network and its proxies"
    assert found["endpoint"] == Finding("endpoint", "warn", "huggingface.co: no answer in 10 s", hint)
    assert found["clock"].state == "ok"


@pytest.mark.parametrize(
    ("version", "floor", "state"),
    [
        ("2.10.0+cu128", "2.10", "ok"),
        ("2.9.1", "2.10", "warn"),
        ("2.10", "2.9.1", "ok"),
        ("2.7", "2.7.0", "ok"),
        ("2.7.0", "2.7", "ok"),
        ("2.32.3", "2.32.4", "warn"),
        ("2.32.4.post1", "2.32.4", "ok"),
        ("0.3", "0.25", "warn"),
        ("1.0.0", "1.0.0.1", "warn"),
        ("unknown", "1", "warn"),
    ],
)
def test_versions_are_compared_as_numbers(
    root: Path, monkeypatch: pytest.MonkeyPatch, version: str, floor: str, state: str
) -> None:
    monkeypatch.setattr(doctor, "FLOORS", {"thing": floor})
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    found = look(root)["thing"]
    assert found.state == state
    assert version in found.what
    assert (floor in found.hint) == (state != "ok")


def test_a_package_that_is_not_there_is_a_failure(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.FLOORS, "no-such-package", "1.2")
    found = look(root)["no-such-package"]
    assert (found.state, found.what) == ("fail", "not installed; 1.2 or later is needed")


def test_an_old_python_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.9.18")
    found = look(root)["python"]
    assert (found.state, found.what) == ("warn", "3.9.18, older than 3.11")


def test_no_floor_is_below_what_the_installation_asks_for() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = dict(re.findall(r"^([a-z0-9]+)>=([0-9.]+)", setup["options"]["install_requires"], flags=re.MULTILINE))
    assert setup["options"]["python_requires"].removeprefix(">=") == doctor.PYTHON_FLOOR
    for name, floor in doctor.FLOORS.items():
        assert [int(part) for part in floor.split(".")] >= [int(part) for part in asked[name].split(".")], name


@pytest.mark.parametrize(
    ("variables", "state", "what"),
    [
        (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            "warn",
            "ascii for text, ascii for file names",
        ),
        ({"LC_ALL": "C.UTF-8"}, "ok", "utf-8 for text, utf-8 for file names"),
    ],
)
def test_a_language_that_is_not_utf_8_is_seen(root: Path, variables: dict[str, str], state: str, what: str) -> None:
    found = look_elsewhere(root, **variables)["encoding"]
    if state == "warn" and "utf-8 for file names" in found.what:
        what = "ascii for text, utf-8 for file names"  # macOS: file names are always UTF-8
    assert (found.state, found.what) == (state, what)


@pytest.mark.parametrize(("limit", "state"), [(128, "warn"), (256, "ok")])
def test_a_low_limit_of_open_files_is_seen(root: Path, limit: int, state: str) -> None:
    first = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))"
    found = look_elsewhere(root, first=first)["open files"]
    assert (found.state, found.what) == (state, f"{limit} at a time")


TELL = """
import json, os, sys
try:
    os.close(os.open("/dev/tty", os.O_RDWR))
    terminal = True
except OSError:
    terminal = False
os.environ.pop("LC_CTYPE", None)  # Python's own doing, where there is no language
print(json.dumps({
    "environment": dict(os.environ), "folder": os.getcwd(), "input": sys.stdin.read(), "terminal": terminal,
    "leads": os.getsid(0) == os.getpid(), "words": sys.argv[1:],
}))
print("and this", file=sys.stderr)
sys.exit(75)
"""


@contextmanager
def standard_input(text: str) -> Iterator[None]:
    """Let processes that inherit the standard input read `text`."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    kept = os.dup(0)
    os.dup2(reading, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reading)


def test_under_cron_there_is_no_terminal_and_next_to_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "someone")
    monkeypatch.setenv("HF_TOKEN", "hf_hunter2")
    with standard_input("typed at a terminal"):
        done = doctor.under_cron([sys.executable, "-c", TELL, "中文 %", "'"])
    assert (done.returncode, done.stderr) == (75, "and this\n")
    assert json.loads(done.stdout) == {
        "environment": {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LOGNAME": "someone", "SHELL": "/bin/sh"},
        "folder": str(tmp_path),
        "input": "",
        "terminal": False,
        "leads": True,
        "words": ["中文 %", "'"],
    }


def test_under_cron_the_doctor_finds_no_more_wrong_than_here(root: Path) -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + LOOK.format(first="")
    done = doctor.under_cron([sys.executable, "-c", script, str(root)])
    assert done.returncode == 0, done.stderr
    there = {each["name"]: each["state"] for each in json.loads(done.stdout)}
    here = look(root)
    names = ("writable", *IN_THE_TRIAL_FOLDER, "file system", "encoding", "python", *doctor.FLOORS)
    assert {name: there[name] for name in names} == {name: here[name].state for name in names}
