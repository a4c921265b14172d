"""Doctor: every fault of a machine is detected and measured, and the checks leave nothing behind."""

from __future__ import annotations

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
from email.message import Message
from email.utils import formatdate
from pathlib import Path

import pytest

from pipeline.errors import DISTRIBUTION, TryAgain
from pipeline.maintenance import doctor
from pipeline.maintenance.doctor import Finding
from pipeline.store import files, locks

ROOT = Path(__file__).resolve().parents[3]
WRITE_CHECKS = ("locks", "sync", "hard links", "publishing")
HOUR = 3600

EXAMINE = """
import dataclasses, json, os, resource, sys
from pathlib import Path
from pipeline.maintenance import doctor
{first}
print(json.dumps([dataclasses.asdict(finding) for finding in doctor.examine(Path(sys.argv[1]), sys.argv[2], ask=None)]))
"""


def examine(root: Path, ask: Callable[[], str] | None = None) -> dict[str, Finding]:
    """Return the findings by name, after checking their form and that nothing was left behind."""
    before = sorted(root.parent.rglob("*"))
    findings = doctor.examine(root, DISTRIBUTION, ask=ask)
    assert sorted(root.parent.rglob("*")) == before, "something was left behind"
    names = [finding.name for finding in findings]
    assert len(names) == len(set(names))
    for finding in findings:
        assert finding.state in ("ok", "warn", "fail")
        assert finding.what
        assert "\n" not in finding.what + finding.hint
        assert (finding.hint == "") == (finding.state == "ok"), finding
    return {finding.name: finding for finding in findings}


def examine_in_process(
    root: Path, *, started_by: Sequence[str] = (), first: str = "", **variables: str
) -> dict[str, Finding]:
    """Return the findings from another process, which runs the code `first` before."""
    command = [*started_by, sys.executable, "-c", EXAMINE.format(first=first), str(root), DISTRIBUTION]
    environment = {**os.environ, **variables}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return {record["name"]: Finding(**record) for record in json.loads(process.stdout)}


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs at `folder` while the block runs."""
    folder.mkdir()
    process = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, text=True
    )
    if process.returncode:
        pytest.skip(f"cannot mount here: {process.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_healthy_machine_passes_all_checks(root: Path) -> None:
    root.mkdir()
    findings = examine(root)
    assert {findings[name].state for name in ("writable", *WRITE_CHECKS, "clock", "python")} == {"ok"}
    assert re.fullmatch(r"4 MiB durable in \d+\.\d ms, the median of 5", findings["sync"].what)
    assert findings["endpoint"] == Finding("endpoint", "ok", "not contacted")


def test_missing_root_is_not_created(root: Path) -> None:
    findings = examine(root / "deep" / "down")
    assert findings["writable"] == Finding("writable", "ok", str(root.parent))
    assert not root.exists()


def test_full_tmpfs_is_reported(root: Path) -> None:
    with mounted(root, "size=2m"):
        findings = examine(root)
        assert findings["file system"].state == "warn"
        assert "tmpfs, lost when the machine restarts" in findings["file system"].what
        assert (findings["space"].state, findings["space"].what) == ("fail", "0.00 GB free")
        assert findings["sync"].state == "fail"
        assert findings["sync"].what.endswith(": no space left on device")
        assert {findings[name].state for name in ("writable", "locks", "hard links", "publishing")} == {"ok"}
        assert not list(root.iterdir())


@pytest.mark.parametrize(("inodes", "state"), [(60, "fail"), (1000, "warn"), (20_000, "ok")])
def test_low_inodes_are_reported(root: Path, inodes: int, state: str) -> None:
    with mounted(root, f"size=64m,nr_inodes={inodes}"):
        finding = examine(root)["inodes"]
        assert finding.state == state
        assert inodes - 20 < int(finding.what.split()[0].replace(",", "")) < inodes


@pytest.mark.parametrize(
    ("free", "state", "what"),
    [(0.4e9, "fail", "0.40 GB free"), (4.9e9, "warn", "4.90 GB free"), (5.1e9, "ok", "5.10 GB free")],
)
def test_low_space_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch, free: float, state: str, what: str) -> None:
    monkeypatch.setattr(files, "free_space", lambda folder: int(free))
    finding = examine(root)["space"]
    assert (finding.state, finding.what) == (state, what)


def assert_unwritable(findings: dict[str, Finding], expected: str) -> None:
    assert findings["writable"].state == "fail"
    assert expected in findings["writable"].what
    for name in WRITE_CHECKS:
        assert findings[name] == Finding(name, "fail", "not tested: the folder is not writable", "see above")
    assert {"space", "inodes", "clock", "open files"} <= findings.keys()


def test_read_only_disk_fails_write_checks(root: Path) -> None:
    with mounted(root, "size=2m,ro"):
        assert_unwritable(examine(root), "read-only file system")


def test_forbidden_folder_fails_write_checks(root: Path) -> None:
    if os.getuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("no setpriv to drop the rights of root")
    without_rights = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if os.getuid() == 0 else ()
    root.mkdir()
    root.chmod(0)
    try:
        findings = examine_in_process(root / "below", started_by=without_rights)
    finally:
        root.chmod(0o700)
    assert_unwritable(findings, "permission denied")


def test_file_instead_of_folder_fails_write_checks(root: Path) -> None:
    root.write_text("a file")
    assert_unwritable(examine(root), "not a directory")


def test_dangling_link_fails_write_checks(root: Path) -> None:
    root.symlink_to("missing")
    assert_unwritable(examine(root), "no such file")


@pytest.mark.parametrize(
    ("kind", "state", "expected"),
    [
        *(
            (kind, "warn", "where locks may not work")
            for kind in ("nfs", "nfs4", "lustre", "gpfs", "9p", "cifs", "smb3")
        ),
        ("fuse.sshfs", "warn", "where locks may not work"),
        ("overlay", "warn", "lost with the container"),
        ("tmpfs", "warn", "lost when the machine restarts"),
        ("ext4", "ok", "ext4"),
        ("fuseblk", "ok", "fuseblk"),
    ],
)
def test_file_system_is_that_of_deepest_mount(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, state: str, expected: str
) -> None:
    data = root / "my data"
    data.mkdir(parents=True)
    escaped = str(data).replace(" ", "\\040")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"30 22 0:40 / {escaped} rw - xfs /dev/sdb1 rw\n"
        f"31 30 0:41 / {escaped} rw,relatime shared:7 master:1 - {kind} server:/export rw\n"
        f"32 22 0:42 / {escaped}2 rw - btrfs /dev/sdc1 rw\n"
        "33 22 0:43 / /proc rw - proc proc rw\n"
        "22 1 8:1 / / rw,relatime shared:1 - xfs /dev/sda1 rw\n"
    )
    monkeypatch.setattr(doctor, "_MOUNTS", mounts)
    finding = examine(data)["file system"]
    assert finding.state == state
    assert finding.what.startswith(f"{data}: {kind}")
    assert expected in finding.what
    assert examine(root)["file system"].what == f"{root}: xfs"


def test_unknown_file_system_is_a_warning(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_MOUNTS", tmp_path / "none")
    assert examine(root)["file system"].state == "warn"


def test_flock_without_effect_fails(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda descriptor, operation: None)
    finding = examine(root)["locks"]
    assert finding.state == "fail"
    assert "flock has no effect" in finding.what


def test_refused_flock_fails(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    assert examine(root)["locks"].state == "fail"


def test_lock_that_stays_held_fails(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "is_locked", lambda path: True)
    finding = examine(root)["locks"]
    assert (finding.state, finding.what) == ("fail", "a released lock is still held")


class OddDisk(files.Disk):
    """A disk that takes `seconds` to sync, refuses links of the kind `refused`, and may not replace on rename."""

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


def test_slow_sync_is_a_warning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SLOW_SYNC", 20)  # ms

    def measure(seconds: float) -> tuple[str, float]:
        monkeypatch.setattr(files, "disk", OddDisk(seconds=seconds))
        finding = examine(root)["sync"]
        return finding.state, float(finding.what.split()[4])

    state, median = measure(0.03)
    assert state == "warn"
    assert 30 <= median < 300
    state, median = measure(0)
    assert state == "ok"
    assert median < 20


def test_missing_hard_links_are_a_warning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "disk", OddDisk(refused="link"))
    findings = examine(root)
    assert (findings["hard links"].state, findings["publishing"].state) == ("warn", "ok")
    assert "not permitted" in findings["hard links"].what


@pytest.mark.parametrize("disk", [OddDisk(refused="symlink"), OddDisk(renames=False)])
def test_disk_that_cannot_replace_links_fails_publishing(
    root: Path, monkeypatch: pytest.MonkeyPatch, disk: OddDisk
) -> None:
    monkeypatch.setattr(files, "disk", disk)
    findings = examine(root)
    assert (findings["hard links"].state, findings["publishing"].state) == ("ok", "fail")


@pytest.mark.parametrize(
    ("ahead", "state", "expected"),
    [
        (-HOUR, "warn", r"36\d\d s ahead of the endpoint"),  # the endpoint's clock is an hour behind
        (HOUR, "warn", r"3[56]\d\d s behind the endpoint"),
        (100, "ok", r"\d+ s behind the endpoint"),
        (-100, "ok", r"1\d\d s ahead of the endpoint"),
    ],
)
def test_clock_is_compared_with_endpoint(root: Path, ahead: float, state: str, expected: str) -> None:
    date = formatdate(time.time() + ahead, usegmt=True)
    findings = examine(root, lambda: date)
    assert findings["clock"].state == state
    assert re.search(expected, findings["clock"].what)
    assert findings["endpoint"] == Finding("endpoint", "ok", f"answers, at {date}")


def test_date_without_zone_is_utc(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    date = formatdate(time.time() - HOUR)
    assert date.endswith("-0000")
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Shanghai")
        time.tzset()
        what = examine(root, lambda: date)["clock"].what
    time.tzset()
    assert re.search(r"36\d\d s ahead of the endpoint", what)


@pytest.mark.parametrize(
    ("date", "expected"), [("", "answers, without a date"), ("yesterday", "answers, at yesterday")]
)
def test_answer_without_date_skips_clock_comparison(root: Path, date: str, expected: str) -> None:
    findings = examine(root, lambda: date)
    assert (findings["clock"].state, findings["endpoint"].what) == ("ok", expected)
    assert "endpoint" not in findings["clock"].what


def test_clock_older_than_program_files_is_a_warning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 86400.0)
    finding = examine(root)["clock"]
    assert (finding.state, finding.what) == ("warn", "1970-01-02 00:00:00 UTC: the program's own files are newer")


@pytest.mark.parametrize("hint", ["try again later", ""])
def test_unreachable_endpoint_is_a_warning_with_its_error(root: Path, hint: str) -> None:
    def ask() -> str:
        raise TryAgain("huggingface.co: no answer\nin 10 s", hint=hint)

    findings = examine(root, ask)
    hint = hint or "check the network and its proxies"
    assert findings["endpoint"] == Finding("endpoint", "warn", "huggingface.co: no answer in 10 s", hint)
    assert findings["clock"].state == "ok"


def require(monkeypatch: pytest.MonkeyPatch, *requirements: str) -> None:
    """Let the installed package have these requirements."""
    metadata = Message()
    metadata["Requires-Python"] = ">=3.11"
    for requirement in requirements:
        metadata["Requires-Dist"] = requirement
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: metadata)


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
def test_versions_are_compared_by_number(
    root: Path, monkeypatch: pytest.MonkeyPatch, version: str, floor: str, state: str
) -> None:
    require(monkeypatch, f"thing>={floor}")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    finding = examine(root)["thing"]
    assert finding.state == state
    assert version in finding.what
    assert (floor in finding.hint) == (state != "ok")


def test_missing_package_fails(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(monkeypatch, "no-such-package>=1.2")
    finding = examine(root)["no-such-package"]
    assert (finding.state, finding.what) == ("fail", "not installed; >=1.2 is needed")


def test_packages_of_extras_and_other_platforms_are_not_checked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(monkeypatch, 'of-an-extra>=1; extra == "test"', 'elsewhere>=1; sys_platform == "none"')
    assert not {"of-an-extra", "elsewhere"} & examine(root).keys()


def test_all_required_packages_are_checked(root: Path) -> None:
    assert examine(root).keys() >= {"torch", "numpy", "click", "zstandard"}


def test_missing_installation_is_a_warning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", fail)
    assert examine(root)["packages"].state == "warn"


def test_old_python_is_a_warning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.9.18")
    finding = examine(root)["python"]
    assert (finding.state, finding.what) == ("warn", "3.9.18, but >=3.11 is needed")


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
def test_encoding_other_than_utf_8_is_a_warning(root: Path, variables: dict[str, str], state: str, what: str) -> None:
    finding = examine_in_process(root, **variables)["encoding"]
    if state == "warn" and "utf-8 for file names" in finding.what:
        what = "ascii for text, utf-8 for file names"  # macOS: file names are always UTF-8
    assert (finding.state, finding.what) == (state, what)


@pytest.mark.parametrize(("limit", "state"), [(128, "warn"), (256, "ok")])
def test_low_limit_of_open_files_is_a_warning(root: Path, limit: int, state: str) -> None:
    first = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))"
    finding = examine_in_process(root, first=first)["open files"]
    assert (finding.state, finding.what) == (state, f"{limit} at a time")


REPORT = """
import json, os, sys
try:
    os.close(os.open("/dev/tty", os.O_RDWR))
    terminal = True
except OSError:
    terminal = False
os.environ.pop("LC_CTYPE", None)  # Python sets it if there is no locale
print(json.dumps({
    "environment": dict(os.environ), "folder": os.getcwd(), "input": sys.stdin.read(), "terminal": terminal,
    "is_leader": os.getsid(0) == os.getpid(), "arguments": sys.argv[1:],
}))
print("and this", file=sys.stderr)
sys.exit(75)
"""


@contextmanager
def standard_input(text: str) -> Iterator[None]:
    """Let child processes read `text` from standard input."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    saved = os.dup(0)
    os.dup2(reading, 0)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(reading)


def test_under_cron_has_no_terminal_and_minimal_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "someone")
    monkeypatch.setenv("HF_TOKEN", "hf_hunter2")
    with standard_input("typed at a terminal"):
        process = doctor.under_cron([sys.executable, "-c", REPORT, "中文 %", "'"])
    assert (process.returncode, process.stderr) == (75, "and this\n")
    assert json.loads(process.stdout) == {
        "environment": {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LOGNAME": "someone", "SHELL": "/bin/sh"},
        "folder": str(tmp_path),
        "input": "",
        "terminal": False,
        "is_leader": True,
        "arguments": ["中文 %", "'"],
    }


def test_under_cron_findings_are_the_same(root: Path) -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + EXAMINE.format(first="")
    process = doctor.under_cron([sys.executable, "-c", script, str(root), DISTRIBUTION])
    assert process.returncode == 0, process.stderr
    under_cron = {record["name"]: record["state"] for record in json.loads(process.stdout)}
    findings = examine(root)
    names = ("writable", *WRITE_CHECKS, "file system", "encoding", "python", "torch", "numpy")
    assert {name: under_cron[name] for name in names} == {name: findings[name].state for name in names}
