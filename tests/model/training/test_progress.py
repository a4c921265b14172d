"""What a training reports while it runs, and tokens without a validation part."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.api import load_run
from model.generation import engine
from model.runs import checkpoint, plan, run
from model.training import evaluator, stage
from model.training.baselines import Baselines
from model.training.evaluate import evaluate
from model.training.progress import TrainProgress, _sample_line, _time_left
from pipeline.errors import BadData
from pipeline.store import artifact
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.manifest import Identity
from pipeline.tokens import counting
from tests.conftest import Inkstone

SETTINGS = {"evaluations": 2, "dropout": 0.1, "batch_size": 8}


@pytest.fixture
def tokens(root: Path) -> Artifact:
    return counting.build(root).artifact


def without_validation(root: Path, tokens: Artifact) -> Artifact:
    """Publish tokens that have the training split of `tokens` and no validation split."""
    counts = {**tokens.manifest.counts, "val_tokens": 0, "val_documents": 0}

    def write(draft: Path) -> StageOutput:
        for path in tokens.path.iterdir():
            if path.name.startswith(("train-", "tokenizer")):
                shutil.copy(path, draft / path.name)
        return StageOutput(counts)

    identity = Identity("tokens", "whole", {"stage": 1}, (), tokens.manifest.tokenizer)
    return artifact.build(root, identity, write).artifact


def train(root: Path, tokens: Artifact, name: str = "numbers", **options: Any) -> tuple[Artifact, list[str]]:
    lines: list[str] = []
    planned = plan.make_plan(tokens, "mini", name=name, steps=20, settings=SETTINGS)
    built = stage.train(root, planned, device="cpu", resume=True, report=lines.append, **options)
    return built.artifact, lines


def losses(trained: Artifact) -> list[tuple[str, ...]]:
    with open(trained.file("metrics.csv"), newline="") as file:
        return [(row["step"], row["train_loss"], row["val_loss"]) for row in csv.DictReader(file)]


def test_lines_have_the_time_left_the_best_baseline_below_and_a_sample(root: Path, tokens: Artifact) -> None:
    _, lines = train(root, tokens)
    first, middle, sample, last, _ = lines[-5:]
    assert re.fullmatch(r"step      0    0%  validation \S+ nats/token, \S+ bits/char", first)
    assert re.search(r"loss \S+  validation .* bits/char, better than unigram  \S+ tokens/s  0:\d\d left$", middle)
    assert re.fullmatch(r" {12}1 2 3 4 5 6 7 8\|[\d ]+…?", sample)
    assert "left" not in last


def test_network_before_its_first_step_is_said_to_be_better_than_nothing(
    root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Baselines, "best_beaten", lambda self, loss: "uniform")
    _, lines = train(root, tokens)
    first, *later = [line for line in lines if line.startswith("step") and "validation" in line]
    assert "better than" not in first
    assert all("better than uniform" in line for line in later)


def test_watch_gets_values_instead_of_lines(root: Path, tokens: Artifact) -> None:
    states: list[TrainProgress] = []
    trained, lines = train(root, tokens, watch=states.append)
    assert not [line for line in lines if line.startswith("step")]
    result = run.read_result(trained.path)
    assert result.bits_per_char == pytest.approx(states[-1].bits_per_char, abs=1e-4)
    assert (states[0].step, states[0].fraction, states[0].sample) == (0, 0.0, "")
    assert (states[-1].step, states[-1].fraction) == (20, 1.0)
    assert states[-1].better_than == "unigram"
    assert states[-1].sample.startswith("1 2 3 4 5 6 7 8|")


def evaluated_steps(trained: Artifact) -> list[str]:
    return [step for step, _, val_loss in losses(trained) if val_loss]


def test_short_training_is_evaluated_six_times_after_the_start(root: Path, tokens: Artifact) -> None:
    planned = plan.make_plan(tokens, "mini", name="short", steps=12, settings={**SETTINGS, "evaluations": 10})
    trained = stage.train(root, planned, device="cpu", resume=True, report=lambda line: None).artifact
    assert evaluated_steps(trained) == ["0", "2", "4", "6", "8", "10", "12"]


def test_training_by_the_clock_is_evaluated_six_times_even_if_that_takes_long(
    root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate_slowly(*arguments: Any) -> Any:
        time.sleep(0.06)
        return evaluate(*arguments)

    monkeypatch.setattr(evaluator, "evaluate", evaluate_slowly)
    settings = {**SETTINGS, "evaluations": 10}
    planned = plan.make_plan(tokens, "mini", name="timed", minutes=0.02, settings=settings)
    trained = stage.train(root, planned, device="cpu", resume=True, report=lambda line: None).artifact
    assert 6 <= len(evaluated_steps(trained)) <= 8


def test_prompt_of_the_user_is_continued_at_each_evaluation(root: Path, tokens: Artifact) -> None:
    lines: list[str] = []
    planned = replace(
        plan.make_plan(tokens, "mini", name="numbers", steps=20, settings=SETTINGS), prompt="41 42 43 44 45 46 47 48 49"
    )
    trained = stage.train(root, planned, device="cpu", resume=True, report=lines.append).artifact
    samples = [json.loads(line) for line in trained.file("samples.jsonl").read_text().splitlines()]
    assert [sample["prompt"] for sample in samples] == ["41 42 43 44 45 46 47 48 49"] * 3
    assert len([line for line in lines if line.strip().startswith("41 42 43 44 45 46 47 48 49|")]) == 2
    assert plan.identify(planned) == plan.identify(replace(planned, prompt=""))


def test_end_of_a_long_prompt_is_shown_before_the_text() -> None:
    line = _sample_line(engine.Sample("ab" * 100, "the text", [], 0.0))
    assert line == f"…{('ab' * 100)[-49:]}|the text"


def test_result_has_the_scores_of_simple_models(root: Path, tokens: Artifact) -> None:
    trained, lines = train(root, tokens)
    scores = run.read_result(trained.path).baselines
    assert list(scores) == ["uniform", "unigram", "bigram", "zstd", "ngram"]
    listed = ", ".join(f"{name} {bits:.2f}" for name, bits in scores.items())
    assert [line for line in lines if line.startswith("baselines") and line.endswith(listed)]


def test_samples_do_not_change_the_losses(root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    with_samples, _ = train(root, tokens)
    monkeypatch.setattr(evaluator.Evaluator, "_write_sample", lambda *_: None)
    without_samples, _ = train(root, tokens, "silent")
    assert losses(with_samples) == losses(without_samples)


def test_failure_to_sample_does_not_end_the_training(
    root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise BadData("the logits are damaged")

    monkeypatch.setattr(engine, "sample", fail)
    trained, _ = train(root, tokens)
    events = [json.loads(line) for line in trained.file("log.jsonl").read_text().splitlines()]
    assert [event["cause"] for event in events if event["event"] == "no sample"] == ["the logits are damaged"] * 3
    assert run.read_result(trained.path).steps == 20


def test_tokens_without_a_validation_part_give_a_run_without_validation_losses(root: Path, tokens: Artifact) -> None:
    trained, lines = train(root, without_validation(root, tokens), "whole")
    assert "nothing is evaluated, and the last checkpoint is the best" in "\n".join(lines)
    result = run.read_result(trained.path)
    assert (result.val_loss, result.bits_per_char, result.best_val_loss, result.first_bits_per_char) == (None,) * 4
    assert (result.best, result.last) == (checkpoint.folder_name(20),) * 2
    assert b"NaN" not in trained.file("result.json").read_bytes()
    assert all(loss and not val_loss for _, loss, val_loss in losses(trained))
    assert trained.file("loss.png").read_bytes().startswith(b"\x89PNG")
    assert load_run(str(trained.path), root=root).generate("1 2 3", max_tokens=4)
    assert len(trained.file("samples.jsonl").read_text().splitlines()) == 3


def test_run_without_validation_is_exported_resumed_and_listed(
    root: Path, tokens: Artifact, inkstone: Inkstone
) -> None:
    whole = without_validation(root, tokens)
    with pytest.raises(BadData, match="not one of them"):
        train(root, whole, "whole", watch=_fail_at_the_end)
    trained, lines = train(root, whole, "whole")
    assert any("resuming from step 10" in line for line in lines)
    uninterrupted, _ = train(root, whole, "other")
    assert checkpoint.read_weights(run.checkpoint_path(trained, "best")).keys()
    assert losses(trained)[-1] == losses(uninterrupted)[-1]
    output = inkstone("train", "whole", "--preset", "mini", "--name", "whole", "--steps", 20, *_set(SETTINGS))
    assert (output["result"], output["bits_per_char"]) == ("unchanged", None)
    assert inkstone("status")["result"] == "unchanged"


def _fail_at_the_end(state: TrainProgress) -> None:
    if state.step == 20:
        raise BadData("not one of them")


def _set(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.parametrize(("seconds", "text"), [(None, ""), (0, ""), (59.2, "1:00 left"), (3725, "1:02:05 left")])
def test_time_left(seconds: float | None, text: str) -> None:
    assert _time_left(seconds) == text


def test_best_baseline_below_a_loss() -> None:
    baselines = Baselines(uniform=5.0, unigram=4.0, bigram=3.0, zstd=3.5, ngram=2.0, tokens=10, characters=10)
    assert [baselines.best_beaten(loss) for loss in (5.5, 4.5, 3.2, 2.5, 1.0)] == [
        "",
        "uniform",
        "zstd",
        "bigram",
        "ngram",
    ]
