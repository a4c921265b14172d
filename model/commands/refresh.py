"""The refresh and demo commands."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model.commands.options import DEVICE
from model.commands.training_bar import training_watch
from model.commands.training_summary import add_promotion
from pipeline import errors
from pipeline.commands.console import Command, Number, Outcome, Settings, option_group
from pipeline.commands.options import ENGINE, JOBS, NETWORK, REBUILD, THROUGH, engine_of, network_of, worker_count

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from model.generation.sampling import SampleOptions
    from model.runs.plan import TrainPlan
    from pipeline.refresh.plan import RefreshOptions
    from pipeline.refresh.recipe import Recipe, SampleSection, TrainSection
    from pipeline.refresh.refresh import RefreshResult
    from pipeline.refresh.stages import TrainStage
    from pipeline.store.artifact import Artifact, BuildResult


_SAMPLE_FIELDS = ("max_tokens", "temperature", "top_k", "min_p", "seed")  # sampling options of a recipe


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
    from pipeline.refresh.refresh import refresh as run_refresh

    recipe = load_recipe(path, overrides, check_training)
    if retrain_tokenizer:
        recipe = _retraining(recipe)
    accept = accept_worse or retrain_tokenizer or any(entry.startswith("train.") for entry in overrides)
    train = train_stage(settings, recipe, device, accept=accept, rebuild=rebuild)
    network = network_of(settings, allow_hosts=(*allow_hosts, *recipe.download.allow_hosts), **limits)
    locked = recipe.download.locked if update_lock is None else not update_lock
    jobs, open_engine = worker_count(jobs), engine_of(engine, jobs)
    options = RefreshOptions(through, locked, allow_shrink, jobs, network, rebuild, accept, open_engine)
    if dry_run:
        return _plan_outcome(settings, recipe, train, options)
    with _pinged(ping_url, settings.progress.stop):
        refreshed = run_refresh(
            settings.root, recipe, train, settings.progress, options, wait=wait, run_id=settings.run_id
        )
    last = refreshed.last
    outcome = refresh_outcome(refreshed, [f"{refreshed.result}: {last.ref if last else recipe.name}"])
    add_report(settings, recipe, outcome)
    if refreshed.result == "built" and last and last.manifest.kind == "runs" and recipe.sample.prompts:
        samples = continuations(settings, recipe, last, device)
        outcome.extra["samples"] = samples
        outcome.lines += sample_lines(samples)
    return outcome


def _retraining(recipe: Recipe) -> Recipe:
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


def _plan_outcome(settings: Settings, recipe: Recipe, train: TrainStage, options: RefreshOptions) -> Outcome:
    from pipeline.maintenance.status import duration, size
    from pipeline.refresh import state
    from pipeline.refresh.plan import plan
    from pipeline.refresh.stages import Chain
    from pipeline.store import files

    with settings.progress.wait("comparing the sources with what was built"):
        chain = Chain(settings.root, recipe, train, settings.progress, options.jobs)
        steps = plan(chain, options, state.read(settings.root, recipe.name).paces).steps
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


def continuations(settings: Settings, recipe: Recipe, run: Artifact, device: str) -> list[dict[str, Any]]:
    """Continue the recipe's prompts with the run's best checkpoint."""
    from model.commands import sample
    from model.generation.session import Session

    with settings.progress.wait(f"loading {run.ref}"):
        session = Session(run, "best", device, "fp32", settings.progress.note)
        session.load()
    prompts = [session.encode_prompt(text) for text in recipe.sample.prompts]
    options = sample_options(recipe.sample)
    return [sample.as_fields(result) for result in session.sample(prompts, options, settings.progress.stop)]


def sample_options(section: SampleSection) -> SampleOptions:
    """Return the sampling options of a recipe; those that it leaves out are as in `sample`."""
    from model.generation.sampling import SampleOptions

    values = {name: getattr(section, name) for name in _SAMPLE_FIELDS}
    return SampleOptions(**{name: value for name, value in values.items() if value is not None})


def sample_lines(samples: list[dict[str, Any]]) -> list[str]:
    """Format continuations, with a bar between prompt and continuation, and without blank lines."""
    texts = [f"  {sample['prompt']}|{sample['text']}".split("\n") for sample in samples]
    return [line for first, *rest in texts for line in (first, *(f"    {line}" for line in rest if line.strip()))]


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
    """Write the report of a recipe if something was built or it is missing, and add its path to the outcome."""
    from pipeline.report import reports

    if outcome.result != "built" and reports.path_of(settings.root, recipe.name).is_file():
        return
    try:
        path = reports.write_of_recipe(settings.root, recipe.name, recipe.report.lang)
    except (errors.InkstoneError, OSError) as error:  # the artifacts are published, and the next refresh tries again
        reason = error.message if isinstance(error, errors.InkstoneError) else errors.from_os_error(error).message
        settings.progress.note(f"warning: no report: {reason}")
        return
    outcome.extra["report"] = str(path)
    outcome.lines.append(f"report: {path}")


def check_training(section: TrainSection) -> None:
    """Raise BadConfig for a [train] section that no tokens could be trained with."""
    from model.runs import plan as run_plan

    preset = "small" if section.preset == run_plan.AUTO else section.preset
    run_plan.resolve_preset(preset, section.steps, section.minutes, section.set)


def _require_device(device: str) -> None:
    """Raise BadConfig if the user named a device that this machine does not have."""
    if device != "auto":
        from model.device import pick_device

        pick_device(device)


def train_stage(
    settings: Settings, recipe: Recipe, device: str, *, more: bool = False, accept: bool = False, rebuild: bool = False
) -> TrainStage:
    """Return the training stage of a recipe, to pass to the pipeline, which never imports the model.

    With `more`, a published run is trained further even if its text did not change. With `accept`, the new run becomes
    current even if it is worse. With `rebuild`, a published run is trained again. Raises BadConfig for a device that
    this machine does not have, and for bad values of [sample].
    """
    from model.runs import continuing, unfinished
    from model.runs import plan as run_plan
    from model.training import stage
    from pipeline.refresh.stages import TrainStage

    sample_options(recipe.sample)  # refuses a bad value before work begins
    _require_device(device)
    section = recipe.train
    is_auto = section.preset == run_plan.AUTO

    def plan(tokens: Artifact) -> TrainPlan:
        name, steps, minutes = recipe.name, section.steps, section.minutes
        if is_auto:
            planned, _ = run_plan.make_auto_plan(
                settings.root, tokens, name, steps=steps, minutes=minutes, settings=section.set, device=device
            )
        else:
            planned = run_plan.make_plan(
                tokens, section.preset, name=name, steps=steps, minutes=minutes, settings=section.set
            )
        planned = replace(planned, prompt=next(iter(recipe.sample.prompts), ""))
        return continuing.continue_published(settings.root, planned, more=more)

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
                accept=accept,
                stopped=settings.progress.stop,
                watch=watch,
                rebuild=rebuild,
            )

    return TrainStage(
        check=lambda: check_training(section),
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
        f"{result.bits_per_char:.3f} after {result.steps:,} steps",
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
