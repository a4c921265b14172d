"""The start command: any text to a trained model, by a recipe that it writes and `refresh` runs.

The recipe and its reasons are decided in `pipeline.start`; the model is chosen by `model.presets.choose`.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from model.commands.options import DEVICE
from model.commands.start_plan import as_line, may_retrain_tokenizer, write_recipe, write_tuning_recipe
from pipeline.commands.console import Command, Number, Outcome, Settings, option_group
from pipeline.commands.options import EXCLUDE, INCLUDE, JOBS, MAX_BAD, TEXT_FIELD, worker_count
from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.runtime.regular_file import require_utf8
from pipeline.runtime.terminal import counted

if TYPE_CHECKING:
    from model.runs.run import Result
    from pipeline.refresh.recipe import Recipe
    from pipeline.start.decide import InputOptions
    from pipeline.store.artifact import Artifact


@click.command(cls=Command, short_help="Train a model on any text, in one command.")
@click.argument("references", metavar="[PATH|SOURCE]...", nargs=-1)
@option_group(
    "Recipe",
    click.option(
        "--name", default="", metavar="NAME", help="Name of the recipe and of all it builds (default: the input's)."
    ),
    click.option(
        "--minutes",
        type=Number(),
        metavar="M",
        help="Minutes of training (default: 5, less for a short text, or the recipe's).",
    ),
    click.option(
        "--from", "parent", default="", metavar="RUN", help="Tune this run on the input: conversations or pairs."
    ),
    click.option("--plan", "plan_only", is_flag=True, help="Print the plan with its reasons and stop."),
)
@option_group(
    "Input (of a new recipe)",
    INCLUDE,
    EXCLUDE,
    TEXT_FIELD,
    click.option(
        "--encoding", default="auto", metavar="NAME", help="Encoding of text files, e.g. cp1252 (default: detected)."
    ),
    MAX_BAD,
)
@option_group("Running", JOBS, DEVICE)
def start(
    settings: Settings,
    references: tuple[str, ...],
    name: str,
    minutes: float | None,
    parent: str,
    plan_only: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    text_fields: tuple[str, ...],
    encoding: str,
    max_bad: float,
    jobs: int,
    device: str,
) -> Outcome:
    """Train a model on any text: look at it, write a recipe, run it, and continue three prompts.

    PATH is a file or a folder: text, Markdown, HTML, EPUB, Word, subtitles, JSON, JSON lines, CSV, Parquet, also
    compressed or in an archive. SOURCE is what `download` takes. The recipe is NAME.toml in the current folder. If it
    exists, the new inputs are added to it and the training continues.

    \b
    Examples:
      inkstone start novel.txt
      inkstone start --name novel more.txt --minutes 10
      inkstone start conversations.jsonl --from novel
    """
    from pipeline.start import recipe_file
    from pipeline.start.decide import InputOptions

    if minutes is not None and not 0 < minutes < math.inf:
        raise BadConfig(f"--minutes must be a number greater than 0, got {minutes:g}", hint="for example --minutes 5")
    if not all(references):
        raise BadConfig("one of the inputs is an empty string", hint="name a file or a folder; `.` is the current one")
    for reference in references:
        require_utf8(reference)
    options = InputOptions(include, exclude, text_fields, encoding, max_bad)
    path = _recipe_path(settings, references, name)
    sources = list(dict.fromkeys(recipe_file.as_source(reference, path.parent) for reference in references))
    more = path.exists() and minutes is not None
    if path.exists():
        recipe = recipe_file.load(path)
        _require_parent(path, recipe, parent)
        lines = _extend(settings, path, recipe, sources, options, minutes, plan_only, is_named=bool(name))
    elif parent:
        lines = write_tuning_recipe(settings, path, sources, options, minutes, plan_only, parent)
    else:
        lines = write_recipe(settings, path, sources, options, minutes, plan_only, device)
    if plan_only:
        return Outcome("unchanged", extra={"plan": lines}, lines=lines, always=True)
    for line in lines:
        settings.progress.note(line)
    return _run(settings, path, device, worker_count(jobs), more=more)


def _require_parent(path: Path, recipe: Recipe, parent: str) -> None:
    """Raise BadConfig if a recipe tunes another run than `parent`, or none."""
    if parent and parent != recipe.train.parent:
        actual = f"tunes {recipe.train.parent}" if recipe.train.parent else "trains a model of its own"
        raise BadConfig(f"{path} {actual}, and --from {parent} is given", hint="choose another --name")


def _recipe_path(settings: Settings, references: Sequence[str], name: str) -> Path:
    """Return the path of the recipe file in the current folder. If its name is taken, report that and add a number.

    Raises BadConfig if nothing was named, or if the artifacts of this name belong to something else.
    """
    from pipeline.store import artifact
    from pipeline.store.manifest import KINDS, check_name, name_from_path

    if not references and not name:
        raise BadConfig("no text to train on was named", hint="for example `inkstone start novel.txt`")
    base = check_name(name) if name else name_from_path(_absolute(references[0]))
    path = Path(f"{base}.toml")
    number, owner = 1, ""
    while not path.exists() and (kinds := [kind for kind in KINDS if artifact.current(settings.root, kind, path.stem)]):
        if name:
            raise BadConfig(
                f"{name} exists in {settings.root}, and there is no {path} here",
                hint=f"run it in the folder of {path}, or choose another --name",
            )
        number, owner = number + 1, owner or f"{kinds[0]}/{base}"
        path = Path(f"{base}-{number}.toml")
    if owner:
        settings.progress.note(f"the name {base} is taken by {owner}: this is {path.stem}; --name chooses another")
    if not references and not path.exists():
        raise InputMissing(f"{path}: no such recipe here", hint=f"name a text: `inkstone start TEXT --name {name}`")
    return path


def _absolute(reference: str) -> str:
    """Return an existing path as an absolute one, so that `.` has a name, and any other reference unchanged."""
    return str(Path(reference).resolve()) if Path(reference).exists() else reference


def _extend(
    settings: Settings,
    path: Path,
    recipe: Recipe,
    sources: Sequence[str],
    options: InputOptions,
    minutes: float | None,
    plan_only: bool,
    *,
    is_named: bool,
) -> list[str]:
    """Add new sources and options to the recipe, and return the lines of the plan.

    Unless the user named the recipe (`is_named`), a line says that new text is added to an existing model. If a source
    cannot be read, its error is raised and the recipe stays unchanged.
    """
    from pipeline.start import recipe_file

    new = [source for source in sources if _resolved(source, path.parent) not in recipe.download.sources]
    values = {"download": options.download(), "clean": options.clean()}
    changed = [f"{name} = {value}" for entries in values.values() for name, value in entries.items()]
    _check_sources(settings, path, recipe, new, options)
    effect = "its tokenizer and its split are kept"
    if may_retrain_tokenizer(settings.root, recipe):
        effect = "there is no model yet, so new text trains a new tokenizer; its split is kept"
    lines = [
        as_line("recipe", f"{path}: {', '.join(recipe.download.sources)}; {effect}"),
        *([as_line("changed", ", ".join(changed))] if changed else []),
        *([as_line("new text", ", ".join(new))] if new else []),
        *(
            [as_line("", f"adds to the model {recipe.name}; for a new one: --name other")]
            if new and not is_named
            else []
        ),
        as_line("training", f"{_length(recipe, minutes)}, {_beginning(settings.root, path.stem, recipe)}"),
    ]
    if not plan_only and (new or changed or minutes is not None):
        recipe_file.extend(path, new, minutes, values)
    return lines


def _length(recipe: Recipe, minutes: float | None) -> str:
    steps, planned = recipe.train.steps, minutes or recipe.train.minutes
    if planned:
        return counted(planned, "minutes")
    return counted(steps, "steps") if steps else "the length of the preset"


def _beginning(root: Path, name: str, recipe: Recipe) -> str:
    from pipeline.store import artifact

    if recipe.train.parent:
        return f"from {recipe.train.parent}"
    with suppress(BadData):  # the training reports a damaged run
        if not artifact.current(root, "runs", name):
            return "there is no earlier run"
    return "from the last run"


def _check_sources(settings: Settings, path: Path, recipe: Recipe, new: Sequence[str], options: InputOptions) -> None:
    """Raise the error of a source that is missing or cannot be read."""
    import msgspec

    from pipeline.refresh.sources import resolve

    fields = options.text_fields or (recipe.clean.text_fields if recipe.clean else ())
    for source in (*recipe.download.sources, *new):
        section = msgspec.structs.replace(recipe.download, source=source, **options.download())
        try:
            resolve(recipe.name, section, settings.root, text_fields=fields)
        except InputMissing as error:
            if source in new:
                raise
            hint = f"put it back, or take it out of the sources of {path}"
            raise InputMissing(f"{source}: a source of {path} that is no longer there", hint=hint) from error


def _resolved(source: str, folder: Path) -> str:
    path = folder / source
    return str(path.resolve()) if path.exists() else source


def _run(settings: Settings, path: Path, device: str, jobs: int, *, more: bool) -> Outcome:
    """Run the recipe. Report the continuations, the loss with its baselines, and the next commands."""
    from model.commands import recipe_samples
    from model.commands import refresh as refresh_command
    from model.runs import run
    from pipeline.refresh.plan import RefreshOptions
    from pipeline.refresh.recipe import load as load_recipe
    from pipeline.refresh.refresh import refresh as run_refresh
    from pipeline.sources.http import Network

    recipe = load_recipe(path)
    if may_retrain_tokenizer(settings.root, recipe):
        recipe = refresh_command.retraining(recipe)
    train = refresh_command.train_stage(settings, recipe, device, more=more, accept=more)
    options = RefreshOptions(jobs=jobs, network=Network(stop=settings.progress.stop), accept_worse=more)
    refreshed = run_refresh(settings.root, recipe, train, settings.progress, options, run_id=settings.run_id)
    assert refreshed.last
    result = run.read_result(refreshed.last.path)
    samples = recipe_samples.continuations(settings, recipe, refreshed.last, device)
    loss_curve = refreshed.last.path / "loss.png"
    score = "" if result.best_bits_per_char is None else f"{result.best_bits_per_char:.2f} bits per character, "
    early = [as_line("early end", result.ended_early)] if result.ended_early else []
    lines = [
        *recipe_samples.sample_lines(samples),
        as_line(
            "done",
            f"{score}{counted(result.steps, 'steps')} in {result.seconds / 60:.1f} min; curve: {_relative(loss_curve)}",
        ),
        *early,
        *(as_line("tuned", text) for text in run.describe_tuning(result)),
        *_score_lines(settings, refreshed.last, result),
        *(
            as_line("" if index else "next", f"inkstone {command}")
            for index, command in enumerate(next_commands(path.stem, recipe, result))
        ),
    ]
    outcome = refresh_command.refresh_outcome(refreshed, lines)
    refresh_command.add_report(settings, recipe, outcome)
    outcome.extra |= {
        "recipe": str(path),
        "bits_per_char": result.bits_per_char,
        "best_bits_per_char": result.best_bits_per_char,
        "ended_early": result.ended_early,
        "loss_curve": str(loss_curve),
        "samples": samples,
    }
    return outcome


def _score_lines(settings: Settings, last: Artifact, result: Result) -> list[str]:
    """Describe the held-out text, the baselines on it, and the verdict, one line each."""
    from model.commands.training_summary import BASELINE_NAMES, verdict
    from pipeline.store import artifact
    from pipeline.tokens.split import summary

    name = next(entry.name for entry in last.manifest.inputs if entry.role == "tokens")
    tokens = artifact.read_ref(settings.root, name).manifest
    lines = [as_line("held out", summary(tokens.options, tokens.counts).removeprefix("held out "))]
    if result.baselines:
        listed = ", ".join(f"{BASELINE_NAMES[label]} {bits:.2f}" for label, bits in result.baselines.items())
        lines.append(as_line("baselines", f"bits per character, lower is better: {listed}"))
    return [*lines, *(as_line("verdict", text) for text in [verdict(result)] if text)]


def _relative(path: Path) -> str:
    """Return a path relative to the current folder if it lies below, for people to copy."""
    resolved = path.resolve()
    return os.path.relpath(resolved) if resolved.is_relative_to(Path.cwd()) else str(resolved)


def next_commands(name: str, recipe: Recipe, result: Result) -> tuple[str, ...]:
    """Return commands to try after a training, without the name of the program."""
    from model.commands import training_summary

    if recipe.train.parent:
        return (f"chat {name}", f"serve {name}", f"export model {name} --to hf", f"start pairs.jsonl --from {name}")
    prompts = sorted(recipe.sample.prompts, key=lambda text: "'" in text)  # a quoted apostrophe is hard to read
    prompt = shlex.quote(prompts[0]) if prompts else '""'
    longer = f"start --name {name} --minutes {training_summary.minutes(result)}  (train longer)"
    return (
        f"sample {name} {prompt}",
        f"serve {name}",
        *([longer] if training_summary.longer_may_help(result) else []),
        f"start --name {name} more.txt",
    )
