"""Plans of trainings whose preset is not named."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from model.runs import plan
from model.training import stage
from pipeline.errors import TryAgain
from pipeline.store.artifact import Artifact
from pipeline.tokens import counting
from tests.support.training import no_loss_curve

__all__ = ["no_loss_curve"]  # a fixture

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
    assert str(resolved) == "mini with width=64 dropout=0.1 evaluations=1: as the run numbers has it"
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
    by_setting, _ = plan.make_auto_plan(root, tokens, "numbers", settings={"minutes": "9"}, device="cpu")
    assert by_setting.preset.train.minutes == 9
