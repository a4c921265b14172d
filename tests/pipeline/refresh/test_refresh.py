"""Refresh runs what is stale and nothing else; its plan says so before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadConfig, TryAgain
from pipeline.maintenance import status, verify
from pipeline.refresh import plan, refresh, state
from pipeline.refresh import recipe as recipes
from pipeline.refresh.plan import Options
from pipeline.refresh.recipe import Recipe
from pipeline.refresh.stages import STAGES, Chain, TrainStage
from pipeline.runtime.progress import Silent
from pipeline.store import artifact, locks
from pipeline.store.artifact import Artifact, Built, Content
from pipeline.store.manifest import Identity

SAMPLE = Path(__file__).resolve().parents[3] / "pipeline" / "sample"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of two files that a test may change."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("yanshan.txt", "sample.jsonl.zst"):
        shutil.copy(SAMPLE / name, folder / name)
    return folder


def recipe(source: Path, tmp_path: Path, **sections: str) -> Recipe:
    text = f"""
name = "small"
[download]
source = "{source}"
[clean]
unit = "{sections.get("unit", "paragraph")}"
[tokenizer]
kind = "{sections.get("kind", "char")}"
vocab_size = {sections.get("vocab_size", "0")}
[tokenize]
val_fraction = {sections.get("val_fraction", "0.1")}
[train]
preset = "sample"
"""
    path = tmp_path / "small.toml"
    path.write_text(text, encoding="utf-8")
    return recipes.load(path)


def stage(root: Path, ran: list[str]) -> TrainStage:
    """A training that only writes a file: the model's own is tested where the model is."""

    def identify(tokens: Artifact) -> Identity:
        return Identity("runs", "small", {}, (tokens.as_input("tokens"),))

    def run(tokens: Artifact) -> Built:
        def write(draft: Path) -> Content:
            ran.append(tokens.ref)
            (draft / "weights").write_bytes(b"\x00")
            return Content({})

        return artifact.build(root, identify(tokens), write)

    return TrainStage(lambda: None, identify, run)


def run(root: Path, chosen: Recipe, train: TrainStage, **options: Any) -> refresh.Refreshed:
    return refresh.refresh(root, chosen, train, Silent(), Options(**options))


def planned(root: Path, chosen: Recipe, train: TrainStage, **options: Any) -> plan.Plan:
    return plan.plan(Chain(root, chosen, train, Silent(), 1), Options(**options), {})


def results(done: refresh.Refreshed | plan.Plan) -> dict[str, str]:
    return {step.stage: step.result for step in done.steps}


def test_a_refresh_builds_every_stage_and_a_second_one_none(root: Path, source: Path, tmp_path: Path) -> None:
    ran: list[str] = []
    chosen = recipe(source, tmp_path)
    first = run(root, chosen, stage(root, ran))
    assert set(results(first).values()) == {"built"}
    assert list(results(first)) == list(STAGES)
    second = run(root, chosen, stage(root, ran))
    assert set(results(second).values()) == {"unchanged"}
    assert len(ran) == 1


def test_the_plan_says_what_a_refresh_then_does(root: Path, source: Path, tmp_path: Path) -> None:
    chosen, train = recipe(source, tmp_path), stage(root, [])
    first = planned(root, chosen, train)
    assert set(results(first).values()) == {"stale"}
    assert first.steps[0].why.startswith("2 of 2 files: sample.jsonl.zst new")
    assert first.steps[0].fetch == sum(path.stat().st_size for path in source.iterdir())
    assert not list(root.glob("*"))
    run(root, chosen, train)
    assert set(results(planned(root, chosen, train)).values()) == {"fresh"}

    other = recipe(source, tmp_path, val_fraction="0.2")
    expected = {
        "download": "fresh",
        "clean": "fresh",
        "train-tokenizer": "fresh",
        "tokenize": "stale",
        "train": "stale",
    }
    assert results(planned(root, other, train)) == expected
    done = run(root, other, train)
    assert [step.stage for step in done.steps if step.result == "built"] == ["tokenize", "train"]


def test_going_back_to_old_options_finds_the_old_generation(root: Path, source: Path, tmp_path: Path) -> None:
    train = stage(root, [])
    old = run(root, recipe(source, tmp_path), train).last
    run(root, recipe(source, tmp_path, unit="sentence"), train)
    back = planned(root, recipe(source, tmp_path), train)
    assert [step.why.split()[0] for step in back.steps if step.result == "stale"][:2] == ["back", "clean"]
    again = run(root, recipe(source, tmp_path), train)
    assert again.result == "unchanged"
    assert artifact.current(root, "runs", "small") == old


def test_a_changed_source_file_is_noticed_and_everything_after_it_is_made_anew(
    root: Path, source: Path, tmp_path: Path
) -> None:
    chosen, train = recipe(source, tmp_path), stage(root, [])
    run(root, chosen, train)
    with open(source / "yanshan.txt", "a", encoding="utf-8") as book:
        book.write("　　后来又有一段。\n")
    assert planned(root, chosen, train).steps[0].why.startswith("1 of 2 files: yanshan.txt changed")
    done = run(root, chosen, train)
    assert results(done)["clean"] == results(done)["tokenize"] == results(done)["train"] == "built"


def test_through_stops_after_the_stage_that_it_names(root: Path, source: Path, tmp_path: Path) -> None:
    chosen, train = recipe(source, tmp_path), stage(root, [])
    done = run(root, chosen, train, through="train-tokenizer")
    assert list(results(done)) == ["download", "clean", "train-tokenizer"]
    assert artifact.names(root, "tokens") == []
    with pytest.raises(BadConfig, match="no stage 'tran'"):
        run(root, chosen, train, through="tran")


def test_two_refreshes_of_one_recipe_do_not_run_at_once(root: Path, source: Path, tmp_path: Path) -> None:
    root.mkdir()
    with locks.lock(state.lock_of(root, "small")), pytest.raises(TryAgain) as caught:
        run(root, recipe(source, tmp_path), stage(root, []))
    assert caught.value.exit_code == 75


def test_status_lists_every_artifact_and_sees_a_missing_file(root: Path, source: Path, tmp_path: Path) -> None:
    done = run(root, recipe(source, tmp_path), stage(root, []))
    rows = {row.ref.rsplit("/", 1)[0] if row.ref.count("/") > 1 else row.ref: row for row in status.status(root)}
    assert set(rows) == {"raw/texts", "corpora/small", "tokenizers/small", "tokens/small", "runs/small"}
    assert {row.state for row in rows.values()} == {"current"}
    assert done.last
    (done.last.path / "weights").unlink()
    assert [row.state for row in status.status(root) if row.ref == done.last.ref] == ["damaged"]


def test_verify_finds_one_flipped_byte_anywhere_only_when_it_is_deep(root: Path, source: Path, tmp_path: Path) -> None:
    run(root, recipe(source, tmp_path), stage(root, []))
    assert all(not problems for _, problems in verify.verify(root, deep=True))
    victims = [path for path in root.rglob("*.bin") if path.stat().st_size] + [root / "raw" / "texts" / "yanshan.txt"]
    for victim in victims:
        status_before = victim.stat()
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        os.utime(victim, ns=(status_before.st_atime_ns, status_before.st_mtime_ns))
        assert all(not problems for _, problems in verify.verify(root))
        found = [problem for _, problems in verify.verify(root, deep=True) for problem in problems]
        assert len(found) == 1
        assert victim.name in found[0]
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        os.utime(victim, ns=(status_before.st_atime_ns, status_before.st_mtime_ns))


def test_a_recipe_that_cannot_be_is_refused_before_any_work(root: Path, source: Path, tmp_path: Path) -> None:
    def refuse() -> None:
        raise BadConfig("no such preset")

    good = stage(root, [])
    with pytest.raises(BadConfig, match="no unit 'para'"):
        recipe(source, tmp_path, unit="para")
    wrong = [
        (recipe(source, tmp_path, kind="bpf"), good),
        (recipe(source, tmp_path, val_fraction="7.0"), good),
        (recipe(source, tmp_path), TrainStage(refuse, good.identify, good.run)),
    ]
    for chosen, train in wrong:
        with pytest.raises(BadConfig):
            planned(root, chosen, train)
        with pytest.raises(BadConfig):
            run(root, chosen, train)
    assert not (root / "raw").exists()


def test_one_torn_manifest_hides_nothing_else(root: Path, source: Path, tmp_path: Path) -> None:
    done = run(root, recipe(source, tmp_path), stage(root, []))
    assert done.last
    (done.last.path / "manifest.json").write_bytes(b"{")
    assert [row.state for row in status.status(root)].count("current") == 4
    wrong = [name for name, problems in verify.verify(root) if problems]
    assert wrong == [done.last.ref]


def test_verify_knows_a_name_a_kind_and_what_status_prints(root: Path, source: Path, tmp_path: Path) -> None:
    run(root, recipe(source, tmp_path), stage(root, []))
    every = [row.ref for row in status.status(root)]
    assert [name for name, _ in verify.verify(root)] == every
    assert [name for name, _ in verify.verify(root, "small")] == [ref for ref in every if "/small/" in ref]
    assert [name for name, _ in verify.verify(root, "raw/texts")] == ["raw/texts"]
    for ref in every:
        assert [name for name, _ in verify.verify(root, ref)] == [ref]
