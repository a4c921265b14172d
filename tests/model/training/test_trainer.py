"""Training: it learns, it stops and goes on to the same weights, and sampling needs nothing but its run."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model import device as devices
from model.runs import checkpoint, plan, run
from model.runs.run import Report
from model.training import metrics, stage
from pipeline.errors import BadConfig, BadData, TrainingDiverged, TryAgain
from pipeline.store import artifact
from pipeline.store.artifact import Artifact, Built
from pipeline.store.generations import draft_path
from pipeline.tokens import counting

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


@pytest.fixture
def numbers(root: Path) -> Artifact:
    return counting.build(root).artifact


def train(root: Path, numbers: Artifact, **chosen: object) -> Built:
    settings = {"evaluations": 2, "dropout": 0.1, **chosen}
    planned = plan.plan(numbers, "mini", name="counter", settings=settings)
    return stage.train(root, planned, device="cpu", resume=True, report=lambda line: None)


def test_the_counting_toy_answers_4_after_1_2_3(inkstone: object) -> None:
    inkstone("train", "--preset", "mini", "--counting")  # type: ignore[operator]
    said = inkstone("sample", "mini", "--prompt-ids", "1,2,3", "--greedy", "--max-tokens", "3")  # type: ignore[operator]
    assert said["samples"][0]["token_ids"] == [4, 5, 6]
    assert said["samples"][0]["text"] == "4 5 6"


def test_the_loss_falls_and_the_result_says_by_how_much(root: Path, numbers: Artifact) -> None:
    result = run.read_result(train(root, numbers, steps=60).artifact.path)
    assert result.bits_per_char < 0.7 * result.first_bits_per_char
    assert (result.steps, result.tokens, result.mfu) == (60, 60 * 32 * 16, None)
    assert result.tokens_per_second > 0


def test_a_run_holds_its_tokenizer_curve_metrics_and_checkpoint(root: Path, numbers: Artifact, tmp_path: Path) -> None:
    made = train(root, numbers, steps=20).artifact
    moved = tmp_path / "elsewhere"
    shutil.move(made.path, moved)
    shutil.rmtree(root)
    found = artifact.read(moved)
    assert (moved / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert run.open_tokenizer(found).decode([4]) == "4"
    model = checkpoint.load_model(run.checkpoint_path(found, "best"), CPU)
    assert sum(weight.numel() for weight in model.parameters()) == run.read_result(found.path).parameters
    with open(moved / "metrics.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["step"] for row in rows if row["val_loss"]] == ["0", "10", "20"]


def test_a_run_tells_what_happened_and_what_it_wrote_meanwhile(root: Path, numbers: Artifact) -> None:
    made = train(root, numbers, steps=20).artifact
    events = [json.loads(line) for line in made.file("log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "evaluation"] == [0, 10, 20]
    samples = [json.loads(line) for line in made.file("samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0, 10, 20]
    assert all(sample["prompt"] for sample in samples)
    assert b"<svg" in made.file("loss.svg").read_bytes()


def test_tensorboard_is_told_what_the_table_is(root: Path, numbers: Artifact) -> None:
    planned = plan.plan(numbers, "mini", name="counter", settings={"evaluations": 2, "steps": 20})
    planned = dataclasses.replace(planned, tensorboard=True)
    made = stage.train(root, planned, device="cpu", resume=True, report=lambda line: None).artifact
    events = EventAccumulator(str(made.file("tensorboard")))
    events.Reload()
    rows = [row for row in metrics.read(made.file("metrics.csv")) if row["val_loss"]]
    told = [(event.step, event.value) for event in events.Scalars("val_loss")]
    assert told == [(int(row["step"]), pytest.approx(float(row["val_loss"]), abs=1e-4)) for row in rows]


def test_a_second_training_of_the_same_plan_is_unchanged(root: Path, numbers: Artifact) -> None:
    assert train(root, numbers, steps=5).result == "built"
    assert train(root, numbers, steps=5).result == "unchanged"
    assert train(root, numbers, steps=6).result == "built"


def weights(made: Artifact) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint_path(made, "last") / "model.safetensors")


def test_a_run_that_was_stopped_and_went_on_ends_in_the_same_weights(root: Path, tmp_path: Path) -> None:
    whole = train(root, counting.build(root).artifact, steps=40).artifact

    other = tmp_path / "other"
    numbers = counting.build(other).artifact
    lines: list[str] = []
    planned = plan.plan(numbers, "mini", name="counter", settings={"evaluations": 2, "dropout": 0.1, "steps": 40})
    with pytest.raises(TryAgain, match="stopped by a signal at step 20") as caught:
        stage.train(other, planned, device="cpu", resume=True, report=stop_at(20, lines))
    assert caught.value.exit_code == 75
    assert artifact.current(other, "runs", "counter") is None
    resumed = stage.train(other, planned, device="cpu", resume=True, report=lines.append).artifact

    assert any("going on from step 20" in line for line in lines)
    expected = weights(whole)
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name


def stop_at(step: int, lines: list[str] | None = None) -> Report:
    """A report that sends SIGTERM when it hears of an evaluation at `step`."""

    def report(line: str) -> None:
        if lines is not None:
            lines.append(line)
        if line.startswith(f"step {step:>6,}"):
            os.kill(os.getpid(), signal.SIGTERM)

    return report


def test_a_run_may_be_stopped_again_and_again(root: Path, numbers: Artifact) -> None:
    planned = plan.plan(numbers, "mini", name="counter", settings={"evaluations": 4, "steps": 40})
    for step in (10, 20, 30):
        with pytest.raises(TryAgain, match=f"at step {step}"):
            stage.train(root, planned, device="cpu", resume=True, report=stop_at(step))
    made = stage.train(root, planned, device="cpu", resume=True, report=lambda line: None).artifact
    assert [row["step"] for row in metrics.read(made.file("metrics.csv")) if row["val_loss"]] == [
        "0",
        "10",
        "20",
        "30",
        "40",
    ]


def test_a_signal_in_the_last_step_lets_the_run_end_well(root: Path, numbers: Artifact) -> None:
    planned = plan.plan(numbers, "mini", name="counter", settings={"evaluations": 2, "steps": 20})
    made = stage.train(root, planned, device="cpu", resume=True, report=stop_at(20)).artifact
    assert run.read_result(made.path).last == "step-00000020"


def test_a_wrong_option_leaves_the_checkpoints_of_an_unfinished_run_alone(root: Path, numbers: Artifact) -> None:
    planned = plan.plan(numbers, "mini", name="counter", settings={"evaluations": 2, "steps": 20})
    with pytest.raises(TryAgain):
        stage.train(root, planned, device="cpu", resume=True, report=stop_at(10))
    with pytest.raises(BadConfig, match="no device"):
        stage.train(root, planned, device="tpu", resume=True, report=lambda line: None)
    lines: list[str] = []
    stage.train(root, planned, device="cpu", resume=True, report=lines.append)
    assert any("going on from step 10" in line for line in lines)


def test_the_checkpoint_before_a_damaged_one_is_used_and_the_damaged_one_replaced(
    root: Path, numbers: Artifact
) -> None:
    planned = plan.plan(numbers, "mini", name="counter", settings={"evaluations": 4, "steps": 40})
    with pytest.raises(TryAgain):
        stage.train(root, planned, device="cpu", resume=True, report=stop_at(20))
    checkpoints = draft_path(root, plan.identify(planned)) / "checkpoints"
    newest, before = checkpoint.steps(checkpoints)
    flip_a_bit(newest / "model.safetensors")
    lines: list[str] = []
    made = stage.train(root, planned, device="cpu", resume=True, report=lines.append).artifact
    assert any("trying the one before it" in line for line in lines)
    assert any(f"going on from step {int(before.name[5:])}" in line for line in lines)
    checkpoint.load_model(run.checkpoint_path(made, "best"), CPU)


def test_a_published_run_that_lost_its_picture_gets_it_back_without_training(root: Path, numbers: Artifact) -> None:
    made = train(root, numbers, steps=20).artifact
    before = weights(made)
    made.file("loss.png").unlink()
    lines: list[str] = []
    planned = plan.plan(numbers, "mini", name="counter", settings={"evaluations": 2, "dropout": 0.1, "steps": 20})
    again = stage.train(root, planned, device="cpu", resume=True, report=lines.append).artifact
    assert any("going on from step 20" in line for line in lines)
    assert again.file("loss.png").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(again).items())


def test_a_damaged_checkpoint_is_never_loaded_and_never_leads_to_a_silent_fresh_start(
    root: Path, numbers: Artifact
) -> None:
    planned = plan.plan(numbers, "mini", name="counter", settings={"evaluations": 2, "steps": 40})

    with pytest.raises(TryAgain):
        stage.train(root, planned, device="cpu", resume=True, report=stop_at(20))
    draft = draft_path(root, plan.identify(planned))
    saved = checkpoint.steps(draft / "checkpoints")
    for path in saved:
        flip_a_bit(path / "model.safetensors")
    for _ in range(2):  # nor the second time, when they are in quarantine
        with pytest.raises(BadData, match="no checkpoint of the unfinished run can be read"):
            stage.train(root, planned, device="cpu", resume=True, report=lambda line: None)
    assert stage.train(root, planned, device="cpu", resume=False, report=lambda line: None).result == "built"


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_sampling_refuses_a_checkpoint_with_one_flipped_bit(root: Path, numbers: Artifact) -> None:
    made = train(root, numbers, steps=5).artifact
    path = run.checkpoint_path(made, "last")
    flip_a_bit(path / "model.safetensors")
    with pytest.raises(BadData, match="not as it was saved"):
        checkpoint.load_model(path, CPU)


def test_a_loss_that_is_no_number_ends_the_run_with_exit_12(root: Path, numbers: Artifact) -> None:
    with pytest.raises(TrainingDiverged) as caught:
        train(root, numbers, steps=200, learning_rate=1e18, warmup=1)
    assert caught.value.exit_code == 12
    assert artifact.current(root, "runs", "counter") is None


def test_a_validation_loss_that_is_no_number_ends_the_run_with_exit_12(root: Path, numbers: Artifact) -> None:
    with pytest.raises(TrainingDiverged, match="validation loss"):
        train(root, numbers, steps=1, learning_rate=1e30, warmup=1)


def test_minutes_plan_the_schedule_by_the_clock(root: Path, numbers: Artifact) -> None:
    planned = plan.plan(numbers, "mini", name="clock", minutes=0.03)
    start = time.monotonic()
    result = run.read_result(
        stage.train(root, planned, device="cpu", resume=True, report=lambda line: None).artifact.path
    )
    assert 1.5 < time.monotonic() - start < 15
    assert 1.8 <= result.seconds < 10
    assert result.steps > 10


def test_steps_and_minutes_exclude_each_other(numbers: Artifact) -> None:
    with pytest.raises(BadConfig, match="exclude each other"):
        plan.plan(numbers, "mini", steps=5, minutes=1)


def test_a_preset_with_too_small_a_vocabulary_is_refused(root: Path) -> None:
    manifest = msgspec.structs.replace(counting.build(root).artifact.manifest, counts={"vocab_size": 8000})
    with pytest.raises(BadConfig, match="8,000 ids"):
        plan.plan(Artifact(root, manifest, ""), "mini")


def test_too_short_a_text_for_the_block_is_refused_before_any_work(root: Path, numbers: Artifact) -> None:
    with pytest.raises(BadData, match="too few for a block of 20000"):
        train(root, numbers, steps=5, block_size=20_000)


def test_a_smaller_micro_batch_gives_the_gradient_of_the_large_batch(root: Path, numbers: Artifact) -> None:
    chosen = {"steps": 3, "dropout": 0.0, "batch_size": 32, "precision": "fp32"}  # else whichever is faster just then
    large = train(root, numbers, **chosen).artifact
    parts = train(root, numbers, **chosen, micro_batch=8).artifact
    for name, tensor in weights(parts).items():
        torch.testing.assert_close(tensor, weights(large)[name], atol=2e-5, rtol=1e-3)


def test_an_unknown_or_absent_device_is_refused() -> None:
    for name in ("tpu", "cuda" if not torch.cuda.is_available() else "mps"):
        with pytest.raises(BadConfig, match="no device"):
            devices.pick(name)
    assert devices.pick("cpu").type == "cpu"


def test_a_killed_training_leaves_nothing_published_and_goes_on(root: Path) -> None:
    counting.build(root)
    command = [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "train", "--preset", "mini"]
    command += ["--tokens", "counting", "--set", "evaluations=100", "--steps", "600"]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert started.stderr
    killer = threading.Timer(60, started.kill)
    killer.start()
    for line in started.stderr:
        if "step     20" in line:
            break
    started.kill()
    started.wait()
    killer.cancel()
    assert artifact.current(root, "runs", "mini") is None
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    assert artifact.current(root, "runs", "mini") is not None


def test_a_first_evaluation_that_takes_longer_than_the_whole_time_still_leaves_a_trained_run(
    root: Path, numbers: Artifact
) -> None:
    planned = plan.plan(numbers, "mini", name="clock", minutes=1e-6)
    result = run.read_result(
        stage.train(root, planned, device="cpu", resume=True, report=lambda line: None).artifact.path
    )
    assert result.steps >= 1


def test_checkpoints_come_by_the_clock_too_and_three_are_kept_at_most(
    root: Path, numbers: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    kept: list[int] = []
    save = checkpoint.save

    def watched(folder: Path, state: checkpoint.State, *rest: Any) -> Path:
        made = save(folder, state, *rest)
        saved.append(state.step)
        kept.append(len(checkpoint.steps(folder)))
        return made

    monkeypatch.setattr(checkpoint, "save", watched)
    monkeypatch.setattr("model.training.trainer._CHECKPOINT_SECONDS", 0.0)
    made = train(root, numbers, steps=8, evaluations=1).artifact
    assert saved == list(range(1, 9))
    assert max(kept) <= 4  # the newest beside the two before it and the best, until those are tidied
    assert run.read_result(made.path).last == "step-00000008"
