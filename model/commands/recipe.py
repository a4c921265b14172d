"""The recipe command: print the recipe that builds an artifact again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.console import Command, Outcome, Settings
from pipeline.errors import BadConfig

if TYPE_CHECKING:
    from pipeline.start.history import History
    from pipeline.store.artifact import Artifact


@click.command(cls=Command)
@click.argument("reference", metavar="ARTIFACT")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the recipe to this new file.")
def recipe(settings: Settings, reference: str, out: Path | None) -> Outcome:
    """Print the recipe of what was built.

    ARTIFACT is a run, tokens or a corpus: a name or KIND/NAME. The recipe has the sources and all options of its chain
    that are not the default, each with a comment. `refresh` runs it, for example every night.

    \b
    Examples:
      inkstone recipe book
      inkstone recipe tokens/book --out book.toml
    """
    from pipeline.start import history, recipe_file
    from pipeline.store import files

    if out and out.exists():
        raise BadConfig(f"{out} exists, and was not changed", hint="choose another file with --out")
    last = history.find(settings.root, reference)
    described = _of_run(settings.root, last) if last.manifest.kind == "runs" else history.recipe_of(settings.root, last)
    if out:
        _make_relative(described.sections["download"], out.absolute().parent)
    header = [f"The recipe of {last.ref}.", *(f"Note: {note}." for note in described.notes)]
    text = recipe_file.render(described.name, described.sections, header, explain=True)
    extra = {"recipe": text, "notes": described.notes}
    if not out:
        return Outcome("unchanged", last.ref, extra=extra, lines=text.splitlines(), always=True)
    files.write_file(out, text.encode())
    lines = [f"built: {out}", *(f"note: {note}" for note in described.notes), f"next: inkstone refresh {out} --dry-run"]
    return Outcome("built", last.ref, out, extra=extra, lines=lines)


def _make_relative(download: dict[str, Any], folder: Path) -> None:
    """Write sources below the recipe's folder as relative paths."""
    from pipeline.start.recipe_file import as_source

    source = download["source"]
    is_list = isinstance(source, list)
    download["source"] = [as_source(entry, folder) for entry in source] if is_list else as_source(source, folder)


def _of_run(root: Path, run: Artifact) -> History:
    """Return the recipe of a run: the recipe of its tokens, and the section [train].

    Raises BadConfig for a run that was imported or has a preset that no longer exists.
    """
    from model import presets
    from model.runs import plan
    from model.runs.run import read_preset_name, read_result
    from pipeline.start import history
    from pipeline.store import artifact

    inputs = {entry.role: entry.name for entry in run.manifest.inputs}
    preset, name = plan.read_config(run.path), read_preset_name(run.path)
    if read_result(run.path).task:
        raise BadConfig(
            f"{run.ref} was tuned from {inputs.get('parent', 'another run')}, which no recipe of its own describes",
            hint="`inkstone start CONVERSATIONS --from RUN` writes one; [sft] and [dpo] are in docs/chat.md",
        )
    if not preset or name not in presets.PRESETS or "tokens" not in inputs:
        raise BadConfig(
            f"{run.ref} was not trained from a preset of this version, which a recipe needs",
            hint="`inkstone presets` lists them; `inkstone recipe tokens/NAME` writes the recipe without [train]",
        )
    described = history.recipe_of(root, artifact.read_ref(root, inputs["tokens"]))
    settings = plan.settings_of(preset, presets.get_preset(name))
    length = "minutes" if preset.train.minutes else "steps"
    settings.pop(length, None)
    train = {"preset": name, length: getattr(preset.train, length), **({"set": settings} if settings else {})}
    notes = list(described.notes)
    if run.manifest.name != described.name:
        notes.append(f"{run.ref} gets the name {described.name}, that of its corpus")
    if run.manifest.options.get("afresh"):
        notes.append(f"it began from the weights of {inputs['parent']} (`train --from`), which a recipe cannot name")
    elif "parent" in inputs:
        notes.append(f"it continued {inputs['parent']}; another folder of artifacts trains from the start")
    return history.History(described.name, {**described.sections, "train": train}, tuple(notes))
