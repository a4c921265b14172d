"""The commands of the model: train, sample, serve, import-model, export.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import errors
from pipeline.commands import data
from pipeline.commands.console import Command, Outcome, Settings
from pipeline.commands.data import newest, outcome_of

if TYPE_CHECKING:
    from pipeline.store.artifact import Built

_CANDIDATES = 5  # of each token that --explain shows
PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "int8"]),
    default="auto",
    show_default=True,
    help="Of the weights; auto: bf16 where that is faster; int8: on a CPU, the fastest for few texts.",
)
DEVICE = click.option("--device", default="auto", show_default=True, help="cuda, mps or cpu; auto: the first there is.")


@click.command(cls=Command)
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
    from model.runs import run
    from model.training import stage
    from pipeline.store import artifact
    from pipeline.tokens import counting as toy

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
    numbers: dict[str, Any] = {"name": name, "steps": steps, "minutes": minutes, "settings": pairs_of(pairs)}
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
    outcome.silent = follows()
    return outcome


def follows() -> bool:
    """Whether this is one of several processes of torchrun, and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def _trained(built: Built) -> Outcome:
    import msgspec

    from model.runs import run

    result = run.read_result(built.artifact.path)
    outcome = outcome_of(built, ("steps", "tokens", "parameters"))
    fields = msgspec.structs.asdict(result)
    outcome.extra |= {key: fields[key] for key in fields if key not in ("seconds", "last", "best")}
    outcome.extra["checkpoint"] = str(built.artifact.path / run.CHECKPOINTS / result.best)
    outcome.extra["loss_curve"] = str(built.artifact.path / "loss.png")
    outcome.lines += [
        f"validation {result.first_bits_per_char:.3f} → {result.bits_per_char:.3f} bits per character "
        f"(best {result.best_bits_per_char:.3f}), {result.val_loss:.3f} nats per token",
        f"loss curve: {outcome.extra['loss_curve']}",
    ]
    return outcome


@click.command(cls=Command)
@click.argument("reference", metavar="[RUN]", default="")
@click.option("--prompt", "prompts", multiple=True, help="Text to continue (repeatable).")
@click.option("--prompt-ids", multiple=True, metavar="IDS", help="Token ids to continue, as 1,2,3 (repeatable).")
@click.option("--prompt-file", "prompt_files", multiple=True, metavar="FILE", help="A text to continue; -: piped in.")
@click.option("--max-tokens", type=int, default=100, show_default=True)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Choose among the k likeliest; 0: all.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Choose among the likeliest that make up p.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Leave out what is p times less likely.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: repeat less.")
@click.option("--greedy", is_flag=True, help="Always take the likeliest token.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text (repeatable).")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--num-samples", type=click.IntRange(1), default=1, show_default=True, help="Continuations of each prompt."
)
@click.option("--stream", is_flag=True, help="Show the text while it is written, one after another.")
@click.option("--interactive", is_flag=True, help="Ask for prompts until the end of the input.")
@click.option("--explain", is_flag=True, help="Show what else was likely at each token.")
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True)
@PRECISION
@DEVICE
def sample(
    settings: Settings,
    reference: str,
    prompts: tuple[str, ...],
    prompt_ids: tuple[str, ...],
    prompt_files: tuple[str, ...],
    num_samples: int,
    stream: bool,
    interactive: bool,
    explain: bool,
    checkpoint: str,
    precision: str,
    device: str,
    **options: Any,
) -> Outcome:
    """Continue prompts with a trained model (the newest run if none is named)."""
    from model.generation import session as sessions
    from pipeline.store import artifact

    if (stream or interactive) and (explain or settings.json):
        raise errors.BadConfig("--stream and --interactive only write text", hint="without --json and --explain")
    if interactive and (prompts or prompt_ids or prompt_files or num_samples > 1):
        raise errors.BadConfig("--interactive asks for the prompts", hint="leave out --prompt and --num-samples")
    found = artifact.find(settings.root, "runs", reference) if reference else newest(settings, "runs")
    session = sessions.Session(found, checkpoint, device, precision, settings.progress.note)
    asked = [session.prompt(text) for text in prompts]
    asked += [session.prompt_of_ids(text) for text in prompt_ids]
    asked += [session.prompt_of_file(path) for path in prompt_files]
    asked = [each for each in asked or [session.prompt("")] for _ in range(num_samples)]

    from model.generation.engine import SampleOptions

    chosen = SampleOptions(**options, candidates=_CANDIDATES if explain else 0)
    done = Outcome("built", found.ref, found.path, {"samples": len(asked)}, always=True)
    if interactive:
        done.counts = {"samples": sessions.converse(session, chosen, settings.progress.stop)}
    elif stream:
        sessions.write(session, asked, chosen, settings.progress.stop)
    else:
        samples = session.samples(asked, chosen, settings.progress.stop)
        done.extra["samples"] = [sessions.as_fields(each) for each in samples]
        done.lines = ["\n\n".join(map(sessions.shown, asked, samples))]
    return done


@click.command("import-model", cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the run that it becomes.")
@click.option("--tokenizer", default="", help="A trained one, a .model file, r50k_base, ... (default: GPT-2's, if so).")
@click.option("--trust-checkpoint", is_flag=True, help="Read a pickle too (pytorch_model.bin); its tensors alone.")
def import_model(settings: Settings, folder: Path, name: str, tokenizer: str, trust_checkpoint: bool) -> Outcome:
    """Make a run of a GPT-2 or a Qwen3 in a folder of Hugging Face's: to sample from, to train on, to export."""
    from model.exchange import adoption

    built = adoption.adopt(settings.root, folder, name, tokenizer=tokenizer, trusted=trust_checkpoint)
    return outcome_of(built, ("parameters",), tokenizer=built.artifact.manifest.tokenizer)


@click.command(cls=Command)
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
@click.option("--verify", is_flag=True, help="Read the tokens or the weights back and compare, before it is published.")
@click.option(
    "--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True, help="Of a model."
)
def export(
    settings: Settings, kind: str, reference: str, layout: str, out: Path | None, verify: bool, checkpoint: str
) -> Outcome:
    """Write token arrays, or a model, in another tool's format (the newest if none is named)."""
    if kind == "tokens":
        return data.export_tokens(settings, reference, layout, out, verify)

    from model.exchange import export as exports
    from pipeline.store import artifact

    if not layout:
        raise errors.BadConfig("no format to export to", hint=f"--to {', '.join(exports.FORMATS)}")
    found = artifact.find(settings.root, "runs", reference) if reference else newest(settings, "runs")
    target = out or settings.root / "exports" / f"{found.manifest.name}-{layout}"
    done = exports.export(found, layout, target, checkpoint, verify=verify)
    checked = ", read back and equal" if done.verified else ""
    counts = {"parameters": done.parameters, "step": done.step, "bytes": done.bytes}
    return Outcome(
        "built",
        found.ref,
        done.path,
        counts,
        extra={"format": done.format, "files": list(done.files), "verified": done.verified},
        lines=[f"built: {done.path} ({done.parameters:,} parameters of step {done.step:,} as {done.format}{checked})"],
    )


@click.command(cls=Command)
@click.argument("reference", metavar="[RUN]", default="")
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than this machine may reach other ones.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True)
@click.option("--rows", type=click.IntRange(1, 256), default=8, show_default=True, help="Texts written side by side.")
@click.option("--queue", type=click.IntRange(0, 4096), default=64, show_default=True, help="Texts that may wait.")
@PRECISION
@DEVICE
def serve(settings: Settings, reference: str, checkpoint: str, precision: str, device: str, **place: Any) -> Outcome:
    """Serve a trained model on this machine: a page to write with, and OpenAI's completions (extra [serve])."""
    from model.generation.session import Session
    from model.serving import server
    from pipeline.store import artifact

    found = artifact.find(settings.root, "runs", reference) if reference else newest(settings, "runs")
    session = Session(found, checkpoint, device, precision, settings.progress.note)
    done = server.serve(session, server.Place(**place), settings.progress.note, settings.progress.stop)
    return Outcome(
        "unchanged",
        found.ref,
        found.path,
        {"texts": done.texts, "tokens": done.tokens},
        extra={"url": done.url},
        lines=[f"served {done.texts:,} texts, {done.tokens:,} tokens"],
    )


def pairs_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """What `--set KEY=VALUE` was given, by its keys."""
    for pair in pairs:
        if "=" not in pair:
            raise errors.BadConfig(f"--set {pair}: not of the form key=value", hint="for example --set dropout=0.2")
    return dict(pair.split("=", 1) for pair in pairs)


COMMANDS = (train, sample, serve, import_model, export)
