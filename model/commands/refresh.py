"""The refresh and demo commands."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model.commands.options import DEVICE
from model.commands.recipe_samples import continuations, sample_lines, sample_options
from model.commands.training_bar import training_watch
from model.commands.training_summary import add_promotion
from pipeline import errors
from pipeline.commands.console import Command, Number, Outcome, Settings, option_group
from pipeline.commands.options import (
    ENGINE,
    JOBS,
    NETWORK,
    REBUILD,
    THROUGH,
    engine_of,
    find_artifact,
    network_of,
    worker_count,
)
from pipeline.runtime.terminal import counted

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from model.runs.plan import TrainPlan
    from pipeline.refresh.plan import RefreshOptions
    from pipeline.refresh.recipe import Recipe, TrainSection
    from pipeline.refresh.refresh import RefreshResult
    from pipeline.refresh.stages import TrainStage
    from pipeline.refresh.tuning import TrainStageFactory
    from pipeline.store.artifact import Artifact, BuildResult


@click.command(cls=Command)
@click.argument("path", metavar="RECIPE", type=click.Path(path_type=Path))
@option_group(
    "Recipe",
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Override one entry of the recipe, e.g. train.minutes=3 (repeatable).",
    ),
    THROUGH,
    click.option(
        "--retrain-tokenizer",
        is_flag=True,
        help="Train the tokenizer of the recipe on the present text, instead of keeping it.",
    ),
    click.option(
        "--accept-worse",
        is_flag=True,
        help="Make the new run current even if it is worse than the run before.",
    ),
    click.option(
        "--update-lock/--locked",
        default=None,
        help="Fetch files that changed upstream, or keep the pinned ones (default: set by the recipe).",
    ),
)
@option_group(
    "Running",
    click.option("--dry-run", is_flag=True, help="Print the plan and stop: stale stages, reasons, space and time."),
    REBUILD,
    click.option(
        "--wait",
        type=Number(0),
        default=0.0,
        metavar="SECONDS",
        help="Wait this long for another refresh of the recipe to end.",
    ),
    click.option(
        "--ping-url",
        default="",
        metavar="URL",
        help="Monitor to notify: requests URL/start, then URL on success or URL/fail.",
    ),
    JOBS,
    ENGINE,
    DEVICE,
)
@NETWORK
def refresh(
    settings: Settings,
    path: Path,
    dry_run: bool,
    rebuild: bool,
    wait: float,
    through: str,
    overrides: tuple[str, ...],
    retrain_tokenizer: bool,
    accept_worse: bool,
    update_lock: bool | None,
    ping_url: str,
    allow_shrink: bool,
    allow_hosts: tuple[str, ...],
    jobs: int,
    engine: str,
    device: str,
    **limits: Any,
) -> Outcome:
    """Run the stale stages of a recipe.

    A stage is stale if its inputs, options, libraries or source code changed. RECIPE is a TOML file or a bundled
    recipe: sample, pile, shuihu, song-ci, classics or poetry.

    \b
    Examples:
      inkstone refresh shuihu --dry-run
      inkstone refresh shuihu --set train.minutes=10
    """
    from pipeline.refresh.plan import RefreshOptions
    from pipeline.refresh.recipe import load as load_recipe
    from pipeline.refresh.tuning import refresh as run_refresh
    from pipeline.refresh.tuning import with_tunings

    recipe = load_recipe(path, overrides, check_training)
    if retrain_tokenizer:
        recipe = retraining(recipe)
    accept = accept_worse or retrain_tokenizer or any(entry.startswith("train.") for entry in overrides)
    train = functools.partial(train_stage, settings, device=device, accept=accept, rebuild=rebuild)
    recipes = with_tunings(recipe, through)
    network = network_of(settings, allow_hosts=(*allow_hosts, *recipe.download.allow_hosts), **limits)
    locked = recipe.download.locked if update_lock is None else not update_lock
    jobs, open_engine = worker_count(jobs), engine_of(engine, jobs)
    options = RefreshOptions(through, locked, allow_shrink, jobs, network, rebuild, accept, open_engine)
    if dry_run:
        return _plan_outcome(settings, recipes, train, options)
    with _pinged(ping_url, settings.progress.stop):
        refreshed = run_refresh(
            settings.root, recipes, train, settings.progress, options, wait=wait, run_id=settings.run_id
        )
    last, final = refreshed.last, recipes[-1]
    outcome = refresh_outcome(refreshed, [f"{refreshed.result}: {last.ref if last else recipe.name}"])
    for entry in recipes:
        add_report(settings, entry, outcome)
    if refreshed.result == "built" and last and last.manifest.kind == "runs" and final.sample.prompts:
        samples = continuations(settings, final, last, device)
        outcome.extra["samples"] = samples
        outcome.lines += sample_lines(samples)
    return outcome


def retraining(recipe: Recipe) -> Recipe:
    """Return a recipe that trains its tokenizer anew. Raises BadConfig if it uses a ready one."""
    from msgspec.structs import replace

    if recipe.tokenizer.use:
        raise errors.BadConfig(
            f"--retrain-tokenizer: recipe {recipe.name} uses the ready tokenizer {recipe.tokenizer.use}",
            hint="leave it out, or replace `use` by `kind`",
        )
    return replace(recipe, tokenizer=replace(recipe.tokenizer, keep=False))


@contextmanager
def _pinged(url: str, stop: threading.Event) -> Iterator[None]:
    """Notify a monitor of the start and the result of the block."""
    if not url:
        yield
        return
    from pipeline.sources.http import ping

    ping(f"{url.rstrip('/')}/start", stop)
    try:
        yield
    except errors.TryAgain:  # the next run may succeed; if none does, the monitor misses its success ping
        raise
    except BaseException:
        ping(f"{url.rstrip('/')}/fail", stop)
        raise
    ping(url, stop)


def _plan_outcome(
    settings: Settings, recipes: list[Recipe], train: TrainStageFactory, options: RefreshOptions
) -> Outcome:
    from pipeline.maintenance.status import duration, size
    from pipeline.refresh.tuning import plan
    from pipeline.store import files

    with settings.progress.wait("comparing the sources with what was built"):
        steps = plan(settings.root, recipes, train, settings.progress, options)
    lines = [f"{'stage':<16} {'state':<6} {'to fetch':>10} {'disk':>10} {'time':>23}  reason"]
    lines += [
        f"{step.stage:<16} {step.result:<6} {size(step.fetch):>10} {size(step.disk):>10} "
        f"{duration(step.seconds):>23}  {step.why or step.what}{f', {step.note}' if step.note else ''}"
        for step in steps
    ]
    required = sum(step.disk or 0 for step in steps)
    free = files.free_space(settings.root)
    lines.append(f"needs {size(required)} of disk space; {size(free)} free")
    return Outcome(
        "unchanged",
        extra={"stages": [asdict(step) for step in steps], "disk_needed": required, "disk_free": free},
        lines=lines,
        always=True,
    )


def refresh_outcome(refreshed: RefreshResult, lines: list[str]) -> Outcome:
    last = refreshed.last
    outcome = Outcome(
        refreshed.result,
        last.ref if last else None,
        last.path if last else None,
        last.manifest.counts if last else {},
        last.manifest.ledger if last else {},
        extra={"stages": [asdict(step) for step in refreshed.steps]},
        lines=[*lines, *refreshed.notes],
    )
    if last and last.manifest.kind == "runs":
        add_promotion(outcome, last)
    return outcome


def add_report(settings: Settings, recipe: Recipe, outcome: Outcome) -> None:
    """Write the report of a recipe unless it is up to date, and add its path to the outcome."""
    from pipeline.report import reports
    from pipeline.store.leftovers import remove_leftovers_of

    path = reports.path_of(settings.root, recipe.name)
    try:
        remove_leftovers_of(path)
        if outcome.result != "built" and path.is_file() and not reports.outdated_refs(settings.root, path.read_bytes()):
            return
        note = settings.progress.note
        path = reports.write_recipe_report(settings.root, recipe.name, recipe.report.lang, note)
    except (errors.InkstoneError, OSError) as error:  # the artifacts are published, and the next refresh tries again
        reason = error.message if isinstance(error, errors.InkstoneError) else errors.from_os_error(error).message
        settings.progress.note(f"warning: no report: {reason}")
        return
    outcome.extra["report"] = str(path)
    outcome.lines.append(f"report: {path}")


def check_training(section: TrainSection) -> None:
    """Raise BadConfig for a [train] section that is invalid for any tokens."""
    from model.runs import plan as run_plan

    if section.parent:
        from model.runs.tuning import check

        check(section.steps, section.minutes, section.set)
        return
    preset = "small" if section.preset == run_plan.AUTO else section.preset
    run_plan.resolve_preset(preset, section.steps, section.minutes, section.set)


def _require_device(device: str) -> None:
    """Raise BadConfig if the user named a device that this machine does not have."""
    if device != "auto":
        from model.device import pick_device

        pick_device(device)


def _train_plan(settings: Settings, recipe: Recipe, tokens: Artifact, device: str, *, more: bool) -> TrainPlan:
    """Plan the run of a recipe on tokens: the tuning of its parent, or a training that continues the published run."""
    from model.runs import continuing, tuning
    from model.runs import plan as run_plan

    section, name = recipe.train, recipe.name
    length: dict[str, Any] = {"steps": section.steps, "minutes": section.minutes, "settings": section.set}
    if section.parent:
        return tuning.plan_tuning(tokens, find_artifact(settings, "runs", section.parent), name=name, **length)
    if section.preset == run_plan.AUTO:
        planned, _ = run_plan.make_auto_plan(settings.root, tokens, name, **length, device=device)
    else:
        planned = run_plan.make_plan(tokens, section.preset, name=name, **length)
    planned = replace(planned, prompt=next(iter(recipe.sample.prompts), ""))
    return continuing.continue_published(settings.root, planned, more=more)


def train_stage(
    settings: Settings, recipe: Recipe, device: str, *, more: bool = False, accept: bool = False, rebuild: bool = False
) -> TrainStage:
    """Return the training stage of a recipe, to pass to the pipeline, which never imports the model.

    With `more`, a published run is trained further even if its text did not change. With `accept`, the new run becomes
    current even if it is worse; a tuned run always does, as it follows the run that it starts from. With `rebuild`, a
    published run is trained again. Raises BadConfig for a device that this machine does not have, and for bad values of
    [sample].
    """
    from model.runs import continuing, unfinished
    from model.runs import plan as run_plan
    from model.training import stage
    from pipeline.refresh.stages import TrainStage

    sample_options(recipe.sample)  # refuses a bad value before work begins
    _require_device(device)

    def plan(tokens: Artifact) -> TrainPlan:
        return _train_plan(settings, recipe, tokens, device, more=more)

    def run(tokens: Artifact) -> BuildResult:
        planned = plan(tokens)
        draft, paths = unfinished.edited_files(settings.root, planned)
        if draft:
            settings.progress.note(f"starts over: {', '.join(paths)} changed since the unfinished run {draft.name}")
        for line in unfinished.describe_others(settings.root, planned):
            settings.progress.note(line)
        with training_watch(settings) as watch:
            return stage.train(
                settings.root,
                planned,
                device=device,
                resume=True,
                report=settings.progress.note,
                accept=accept or bool(recipe.train.parent),
                stopped=settings.progress.stop,
                watch=watch,
                rebuild=rebuild,
            )

    return TrainStage(
        check=lambda: check_training(recipe.train),
        identify=lambda tokens: run_plan.identify(plan(tokens)),
        run=run,
        outlook=lambda tokens: continuing.describe_start(plan(tokens)),
    )


@click.command(cls=Command)
@JOBS
@DEVICE
def demo(settings: Settings, jobs: int, device: str) -> Outcome:
    """Run every stage on the bundled sample text.

    Needs no network and about two minutes on two CPU cores. Prints the loss and continuations of three prompts.
    """
    from model.runs import run
    from pipeline.refresh.plan import RefreshOptions
    from pipeline.refresh.recipe import load as load_recipe
    from pipeline.refresh.refresh import refresh as run_refresh

    recipe = load_recipe("sample")
    train = train_stage(settings, recipe, device)
    refreshed = run_refresh(settings.root, recipe, train, settings.progress, RefreshOptions(jobs=worker_count(jobs)))
    assert refreshed.last
    result = run.read_result(refreshed.last.path)
    samples = continuations(settings, recipe, refreshed.last, device)
    loss_curve = refreshed.last.path / "loss.png"
    lines = [
        "everything is up to date:" if refreshed.result == "unchanged" else "built:",
        *(f"  {step.stage:<16} {step.what}" for step in refreshed.steps),
        f"  in               {settings.root.resolve()}",
        "",
        f"validation: {result.first_bits_per_char:.3f} bits per character before training, "
        f"{result.bits_per_char:.3f} after {counted(result.steps, 'steps')}",
        f"loss curve: {loss_curve}",
        "",
        "continuations:",
        *sample_lines(samples),
        "",
        "next, with your own text (any file or folder):",
        "  inkstone start BOOK.txt",
    ]
    outcome = refresh_outcome(refreshed, lines)
    add_report(settings, recipe, outcome)
    outcome.extra |= {
        "first_bits_per_char": result.first_bits_per_char,
        "bits_per_char": result.bits_per_char,
        "loss_curve": str(loss_curve),
        "samples": samples,
    }
    return outcome
