"""Continuing a published run of the same name: with the plan of a nightly refresh, or on request."""

from __future__ import annotations

import dataclasses
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TypeVar

import msgspec

from model import config
from model.config import GPTConfig, TrainConfig
from model.runs.plan import (
    SCHEMA,
    Length,
    TrainPlan,
    earlier_folders,
    identify,
    kind_of,
    override_preset,
    read_config,
    read_preset,
    require_same_tokenizer,
)
from model.runs.run import read_result
from model.runs.tuning import TASKS
from pipeline.errors import BadConfig, BadData
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.store.generations import current_key, generation_keys, read_run_info, unwanted_keys
from pipeline.store.manifest import path_of_ref

_Config = TypeVar("_Config", GPTConfig, TrainConfig)


def plan_continuation(
    run: Artifact, tokens: Artifact, *, steps: int | None = None, minutes: float | None = None
) -> TrainPlan:
    """Plan a new generation of a published run, with its preset, its settings, its last weights and optimizer state.

    `steps` or `minutes` replace its length. Raises BadConfig if the tokens have another tokenizer, and for a run that
    was imported.
    """
    preset_name, preset = read_preset(run.path)
    if preset is None or "train" not in run.manifest.options:
        raise BadConfig(
            f"{run.ref} was not trained here, and has no optimizer state to continue with",
            hint=f"`inkstone train --from {run.manifest.name} --name NEW` starts from its weights",
        )
    require_same_tokenizer(tokens, run)
    _require_same_task(tokens, run)
    usual = _usual_length(run)
    preset = override_preset(preset, steps, minutes, None)
    is_usual = _length(preset.train) == usual
    plan = TrainPlan(run.manifest.name, preset_name, preset, tokens, usual_length=None if is_usual else usual)
    return _continue(plan, run)


def _require_same_task(tokens: Artifact, run: Artifact) -> None:
    """Raise BadConfig unless the tokens are for the task of the run: pretraining, sft or dpo."""
    task, expected = (name or "pretraining" for name in (TASKS.get(kind_of(tokens)), read_result(run.path).task))
    if task != expected:
        raise BadConfig(
            f"{run.ref} continues on tokens for {expected}, got {tokens.ref} for {task}",
            hint=f"`inkstone train {tokens.manifest.name} --from {run.manifest.name} --name NEW` takes its weights",
        )


def _length(train: TrainConfig) -> Length:
    return Length(train.steps, train.minutes)


def _usual_length(run: Artifact) -> Length:
    """Return the usual length of trainings of this name: the one in the run's run.json, else the run's own."""
    try:
        return msgspec.convert(read_run_info(run.path).settings, Length)
    except msgspec.ValidationError:  # none was recorded
        return _length(run.manifest.option("train", TrainConfig))


def _continue(plan: TrainPlan, run: Artifact) -> TrainPlan:
    return dataclasses.replace(plan, parent=run.as_input("parent"), parent_path=run.path)


def continue_published(root: Path, plan: TrainPlan, *, more: bool = False) -> TrainPlan:
    """Return the plan that continues the published run of its name, if that run has its configuration and tokenizer.

    If the run was trained on other tokens, or with `more`, the plan continues it. With `more`, its length may differ.
    If the run was trained on the same tokens, the plan gets the run's parent and length, and so the key of that run.
    Otherwise the plan starts from scratch, and `from_scratch` is the reason.

    Raises BadData if the run is damaged, unless the plan builds it again, or no older run could replace it.
    """
    plan = _without_later_settings(root, plan)
    try:
        run = artifact.current(root, "runs", plan.name)
    except BadData as error:
        return _instead_of_damaged(root, plan, error)
    if run is None:
        return plan
    if reason := _obstacle(run, plan, any_length=more):
        return dataclasses.replace(plan, from_scratch=reason)
    inputs = {entry.role: entry for entry in run.manifest.inputs}
    if more or inputs["tokens"].digest != plan.tokens.digest:
        return _continue(plan, run)
    parent = inputs.get("parent")
    path = path_of_ref(root, parent.name) if parent else None
    same = dataclasses.replace(
        plan,
        parent=parent,
        parent_path=path if path and path.is_dir() else None,
        weights_only="afresh" in run.manifest.options,
        preset=dataclasses.replace(plan.preset, train=run.manifest.option("train", TrainConfig)),
    )
    if identify(same).key == run.manifest.key:
        return same
    if parent and not same.parent_path:  # it was pruned
        return _continue(plan, run)
    reason = "" if parent else f"the code or the libraries changed since {run.ref}"
    return dataclasses.replace(same, from_scratch=reason)


def _without_later_settings(root: Path, plan: TrainPlan) -> TrainPlan:
    """Take settings that presets lacked before from an earlier run of this name and preset, unless they are given."""
    for folder in earlier_folders(root, plan.name):
        name, earlier = read_preset(folder)
        if earlier and name == plan.preset_name:
            preset = dataclasses.replace(
                plan.preset,
                model=_with_earlier(plan.preset.model, earlier.model, {"ngram"} - plan.given),
                train=_with_earlier(plan.preset.train, earlier.train, {"document_starts"} - plan.given),
            )
            return dataclasses.replace(plan, preset=preset)
    return plan


def _with_earlier(config: _Config, earlier: _Config, names: AbstractSet[str]) -> _Config:
    """Return `config` with the values that `earlier` has for the settings `names`."""
    return dataclasses.replace(config, **{name: getattr(earlier, name) for name in names})


def _instead_of_damaged(root: Path, plan: TrainPlan, error: BadData) -> TrainPlan:
    """Return the plan that builds the damaged current run again if its draft exists, else a plan from scratch.

    Raises BadData if an older run can be continued instead.
    """
    shelf = root / "runs" / plan.name
    key = current_key(shelf)
    draft = shelf / f".draft-{key}"
    inputs = {entry.role: entry for entry in read_run_info(draft).made_from or ()}
    parent, preset = inputs.get("parent"), read_config(draft) or plan.preset
    path = path_of_ref(root, parent.name) if parent else None
    again = dataclasses.replace(
        plan,
        preset=dataclasses.replace(plan.preset, train=preset.train),
        parent=parent,
        parent_path=path if path and path.is_dir() else None,
    )
    if identify(again).key == key:
        return again
    if any(artifact.is_intact(shelf / other) for other in {*generation_keys(shelf)} - unwanted_keys(shelf)):
        hint = f"`inkstone rollback runs/{plan.name}` returns to the run before"
        raise BadData(error.message, hint=hint) from None
    return dataclasses.replace(plan, from_scratch=error.message)


def _obstacle(run: Artifact, plan: TrainPlan, *, any_length: bool) -> str:
    """Return the reason why a plan cannot continue a published run, "" if it can."""
    options = run.manifest.options
    if "train" not in options:
        return f"{run.ref} was not trained here"
    if run.manifest.tokenizer != plan.tokens.manifest.tokenizer:
        return "the tokenizer changed"
    if options.get("stage") != SCHEMA:
        return f"{run.ref} was trained by another version of this program"
    train = run.manifest.option("train", TrainConfig)
    if any_length or _length(plan.preset.train) == _usual_length(run):
        length = {name: getattr(plan.preset.train, name) for name in ("steps", "minutes", "epochs")}
        train = dataclasses.replace(train, **length)
    changes = config.differences(plan.preset.model, run.manifest.option("model", GPTConfig))
    changes += config.differences(plan.preset.train, train)
    if not changes and "ended" in options and not any_length:
        return f"{run.ref} was ended by a signal; `train --continue {plan.name}` continues it"
    return "; ".join(changes)


def describe_start(plan: TrainPlan) -> str:
    """Return "continues from step 2,310 of runs/book/KEY", or why a plan starts from scratch; "" for a new name."""
    if plan.from_scratch:
        return f"starts from scratch: {plan.from_scratch}"
    if plan.parent is None or plan.parent_path is None or plan.weights_only:
        return ""
    result = read_result(plan.parent_path)
    return f"continues from step {result.steps_before + result.steps:,} of {plan.parent.name}"
