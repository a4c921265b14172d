"""Plans of trainings whose preset is not named, and of those that continue a run."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from model.runs import plan
from model.runs.continuing import continue_published, describe_start, plan_continuation
from model.runs.plan import TrainPlan
from model.training import stage
from pipeline.errors import BadConfig, TryAgain
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Integers
from pipeline.tokens import counting
from tests.support.exchanging import GPT2, publish_run
from tests.support.faults import Command, assert_one_error
from tests.support.tokenizing import run as tokenize
from tests.support.tokenizing import some
from tests.support.training import no_loss_curve, preloaded

__all__ = ["no_loss_curve", "preloaded"]  # fixtures

SETTINGS = {"width": 64, "evaluations": 1, "dropout": 0.1}


@pytest.fixture
def tokens(root: Path) -> Artifact:
    return counting.build(root).artifact


def test_new_name_gets_a_preset_for_its_tokens(root: Path, tokens: Artifact) -> None:
    resolved = plan.resolve_auto(root, tokens, "numbers", None, "cpu")
    assert resolved.preset_name == "small"
    assert resolved.settings["block_size"] == 64
    assert "10,000 training tokens" in str(resolved)
    assert plan.resolve_auto(root, tokens, "numbers", 7.0, "cpu").minutes == 7.0


def test_name_of_a_run_keeps_its_preset_settings_and_length(root: Path, tokens: Artifact) -> None:
    planned = plan.make_plan(tokens, "mini", name="numbers", steps=3, settings=SETTINGS)
    stage.train(root, planned, device="cpu", resume=True, report=lambda line: None)
    resolved = plan.resolve_auto(root, tokens, "numbers", None, "cpu")
    assert (resolved.preset_name, resolved.settings) == ("mini", {**SETTINGS, "steps": 3})
    assert str(resolved) == "mini with width=64 dropout=0.1 evaluations=1: as in the run numbers"
    again = plan.make_plan(tokens, resolved.preset_name, name="numbers", settings=resolved.settings)
    assert plan.identify(again).key == plan.identify(planned).key

    longer = plan.resolve_auto(root, tokens, "numbers", 2.0, "cpu")
    assert (longer.settings, longer.minutes) == (SETTINGS, 2.0)


def test_name_of_an_unfinished_run_keeps_its_preset(root: Path, tokens: Artifact) -> None:
    planned, stopped = plan.make_plan(tokens, "mini", name="numbers", steps=3, settings=SETTINGS), threading.Event()
    stopped.set()
    with pytest.raises(TryAgain):
        stage.train(root, planned, device="cpu", resume=True, report=lambda line: None, stopped=stopped)
    resolved = plan.resolve_auto(root, tokens, "numbers", None, "cpu")
    assert (resolved.preset_name, resolved.settings["steps"]) == ("mini", 3)
    assert "unfinished run numbers" in resolved.reason


def test_auto_plan_takes_a_length_and_settings_of_the_user(root: Path, tokens: Artifact) -> None:
    planned, resolved = plan.make_auto_plan(root, tokens, "numbers", steps=7, settings={"width": 64}, device="cpu")
    assert (planned.name, planned.preset_name, resolved.preset_name) == ("numbers", "small", "small")
    assert (planned.preset.train.steps, planned.preset.train.minutes, planned.preset.model.width) == (7, 0.0, 64)
    assert plan.make_auto_plan(root, tokens, "numbers", device="cpu")[0].preset.train.minutes == resolved.minutes
    assert (resolved.settings["epochs"], planned.preset.train.epochs) == (8.0, 0.0), "steps are not cut to epochs"
    both, _ = plan.make_auto_plan(root, tokens, "numbers", steps=7, settings={"epochs": "3"}, device="cpu")
    assert (both.preset.train.steps, both.preset.train.epochs) == (7, 3.0)
    by_setting, _ = plan.make_auto_plan(root, tokens, "numbers", settings={"minutes": "9"}, device="cpu")
    assert by_setting.preset.train.minutes == 9


# Continuing


def train(root: Path, planned: TrainPlan) -> Artifact:
    return stage.train(root, planned, device="cpu", resume=True, report=lambda line: None).artifact


def short(tokens: Artifact, **settings: object) -> TrainPlan:
    return plan.make_plan(tokens, "mini", name="numbers", settings={**SETTINGS, "steps": 3, **settings})


def test_finished_run_continues_as_a_new_generation_of_its_name(root: Path, tokens: Artifact) -> None:
    first = train(root, short(tokens))
    planned = plan_continuation(first, tokens, steps=2)
    assert describe_start(planned) == f"continues from step 3 of {first.ref}"
    assert (planned.preset_name, planned.preset.model.width, planned.preset.train.steps) == ("mini", 64, 2)
    second = train(root, planned)
    assert second.manifest.name == "numbers"
    assert first.as_input("parent") in second.manifest.inputs
    assert describe_start(plan_continuation(second, tokens)) == f"continues from step 5 of {second.ref}"
    assert plan_continuation(second, tokens).preset.train.steps == 2, "its own length"


def test_continuing_refuses_another_tokenizer_and_an_imported_run(root: Path, tokens: Artifact, tmp_path: Path) -> None:
    first = train(root, short(tokens))
    other = tokenize(root, some(tmp_path)).artifact
    with pytest.raises(BadConfig, match="integers:100"):
        plan_continuation(first, other)
    imported = publish_run(root, replace(GPT2, vocab_size=100), Integers(100), name="imported")
    with pytest.raises(BadConfig, match="was not trained here") as refused:
        plan_continuation(imported, tokens)
    assert refused.value.hint == "`inkstone train --from imported --name NEW` starts from its weights"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"learning_rate": 0.5}, "learning_rate: 0.5, not 0.003"), ({"steps": 4}, "steps: 4, not 3")],
)
def test_plan_gives_the_reason_for_starting_from_scratch(
    root: Path, tokens: Artifact, settings: dict[str, object], reason: str
) -> None:
    assert describe_start(continue_published(root, short(tokens))) == "", "there is no run of this name"
    train(root, short(tokens))
    planned = continue_published(root, short(tokens, **settings))
    assert describe_start(planned) == f"starts from scratch: {reason}"


def test_run_that_started_from_another_is_recognised_and_continued(root: Path, tokens: Artifact) -> None:
    parent = train(root, short(tokens))
    tuned = train(root, plan.make_plan(tokens, "mini", parent=parent, name="tuned", steps=2))
    planned, _ = plan.make_auto_plan(root, tokens, "tuned")
    assert plan.identify(continue_published(root, planned)).key == tuned.manifest.key
    newer = replace(planned, tokens=replace(tokens, digest="of newer tokens"))
    assert describe_start(continue_published(root, newer)) == f"continues from step 5 of {tuned.ref}"


def test_command_continues_a_run_by_its_name(root: Path, tokens: Artifact) -> None:
    first = train(root, short(tokens))
    output = Command(root, ("train", "--continue", "numbers", "--steps", "2", "--device", "cpu")).run_forked()
    assert output.code == 0, output.err
    assert f"continues from step 3 of {first.ref}" in output.err
    assert artifact.find(root, "runs", "numbers").manifest.options["train"]["steps"] == 2
    for option in (("--set", "dropout=0.5"), ("--preset", "mini"), ("--name", "other"), ("--from", "numbers")):
        refused = Command(root, ("train", "--continue", "numbers", *option)).run_forked()
        assert_one_error(refused, 78, ["--continue", option[0], "--from RUN --name NEW"])
