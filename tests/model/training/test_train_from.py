"""A training that begins with the network and the weights of another run."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.runs import checkpoint, plan, run
from model.training import stage
from pipeline.errors import BadConfig, TryAgain
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Integers
from pipeline.tokens import counting
from tests.conftest import Inkstone
from tests.support.exchanging import GPT2, QWEN3, alone, network, published

__all__ = ["alone"]  # fixtures


def counted(root: Path, **changes: Any) -> tuple[Artifact, Artifact]:
    """Tokens of numbers, and the run of a network that has their tokenizer."""
    tokens = counting.build(root).artifact
    config = replace(GPT2, vocab_size=100, block_size=24, **changes)
    return tokens, published(root, config, Integers(100), name="parent")


SHORT = {"steps": 4, "evaluations": 1, "precision": "fp32", "batch_size": 4, "eval_bytes": 2000}


def begun(root: Path, tokens: Artifact, parent: Artifact, **settings: Any) -> Artifact:
    planned = plan.plan_from(parent, tokens, "mini", name="child", settings={**SHORT, **settings})
    return stage.train(root, planned, device="cpu", resume=True, report=lambda line: None).artifact


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than so short a training."""
    monkeypatch.setattr(
        "model.training.loss_curve.draw", lambda table, folder, *_: (folder / "loss.png").write_bytes(b"a picture")
    )


def test_a_training_begins_with_the_weights_of_another_run_and_says_whose(root: Path) -> None:
    tokens, parent = counted(root, qkv_bias=True)
    child = begun(root, tokens, parent, learning_rate=1e-12, weight_decay=0.0)
    after, before = (checkpoint.read_weights(run.checkpoint_path(each, "last")) for each in (child, parent))
    assert all(torch.allclose(after[name], each, atol=1e-6) for name, each in before.items())
    assert {entry.role: entry.name for entry in child.manifest.inputs}["parent"] == parent.ref
    assert run.read_result(child.path).steps == 4
    assert child.manifest.options["model"]["width"] == GPT2.width, "the network is the run's, not the preset's"


def test_where_there_is_an_average_of_the_weights_it_begins_with_that(root: Path) -> None:
    tokens, _ = counted(root)
    average = network(replace(GPT2, vocab_size=100, block_size=24), seed=2)
    parent = published(root, average.config, Integers(100), name="parent", average=average)
    child = begun(root, tokens, parent, learning_rate=1e-12, weight_decay=0.0)
    found = checkpoint.read_weights(run.checkpoint_path(child, "last"))
    assert torch.allclose(found["embedding.weight"], average.embedding.weight, atol=1e-6)


def test_the_block_may_become_shorter_and_nothing_else_may_change(root: Path) -> None:
    tokens, parent = counted(root)
    child = begun(root, tokens, parent, block_size=12, dropout=0.2)
    positions = checkpoint.read_weights(run.checkpoint_path(child, "last"))["position.weight"]
    assert positions.shape == (12, GPT2.width)
    for wrong in ({"width": 64}, {"layers": 3}, {"positions": "rotary"}, {"vocab_size": 200}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(BadConfig, match=f"{name}: {value}"):
            plan.plan_from(parent, tokens, "mini", settings=wrong)
    with pytest.raises(BadConfig, match="24 positions, not 48"):
        plan.plan_from(parent, tokens, "mini", settings={"block_size": 48})


def test_tokens_of_another_tokenizer_are_refused(root: Path) -> None:
    tokens = counting.build(root).artifact
    with pytest.raises(BadConfig, match="integers:100") as refused:
        plan.plan_from(published(root, QWEN3), tokens, "mini")
    assert "--tokenizer letters" in refused.value.hint


def test_the_command_trains_from_a_run(root: Path, inkstone: Inkstone) -> None:
    counted(root)
    settings = [word for name, value in SHORT.items() for word in ("--set", f"{name}={value}")]
    said = inkstone(
        "train", "--from", "parent", "--tokens", "counting", "--preset", "mini", "--name", "child", *settings
    )
    assert said["result"] == "built"
    assert said["steps_before"] == 7
    assert "the weights of parent/" in said["stderr"]
    found = artifact.find(root, "runs", "child")
    assert found.manifest.options["afresh"] is True


def test_the_data_are_new_to_it_whatever_the_parent_had_seen(root: Path) -> None:
    tokens, parent = counted(root)
    result = run.read_result(begun(root, tokens, parent).path)
    assert result.steps_before == 7
    assert result.epochs == pytest.approx(4 * 4 * 24 / tokens.manifest.counts["train_tokens"], rel=0.2)


def test_an_unfinished_one_goes_on_from_the_run_that_it_was_begun_with(root: Path) -> None:
    tokens, parent = counted(root)
    planned = plan.plan_from(parent, tokens, "mini", name="child", settings=SHORT)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(TryAgain):
        stage.train(root, planned, device="cpu", resume=True, report=lambda line: None, stopped=stopped)
    newer = published(root, replace(GPT2, vocab_size=100, block_size=24, qkv_bias=True), Integers(100), name="parent")
    assert newer.ref != parent.ref
    again = plan.plan_from(newer, tokens, "mini", name="child", settings=SHORT)
    assert plan.pinned(root, again) == again, "another network is another training"
    config = replace(GPT2, vocab_size=100, block_size=24)
    newer = published(root, config, Integers(100), name="parent", average=network(config, seed=2))
    assert newer.ref != parent.ref
    again = plan.plan_from(newer, tokens, "mini", name="child", settings=SHORT)
    assert plan.pinned(root, again) == planned


def test_a_run_never_takes_the_place_of_the_one_that_it_begins_with(root: Path) -> None:
    tokens, parent = counted(root)
    with pytest.raises(BadConfig, match="take the place of parent"):
        plan.plan_from(parent, tokens, "mini", name="parent")
