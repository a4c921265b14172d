"""The tunings of a recipe: NAME-sft is its run tuned on conversations, NAME-dpo is that run tuned on pairs of answers.

Each tuning has a recipe of its own, derived from the sections [sft] and [dpo], and its own corpus, tokens and run. The
tokenizer is that of the run that is tuned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.clean.options import CleanOptions
from pipeline.refresh import plan as planning
from pipeline.refresh import refresh as refreshing
from pipeline.refresh import state
from pipeline.refresh.plan import PlanStep, RefreshOptions
from pipeline.refresh.recipe import DownloadSection, Recipe, SampleSection, TokenizerSection, TrainSection, TuneSection
from pipeline.refresh.refresh import RefreshResult
from pipeline.refresh.stages import STAGES, TUNINGS, Chain, TrainStage
from pipeline.runtime.progress import Progress

TrainStageFactory = Callable[[Recipe], TrainStage]


def with_tunings(recipe: Recipe, through: str = TUNINGS[-1]) -> list[Recipe]:
    """Return a recipe and the recipes of its tunings up to the stage `through`, in the order of building."""
    recipes, parent = [recipe], recipe.name
    tasks = TUNINGS[: TUNINGS.index(through) + 1] if through in TUNINGS else ()
    for task in tasks:
        section: TuneSection | None = getattr(recipe, task)
        if section:
            recipes.append(_tuning(recipe, section, f"{recipe.name}-{task}", parent))
            parent = recipes[-1].name
    return recipes


def _tuning(recipe: Recipe, section: TuneSection, name: str, parent: str) -> Recipe:
    download = DownloadSection(**{key: getattr(section, key) for key in DownloadSection.__struct_fields__})
    return Recipe(
        name,
        download,
        CleanOptions(profile="chat"),
        TokenizerSection(use=parent),
        train=TrainSection(parent=parent, steps=section.steps, minutes=section.minutes, set=section.set),
        sample=SampleSection(section.prompts, recipe.sample.max_tokens, temperature=recipe.sample.temperature),
        report=recipe.report,
    )


def refresh(
    root: Path,
    recipes: Sequence[Recipe],
    train: TrainStageFactory,
    progress: Progress,
    options: RefreshOptions,
    *,
    wait: float = 0.0,
    run_id: str = "",
) -> RefreshResult:
    """Refresh a recipe and its tunings, one after the other. Raises the error of the first stage that fails."""
    stages = [train(recipe) for recipe in recipes]
    options = _through_training(options)
    steps: list[PlanStep] = []
    for recipe, stage in zip(recipes, stages, strict=True):
        refreshed = refreshing.refresh(root, recipe, stage, progress, options, wait=wait, run_id=run_id)
        steps += _labelled(recipes, recipe, refreshed.steps)
    return RefreshResult(tuple(steps), refreshed.last)


def plan(
    root: Path, recipes: Sequence[Recipe], train: TrainStageFactory, progress: Progress, options: RefreshOptions
) -> list[PlanStep]:
    """Plan a refresh of a recipe and its tunings. A tuning of a stale run is one step, without estimates."""
    options = _through_training(options)
    steps: list[PlanStep] = []
    for recipe in recipes:
        if steps and steps[-1].result == "stale":
            reason = f"{steps[-1].stage} is stale"
            steps.append(PlanStep(_task(recipes, recipe), "stale", recipe.name, reason, None, None, None))
            continue
        chain = Chain(root, recipe, train(recipe), progress, options.jobs)
        planned = planning.plan(chain, options, _timings(root, recipe))
        steps += _labelled(recipes, recipe, planned.steps)
    return steps


def _timings(root: Path, recipe: Recipe) -> Mapping[str, state.StageTiming]:
    return state.read(root, recipe.name).paces


def _through_training(options: RefreshOptions) -> RefreshOptions:
    """Return the options for each single recipe, whose last stage is the training."""
    return dataclasses.replace(options, through=STAGES[-1]) if options.through in TUNINGS else options


def _task(recipes: Sequence[Recipe], recipe: Recipe) -> str:
    return recipe.name.removeprefix(f"{recipes[0].name}-")


def _labelled(recipes: Sequence[Recipe], recipe: Recipe, steps: Sequence[PlanStep]) -> list[PlanStep]:
    """Return the steps of a recipe. The stages of a tuning are prefixed with its task, as in "sft clean"."""
    if recipe is recipes[0]:
        return list(steps)
    return [dataclasses.replace(step, stage=f"{_task(recipes, recipe)} {step.stage}") for step in steps]
