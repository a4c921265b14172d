"""Tuned runs as commands train them: kills and resumes, growing vocabularies, refusals, and what was forgotten."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import api
from model.config import TrainConfig, identity
from model.runs import checkpoint, plan, run, tuning
from model.training import stage
from model.training.distributed import World
from model.training.tuning.task import open_task
from pipeline.errors import BadConfig, BadData
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Characters
from pipeline.tokens import counting
from pipeline.tokens.store import open_store
from tests.conftest import Inkstone
from tests.support.exchanging import GPT2, publish_run, single_thread_offline
from tests.support.faults import Command
from tests.support.training import (
    KILL,
    SAVE_EVERY_STEP,
    STEP,
    before_call,
    metric_rows,
    no_loss_curve,
    preloaded,
    samples,
    tensors,
)
from tests.support.tuning import BASE, CHAT, messages, pairs, publish_tokens, sums, tune

__all__ = ["no_loss_curve", "preloaded", "single_thread_offline"]  # fixtures

KINDS = {"chat": (sums(30), sums(8)), "preferences": (pairs(30), pairs(8))}
FAST: dict[str, Any] = {"positions": "rotary", "bigrams": 64, "convolution": 3, "values": True, "gates": True}
LORA = ("--set", "lora_rank=2")
NETWORK = replace(GPT2, vocab_size=BASE.vocab_size, dropout=0.1)


def prepare(root: Path, kind: str = "chat", **changes: Any) -> tuple[Artifact, Artifact]:
    """Return tokens of conversations or of pairs, and the run that is tuned."""
    return publish_tokens(root, kind, *KINDS[kind]), publish_run(root, replace(NETWORK, **changes), BASE, name="parent")


def command(root: Path, *options: object, constants: Mapping[str, object] | None = None) -> Command:
    settings = {"steps": 8, "evaluations": 2, "precision": "fp32", "batch_size": 3}
    pairs = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    words = ("train", "talk", "--from", "parent", "--name", "tuned", "--device", "cpu", *pairs, *options)
    return Command(root, words, constants=constants or {})


@pytest.mark.parametrize(
    ("kind", "options"),
    [("chat", ()), ("chat", ("--set", "optimizer=muon")), ("preferences", ()), ("preferences", LORA)],
    ids=str,
)
def test_a_killed_tuning_resumes_to_the_same_bytes(
    tmp_path: Path, kind: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for is_killed in (False, True):
        root = tmp_path / str(is_killed)
        prepare(root, kind)
        with monkeypatch.context() as patch:
            if is_killed:
                from model.training.learner import Learner

                patch.setattr(STEP, before_call(6, Learner.step, KILL))
                assert command(root, *options, constants=SAVE_EVERY_STEP).run_forked().code == -9
        result = command(root, *options).run_forked()
        assert result.code == 0, result.err
        assert ("resuming from step 5" in result.err) == is_killed
        runs.append(artifact.find(root, "runs", "tuned"))
    expected, actual = (dict(tensors(tuned)) for tuned in runs)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in actual.items())
    assert metric_rows(runs[0]) == metric_rows(runs[1])
    assert samples(runs[0]) == samples(runs[1])
    assert runs[0].manifest.key == runs[1].manifest.key


def test_a_kill_while_factors_are_merged_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for is_killed in (False, True):
        root = tmp_path / str(is_killed)
        prepare(root)
        with monkeypatch.context() as patch:
            if is_killed:
                patch.setattr("model.training.tuning.forgetting.measure", before_call(1, lambda *_: None, KILL))
                assert command(root, *LORA).run_forked().code == -9
        result = command(root, *LORA).run_forked()
        assert result.code == 0, result.err
        runs.append(artifact.find(root, "runs", "tuned"))
    expected, actual = (dict(tensors(tuned)) for tuned in runs)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in actual.items())


@pytest.mark.parametrize("prompt", ["", "5+5"])
@pytest.mark.parametrize("system", [(), ({"role": "system", "content": "Add."},)], ids=["", "system"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_of_a_tuning_is_a_question_and_its_answer(
    root: Path, kind: str, system: tuple[dict[str, str], ...], prompt: str
) -> None:
    conversations = [[*system, *talk] for talk in KINDS[kind][1]]
    parent = publish_run(root, NETWORK, BASE, name="parent")
    planned = tuning.plan_tuning(publish_tokens(root, kind, conversations, conversations), parent, name="tuned")
    lines: list[str] = []
    task = open_task(
        open_store(planned.tokens), replace(planned, prompt=prompt), torch.device("cpu"), World(), lines.append
    )
    question = {"role": "user", "content": prompt or "0+0"}
    messages = [question] if prompt else [*system, question]
    assert task.prompt == (question["content"], CHAT.encode_messages(messages, add_generation_prompt=True))


def test_the_sample_is_reported_and_kept(root: Path) -> None:
    tokens, parent = prepare(root)
    lines: list[str] = []
    settings = {"steps": 2, "evaluations": 1, "precision": "fp32", "batch_size": 2}
    plan = tuning.plan_tuning(tokens, parent, name="tuned", settings=settings)
    tuned = stage.train(root, plan, device="cpu", resume=True, report=lines.append).artifact
    assert [sample["prompt"] for sample in samples(tuned)] == ["0+0", "0+0"]  # type: ignore[index]
    assert sum(line.startswith("            0+0|") for line in lines) == 1  # none before the first step


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}, {"optimizer": "muon"}], ids=str)
@pytest.mark.parametrize("network", [{}, FAST], ids=["plain", "fast"])
def test_a_tuned_run_is_an_ordinary_run(root: Path, network: dict[str, Any], settings: dict[str, Any]) -> None:
    tokens, parent = prepare(root, **network)
    tuned = tune(root, tokens, parent, **settings)
    weights = checkpoint.read_weights(run.checkpoint_path(tuned, "best"))
    assert not any("lora" in name for name in weights)
    result = run.read_result(tuned.path)
    assert (result.task, result.tuning["answers_before"], result.tuning["answers_after"]) == (
        "sft",
        pytest.approx(result.first_bits_per_char, abs=1e-4),
        pytest.approx(result.best_bits_per_char, abs=1e-4),
    )
    loaded = api.load_run("tuned", root=root)
    assert loaded.tokenizer.fingerprint == CHAT.fingerprint
    assert loaded.generate("1+1", max_tokens=4)


@pytest.mark.parametrize(
    "sizes", [{}, {"block_size": BASE.vocab_size}, {"width": BASE.vocab_size, "heads": 1}], ids=["", "block", "width"]
)
def test_new_ids_begin_as_the_mean_of_the_others(root: Path, sizes: dict[str, Any]) -> None:
    """Also where weights without a row for each id have as many rows: positions, and norms."""
    tokens, parent = prepare(root, tied=False, head_bias=True, **sizes)
    tuned = tune(root, tokens, parent, steps=1, learning_rate=1e-12)
    before, after = (checkpoint.read_weights(run.checkpoint_path(source, "last")) for source in (parent, tuned))
    for name in ("embedding.weight", "head.weight", "head_bias"):
        assert torch.allclose(after[name][: BASE.vocab_size], before[name], atol=1e-6)
        mean = before[name].mean(0).expand(2, *before[name].shape[1:])
        assert torch.allclose(after[name][BASE.vocab_size :], mean, atol=1e-6)


def test_a_vocabulary_with_room_for_the_new_ids_does_not_grow(root: Path) -> None:
    tokens, parent = prepare(root, vocab_size=128)
    tuned = tune(root, tokens, parent, steps=1)
    assert tuned.manifest.options["model"]["vocab_size"] == 128


def test_pairs_tune_a_tuned_run(root: Path) -> None:
    """The reference is the tuned run, also of a run that continues it."""
    tokens, parent = prepare(root)
    tuned = tune(root, tokens, parent, steps=4)
    preferences = publish_tokens(root, "preferences", *KINDS["preferences"], name="pairs")
    settings = {"steps": 4, "evaluations": 1, "precision": "fp32", "batch_size": 2}
    first = tuning.plan_tuning(preferences, tuned, name="preferred", settings=settings)
    preferred = stage.train(root, first, device="cpu", resume=True, report=lambda line: None).artifact
    result = run.read_result(preferred.path)
    assert result.task == "dpo"
    assert (result.tuning["kl_before"], result.tuning["accuracy_before"]) == (0, 0.5)
    assert result.tuning["kl_after"] > 0
    from model.runs.continuing import plan_continuation

    continued = stage.train(
        root, plan_continuation(preferred, preferences), device="cpu", resume=True, report=lambda line: None
    ).artifact
    assert run.read_result(continued.path).tuning["kl_before"] == pytest.approx(result.tuning["kl_after"], abs=2e-3)


def test_pairs_whose_loss_rises_end_early_from_the_best_checkpoint(root: Path) -> None:
    """The held-out pairs prefer the answers that the others reject."""
    tokens = publish_tokens(root, "preferences", pairs(30), pairs(8)[::-1])
    parent = publish_run(root, NETWORK, BASE, name="parent")
    tuned = tune(root, tokens, parent, steps=60, evaluations=6, patience=1, learning_rate=0.01)
    result = run.read_result(tuned.path)
    assert "nats per pair at step" in result.ended_early
    assert result.steps < 60


def test_a_run_does_not_continue_on_tokens_of_another_task(root: Path) -> None:
    from model.runs.continuing import plan_continuation

    tokens, parent = prepare(root)
    tuned = tune(root, tokens, parent, steps=1)
    preferences = publish_tokens(root, "preferences", *KINDS["preferences"], name="pairs")
    with pytest.raises(BadConfig, match=r"continues on tokens for sft, got tokens/pairs/.* for dpo") as refused:
        plan_continuation(tuned, preferences)
    assert "inkstone train pairs --from tuned" in refused.value.hint


def test_a_continued_run_with_factors_starts_from_the_merged_weights(root: Path) -> None:
    from model.runs.continuing import plan_continuation

    tokens, parent = prepare(root)
    tuned = tune(root, tokens, parent, lora_rank=2)
    continued = stage.train(
        root, plan_continuation(tuned, tokens, steps=3), device="cpu", resume=True, report=lambda line: None
    ).artifact
    before, after = (run.read_result(each.path) for each in (tuned, continued))
    assert after.first_bits_per_char == pytest.approx(before.bits_per_char, abs=1e-4)
    assert after.steps_before == before.steps_before + before.steps


def test_the_text_of_the_base_model_is_scored_before_and_after(inkstone: Inkstone, root: Path, tmp_path: Path) -> None:
    """From files, by the commands: also once more when the tokens of the base model are gone."""
    (tmp_path / "book.txt").write_text(
        "\n".join(f"{n}+{n % 7} = {n + n % 7}, says user or assistant" for n in range(2000)), "utf-8"
    )
    talks = [json.dumps({"messages": talk}) for talk in sums(60)]
    (tmp_path / "talks.jsonl").write_text("\n".join(talks), "utf-8")
    inkstone("clean", tmp_path / "book.txt")
    inkstone("train-tokenizer", "book", "--kind", "char")
    inkstone("tokenize", "book")
    short = ("--set", "evaluations=1", "--device", "cpu")
    inkstone(
        "train",
        "book",
        "--preset",
        "mini",
        "--set",
        "vocab_size=0",
        "--set",
        "block_size=64",
        "--name",
        "base",
        "--steps",
        30,
        *short,
    )
    inkstone("clean", tmp_path / "talks.jsonl", "--profile", "chat")
    inkstone("tokenize", "talks", "--tokenizer", "base")
    inkstone("train", "talks", "--from", "base", "--steps", 10, *short)
    result = run.read_result(artifact.find(root, "runs", "talks").path)
    base = run.read_result(artifact.find(root, "runs", "base").path)
    assert result.tuning["base_before"] == pytest.approx(base.best_bits_per_char, abs=0.02)
    assert result.tuning["base_after"] != result.tuning["base_before"]
    assert f"→ {result.tuning['base_after']:.3f} bits per character" in run.describe_tuning(result)[1]
    shutil.rmtree(root / "tokens/book")
    inkstone("train", "talks", "--from", "base", "--steps", 5, *short)
    result = run.read_result(artifact.find(root, "runs", "talks").path)
    assert "base_after" not in result.tuning
    assert "forgetting was not measured" in result.note


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "dpo"), "is for --task sft, got --task dpo"),
        (("--preset", "mini"), "a run is tuned with its own network, and --preset is given"),
        (("--set", "width=64"), "cannot change: width: 64"),
        (("--set", "beta=0.5"), "beta must be 0 for sft, got 0.5"),
        (("--name", "parent"), "the run would replace parent, from which it starts"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(root: Path, options: tuple[str, ...], message: str) -> None:
    prepare(root)
    result = command(root, *options).run_forked()
    assert result.code == 78
    assert message in result.err


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_split_without_an_answer_within_a_block_is_refused(root: Path, kind: str, split: str) -> None:
    splits = dict(zip(("train", "val"), KINDS[kind], strict=True))
    splits[split] = [messages("x" * 99, answer) for answer in ("a", "b")]
    parent = publish_run(root, NETWORK, BASE, name="parent")
    with pytest.raises(BadData, match=rf"tokens/talk/\w+: no answer of its {split} split is within a block of 96"):
        tune(root, publish_tokens(root, kind, splits["train"], splits["val"]), parent)


def test_conversations_are_not_pretrained_on(root: Path) -> None:
    tokens, _ = prepare(root)
    with pytest.raises(BadConfig, match="has conversations, which tune a run") as refused:
        plan.make_plan(tokens, "mini")
    assert "--from RUN" in refused.value.hint


@pytest.mark.parametrize("setting", ["lora_rank", "beta"])
def test_settings_of_tuning_are_refused_for_text(root: Path, setting: str) -> None:
    with pytest.raises(BadConfig, match=f"{setting} is for tuning, and tokens/counting/.* is text"):
        plan.make_plan(counting.build(root).artifact, "mini", settings={setting: 4})


def test_another_tokenizer_is_refused(root: Path) -> None:
    tokens, _ = prepare(root)
    other = publish_run(root, GPT2, Characters("a shorter alphabet", "other"), name="other")
    with pytest.raises(BadConfig, match="has the tokenizer"):
        tuning.plan_tuning(tokens, other)


def test_the_settings_of_tuning_at_their_defaults_are_in_no_key() -> None:
    assert not {"lora_rank", "beta"} & identity(TrainConfig()).keys()
    assert identity(TrainConfig(lora_rank=4))["lora_rank"] == 4


@pytest.mark.parametrize("task", ["sft", "dpo"])
@pytest.mark.parametrize("tokens", [500, 20_000, 10**6, 10**9])
def test_defaults_suit_small_and_large_sets(task: str, tokens: int) -> None:
    train = tuning.defaults(task, tokens, 256)
    epochs = train.steps * train.batch_size * 256 / tokens
    assert 0.9 <= epochs <= 13
    assert train.steps >= 16 or tokens < 20_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuning_that_got_worse_does_not_replace_the_better_one(root: Path, kind: str) -> None:
    tokens, parent = prepare(root, kind)
    better = tune(root, tokens, parent, steps=12)
    lines: list[str] = []
    settings = {"steps": 1, "evaluations": 1, "precision": "fp32", "batch_size": 2, "learning_rate": 1e-6}
    worse = tuning.plan_tuning(tokens, parent, name="tuned", settings=settings)
    stage.train(root, worse, device="cpu", resume=True, report=lines.append)
    assert artifact.find(root, "runs", "tuned").path == better.path
    unit = "bits per character of answers" if kind == "chat" else "loss on held-out pairs"
    assert any(line.startswith("worse than") and unit in line for line in lines)
