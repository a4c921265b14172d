"""The command line: one command a stage. Parse, call one function, print its result.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import commands, console, errors, upkeep
from pipeline.commands import JOBS, NETWORK, network_of, newest, outcome_of, processes
from pipeline.console import Group, Outcome, Settings
from pipeline.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.run import Plan
    from pipeline.artifact import Artifact, Built
    from pipeline.chain import TrainStage
    from pipeline.plan import Options
    from pipeline.recipe import Recipe
    from pipeline.refresh import Refreshed

HERE = Path(__file__).resolve().parent
DEVICE = click.option("--device", default="auto", show_default=True, help="cuda, mps or cpu; auto: the first there is.")


@click.group(cls=Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="inkstone", prog_name="inkstone")
@click.pass_context
def cli(context: click.Context, **_: Any) -> None:
    """From raw text to a trained compact GPT, one stage at a time.

    Text: download, decompress, clean. Tokens: train-tokenizer, tokenize. Model: train, sample.
    `refresh` runs all of it for a recipe, as far as it is stale; `demo` runs it on the text that comes along.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in commands.COMMANDS:
    cli.add_command(command)


@cli.command()
@click.option("--tokens", "reference", default="", help="The token arrays to train on (default: the newest).")
@click.option("--preset", default="sample", show_default=True, help="Model and training numbers; see model/presets.py.")
@click.option("--name", default="", help="Name of the run (default: the preset's).")
@click.option("--steps", type=click.IntRange(1), help="Stop after so many steps.")
@click.option("--minutes", type=float, help="Plan the schedule to end after so many minutes.")
@click.option(
    "--resume/--no-resume",
    default=None,
    help="Go on with an unfinished run (default: where there is one of this plan).",
)
@click.option(
    "--on-stop",
    type=click.Choice(["save", "anneal"]),
    default="save",
    show_default=True,
    help="When a signal comes: save and end, or let the rates fall first and publish the run.",
)
@click.option("--dry-run", is_flag=True, help="Say what the training will take and mean, and end.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's events too (extra [logging]).")
@click.option(
    "--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Override one number of the preset (repeatable)."
)
@click.option("--counting", is_flag=True, help="Train on 1, 2, 3, ... instead of text.")
@click.option("--from", "parent", default="", metavar="RUN", help="Begin with the network and the weights of this run.")
@DEVICE
def train(
    settings: Settings,
    reference: str,
    preset: str,
    name: str,
    steps: int | None,
    minutes: float | None,
    resume: bool | None,
    on_stop: str,
    dry_run: bool,
    tensorboard: bool,
    pairs: tuple[str, ...],
    counting: bool,
    parent: str,
    device: str,
) -> Outcome:
    """Train a GPT on token arrays; the run holds all that `sample` needs.

    Ctrl-C or SIGTERM once ends it at the next step with everything saved, twice at once. Several processes, started
    by `torchrun cli.py train`, train one model together.
    """
    from model import run, stage
    from pipeline import artifact
    from pipeline import counting as toy

    if counting and reference:
        raise errors.BadConfig("--counting and --tokens exclude each other", hint="give one of them")
    if counting:
        tokens = toy.build(settings.root).artifact
    else:
        tokens = (
            artifact.find(settings.root, "tokens", reference)
            if reference
            else newest(settings, "tokens", besides="counting")
        )
    numbers: dict[str, Any] = {"name": name, "steps": steps, "minutes": minutes, "settings": _pairs(pairs)}
    if parent:
        planned = run.plan_from(artifact.find(settings.root, "runs", parent), tokens, preset, **numbers)
    else:
        planned = run.plan(tokens, preset, **numbers)
    planned = replace(planned, tensorboard=tensorboard)
    report = settings.progress.note
    if dry_run:
        return Outcome("unchanged", lines=stage.forecast(planned, device=device), always=True)
    if resume is not False and "/" not in reference.removeprefix("tokens/"):  # no generation was named
        begun = run.pinned(settings.root, planned)
        if begun.tokens.path != tokens.path:
            report(f"the unfinished run {planned.name} keeps to the tokens that it was begun on: {begun.tokens.ref}")
        planned = begun
    if resume:
        run.require_unfinished(settings.root, planned)
    anneal = on_stop == "anneal"
    built = stage.train(
        settings.root,
        planned,
        device=device,
        resume=resume is not False,
        report=report,
        anneal=anneal,
        stopped=settings.progress.stop,
    )
    outcome = _trained(built)
    outcome.silent = _follows()
    return outcome


def _follows() -> bool:
    """Whether this is one of several processes of torchrun, and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def _trained(built: Built) -> Outcome:
    import msgspec

    from model import run

    result = run.read_result(built.artifact.path)
    outcome = outcome_of(built, ("steps", "tokens", "parameters"))
    fields = msgspec.structs.asdict(result)
    outcome.extra |= {key: fields[key] for key in fields if key not in ("seconds", "last", "best")}
    outcome.extra["checkpoint"] = str(built.artifact.path / "checkpoints" / result.best)
    outcome.extra["loss_curve"] = str(built.artifact.path / "loss.png")
    outcome.lines += [
        f"validation {result.first_bits_per_char:.3f} → {result.bits_per_char:.3f} bits per character "
        f"(best {result.best_bits_per_char:.3f}), {result.val_loss:.3f} nats per token",
        f"loss curve: {outcome.extra['loss_curve']}",
    ]
    return outcome


@cli.command()
@click.argument("reference", metavar="[RUN]", default="")
@click.option("--prompt", "prompts", multiple=True, help="Text to continue (repeatable).")
@click.option("--prompt-ids", multiple=True, metavar="IDS", help="Token ids to continue, as 1,2,3 (repeatable).")
@click.option("--max-tokens", type=int, default=100, show_default=True)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Choose among the k likeliest; 0: all.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Choose among the likeliest that make up p.")
@click.option("--greedy", is_flag=True, help="Always take the likeliest token.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--num-samples", type=click.IntRange(1), default=1, show_default=True, help="Continuations of each prompt."
)
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True)
@DEVICE
def sample(
    settings: Settings,
    reference: str,
    prompts: tuple[str, ...],
    prompt_ids: tuple[str, ...],
    num_samples: int,
    checkpoint: str,
    device: str,
    **options: Any,
) -> Outcome:
    """Continue prompts with a trained model (the newest run if none is named)."""
    from pipeline import artifact

    found = artifact.find(settings.root, "runs", reference) if reference else newest(settings, "runs")
    samples = _sample(settings, found, prompts, prompt_ids, num_samples, checkpoint, device, options)
    joints = [""] * len(prompts) * num_samples + [" → "] * len(prompt_ids) * num_samples or [""] * num_samples
    lines = [f"{each['prompt']}{joint}{each['text']}" for each, joint in zip(samples, joints, strict=True)]
    return Outcome(
        "built",
        found.ref,
        found.path,
        {"samples": len(samples)},
        extra={"samples": samples},
        lines=["\n\n".join(lines)],
        always=True,
    )


def _sample(
    settings: Settings,
    run: Artifact,
    prompts: tuple[str, ...],
    prompt_ids: tuple[str, ...],
    num_samples: int,
    checkpoint: str,
    device: str,
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    from model import run as runs

    tokenizer = runs.open_tokenizer(run)
    asked = [(text, tokenizer.encode(text)) for text in prompts]
    asked += [(text, _ids(text, tokenizer.vocab_size)) for text in prompt_ids]
    for text in prompts:
        if unknown := tokenizer.unknown(text):
            shown = (each if each.isprintable() else f"U+{ord(each):04X}" for each in unknown)
            settings.progress.note(f"warning: the tokenizer has never seen {' '.join(shown)}")
    path = runs.checkpoint_path(run, checkpoint)

    from model import checkpoint as checkpoints
    from model import device as devices
    from model import generate

    chosen = generate.SampleOptions(**options)
    model = checkpoints.load_model(path, devices.pick(device))
    repeated = [each for each in asked or [("", [])] for _ in range(num_samples)]
    return [asdict(each) for each in generate.sample(model, tokenizer, repeated, chosen)]


def _ids(text: str, vocab_size: int) -> list[int]:
    from pipeline.tokenizers import Integers

    return Integers(vocab_size).encode(text)


@cli.command("import-model")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the run that it becomes.")
@click.option("--tokenizer", default="", help="A trained one, a .model file, r50k_base, ... (default: GPT-2's, if so).")
@click.option("--trust-checkpoint", is_flag=True, help="Read a pickle too (pytorch_model.bin); its tensors alone.")
def import_model(settings: Settings, folder: Path, name: str, tokenizer: str, trust_checkpoint: bool) -> Outcome:
    """Make a run of a GPT-2 or a Qwen3 in a folder of Hugging Face's: to sample from, to train on, to export."""
    from model import adoption

    built = adoption.adopt(settings.root, folder, name, tokenizer=tokenizer, trusted=trust_checkpoint)
    return outcome_of(built, ("parameters",), tokenizer=built.artifact.manifest.tokenizer)


@cli.command()
@click.argument("kind", metavar="tokens|model", type=click.Choice(["tokens", "model"]))
@click.argument("reference", metavar="[NAME]", default="")
@click.option(
    "--to",
    "layout",
    default="",
    help="nanogpt, megatron, llmc, datatrove, hdf5-int32 or litdata; of a model hf or gguf.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The new folder (default: exports/NAME-FORMAT below that of the artifacts).",
)
@click.option("--verify", is_flag=True, help="Of tokens: read all of it back and compare, before it is published.")
@click.option(
    "--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True, help="Of a model."
)
def export(
    settings: Settings, kind: str, reference: str, layout: str, out: Path | None, verify: bool, checkpoint: str
) -> Outcome:
    """Write token arrays, or a model, in another tool's format (the newest if none is named)."""
    if kind == "tokens":
        return commands.export_tokens(settings, reference, layout, out, verify)

    from model import export as exports
    from pipeline import artifact

    if not layout:
        raise errors.BadConfig("no format to export to", hint=f"--to {', '.join(exports.FORMATS)}")
    found = artifact.find(settings.root, "runs", reference) if reference else newest(settings, "runs")
    target = out or settings.root / "exports" / f"{found.manifest.name}-{layout}"
    done = exports.export(found, layout, target, checkpoint)
    counts = {"parameters": done.parameters, "step": done.step, "bytes": done.bytes}
    return Outcome(
        "built",
        found.ref,
        done.path,
        counts,
        extra={"format": done.format, "files": list(done.files)},
        lines=[f"built: {done.path} ({done.parameters:,} parameters of step {done.step:,} as {done.format})"],
    )


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
    from pipeline import recipe as recipes
    from pipeline import refresh as chain
    from pipeline.plan import Options

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
    from pipeline.network import ping

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
    from pipeline import files, state
    from pipeline.chain import Chain
    from pipeline.plan import plan
    from pipeline.status import duration, size

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
    asked = recipe.sample
    options = {
        "max_tokens": asked.max_tokens,
        "temperature": asked.temperature,
        "top_k": asked.top_k,
        "seed": asked.seed,
    }
    return _sample(settings, run, asked.prompts, (), 1, "best", device, options)


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
    from model import run, stage
    from pipeline.chain import TrainStage

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
    from model import run
    from pipeline import recipe as recipes
    from pipeline import refresh as chain
    from pipeline.plan import Options

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
@click.argument("what", metavar="[download|clean|tokenize|batches|train|loss]", default="")
@click.argument("given", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of which the median counts.")
@click.option("--size", type=click.IntRange(8), default=256, show_default=True, help="MB of text, of tokenize.")
@click.option("--minutes", type=float, default=5, show_default=True, help="Of training, of loss.")
@click.option("--preset", default="shuihu-fast", show_default=True, help="Of loss.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of loss.")
def bench(
    settings: Settings,
    what: str,
    given: tuple[Path, ...],
    rounds: int,
    size: int,
    minutes: float,
    preset: str,
    seed: int,
) -> Outcome:
    """Measure this program beside other ways of doing the same, in turn, on this machine.

    `bench tokenize SHARD...` takes shards of its own; `bench loss TRAIN.txt VAL.txt` needs two texts, and says what a
    model trained on the one makes of the other.
    """
    known = ("download", "clean", "tokenize", "batches", "train", "loss")
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
    if what == "loss":
        from benchmarks import loss

        if len(given) != 2:
            raise errors.BadConfig("bench loss needs two texts", hint="bench loss TRAIN.txt VAL.txt")
        rows += loss.bench(*given, minutes, preset, seed, settings.progress.note)
    return Outcome(
        "unchanged",
        extra={"rows": [asdict(row) | {"ratio": row.ratio} for row in rows]},
        lines=[row.line() for row in rows],
        always=True,
    )


def _pairs(pairs: tuple[str, ...]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise errors.BadConfig(f"--set {pair}: not of the form key=value", hint="for example --set dropout=0.2")
    return dict(pair.split("=", 1) for pair in pairs)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. The one place where errors become messages and codes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    start = time.monotonic()
    # torch's threads spin while they wait unless told otherwise before it loads. On a machine that does anything else
    # that makes training several times slower, and sleeping at once a third where products are small: so they spin
    # for a moment (benchmarks/NOTES.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "2000")}
    try:
        return cli.main(arguments, prog_name="inkstone", standalone_mode=False) or 0
    except SystemExit:  # click's answer to a reader that went away, as `| head` does
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - nothing may end in a bare traceback
        if "--debug" in arguments:
            traceback.print_exc()
        failed = console.explain(error)
    if _follows() and isinstance(failed, (errors.TryAgain, errors.BadConfig, errors.TrainingDiverged)):
        return failed.exit_code  # all have met it
    what, hint = redacted(failed.what), redacted(failed.hint)
    with suppress(OSError, ValueError):  # nobody may be listening
        print(f"error: {what}" + (f" — {hint}" if hint else ""), file=sys.stderr, flush=True)
    if "--json" in arguments:
        failure = Outcome("failed", extra={"error": what, "hint": hint}, exit_code=failed.exit_code)
        print(failure.as_json(time.monotonic() - start))
    return failed.exit_code


if __name__ == "__main__":
    sys.exit(main())
