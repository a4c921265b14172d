"""Refresh: run the stale stages of a recipe.

A refresh runs exactly its plan: a stage planned as fresh is not touched. Each artifact's `current` link moves last,
so concurrent readers see either the complete old generation or the complete new one.
"""

from __future__ import annotations

import dataclasses
import os
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import InkstoneError, to_inkstone_error
from pipeline.refresh import state
from pipeline.refresh.plan import PlanStep, RefreshOptions, RefreshPlan, plan, retained_current
from pipeline.refresh.recipe import Recipe
from pipeline.refresh.stages import Chain, TrainStage
from pipeline.refresh.state import RefreshState, StageTiming
from pipeline.runtime.progress import Progress
from pipeline.runtime.redaction import redact
from pipeline.sources import download
from pipeline.store import artifact, files, locks
from pipeline.store.artifact import Artifact
from pipeline.store.code import build_note
from pipeline.store.generations import current_key
from pipeline.store.leftovers import remove_leftovers_of
from pipeline.store.manifest import Identity
from pipeline.tokens.store import fit_of

_MAX_WARNINGS = 5  # lines for each corpus


@dataclass(frozen=True)
class RefreshResult:
    """Result of a refresh: the outcome of each stage, and the artifact of the last one."""

    steps: tuple[PlanStep, ...]
    last: Artifact | None

    @property
    def result(self) -> str:
        return "built" if any(step.result == "built" for step in self.steps) else "unchanged"

    @property
    def notes(self) -> list[str]:
        """The reasons why stages kept a generation current that was not made from their inputs."""
        return [step.why for step in self.steps if step.result == "unchanged" and step.why]


def refresh(
    root: Path,
    recipe: Recipe,
    train: TrainStage,
    progress: Progress,
    options: RefreshOptions,
    *,
    wait: float = 0.0,
    run_id: str = "",
) -> RefreshResult:
    """Plan a refresh and run the plan, holding the recipe's lock. Raises the error of the first stage that fails.

    `wait` is the number of seconds to wait for the lock. If no stage is stale, only the recipe's state is written.
    """
    path = state.lock_of(root, recipe.name)
    with locks.lock(path, wait=wait, action=f"refresh {recipe.name}", run_id=run_id, stop=progress.stop) as lock:
        remove_leftovers_of(state.path_of(root, recipe.name))
        journal = _Journal(root, state.read(root, recipe.name), run_id, lock)
        with journal, ExitStack() as leases:
            journal.begin("plan")
            with progress.wait("comparing the sources with what was built"):
                chain = Chain(
                    root,
                    recipe,
                    train,
                    progress,
                    options.jobs,
                    rebuild=options.rebuild,
                    open_engine=options.open_engine,
                )
                refresh_plan = plan(chain, options, journal.state.paces)
            files.require_space(root, sum(step.disk or 0 for step in refresh_plan.steps))
            return _run(chain, refresh_plan, options, journal, leases)


def _run(
    chain: Chain, refresh_plan: RefreshPlan, options: RefreshOptions, journal: _Journal, leases: ExitStack
) -> RefreshResult:
    """Run the plan. Leases keep the artifacts of earlier stages from being pruned until it ends."""
    root, progress = chain.root, chain.progress
    download_step, *stage_steps = refresh_plan.steps
    is_stale = download_step.result == "stale"
    if is_stale:
        journal.begin("download")
    fetched = download.fetch_missing(  # also for a fresh source: it drops pins of files that the source no longer has
        root,
        chain.source,
        refresh_plan.files,
        progress,
        options.network,
        jobs=options.jobs,
        update=not options.locked,
    )
    chain.source = dataclasses.replace(chain.source, name=fetched.source)
    why = download_step.why if fetched.result == "built" else ""
    outcomes = [dataclasses.replace(download_step, result=fetched.result, what=f"raw/{fetched.source}", why=why)]
    if is_stale:
        journal.end(download_step, fetched.bytes)
    _report(outcomes[0], progress)
    stages = {stage.label: stage for stage in chain.stages(options.through)}
    last: Artifact | None = None
    for step in stage_steps:
        if step.result == "fresh":
            last = refresh_plan.fresh[step.stage]
            outcomes.append(dataclasses.replace(step, result="unchanged"))
        else:
            progress.safe_point("the stages before are done")
            journal.begin(step.stage)
            identity, build = stages[step.stage].prepare()
            if retained := retained_current(root, identity, accept_worse=options.accept_worse):
                last, why = retained
                outcomes.append(dataclasses.replace(step, result="unchanged", what=last.ref, why=why))
            else:
                before = _current(root, identity)
                built = build()
                last = built.artifact
                if built.result == "built":
                    journal.end(step, _own_bytes(last))
                why = step.why if built.result == "built" else _restored(before, last)
                note = build_note(last.manifest.code, built.result, rebuilt=built.rebuilt)
                outcomes.append(dataclasses.replace(step, result=built.result, what=last.ref, why=why, note=note))
                if step.stage == "tokenize" and "train-tokenizer" in refresh_plan.fresh:
                    _report_fit(before, last, progress)
        leases.enter_context(artifact.lease(last))
        chain.artifacts[step.stage] = last
        _report(outcomes[-1], progress)
        if last.manifest.kind == "corpora" and outcomes[-1].result == "built":
            _report_warnings(step.stage, last, progress)
    refreshed = RefreshResult(tuple(outcomes), last)
    journal.result = refreshed.result
    return refreshed


def _current(root: Path, identity: Identity) -> Artifact | None:
    """Return the current generation of an artifact that is about to be built, None if it cannot be read."""
    with suppress(InkstoneError):
        return artifact.current(root, identity.kind, identity.name)
    return None


def _restored(before: Artifact | None, published: Artifact) -> str:
    """Return "back to KEY, …" if an earlier generation became current in the place of `before`, else ""."""
    key = published.manifest.key
    is_current = current_key(published.path.parent) == key
    return f"back to {key}, which exists already" if before and before.manifest.key != key and is_current else ""


def _report_fit(before: Artifact | None, tokens: Artifact, progress: Progress) -> None:
    """Report how well a tokenizer that was trained on older text fits the new tokens."""
    if before and before.manifest.tokenizer == tokens.manifest.tokenizer and before.digest != tokens.digest:
        progress.note(f"tokenizer kept: {fit_of(tokens)}; before: {fit_of(before)}")


def _own_bytes(built: Artifact) -> int:
    """Return the size of an artifact in bytes, without files hard-linked from an earlier generation."""
    statuses = (built.file(record.name).stat() for record in built.manifest.files)
    return sum(status.st_size for status in statuses if status.st_nlink == 1)


def _report(step: PlanStep, progress: Progress) -> None:
    progress.note(f"{step.stage:<16} {step.result:<10} {step.what}" + (f", {step.note}" if step.note else ""))
    progress.event("stage", stage=step.stage, result=step.result, what=step.what)


def _report_warnings(stage: str, corpus: Artifact, progress: Progress) -> None:
    """Print the warnings of a corpus before a model is trained on it."""
    warnings = msgspec.json.decode((corpus.path / "report.json").read_bytes())["warnings"]
    for warning in warnings[:_MAX_WARNINGS]:
        progress.note(f"{stage:<16} {'warning':<10} {warning}")
    if (hidden := len(warnings) - _MAX_WARNINGS) > 0:
        progress.note(f"{stage:<16} {'warning':<10} {hidden:,} more in {corpus.ref}/report.json")


class _Journal:
    """Records the progress of a refresh: the running stage in its lock, each stage and the result in its state."""

    def __init__(self, root: Path, previous: RefreshState, run_id: str, lock: locks.HeldLock) -> None:
        self._root, self._lock = root, lock
        self.state = msgspec.structs.replace(previous, run_id=run_id, pid=os.getpid(), started=state.now(), ended="")
        self.result = "failed"
        self._stage_start = 0.0

    def __enter__(self) -> _Journal:
        return self

    def begin(self, stage: str) -> None:
        self._lock.set_stage(stage)
        self._stage_start = time.monotonic()
        self.state = msgspec.structs.replace(self.state, stage=stage, result="running")
        if stage != "plan":  # if nothing is stale, the write at the end is enough
            self._write()

    def end(self, step: PlanStep, written: int) -> None:
        """Record that the running stage is complete and wrote this many bytes."""
        timing = StageTiming(round(time.monotonic() - self._stage_start, 3), step.reads, written)
        self.state = msgspec.structs.replace(self.state, paces={**self.state.paces, step.stage: timing})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        fields: dict[str, Any] = {"ended": state.now(), "stage": "", "exit_code": 0, "error": "", "hint": ""}
        if error is None:
            fields |= {"result": self.result, "last_success": fields["ended"]}
        else:
            failure = to_inkstone_error(error)
            fields |= {"result": "failed", "stage": self.state.stage, "exit_code": failure.exit_code}
            fields |= {"error": redact(failure.message), "hint": redact(failure.hint)}
        self.state = msgspec.structs.replace(self.state, **fields)
        self._write()

    def _write(self) -> None:
        with suppress(OSError):  # the state is for people; a full disk here must not hide the error that it records
            state.write(self._root, self.state)
