"""Signals: case 55 of reference/reliability.md, section 2, and a training that a signal brings to rest (--on-stop)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.network.gpt import GPT
from model.runs import checkpoint, plan, run
from model.training import evaluate, stage
from model.training.learner import Learner
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokens import counting
from tests.model.training.test_train_faults import loses
from tests.support.faults import Run, assert_one_error, ended
from tests.support.training import (
    NAME,
    after,
    assert_ends_well,
    checkpoints,
    command,
    made,
    no_pictures,
    quiet,
    rows,
    sends,
    steps,
    train,
    warm,
)

__all__ = ["no_pictures", "warm"]  # fixtures

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, warm: None) -> Artifact:
    """The run of a training that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "model.training.loss_curve.draw", lambda table, folder, *_: (folder / "loss.png").write_bytes(b"a picture")
        )
        return quiet(tmp_path_factory.mktemp("quiet") / "artifacts")


def in_forward(send: Callable[[], None]) -> dict[str, object]:
    """In the middle of step 7. Each step calls the model once; so do three probes before, and an evaluation."""
    return {"model.training.learner.Learner.backward": after(3 + 7, Learner.backward, send)}


def in_save(send: Callable[[], None]) -> dict[str, object]:
    """While the checkpoint of step 10 is written."""
    return {"model.runs.checkpoint.save_file": after(2, checkpoint.save_file, send)}


def in_evaluation(send: Callable[[], None]) -> dict[str, object]:
    """In the second evaluation, that of step 10."""
    return {"model.training.evaluate._nats": after(2, evaluate._nats, send)}


PLACES = {in_forward: 7, in_save: 10, in_evaluation: 10}


# 55: stopped


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", PLACES)
def test_case_55_a_signal_to_the_process_group_ends_it_in_75_with_one_checkpoint(
    root: Path, expected: Artifact, place: Callable[..., dict[str, object]], number: int
) -> None:
    stopped = train(root, constants=place(sends(number)))
    assert_one_error(stopped, 75, [f"step {PLACES[place]}", "everything is saved", "the same command"])
    assert steps(checkpoints(root)) == [PLACES[place]]
    assert artifact.current(root, "runs", NAME) is None
    assert f"going on from step {PLACES[place]} " in assert_ends_well(root, expected).err


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", PLACES)
def test_case_55_a_second_signal_ends_it_at_once_and_what_was_saved_stays(
    root: Path, expected: Artifact, place: Callable[..., dict[str, object]], number: int
) -> None:
    killed = train(root, constants=place(sends(signal.SIGINT, number)))
    assert (killed.code, killed.out) == (128 + number, "")
    assert steps(checkpoints(root)) == []
    assert_ends_well(root, expected)


def test_case_55_a_signal_before_the_first_step_leaves_a_training_that_begins_again(
    root: Path, expected: Artifact
) -> None:
    """It came in the first evaluation, which is then made anew."""
    stopped = train(root, constants={"model.training.evaluate._nats": after(1, evaluate._nats, sends(signal.SIGTERM))})
    assert_one_error(stopped, 75, ["step 0"])
    assert_ends_well(root, expected)


def test_case_55_a_signal_that_came_while_it_was_loaded_counts(root: Path, expected: Artifact) -> None:
    stopped = train(root, constants={"model.network.gpt.GPT.__init__": after(1, GPT.__init__, sends(signal.SIGTERM))})
    assert_one_error(stopped, 75, ["step 0"])
    assert_ends_well(root, expected)


def test_case_55_stopped_at_every_turn_it_still_ends_in_the_same_weights(root: Path, expected: Artifact) -> None:
    stops = 0
    while train(root, constants={"model.training.learner.Learner.step": after(2, Learner.step, sends(15))}).code == 75:
        stops += 1
        assert stops < 20
    assert stops == 9
    assert_ends_well(root, expected)


def test_case_55_a_group_of_processes_as_a_batch_system_ends_it(root: Path, expected: Artifact) -> None:
    """In a process of its own, which gets the signals of its group from outside."""
    slow = {"model.training.trainer._LOG_SECONDS": -1.0}
    process = command(root, constants=slow, steps=100_000).start()
    assert process.stderr
    for line in process.stderr:
        if line.startswith("step") and "loss" in line:
            break
    os.killpg(process.pid, signal.SIGUSR1)
    stopped = ended(process)
    assert_one_error(Run(stopped.code, stopped.out, stopped.err), 75, ["everything is saved"])


# --on-stop anneal


def annealed(root: Path) -> list[Artifact]:
    found = [artifact.read(path) for path in artifact.generations(root)]
    return [each for each in found if "ended" in each.manifest.options]


def stopped_at(step: int, *signals: int) -> dict[str, object]:
    return {"model.training.learner.Learner.step": after(step, Learner.step, sends(*signals))}


def test_a_signal_brings_the_weights_to_rest_in_a_run_of_its_own_and_the_unfinished_one_can_still_go_on(
    root: Path, expected: Artifact
) -> None:
    done = train(root, "--on-stop", "anneal", constants=stopped_at(15, signal.SIGTERM))
    assert done.code == 0, done.err
    (rest,) = annealed(root)
    assert made(root) == rest, "it is the current one"
    assert rest.manifest.options["ended"] == 17, "a tenth of the steps more, rounded up"
    assert rest.manifest.options["train"]["steps"] == 20
    result = run.read_result(rest.path)
    assert (result.steps, result.last) == (17, "step-00000017")
    assert [row["step"] for row in rows(rest)] == ["0", "10", "17"]
    rates = [float(row["learning_rate"]) for row in rows(rest)]
    assert 0 < rates[2] < rates[1]
    assert artifact.problems(rest, deep=True) == []
    assert steps(checkpoints(root)) == [15, 10], "the unfinished one is as it was"
    resumed = assert_ends_well(root, expected)
    assert "going on from step 15 " in resumed.err
    assert artifact.problems(rest, deep=True) == []


def test_the_rates_fall_to_zero_from_where_they_were(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = counting.build(root).artifact
    chosen = plan.plan(tokens, "mini", name=NAME, settings={"steps": 100, "evaluations": 1, "precision": "fp32"})
    shares: list[float] = []
    real = Learner.step

    def step(learner: Learner, *arguments: Any) -> Any:
        shares.append(learner.optimizers[0].param_groups[0]["lr"] / 3e-3)
        if len(shares) == 40:
            signal.raise_signal(signal.SIGINT)
        return real(learner, *arguments)

    monkeypatch.setattr(Learner, "step", step)
    stage.train(root, chosen, device="cpu", resume=True, report=lambda line: None, anneal=True)
    assert len(shares) == 44
    assert shares[40] == pytest.approx(shares[39], rel=0.02)
    assert [share / shares[40] for share in shares[40:]] == pytest.approx([1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_while_the_rates_fall_ends_it_at_once_and_the_unfinished_run_is_whole(
    root: Path, expected: Artifact, number: int
) -> None:
    real, taken = Learner.step, [0]

    def step(learner: Learner, *arguments: Any) -> Any:
        taken[0] += 1
        if taken[0] in (15, 17):
            os.kill(os.getpid(), number)
        return real(learner, *arguments)

    killed = train(root, "--on-stop", "anneal", constants={"model.training.learner.Learner.step": step})
    assert killed.code == 128 + number
    assert annealed(root) == []
    assert steps(checkpoints(root)) == [15, 10]
    assert "going on from step 15 " in assert_ends_well(root, expected).err


def test_a_training_that_never_took_a_step_has_nothing_to_bring_to_rest(root: Path) -> None:
    hooks = {"model.training.evaluate._nats": after(1, evaluate._nats, sends(signal.SIGTERM))}
    assert train(root, "--on-stop", "anneal", constants=hooks).code == 75
    assert annealed(root) == []


def test_numbers_that_are_none_while_the_rates_fall_end_it_in_12_and_the_unfinished_run_is_whole(root: Path) -> None:
    hooks = loses(set(range(31, 40)))
    bad = hooks["model.training.learner.Learner.step"]
    assert callable(bad)
    constants = {**hooks, "model.training.learner.Learner.step": after(30, bad, sends(signal.SIGTERM))}
    diverged = train(root, "--on-stop", "anneal", constants=constants, steps=50)
    assert_one_error(diverged, 12, ["the loss"])
    assert annealed(root) == []
    assert steps(checkpoints(root, steps=50)) == [30, 25]
