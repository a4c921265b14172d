"""Refresh under faults: cases 64 to 75 of reference/reliability.md, section 2, each by its number.

What holds after each of them: the current generation is the old one or the new one, whole to the last byte; the next
refresh ends with the bytes of an undisturbed one and leaves nothing behind; no lock is held; no secret was shown.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import TryAgain
from pipeline.refresh import plan, refresh, state
from pipeline.refresh import recipe as recipes
from pipeline.refresh.plan import Options
from pipeline.refresh.recipe import Recipe
from pipeline.refresh.stages import Chain, TrainStage
from pipeline.runtime import progress
from pipeline.runtime.progress import Logged, Progress, Silent
from pipeline.store import artifact, files, locks
from pipeline.store.manifest import Identity
from pipeline.tokens import chunks as pieces
from tests.pipeline.maintenance.test_retention import Dies, at_every_step
from tests.pipeline.maintenance.test_schedule import parse_crontab
from tests.pipeline.store.test_artifact import in_child
from tests.support import chaos, chaos_refresh
from tests.support.upstream import (
    ROOT,
    SECRET,
    Hub,
    Nightly,
    assert_no_secret,
    assert_settled,
    assert_survived,
    environment,
    fill,
    generation,
    leftovers,
    letters,
    mounted_ext4,
    nightly,
    packed,
    published,
    serving,
    stamps,
    texts,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which processes live")


def digest(root: Path) -> str:
    found = generation(root)
    assert found
    return found.digest


def assert_ends_like_a_fresh_one(job: Nightly, root: Path, elsewhere: Path) -> None:
    """The next refresh of `root` comes to the bytes of one that begins with nothing, and leaves nothing behind."""
    job.run(root)
    if not elsewhere.exists():
        job.run(elsewhere)
    assert published(root).items() >= published(elsewhere).items()
    assert_settled(root)
    assert_no_secret(root)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], patience: float = 30.0) -> None:
    """Wait until something holds of a process that still runs."""
    deadline = time.monotonic() + patience
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode} before"
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def until_stage(process: subprocess.Popen[str], root: Path, stage: str) -> None:
    def reached() -> bool:
        holder = locks.holder(state.lock_of(root, "small"))
        return holder is not None and holder.stage == stage

    wait_for(reached, process)


# 64: as cron runs it


def crontab(job: Nightly, root: Path) -> tuple[dict[str, str], str]:
    """What `schedule` prints for a person to install, as the variables and the command that cron makes of it."""
    command = [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "schedule", str(job.recipe)]
    done = subprocess.run(
        [*command, "--through", job.through], cwd=ROOT, env=job.environment, capture_output=True, text=True, check=True
    )
    assert SECRET not in done.stdout + done.stderr
    variables, [(_, words)] = parse_crontab(done.stdout)
    return variables, words


def by_cron(variables: dict[str, str], command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a crontab as cron does: nothing but its variables, no terminal, another folder."""
    given = [f"{name}={value}" for name, value in {"HOME": "/", **variables}.items()]
    return subprocess.run(
        ["/usr/bin/env", "-i", *given, "/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        start_new_session=True,
        timeout=120,
        check=False,
    )


def test_case_64_the_line_of_the_crontab_refreshes_in_silence_and_says_one_line_when_it_cannot(
    tmp_path: Path, root: Path
) -> None:
    with serving(Hub()) as hub:
        fill(hub)
        job = nightly(tmp_path, hub)
        variables, command = crontab(job, root)
        assert variables["HF_ENDPOINT"] == hub.url
        done = by_cron(variables, command)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert state.read(root, "small").result == "built"
        old = digest(root)
        hub.put("train/01.jsonl.zst", texts("shard 1", edition=1))
        done = by_cron(variables, command)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        new = digest(root)
        assert new != old
    done = by_cron(variables, command)  # upstream is away
    assert (done.returncode, done.stdout) == (75, "")
    assert re.fullmatch(r"error: .*127\.0\.0\.1.* — .*\n", done.stderr)
    assert "\x1b" not in done.stderr
    assert_survived(root, old, new)
    assert digest(root) == new
    assert_no_secret(root, done.stderr)
    events = [json.loads(line) for line in (root / ".state" / "small.log.jsonl").read_text().splitlines()]
    assert [event["code"] for event in events if event["event"] == "exit"] == [0, 0, 75]


@pytest.fixture
def cron(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Gives a crontab to a real cron daemon of this machine; the file that it then says everything in."""
    busybox, vixie = shutil.which("busybox"), shutil.which("cron")
    started: list[subprocess.Popen[bytes]] = []
    said = tmp_path / "cron.said"

    def install(text: str) -> Path:
        tabs = tmp_path / "tabs"
        tabs.mkdir(mode=0o700)
        (tabs / "root").write_text(text)
        (tabs / "root").chmod(0o600)
        if busybox and not subprocess.run([busybox, "crond", "--help"], capture_output=True, check=False).returncode:
            command = [busybox, "crond", "-f", "-d", "0", "-c", str(tabs)]
        elif vixie:  # in a view of the file system of its own: nobody's crontab is touched
            script = (
                "mount -t tmpfs none /run && mkdir -p /var/spool/cron/crontabs && mount -t tmpfs none /var/spool/cron"
                ' && cp -a "$1" /var/spool/cron/crontabs && exec "$2" -f -L 15'
            )
            command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tabs), vixie]
        else:
            pytest.skip("case 64 was NOT tested with a daemon: no cron, no busybox with crond here")
        if os.getuid():
            pytest.skip("case 64 was NOT tested with a daemon: only root may start one")
        with open(said, "wb") as out:
            started.append(subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL))
        return said

    yield install
    for process in started:
        process.terminate()
        process.wait(10)


def test_case_64_a_real_cron_daemon_refreshes_within_the_minute(
    job: Nightly, root: Path, cron: Callable[[str], Path]
) -> None:
    variables, command = crontab(job, root)
    text = "".join(f"{name}={value}\n" for name, value in variables.items() if name != "SHELL")
    exports = " ".join(f"{name}='{value}'" for name, value in variables.items())  # busybox knows no variables
    command = command.replace("%", "\\%")
    said = cron(f"{text}* * * * * export {exports}; {command}\n")
    deadline = time.monotonic() + 75
    while state.read(root, "small").result != "built":
        assert time.monotonic() < deadline, said.read_text(errors="replace")
        time.sleep(0.2)
    assert_survived(root)
    events = [json.loads(line) for line in (root / ".state" / "small.log.jsonl").read_text().splitlines()]
    assert (events[-1]["event"], events[-1]["code"]) == ("exit", 0)


# 65: two at once


def test_case_65_a_second_refresh_is_told_at_once_who_runs_and_one_that_waits_comes_after_it(
    job: Nightly, hub: Hub, root: Path
) -> None:
    hub.pace = 0.5
    first = job.start(root)
    until_stage(first, root, "download")
    start = time.monotonic()
    said = job.run(root, code=75)
    assert time.monotonic() - start < 15
    said.assert_refused()
    since = re.search(r"since (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)", said.told["error"])
    assert f"process {first.pid} (refresh small, at download" in said.told["error"]
    assert since
    waits = job.start(root, "--wait", 60, "--json")
    printed, _ = waits.communicate(timeout=60)
    assert first.wait(60) == 0, first.communicate()[1]
    first.communicate()
    assert waits.returncode == 0
    assert json.loads(printed)["result"] == "unchanged"
    bodies = [name for method, name, _ in hub.asked if method == "GET"]
    assert sorted(bodies) == hub.names, "no file was fetched twice"
    assert_settled(root)


def test_case_65_one_that_waits_gives_up_in_time_and_ends_at_a_signal(job: Nightly, root: Path) -> None:
    root.mkdir()
    with locks.lock(state.lock_of(root, "small"), doing="refresh small"):
        start = time.monotonic()
        job.run(root, "--wait", 1.5, code=75).assert_refused()
        assert 1.5 < time.monotonic() - start < 10
        waits = job.start(root, "--wait", 600)
        time.sleep(1.5)
        assert waits.poll() is None
        waits.terminate()
        _, said = waits.communicate(timeout=10)
    assert waits.returncode == 75
    assert "in use by process" in said
    assert not (root / "raw").exists()


# 66: the parent is killed


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nightly, Hub, dict[str, str]]]:
    """A recipe over shards that take a while, its hub, and the bytes that come of it."""
    folder = tmp_path_factory.mktemp("large")
    with serving(Hub()) as hub:
        for number in range(3):
            hub.put(f"train/{number:02d}.jsonl.zst", [text * 40 for text in texts(f"shard {number}", 800)])
        hub.put("val.jsonl.zst", texts("held out", 8))
        job = nightly(folder, hub, unit=1 << 18, piece=1 << 16)
        job.run(folder / "quiet")
        yield job, hub, published(folder / "quiet")


@linux
def test_case_66_workers_die_with_their_parent_and_the_next_refresh_starts_at_once(
    large: tuple[Nightly, Hub, dict[str, str]], root: Path
) -> None:
    job, _, expected = large
    first = job.start(root, "--jobs", 3)
    until_stage(first, root, "tokenize")
    wait_for(lambda: len(chaos.workers_of(first.pid)) == 2, first)
    wait_for(lambda: chaos.left_behind(root).finished, first)
    first.kill()
    first.communicate()
    assert chaos.survivors(first.pid) == []
    assert generation(root) is None
    before = chaos.left_behind(root).finished
    assert before
    job.run(root, "--jobs", 2)
    assert published(root) == expected
    kept = {name: chaos.stamp(root / "tokens" / "small" / "current" / name) for name in before}
    assert kept == before, "what was done was not done again"
    assert_settled(root)


# 67: the lock file


def holder(pid: int, started: int, **fields: str) -> bytes:
    told = {"boot": files.boot_id(), "host": os.uname().nodename, "doing": "refresh small", "since": "2020", **fields}
    return json.dumps({"pid": pid, "started": started, **told}).encode()


STALE = {
    "of a process that is gone": holder(4_000_000, 5),
    "of a process whose number was used again": holder(1, 5),
    "of another boot": holder(1, locks._start_of(1), boot="another"),
    "of another host": holder(1, locks._start_of(1), host="another"),
    "torn": b'{"pid": 1, "sta',
    "no text": b"\xff\x00\xfe" * 100,
    "empty": b"",
}


def test_case_67_what_a_lock_file_says_of_the_past_holds_nobody_up(job: Nightly, root: Path) -> None:
    path = state.lock_of(root, "small")
    path.parent.mkdir(parents=True)
    for kind, content in STALE.items():
        path.write_bytes(content)
        with locks.lock(path, doing=kind) as held:
            held.say("plan")
            found = locks.holder(path)
            assert found
            assert (found.doing, found.stage, found.pid) == (kind, "plan", os.getpid())
        path.write_bytes(content)
    job.run(root)
    assert_survived(root)


@linux
def test_case_67_the_lock_of_a_killed_process_is_free_though_nobody_asked_what_became_of_it(
    job: Nightly, hub: Hub, root: Path
) -> None:
    hub.pace = 1.0
    first = job.start(root)
    until_stage(first, root, "download")
    first.kill()
    time.sleep(0.3)  # a zombie: its entry in the list of processes stays until its parent asks
    assert Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    hub.pace = 0.0
    job.run(root)
    first.communicate()
    assert_survived(root)


def test_case_67_a_lock_file_that_is_a_link_is_not_followed(job: Nightly, root: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    (root / ".state").mkdir(parents=True)
    state.lock_of(root, "small").symlink_to(precious)
    said = job.run(root, code=74)
    said.assert_refused()
    assert "small.lock" in said.told["error"]
    assert precious.read_text() == "keep me"
    assert not (root / "raw").exists()


def pytest_folders(path: Path) -> list[Path]:
    """The folders that pytest made for a test's own, which only its user may enter."""
    return [each for each in path.parents if each.name.startswith(("pytest-", "popen-"))]


def test_case_67_a_lock_file_that_may_not_be_written_is_told_of_and_one_that_may_only_be_read_can_be_looked_at(
    root: Path, tmp_path: Path
) -> None:
    if os.getuid():
        pytest.skip("case 67 was NOT tested with a second user: only root may become one")
    path = root / ".state" / "small.lock"
    tmp_path.chmod(0o755)
    for folder in (*pytest_folders(tmp_path), root, path.parent):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)

    def as_nobody(work: Callable[[], object]) -> int:
        def run() -> None:
            os.setgroups([])
            os.setegid(65534)
            os.seteuid(65534)
            work()

        return in_child(run)

    def take() -> None:
        with locks.lock(path):
            pass

    def look(expected: bool) -> None:
        assert locks.is_locked(path) is expected

    with locks.lock(path, doing="refresh small"):
        assert as_nobody(take) == 77
        assert as_nobody(lambda: look(True)) == 0
        assert as_nobody(lambda: look(False)) == 70, "an error in there is noticed here"
    assert as_nobody(lambda: look(False)) == 0


def test_case_67_a_lock_file_that_is_deleted_while_it_is_held_costs_no_data(
    job: Nightly, hub: Hub, root: Path, tmp_path: Path
) -> None:
    hub.pace = 0.3
    first = job.start(root)
    until_stage(first, root, "download")
    state.lock_of(root, "small").unlink()
    second = job.start(root)
    codes = [process.wait(60) for process in (first, second)]
    for process in (first, second):
        process.communicate()
    assert codes[0] == 0
    assert codes[1] in (0, 75), "the locks of the shelves still hold"
    assert_survived(root)
    hub.pace = 0.0
    assert_ends_like_a_fresh_one(job, root, tmp_path / "fresh")


# 68: killed at every step


def one(name: str, edition: int = 0) -> str:
    return "".join(f'{{"text": "{text}"}}\n' for text in texts(name, 16, edition))


def _no_training(*_: object) -> Any:
    pytest.fail("nothing is to be trained")


NO_TRAINING = TrainStage(lambda: None, _no_training, _no_training)


@dataclass(frozen=True)
class Local:
    """A recipe that is refreshed inside this process."""

    recipe: Recipe

    def run(self, root: Path, progress: Progress | None = None) -> refresh.Refreshed:
        return refresh.refresh(root, self.recipe, NO_TRAINING, progress or Silent(), Options(through="tokenize"))


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Local:
    """Of a folder of two small files; a test may change those."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill, unlike a power cut, takes nothing written
    monkeypatch.setattr(pieces, "UNIT_BYTES", 1 << 12)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1 << 8)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.jsonl").write_text(one(f"file {number}"))
    path = tmp_path / "small.toml"
    path.write_text(
        f"""
name = "small"
[download]
source = "{folder}"
[tokenizer]
use = "{letters(tmp_path / "letters")}"
[tokenize]
val_fraction = 0.3
[train]
preset = "mini"
"""
    )
    return Local(recipes.load(path))


def test_case_68_killed_before_any_operation_of_the_disk_the_next_refresh_ends_as_if_nothing_had_been(
    local: Local, root: Path, tmp_path: Path
) -> None:
    local.run(root)
    old = digest(root)
    (tmp_path / "texts" / "1.jsonl").write_text(one("file 1", 1))
    saved = tmp_path / "before"
    shutil.copytree(root, saved, symlinks=True)
    local.run(tmp_path / "fresh")
    expected, new = published(tmp_path / "fresh"), digest(tmp_path / "fresh")

    def put_back() -> None:
        shutil.rmtree(root)
        shutil.copytree(saved, root, symlinks=True)

    steps = seen_old = 0
    for steps in at_every_step(Dies, put_back, lambda: local.run(root)):
        assert_survived(root, old, new)
        seen_old += digest(root) == old
        local.run(root)
        assert published(root).items() >= expected.items(), f"step {steps}"
        assert digest(root) == new
        assert_settled(root, old, new)
    assert steps > 60
    assert steps / 2 < seen_old < steps, "current moves near the end, and it does move"


@linux
def test_case_68_20_kills_at_random_moments_end_in_the_bytes_of_an_undisturbed_refresh(tmp_path: Path) -> None:
    with chaos_refresh.trials(tmp_path) as trials:
        found = chaos_refresh.rounds(trials, tmp_path / "rounds", 20, seed=68)
    assert [each.wrong for each in found if each.wrong] == []
    print(chaos_refresh.summary(found))


# 69: nothing changed


def test_case_69_a_refresh_that_finds_nothing_new_writes_nothing_but_its_own_state(
    job: Nightly, hub: Hub, root: Path, tmp_path: Path
) -> None:
    if not shutil.which("strace"):
        pytest.skip("case 69 was NOT tested: no strace here")
    job.run(root)
    before = stamps(root)
    trace = tmp_path / "trace"
    calls = "open,openat,creat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink"
    calls += ",symlinkat,truncate,ftruncate,pwrite64,write,chmod,fchmod,fchmodat,utimensat,fallocate"
    hub.asked.clear()
    start = time.monotonic()
    command = ["strace", "-f", "-y", "-qq", "-o", str(trace), "-e", f"trace={calls}", *job.command(root, "--json")]
    done = subprocess.run(command, cwd=ROOT, env=job.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"] == "unchanged"
    assert time.monotonic() - start < 5
    assert {method for method, _, _ in hub.asked} == {"HEAD"}
    writes = [line for line in trace.read_text(errors="replace").splitlines() if f"{root}/" in line]
    writes = [line for line in writes if not (re.search(r"\bopen(at)?\(", line) and "O_RDONLY" in line)]
    assert any("/.state/" in line for line in writes), "it does keep its state, so the trace sees it"
    assert [line for line in writes if f"{root}/.state" not in line] == []
    after = stamps(root)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {".state/small.json", ".state/small.lock"}


# 70: one file changed


def test_case_70_of_six_shards_only_the_changed_one_is_done_again(hub: Hub, root: Path, tmp_path: Path) -> None:
    fill(hub, shards=6)
    job = nightly(tmp_path, hub, shards="0-5,val")
    job.run(root)
    first = generation(root)
    assert first
    before, raw_before = stamps(first.path), stamps(root / "raw")
    hub.put("train/03.jsonl.zst", texts("shard 3", edition=1))
    hub.asked.clear()
    foreseen = job.run(root, "--dry-run").told
    assert foreseen["stages"][0]["why"].startswith("1 of 7 files: train/03.jsonl.zst changed")
    assert foreseen["stages"][0]["fetch"] == hub.size("train/03.jsonl.zst")
    job.run(root)
    assert [name for method, name, _ in hub.asked if method == "GET"] == ["train/03.jsonl.zst"]
    second = generation(root)
    assert second
    after, raw_after = stamps(second.path), stamps(root / "raw")
    segments = {name for name in before if re.fullmatch(r"(train|val)-.*", name)}
    assert len(segments) == 3 * 13
    for name in segments:
        assert (after[name] == before[name]) == ("-00003-" not in name), name
    changed = {name for name in raw_before if raw_after[name] != raw_before[name]}
    assert changed == {"pile/.lock", "pile/sources.lock.json", "pile/train/03.jsonl.zst"}
    assert_survived(root, first.digest, second.digest)
    assert_ends_like_a_fresh_one(job, root, tmp_path / "fresh")


# 71: less upstream than before


@pytest.mark.parametrize("linked", [True, False])
def test_case_71_what_upstream_lost_or_shortened_is_kept_here_until_a_person_decides(
    tmp_path: Path, root: Path, linked: bool
) -> None:
    with serving(Hub(linked)) as hub:
        fill(hub)
        job, name = nightly(tmp_path, hub), "train/01.jsonl.zst"
        job.run(root)
        before, old = stamps(root / "raw"), digest(root)
        hub.remove(name)
        for arguments in ((), ("--dry-run",)) if linked else ((),):
            said = job.run(root, *arguments, code=10)
            said.assert_refused()
            assert name in said.told["error"]
        hub.put(name, texts("shard 1", 20))
        for arguments in ((), ("--dry-run",)) if linked else ((),):
            said = job.run(root, *arguments, code=10)
            said.assert_refused()
            assert "--allow-shrink" in said.told["hint"]
        assert (stamps(root / "raw"), digest(root)) == (before, old)
        assert_settled(root, old)
        assert state.read(root, "small").exit_code == 10
        assert job.run(root, "--locked").told["result"] == "unchanged"
        assert job.run(root, "--allow-shrink").results == {"download": "built", "tokenize": "built"}
        assert digest(root) != old
        assert_settled(root, old, digest(root))


# 72: the state file

CORRUPT: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "no text": lambda path: path.write_bytes(b"\xff\x00" * 50),
    "another type": lambda path: path.write_text('{"recipe": "small", "paces": [1], "last_success": 3}'),
    "no object": lambda path: path.write_text("null"),
    "gone": lambda path: path.unlink(),
}


def test_case_72_a_state_file_that_cannot_be_read_is_made_anew_from_what_is_published(local: Local, root: Path) -> None:
    local.run(root)
    path, before = state.path_of(root, "small"), stamps(root / "tokens")
    for kind, damage in CORRUPT.items():
        good = state.read(root, "small").last_success
        damage(path)
        hours, known = state.age_hours(state.read(root, "small").last_success), state.age_hours(good)
        assert hours is not None, kind
        assert known is not None
        assert abs(hours - known) < 1 / 60
        assert local.run(root).result == "unchanged", kind
        assert state.read(root, "small").result == "unchanged"
    path.unlink()
    (path / "in the way").mkdir(parents=True)
    assert local.run(root).result == "unchanged", "what is only for people holds nobody up"
    assert stamps(root / "tokens") == before
    assert_settled(root)


# 73: nobody listens


def close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def test_case_73_a_log_on_a_full_disk_is_told_of_once_and_the_refresh_ends_well(
    job: Nightly, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    said = job.run(root, "--log-json", tmp_path / "full.jsonl")
    assert said.told["result"] == "built"
    assert said.stderr.count("continuing without a log") == 1
    (tmp_path / "a file").write_text("")
    assert job.run(root, "--log-json", tmp_path / "a file" / "log.jsonl").told["result"] == "unchanged"
    assert_survived(root)


def test_case_73_with_its_outputs_closed_a_refresh_ends_well_and_with_the_same_bytes(hub: Hub, tmp_path: Path) -> None:
    """Where 2 is closed the next file that is opened has that number, and C libraries write their errors to it."""
    recipe = tmp_path / "book.toml"
    text = (ROOT / "pipeline" / "recipes" / "sample.toml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("[tokenize]", '[tokenize]\nformat = "both"'), encoding="utf-8")
    job = Nightly(recipe, environment(hub))
    made = []
    for closed in ((), (2,), (0, 1, 2)):
        root = tmp_path / f"without {closed}"
        process = job.start(root, stdout=None, stderr=None, preexec_fn=partial(close, closed))
        assert process.wait(60) == 0
        assert_settled(root)
        made.append(published(root))
    assert len(made[0]) > 10
    assert made == [made[0]] * 3


def test_case_73_errors_end_in_their_code_though_nobody_listens(job: Nightly, root: Path) -> None:
    root.mkdir()
    with locks.lock(state.lock_of(root, "small")):
        process = job.start(root, "--json", stdout=None, stderr=None, preexec_fn=partial(close, (1, 2)))
        assert process.wait(60) == 75


# 74: the power goes


@pytest.mark.parametrize("moment", ["download", "tokenize", "late"])
def test_case_74_after_a_power_cut_in_the_middle_the_next_refresh_ends_as_ever(
    large: tuple[Nightly, Hub, dict[str, str]], tmp_path: Path, moment: str
) -> None:
    job, hub, expected = large
    name = "train/02.jsonl.zst"
    wanted = hub.read("main", name)
    assert wanted
    with mounted_ext4(tmp_path, "store", megabytes=200) as store:
        root = store.folder / "artifacts"
        hub.put(name, [text * 40 for text in texts("shard 2", 700, edition=9)])
        try:
            job.run(root)
            old = digest(root)
            before = published(root)
        finally:
            hub.put(name, wanted)
        hub.pace = 0.02 if moment == "download" else 0.0
        running = job.start(root, "--allow-shrink")
        try:
            until_stage(running, root, "download" if moment == "download" else "tokenize")
            if moment == "download":
                wait_for(lambda: list(root.glob("raw/pile/train/*.part")), running)
            elif moment == "late":
                wait_for(lambda: len(list(root.glob("tokens/small/.draft-*/train-*.bin"))) >= 8, running)
            running.send_signal(signal.SIGSTOP)
            image = store.as_after_a_power_cut(tmp_path / "cut")
        finally:
            hub.pace = 0.0
            running.kill()
            running.communicate()
    with mounted_ext4(tmp_path, "cut", image=image) as store:
        root = store.folder / "artifacts"
        assert_survived(root, old)
        assert published(root).items() >= {name: at for name, at in before.items() if name.startswith("tokens")}.items()
        job.run(root)
        assert published(root) == expected
        assert_settled(root)


# 75: two roots, two users, locks that do nothing


def test_case_75_two_roots_are_refreshed_at_once_and_know_nothing_of_each_other(job: Nightly, tmp_path: Path) -> None:
    roots = [tmp_path / "one", tmp_path / "other"]
    running = [job.start(root) for root in roots]
    for process in running:
        assert process.wait(60) == 0, process.communicate()[1]
        process.communicate()
    assert published(roots[0]) == published(roots[1])
    for root in roots:
        assert_settled(root)


_NO_LOCKS = """
import fcntl
fcntl.flock = lambda descriptor, operation: None
from pipeline.store import locks
if {far}: locks._is_alive = lambda holder: False
"""


@contextmanager
def without_locks(job: Nightly, far: bool) -> Iterator[Nightly]:
    """The same job where flock does nothing; `far`: and where the others cannot be seen to live either."""

    class Unlocked(Nightly):
        def command(self, root: Path, *arguments: object) -> list[str]:
            python, option, driver, *rest = super().command(root, *arguments)
            return [python, option, _NO_LOCKS.format(far=far) + driver, *rest]

    yield Unlocked(job.recipe, job.environment, job.through, job.unit, job.piece)


@pytest.mark.parametrize("far", [False, True])
def test_case_75_where_locks_do_nothing_two_refreshes_at_once_still_leave_whole_generations(
    job: Nightly, hub: Hub, root: Path, tmp_path: Path, far: bool
) -> None:
    job.run(root)
    old = digest(root)
    hub.put("train/01.jsonl.zst", texts("shard 1", edition=1))
    with without_locks(job, far) as unlocked:
        running = [unlocked.start(root) for _ in range(2)]
        codes = [process.wait(60) for process in running]
    said = [process.communicate()[1] for process in running]
    assert set(codes) <= {0, 65, 66, 74, 75}, said
    if not far:
        assert 0 in codes, said
    assert all("Traceback" not in each for each in said)
    assert_survived(root)
    if far:  # the two may have written into one draft: what they published is whole, but not always a fresh one's bytes
        return
    assert_ends_like_a_fresh_one(job, root, tmp_path / "fresh")
    assert_survived(root, old, digest(root))


def test_case_75_a_second_user_of_a_store_is_told_whose_lock_it_is(root: Path, tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("case 75 was NOT tested with a second user: only root may become one")
    for folder in (*pytest_folders(tmp_path), tmp_path):
        folder.chmod(0o755)
    root.mkdir(mode=0o777)
    root.chmod(0o777)

    def build(number: int) -> None:
        def write(draft: Path) -> artifact.Content:
            (draft / "data").write_text(str(number))
            return artifact.Content({})

        artifact.build(root, Identity("tokens", "small", {"number": number}, ()), write)

    def as_nobody() -> None:
        os.setgroups([])
        os.setegid(65534)
        os.seteuid(65534)
        build(2)

    build(1)
    assert in_child(as_nobody) == 77
    assert_survived(root)
    shutil.rmtree(root / "tokens")
    root.chmod(0o777)
    assert in_child(as_nobody) == 0, "a store that is theirs is theirs"
    assert_survived(root)


# A signal to end


def incompressible() -> bytes:
    draw = random.Random(1)
    return packed("".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=10_000)) for _ in range(60))


def test_sigterm_in_a_download_ends_in_75_and_what_came_is_not_fetched_again(tmp_path: Path, root: Path) -> None:
    with serving(Hub(pace=0.04)) as hub:
        fill(hub, 1)
        hub.put("train/00.jsonl.zst", incompressible())
        job = nightly(tmp_path, hub, shards="0,val")
        first = job.start(root)
        part = root / "raw" / "pile" / "train" / "00.jsonl.zst.part"
        wait_for(lambda: part.exists() and part.stat().st_size > 1 << 17, first)
        first.terminate()
        _, said = first.communicate(timeout=30)
        assert first.returncode == 75
        assert "stopped by a signal" in said
        assert locks.is_locked(state.lock_of(root, "small")) is False
        kept = part.stat().st_size
        assert kept > 1 << 17
        assert generation(root) is None
        hub.pace = 0.0
        hub.asked.clear()
        job.run(root)
        assert ("GET", "train/00.jsonl.zst", kept) in hub.asked
        assert_ends_like_a_fresh_one(job, root, tmp_path / "fresh")


@linux
def test_sigterm_while_tokenizing_ends_in_75_and_whole_units_are_not_done_again(
    large: tuple[Nightly, Hub, dict[str, str]], root: Path
) -> None:
    job, _, expected = large
    first = job.start(root, "--jobs", 2)
    wait_for(lambda: list(root.glob("tokens/small/.draft-*/.work/unit-*.json")), first)
    first.terminate()
    _, said = first.communicate(timeout=30)
    assert first.returncode == 75, said
    assert "units are kept" in said
    assert chaos.survivors(first.pid) == []
    before = chaos.left_behind(root).finished
    assert before
    assert generation(root) is None
    assert_survived(root)
    kept = state.read(root, "small")
    assert (kept.result, kept.stage, kept.exit_code) == ("failed", "tokenize", 75)
    job.run(root)
    assert published(root) == expected
    assert {name: chaos.stamp(root / "tokens" / "small" / "current" / name) for name in before} == before
    assert leftovers(root) == []


def test_a_second_sigterm_ends_at_once_with_143_and_the_next_refresh_goes_on(
    job: Nightly, hub: Hub, root: Path, tmp_path: Path
) -> None:
    hub.pace = 20.0
    first = job.start(root)
    wait_for(lambda: [name for method, name, _ in hub.asked if method == "GET"], first)
    time.sleep(0.5)
    first.terminate()
    time.sleep(0.5)
    assert first.poll() is None, "it waits for the piece that is on its way"
    start = time.monotonic()
    first.terminate()
    _, said = first.communicate(timeout=10)
    assert first.returncode == 143
    assert time.monotonic() - start < 2
    assert "Traceback" not in said
    assert_survived(root)
    hub.pace = 0.0
    assert_ends_like_a_fresh_one(job, root, tmp_path / "fresh")


class Stops(Silent):
    """A Progress that is told to stop when it hears something for the N-th time: a note, or the start of a bar."""

    def __init__(self, at: int) -> None:
        super().__init__(threading.Event())
        self._left = at
        self.heard = ""

    def note(self, text: str) -> None:
        self._left -= 1
        if not self._left:
            self.heard = text
            self.stop.set()

    @contextmanager
    def bar(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        self.note(f"bar {what}")
        yield lambda count: None


def test_a_signal_at_any_moment_ends_in_75_with_the_old_generation_and_the_next_refresh_ends_the_work(
    local: Local, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "UNIT_BYTES", 1 << 9)  # a unit that is begun is finished first
    local.run(root)
    old = digest(root)
    (tmp_path / "texts" / "1.jsonl").write_text(one("file 1", 1))
    local.run(tmp_path / "fresh")
    expected = published(tmp_path / "fresh")
    saved, heard = tmp_path / "before", []
    shutil.copytree(root, saved, symlinks=True)
    for at in range(1, 100):
        shutil.rmtree(root)
        shutil.copytree(saved, root, symlinks=True)
        told = Stops(at)
        try:
            local.run(root, told)
        except TryAgain:
            heard.append(" ".join(told.heard.split()[:2]))
            assert digest(root) == old
            assert state.read(root, "small").exit_code == 75
        else:
            assert told.heard[:8] in ("", "tokenize"), "only after the last stage it is too late to stop"
        if not told.heard:
            break
        local.run(root)
        assert published(root).items() >= expected.items()
        assert_settled(root)
    assert {"bar download", "bar tokenize"} <= {*heard}


def test_a_signal_while_cleaning_publishes_nothing_and_while_a_tokenizer_is_trained_the_stages_before_are_kept(
    root: Path, tmp_path: Path
) -> None:
    recipe = recipes.load(ROOT / "pipeline" / "recipes" / "sample.toml")
    there = {"bar clean": [], "clean built": ["corpora"], "train-tokenizer built": ["corpora", "tokenizers"]}
    seen = {}
    for at in range(1, 100):
        told = Stops(at)
        try:
            refresh.refresh(root, recipe, NO_TRAINING, told, Options(through="tokenize"))
        except TryAgain:
            said = " ".join(told.heard.split()[:2])
            seen[said] = sorted(path.parent.parent.name for path in root.glob("*/*/current"))
        if not told.heard:
            break
        shutil.rmtree(root)
    assert {said: seen.get(said) for said in there} == there


def test_a_plan_asks_for_no_room_for_what_a_stopped_run_has_written_and_the_next_one_fits(
    local: Local, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "UNIT_BYTES", 1 << 9)

    def needed(where: Path) -> int:
        chain = Chain(where, local.recipe, NO_TRAINING, Silent(), 1)
        step = plan.plan(chain, Options(through="tokenize"), state.read(where, "small").paces).steps[-1]
        assert (step.stage, step.result) == ("tokenize", "stale")
        return step.disk or 0

    class AtSecondUnit(Silent):
        def safe_point(self, saved: str) -> None:
            if saved.startswith("2 units"):
                raise TryAgain(saved)

    with pytest.raises(TryAgain):
        local.run(root, AtSecondUnit())
    (draft,) = root.glob("tokens/small/.draft-*")
    written = files.bytes_below(draft)
    whole = int(1.9 * sum(path.stat().st_size for path in (tmp_path / "texts").iterdir()))
    assert needed(root) == max(0, whole - written)
    assert needed(tmp_path / "fresh") == whole


# Heard by a person, and by a program


def test_a_log_has_a_heartbeat_while_a_stage_works(
    local: Local, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.jsonl"
    local.run(root / "rare", Logged(Silent(), log, "rare"))
    monkeypatch.setattr(progress, "_HEARTBEAT", -1.0)
    local.run(root / "often", Logged(Silent(), log, "often"))
    events = [json.loads(line) for line in log.read_text().splitlines()]
    beats = [event for event in events if event["event"] == "heartbeat"]
    assert {event["run_id"] for event in beats} == {"often"}, "the other was over before the first was due"
    assert {event["work"] for event in beats} == {"download texts", "tokenize"}
    assert all(0 < event["bytes"] <= event["of"] for event in beats)


def test_quiet_is_silent_and_every_line_of_the_log_is_an_object_of_one_run_with_its_exit(
    job: Nightly, hub: Hub, root: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    with job.start(root, "-q", "--log-json", log) as process:
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"ts", "run_id", "event"} <= set.intersection(*(set(event) for event in events))
    assert len({event["run_id"] for event in events}) == 1
    assert [event["stage"] for event in events if event["event"] == "stage"] == ["download", "tokenize"]
    assert (events[-1]["event"], events[-1]["code"], events[-1]["result"]) == ("exit", 0, "built")
    assert events[0]["run_id"] == state.read(root, "small").run_id
    hub.remove("train/01.jsonl.zst")
    with job.start(root, "-q", "--log-json", log) as process:
        printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed, said.count("\n")) == (10, "", 1)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert len({event["run_id"] for event in events}) == 2
    assert (events[-1]["event"], events[-1]["code"], events[-1]["result"]) == ("exit", 10, "failed")
    assert_no_secret(root, said, log.read_text())
