"""Training that starts from the network and the weights of another run."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.runs import checkpoint, plan, run, unfinished
from model.training import stage
from pipeline.errors import BadConfig, TryAgain
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Integers
from pipeline.tokens import counting
from tests.conftest import Inkstone
from tests.support.exchanging import GPT2, QWEN3, publish_run, random_network, single_thread_offline
from tests.support.training import no_loss_curve

__all__ = ["no_loss_curve", "single_thread_offline"]  # fixtures


def tokens_and_parent(root: Path, **changes: Any) -> tuple[Artifact, Artifact]:
    """Return the counting tokens and the run of a network with their tokenizer."""
    tokens = counting.build(root).artifact
    config = replace(GPT2, vocab_size=100, block_size=24, **changes)
    return tokens, publish_run(root, config, Integers(100), name="parent")


SHORT = {"steps": 4, "evaluations": 1, "precision": "fp32", "batch_size": 4, "eval_bytes": 2000}


def train_from(root: Path, tokens: Artifact, parent: Artifact, **settings: Any) -> Artifact:
    child = plan.make_plan(tokens, "mini", parent=parent, name="child", settings={**SHORT, **settings})
    return stage.train(root, child, device="cpu", resume=True, report=lambda line: None).artifact


def test_training_from_a_run_starts_from_its_weights(root: Path) -> None:
    tokens, parent = tokens_and_parent(root, qkv_bias=True)
    child = train_from(root, tokens, parent, learning_rate=1e-12, weight_decay=0.0)
    trained, initial = (checkpoint.read_weights(run.checkpoint_path(source, "last")) for source in (child, parent))
    assert all(torch.allclose(trained[name], weight, atol=1e-6) for name, weight in initial.items())
    assert {entry.role: entry.name for entry in child.manifest.inputs}["parent"] == parent.ref
    assert run.read_result(child.path).steps == 4
    assert child.manifest.options["model"]["width"] == GPT2.width, "the network is the run's, not the preset's"


def test_training_from_a_run_starts_from_the_average_of_its_weights(root: Path) -> None:
    tokens, _ = tokens_and_parent(root)
    average = random_network(replace(GPT2, vocab_size=100, block_size=24), seed=2)
    parent = publish_run(root, average.config, Integers(100), name="parent", average=average)
    child = train_from(root, tokens, parent, learning_rate=1e-12, weight_decay=0.0)
    weights = checkpoint.read_weights(run.checkpoint_path(child, "last"))
    assert torch.allclose(weights["embedding.weight"], average.embedding.weight, atol=1e-6)


def test_only_dropout_and_a_shorter_block_may_change(root: Path) -> None:
    tokens, parent = tokens_and_parent(root)
    child = train_from(root, tokens, parent, block_size=12, dropout=0.2)
    positions = checkpoint.read_weights(run.checkpoint_path(child, "last"))["position.weight"]
    assert positions.shape == (12, GPT2.width)
    for wrong in ({"width": 64}, {"layers": 3}, {"positions": "rotary"}, {"vocab_size": 200}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(BadConfig, match=f"{name}: {value}"):
            plan.make_plan(tokens, "mini", parent=parent, settings=wrong)
    with pytest.raises(BadConfig, match=r"at most 24, .* got 48"):
        plan.make_plan(tokens, "mini", parent=parent, settings={"block_size": 48})


def test_tokens_of_another_tokenizer_raise_bad_config(root: Path) -> None:
    tokens = counting.build(root).artifact
    with pytest.raises(BadConfig, match="integers:100") as refused:
        plan.make_plan(tokens, "mini", parent=publish_run(root, QWEN3))
    assert "--tokenizer letters" in refused.value.hint


def test_command_trains_from_a_run(root: Path, inkstone: Inkstone) -> None:
    tokens_and_parent(root)
    settings = [word for name, value in SHORT.items() for word in ("--set", f"{name}={value}")]
    output = inkstone(
        "train", "--from", "parent", "--tokens", "counting", "--preset", "mini", "--name", "child", *settings
    )
    assert output["result"] == "built"
    assert output["steps_before"] == 7
    assert "the weights of parent/" in output["stderr"]
    child = artifact.find(root, "runs", "child")
    assert child.manifest.options["afresh"] is True


def test_training_from_a_run_counts_its_own_epochs_only(root: Path) -> None:
    tokens, parent = tokens_and_parent(root)
    result = run.read_result(train_from(root, tokens, parent).path)
    assert result.steps_before == 7
    assert result.epochs == pytest.approx(4 * 4 * 24 / tokens.manifest.counts["train_tokens"], rel=0.2)


def test_unfinished_training_keeps_the_parent_it_started_from(root: Path) -> None:
    tokens, parent = tokens_and_parent(root)
    original = plan.make_plan(tokens, "mini", parent=parent, name="child", settings=SHORT)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(TryAgain):
        stage.train(root, original, device="cpu", resume=True, report=lambda line: None, stopped=stopped)
    newer = publish_run(root, replace(GPT2, vocab_size=100, block_size=24, qkv_bias=True), Integers(100), name="parent")
    assert newer.ref != parent.ref
    newer_plan = plan.make_plan(tokens, "mini", parent=newer, name="child", settings=SHORT)
    assert unfinished.pin_unfinished(root, newer_plan) == newer_plan, "another network is another training"
    config = replace(GPT2, vocab_size=100, block_size=24)
    newer = publish_run(root, config, Integers(100), name="parent", average=random_network(config, seed=2))
    assert newer.ref != parent.ref
    newer_plan = plan.make_plan(tokens, "mini", parent=newer, name="child", settings=SHORT)
    assert unfinished.pin_unfinished(root, newer_plan) == original


def test_run_cannot_replace_its_parent(root: Path) -> None:
    tokens, parent = tokens_and_parent(root)
    with pytest.raises(BadConfig, match="would replace parent"):
        plan.make_plan(tokens, "mini", parent=parent, name="parent")
