"""The commands of the model: train, sample, serve, import-model, export.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from model.commands.options import DEVICE, follows, pairs_of
from pipeline import errors
from pipeline.commands.console import Command, Outcome, Settings
from pipeline.commands.options import newest, outcome_of

if TYPE_CHECKING:
    from pipeline.store.artifact import Built


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
    from model.runs import plan
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
    parent_run = artifact.find(settings.root, "runs", parent) if parent else None
    planned = plan.plan(tokens, preset, parent=parent_run, **numbers)
    planned = replace(planned, tensorboard=tensorboard)
    report = settings.progress.note
    if dry_run:
        return Outcome("unchanged", lines=stage.forecast(planned, device=device), always=True)
    if resume is not False and "/" not in reference.removeprefix("tokens/"):  # no generation was named
        begun = plan.pinned(settings.root, planned)
        if begun.tokens.path != tokens.path:
            report(f"the unfinished run {planned.name} keeps to the tokens that it was begun on: {begun.tokens.ref}")
        planned = begun
    if resume:
        plan.require_unfinished(settings.root, planned)
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
