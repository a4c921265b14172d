"""A refreshed run continues from the last weights of the run before it."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.runs import checkpoint, continuing, run
from model.runs import plan as runs_plan
from model.runs.plan import TrainPlan
from model.runs.run import Report
from model.training import metrics, stage
from model.training.dataloader import Sampler
from model.training.learner import Learner
from pipeline.errors import BadData, TryAgain
from pipeline.maintenance import retention
from pipeline.refresh import plan as planning
from pipeline.refresh import recipe as recipes
from pipeline.refresh import refresh, state
from pipeline.refresh.plan import RefreshOptions
from pipeline.refresh.stages import Chain, TrainStage
from pipeline.runtime.progress import SilentProgress
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.store.generations import generation_keys, set_current
from pipeline.store.manifest import Identity
from tests.support.faults import Command, assert_one_error
from tests.support.training import no_loss_curve, preloaded
from tests.support.upstream import letters, texts

__all__ = ["no_loss_curve", "preloaded"]  # fixtures

STEPS = 12


class Project:
    """A folder of texts with a recipe that this process refreshes, as cron would."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "artifacts"
        (folder / "texts").mkdir(parents=True)
        self.tokenizer = letters(folder / "letters")
        self.write("train.jsonl", "first")
        self.write("val.jsonl", "held out")
        self.messages: list[str] = []

    def write(self, name: str, seed: str) -> None:
        content = "".join(f'{{"text": "{text}"}}\n' for text in texts(seed, 40))
        (self.folder / "texts" / name).write_text(content)

    def refresh(
        self, report: Report | None = None, *, accept: bool = False, allow_shrink: bool = False, **settings: object
    ) -> refresh.RefreshResult:
        numbers = {"steps": STEPS, "vocab_size": 0, "evaluations": 2, "eval_bytes": 400, "dropout": 0.1, **settings}
        path = self.folder / "small.toml"
        path.write_text(
            f"""
name = "small"
[download]
source = "{self.folder / "texts"}"
[tokenizer]
use = "{self.tokenizer}"
[tokenize]
val_fraction = 0.2
[train]
preset = "mini"
[train.set]
"""
            + "".join(f"{name} = {value}\n" for name, value in numbers.items())
        )
        recipe = recipes.load(path)
        report = report or self.messages.append

        def plan(tokens: Artifact) -> TrainPlan:
            new = runs_plan.make_plan(tokens, recipe.train.preset, name=recipe.name, settings=recipe.train.set)
            return continuing.continue_published(self.root, new)

        training = TrainStage(
            check=lambda: None,
            identify=lambda tokens: runs_plan.identify(plan(tokens)),
            run=lambda tokens: stage.train(
                self.root, plan(tokens), device="cpu", resume=True, report=report, accept=accept
            ),
            outlook=lambda tokens: continuing.describe_start(plan(tokens)),
        )
        options = RefreshOptions(accept_worse=accept, allow_shrink=allow_shrink)
        self.planned = planning.plan(Chain(self.root, recipe, training, SilentProgress(), 1), options, {})
        return refresh.refresh(self.root, recipe, training, SilentProgress(), options)

    @property
    def current_run(self) -> Artifact:
        return artifact.find(self.root, "runs", "small")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def results(result: refresh.RefreshResult) -> dict[str, str]:
    return {step.stage: step.result for step in result.steps}


def weights(run_artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint_path(run_artifact, "last") / "model.safetensors")


def assert_equal(actual: Artifact, expected_run: Artifact) -> None:
    expected = weights(expected_run)
    assert weights(actual).keys() == expected.keys()
    for name, tensor in weights(actual).items():
        assert torch.equal(tensor, expected[name]), name


def first_loss(run_artifact: Artifact) -> float:
    row = metrics.read(run_artifact.path / "metrics.csv")[0]
    assert row["step"] == "0"
    return float(row["val_loss"])


def parent_of(run_artifact: Artifact) -> str:
    return next((entry.name for entry in run_artifact.manifest.inputs if entry.role == "parent"), "")


def test_run_on_new_text_starts_from_the_last_weights(project: Project) -> None:
    project.refresh()
    first = project.current_run
    assert parent_of(first) == ""
    project.write("more.jsonl", "more")
    assert results(project.refresh())["train"] == "built"
    second = project.current_run
    assert parent_of(second) == first.ref
    assert run.read_result(second.path).steps_before == STEPS
    assert f"continues from step {STEPS} of {first.ref}" in project.messages
    last_loss = run.read_result(first.path).val_loss
    assert last_loss is not None
    assert first_loss(first) > last_loss, "the first run learned something"
    project.write("more.jsonl", "even more")
    project.refresh()
    third = project.current_run
    assert parent_of(third) == second.ref
    assert run.read_result(third.path).steps_before == 2 * STEPS
    assert f"continues from step {2 * STEPS} of {second.ref}" in project.messages


def test_first_loss_equals_the_last_of_the_parent_on_the_same_text(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Named first, val.jsonl alone provides the first 400 bytes of validation text.
    os.rename(project.folder / "texts" / "val.jsonl", project.folder / "texts" / "0.jsonl")
    project.refresh()
    first = project.current_run
    project.write("zz.jsonl", "more")
    loaded = []
    original = checkpoint.read

    def read(path: Path) -> checkpoint.CheckpointTensors:
        loaded.append(path)
        return original(path)

    monkeypatch.setattr(checkpoint, "read", read)
    project.refresh()
    assert loaded[0] == first.path / "checkpoints" / run.read_result(first.path).last
    assert first_loss(project.current_run) == pytest.approx(run.read_result(first.path).val_loss, abs=1e-5)


def test_continued_run_loads_moments_and_sees_no_block_again(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    data_steps: list[int] = []
    original = Sampler.batch

    def batch(sampler: Sampler, step: int, *rest: int) -> object:
        data_steps.append(step)
        return original(sampler, step, *rest)

    project.refresh()
    moments = load_file(run.checkpoint_path(project.current_run, "last") / "optimizer.safetensors")
    loaded: list[dict[str, torch.Tensor]] = []
    original_load = Learner.load

    def load(learner: Learner, saved: checkpoint.CheckpointTensors) -> None:
        original_load(learner, saved)
        moments = checkpoint.moments(learner.model, learner.optimizers)
        loaded.append({name: moment.clone() for name, moment in moments.items()})

    monkeypatch.setattr(Sampler, "batch", batch)
    monkeypatch.setattr(Learner, "load", load)
    project.write("more.jsonl", "more")
    project.refresh()
    expected = list(range(STEPS, 2 * STEPS + 1))  # the last one is prepared and not used
    assert data_steps[-STEPS - 1 :] == expected, "the batches of the first run are not repeated"
    assert all(torch.equal(loaded[0][name], moment) for name, moment in moments.items())


def test_unchanged_inputs_leave_the_run_unchanged(project: Project) -> None:
    for edition in ("second", "third"):
        project.refresh()
        before = project.current_run
        project.messages.clear()
        assert {*results(project.refresh()).values()} == {"unchanged"}
        assert project.messages == []
        assert project.current_run == before
        project.write("more.jsonl", edition)


def test_another_configuration_trains_from_scratch(project: Project) -> None:
    project.refresh()
    project.write("more.jsonl", "more")
    assert results(project.refresh(learning_rate=0.01))["train"] == "built"
    assert parent_of(project.current_run) == ""
    assert "starts from scratch: learning_rate: 0.01, not 0.003" in project.messages


def test_another_tokenizer_trains_from_scratch(project: Project) -> None:
    project.refresh()
    project.tokenizer = letters(project.folder / "others", map(chr, range(126, 31, -1)))
    assert results(project.refresh())["train"] == "built"
    assert parent_of(project.current_run) == ""
    assert "starts from scratch: the tokenizer changed" in project.messages


def test_plan_says_what_the_training_will_start_from(project: Project) -> None:
    def outlook() -> str:
        return project.planned.steps[-1].why

    project.refresh()
    first = project.current_run
    assert outlook() == "tokenize is stale", "there is no run yet"
    project.write("more.jsonl", "more")
    project.refresh()
    assert outlook() == f"tokenize is stale; continues from step {STEPS} of {first.ref}"
    second = project.current_run
    shutil.rmtree(second.path)  # as if it had been killed before it was published
    set_current(second.path.parent, first.path.name)
    project.refresh()
    assert outlook() == f"tokens/small changed; continues from step {STEPS} of {first.ref}"
    project.write("more.jsonl", "even more")
    project.refresh(learning_rate=0.01)
    assert outlook() == "tokenize is stale; starts from scratch: learning_rate: 0.01, not 0.003"
    project.tokenizer = letters(project.folder / "others", map(chr, range(126, 31, -1)))
    project.refresh()
    assert outlook().endswith("starts from scratch: the tokenizer changes")
    assert second.ref not in outlook()


def test_worse_run_stays_aside_and_later_nights_go_on_from_the_current_one(project: Project) -> None:
    project.refresh(steps=30)
    good = project.current_run
    aside = project.refresh(steps=1).last
    assert aside
    assert project.current_run == good != aside
    assert any(line.startswith(f"worse than {good.ref}, which stays current: ") for line in project.messages)
    night = project.refresh(steps=1)
    assert night.result == "unchanged"
    assert night.last == good
    (note,) = night.notes
    assert note.startswith(f"{aside.ref} is worse than current (")
    assert note.endswith(" bits per character); kept")
    project.write("more.jsonl", "more")
    project.refresh(steps=30)
    assert parent_of(project.current_run) == good.ref
    project.refresh(steps=1, accept=True)
    assert run.read_result(project.current_run.path).steps == 1


def test_longer_training_on_request_is_kept_by_the_nights(project: Project) -> None:
    project.refresh()
    first = project.current_run
    tokens = artifact.find(project.root, "tokens", "small")
    more = continuing.plan_continuation(first, tokens, steps=2 * STEPS)
    longer = stage.train(project.root, more, device="cpu", resume=True, report=project.messages.append).artifact
    assert project.current_run == longer
    assert {*results(project.refresh()).values()} == {"unchanged"}
    assert project.current_run == longer
    project.write("more.jsonl", "more")
    project.refresh()
    assert parent_of(project.current_run) == longer.ref
    assert run.read_result(project.current_run.path).steps == STEPS, "the length of the recipe"
    assert results(project.refresh(steps=1))["train"] == "built"
    assert any(line.startswith("starts from scratch: steps: 1, not 12") for line in project.messages)


def test_way_back_to_a_worse_run_is_compared(project: Project) -> None:
    project.refresh(steps=1)
    worse = project.current_run
    project.refresh(steps=30)
    better = project.current_run
    project.messages.clear()
    back = project.refresh(steps=1)
    assert (project.current_run, back.last) == (better, worse)
    assert any(line.startswith(f"worse than {better.ref}, which stays current: ") for line in project.messages)
    night = project.refresh(steps=1)
    assert night.notes[0].startswith(f"{worse.ref} is worse than current (")
    assert project.refresh(steps=1, accept=True).notes == [f"back to {worse.manifest.key}, which exists already"]
    assert project.current_run == worse
    assert project.refresh(steps=30).notes == [f"back to {better.manifest.key}, which exists already"]
    assert any(line.startswith(f"compared with {worse.ref}: ") for line in project.messages)


def test_rolled_back_run_stays_so_until_the_text_changes(project: Project) -> None:
    project.refresh()
    first = project.current_run
    project.write("more.jsonl", "more")
    project.refresh()
    second = project.current_run
    retention.rollback(project.root, "runs/small")
    night = project.refresh()
    assert (night.result, night.last) == ("unchanged", first)
    reason = f"{second.ref} was rolled back; nothing to do until the text changes"
    assert night.notes == [reason]
    printed = Command(project.root, ("refresh", project.folder / "small.toml", "--device", "cpu")).run_forked()
    assert (printed.code, printed.out.count(f"unchanged: {first.ref}"), printed.out.count(reason)) == (0, 1, 1)
    project.write("more.jsonl", "even more")
    project.refresh()
    assert parent_of(project.current_run) == first.ref


def test_restored_text_continues_from_the_latest_run(project: Project) -> None:
    project.refresh()
    first = project.current_run
    project.write("more.jsonl", "more")
    project.refresh()
    second = project.current_run
    (project.folder / "texts" / "more.jsonl").unlink()
    project.refresh(allow_shrink=True)
    assert artifact.find(project.root, "tokens", "small").digest == first.manifest.inputs[0].digest
    assert parent_of(project.current_run) == second.ref, "nothing that was learned is thrown away"


@pytest.mark.parametrize("stop_steps", [[0], [10], [0, 10]])
def test_stopped_refresh_ends_with_the_weights_of_an_undisturbed_one(
    project: Project, tmp_path: Path, stop_steps: list[int]
) -> None:
    undisturbed = Project(tmp_path / "quiet")
    for copy in (undisturbed, project):
        copy.refresh(steps=20)
        copy.write("more.jsonl", "more")
    undisturbed.refresh(steps=20)
    first = project.current_run
    for step in stop_steps:

        def report(line: str, step: int = step) -> None:
            if line.startswith(f"step {step:>6,}"):
                signal.raise_signal(signal.SIGTERM)

        with pytest.raises(TryAgain):
            project.refresh(report, steps=20)
        assert project.current_run == first
        assert state.read(project.root, "small").exit_code == 75
    project.refresh(steps=20)
    assert_equal(project.current_run, undisturbed.current_run)
    assert parent_of(project.current_run) == first.ref
    assert not list(project.root.glob("runs/small/.draft-*"))


def test_killed_refresh_ends_with_the_weights_of_an_undisturbed_one(project: Project, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    undisturbed = Project(tmp_path / "quiet")
    for copy in (undisturbed, project):
        copy.refresh(steps=20)
        copy.write("more.jsonl", "more")
    undisturbed.refresh(steps=20)
    first = project.current_run
    assert killed_at_20(project) == -signal.SIGKILL
    assert project.current_run == first
    assert artifact.find_problems(first, deep=True) == []
    (draft,) = project.root.glob("runs/small/.draft-*")
    assert checkpoint.newest_first(draft / "checkpoints"), "there is a checkpoint to resume from"
    project.refresh(steps=20)
    assert any("resuming from step 10" in line for line in project.messages)
    assert_equal(project.current_run, undisturbed.current_run)


def killed_at_20(project: Project) -> int:
    child = os.fork()
    if not child:

        def report(line: str) -> None:
            if line.startswith(f"step {20:>6,}"):
                os.kill(os.getpid(), signal.SIGKILL)

        project.refresh(report, steps=20)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_damaged_parent_is_an_error_until_it_is_rolled_back(
    project: Project,
) -> None:
    project.refresh()
    first = project.current_run
    project.write("more.jsonl", "more")
    project.refresh()
    second = project.current_run
    project.write("more.jsonl", "even more")
    weights_path = run.checkpoint_path(second, "last") / "model.safetensors"
    weights_path.write_bytes(bytes(weights_path.stat().st_size))
    with pytest.raises(BadData, match=r"model\.safetensors"):
        project.refresh()
    assert project.current_run == second, "training does not start afresh silently"
    retention.rollback(project.root, "runs/small")
    project.refresh()
    assert parent_of(project.current_run) == first.ref


def test_new_library_continues_a_run_whose_parent_was_pruned(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.refresh()
    first = project.current_run
    monkeypatch.setattr(Identity, "versions", lambda identity: {"torch": "99"} if identity.kind == "runs" else {})
    project.messages.clear()
    assert results(project.refresh())["train"] == "built"
    assert f"starts from scratch: the code or the libraries changed since {first.ref}" in project.messages
    monkeypatch.undo()
    project.write("more.jsonl", "more")
    project.refresh()
    second = project.current_run
    retention.prune(project.root, keep=1)
    monkeypatch.setattr(Identity, "versions", lambda identity: {"torch": "99"} if identity.kind == "runs" else {})
    assert results(project.refresh())["train"] == "built"
    assert parent_of(project.current_run) == second.ref
    assert results(project.refresh())["train"] == "unchanged"


def test_interrupted_repair_of_the_current_run_goes_on(project: Project) -> None:
    project.refresh()
    project.write("more.jsonl", "more")
    project.refresh()
    second = project.current_run
    expected = weights(second)
    (second.path / "result.json").unlink()

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        project.refresh(interrupt)
    assert not second.path.exists(), "its files are in the draft"
    assert results(project.refresh())["train"] == "built"
    assert project.current_run.manifest.key == second.manifest.key
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(project.current_run).items())


def test_run_without_its_manifest_is_trained_again_or_rolled_back(project: Project) -> None:
    project.refresh()
    first = project.current_run
    (first.path / "manifest.json").unlink()
    assert results(project.refresh())["train"] == "built"
    assert any(line.startswith(f"resuming from step {STEPS}") for line in project.messages)
    assert project.current_run.manifest.key == first.manifest.key
    project.write("more.jsonl", "more")
    project.refresh()
    (project.current_run.path / "manifest.json").unlink()
    with pytest.raises(BadData) as caught:
        project.refresh()
    assert caught.value.hint == "`inkstone rollback runs/small` returns to the run before"


def test_prune_deletes_the_parent_of_a_published_run(project: Project) -> None:
    refs = []
    for edition in range(3):
        project.write("more.jsonl", f"edition {edition}")
        project.refresh()
        refs.append(project.current_run.ref)
    retention.prune(project.root, keep=1)
    assert generation_keys(project.root / "runs" / "small") == [refs[-1].rpartition("/")[2]]
    assert {*results(project.refresh()).values()} == {"unchanged"}, "the published run does not need its parent"


def test_command_retrains_a_tokenizer_only_if_the_recipe_trains_one(project: Project) -> None:
    project.refresh()
    refused = Command(
        project.root, ("refresh", project.folder / "small.toml", "--retrain-tokenizer", "--dry-run")
    ).run_forked()
    assert_one_error(refused, 78, ["--retrain-tokenizer", "uses the ready tokenizer"])
