"""A run that is worse than the current one of its name does not replace it unless that is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.runs import plan, run
from model.training import finish, stage
from model.training.evaluate import encode_again, validation_set
from pipeline import tokenizers
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.store.generations import read_run_info
from pipeline.tokens import counting
from pipeline.tokens.store import open_store
from tests.support.tokenizing import run as tokenize
from tests.support.tokenizing import some
from tests.support.training import no_loss_curve
from tests.support.upstream import letters, texts

__all__ = ["no_loss_curve"]  # fixtures

LEARNED = {"steps": 30, "evaluations": 1, "eval_bytes": 400, "precision": "fp32"}
HARDLY = {**LEARNED, "steps": 1}


@pytest.fixture
def tokens(root: Path) -> Artifact:
    return counting.build(root).artifact


def train(
    root: Path, tokens: Artifact, settings: dict[str, Any], *, accept: bool = False
) -> tuple[Artifact, list[str]]:
    """Train a run from scratch; return it and what was reported."""
    planned, messages = plan.make_plan(tokens, "mini", name="small", settings=settings), list[str]()
    built = stage.train(root, planned, device="cpu", resume=True, report=messages.append, accept=accept)
    return built.artifact, messages


def current(root: Path) -> Artifact:
    return artifact.find(root, "runs", "small")


def test_worse_run_is_published_and_the_current_one_stays(root: Path, tokens: Artifact) -> None:
    good, messages = train(root, tokens, LEARNED)
    assert not [line for line in messages if "worse" in line or "compared" in line], "there is nothing to compare with"
    worse, messages = train(root, tokens, HARDLY)
    assert current(root) == good
    (line,) = [line for line in messages if line.startswith("worse than")]
    figures = [run.read_result(published.path).best_bits_per_char for published in (worse, good)]
    assert line == (
        f"worse than {good.ref}, which stays current: {figures[0]:.3f} against {figures[1]:.3f} bits per character; "
        "--accept-worse makes it current"
    )
    reason = f"worse than current ({figures[0]:.3f} against {figures[1]:.3f} bits per character)"
    assert read_run_info(worse.path).reason == reason
    again, _ = train(root, tokens, HARDLY)
    assert (again, current(root)) == (worse, good)
    train(root, tokens, HARDLY, accept=True)
    assert current(root) == worse


def test_accepted_and_better_runs_become_current_with_both_figures(root: Path, tokens: Artifact) -> None:
    good, _ = train(root, tokens, LEARNED)
    accepted, messages = train(root, tokens, HARDLY, accept=True)
    assert current(root) == accepted
    assert any(line.startswith(f"worse than {good.ref}, and accepted: ") for line in messages)
    better, messages = train(root, tokens, {**LEARNED, "steps": 25})
    assert current(root) == better
    assert any(line.startswith(f"compared with {accepted.ref}: ") for line in messages)


def test_damaged_current_run_is_not_compared_and_replaced(root: Path, tokens: Artifact) -> None:
    good, _ = train(root, tokens, LEARNED)
    weights = run.checkpoint_path(good, "best") / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    new, messages = train(root, tokens, HARDLY)
    assert current(root) == new
    assert any(line.startswith(f"not compared with {good.ref}: ") for line in messages)


def test_run_without_validation_text_is_not_compared(root: Path, tmp_path: Path) -> None:
    tokens = tokenize(root, some(tmp_path, texts("some", 40)), val_fraction=0.0).artifact
    first, _ = train(root, tokens, {**HARDLY, "vocab_size": 0})
    second, messages = train(root, tokens, {**HARDLY, "vocab_size": 0, "steps": 2})
    assert current(root) == second
    assert f"not compared with {first.ref}: the tokens have no validation text" in messages


def test_runs_with_other_tokenizers_are_compared_on_the_same_text(root: Path, tmp_path: Path) -> None:
    tokens = tokenize(root, some(tmp_path, texts("some", 40)), val_fraction=0.3).artifact
    store = open_store(tokens)
    validation = validation_set(store, 300)
    other = tokenizers.open_folder(letters(tmp_path / "others", map(chr, range(126, 31, -1))))
    assert other.fingerprint != store.tokenizer.fingerprint
    encoded = encode_again(store.tokenizer, validation, other)
    assert not np.array_equal(encoded.ids, validation.ids)
    assert other.decode(encoded.ids.tolist()) == store.tokenizer.decode(validation.ids.tolist())
    ends = int((validation.ids == store.tokenizer.end_of_text).sum())
    assert int((encoded.ids == other.end_of_text).sum()) == ends > 1
    assert (encoded.characters, encoded.bytes) == (validation.characters, validation.bytes)
    assert encode_again(store.tokenizer, validation, store.tokenizer) is validation


@pytest.mark.parametrize(("new", "is_worse"), [(2.0, False), (2.02, False), (2.03, True), (float("nan"), True)])
def test_one_percent_is_tolerated(new: float, is_worse: bool) -> None:
    assert finish.Comparison(new, 2.0).is_worse is is_worse
