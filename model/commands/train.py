"""The train command.

torch is imported inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from model.commands.options import DEVICE, is_secondary_rank, parse_key_values
from pipeline import errors
from pipeline.commands.console import Choice, Command, Outcome, Settings, option_group
from pipeline.commands.options import find_artifact, outcome_of

if TYPE_CHECKING:
    from model.runs.plan import TrainPlan
    from pipeline.store.artifact import Artifact, BuildResult

_PRESETS = (
    *("mini", "bigram", "sample", "babygpt", "shuihu-8m", "shuihu-8m-rope", "shuihu-fast", "13m", "2b"),
    *("gpt2-124m", "qwen-8m", "fast-124m"),
)


@click.command(cls=Command)
@option_group(
    "Model and data",
    click.option(
        "--tokens", "reference", default="", metavar="NAME", help="Token arrays to train on (default: the newest)."
    ),
    click.option(
        "--preset",
        type=Choice(_PRESETS),
        default="sample",
        show_default=True,
        metavar="PRESET",
        help=f"Preset of model and training settings: {', '.join(_PRESETS)}.",
    ),
    click.option(
        "--set",
        "pairs",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one setting of the preset, e.g. dropout=0.2 (repeatable).",
    ),
    click.option(
        "--from", "parent", default="", metavar="RUN", help="Start from the architecture and weights of this run."
    ),
    click.option("--counting", is_flag=True, help="Train on the numbers 1, 2, 3, ... instead of text."),
)
@option_group(
    "Training",
    click.option("--steps", type=click.IntRange(1), metavar="N", help="Stop after this many steps."),
    click.option("--minutes", type=float, help="Plan the schedule to end after this many minutes."),
    click.option(
        "--resume/--no-resume",
        default=None,
        help="Resume an unfinished run, or start over (default: resume if the plan is the same).",
    ),
    click.option(
        "--on-stop",
        type=click.Choice(["save", "anneal"]),
        default="save",
        show_default=True,
        help="On a signal, save and stop, or decay the learning rate first and publish the run.",
    ),
    DEVICE,
)
@option_group(
    "Output",
    click.option("--name", default="", metavar="NAME", help="Name of the run (default: the preset's)."),
    click.option("--dry-run", is_flag=True, help="Print the size, memory and time of the training and stop."),
    click.option("--tensorboard", is_flag=True, help="Write TensorBoard events too (extra [logging])."),
)
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
    """Train a GPT on token arrays.

    The run folder holds everything that `sample` needs. The first Ctrl-C or SIGTERM stops at the next step with
    everything saved; a second one stops at once. `torchrun cli.py train` trains one model with several processes.

    \b
    Examples:
      inkstone train --tokens book --preset shuihu-8m-rope --minutes 10 --name book
      inkstone train --tokens book --dry-run
    """
    from model.runs import plan as run_plan
    from model.training import stage

    tokens = _tokens(settings, reference, counting)
    plan = run_plan.make_plan(
        tokens,
        preset,
        parent=find_artifact(settings, "runs", parent) if parent else None,
        name=name,
        steps=steps,
        minutes=minutes,
        settings=parse_key_values(pairs),
    )
    plan = replace(plan, tensorboard=tensorboard)
    if dry_run:
        return Outcome("unchanged", lines=stage.dry_run(plan, device=device), always=True)
    names_generation = "/" in reference.removeprefix("tokens/")
    if resume is not False and not names_generation:
        plan = _pinned(settings, plan)
    if resume:
        run_plan.require_unfinished(settings.root, plan)
    built = stage.train(
        settings.root,
        plan,
        device=device,
        resume=resume is not False,
        report=settings.progress.note,
        anneal=on_stop == "anneal",
        stopped=settings.progress.stop,
    )
    outcome = _outcome(built)
    outcome.silent = is_secondary_rank()
    return outcome


def _tokens(settings: Settings, reference: str, counting: bool) -> Artifact:
    """Return the token arrays to train on. Raises BadConfig if both --tokens and --counting are given."""
    if not counting:
        return find_artifact(settings, "tokens", reference, exclude="counting")
    if reference:
        raise errors.BadConfig("--counting and --tokens exclude each other", hint="give one of them")
    from pipeline.tokens.counting import build as build_counting_tokens

    return build_counting_tokens(settings.root).artifact


def _pinned(settings: Settings, plan: TrainPlan) -> TrainPlan:
    """Return the plan with the tokens of its unfinished run, if there is one."""
    from model.runs import plan as run_plan

    pinned = run_plan.pin_unfinished(settings.root, plan)
    if pinned.tokens.path != plan.tokens.path:
        settings.progress.note(f"the unfinished run {plan.name} keeps its tokens: {pinned.tokens.ref}")
    return pinned


def _outcome(built: BuildResult) -> Outcome:
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
