"""Training learns, stops and resumes to the same weights, and its run is all that sampling needs."""

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
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model import device as devices
from model.runs import checkpoint, plan, run
from model.runs.plan import TrainPlan
from model.runs.run import Report
from model.training import metrics, stage
from model.training.dataloader import Sampler
from model.training.learner import Learner, StepResult
from pipeline.errors import BadConfig, BadData, TrainingDiverged, TryAgain
from pipeline.store import artifact
from pipeline.store.artifact import Artifact, BuildResult
from pipeline.store.generations import draft_path
from pipeline.tokens import counting
from pipeline.tokens.store import open_store

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


@pytest.fixture
def tokens(root: Path) -> Artifact:
    """The counting tokens."""
    return counting.build(root).artifact


def make_plan(tokens: Artifact, **settings: object) -> TrainPlan:
    return plan.make_plan(tokens, "mini", name="counter", settings={"evaluations": 2, **settings})


def ignore(line: str) -> None:
    """Report that drops all lines."""


def run_stage(
    root: Path, training: TrainPlan, report: Report = ignore, *, resume: bool = True, device: str = "cpu"
) -> BuildResult:
    return stage.train(root, training, device=device, resume=resume, report=report)


def train(root: Path, tokens: Artifact, **settings: object) -> BuildResult:
    return run_stage(root, make_plan(tokens, **{"dropout": 0.1, **settings}))


def test_counting_model_continues_1_2_3_with_4(inkstone: object) -> None:
    inkstone("train", "--preset", "mini", "--counting")  # type: ignore[operator]
    output = inkstone("sample", "mini", "--prompt-ids", "1,2,3", "--greedy", "--max-tokens", "3")  # type: ignore[operator]
    assert output["samples"][0]["token_ids"] == [4, 5, 6]
    assert output["samples"][0]["text"] == "4 5 6"


def test_loss_falls_and_the_result_records_it(root: Path, tokens: Artifact) -> None:
    result = run.read_result(train(root, tokens, steps=60).artifact.path)
    assert result.bits_per_char is not None
    assert result.first_bits_per_char is not None
    assert result.bits_per_char < 0.7 * result.first_bits_per_char
    assert (result.steps, result.tokens, result.mfu) == (60, 60 * 32 * 16, None)
    assert result.tokens_per_second > 0


def test_next_batch_is_loaded_in_a_step(root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    make_batch, take_step, sampled, loaded = Sampler.batch, Learner.step, list[int](), list[int]()

    def batch(sampler: Sampler, step: int, *rows: int) -> np.ndarray:
        sampled.append(step)
        return make_batch(sampler, step, *rows)

    def step(learner: Learner, *arguments: Any) -> StepResult:
        result = take_step(learner, *arguments)
        loaded.append(sampled[-1])
        return result

    monkeypatch.setattr(Sampler, "batch", batch)
    monkeypatch.setattr(Learner, "step", step)
    train(root, tokens, steps=4)
    assert loaded == [1, 2, 3, 4]


def test_run_is_complete_without_the_other_artifacts(root: Path, tokens: Artifact, tmp_path: Path) -> None:
    run_artifact = train(root, tokens, steps=20).artifact
    moved = tmp_path / "elsewhere"
    shutil.move(run_artifact.path, moved)
    shutil.rmtree(root)
    moved_run = artifact.read(moved)
    assert (moved / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert run.open_tokenizer(moved_run).decode([4]) == "4"
    model = checkpoint.load_model(run.checkpoint_path(moved_run, "best"), CPU)
    assert sum(weight.numel() for weight in model.parameters()) == run.read_result(moved_run.path).parameters
    with open(moved / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["val_loss"]] == ["0", "10", "20"]


def test_run_records_events_and_samples(root: Path, tokens: Artifact) -> None:
    run_artifact = train(root, tokens, steps=20).artifact
    events = [json.loads(line) for line in run_artifact.file("log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "evaluation"] == [0, 10, 20]
    samples = [json.loads(line) for line in run_artifact.file("samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0, 10, 20]
    assert all(sample["prompt"] for sample in samples)
    assert b"<svg" in run_artifact.file("loss.svg").read_bytes()


def test_run_holds_the_losses_of_its_last_evaluation(root: Path, tokens: Artifact) -> None:
    run_artifact = train(root, tokens, steps=20, evaluations=1).artifact
    losses, result = load_file(run_artifact.file("losses.safetensors")), run.read_result(run_artifact.path)
    ids = open_store(tokens).val.read(0, len(losses["ids"]))
    assert losses["ids"].tolist() == ids.tolist()
    assert len(ids) == len(open_store(tokens).val)
    assert float(losses["losses"].double().mean()) == pytest.approx(result.val_loss, abs=1e-5)
    assert losses["position_losses"].shape == (make_plan(tokens).preset.model.block_size,)
    with safe_open(run_artifact.file("losses.safetensors"), "pt") as file:
        assert file.metadata() == {"step": "20"}
    assert "losses.safetensors" in [record.name for record in run_artifact.manifest.files]


def test_rows_of_the_metrics_are_passed_to_a_function(root: Path, tokens: Artifact) -> None:
    rows: list[dict[str, float]] = []
    run_artifact = stage.train(
        root, make_plan(tokens, steps=20), device="cpu", resume=True, report=ignore, on_row=rows.append
    ).artifact
    written = metrics.read(run_artifact.file("metrics.csv"))
    assert len(rows) == len(written) == 3
    for row, texts in zip(rows, written, strict=True):
        numbers = {name: float(text) for name, text in texts.items() if text}
        assert row == {
            name: pytest.approx(number, rel=1e-3, abs=0.5 if name == "memory_mb" else 1e-2)
            for name, number in numbers.items()
        }
    assert all(row["memory_mb"] > 1 for row in rows)


def test_draft_with_rows_of_an_older_version_resumes(root: Path, tokens: Artifact) -> None:
    stopped = threading.Event()
    with pytest.raises(TryAgain):
        stage.train(
            root,
            make_plan(tokens, steps=20),
            device="cpu",
            resume=True,
            report=ignore,
            stopped=stopped,
            on_row=lambda row: stopped.set() if row["step"] else None,
        )
    draft = draft_path(root, plan.identify(make_plan(tokens, steps=20)))
    rows = [line.rpartition(",")[0] for line in (draft / "metrics.csv").read_text().splitlines()]
    (draft / "metrics.csv").write_text("\n".join(rows) + "\n")
    run_artifact = run_stage(root, make_plan(tokens, steps=20)).artifact
    assert [row["memory_mb"] is None for row in metrics.read(run_artifact.file("metrics.csv"))] == [True, True, False]


def test_tensorboard_events_match_the_metrics(root: Path, tokens: Artifact) -> None:
    small_plan = make_plan(tokens, steps=20)
    small_plan = dataclasses.replace(small_plan, tensorboard=True)
    run_artifact = run_stage(root, small_plan).artifact
    events = EventAccumulator(str(run_artifact.file("tensorboard")))
    events.Reload()
    rows = [row for row in metrics.read(run_artifact.file("metrics.csv")) if row["val_loss"]]
    scalars = [(event.step, event.value) for event in events.Scalars("val_loss")]
    assert scalars == [(int(row["step"]), pytest.approx(float(row["val_loss"]), abs=1e-4)) for row in rows]


def test_second_training_of_the_same_plan_is_unchanged(root: Path, tokens: Artifact) -> None:
    assert train(root, tokens, steps=5).result == "built"
    assert train(root, tokens, steps=5).result == "unchanged"
    assert train(root, tokens, steps=6).result == "built"


def weights(run_artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint_path(run_artifact, "last") / "model.safetensors")


def test_stopped_and_resumed_run_ends_with_the_same_weights(root: Path, tmp_path: Path) -> None:
    expected_run = train(root, counting.build(root).artifact, steps=40).artifact

    other_root = tmp_path / "other"
    tokens = counting.build(other_root).artifact
    lines: list[str] = []
    small_plan = make_plan(tokens, dropout=0.1, steps=40)
    with pytest.raises(TryAgain, match="stopped by a signal at step 20") as caught:
        run_stage(other_root, small_plan, stop_at(20, lines))
    assert caught.value.exit_code == 75
    assert artifact.current(other_root, "runs", "counter") is None
    resumed = run_stage(other_root, small_plan, lines.append).artifact

    assert any("resuming from step 20" in line for line in lines)
    expected = weights(expected_run)
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name


def stop_at(step: int, lines: list[str] | None = None) -> Report:
    """Return a report that sends SIGTERM to this process at the evaluation of `step`."""

    def report(line: str) -> None:
        if lines is not None:
            lines.append(line)
        if line.startswith(f"step {step:>6,}"):
            os.kill(os.getpid(), signal.SIGTERM)

    return report


def test_run_may_be_stopped_several_times(root: Path, tokens: Artifact) -> None:
    small_plan = make_plan(tokens, evaluations=4, steps=40)
    for step in (10, 20, 30):
        with pytest.raises(TryAgain, match=f"at step {step}"):
            run_stage(root, small_plan, stop_at(step))
    run_artifact = run_stage(root, small_plan).artifact
    assert [row["step"] for row in metrics.read(run_artifact.file("metrics.csv")) if row["val_loss"]] == [
        "0",
        "10",
        "20",
        "30",
        "40",
    ]


def test_signal_in_the_last_step_does_not_stop_the_run(root: Path, tokens: Artifact) -> None:
    small_plan = make_plan(tokens, steps=20)
    run_artifact = run_stage(root, small_plan, stop_at(20)).artifact
    assert run.read_result(run_artifact.path).last == "step-00000020"


def test_wrong_option_keeps_the_checkpoints_of_an_unfinished_run(root: Path, tokens: Artifact) -> None:
    small_plan = make_plan(tokens, steps=20)
    with pytest.raises(TryAgain):
        run_stage(root, small_plan, stop_at(10))
    with pytest.raises(BadConfig, match="no device"):
        run_stage(root, small_plan, device="tpu")
    lines: list[str] = []
    run_stage(root, small_plan, lines.append)
    assert any("resuming from step 10" in line for line in lines)


def test_checkpoint_before_a_damaged_one_is_used(root: Path, tokens: Artifact) -> None:
    small_plan = make_plan(tokens, evaluations=4, steps=40)
    with pytest.raises(TryAgain):
        run_stage(root, small_plan, stop_at(20))
    checkpoints = draft_path(root, plan.identify(small_plan)) / "checkpoints"
    newest, before = checkpoint.newest_first(checkpoints)
    flip_bit(newest / "model.safetensors")
    lines: list[str] = []
    run_artifact = run_stage(root, small_plan, lines.append).artifact
    assert any("trying the checkpoint before it" in line for line in lines)
    assert any(f"resuming from step {int(before.name[5:])}" in line for line in lines)
    checkpoint.load_model(run.checkpoint_path(run_artifact, "best"), CPU)


def test_lost_loss_curve_is_drawn_again_without_training(root: Path, tokens: Artifact) -> None:
    run_artifact = train(root, tokens, steps=20).artifact
    before = weights(run_artifact)
    run_artifact.file("loss.png").unlink()
    lines: list[str] = []
    small_plan = make_plan(tokens, dropout=0.1, steps=20)
    redrawn = run_stage(root, small_plan, lines.append).artifact
    assert any("resuming from step 20" in line for line in lines)
    assert redrawn.file("loss.png").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(redrawn).items())


def test_damaged_checkpoints_never_lead_to_a_silent_fresh_start(root: Path, tokens: Artifact) -> None:
    small_plan = make_plan(tokens, steps=40)

    with pytest.raises(TryAgain):
        run_stage(root, small_plan, stop_at(20))
    draft = draft_path(root, plan.identify(small_plan))
    saved = checkpoint.newest_first(draft / "checkpoints")
    for path in saved:
        flip_bit(path / "model.safetensors")
    for _ in range(2):  # also the second time, when they are in quarantine
        with pytest.raises(BadData, match="no checkpoint of the unfinished run is readable"):
            run_stage(root, small_plan)
    assert run_stage(root, small_plan, resume=False).result == "built"


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_checkpoint_with_a_flipped_bit_is_not_loaded(root: Path, tokens: Artifact) -> None:
    run_artifact = train(root, tokens, steps=5).artifact
    path = run.checkpoint_path(run_artifact, "last")
    flip_bit(path / "model.safetensors")
    with pytest.raises(BadData, match="changed since it was saved"):
        checkpoint.load_model(path, CPU)


def test_non_finite_loss_exits_12(root: Path, tokens: Artifact) -> None:
    with pytest.raises(TrainingDiverged) as caught:
        train(root, tokens, steps=200, learning_rate=1e18, warmup=1)
    assert caught.value.exit_code == 12
    assert artifact.current(root, "runs", "counter") is None


def test_non_finite_validation_loss_raises_training_diverged(root: Path, tokens: Artifact) -> None:
    with pytest.raises(TrainingDiverged, match="validation loss"):
        train(root, tokens, steps=1, learning_rate=1e30, warmup=1)


def test_minutes_end_the_schedule_by_the_clock(root: Path, tokens: Artifact) -> None:
    small_plan = plan.make_plan(tokens, "mini", name="clock", minutes=0.03)
    start = time.monotonic()
    result = run.read_result(run_stage(root, small_plan).artifact.path)
    assert 1.5 < time.monotonic() - start < 15
    assert 1.8 <= result.seconds < 10
    assert result.steps > 10


def test_steps_and_minutes_exclude_each_other(tokens: Artifact) -> None:
    with pytest.raises(BadConfig, match="exclude each other"):
        plan.make_plan(tokens, "mini", steps=5, minutes=1)


def test_preset_with_too_small_a_vocabulary_is_refused(root: Path) -> None:
    manifest = msgspec.structs.replace(counting.build(root).artifact.manifest, counts={"vocab_size": 8000})
    with pytest.raises(BadConfig, match="8,000 ids"):
        plan.make_plan(Artifact(root, manifest, ""), "mini")


def test_text_shorter_than_a_block_raises_bad_data(root: Path, tokens: Artifact) -> None:
    with pytest.raises(BadData, match="too few for a block of 20000"):
        train(root, tokens, steps=5, block_size=20_000)


def test_micro_batches_give_the_gradient_of_the_batch(root: Path, tokens: Artifact) -> None:
    settings = {
        "steps": 3,
        "dropout": 0.0,
        "batch_size": 32,
        "precision": "fp32",
    }  # "auto" would measure which is faster
    large = train(root, tokens, **settings).artifact
    micro = train(root, tokens, **settings, micro_batch=8).artifact
    for name, tensor in weights(micro).items():
        torch.testing.assert_close(tensor, weights(large)[name], atol=2e-5, rtol=1e-3)


def test_unknown_or_absent_device_is_refused() -> None:
    for name in ("tpu", "cuda" if not torch.cuda.is_available() else "mps"):
        with pytest.raises(BadConfig, match="no device"):
            devices.pick_device(name)
    assert devices.pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["cpu:abc", "cpu:", "cpu:1", "cpu:-1", "cuda:99", "cpu:٠", "", "meta", " cpu"])
def test_device_that_torch_cannot_parse_or_lacks_is_refused(name: str) -> None:
    with pytest.raises(BadConfig, match="no device"):
        devices.pick_device(name)


def test_gpu_that_fails_is_replaced_by_the_cpu_unless_it_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a GPU that is counted and cannot be used, as with a driver of another version."""
    if torch.cuda.is_available():
        pytest.skip("the GPU of this machine works")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    lines: list[str] = []
    assert devices.pick_device("auto", lines.append).type == "cpu"
    assert len(lines) == 1
    assert "cuda cannot be used" in lines[0]
    with pytest.raises(BadConfig, match="device cuda:0 cannot be used"):
        devices.pick_device("cuda:0")


def test_killed_training_publishes_nothing_and_resumes(root: Path) -> None:
    counting.build(root)
    command = [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "train", "--preset", "mini"]
    command += ["--tokens", "counting", "--set", "evaluations=100", "--steps", "600"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    killer = threading.Timer(60, process.kill)
    killer.start()
    for line in process.stderr:
        if "step     20" in line:
            break
    process.kill()
    process.wait()
    killer.cancel()
    assert artifact.current(root, "runs", "mini") is None
    resumed = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from step" in resumed.stderr
    assert artifact.current(root, "runs", "mini") is not None


def test_training_takes_a_step_even_if_evaluating_used_up_the_time(root: Path, tokens: Artifact) -> None:
    small_plan = plan.make_plan(tokens, "mini", name="clock", minutes=1e-6)
    result = run.read_result(run_stage(root, small_plan).artifact.path)
    assert result.steps >= 1


def test_training_takes_a_step_even_if_compiling_used_up_the_time(
    root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.training.trial.measure_step", lambda *arguments, **options: (0.01, 60.0))
    path = run_stage(root, plan.make_plan(tokens, "mini", name="compiled", minutes=0.1)).artifact.path
    result = run.read_result(path)
    assert result.steps >= 1
    assert result.bits_per_char is not None
    assert (path / "losses.safetensors").is_file()


def test_checkpoints_are_saved_by_the_clock_and_at_most_three_kept(
    root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    counts: list[int] = []
    save = checkpoint.save

    def record(folder: Path, state: checkpoint.TrainState, *arguments: Any) -> Path:
        path = save(folder, state, *arguments)
        saved.append(state.step)
        counts.append(len(checkpoint.newest_first(folder)))
        return path

    monkeypatch.setattr(checkpoint, "save", record)
    monkeypatch.setattr("model.training.checkpointer._SECONDS", 0.0)
    run_artifact = train(root, tokens, steps=8, evaluations=1).artifact
    assert saved == list(range(1, 9))
    assert max(counts) <= 4  # the newest, before older ones beside the last two and the best are deleted
    assert run.read_result(run_artifact.path).last == "step-00000008"
