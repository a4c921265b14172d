"""The train stage: publish the run of a plan, training it only if it does not stand already."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from model.runs.plan import Annealed, Plan, identify
from model.runs.run import Report, Result
from pipeline import errors
from pipeline.store import artifact, files
from pipeline.store.artifact import Built, Content


def train(
    root: Path,
    planned: Plan,
    *,
    device: str,
    resume: bool,
    report: Report,
    anneal: bool = False,
    stopped: threading.Event | None = None,
) -> Built:
    """Train, and publish the run. An unfinished run of the same plan goes on from its last checkpoint if `resume`.

    When a signal comes, or `stopped` is set, everything is saved and TryAgain raised; or, with `anneal`, the weights
    are brought to rest and published as a run of their own, so that the unfinished one can still go on. Under torchrun
    all processes train, and the first one publishes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _together(root, planned, device, resume, report, anneal, stopped)

    def write(draft: Path) -> Content:
        from model.training.trainer import fit  # torch takes two seconds to import: not for a run that stands already

        with artifact.lease(planned.tokens):
            return _content(
                fit(draft, planned, device=device, resume=resume, report=report, anneal=anneal, stopped=stopped)
            )

    return _publish(root, planned, write)


def _publish(root: Path, planned: Plan, write: Callable[[Path], Content]) -> Built:
    try:
        return artifact.build(root, identify(planned), write, keep_draft=True)
    except Annealed as ended:
        folder, result = ended.folder, ended.result

    def take(draft: Path) -> Content:
        for path in folder.iterdir():
            files.move(path, draft / path.name)
        return _content(result)

    return artifact.build(root, identify(planned, ended=result.steps), take)


def _content(result: Result) -> Content:
    return Content({"steps": result.steps, "tokens": result.tokens, "parameters": result.parameters})


def _together(
    root: Path,
    planned: Plan,
    device: str,
    resume: bool,
    report: Report,
    anneal: bool,
    stopped: threading.Event | None,
) -> Built:
    """What each of the processes does that torchrun started: the first one as alone, and it tells the others what is
    trained, and where: meanwhile newer tokens may have been published."""
    from model import device as devices
    from model.training import distributed
    from model.training.trainer import fit

    with ExitStack() as held:
        world = held.enter_context(distributed.joined(devices.pick(device)))
        planned = world.tell(planned)
        held.enter_context(artifact.lease(planned.tokens))
        told: list[Path] = []

        def trained(draft: Path) -> Result:
            return fit(
                draft,
                planned,
                device=device,
                resume=resume,
                report=report,
                anneal=anneal,
                stopped=stopped,
                world=world,
            )

        def write(draft: Path) -> Content:
            told.append(world.tell(draft))
            return _content(trained(draft))

        if world.leads:
            try:
                built = _publish(root, planned, write)
            except BaseException as error:
                if not told:  # it cannot be begun, and the others end as this one does
                    world.tell(None)
                    world.tell(errors.explain(error))
                raise
            if not told:  # it stands
                world.tell(None)
            world.tell(None)  # now it is published
            return built
        if draft := world.tell(None):
            trained(draft)
        if failed := world.tell(None):
            failed.told = True
            raise failed
        return Built(artifact.find(root, "runs", planned.name), "built")


def forecast(planned: Plan, *, device: str) -> list[str]:
    """What a training will take, and what its numbers will mean, as lines to read; nothing is kept."""
    from model import device as devices
    from model.training.distributed import World
    from model.training.trainer import Training

    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        Training(Path(folder), planned, devices.pick(device), said.append, World()).announce()
    return said
