"""Refresh: walk the chain of one recipe, run what is stale, leave the rest alone.

It runs exactly what its plan says: what that calls fresh is not touched. `current` of each artifact moves last, so
whoever reads meanwhile has the old generation, or the new one, whole.
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

from pipeline.errors import explain
from pipeline.refresh import state
from pipeline.refresh.plan import Options, Plan, Step, plan
from pipeline.refresh.recipe import Recipe
from pipeline.refresh.stages import Chain, TrainStage
from pipeline.refresh.state import Pace, State
from pipeline.runtime.progress import Progress
from pipeline.runtime.redaction import redacted
from pipeline.sources import download
from pipeline.store import artifact, files, locks
from pipeline.store.artifact import Artifact


@dataclass(frozen=True)
class Refreshed:
    """What became of a refresh; `last` is the artifact of the last stage."""

    steps: tuple[Step, ...]
    last: Artifact | None

    @property
    def result(self) -> str:
        return "built" if any(step.result == "built" for step in self.steps) else "unchanged"


def refresh(
    root: Path,
    recipe: Recipe,
    train: TrainStage,
    progress: Progress,
    options: Options,
    *,
    wait: float = 0.0,
    run_id: str = "",
) -> Refreshed:
    """Plan, and run the plan, under the recipe's lock. Raises what the first failing stage raises.

    Where nothing is stale, nothing is written below `root` but what `state` keeps.
    """
    chain = Chain(root, recipe, train, progress, options.jobs)
    chain.stages(options.through)  # a stage that there is not is refused before anything is waited for
    path = state.lock_of(root, recipe.name)
    with locks.lock(path, wait=wait, doing=f"refresh {recipe.name}", run_id=run_id, stop=progress.stop) as held:
        files.remove_temporaries_of(state.path_of(root, recipe.name))
        journal = _Journal(root, state.read(root, recipe.name), run_id, held, progress)
        with journal, ExitStack() as leases:
            journal.begin("plan")
            planned = plan(chain, options, journal.state.paces)
            files.require_space(root, sum(step.disk or 0 for step in planned.steps))
            return _run(chain, planned, options, journal, leases)


def _run(chain: Chain, planned: Plan, options: Options, journal: _Journal, leases: ExitStack) -> Refreshed:
    """Do what the plan says. What was made before stays until it ends: nobody prunes it meanwhile."""
    root, progress = chain.root, chain.progress
    first, *steps = planned.steps
    done = [dataclasses.replace(first, result="unchanged")]
    if first.result == "stale":
        journal.begin("download")
        fetched = download.fetch(
            root, chain.source, planned.found, progress, options.network, jobs=options.jobs, update=not options.locked
        )
        done = [dataclasses.replace(first, result=fetched.result)]
        journal.end(first, fetched.bytes)
    _tell(done[0], progress)
    prepares = {stage.name: stage.prepare for stage in chain.stages(options.through)}
    last: Artifact | None = None
    for step in steps:
        if step.result == "fresh":
            last = planned.made[step.stage]
            done.append(dataclasses.replace(step, result="unchanged"))
        else:
            progress.safe_point("the stages before are done")
            journal.begin(step.stage)
            _, run = prepares[step.stage]()
            built = run()
            last = built.artifact
            if built.result == "built":
                journal.end(step, _made(last))
            done.append(dataclasses.replace(step, result=built.result, what=last.ref))
        leases.enter_context(artifact.lease(last))
        chain.made[step.stage] = last
        _tell(done[-1], progress)
    journal.result = "built" if any(step.result == "built" for step in done) else "unchanged"
    return Refreshed(tuple(done), last)


def _made(built: Artifact) -> int:
    """Bytes of an artifact that are its own; what is linked to an earlier generation's was not made."""
    found = (built.file(record.name).stat() for record in built.manifest.files)
    return sum(status.st_size for status in found if status.st_nlink == 1)


def _tell(step: Step, progress: Progress) -> None:
    progress.note(f"{step.stage:<16} {step.result:<10} {step.what}")
    progress.event("stage", stage=step.stage, result=step.result, what=step.what)


class _Journal:
    """Writes down how a refresh goes: into its lock while it runs, into its state at each stage that does something."""

    def __init__(self, root: Path, before: State, run_id: str, held: locks.Held, progress: Progress) -> None:
        self._root, self._held, self._progress = root, held, progress
        self.state = msgspec.structs.replace(before, run_id=run_id, pid=os.getpid(), started=state.now(), ended="")
        self.result = "failed"
        self._began = 0.0

    def __enter__(self) -> _Journal:
        return self

    def begin(self, stage: str) -> None:
        self._held.say(stage)
        self._began = time.monotonic()
        self.state = msgspec.structs.replace(self.state, stage=stage, result="running")
        if stage != "plan":  # where nothing is stale, one write is enough
            self._write()

    def end(self, step: Step, made: int) -> None:
        """The stage that began is done, and made so many bytes."""
        pace = Pace(round(time.monotonic() - self._began, 3), step.reads, made)
        self.state = msgspec.structs.replace(self.state, paces={**self.state.paces, step.stage: pace})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        ended = state.now()
        told: dict[str, Any] = {"result": self.result, "stage": "", "exit_code": 0, "error": "", "hint": ""}
        if error is None:
            told["last_success"] = ended
        else:
            failed = explain(error)
            told |= {"result": "failed", "stage": self.state.stage, "exit_code": failed.exit_code}
            told |= {"error": redacted(failed.what), "hint": redacted(failed.hint)}
        self.state = msgspec.structs.replace(self.state, ended=ended, **told)
        self._write()

    def _write(self) -> None:
        with suppress(OSError):  # it is for people: what failed before, as a full disk, is what is told
            state.write(self._root, self.state)
