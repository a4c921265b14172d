"""Several processes train one model: same loss curve as one process, one of them prints, checkpoints fit any number.

All commands run in one start of two processes, since starting them takes longer than the trainings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from model.runs import checkpoint, run
from model.training.learner import Learner
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokens import counting
from tests.model.training.together import STOP
from tests.support.exchanging import GPT2, publish_run
from tests.support.faults import ROOT, Command, Run, assert_one_error
from tests.support.training import (
    DRAW,
    STEP,
    assert_same_curve,
    before_call,
    draw_placeholder,
    preloaded,
    saved_steps,
    send,
)
from tests.support.tuning import BASE, pairs, publish_tokens, sums

__all__ = ["preloaded"]  # fixtures

KINDS = [("ddp", "adamw"), ("ddp", "muon"), ("fsdp", "adamw"), ("fsdp", "muon")]
CONVERSATIONS = {"chat": (sums(30), sums(8)), "preferences": (pairs(30), pairs(8))}
NETWORK = replace(GPT2, vocab_size=BASE.vocab_size)
_PATIENCE = 120


def words(root: Path, name: str, *options: object, **settings: object) -> list[str]:
    defaults: dict[str, object] = {"steps": 20, "evaluations": 2, "dropout": 0.0, "precision": "fp32"}
    pairs = [word for key, value in (defaults | settings).items() for word in ("--set", f"{key}={value}")]
    options = ("--tokens", "counting", "--preset", "mini", "--name", name, *options, *pairs)
    return [str(word) for word in ("--artifacts", root, "train", *options)]


def tuning_words(root: Path, kind: str, name: str) -> list[str]:
    settings = {"steps": 6, "evaluations": 1, "dropout": 0.0, "precision": "fp32", "batch_size": 4}
    pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["--artifacts", str(root), "train", kind, "--from", "parent", "--name", name, *pairs]


@dataclass
class Outcomes:
    """Results of each command in the first and in the second process."""

    root: Path
    alone: dict[str, Artifact]  # runs of a single process, by optimizer, and by the kind of conversations
    ended: dict[str, tuple[Run, Run]]
    checkpoints: dict[str, list[int]]  # steps of those that a stopped command left

    def find_run(self, name: str) -> Artifact:
        return artifact.find(self.root, "runs", name)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, preloaded: None) -> Outcomes:
    folder = tmp_path_factory.mktemp("world")
    root = folder / "artifacts"
    counting.build(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRAW, draw_placeholder)
        alone = {
            optimizer: train_alone(root, f"alone-{optimizer}", optimizer=optimizer, ema=0.9)
            for optimizer in ("adamw", "muon")
        }
        stopped = {STEP: before_call(11, Learner.step, send(15))}
        for parallel, optimizer in (KINDS[0], KINDS[3]):
            name = f"one-then-two-{parallel}"
            arguments = words(root, name, parallel=parallel, optimizer=optimizer, ema=0.9)[2:]
            assert Command(root, tuple(arguments), constants=stopped).run_forked().code == 75
        publish_run(root, NETWORK, BASE, name="parent")
        for kind, conversations in CONVERSATIONS.items():
            publish_tokens(root, kind, *conversations, name=kind)
            assert Command(root, tuple(tuning_words(root, kind, f"alone-{kind}")[2:])).run_forked().code == 0
            alone[kind] = artifact.find(root, "runs", f"alone-{kind}")
    commands = {kind: tuning_words(root, kind, f"two-{kind}") for kind in CONVERSATIONS}
    for parallel, optimizer in KINDS:
        settings: dict[str, object] = {"parallel": parallel, "optimizer": optimizer, "ema": 0.9}
        commands[f"{parallel}-{optimizer}"] = words(root, f"{parallel}-{optimizer}", **settings)
    for parallel, optimizer in (KINDS[1], KINDS[2]):
        settings = {"parallel": parallel, "optimizer": optimizer, "ema": 0.9}
        name = f"two-then-one-{parallel}"
        commands[name] = [STOP, "11", *words(root, name, **settings)]
    for parallel, optimizer in (KINDS[0], KINDS[3]):
        name = f"one-then-two-{parallel}"
        commands[name] = words(root, name, parallel=parallel, optimizer=optimizer, ema=0.9)
    commands["again"] = commands["ddp-adamw"]
    commands["odd"] = words(root, "odd", batch_size=33)
    commands["nowhere"] = words(root, "nowhere")
    (root / "runs" / "nowhere").write_text("a file where a folder is needed")
    (folder / "commands.json").write_text(json.dumps(list(commands.values())))
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = [str(ROOT / "tests" / "model" / "training" / "together.py"), str(folder / "commands.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*start, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    assert process.returncode == 0, process.stderr
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    ended = {name: (Run(*one), Run(*two)) for name, one, two in zip(commands, first, second, strict=True)}
    checkpoints = {
        name: [step for draft in root.glob(f"runs/{name}/.draft-*") for step in saved_steps(draft / "checkpoints")]
        for name in commands
        if name.startswith("two-then-one")
    }
    return Outcomes(root, alone, ended, checkpoints)


def train_alone(root: Path, name: str, **settings: object) -> Artifact:
    process = Command(root, tuple(words(root, name, **settings)[2:])).run_forked()
    assert process.code == 0, process.err
    return artifact.find(root, "runs", name)


@pytest.mark.parametrize(("parallel", "optimizer"), KINDS)
def test_two_processes_give_the_loss_curve_of_one(outcomes: Outcomes, parallel: str, optimizer: str) -> None:
    first, second = outcomes.ended[f"{parallel}-{optimizer}"]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert_same_curve(outcomes.find_run(f"{parallel}-{optimizer}"), outcomes.alone[optimizer])


@pytest.mark.parametrize(("parallel", "optimizer"), KINDS)
def test_model_of_two_processes_is_sampled_by_one(outcomes: Outcomes, parallel: str, optimizer: str) -> None:
    name = f"{parallel}-{optimizer}"
    assert artifact.find_problems(outcomes.find_run(name), deep=True) == []
    arguments = ("sample", name, "--prompt-ids", "1,2,3", "--greedy", "--max-tokens", "3", "--json", "--device", "cpu")
    process = Command(outcomes.root, arguments).run_forked()
    assert process.code == 0, process.err
    assert len(json.loads(process.out)["samples"][0]["token_ids"]) == 3


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_two_processes_tune_as_one_does(outcomes: Outcomes, kind: str) -> None:
    assert outcomes.ended[kind][0].code == 0, outcomes.ended[kind][0].err
    assert_same_curve(outcomes.find_run(f"two-{kind}"), outcomes.alone[kind])


def test_only_the_main_process_prints(outcomes: Outcomes) -> None:
    for name, (first, second) in outcomes.ended.items():
        assert (second.out, second.err) == ("", ""), name
        assert first.out or first.err, name
    assert outcomes.ended["ddp-adamw"][0].err.count("step     20") == 1
    assert outcomes.ended["again"][0].out.startswith("unchanged")


@pytest.mark.parametrize(("parallel", "optimizer"), [KINDS[1], KINDS[2]])
def test_signal_to_one_process_stops_both_and_one_process_resumes(
    outcomes: Outcomes, parallel: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DRAW, draw_placeholder)
    name = f"two-then-one-{parallel}"
    first, second = outcomes.ended[name]
    assert_one_error(first, 75, ["everything is saved"])
    assert second.code == 75
    assert outcomes.checkpoints[name] == [11, 10]
    resumed = train_alone(outcomes.root, name, parallel=parallel, optimizer=optimizer, ema=0.9)
    assert_same_curve(resumed, outcomes.alone[optimizer])


@pytest.mark.parametrize(("parallel", "optimizer"), [KINDS[0], KINDS[3]])
def test_two_processes_resume_from_a_checkpoint_of_one(outcomes: Outcomes, parallel: str, optimizer: str) -> None:
    first, _ = outcomes.ended[f"one-then-two-{parallel}"]
    assert first.code == 0, first.err
    assert "resuming from step 11 " in first.err
    assert_same_curve(outcomes.find_run(f"one-then-two-{parallel}"), outcomes.alone[optimizer])


def test_batch_size_not_divisible_by_processes_raises_bad_config(outcomes: Outcomes) -> None:
    first, second = outcomes.ended["odd"]
    assert_one_error(first, 78, ["batch_size", "2 processes", "got 33"])
    assert second.code == 78


def test_error_before_training_ends_all_processes_with_one_code(outcomes: Outcomes) -> None:
    first, second = outcomes.ended["nowhere"]
    assert_one_error(first, 73, ["nowhere"])
    assert (second.code, second.err) == (73, "")


def test_checkpoint_of_sharded_processes_holds_full_tensors(outcomes: Outcomes) -> None:
    path = run.checkpoint_path(outcomes.alone["muon"], "last")
    alone, model = checkpoint.read(path), checkpoint.load_model(path, torch.device("cpu"))
    for name in ("ddp-muon", "fsdp-muon"):
        saved = checkpoint.read(run.checkpoint_path(outcomes.find_run(name), "last"))
        checkpoint.require_fit(saved, model)
        assert saved.moments.keys() == alone.moments.keys()
        assert all(saved.moments[key].shape == moment.shape for key, moment in alone.moments.items())
        for key, tensor in saved.average.items():
            torch.testing.assert_close(tensor, dict(model.named_parameters())[key].data, atol=1e-4, rtol=0)
