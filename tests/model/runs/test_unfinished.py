"""Unfinished runs: what differs from the plan is said, and --resume never starts another training."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from model.commands import train
from model.runs import plan, unfinished
from model.runs.plan import TrainPlan
from model.training import stage
from model.training.learner import Learner
from pipeline.commands.console import Settings
from pipeline.errors import BadConfig, TryAgain
from pipeline.runtime.progress import SilentProgress
from pipeline.store.artifact import Artifact
from pipeline.store.generations import draft_path, read_run_info
from pipeline.tokens import counting
from tests.support.faults import Command, assert_one_error
from tests.support.training import before_call, no_loss_curve

__all__ = ["no_loss_curve"]  # a fixture

SETTINGS: dict[str, int] = {"steps": 8, "evaluations": 1, "eval_bytes": 200}


@pytest.fixture
def tokens(root: Path) -> Artifact:
    return counting.build(root).artifact


def planned(tokens: Artifact, **settings: int) -> TrainPlan:
    return plan.make_plan(tokens, "mini", name="numbers", settings=SETTINGS | settings)


def stop_at_5(root: Path, training: TrainPlan) -> Path:
    """Stop a training after five steps and return its draft."""
    stopped = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", before_call(5, Learner.step, stopped.set))
        with pytest.raises(TryAgain):
            stage.train(root, training, device="cpu", resume=True, report=lambda line: None, stopped=stopped)
    return draft_path(root, plan.identify(training))


def test_other_training_of_the_name_is_described(root: Path, tokens: Artifact) -> None:
    stop_at_5(root, planned(tokens))
    assert unfinished.describe_others(root, planned(tokens)) == [], "it is resumed"
    (line,) = unfinished.describe_others(root, planned(tokens, steps=3))
    assert line == (
        "an unfinished run numbers at step 5 is another training: steps: 3, not 8; it stays until `prune` deletes it"
    )


def test_other_version_of_torch_is_named(root: Path, tokens: Artifact) -> None:
    draft = stop_at_5(root, planned(tokens))
    info = read_run_info(draft)
    (draft / "run.json").write_bytes(msgspec.json.encode({"made_from": info.made_from, "libraries": {"torch": "1.0"}}))
    draft.rename(draft.with_name(".draft-0123456789abcdef"))
    (line,) = unfinished.describe_others(root, planned(tokens))
    assert f"torch {info.libraries['torch']}, not 1.0; it stays" in line


def test_resume_without_an_unfinished_run_names_the_finished_one(root: Path, tokens: Artifact) -> None:
    with pytest.raises(BadConfig, match="there is no run numbers"):
        unfinished.require_unfinished(root, planned(tokens))
    finished = stage.train(root, planned(tokens, steps=1), device="cpu", resume=True, report=lambda line: None).artifact
    with pytest.raises(BadConfig, match=f"nothing to resume: {finished.ref} is finished") as refused:
        unfinished.require_unfinished(root, planned(tokens))
    assert refused.value.hint == "`inkstone train --continue numbers` trains it further"


def test_command_names_the_unfinished_run(root: Path, tokens: Artifact) -> None:
    stop_at_5(root, planned(tokens))
    refused = Command(root, ("train", "--continue", "numbers")).run_forked()
    assert_one_error(refused, 78, ["the run numbers is not finished", "the command that started it resumes it"])
    settings = Settings(root, quiet=False, json=False, progress=SilentProgress(), run_id="")
    lines = train._dry_run(settings, planned(tokens, steps=3), "cpu", reference="counting").lines
    assert lines[-1].startswith("an unfinished run numbers at step 5 is another training: steps: 3, not 8; ")
