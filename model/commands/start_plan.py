"""The plans of `start`: look at the input, decide, write the recipe, and say why."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.console import Settings
from pipeline.commands.options import find_artifact
from pipeline.errors import BadData, InputMissing
from pipeline.runtime.terminal import counted

if TYPE_CHECKING:
    from model.presets import Choice
    from pipeline.refresh.recipe import Recipe
    from pipeline.sources.catalogue import Source
    from pipeline.start.decide import InputOptions

_HEADING = 10  # characters
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of the drivers of NVIDIA, WSL and AMD


def write_recipe(
    settings: Settings,
    path: Path,
    sources: list[str],
    options: InputOptions,
    minutes: float | None,
    plan_only: bool,
    device: str,
) -> list[str]:
    """Look at the sources, decide, and write the recipe. Returns the lines of the plan."""
    from model import presets
    from pipeline.sources.inputs import explain_exclude
    from pipeline.start import decide, survey

    with settings.progress.wait("reading the text"):
        inputs = _files(settings, path.stem, sources, options, plan_only)
        with explain_exclude([file for _, files in inputs for file in files], sources):
            text = survey.survey(inputs, encoding=options.encoding, text_fields=options.text_fields)
    decide.require_divisible(text)
    vocabulary, device = decide.vocab_size(text), _device_name(device)
    choice = presets.choose(decide.count_tokens(text), vocabulary, device, minutes, is_estimate=True)
    described = [
        *decide.describe(text, vocabulary),
        ("model", _describe_model(choice, vocabulary, device)),
        (
            "training",
            f"{counted(choice.minutes, 'minutes')} ({'--minutes' if minutes else 'default'}); {choice.reason}",
        ),
        ("recipe", str(path)),
    ]
    if not plan_only:
        sections = decide.recipe_sections(text, sources, options, choice.minutes, choice.preset, choice.settings)
        _write(path, sections)
    return [as_line(heading, content) for heading, content in described]


def write_tuning_recipe(
    settings: Settings,
    path: Path,
    sources: list[str],
    options: InputOptions,
    minutes: float | None,
    plan_only: bool,
    parent: str,
) -> list[str]:
    """Look at conversations, and write the recipe that tunes `parent` on them. Returns the lines of the plan."""
    from pipeline.readers import fields
    from pipeline.start import conversations

    find_artifact(settings, "runs", parent)
    with settings.progress.wait("reading the conversations"):
        records = dataclasses.replace(options, text_fields=fields.RECORD)
        inputs = _files(settings, path.stem, sources, records, plan_only)
        surveyed = conversations.survey([file for _, files in inputs for file in files])
    if not plan_only:
        _write(path, conversations.recipe_sections(surveyed, sources, options, parent, minutes))
    described = [*conversations.describe(surveyed, sources, parent, minutes), ("recipe", str(path))]
    return [as_line(heading, content) for heading, content in described]


def may_retrain_tokenizer(root: Path, recipe: Recipe) -> bool:
    """Return True if a recipe trains its tokenizer and no run uses it yet, finished or not."""
    from pipeline.store import artifact, generations

    if recipe.tokenizer.use or recipe.train.parent:
        return False
    try:
        has_run = artifact.current(root, "runs", recipe.name) is not None
    except BadData:  # there is one, which is damaged
        has_run = True
    return not has_run and not any(generations.unfinished_drafts(root, "runs", recipe.name))


def _write(path: Path, sections: dict[str, Any]) -> None:
    """Write a new recipe, whose report is in the language of the user."""
    from pipeline.refresh.recipe import ReportSection
    from pipeline.report.languages import language_of
    from pipeline.start import recipe_file

    if (lang := language_of().code) != ReportSection().lang:
        sections["report"] = {"lang": lang}
    recipe_file.write(path, sections)


def _files(
    settings: Settings, name: str, sources: Sequence[str], options: InputOptions, plan_only: bool
) -> list[tuple[str, list[Path]]]:
    """Return the files of each source of a recipe. Those that are not on this machine are downloaded first."""
    from pipeline.refresh.recipe import DownloadSection
    from pipeline.refresh.sources import resolve
    from pipeline.sources import download as download_stage
    from pipeline.sources import hub
    from pipeline.sources.http import Network
    from pipeline.sources.walk import note_left_out

    network = Network(stop=settings.progress.stop)

    def list_files(dataset: Source) -> Source:
        return hub.list_source(settings.root, dataset, network, settings.progress)

    section = DownloadSection(tuple(sources), include=options.include, exclude=options.exclude)
    source, groups = resolve(name, section, settings.root, list_files, options.text_fields)
    if plan_only or any(entry.is_proposed for entry in source.left_out):  # a refresh says the rest
        note_left_out(settings.progress, source.left_out, len(source.files))
    paths = {file.name: file.local for file in source.files if file.local}
    if remote := [file.name for file in source.files if not file.local]:
        if plan_only:
            raise InputMissing(
                f"{remote[0]} is not downloaded yet", hint="leave out --plan to download it, then plan and train"
            )
        downloaded = download_stage.download(settings.root, source, settings.progress, network=network)
        paths |= {file: downloaded.path / file for file in remote}
    return [
        (reference, [paths[file.name] for file in source.files if file.name in group.names])
        for reference, group in zip(sources, groups, strict=True)
    ]


def _describe_model(choice: Choice, vocabulary: int, device: str) -> str:
    from model import config, presets
    from pipeline.runtime import workers

    preset = config.override(presets.get_preset(choice.preset), {**choice.settings, "vocab_size": vocabulary})
    exports = "" if preset.family == "fast" else ", exports to transformers and GGUF"
    cores = f"CPU, {counted(workers.default_jobs(), 'cores')}" if device == "cpu" else device
    return f"{choice.preset}: {preset.model.parameters / 1e6:.1f}M parameters{exports}; {cores}"


def _device_name(device: str) -> str:
    """Return the device that training will use. Loading torch takes seconds, and is not needed without a GPU."""
    if device == "auto" and sys.platform == "linux" and not any(map(os.path.exists, _GPU_DEVICES)):
        return "cpu"
    from model.device import pick_device

    return str(pick_device(device))


def as_line(heading: str, content: str) -> str:
    return f"{heading:<{_HEADING}}{content}"
