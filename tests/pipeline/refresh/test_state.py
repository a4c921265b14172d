"""What is remembered of refreshes: for people and monitors, and never needed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from pipeline.errors import InkstoneError, StorageFailed, TryAgain
from pipeline.refresh import refresh, state
from pipeline.refresh.plan import Options
from pipeline.refresh.recipe import Recipe
from pipeline.refresh.state import Pace, State
from pipeline.runtime.progress import Silent
from pipeline.store import artifact, files, locks
from pipeline.store.manifest import Identity
from tests.pipeline.refresh.test_refresh import recipe, source, stage

__all__ = ["source"]  # a fixture
FULL = State("small", "id", 7, "2026-01-01T00:00:00Z", paces={"clean": Pace(1.5, 10, 20)})


def test_a_state_reads_back_as_it_was_written(root: Path) -> None:
    state.write(root, FULL)
    assert state.read(root, "small") == FULL
    assert state.names(root) == ["small"]
    assert os.listdir(root / ".state") == ["small.json"]


def test_of_a_recipe_that_was_never_refreshed_nothing_is_known_and_nothing_is_written(root: Path) -> None:
    assert state.read(root, "small") == State("small")
    assert state.names(root) == []
    assert not root.exists()


def test_logs_and_locks_beside_it_are_no_recipes(root: Path) -> None:
    state.write(root, FULL)
    for name in ("small.lock", "small.log.jsonl", ".tmp.other.json.1234.5.6"):
        (root / ".state" / name).touch()
    assert state.names(root) == ["small"]


def test_a_lost_state_is_made_from_the_newest_artifact_of_the_name_whoever_made_it(root: Path) -> None:
    for number, day in ((1, "2026-01-03"), (2, "2026-01-05"), (3, "2026-01-04")):
        identity = Identity("tokens", "small", {"number": number}, ())
        made = artifact.build(root, identity, lambda draft: artifact.Content({"n": (draft / "f").write_text("x")}))
        made.artifact.file("run.json").write_text(json.dumps({"generation": number, "finished": f"{day}T00:00:00Z"}))
    assert state.read(root, "small").last_success == "2026-01-05T00:00:00Z"
    assert state.read(root, "other").last_success == ""


@pytest.mark.parametrize("moment", ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01", "石"])
def test_what_is_no_moment_has_no_age(moment: str) -> None:
    assert state.age_hours(moment) is None


def test_an_age_is_in_hours_of_utc_and_never_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    now = time.time()
    try:
        for hours in (0, 1, 30):
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - 3600 * hours))
            assert state.age_hours(moment) == pytest.approx(hours, abs=0.01)
        assert state.age_hours(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + 9999))) == 0
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_killed_refreshes_of_this_recipe_left_goes_and_that_of_others_stays(root: Path) -> None:
    state.write(root, FULL)
    path = state.path_of(root, "small")
    mine, other = files.temporary(path), files.temporary(state.path_of(root, "smaller"))
    for left in (mine, other):
        left.write_bytes(b"{")
    files.remove_temporaries_of(state.path_of(root, "small"))
    assert (path.exists(), mine.exists(), other.exists()) == (True, False, True)


# As a refresh writes it


def run(root: Path, chosen: Recipe, ran: list[str] | None = None) -> refresh.Refreshed:
    return refresh.refresh(root, chosen, stage(root, ran or []), Silent(), Options(), run_id="the run")


def test_a_refresh_writes_how_it_went_and_how_long_each_stage_took(root: Path, source: Path, tmp_path: Path) -> None:
    chosen = recipe(source, tmp_path)
    run(root, chosen)
    kept = state.read(root, "small")
    assert (kept.run_id, kept.pid, kept.result, kept.stage, kept.exit_code) == ("the run", os.getpid(), "built", "", 0)
    assert kept.started <= kept.ended == kept.last_success
    assert list(kept.paces) == ["download", "clean", "train-tokenizer", "tokenize", "train"]
    assert all(pace.seconds >= 0 and pace.bytes > 0 for pace in kept.paces.values())
    run(root, chosen)
    again = state.read(root, "small")
    assert (again.result, again.paces) == ("unchanged", kept.paces)


def test_a_refresh_that_fails_writes_at_which_stage_and_why_and_keeps_when_one_went_well(
    root: Path, source: Path, tmp_path: Path
) -> None:
    run(root, recipe(source, tmp_path))
    good = state.read(root, "small").last_success
    (source / "sample.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd broken, with https://me:secret@example.org/?sig=1")
    with pytest.raises(InkstoneError):
        run(root, recipe(source, tmp_path))
    kept = state.read(root, "small")
    assert (kept.result, kept.stage, kept.exit_code, kept.last_success) == ("failed", "clean", 65, good)
    assert "sample.jsonl.zst" in kept.error
    assert kept.hint


def test_a_refresh_that_may_not_run_now_leaves_the_state_of_the_one_that_does(
    root: Path, source: Path, tmp_path: Path
) -> None:
    chosen = recipe(source, tmp_path)
    run(root, chosen)
    before = state.path_of(root, "small").read_bytes()
    with locks.lock(state.lock_of(root, "small")), pytest.raises(TryAgain):
        run(root, chosen)
    assert state.path_of(root, "small").read_bytes() == before


def test_what_is_said_of_an_error_holds_no_secret(
    root: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StorageFailed("https://me:secret@example.org/x?sig=secret: no", hint="hf_secretsecret")

    monkeypatch.setattr(refresh, "plan", fail)
    with pytest.raises(StorageFailed):
        run(root, recipe(source, tmp_path))
    assert state.read(root, "small").exit_code == 74
    assert b"secret" not in state.path_of(root, "small").read_bytes()


def test_a_state_that_cannot_be_written_holds_no_refresh_up(
    root: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(files.Disk):
        def write(self, handle: object, path: Path, data: bytes | memoryview) -> None:
            if ".state" in path.parts:
                raise OSError(28, "no space left on device", str(path))
            super().write(handle, path, data)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "disk", Full())
    assert run(root, recipe(source, tmp_path)).result == "built"
    assert not state.path_of(root, "small").exists()
    assert [path.name for path in (root / ".state").iterdir()] == ["small.lock"]


def test_only_what_the_recipe_asks_for_of_a_source_is_worked_on(root: Path, source: Path, tmp_path: Path) -> None:
    chosen = recipe(source, tmp_path)
    both = run(root, chosen)
    (source / "sample.jsonl.zst").unlink()
    one = run(root, chosen)
    assert one.result == "built"
    assert one.last
    assert both.last
    assert one.last.ref != both.last.ref
    corpus = artifact.find(root, "corpora", "small")
    assert [entry.name for entry in corpus.manifest.inputs] == ["texts/yanshan.txt"]
