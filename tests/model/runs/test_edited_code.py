"""Unfinished runs whose source code was edited: an error names the file, and --resume accepts it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from model.runs import plan, unfinished
from model.runs.plan import TrainPlan
from model.training import stage
from pipeline.errors import BadConfig, TryAgain
from pipeline.store import artifact
from pipeline.store.artifact import BuildResult
from pipeline.store.generations import draft_path
from pipeline.tokens import counting
from tests.support.editing import edit, reread, sources
from tests.support.training import no_loss_curve

__all__ = ["no_loss_curve", "sources"]

GPT = "model/network/gpt.py"


def make_plan(root: Path) -> TrainPlan:
    tokens = counting.build(root).artifact
    return plan.make_plan(tokens, "mini", name="numbers", steps=3, settings={"evaluations": 1})


def train(root: Path, planned: TrainPlan, lines: list[str] | None = None, **options: object) -> BuildResult:
    report = (lines if lines is not None else []).append
    return stage.train(root, planned, device="cpu", resume=True, report=report, **options)  # type: ignore[arg-type]


@pytest.fixture
def planned(root: Path, sources: Path) -> TrainPlan:
    """Return the plan of a run that was stopped, and whose network was edited since."""
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(TryAgain):
        train(root, make_plan(root), stopped=stopped)
    edit(sources / GPT)
    return make_plan(root)


def test_edited_code_is_an_error_that_names_the_file(root: Path, planned: TrainPlan) -> None:
    with pytest.raises(BadConfig, match=GPT) as raised:
        unfinished.resume_edited(root, unfinished.pin_unfinished(root, planned), accept=False)
    assert "--resume" in raised.value.hint


def test_edited_code_can_be_accepted(root: Path, planned: TrainPlan) -> None:
    old, lines = unfinished.edited_files(root, planned)[0], list[str]()
    assert old is not None
    checkpoint = next((old / "checkpoints").iterdir())
    assert unfinished.resume_edited(root, planned, accept=True) == [GPT]
    draft = draft_path(root, plan.identify(planned))
    assert (draft / "checkpoints" / checkpoint.name).is_dir()
    assert not old.exists()
    unfinished.require_unfinished(root, planned)
    assert unfinished.resume_edited(root, planned, accept=False) == []
    run = train(root, planned, lines).artifact
    assert [*run.manifest.code] == [GPT]
    assert f"built with your {GPT}" in lines
    assert any(line.startswith("resum") for line in lines), lines


def test_an_edit_that_is_taken_back_resumes_without_a_word(root: Path, planned: TrainPlan, sources: Path) -> None:
    text = (sources / GPT).read_text(encoding="utf-8").removesuffix("# edited\n")
    (sources / GPT).write_text(text, encoding="utf-8")
    reread()
    assert unfinished.resume_edited(root, planned, accept=False) == []


def test_edited_code_trains_a_published_run_again(root: Path, sources: Path) -> None:
    planned = make_plan(root)
    released = train(root, planned).artifact
    edit(sources / GPT)
    built = train(root, make_plan(root))
    assert built.result == "built"
    assert built.artifact.path != released.path
    assert stage.dry_run(planned, device="cpu")[-1] == f"built with your {GPT}"


def test_rebuild_trains_a_published_run_again(root: Path) -> None:
    planned = make_plan(root)
    first = train(root, planned).artifact
    assert train(root, planned).result == "unchanged"
    again = train(root, planned, rebuild=True)
    assert (again.result, again.rebuilt, again.artifact.path) == ("built", True, first.path)
    assert not artifact.find_problems(again.artifact, deep=True)
