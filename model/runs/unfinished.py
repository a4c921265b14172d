"""Unfinished runs: find the one that a plan resumes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from model import config
from model.runs.plan import TrainPlan, identify, read_config
from pipeline.errors import BadConfig, InputMissing, UpstreamChanged
from pipeline.store import artifact
from pipeline.store.generations import draft_path, unfinished_drafts


def pin_unfinished(root: Path, plan: TrainPlan) -> TrainPlan:
    """Give a plan the tokens and the parent of its unfinished run, so that it can be resumed.

    A refresh may have published newer generations since that run was started. Raises UpstreamChanged if the older ones
    are gone.
    """
    identity, drafts = identify(plan), list(unfinished_drafts(root, "runs", plan.name))
    if draft_path(root, identity) in [draft for draft, _ in drafts]:
        return plan
    for draft, inputs in drafts:
        inputs_by_role = {entry.role: entry for entry in inputs}
        if inputs_by_role.keys() != {entry.role for entry in identity.inputs}:
            continue
        if dataclasses.replace(identity, inputs=inputs).key != draft.name.removeprefix(".draft-"):
            continue  # another configuration
        try:
            artifacts = {role: artifact.read(root / entry.name) for role, entry in inputs_by_role.items()}
        except InputMissing as error:
            raise UpstreamChanged(
                f"an input of the unfinished run {plan.name} is gone: {error.message}",
                hint="--no-resume starts it again on the current inputs",
            ) from None
        parent = artifacts.get("parent")
        return dataclasses.replace(
            plan,
            tokens=artifacts["tokens"],
            parent=inputs_by_role.get("parent"),
            parent_path=parent.path if parent else None,
        )
    return plan


def require_unfinished(root: Path, plan: TrainPlan) -> None:
    """Raise BadConfig with the differences if there are unfinished runs of this name, but none of this plan."""
    drafts = [draft for draft, _ in unfinished_drafts(root, "runs", plan.name)]
    if not drafts or draft_path(root, identify(plan)) in drafts:
        return
    changes, unfinished = [], read_config(drafts[-1])
    if unfinished:
        changes += config.differences(plan.preset.model, unfinished.model)
        changes += config.differences(plan.preset.train, unfinished.train)
    raise BadConfig(
        f"the unfinished run {plan.name} is another training: {'; '.join(changes) or 'other tokens or parent run'}",
        hint="repeat its options, or give --no-resume",
    )
