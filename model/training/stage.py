"""The train stage: publish the run of a plan, and train it unless it is published already.

torch takes two seconds to import, so this module imports it only where a training starts.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

from model.runs.plan import Annealed, TrainPlan, identify
from model.runs.run import Report, Result, read_result
from model.runs.unfinished import saved_step
from pipeline import errors
from pipeline.errors import BadConfig, InkstoneError, InputMissing
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact, BuildResult, StageOutput
from pipeline.store.code import built_with
from pipeline.store.generations import current_key, draft_path, is_rolled_back, set_aside
from pipeline.store.manifest import Identity

if TYPE_CHECKING:
    from model.training.distributed import World
    from model.training.metrics import OnRow
    from model.training.progress import Watch


def train(
    root: Path,
    plan: TrainPlan | Callable[[], TrainPlan],
    *,
    device: str,
    resume: bool,
    report: Report,
    anneal: bool = False,
    accept: bool = False,
    stopped: threading.Event | None = None,
    watch: Watch | None = None,
    on_row: OnRow | None = None,
    rebuild: bool = False,
) -> BuildResult:
    """Train a plan, or the one that `plan` returns, and publish its run.

    With `resume`, an unfinished run of the plan resumes from its last checkpoint.
    With `rebuild` the run is trained even if it is published, and takes the place of the published one. A run that is
    worse than the current one of its name, on its own validation text, does not become current, unless `accept` is set.

    `watch` is called with the state of the training about every second, and replaces the lines of the report. In the
    main process, `on_row` is called with the numbers of each row of the metrics. A signal, or setting `stopped`, saves
    everything and raises TryAgain. With `anneal`, the learning rates fall to zero first and the result is published as
    a separate run, so that the unfinished one can still be resumed.

    Under torchrun all processes train, and the main one plans, saves and publishes below its root. Each node reads the
    tokens below its own root. The result of the others names the folder of the main process.
    """
    options: dict[str, Any] = {
        "device": device,
        "resume": resume,
        "report": report,
        "anneal": anneal,
        "stopped": stopped,
        "watch": watch,
        "on_row": on_row,
    }
    make_plan: Callable[[], TrainPlan] = (lambda: plan) if isinstance(plan, TrainPlan) else plan
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _train_together(root, make_plan, options, accept=accept, rebuild=rebuild)

    planned = make_plan()
    publisher = _Publisher(root, planned, device, report, accept, rebuild)

    def train(draft: Path) -> Result:
        from model.training.trainer import fit

        if note := built_with(identify(planned).code.edited):
            report(note)
        with artifact.lease(planned.tokens):
            return fit(draft, planned, **options)

    return publisher.publish(train)


@dataclass(frozen=True)
class _Publisher:
    """Publishes the run of a plan; `accept` makes it current even if it is worse than the run before,
    `rebuild` trains it although it is published."""

    root: Path
    plan: TrainPlan
    device: str
    report: Report
    accept: bool
    rebuild: bool

    def publish(self, train: Callable[[Path], Result]) -> BuildResult:
        """Publish the run that `train` writes into a draft, unless it is published already."""

        def write(draft: Path) -> StageOutput:
            return self._output(draft, train(draft))

        identity = identify(self.plan)
        self._compare_published(identity)
        try:
            return artifact.build(self.root, identity, write, keep_draft=True, accept=self.accept, rebuild=self.rebuild)
        except Annealed as annealed:
            folder, result = annealed.folder, annealed.result

        def move_files(draft: Path) -> StageOutput:
            for path in folder.iterdir():
                files.move(path, draft / path.name)
            return self._output(draft, result)

        identity = identify(self.plan, ended=result.steps)
        return artifact.build(self.root, identity, move_files, accept=self.accept, rebuild=self.rebuild)

    def _output(self, folder: Path, result: Result) -> StageOutput:
        from model.training.finish import require_readable

        require_readable(folder, result, self.plan)
        counts = {"steps": result.steps, "tokens": result.tokens, "parameters": result.parameters}
        reason = self._reason_to_keep_current(folder, result)
        run: dict[str, Any] = {"reason": reason} if reason else {}
        if self.plan.usual_length:
            run["settings"] = self.plan.usual_length
        return StageOutput(counts, run=run, promote=not reason)

    def _compare_published(self, identity: Identity) -> None:
        """Compare a published run of `identity` that is not current with the current run, and record the result."""
        if self.rebuild or is_rolled_back(self.root, identity):
            return
        published = artifact.find_published(self.root, identity)
        if published and current_key(published.path.parent) != identity.key:
            set_aside(published.path, self._reason_to_keep_current(published.path, read_result(published.path)))

    def _reason_to_keep_current(self, folder: Path, result: Result) -> str:
        """Return the reason to keep the current run, "" if the new run in `folder` replaces it."""
        try:
            current = artifact.current(self.root, "runs", self.plan.name)
        except InkstoneError as error:
            self.report(f"not compared with the run before: {error.message}")
            return ""
        if current is None:
            return ""
        from model.training.finish import report_comparison

        return report_comparison(folder, result, self.plan, current, self.device, self.report, accept=self.accept)


def _train_together(
    root: Path,
    make_plan: Callable[[], TrainPlan],
    options: dict[str, Any],
    *,
    accept: bool,
    rebuild: bool,
) -> BuildResult:
    """Train in all processes that torchrun started, by the plan of the main process.

    Plans of the processes may differ, since newer tokens may have been published meanwhile.
    """
    from model.device import pick_device
    from model.training import distributed
    from model.training.trainer import fit

    with ExitStack() as stack:
        world = stack.enter_context(distributed.process_group(pick_device(options["device"])))
        setup = world.for_setup()
        local = _agree(setup, root, make_plan, resume=options["resume"])
        stack.enter_context(artifact.lease(local.tokens))

        def train(draft: Path) -> Result:
            with distributed.detect_lost_process(lambda: saved_step(draft) if world.is_main else 0):
                return fit(draft, local, world=world, **options)

        if world.is_main:
            publisher = _Publisher(root, local, options["device"], options["report"], accept, rebuild)
            return _lead(publisher, setup, train)
        return _follow(setup, train)


def _agree(world: World, root: Path, make_plan: Callable[[], TrainPlan], *, resume: bool) -> TrainPlan:
    """Return the main process's plan, with the tokens that this node has below its own root.

    Raises in all processes if a node lacks the tokens, or has other code or libraries, or a later step of the run.
    """

    def make() -> tuple[TrainPlan, _State]:
        planned = make_plan()
        return planned, _State.of(root, planned)

    planned, state = world.from_main(make)
    failure = None
    try:
        local = replace(planned, tokens=_find_tokens(root, planned.tokens))
        state.compare(_State.of(root, local), resume=resume)
        if world.is_first_on_node:
            artifact.require_intact(local.tokens)
    except Exception as error:  # noqa: BLE001 - raised again below, in all processes
        failure = errors.to_inkstone_error(error)
        if not world.is_main:
            failure = type(failure)(f"process {world.rank} on {gethostname()}: {failure.message}", hint=failure.hint)
    world.raise_first(failure)
    return local


@dataclass(frozen=True)
class _State:
    """Versions, digest of the code and step of the unfinished run, compared between the processes."""

    versions: dict[str, str]
    code: str
    step: int

    @classmethod
    def of(cls, root: Path, plan: TrainPlan) -> _State:
        identity = identify(plan)
        versions = {"inkstone": identity.code.version, **identity.versions()}
        return cls(versions, identity.code.digest, saved_step(draft_path(root, identity)))

    def compare(self, other: _State, *, resume: bool) -> None:
        """Raise BadConfig if `other`, the state of another process, differs from this one, of the main process."""
        for name, version in self.versions.items():
            if other.versions[name] != version:
                raise BadConfig(
                    f"{name} {other.versions[name]}, expected {version} as in the main process",
                    hint="install the same version on every node",
                )
        if other.code != self.code:
            raise BadConfig("other source code than in the main process", hint="use the same checkout on every node")
        if resume and other.step > self.step:
            raise BadConfig(
                f"has step {other.step:,} of this run, and the main process step {self.step:,}",
                hint="give that node rank 0, as before: --node-rank 0",
            )


def _find_tokens(root: Path, planned: Artifact) -> Artifact:
    """Return the planned tokens: below `root`, fetched if it mirrors a bucket, or else at the main process's path."""
    finders: list[Callable[[], Artifact]] = [
        lambda: artifact.read_ref(root, planned.ref),
        lambda: artifact.read(planned.path),
    ]
    for find in finders:
        with suppress(InputMissing):
            tokens = find()
            if tokens.digest == planned.digest:
                return tokens
    raise InputMissing(
        f"{root}: no {planned.ref} with the digest {planned.digest[:12]}",
        hint=f"copy {planned.path} of the main node to {root / planned.ref}, or `push` and `pull` it",
    )


def _lead(publisher: _Publisher, world: World, train: Callable[[Path], Result]) -> BuildResult:
    """Publish the run of a plan as the main process.

    Broadcasts whether there is something to train, and then the result, or the error if training cannot start.
    """
    has_started = False

    def start(draft: Path) -> Result:
        nonlocal has_started
        has_started = world.broadcast_object(True)
        return train(draft)

    try:
        built = publisher.publish(start)
    except BaseException as error:
        if not has_started:
            world.broadcast_object(False)
            world.broadcast_object(errors.to_inkstone_error(error))
        raise
    if not has_started:  # the run is published already
        world.broadcast_object(False)
    world.broadcast_object(built)
    return built


def _follow(world: World, train: Callable[[Path], Result]) -> BuildResult:
    """Take part in the training of the main process, until it has published the run; return its result.

    Raises MainProcessFailed if training could not start there.
    """
    from model.training.distributed import MainProcessFailed

    if world.broadcast_object(None):
        train(Path())  # the main process writes all files
    outcome = world.broadcast_object(None)
    if isinstance(outcome, InkstoneError):
        raise MainProcessFailed(outcome)
    built: BuildResult = outcome
    return built


def dry_run(plan: TrainPlan, *, device: str) -> list[str]:
    """Return the report that a training would begin with, as lines of text: plan, time, and losses of baselines."""
    from model.device import pick_device
    from model.training.distributed import World
    from model.training.trainer import Trainer

    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        Trainer(Path(folder), plan, pick_device(device), lines.append, World()).announce(compiles=False)
    return [*lines, *filter(None, [built_with(identify(plan).code.edited)])]
