"""The command line: one command a stage. Parse, call one function, print its result.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model.commands import train as learning
from model.commands.train import DEVICE, follows, pairs_of
from pipeline import errors
from pipeline.commands import console, data
from pipeline.commands import maintenance as upkeep
from pipeline.commands.console import Group, Outcome, Settings
from pipeline.commands.data import JOBS, NETWORK, network_of, processes
from pipeline.runtime.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.runs.run import Plan
    from pipeline.refresh.plan import Options
    from pipeline.refresh.recipe import Recipe
    from pipeline.refresh.refresh import Refreshed
    from pipeline.refresh.stages import TrainStage
    from pipeline.store.artifact import Artifact

_SAMPLED = ("max_tokens", "temperature", "top_k", "seed")  # what a recipe says of sampling
_IDLE = 0.5  # processes that wanted to run in the last minute
HERE = Path(__file__).resolve().parent


@click.group(cls=Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="inkstone", prog_name="inkstone")
@click.pass_context
def cli(context: click.Context, **_: Any) -> None:
    """From raw text to a trained compact GPT, one stage at a time.

    Text: download, decompress, clean. Tokens: train-tokenizer, tokenize. Model: train, sample, serve.
    `refresh` runs all of it for a recipe, as far as it is stale; `demo` runs it on the text that comes along.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (*data.COMMANDS, *learning.COMMANDS):
    cli.add_command(command)


@cli.command()
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
    from model.generation import session as sessions
    from model.generation.engine import SampleOptions

    session = sessions.Session(run, "best", device, "fp32", settings.progress.note)
    asked = [session.prompt(text) for text in recipe.sample.prompts]
    options = SampleOptions(**{name: getattr(recipe.sample, name) for name in _SAMPLED})
    return [sessions.as_fields(each) for each in session.samples(asked, options, settings.progress.stop)]


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
    from model.runs import run
    from model.training import stage
    from pipeline.refresh.stages import TrainStage

    def plan(tokens: Artifact) -> Plan:
        chosen = recipe.train
        planned = run.plan(
            tokens, chosen.preset, name=recipe.name, steps=chosen.steps, minutes=chosen.minutes, settings=chosen.set
        )
        return run.continued(settings.root, planned)

    return TrainStage(
        check=lambda: run.check(recipe.train.preset, recipe.train.steps, recipe.train.minutes, recipe.train.set),
        identify=lambda tokens: run.identify(plan(tokens)),
        run=lambda tokens: stage.train(
            settings.root,
            plan(tokens),
            device=device,
            resume=True,
            report=settings.progress.note,
            stopped=settings.progress.stop,
        ),
    )


@cli.command()
@JOBS
@DEVICE
def demo(settings: Settings, jobs: int, device: str) -> Outcome:
    """Run every stage on the text that comes with Inkstone, offline, and show what came out."""
    from model.runs import run
    from pipeline.refresh import recipe as recipes
    from pipeline.refresh import refresh as chain
    from pipeline.refresh.plan import Options

    recipe = recipes.load(HERE / "recipes" / "sample.toml")
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


for command in upkeep.COMMANDS:
    cli.add_command(command)


@cli.command()
@click.argument("what", metavar="[download|clean|tokenize|batches|train|sample|loss]", default="")
@click.argument("given", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of which the median counts.")
@click.option("--size", type=click.IntRange(8), default=256, show_default=True, help="MB of text, of tokenize.")
@click.option("--minutes", type=float, default=5, show_default=True, help="Of training, of loss.")
@click.option("--preset", default="shuihu-fast", show_default=True, help="Of loss.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Override one number of the preset, of loss.")
@click.option("--tokenizer", default="", metavar="KIND-SIZE", help="As bpe-8000 or char, of loss (default: preset's).")
@click.option("--seed", type=int, default=1, show_default=True, help="Of loss.")
def bench(
    settings: Settings,
    what: str,
    given: tuple[Path, ...],
    rounds: int,
    size: int,
    minutes: float,
    preset: str,
    pairs: tuple[str, ...],
    tokenizer: str,
    seed: int,
) -> Outcome:
    """Measure this program beside other ways of doing the same, in turn, on this machine.

    `bench tokenize SHARD...` takes shards of its own; `bench loss TRAIN.txt VAL.txt` needs two texts, and says what a
    model trained on the one makes of the other.
    """
    known = ("download", "clean", "tokenize", "batches", "train", "sample", "loss")
    if what and what not in known:
        raise errors.BadConfig(f"there is no bench {what!r}", hint=f"one of {', '.join(known)}")
    if missing := [path for path in given if not path.is_file()]:
        raise errors.InputMissing(f"{missing[0]}: no such file", hint="check the path")
    rows = []
    if what in ("", "download"):
        from benchmarks import download as transfer

        rows += transfer.bench(rounds, report=settings.progress.note)
    if what in ("", "clean"):
        from benchmarks import clean as cleaning

        rows += cleaning.bench(rounds, report=settings.progress.note)
    if what in ("", "tokenize"):
        from benchmarks import tokenize as comparison

        rows += comparison.bench(rounds, shards=given, size=size, report=settings.progress.note)
    if what in ("", "batches"):
        from benchmarks import batches

        rows += batches.bench(rounds)
    if what in ("", "train"):
        from benchmarks import train as training

        rows += training.bench(rounds, report=settings.progress.note)
    if what in ("", "sample"):
        from benchmarks import sample as sampling

        rows += sampling.bench(rounds, report=settings.progress.note)
    if what == "loss":
        from benchmarks import loss

        if len(given) != 2:
            raise errors.BadConfig("bench loss needs two texts", hint="bench loss TRAIN.txt VAL.txt")
        rows += loss.bench(*given, minutes, preset, seed, settings.progress.note, pairs_of(pairs), tokenizer)
    return Outcome(
        "unchanged",
        extra={"rows": [asdict(row) | {"ratio": row.ratio} for row in rows]},
        lines=[row.line() for row in rows],
        always=True,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. The one place where errors become messages and codes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    start = time.monotonic()
    # torch's threads spin while they wait unless told otherwise before it loads. On a machine that does anything else
    # that makes training several times slower, and sleeping at once a third where products are small: so they spin
    # for a moment, and longer where the machine is idle (benchmarks/NOTES.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        rounds = "10000" if os.getloadavg()[0] < _IDLE else "2000"
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", rounds)}
    try:
        return cli.main(arguments, prog_name="inkstone", standalone_mode=False) or 0
    except SystemExit:  # click's answer to a reader that went away, as `| head` does
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - nothing may end in a bare traceback
        if "--debug" in arguments:
            traceback.print_exc()
        failed = console.explain(error)
    met = isinstance(failed, (errors.TryAgain, errors.BadConfig, errors.TrainingDiverged))  # by all processes
    if follows() and (met or failed.told):
        return failed.exit_code
    what, hint = redacted(failed.what), redacted(failed.hint)
    with suppress(OSError, ValueError):  # nobody may be listening
        print(f"error: {what}" + (f" — {hint}" if hint else ""), file=sys.stderr, flush=True)
    if "--json" in arguments:
        failure = Outcome("failed", extra={"error": what, "hint": hint}, exit_code=failed.exit_code)
        print(failure.as_json(time.monotonic() - start))
    return failed.exit_code


if __name__ == "__main__":
    sys.exit(main())
