"""State of refreshes: written for people and monitors, never needed by a stage."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InkstoneError, StorageFailed, TryAgain
from pipeline.refresh import refresh, state
from pipeline.refresh.plan import RefreshOptions
from pipeline.refresh.recipe import Recipe
from pipeline.refresh.state import RefreshState, StageTiming
from pipeline.runtime.progress import SilentProgress
from pipeline.store import artifact, files, locks
from pipeline.store.leftovers import remove_leftovers_of
from pipeline.store.manifest import Identity
from tests.pipeline.refresh.test_refresh import recipe, source, stage
from tests.pipeline.store.test_artifact import in_child

__all__ = ["source"]  # a fixture
FULL = RefreshState("small", "id", 7, "2026-01-01T00:00:00Z", paces={"clean": StageTiming(1.5, 10, 20)})


def test_state_round_trips(root: Path) -> None:
    state.write(root, FULL)
    assert state.read(root, "small") == FULL
    assert state.recipe_names(root) == ["small"]
    assert os.listdir(root / ".state") == ["small.json"]


def test_reading_state_of_unknown_recipe_returns_empty_state(root: Path) -> None:
    assert state.read(root, "small") == RefreshState("small")
    assert state.recipe_names(root) == []
    assert not root.exists()


def test_logs_and_locks_are_not_listed_as_recipes(root: Path) -> None:
    state.write(root, FULL)
    for name in ("small.lock", "small.log.jsonl", ".tmp.other.json.1234.5.6"):
        (root / ".state" / name).touch()
    assert state.recipe_names(root) == ["small"]


def test_lost_state_is_derived_from_newest_artifact(root: Path) -> None:
    for number, day in ((1, "2026-01-03"), (2, "2026-01-05"), (3, "2026-01-04")):
        identity = Identity("tokens", "small", {"number": number}, ())
        built = artifact.build(root, identity, lambda draft: artifact.StageOutput({"n": (draft / "f").write_text("x")}))
        built.artifact.file("run.json").write_text(json.dumps({"generation": number, "finished": f"{day}T00:00:00Z"}))
    assert state.read(root, "small").last_success == "2026-01-05T00:00:00Z"
    assert state.read(root, "other").last_success == ""


@pytest.mark.parametrize("timestamp", ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01", "石"])
def test_invalid_timestamp_has_no_age(timestamp: str) -> None:
    assert state.age_hours(timestamp) is None


def test_age_is_in_hours_of_utc_and_not_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    now = time.time()
    try:
        for hours in (0, 1, 30):
            timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - 3600 * hours))
            assert state.age_hours(timestamp) == pytest.approx(hours, abs=0.01)
        assert state.age_hours(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + 9999))) == 0
    finally:
        monkeypatch.undo()
        time.tzset()


def test_only_leftovers_of_this_recipe_are_removed(root: Path) -> None:
    state.write(root, FULL)
    path = state.path_of(root, "small")

    def killed_writer() -> None:
        for recipe_name in ("small", "smaller"):
            files.temporary_path(state.path_of(root, recipe_name)).write_bytes(b"{")

    assert in_child(killed_writer) == 0
    remove_leftovers_of(path)
    names = sorted(os.listdir(path.parent))
    assert [name.partition(".json")[0] for name in names] == [".tmp.smaller", "small"]


# State written by a refresh


def run(root: Path, recipe: Recipe, trained_on: list[str] | None = None, **options: Any) -> refresh.RefreshResult:
    return refresh.refresh(
        root, recipe, stage(root, trained_on or []), SilentProgress(), RefreshOptions(**options), run_id="the run"
    )


def test_refresh_records_result_and_stage_timings(root: Path, source: Path, tmp_path: Path) -> None:
    small_recipe = recipe(source, tmp_path)
    run(root, small_recipe)
    record = state.read(root, "small")
    assert (record.run_id, record.pid, record.result, record.stage, record.exit_code) == (
        "the run",
        os.getpid(),
        "built",
        "",
        0,
    )
    assert record.started <= record.ended == record.last_success
    assert list(record.paces) == ["download", "clean", "train-tokenizer", "tokenize", "train"]
    assert all(pace.seconds >= 0 and pace.bytes > 0 for pace in record.paces.values())
    run(root, small_recipe)
    second = state.read(root, "small")
    assert (second.result, second.paces) == ("unchanged", record.paces)


def test_failed_refresh_records_stage_and_error_and_keeps_last_success(
    root: Path, source: Path, tmp_path: Path
) -> None:
    run(root, recipe(source, tmp_path))
    last_success = state.read(root, "small").last_success
    broken = b"\x28\xb5\x2f\xfd broken, with https://me:secret@example.org/?sig=1"
    (source / "sample.jsonl.zst").write_bytes(broken.ljust((source / "sample.jsonl.zst").stat().st_size))
    with pytest.raises(InkstoneError):
        run(root, recipe(source, tmp_path))
    record = state.read(root, "small")
    assert (record.result, record.stage, record.exit_code, record.last_success) == ("failed", "clean", 65, last_success)
    assert "sample.jsonl.zst" in record.error
    assert record.hint


def test_refused_refresh_leaves_state_unchanged(root: Path, source: Path, tmp_path: Path) -> None:
    small_recipe = recipe(source, tmp_path)
    run(root, small_recipe)
    before = state.path_of(root, "small").read_bytes()
    with locks.lock(state.lock_of(root, "small")), pytest.raises(TryAgain):
        run(root, small_recipe)
    assert state.path_of(root, "small").read_bytes() == before


def test_recorded_error_contains_no_secret(
    root: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StorageFailed("https://me:secret@example.org/x?sig=secret: no", hint="hf_secretsecret")

    monkeypatch.setattr(refresh, "plan", fail)
    with pytest.raises(StorageFailed):
        run(root, recipe(source, tmp_path))
    assert state.read(root, "small").exit_code == 74
    assert b"secret" not in state.path_of(root, "small").read_bytes()


def test_unwritable_state_does_not_stop_refresh(
    root: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(files.Disk):
        def write(self, handle: object, path: Path, data: bytes | memoryview) -> None:
            if ".state" in path.parts:
                raise OSError(28, "no space left on device", str(path))
            super().write(handle, path, data)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "disk", FullDisk())
    assert run(root, recipe(source, tmp_path)).result == "built"
    assert not state.path_of(root, "small").exists()
    assert [path.name for path in (root / ".state").iterdir()] == ["small.lock"]


def test_only_selected_files_of_source_are_used(root: Path, source: Path, tmp_path: Path) -> None:
    small_recipe = recipe(source, tmp_path)
    both = run(root, small_recipe)
    (source / "sample.jsonl.zst").unlink()
    one = run(root, small_recipe, allow_shrink=True)
    assert one.result == "built"
    assert one.last
    assert both.last
    assert one.last.ref != both.last.ref
    corpus = artifact.find(root, "corpora", "small")
    assert [entry.name for entry in corpus.manifest.inputs] == ["texts/yanshan.txt"]
