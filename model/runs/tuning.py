"""Plans of tuning: training a run further on conversations (sft), or on pairs of answers (dpo).

Defaults: few epochs of a large set and more of a small one, AdamW with a small learning rate, and an early end when the
loss on held-out conversations rises.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.config import GPTConfig, Preset, TrainConfig
from model.runs.plan import TrainPlan, kind_of, override_preset, require_same_network
from model.runs.run import open_tokenizer, read_preset_name
from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData, InkstoneError, InputMissing
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import check_name, path_of_ref
from pipeline.tokenizers import ChatTokenizer

SFT, DPO = "sft", "dpo"
TASKS = {"chat": SFT, "preferences": DPO}  # by the kind of conversations
_RATES = {SFT: 1e-3, DPO: 1e-4}
_LORA_RATES = {SFT: 3e-3, DPO: 1e-3}
_EPOCHS = {SFT: (3, 12), DPO: (1, 6)}  # of a set of 2**24 tokens or more, and of 2**14 or fewer
_MIN_STEPS_PER_EPOCH, _MAX_BATCH_SIZE = 16, 32
_BETA, _DROPOUT = 0.1, 0.1
_REPLAY = 0.3  # for sft: the sample forgets 3 % with it and 12 to 30 % without
_CHAT = "chat:"  # prefix of the fingerprint of a chat tokenizer


def plan_tuning(
    tokens: Artifact,
    parent: Artifact,
    *,
    name: str = "",
    task: str = "",
    steps: int | None = None,
    minutes: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> TrainPlan:
    """Plan the tuning of a parent run on conversations. By default the run is named after the tokens.

    Raises BadConfig if the tokens do not fit the parent run, or if they are not for `task`.
    """
    task = _task_of(tokens, task)
    _require_tokenizer_of(tokens, parent)
    network = parent.manifest.option("model", GPTConfig)
    vocab_size = tokens.manifest.require_counts("vocab_size")["vocab_size"]
    network = dataclasses.replace(network, vocab_size=max(network.vocab_size, vocab_size), ngram=0)
    settings = dict(settings or {})
    is_lora = str(settings.get("lora_rank", 0)) != "0"
    train = defaults(
        *(task, tokens.manifest.counts["train_tokens"], network.block_size),
        is_lora=is_lora,
        replay=_REPLAY if task == SFT and _has_base_text(parent) else 0.0,
    )
    dropout = max(network.dropout, _DROPOUT)
    preset = Preset(network.family, f"tuning of {parent.ref}", dataclasses.replace(network, dropout=dropout), train)
    preset = override_preset(preset, steps, minutes, settings)
    require_same_network(preset.model, network, parent)
    if (preset.train.beta > 0) != (task == DPO):
        expected = f"must be {'above 0' if task == DPO else '0'} for {task}"
        raise BadConfig(f"beta {expected}, got {preset.train.beta:g}", hint="leave out --set beta=…")
    if preset.train.replay and task == DPO:
        raise BadConfig(
            f"replay must be 0 for --task dpo, got {preset.train.replay:g}", hint="leave out --set replay=…"
        )
    if (name := check_name(name or tokens.manifest.name)) == parent.manifest.name:
        raise BadConfig(f"the run would replace {name}, from which it starts", hint="choose another --name")
    parent_input = parent.as_input("parent")
    return TrainPlan(name, read_preset_name(parent.path), preset, tokens, parent_input, parent.path, weights_only=True)


def _task_of(tokens: Artifact, task: str) -> str:
    """Return the task that tokens are for. Raises BadConfig if they are not for `task`, or for no tuning at all."""
    expected = TASKS.get(kind_of(tokens), "")
    if not expected or (task and task != expected):
        raise BadConfig(
            f"{tokens.ref} is for {f'--task {expected}' if expected else 'pretraining'}, got --task {task or SFT}",
            hint=f"name tokens of {'pairs of answers' if task == DPO else 'conversations'}: docs/chat.md",
        )
    return expected


def defaults(
    task: str, train_tokens: int, block_size: int, *, is_lora: bool = False, replay: float = 0.0
) -> TrainConfig:
    """Return the default training settings for a number of tokens and a block size.

    Rows of replayed text are added to those of the conversations.
    """
    rows = max(train_tokens // block_size, 1)
    batch_size = min(max(rows // _MIN_STEPS_PER_EPOCH, 1), _MAX_BATCH_SIZE)
    few, many = _EPOCHS[task]
    share = min(max((math.log2(max(train_tokens, 1)) - 14) / 10, 0.0), 1.0)
    steps = max(math.ceil(rows * (many + (few - many) * share) / batch_size), 1)
    rate = (_LORA_RATES if is_lora else _RATES)[task]
    return TrainConfig(
        batch_size=round(batch_size / (1 - replay)),
        steps=steps,
        learning_rate=rate,
        embedding_rate=rate,
        weight_decay=0.0,
        beta2=0.99,
        warmup=max(steps // 20, 1),
        final_share=0.0,
        patience=2,
        beta=_BETA if task == DPO else 0.0,
        replay=replay,
    )


def check(steps: int | None, minutes: float | None, settings: Mapping[str, Any]) -> None:
    """Raise BadConfig for a length or settings that are invalid for every tuning."""
    network = GPTConfig(vocab_size=1)
    override_preset(Preset(network.family, "", network, defaults(SFT, 0, 1)), steps, minutes, settings)


def _require_tokenizer_of(tokens: Artifact, parent: Artifact) -> None:
    """Raise BadConfig unless the tokens have the tokenizer of the parent run, or a chat tokenizer based on it."""
    tokenizer = tokenizers.open_folder(tokens.path)
    base = tokenizer.base.fingerprint if isinstance(tokenizer, ChatTokenizer) else ""
    if parent.manifest.tokenizer not in (tokenizer.fingerprint, base):
        raise BadConfig(
            f"{tokens.ref} has the tokenizer {base or tokenizer.fingerprint}, "
            f"{parent.ref} has {parent.manifest.tokenizer}",
            hint=f"`tokenize` the conversations with --tokenizer {open_tokenizer(parent).name or 'of the run'}",
        )


def _has_base_text(parent: Artifact) -> bool:
    """Return True if the tokens that the base model of a run was trained on are present."""
    try:
        base_tokens(parent.path)
    except InkstoneError:
        return False
    return True


def base_run(path: Path) -> Artifact:
    """Return the untuned run that the run in `path` comes from, through any number of tunings; or that run itself."""
    run = artifact.read(path)
    while run.manifest.tokenizer.startswith(_CHAT):
        run = artifact.read(parent_of(run))
    return run


def parent_of(run: Artifact) -> Path:
    """Return the folder of the parent of a run. Raises BadData without one, InputMissing if it is gone."""
    refs = [entry.name for entry in run.manifest.inputs if entry.role == "parent"]
    if not refs:
        raise BadData(f"{run.ref} has no parent run", hint="tune a run that was trained here")
    path = path_of_ref(run.path.parents[2], refs[0])
    if not path.is_dir():
        raise InputMissing(f"{refs[0]} was deleted", hint="tune another run; keep the parents of tuned runs")
    return path


def base_tokens(parent: Path) -> tuple[Artifact, TrainConfig]:
    """Return the tokens that the base model was trained on, and its training settings."""
    run = base_run(parent)
    inputs = [entry for entry in run.manifest.inputs if entry.role == "tokens"]
    if not inputs:
        raise BadData(f"{run.ref} was not trained here, so its text is not known", hint="tune another run")
    tokens = artifact.read_ref(run.path.parents[2], inputs[0].name)
    if tokens.digest != inputs[0].digest:
        raise BadData(f"{tokens.ref} differs from the tokens of {run.ref}", hint="`tokenize` the text again")
    return tokens, run.manifest.option("train", TrainConfig)
