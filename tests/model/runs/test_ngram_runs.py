"""Runs with n-grams: the network is that of a run without them; the ids of the training text lie in the run."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import presets
from model.config import GPTConfig
from model.exchange import export
from model.generation.sampling import SampleOptions
from model.generation.session import Session
from model.runs import checkpoint, continuing, plan, run
from model.runs.plan import TrainPlan, identify
from model.runs.run import NGRAMS
from model.training import resume, stage
from pipeline.errors import BadData, TryAgain
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokens import counting
from pipeline.tokens.store import open_store
from tests.support.training import no_loss_curve

__all__ = ["no_loss_curve"]  # a fixture
CPU = torch.device("cpu")


def make_plan(root: Path, name: str, parent: Artifact | None = None, **settings: Any) -> TrainPlan:
    tokens = counting.build(root).artifact
    changes = {"steps": 8, "evaluations": 1, "eval_bytes": 300, "precision": "fp32", **settings}
    planned = plan.make_plan(tokens, "mini", name=name, settings=changes, parent=parent)
    return planned if parent else continuing.continue_published(root, planned)


def train(root: Path, name: str, parent: Artifact | None = None, **settings: Any) -> Artifact:
    planned = make_plan(root, name, parent, **settings)
    return stage.train(root, planned, device="cpu", resume=True, report=lambda line: None).artifact


@pytest.fixture
def mixed(root: Path) -> Artifact:
    return train(root, "mixed", ngram=3)


def test_network_is_the_same_as_without_ngrams_and_the_loss_is_lower(root: Path, mixed: Artifact) -> None:
    alone = train(root, "alone")
    weights, expected = (checkpoint.read_weights(run.checkpoint_path(item, "last")) for item in (mixed, alone))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    losses = [run.read_result(item.path).val_loss for item in (mixed, alone)]
    assert losses[0] < losses[1] - 0.5  # type: ignore[operator]
    assert not alone.file(NGRAMS).exists()


def test_run_holds_the_ids_that_are_counted(root: Path, mixed: Artifact) -> None:
    store = open_store(counting.build(root).artifact)
    model = checkpoint.load_model(run.checkpoint_path(mixed, "best"), CPU)
    assert model.ngrams
    assert model.ngrams.order == 3
    assert np.array_equal(model.ngrams.ids, store.train.read(0, len(store.train)))
    session = Session(mixed, "best", "cpu", "fp32", lambda line: None)
    (sample,) = session.sample([session.prompt_from_ids("5,6,7,8,9")], SampleOptions(max_tokens=3, temperature=0))
    assert sample.token_ids == [10, 11, 12], "after 8 steps the network alone cannot count"


def test_beginning_of_a_long_training_text_is_counted_and_a_line_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, lines = open_store(counting.build(root).artifact), list[str]()
    monkeypatch.setattr(resume, "MAX_TOKENS", 100)
    counted = resume.count_ngrams(store, GPTConfig(vocab_size=100, ngram=2), lines.append)
    assert counted
    assert len(counted.ids) == 100
    assert lines == [f"n-grams are counted in the first 100 of {len(store.train):,} training tokens"]


@pytest.mark.parametrize("damage", ["missing", "no array", "other ids"])
def test_run_whose_ids_are_damaged_is_refused(mixed: Artifact, damage: str) -> None:
    path = mixed.file(NGRAMS)
    path.unlink()
    if damage == "no array":
        path.write_bytes(b"ids")
    elif damage == "other ids":
        np.save(path, np.array([100], "u1"))
    with pytest.raises(BadData, match=NGRAMS):
        checkpoint.load_model(run.checkpoint_path(mixed, "best"), CPU)


def test_run_that_starts_from_another_may_have_other_ngrams(root: Path, mixed: Artifact) -> None:
    started = train(root, "started", mixed)
    without = train(root, "without", mixed, ngram=0)
    loaded = [checkpoint.load_model(run.checkpoint_path(item, "best"), CPU) for item in (started, without)]
    assert [bool(model.ngrams) for model in loaded] == [True, False]


def test_stopped_run_resumes_to_the_same_loss_and_a_continued_one_counts_again(root: Path, mixed: Artifact) -> None:
    stopped, planned = threading.Event(), make_plan(root, "again", ngram=3)

    def stop_at_a_step(line: str) -> None:
        if line.startswith("step      0"):
            stopped.set()

    with pytest.raises(TryAgain):
        stage.train(root, planned, device="cpu", resume=True, report=stop_at_a_step, stopped=stopped)
    resumed = train(root, "again", ngram=3)
    assert run.read_result(resumed.path).val_loss == run.read_result(mixed.path).val_loss
    longer = continuing.plan_continuation(mixed, counting.build(root).artifact, steps=4)
    continued = stage.train(root, longer, device="cpu", resume=True, report=lambda line: None).artifact
    assert run.read_result(continued.path).steps_before == 8
    assert checkpoint.load_model(run.checkpoint_path(continued, "best"), CPU).ngrams


def test_preset_that_gets_new_settings_leaves_the_runs_of_a_name_as_they_are(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_before, begun, stopped = train(root, "older"), make_plan(root, "begun"), threading.Event()
    stopped.set()
    with pytest.raises(TryAgain):
        stage.train(root, begun, device="cpu", resume=True, report=lambda line: None, stopped=stopped)
    mini = presets.PRESETS["mini"]
    model, train_config = (
        dataclasses.replace(mini.model, ngram=3),
        dataclasses.replace(mini.train, document_starts=True),
    )
    monkeypatch.setitem(presets.PRESETS, "mini", dataclasses.replace(mini, model=model, train=train_config))
    assert identify(make_plan(root, "older")).key == run_before.manifest.key
    assert identify(make_plan(root, "begun")).key == identify(begun).key
    newer = make_plan(root, "newer").preset
    assert (newer.model.ngram, newer.train.document_starts) == (3, True)
    assert make_plan(root, "older", ngram=3).preset.model.ngram == 3
    assert artifact.find(root, "runs", "older").ref == run_before.ref


def test_export_is_of_the_network_alone_and_says_so(root: Path, mixed: Artifact) -> None:
    exported = export.export(mixed, "hf", root / "exports" / "mixed", verify=True)
    assert "without n-grams" in exported.warning
    assert "| n-grams | not exported" in (exported.path / "README.md").read_text()
    assert not export.export(train(root, "alone"), "hf", root / "exports" / "alone").warning
