"""The train command.

torch is imported inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from model.commands.options import DEVICE, is_secondary_rank, parse_key_values
from model.commands.training_bar import MEASURING, training_watch
from model.commands.training_summary import training_outcome
from pipeline import errors
from pipeline.commands.console import Choice, Command, Number, Outcome, Settings, option_group
from pipeline.commands.options import REBUILD, find_artifact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.runs.plan import TrainPlan
    from pipeline.store.artifact import Artifact

_PRESETS = (
    *("mini", "bigram", "sample", "babygpt", "shuihu-8m", "shuihu-8m-rope", "shuihu-fast", "13m", "2b"),
    *("gpt2-124m", "qwen-8m", "small", "fast-124m"),
)
_PRESET_OF_PARENT = "sample"  # for the training settings of --from, if no preset is named


@click.command(cls=Command)
@click.argument("positional", metavar="[TOKENS]", default="")
@option_group(
    "Model and data",
    click.option("--tokens", "reference", default="", metavar="NAME", help="The same as TOKENS (default: the newest)."),
    click.option(
        "--preset",
        type=Choice(_PRESETS),
        default="",
        metavar="PRESET",
        help=f"Preset of model and training settings: {', '.join(_PRESETS)} (default: that of the run of this name, or "
        "else chosen for the text, the device and the time).",
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
    click.option(
        "--task",
        type=Choice(("sft", "dpo")),
        default="",
        metavar="TASK",
        help="Tune the run of --from: sft on the answers of conversations, dpo on pairs of answers (default: as TOKENS "
        "are).",
    ),
    click.option(
        "--continue",
        "continued",
        default="",
        metavar="RUN",
        help="Train this finished run further, with its preset, numbers and optimizer state, as a new generation.",
    ),
    click.option("--counting", is_flag=True, help="Train on the numbers 1, 2, 3, ... instead of text."),
)
@option_group(
    "Training",
    click.option("--steps", type=click.IntRange(1), metavar="N", help="Stop after this many steps."),
    click.option(
        "--minutes",
        type=Number(),
        help="Plan the schedule to end after this many minutes (default: the preset's; 5 if it was chosen).",
    ),
    click.option(
        "--patience",
        type=click.IntRange(1),
        metavar="N",
        help="End from the best checkpoint when the validation loss is 2 % above its best, N evaluations after it "
        "(default: 2 with --minutes; with --steps, only a warning).",
    ),
    click.option(
        "--resume/--no-resume",
        default=None,
        help="Resume an unfinished run, or start over (default: resume if the plan is the same).",
    ),
    click.option(
        "--accept-worse",
        is_flag=True,
        help="Make the new run current even if it is worse than the run before.",
    ),
    click.option(
        "--on-stop",
        type=click.Choice(["save", "anneal"]),
        default="save",
        show_default=True,
        help="On a signal, save and stop, or decay the learning rate first and publish the run.",
    ),
    click.option(
        "--prompt",
        default="",
        metavar="TEXT",
        help="Text to continue at each evaluation (default: the beginning of the validation text).",
    ),
    DEVICE,
)
@option_group(
    "Output",
    click.option(
        "--name", default="", metavar="NAME", help="Name of the run (default: the preset's, or that of the tokens)."
    ),
    click.option("--dry-run", is_flag=True, help="Print the size, memory and time of the training and stop."),
    REBUILD,
    click.option("--tensorboard", is_flag=True, help="Write TensorBoard events too (extra [logging])."),
)
def train(
    settings: Settings,
    positional: str,
    reference: str,
    preset: str,
    name: str,
    steps: int | None,
    minutes: float | None,
    patience: int | None,
    resume: bool | None,
    accept_worse: bool,
    on_stop: str,
    prompt: str,
    dry_run: bool,
    rebuild: bool,
    tensorboard: bool,
    pairs: tuple[str, ...],
    continued: str,
    counting: bool,
    parent: str,
    task: str,
    device: str,
) -> Outcome:
    """Train a GPT on token arrays.

    The first Ctrl-C or SIGTERM stops at the next step with everything saved, a second one at once. `inkstone presets`
    compares the presets; for several processes see docs/scale.md.

    \b
      inkstone train book --minutes 10
      inkstone train talks --from book --set lora_rank=8
    """
    reference = _reference(settings, positional, reference)
    overrides = parse_key_values(pairs) | ({"patience": str(patience)} if patience else {})

    def make_plan() -> TrainPlan:
        if continued:
            _require_alone(**{"--set": overrides, "--preset": preset, "--from": parent or task, "--name": name})
            plan = _continuation(settings, continued, reference, counting, steps, minutes)
        else:
            plan = _plan(settings, reference, counting, preset, parent, task, name, steps, minutes, overrides, device)
        return replace(plan, tensorboard=tensorboard, prompt=prompt)

    if dry_run:
        return _dry_run(settings, make_plan(), device, reference)
    from model.training import stage

    with training_watch(settings) as watch:
        built = stage.train(
            *(settings.root, lambda: _resumable(settings, make_plan(), resume, reference)),
            device=device,
            resume=resume is not False,
            report=settings.progress.note,
            anneal=on_stop == "anneal",
            accept=accept_worse or bool(preset or parent or pairs or steps or minutes),
            stopped=settings.progress.stop,
            watch=watch,
            rebuild=rebuild,
        )
    return Outcome(built.result, silent=True) if is_secondary_rank() else training_outcome(built)


def _reference(settings: Settings, positional: str, reference: str) -> str:
    """Return the name of the tokens. Raises BadConfig for a file, and for two names."""
    if positional and reference:
        raise errors.BadConfig(f"both {positional} and --tokens {reference} are given", hint="name the tokens once")
    from pipeline.store.manifest import MANIFEST

    path = Path(positional)
    folders = (settings.root / "tokens" / positional.removeprefix("tokens/"), path)
    is_artifact = any((folder / name).exists() for folder in folders for name in (MANIFEST, "current"))
    if positional and not is_artifact and (path.suffix or path.exists()):
        raise errors.BadConfig(
            f"`train` reads token arrays, and {positional} is a {'folder' if path.is_dir() else 'file'}",
            hint=f"`inkstone start {shlex.quote(positional)}` makes them from it and trains",
        )
    return positional or reference


def _plan(
    settings: Settings,
    reference: str,
    counting: bool,
    preset: str,
    parent: str,
    task: str,
    name: str,
    steps: int | None,
    minutes: float | None,
    overrides: Mapping[str, str],
    device: str,
) -> TrainPlan:
    """Plan the run. Without a preset, one is chosen and reported, and the run is named after the tokens."""
    from model.runs import continuing, tuning
    from model.runs import plan as run_plan
    from model.runs.plan import kind_of

    tokens = _tokens(settings, reference, counting)
    if task or (parent and kind_of(tokens)):
        if preset or not parent:
            raise errors.BadConfig(
                "a run is tuned with its own network, and --preset is given" if preset else "--task needs --from RUN",
                hint="`inkstone train TOKENS --from RUN`, with --set for single numbers",
            )
        run = find_artifact(settings, "runs", parent)
        return tuning.plan_tuning(tokens, run, name=name, task=task, steps=steps, minutes=minutes, settings=overrides)
    if not preset and not parent:
        name = name or tokens.manifest.name
        plan, resolved = run_plan.make_auto_plan(
            settings.root, tokens, name, steps=steps, minutes=minutes, settings=overrides, device=device
        )
        settings.progress.note(f"preset {resolved}")
    else:
        plan = run_plan.make_plan(
            tokens,
            preset or _PRESET_OF_PARENT,
            parent=find_artifact(settings, "runs", parent) if parent else None,
            name=name or ("" if preset else tokens.manifest.name),
            steps=steps,
            minutes=minutes,
            settings=overrides,
        )
    return plan if parent else continuing.continue_published(settings.root, plan)


def _require_alone(**values: object) -> None:
    """Raise BadConfig if one of the options in `values` is given: --continue excludes them."""
    if names := [name for name, value in values.items() if value]:
        raise errors.BadConfig(
            f"--continue keeps the name, the preset and the settings of the run, and {names[0]} is given",
            hint=f"leave {names[0]} out; `--from RUN --name NEW` starts another run from its weights",
        )


def _continuation(
    settings: Settings, continued: str, reference: str, counting: bool, steps: int | None, minutes: float | None
) -> TrainPlan:
    """Plan a new generation of a finished run, by default on the current tokens of the name that it was trained on."""
    from model.runs import continuing
    from pipeline.store.generations import unfinished_drafts

    try:
        run = find_artifact(settings, "runs", continued)
    except errors.InputMissing:
        name = continued.removeprefix("runs/").partition("/")[0]
        if not any(unfinished_drafts(settings.root, "runs", name)):
            raise
        raise errors.BadConfig(
            f"the run {name} is not finished", hint="the command that started it resumes it"
        ) from None
    if not reference and not counting:
        names = [entry.name.split("/")[1] for entry in run.manifest.inputs if entry.role == "tokens"]
        reference = names[0] if names else run.manifest.name
    return continuing.plan_continuation(run, _tokens(settings, reference, counting), steps=steps, minutes=minutes)


def _tokens(settings: Settings, reference: str, counting: bool) -> Artifact:
    """Return the token arrays to train on. Raises BadConfig if both --tokens and --counting are given."""
    if not counting:
        return find_artifact(settings, "tokens", reference, exclude="counting")
    if reference:
        raise errors.BadConfig("--counting and --tokens exclude each other", hint="give one of them")
    from pipeline.tokens.counting import build as build_counting_tokens

    return build_counting_tokens(settings.root).artifact


def _names_generation(reference: str) -> bool:
    return "/" in reference.removeprefix("tokens/")


def _dry_run(settings: Settings, plan: TrainPlan, device: str, reference: str) -> Outcome:
    """Return the plan as text, with the unfinished runs of its name that it does not resume."""
    from model.runs import unfinished
    from model.training import stage

    resumed = plan if _names_generation(reference) else unfinished.pin_unfinished(settings.root, plan)
    others = unfinished.describe_others(settings.root, resumed)
    with settings.progress.wait(MEASURING):
        lines = stage.dry_run(plan, device=device)
    return Outcome("unchanged", lines=[*lines, *others], always=True)


def _resumable(settings: Settings, plan: TrainPlan, resume: bool | None, reference: str) -> TrainPlan:
    """Return the plan with the tokens of its unfinished run, if there is one, and report other unfinished runs.

    If `reference` names a generation, the tokens do not change. Raises BadConfig for --resume if no run of this plan is
    unfinished.
    """
    from model.runs import unfinished

    tokens = plan.tokens
    if resume is not False:
        plan = plan if _names_generation(reference) else unfinished.pin_unfinished(settings.root, plan)
        _accept_edited_code(settings, plan, accept=resume is True)
    if plan.tokens.digest != tokens.digest:
        settings.progress.note(f"the unfinished run {plan.name} keeps its tokens: {plan.tokens.ref}")
    if resume:
        unfinished.require_unfinished(settings.root, plan)
    for line in unfinished.describe_others(settings.root, plan):
        settings.progress.note(line)
    return plan


def _accept_edited_code(settings: Settings, plan: TrainPlan, *, accept: bool) -> None:
    """Let the unfinished run of a plan resume though source files were edited since. Raises unless `accept`."""
    from model.runs import unfinished

    for file in unfinished.resume_edited(settings.root, plan, accept=accept):
        settings.progress.note(f"the unfinished run {plan.name} continues though {file} changed")
