"""Refresh: only stale stages run, exactly as the plan says."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.errors import BadConfig, TryAgain
from pipeline.maintenance import retention, status, verify
from pipeline.refresh import plan, refresh, state
from pipeline.refresh import recipe as recipes
from pipeline.refresh.plan import RefreshOptions
from pipeline.refresh.recipe import Recipe
from pipeline.refresh.stages import STAGES, Chain, TrainStage
from pipeline.runtime.progress import SilentProgress
from pipeline.store import artifact, locks
from pipeline.store.artifact import Artifact, BuildResult, StageOutput
from pipeline.store.manifest import Identity
from tests.support.notes import Notes

SAMPLE = Path(__file__).resolve().parents[3] / "pipeline" / "sample"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder with two files that a test may change."""
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


def stage(root: Path, trained_on: list[str]) -> TrainStage:
    """Return a training stage that only writes a file; the real one is tested with the model."""

    def identify(tokens: Artifact) -> Identity:
        return Identity("runs", "small", {}, (tokens.as_input("tokens"),))

    def run(tokens: Artifact) -> BuildResult:
        def write(draft: Path) -> StageOutput:
            trained_on.append(tokens.ref)
            (draft / "weights").write_bytes(b"\x00")
            return StageOutput({})

        return artifact.build(root, identify(tokens), write)

    return TrainStage(lambda: None, identify, run)


def run(root: Path, recipe: Recipe, train: TrainStage, **options: Any) -> refresh.RefreshResult:
    return refresh.refresh(root, recipe, train, SilentProgress(), RefreshOptions(**options))


def make_plan(root: Path, recipe: Recipe, train: TrainStage, **options: Any) -> plan.RefreshPlan:
    return plan.plan(Chain(root, recipe, train, SilentProgress(), 1), RefreshOptions(**options), {})


def artifact_of(outcome: refresh.RefreshResult, stage: str) -> str:
    return next(step.what for step in outcome.steps if step.stage == stage)


def results(outcome: refresh.RefreshResult | plan.RefreshPlan) -> dict[str, str]:
    return {step.stage: step.result for step in outcome.steps}


def test_second_refresh_builds_nothing(root: Path, source: Path, tmp_path: Path) -> None:
    trained_on: list[str] = []
    small_recipe = recipe(source, tmp_path)
    first = run(root, small_recipe, stage(root, trained_on))
    assert set(results(first).values()) == {"built"}
    assert list(results(first)) == list(STAGES)
    second = run(root, small_recipe, stage(root, trained_on))
    assert set(results(second).values()) == {"unchanged"}
    assert len(trained_on) == 1


def test_warnings_of_a_new_corpus_are_printed_once(root: Path, source: Path, tmp_path: Path) -> None:
    ads = "雨下了一夜。\n本书由某某网整理，更多免费小说请访问 www.example.com\n"
    (source / "ads.txt").write_text(ads, encoding="utf-8")
    progress = Notes()
    for _ in range(2):
        refresh.refresh(root, recipe(source, tmp_path), stage(root, []), progress, RefreshOptions(through="clean"))
    (warning,) = [line for line in progress.lines if line.startswith("clean            warning    SITE ADS in 1 lines")]
    assert "--boilerplate site-ads" in warning


def test_plan_predicts_what_refresh_does(root: Path, source: Path, tmp_path: Path) -> None:
    small_recipe, train = recipe(source, tmp_path), stage(root, [])
    first = make_plan(root, small_recipe, train)
    assert set(results(first).values()) == {"stale"}
    assert first.steps[0].why.startswith("2 of 2 files: sample.jsonl.zst new")
    assert first.steps[0].fetch == sum(path.stat().st_size for path in source.iterdir())
    assert not list(root.glob("*"))
    run(root, small_recipe, train)
    assert set(results(make_plan(root, small_recipe, train)).values()) == {"fresh"}

    other = recipe(source, tmp_path, val_fraction="0.2")
    expected = {
        "download": "fresh",
        "clean": "fresh",
        "train-tokenizer": "fresh",
        "tokenize": "stale",
        "train": "stale",
    }
    assert results(make_plan(root, other, train)) == expected
    refreshed = run(root, other, train)
    assert [step.stage for step in refreshed.steps if step.result == "built"] == ["tokenize", "train"]


def test_old_options_make_old_generation_current_again(root: Path, source: Path, tmp_path: Path) -> None:
    train = stage(root, [])
    old = run(root, recipe(source, tmp_path), train).last
    run(root, recipe(source, tmp_path, unit="sentence"), train)
    back = make_plan(root, recipe(source, tmp_path), train)
    assert [step.why.split()[0] for step in back.steps if step.result == "stale"][:2] == ["back", "clean"]
    again = run(root, recipe(source, tmp_path), train)
    assert again.result == "unchanged"
    assert artifact.current(root, "runs", "small") == old


def test_changed_source_file_rebuilds_all_later_stages(root: Path, source: Path, tmp_path: Path) -> None:
    small_recipe, train = recipe(source, tmp_path), stage(root, [])
    run(root, small_recipe, train)
    with open(source / "yanshan.txt", "a", encoding="utf-8") as book:
        book.write("　　后来又有一段。\n")
    assert make_plan(root, small_recipe, train).steps[0].why.startswith("1 of 2 files: yanshan.txt changed")
    refreshed = run(root, small_recipe, train)
    assert results(refreshed)["clean"] == results(refreshed)["tokenize"] == results(refreshed)["train"] == "built"


def append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as book:
        book.write(text)


def test_tokenizer_is_kept_until_it_is_asked_for_anew(root: Path, source: Path, tmp_path: Path) -> None:
    small_recipe, train, progress = recipe(source, tmp_path), stage(root, []), Notes()
    first = artifact_of(run(root, small_recipe, train), "train-tokenizer")
    append(source / "yanshan.txt", f"　　又有{'龘' * 400}。\n")
    refreshed = refresh.refresh(root, small_recipe, train, progress, RefreshOptions())
    assert results(refreshed)["tokenize"] == "built"
    assert artifact_of(refreshed, "train-tokenizer") == first
    (line,) = [line for line in progress.lines if line.startswith("tokenizer kept: ")]
    now, before = re.findall(r"0\.99 characters per token, (\d\.\d\d)% unknown", line)
    assert before == "0.00"
    assert float(now) == pytest.approx(
        100 * 400 / artifact.find(root, "tokens", "small").manifest.counts["tokens"], abs=0.01
    )
    section = msgspec.structs.replace(small_recipe.tokenizer, keep=False)
    retrained = run(root, msgspec.structs.replace(small_recipe, tokenizer=section), train)
    assert artifact_of(retrained, "train-tokenizer") != first
    assert set(results(run(root, small_recipe, train)).values()) == {"unchanged"}


@pytest.mark.parametrize(
    ("sections", "reason"),
    [({"vocab_size": "900"}, r"vocab_size [\d,]+ → 900"), ({"kind": "bpe", "vocab_size": '"auto"'}, "kind char → bpe")],
)
def test_tokenizer_of_another_kind_or_size_is_trained(
    root: Path, source: Path, tmp_path: Path, sections: dict[str, str], reason: str
) -> None:
    train = stage(root, [])
    run(root, recipe(source, tmp_path), train, through="train-tokenizer")
    append(source / "yanshan.txt", "　　又有一段。\n")
    planned = make_plan(root, recipe(source, tmp_path, **sections), train)
    (step,) = [step for step in planned.steps if step.stage == "train-tokenizer"]
    assert step.result == "stale"
    assert re.fullmatch(f"clean is stale; {reason}", step.why)


def test_damaged_tokenizer_is_not_kept(root: Path, source: Path, tmp_path: Path) -> None:
    small_recipe, train = recipe(source, tmp_path), stage(root, [])
    run(root, small_recipe, train)
    trained = artifact.find(root, "tokenizers", "small")
    (trained.path / "tokenizer.json").write_bytes(b"{}")
    assert results(run(root, small_recipe, train))["train-tokenizer"] == "built"
    assert artifact.find_problems(artifact.find(root, "tokenizers", "small")) == []


def test_rolled_back_tokens_stay_and_the_stages_after_use_the_current_ones(
    root: Path, source: Path, tmp_path: Path
) -> None:
    small_recipe, trained_on = recipe(source, tmp_path), list[str]()
    run(root, small_recipe, stage(root, trained_on))
    first = artifact.find(root, "tokens", "small")
    append(source / "yanshan.txt", "　　又有一段。\n")
    run(root, small_recipe, stage(root, trained_on))
    second = artifact.find(root, "tokens", "small")
    retention.rollback(root, "tokens/small")
    night = run(root, small_recipe, stage(root, trained_on))
    run_key = artifact.find(root, "runs", "small").manifest.key
    assert night.notes == [
        f"{second.ref} was rolled back; nothing to do until the text changes",
        f"back to {run_key}, which exists already",
    ]
    assert artifact.find(root, "tokens", "small") == first
    assert trained_on == [first.ref, second.ref], "the run on the first tokens exists"
    assert artifact.find(root, "runs", "small").manifest.inputs == (first.as_input("tokens"),)


def test_through_stops_after_the_named_stage(root: Path, source: Path, tmp_path: Path) -> None:
    small_recipe, train = recipe(source, tmp_path), stage(root, [])
    refreshed = run(root, small_recipe, train, through="train-tokenizer")
    assert list(results(refreshed)) == ["download", "clean", "train-tokenizer"]
    assert artifact.list_names(root, "tokens") == []
    with pytest.raises(BadConfig, match="no stage 'tran'"):
        run(root, small_recipe, train, through="tran")


def test_second_concurrent_refresh_raises_try_again(root: Path, source: Path, tmp_path: Path) -> None:
    root.mkdir()
    with locks.lock(state.lock_of(root, "small")), pytest.raises(TryAgain) as caught:
        run(root, recipe(source, tmp_path), stage(root, []))
    assert caught.value.exit_code == 75


def test_status_lists_all_artifacts_and_detects_missing_file(root: Path, source: Path, tmp_path: Path) -> None:
    refreshed = run(root, recipe(source, tmp_path), stage(root, []))
    rows = {row.ref.rsplit("/", 1)[0] if row.ref.count("/") > 1 else row.ref: row for row in status.status(root)}
    assert set(rows) == {"raw/texts", "corpora/small", "tokenizers/small", "tokens/small", "runs/small"}
    assert {row.state for row in rows.values()} == {"current"}
    assert refreshed.last
    (refreshed.last.path / "weights").unlink()
    assert [row.state for row in status.status(root) if row.ref == refreshed.last.ref] == ["damaged"]


def test_only_deep_verify_detects_flipped_byte(root: Path, source: Path, tmp_path: Path) -> None:
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
        (problem,) = [problem for _, problems in verify.verify(root, deep=True) for problem in problems]
        assert victim.name in problem
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        os.utime(victim, ns=(status_before.st_atime_ns, status_before.st_mtime_ns))


def test_invalid_recipe_raises_bad_config_before_any_work(root: Path, source: Path, tmp_path: Path) -> None:
    def refuse() -> None:
        raise BadConfig("no such preset")

    good = stage(root, [])
    with pytest.raises(BadConfig, match=r"clean\.unit: unknown unit 'para'"):
        recipe(source, tmp_path, unit="para")
    with pytest.raises(BadConfig, match=r"tokenize\.val_fraction: .*7\.0"):
        recipe(source, tmp_path, val_fraction="7.0")
    with pytest.raises(BadConfig, match=r"tokenizer\.kind: unknown tokenizer kind 'bpf'"):
        recipe(source, tmp_path, kind="bpf")
    for start in (make_plan, run):
        with pytest.raises(BadConfig, match="no such preset"):
            start(root, recipe(source, tmp_path), TrainStage(refuse, good.identify, good.run))
    assert not (root / "raw").exists()


def test_torn_manifest_does_not_hide_other_artifacts(root: Path, source: Path, tmp_path: Path) -> None:
    refreshed = run(root, recipe(source, tmp_path), stage(root, []))
    assert refreshed.last
    (refreshed.last.path / "manifest.json").write_bytes(b"{")
    assert [row.state for row in status.status(root)].count("current") == 4
    damaged = [name for name, problems in verify.verify(root) if problems]
    assert damaged == [refreshed.last.ref]


def test_verify_accepts_name_kind_and_status_reference(root: Path, source: Path, tmp_path: Path) -> None:
    run(root, recipe(source, tmp_path), stage(root, []))
    refs = [row.ref for row in status.status(root)]
    assert [name for name, _ in verify.verify(root)] == refs
    assert [name for name, _ in verify.verify(root, "small")] == [ref for ref in refs if "/small/" in ref]
    assert [name for name, _ in verify.verify(root, "raw/texts")] == ["raw/texts"]
    for ref in refs:
        assert [name for name, _ in verify.verify(root, ref)] == [ref]
