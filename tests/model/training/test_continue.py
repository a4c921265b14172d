"""A refreshed run goes on from the weights that the one before it ended with."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.runs import checkpoint, run
from model.runs import plan as runs_plan
from model.runs.plan import Plan
from model.runs.run import Report
from model.training import dataloader as batches
from model.training import finish as outcome
from model.training import metrics, stage
from model.training.learner import Learner
from pipeline.errors import BadData, TryAgain
from pipeline.maintenance import retention as generations
from pipeline.refresh import recipe as recipes
from pipeline.refresh import refresh, state
from pipeline.refresh.plan import Options
from pipeline.refresh.stages import TrainStage
from pipeline.runtime.progress import Silent
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.store.generations import generation_keys
from tests.support.upstream import letters, texts

STEPS = 12


class Reader:
    """A person with a folder of texts and a recipe, who refreshes: what cron does, inside this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "artifacts"
        (folder / "texts").mkdir(parents=True)
        self.tokenizer = letters(folder / "letters")
        self.write("train.jsonl", "first")
        self.write("val.jsonl", "held out")
        self.said: list[str] = []

    def write(self, name: str, what: str) -> None:
        content = "".join(f'{{"text": "{text}"}}\n' for text in texts(what, 40))
        (self.folder / "texts" / name).write_text(content)

    def refresh(self, report: Report | None = None, **settings: object) -> refresh.Refreshed:
        chosen = {"steps": STEPS, "vocab_size": 0, "evaluations": 2, "eval_bytes": 400, "dropout": 0.1, **settings}
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
            + "".join(f"{name} = {value}\n" for name, value in chosen.items())
        )
        recipe = recipes.load(path)
        report = report or self.said.append

        def plan(tokens: Artifact) -> Plan:
            planned = runs_plan.plan(tokens, recipe.train.preset, name=recipe.name, settings=recipe.train.set)
            return runs_plan.continued(self.root, planned)

        training = TrainStage(
            check=lambda: None,
            identify=lambda tokens: runs_plan.identify(plan(tokens)),
            run=lambda tokens: stage.train(self.root, plan(tokens), device="cpu", resume=True, report=report),
        )
        return refresh.refresh(self.root, recipe, training, Silent(), Options())

    @property
    def made(self) -> Artifact:
        return artifact.find(self.root, "runs", "small")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than so short a training."""
    monkeypatch.setattr(
        outcome.curve, "draw", lambda table, folder, *_: (folder / "loss.png").write_bytes(b"a picture")
    )


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path / "reader")


def results(done: refresh.Refreshed) -> dict[str, str]:
    return {step.stage: step.result for step in done.steps}


def weights(made: Artifact) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint_path(made, "last") / "model.safetensors")


def assert_equal(one: Artifact, other: Artifact) -> None:
    expected = weights(other)
    assert weights(one).keys() == expected.keys()
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, expected[name]), name


def first_loss(made: Artifact) -> float:
    row = metrics.read(made.path / "metrics.csv")[0]
    assert row["step"] == "0"
    return float(row["val_loss"])


def parent_of(made: Artifact) -> str:
    return next((entry.name for entry in made.manifest.inputs if entry.role == "parent"), "")


def test_on_new_text_a_run_begins_with_the_last_weights_and_says_whose(reader: Reader) -> None:
    reader.refresh()
    first = reader.made
    assert parent_of(first) == ""
    reader.write("more.jsonl", "more")
    assert results(reader.refresh())["train"] == "built"
    second = reader.made
    assert parent_of(second) == first.ref
    assert run.read_result(second.path).steps_before == STEPS
    assert any(f"after {STEPS} steps" in line for line in reader.said)
    assert first_loss(first) > run.read_result(first.path).val_loss, "it had learned something"
    reader.write("more.jsonl", "even more")
    reader.refresh()
    third = reader.made
    assert parent_of(third) == second.ref
    assert run.read_result(third.path).steps_before == 2 * STEPS


def test_on_the_same_validation_text_the_first_loss_is_the_last_of_the_run_before(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first 400 tokens of validation are of val.jsonl alone once it comes first.
    os.rename(reader.folder / "texts" / "val.jsonl", reader.folder / "texts" / "0.jsonl")
    reader.refresh()
    first = reader.made
    reader.write("zz.jsonl", "more")
    loaded = []
    real = checkpoint.read

    def read(path: Path) -> checkpoint.Saved:
        loaded.append(path)
        return real(path)

    monkeypatch.setattr(checkpoint, "read", read)
    reader.refresh()
    assert loaded[0] == first.path / "checkpoints" / run.read_result(first.path).last
    assert first_loss(reader.made) == pytest.approx(run.read_result(first.path).val_loss, abs=1e-5)


def test_the_moments_of_the_optimiser_go_on_too_and_no_block_is_seen_again(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = batches.Sampler.batch

    def batch(sampler: batches.Sampler, step: int, *rest: int) -> object:
        seen.append(step)
        return real(sampler, step, *rest)

    reader.refresh()
    moments = load_file(run.checkpoint_path(reader.made, "last") / "optimizer.safetensors")
    given: list[dict[str, torch.Tensor]] = []
    restore = Learner.load

    def load(learner: Learner, saved: checkpoint.Saved) -> None:
        restore(learner, saved)
        moments = checkpoint.moments(learner.model, learner.optimizers)
        given.append({name: moment.clone() for name, moment in moments.items()})

    monkeypatch.setattr(batches.Sampler, "batch", batch)
    monkeypatch.setattr(Learner, "load", load)
    reader.write("more.jsonl", "more")
    reader.refresh()
    assert seen[-STEPS:] == list(range(STEPS, 2 * STEPS)), "the steps of the run before are not taken again"
    assert all(torch.equal(given[0][name], moment) for name, moment in moments.items())


def test_unchanged_nothing_is_trained_and_the_run_stays(reader: Reader) -> None:
    for edition in ("second", "third"):
        reader.refresh()
        before = reader.made
        reader.said.clear()
        assert {*results(reader.refresh()).values()} == {"unchanged"}
        assert reader.said == []
        assert reader.made == before
        reader.write("more.jsonl", edition)


def test_with_other_numbers_the_run_is_trained_anew(reader: Reader) -> None:
    reader.refresh()
    reader.write("more.jsonl", "more")
    assert results(reader.refresh(learning_rate=0.01))["train"] == "built"
    assert parent_of(reader.made) == ""
    assert not any("going on from the weights" in line for line in reader.said)


def test_with_another_tokenizer_the_run_is_trained_anew(reader: Reader) -> None:
    reader.refresh()
    reader.tokenizer = letters(reader.folder / "others", map(chr, range(126, 31, -1)))
    assert results(reader.refresh())["train"] == "built"
    assert parent_of(reader.made) == ""


def test_text_that_is_as_it_was_before_finds_the_run_that_was_trained_on_it_or_goes_on(reader: Reader) -> None:
    reader.refresh()
    first = reader.made
    reader.write("more.jsonl", "more")
    reader.refresh()
    second = reader.made
    (reader.folder / "texts" / "more.jsonl").unlink()
    reader.refresh()
    assert artifact.find(reader.root, "tokens", "small").digest == first.manifest.inputs[0].digest
    assert parent_of(reader.made) == second.ref, "it goes on: what was learned is not thrown away"


@pytest.mark.parametrize("disturbances", [[0], [10], [0, 10]])
def test_a_refreshed_run_that_was_stopped_ends_in_the_weights_of_one_that_was_not(
    reader: Reader, tmp_path: Path, disturbances: list[int]
) -> None:
    quiet = Reader(tmp_path / "quiet")
    for each in (quiet, reader):
        each.refresh(steps=20)
        each.write("more.jsonl", "more")
    quiet.refresh(steps=20)
    first = reader.made
    for at in disturbances:

        def report(line: str, at: int = at) -> None:
            if line.startswith(f"step {at:>6,}"):
                signal.raise_signal(signal.SIGTERM)

        with pytest.raises(TryAgain):
            reader.refresh(report, steps=20)
        assert reader.made == first
        assert state.read(reader.root, "small").exit_code == 75
    reader.refresh(steps=20)
    assert_equal(reader.made, quiet.made)
    assert parent_of(reader.made) == first.ref
    assert not list(reader.root.glob("runs/small/.draft-*"))


def test_a_refreshed_run_that_was_killed_ends_in_the_weights_of_one_that_was_not(
    reader: Reader, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    quiet = Reader(tmp_path / "quiet")
    for each in (quiet, reader):
        each.refresh(steps=20)
        each.write("more.jsonl", "more")
    quiet.refresh(steps=20)
    first = reader.made
    assert killed_at_20(reader) == -signal.SIGKILL
    assert reader.made == first
    assert artifact.problems(first, deep=True) == []
    (draft,) = reader.root.glob("runs/small/.draft-*")
    assert checkpoint.steps(draft / "checkpoints"), "there is something to go on from"
    reader.refresh(steps=20)
    assert any("going on from step 10" in line for line in reader.said)
    assert_equal(reader.made, quiet.made)


def killed_at_20(reader: Reader) -> int:
    child = os.fork()
    if not child:

        def report(line: str) -> None:
            if line.startswith(f"step {20:>6,}"):
                os.kill(os.getpid(), signal.SIGKILL)

        reader.refresh(report, steps=20)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_run_whose_parent_is_damaged_says_so_and_goes_on_from_the_one_before_after_a_rollback(
    reader: Reader,
) -> None:
    reader.refresh()
    first = reader.made
    reader.write("more.jsonl", "more")
    reader.refresh()
    second = reader.made
    reader.write("more.jsonl", "even more")
    weights_of = run.checkpoint_path(second, "last") / "model.safetensors"
    weights_of.write_bytes(bytes(weights_of.stat().st_size))
    with pytest.raises(BadData, match=r"model\.safetensors"):
        reader.refresh()
    assert reader.made == second, "never a silent fresh start"
    generations.rollback(reader.root, "runs/small")
    reader.refresh()
    assert parent_of(reader.made) == first.ref


def test_pruning_takes_the_run_before_once_the_next_one_is_published(reader: Reader) -> None:
    refs = []
    for edition in range(3):
        reader.write("more.jsonl", f"edition {edition}")
        reader.refresh()
        refs.append(reader.made.ref)
    generations.prune(reader.root, keep=1)
    assert generation_keys(reader.root / "runs" / "small") == [refs[-1].rpartition("/")[2]]
    assert {*results(reader.refresh()).values()} == {"unchanged"}, "its parent is needed no more"
