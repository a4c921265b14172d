"""The refresh and demo commands."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model.commands.options import DEVICE
from pipeline import errors
from pipeline.commands.console import Command, Outcome, Settings
from pipeline.commands.options import JOBS, NETWORK, network_of, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.runs.plan import Plan
    from pipeline.refresh.plan import Options
    from pipeline.refresh.recipe import Recipe
    from pipeline.refresh.refresh import Refreshed
    from pipeline.refresh.stages import TrainStage
    from pipeline.store.artifact import Artifact


_SAMPLED = ("max_tokens", "temperature", "top_k", "seed")  # what a recipe says of sampling


@click.command(cls=Command)
@click.argument("path", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only show the plan: what is stale, why, and what it takes.")
@click.option("--wait", type=float, default=0.0, metavar="SECONDS", help="Wait so long for another refresh to end.")
@click.option("--through", default="train", show_default=True, metavar="STAGE", help="The last stage to run.")
@click.option("--set", "pairs", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one entry (repeatable).")
@click.option(
    "--update-lock/--locked", default=None, help="Take what changed upstream (default), or keep to what is pinned."
)
@click.option(
    "--ping-url", default="", metavar="URL", help="Ask for URL/start, URL and URL/fail as it starts and ends."
)
@NETWORK
@JOBS
@DEVICE
def refresh(
    settings: Settings,
    path: Path,
    dry_run: bool,
    wait: float,
    through: str,
    pairs: tuple[str, ...],
    update_lock: bool | None,
    ping_url: str,
    allow_shrink: bool,
    allow_hosts: tuple[str, ...],
    jobs: int,
    device: str,
    **limits: Any,
) -> Outcome:
    """Run a recipe: every stage whose inputs or options changed, and no other."""
    from pipeline.refresh import recipe as recipes
    from pipeline.refresh import refresh as chain
    from pipeline.refresh.plan import Options

    recipe = recipes.load(path, pairs)
    stage = _train_stage(settings, recipe, device)
    network = network_of(settings, allow_hosts=(*allow_hosts, *recipe.download.allow_hosts), **limits)
    locked = recipe.download.locked if update_lock is None else not update_lock
    options = Options(through, locked, allow_shrink, processes(jobs), network)
    if dry_run:
        return _planned(settings, recipe, stage, options)
    with _pinged(ping_url):
        done = chain.refresh(
            settings.root, recipe, stage, settings.progress, options, wait=wait, run_id=settings.run_id
        )
    outcome = _refreshed(done, [f"{done.result}: {done.last.ref if done.last else recipe.name}"])
    if done.result == "built" and done.last and done.last.manifest.kind == "runs" and recipe.sample.prompts:
        outcome.extra["samples"] = _continuations(settings, recipe, done.last, device)
        outcome.lines += _shown(outcome.extra["samples"])
    return outcome


@contextmanager
def _pinged(url: str) -> Iterator[None]:
    """Tell a monitor how the block begins and ends."""
    if not url:
        yield
        return
    from pipeline.sources.http import ping

    ping(f"{url.rstrip('/')}/start")
    try:
        yield
    except errors.TryAgain:  # the next run may do; if none does, the monitor misses its success
        raise
    except BaseException:
        ping(f"{url.rstrip('/')}/fail")
        raise
    ping(url)


def _planned(settings: Settings, recipe: Recipe, stage: TrainStage, options: Options) -> Outcome:
    from pipeline.maintenance.status import duration, size
    from pipeline.refresh import state
    from pipeline.refresh.plan import plan
    from pipeline.refresh.stages import Chain
    from pipeline.store import files

    chain = Chain(settings.root, recipe, stage, settings.progress, options.jobs)
    planned = plan(chain, options, state.read(settings.root, recipe.name).paces)
    lines = [f"{'stage':<16} {'state':<6} {'to fetch':>10} {'disk':>10} {'time':>8}  why"]
    for step in planned.steps:
        takes = f"{size(step.fetch):>10} {size(step.disk):>10} {duration(step.seconds):>8}"
        lines.append(f"{step.stage:<16} {step.result:<6} {takes}  {step.why or step.what}")
    needed = sum(step.disk or 0 for step in planned.steps)
    free = files.free_space(settings.root)
    lines.append(f"needs {size(needed)} on the disk, where {size(free)} are free")
    return Outcome(
        "unchanged",
        extra={"stages": [asdict(step) for step in planned.steps], "disk_needed": needed, "disk_free": free},
        lines=lines,
        always=True,
    )


def _continuations(settings: Settings, recipe: Recipe, run: Artifact, device: str) -> list[dict[str, Any]]:
    """What the run makes of the recipe's prompts."""
    from model.commands import sample
    from model.generation import session as sessions
    from model.generation.sampling import SampleOptions

    session = sessions.Session(run, "best", device, "fp32", settings.progress.note)
    asked = [session.prompt(text) for text in recipe.sample.prompts]
    options = SampleOptions(**{name: getattr(recipe.sample, name) for name in _SAMPLED})
    return [sample.as_fields(each) for each in session.samples(asked, options, settings.progress.stop)]


def _shown(samples: list[dict[str, Any]]) -> list[str]:
    """Continuations as lines, each with its prompt marked off."""
    return [f"  {each['prompt']}|{each['text']}".replace("\n", "\n    ") for each in samples]


def _refreshed(done: Refreshed, lines: list[str]) -> Outcome:
    last = done.last
    return Outcome(
        done.result,
        last.ref if last else None,
        last.path if last else None,
        last.manifest.counts if last else {},
        last.manifest.ledger if last else {},
        extra={"stages": [asdict(step) for step in done.steps]},
        lines=lines,
    )


def _train_stage(settings: Settings, recipe: Recipe, device: str) -> TrainStage:
    from model.runs import plan as runs_plan
    from model.training import stage
    from pipeline.refresh.stages import TrainStage

    def plan(tokens: Artifact) -> Plan:
        chosen = recipe.train
        planned = runs_plan.plan(
            tokens, chosen.preset, name=recipe.name, steps=chosen.steps, minutes=chosen.minutes, settings=chosen.set
        )
        return runs_plan.continued(settings.root, planned)

    return TrainStage(
        check=lambda: runs_plan.check(recipe.train.preset, recipe.train.steps, recipe.train.minutes, recipe.train.set),
        identify=lambda tokens: runs_plan.identify(plan(tokens)),
        run=lambda tokens: stage.train(
            settings.root,
            plan(tokens),
            device=device,
            resume=True,
            report=settings.progress.note,
            stopped=settings.progress.stop,
        ),
    )


@click.command(cls=Command)
@JOBS
@DEVICE
def demo(settings: Settings, jobs: int, device: str) -> Outcome:
    """Run every stage on the text that comes with Inkstone, offline, and show what came out."""
    from model.runs import run
    from pipeline.refresh import recipe as recipes
    from pipeline.refresh import refresh as chain
    from pipeline.refresh.plan import Options

    recipe = recipes.load("sample")
    stage = _train_stage(settings, recipe, device)
    done = chain.refresh(settings.root, recipe, stage, settings.progress, Options(jobs=processes(jobs)))
    assert done.last
    result = run.read_result(done.last.path)
    samples = _continuations(settings, recipe, done.last, device)
    lines = [
        "everything is unchanged; what there is:" if done.result == "unchanged" else "built:",
        *(f"  {step.stage:<16} {step.what}" for step in done.steps),
        f"  in               {settings.root.resolve()}",
        "",
        f"validation: {result.first_bits_per_char:.3f} bits per character before training, "
        f"{result.bits_per_char:.3f} after {result.steps:,} steps",
        f"loss curve: {done.last.path / 'loss.png'}",
        "",
        "continuations:",
        *_shown(samples),
        "",
        "next, with your own text:",
        "  inkstone clean BOOK.txt --name book",
        "  inkstone train-tokenizer book --vocab-size 8000",
        "  inkstone tokenize book",
        "  inkstone train --tokens book --preset shuihu-8m-rope --minutes 10 --name book",
        "  inkstone sample book --prompt 话说",
    ]
    outcome = _refreshed(done, lines)
    outcome.extra |= {
        "first_bits_per_char": result.first_bits_per_char,
        "bits_per_char": result.bits_per_char,
        "loss_curve": str(done.last.path / "loss.png"),
        "samples": samples,
    }
    return outcome
