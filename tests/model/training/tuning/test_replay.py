"""Text of the base model beside conversations: which rows, their weights, and that a run forgets less with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model.config import GPTConfig
from model.runs.plan import make_plan
from model.runs.tuning import plan_tuning
from model.training import stage
from model.training.dataloader import Sampler
from model.training.tuning.replay import Replay
from model.training.tuning.rows import DIVISORS, INPUTS, POSITIONS, SEGMENTS, TARGETS
from model.training.tuning.task import packed
from pipeline.errors import BadData
from pipeline.runtime.progress import SilentProgress
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokens import stage as tokens_stage
from pipeline.tokens.options import TokenizeOptions
from pipeline.tokens.store import open_store
from tests.support.exchanging import publish_run
from tests.support.tuning import BASE, publish_tokens, sums

BLOCK = 96


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifacts folder with a text, a run that learned it, and conversations."""
    folder = tmp_path_factory.mktemp("replay")
    publish_tokens(folder, "chat", sums(60), sums(20), name="talk")
    for name, count in (("text", 400), ("held-out", 60)):
        (folder / f"{name}.txt").write_text(
            "".join(f"the stone {n % 9} is by the water {n % 7}, " for n in range(count))
        )
    inputs = tokens_stage.gather_inputs(folder, (str(folder / "text.txt"),), (str(folder / "held-out.txt"),))
    tokens = tokens_stage.tokenize(folder, "text", inputs, BASE, None, TokenizeOptions(), SilentProgress(), jobs=1)
    settings = {"vocab_size": 0, "block_size": BLOCK, "steps": 60, "evaluations": 1, "learning_rate": 3e-3}
    plan = make_plan(tokens.artifact, "mini", name="base", settings=settings)
    stage.train(folder, plan, device="cpu", resume=False, report=lambda line: None)
    return folder


def tuned(root: Path, **settings: object) -> Artifact:
    values = {"steps": 40, "evaluations": 1, "precision": "fp32", **settings}
    tokens, base = artifact.find(root, "tokens", "talk"), artifact.find(root, "runs", "base")
    plan = plan_tuning(tokens, base, name="tuned", settings=values)
    return stage.train(root, plan, device="cpu", resume=True, accept=True, report=lambda line: None).artifact


@pytest.fixture(scope="module")
def replay(root: Path) -> Replay:
    text = open_store(artifact.find(root, "tokens", "text"))
    rows = packed(open_store(artifact.find(root, "tokens", "talk")), "train", BLOCK, seed=5)
    return Replay(rows, Sampler(text.train, BLOCK, 5, "random", text.key), 0.25)


@pytest.mark.parametrize(("rows", "texts"), [(1, 0), (2, 1), (3, 1), (4, 1), (8, 2), (10, 2)])
def test_a_step_has_packed_rows_and_then_blocks_of_text(replay: Replay, rows: int, texts: int) -> None:
    for step in range(3):
        batch = replay.batch(step, rows)
        talks = replay.conversations.batch(step, rows - texts)
        for plane in (INPUTS, TARGETS, POSITIONS, SEGMENTS):
            assert np.array_equal(batch[: rows - texts, plane], talks[:, plane])
        blocks = replay.text.batch(step, texts)
        assert np.array_equal(batch[rows - texts :, INPUTS], blocks[:, :-1])
        assert np.array_equal(batch[rows - texts :, TARGETS], blocks[:, 1:])
        assert (batch[rows - texts :, POSITIONS] == np.arange(BLOCK)).all()
        assert (batch[rows - texts :, DIVISORS] > 0).all()


@pytest.mark.parametrize("rows", [4, 8])
def test_the_weights_of_a_step_add_up_to_one_of_which_the_text_has_its_share(replay: Replay, rows: int) -> None:
    divisors = replay.batch(0, rows)[:, DIVISORS].astype(float)
    weights = np.divide(1, divisors, out=np.zeros_like(divisors), where=divisors > 0).sum(1)
    assert weights.sum() == pytest.approx(1, rel=1e-2)
    assert weights[rows - rows // 4 :].sum() == pytest.approx(0.25, rel=1e-2)


def test_the_parts_of_a_step_are_those_of_all_rows(replay: Replay) -> None:
    rows = replay.batch(2, 8)
    for first in range(8):
        for count in range(1, 9 - first):
            assert np.array_equal(replay.batch(2, 8, first, count), rows[first : first + count])


def test_a_run_forgets_less_with_the_text_of_its_base(root: Path) -> None:
    without = json.loads((tuned(root, replay=0.0).path / "result.json").read_bytes())["tuning"]
    replayed = json.loads((tuned(root, replay=0.3).path / "result.json").read_bytes())["tuning"]
    assert without["base_before"] == replayed["base_before"]
    assert replayed["base_after"] < without["base_after"]
    assert replayed["answers_after"] < replayed["answers_before"]


def test_the_plan_counts_epochs_of_the_conversations_only(root: Path, replay: Replay) -> None:
    tokens, base = artifact.find(root, "tokens", "talk"), artifact.find(root, "runs", "base")
    settings = {"steps": 40, "batch_size": 8, "replay": 0.25}
    lines = stage.dry_run(plan_tuning(tokens, base, name="tuned", settings=settings), device="cpu")
    rows = len(replay.conversations.rows)
    assert any(line.startswith("tokens ") and f": {rows / 6:,.0f} steps an epoch" in line for line in lines)
    assert any(f", {40 * 6 / rows:.1f} epochs of the conversations, " in line for line in lines)


def test_the_text_is_replayed_by_default_where_it_is_known(root: Path, tmp_path: Path) -> None:
    tokens = artifact.find(root, "tokens", "talk")
    assert plan_tuning(tokens, artifact.find(root, "runs", "base"), name="a").preset.train.replay == 0.3
    imported = publish_run(
        tmp_path, GPTConfig(vocab_size=BASE.vocab_size, block_size=96, layers=1, heads=2, width=16), BASE
    )
    plan = plan_tuning(tokens, imported, name="a")
    assert plan.preset.train.replay == 0.0
    with pytest.raises(BadData, match="was not trained here"):
        stage.train(
            root,
            plan_tuning(tokens, imported, name="a", settings={"replay": 0.3}),
            device="cpu",
            resume=True,
            report=lambda line: None,
        )
