"""Signals that stop a training (case 55 of docs/design/reliability.md, section 2) or anneal it (--on-stop anneal)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from model.network.gpt import GPT
from model.runs import plan, run
from model.training import evaluate, stage
from model.training.learner import Learner
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokens import counting
from tests.model.training.test_train_faults import with_nan_loss
from tests.support.faults import Run, assert_one_error, wait_for
from tests.support.training import (
    DRAW,
    NAME,
    STEP,
    assert_resumes_to,
    before_call,
    command,
    current_run,
    draft_checkpoints,
    draw_placeholder,
    metric_rows,
    no_loss_curve,
    preloaded,
    saved_steps,
    send,
    train,
    train_undisturbed,
)

__all__ = ["no_loss_curve", "preloaded"]  # fixtures

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, preloaded: None) -> Artifact:
    """The run of a training without faults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRAW, draw_placeholder)
        return train_undisturbed(tmp_path_factory.mktemp("quiet") / "artifacts")


def in_forward(action: Callable[[], None]) -> dict[str, object]:
    """In step 7. Three probes call `backward` before the first step."""
    return {"model.training.learner.Learner.backward": before_call(3 + 7, Learner.backward, action)}


def in_save(action: Callable[[], None]) -> dict[str, object]:
    """While the checkpoint of step 10 is written."""
    return {"model.runs.checkpoint.save_file": before_call(2, save_file, action)}


def in_evaluation(action: Callable[[], None]) -> dict[str, object]:
    """In the second evaluation, that of step 10."""
    return {"model.training.evaluate._score": before_call(2, evaluate._score, action)}


INTERRUPTS = {in_forward: 7, in_save: 10, in_evaluation: 10}


# --on-stop save


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("interrupt", INTERRUPTS)
def test_signal_ends_training_with_exit_75_and_one_checkpoint(
    root: Path, expected: Artifact, interrupt: Callable[..., dict[str, object]], number: int
) -> None:
    """Case 55 of docs/design/reliability.md."""
    stopped = train(root, constants=interrupt(send(number)))
    assert_one_error(stopped, 75, [f"step {INTERRUPTS[interrupt]}", "everything is saved", "the same command"])
    assert saved_steps(draft_checkpoints(root)) == [INTERRUPTS[interrupt]]
    assert artifact.current(root, "runs", NAME) is None
    assert f"resuming from step {INTERRUPTS[interrupt]} " in assert_resumes_to(root, expected).err


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("interrupt", INTERRUPTS)
def test_second_signal_ends_training_at_once_and_keeps_checkpoints(
    root: Path, expected: Artifact, interrupt: Callable[..., dict[str, object]], number: int
) -> None:
    """Case 55 of docs/design/reliability.md."""
    killed = train(root, constants=interrupt(send(signal.SIGINT, number)))
    assert (killed.code, killed.out) == (128 + number, "")
    assert saved_steps(draft_checkpoints(root)) == []
    assert_resumes_to(root, expected)


def test_signal_in_the_first_evaluation_leaves_a_resumable_run(root: Path, expected: Artifact) -> None:
    """Case 55 of docs/design/reliability.md. The evaluation is repeated after the resume."""
    stopped = train(
        root, constants={"model.training.evaluate._score": before_call(1, evaluate._score, send(signal.SIGTERM))}
    )
    assert_one_error(stopped, 75, ["step 0"])
    assert_resumes_to(root, expected)


def test_signal_while_the_model_is_built_stops_training(root: Path, expected: Artifact) -> None:
    """Case 55 of docs/design/reliability.md."""
    stopped = train(
        root, constants={"model.network.gpt.GPT.__init__": before_call(1, GPT.__init__, send(signal.SIGTERM))}
    )
    assert_one_error(stopped, 75, ["step 0"])
    assert_resumes_to(root, expected)


def test_run_stopped_every_second_step_ends_with_the_same_weights(root: Path, expected: Artifact) -> None:
    """Case 55 of docs/design/reliability.md."""
    stops = 0
    while train(root, constants={STEP: before_call(2, Learner.step, send(15))}).code == 75:
        stops += 1
        assert stops < 20
    assert stops == 9
    assert_resumes_to(root, expected)


def test_sigusr1_to_the_process_group_stops_training(root: Path, expected: Artifact) -> None:
    """Case 55 of docs/design/reliability.md. As batch systems do before a time limit."""
    log_every_step = {"model.training.trainer._LOG_SECONDS": -1.0}
    process = command(root, constants=log_every_step, steps=100_000).start()
    assert process.stderr
    for line in process.stderr:
        if line.startswith("step") and "loss" in line:
            break
    os.killpg(process.pid, signal.SIGUSR1)
    stopped = wait_for(process)
    assert_one_error(Run(stopped.code, stopped.out, stopped.err), 75, ["everything is saved"])


# --on-stop anneal


def annealed_runs(root: Path) -> list[Artifact]:
    artifacts = [artifact.read(path) for path in artifact.generations(root)]
    return [run_artifact for run_artifact in artifacts if "ended" in run_artifact.manifest.options]


def stopped_at(step: int, *signals: int) -> dict[str, object]:
    return {STEP: before_call(step, Learner.step, send(*signals))}


def test_annealed_run_is_published_and_the_unfinished_one_is_resumable(root: Path, expected: Artifact) -> None:
    command_result = train(root, "--on-stop", "anneal", constants=stopped_at(15, signal.SIGTERM))
    assert command_result.code == 0, command_result.err
    (annealed_run,) = annealed_runs(root)
    assert current_run(root) == annealed_run, "it is published as the current run"
    assert annealed_run.manifest.options["ended"] == 17, "a tenth of the steps more, rounded up"
    assert annealed_run.manifest.options["train"]["steps"] == 20
    result = run.read_result(annealed_run.path)
    assert (result.steps, result.last) == (17, "step-00000017")
    assert [row["step"] for row in metric_rows(annealed_run)] == ["0", "10", "17"]
    rates = [float(row["learning_rate"]) for row in metric_rows(annealed_run)]
    assert 0 < rates[2] < rates[1]
    assert artifact.find_problems(annealed_run, deep=True) == []
    assert saved_steps(draft_checkpoints(root)) == [15, 10], "the unfinished run is unchanged"
    resumed = assert_resumes_to(root, expected)
    assert "resuming from step 15 " in resumed.err
    assert artifact.find_problems(annealed_run, deep=True) == []


def test_annealing_lowers_the_learning_rates_to_zero(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = counting.build(root).artifact
    small = plan.make_plan(tokens, "mini", name=NAME, settings={"steps": 100, "evaluations": 1, "precision": "fp32"})
    factors: list[float] = []
    original = Learner.step

    def step(learner: Learner, *arguments: Any) -> Any:
        factors.append(learner.optimizers[0].param_groups[0]["lr"] / 3e-3)
        if len(factors) == 40:
            signal.raise_signal(signal.SIGINT)
        return original(learner, *arguments)

    monkeypatch.setattr(Learner, "step", step)
    stage.train(root, small, device="cpu", resume=True, report=lambda line: None, anneal=True)
    assert len(factors) == 44
    assert factors[40] == pytest.approx(factors[39], rel=0.02)
    assert [factor / factors[40] for factor in factors[40:]] == pytest.approx([1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("number", SIGNALS)
def test_second_signal_while_annealing_keeps_the_unfinished_run(root: Path, expected: Artifact, number: int) -> None:
    original, steps_taken = Learner.step, [0]

    def step(learner: Learner, *arguments: Any) -> Any:
        steps_taken[0] += 1
        if steps_taken[0] in (15, 17):
            os.kill(os.getpid(), number)
        return original(learner, *arguments)

    killed = train(root, "--on-stop", "anneal", constants={STEP: step})
    assert killed.code == 128 + number
    assert annealed_runs(root) == []
    assert saved_steps(draft_checkpoints(root)) == [15, 10]
    assert "resuming from step 15 " in assert_resumes_to(root, expected).err


def test_signal_before_the_first_step_does_not_anneal(root: Path) -> None:
    constants = {"model.training.evaluate._score": before_call(1, evaluate._score, send(signal.SIGTERM))}
    assert train(root, "--on-stop", "anneal", constants=constants).code == 75
    assert annealed_runs(root) == []


def test_divergence_while_annealing_keeps_the_unfinished_run(root: Path) -> None:
    faults = with_nan_loss(set(range(31, 40)))
    faulty_step = faults[STEP]
    assert callable(faulty_step)
    constants = {**faults, STEP: before_call(30, faulty_step, send(signal.SIGTERM))}
    diverged = train(root, "--on-stop", "anneal", constants=constants, steps=50)
    assert_one_error(diverged, 12, ["the loss"])
    assert annealed_runs(root) == []
    assert saved_steps(draft_checkpoints(root, steps=50)) == [30, 25]
