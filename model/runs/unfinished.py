"""Unfinished runs: find the one that a plan resumes, and describe the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from model import config
from model.runs.plan import TrainPlan, identify, read_config
from model.runs.run import CHECKPOINTS
from pipeline.errors import BadConfig, InputMissing, UpstreamChanged
from pipeline.store import artifact, files, locks
from pipeline.store.code import changed_files
from pipeline.store.generations import draft_path, read_run_info, unfinished_drafts
from pipeline.store.manifest import Input


def pin_unfinished(root: Path, plan: TrainPlan) -> TrainPlan:
    """Give a plan the tokens and the parent of its unfinished run, so that it can be resumed.

    The run may have been started with other source code: see `resume_edited`. A refresh may have published newer
    generations since then. Raises UpstreamChanged if the older ones are gone.
    """
    identity, drafts = identify(plan), list(unfinished_drafts(root, "runs", plan.name))
    if draft_path(root, identity) in [draft for draft, _ in drafts]:
        return plan
    for draft, inputs in drafts:
        inputs_by_role = {entry.role: entry for entry in inputs}
        if inputs_by_role.keys() != {entry.role for entry in identity.inputs}:
            continue
        code = read_run_info(draft).code
        if dataclasses.replace(identity, inputs=inputs, code=code).key != draft.name.removeprefix(".draft-"):
            continue  # another configuration
        try:
            artifacts = {role: artifact.read_ref(root, entry.name) for role, entry in inputs_by_role.items()}
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


def edited_files(root: Path, plan: TrainPlan) -> tuple[Path | None, list[str]]:
    """Return the unfinished run of a plan that was started with other source code, and the files that were edited.

    None and no files if there is no such run, or if the plan has an unfinished or a published run of its own.
    """
    identity = identify(plan)
    if draft_path(root, identity).exists():
        return None, []
    for draft, _ in unfinished_drafts(root, "runs", plan.name):
        code = read_run_info(draft).code
        is_same = dataclasses.replace(identity, code=code).key == draft.name.removeprefix(".draft-")
        if is_same and not artifact.find_published(root, identity):
            return draft, changed_files(code.edited, identity.code.edited)
    return None, []


def resume_edited(root: Path, plan: TrainPlan, *, accept: bool) -> list[str]:
    """Let a plan resume its unfinished run although source files were edited since, and return those files.

    Raises BadConfig that names the files unless `accept`, TryAgain if the run is being trained.
    """
    draft, paths = edited_files(root, plan)
    if draft is None:
        return []
    if not accept:
        raise BadConfig(
            f"the unfinished run {plan.name} was started before {', '.join(paths)} changed",
            hint="--resume continues it with the changed code, --no-resume starts over",
        )
    with locks.lock(draft.parent / ".lock", action=f"train {plan.name}"):
        files.move(draft, draft_path(root, identify(plan)))
    return paths


def require_unfinished(root: Path, plan: TrainPlan) -> None:
    """Raise BadConfig unless there is an unfinished run of this plan: with the differences if one has this name."""
    drafts = list(unfinished_drafts(root, "runs", plan.name))
    if draft_path(root, identify(plan)) in [draft for draft, _ in drafts]:
        return
    if drafts:
        raise BadConfig(
            f"the unfinished run {plan.name} is another training: {_differences(plan, *drafts[-1])}",
            hint="repeat its options, or give --no-resume",
        )
    if run := artifact.current(root, "runs", plan.name):
        raise BadConfig(
            f"nothing to resume: {run.ref} is finished",
            hint=f"`inkstone train --continue {plan.name}` trains it further",
        )
    raise BadConfig(f"nothing to resume: there is no run {plan.name}", hint="leave out --resume")


def describe_others(root: Path, plan: TrainPlan) -> list[str]:
    """Return a line for each unfinished run of this name that is another training than the plan."""
    own = draft_path(root, identify(plan))
    return [
        f"an unfinished run {plan.name} at step {saved_step(draft):,} is another training: "
        f"{_differences(plan, draft, inputs)}; it stays until `prune` deletes it"
        for draft, inputs in unfinished_drafts(root, "runs", plan.name)
        if draft != own
    ]


def saved_step(draft: Path) -> int:
    """Return the step of the newest checkpoint of a draft, 0 if there is none."""
    names = (path.name.removeprefix("step-") for path in (draft / CHECKPOINTS).glob("step-*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _differences(plan: TrainPlan, draft: Path, inputs: Sequence[Input]) -> str:
    """Describe how a plan differs from the unfinished run in `draft`, which was started on `inputs`."""
    identity, changes = identify(plan), []
    if unfinished := read_config(draft):
        changes += config.differences(plan.preset.model, unfinished.model)
        changes += config.differences(plan.preset.train, unfinished.train)
    libraries = read_run_info(draft).libraries
    for name, version in identity.versions().items():
        if libraries.get(name, version) != version:
            changes.append(f"{name} {version}, not {libraries[name]}")
    digests = ({entry.role: entry.digest for entry in entries} for entries in (identity.inputs, inputs))
    planned, started = digests
    for role, subject in (("tokens", "other tokens"), ("parent", "another parent run")):
        if planned.get(role) != started.get(role):
            changes.append(subject)
    return "; ".join(changes) or "another version of this program"
