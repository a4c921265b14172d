"""The tunings of a recipe: after its run the run NAME-sft, made of it on conversations, and NAME-dpo on pairs.

Each is a chain of its own, with a recipe that could stand in a file: its conversations are cleaned and tokenized with
the tokenizer of the run that it starts from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.clean.options import CleanOptions
from pipeline.refresh import plan as refresh_plan
from pipeline.refresh import refresh as chain_refresh
from pipeline.refresh import state
from pipeline.refresh.plan import PlanStep, RefreshOptions
from pipeline.refresh.recipe import DownloadSection, Recipe, SampleSection, TokenizerSection, TrainSection, TuneSection
from pipeline.refresh.refresh import RefreshResult
from pipeline.refresh.stages import STAGES, TUNINGS, Chain, TrainStage
from pipeline.runtime.progress import Progress

TrainStageOf = Callable[[Recipe], TrainStage]


def recipes(recipe: Recipe, through: str = TUNINGS[-1]) -> list[Recipe]:
    """Return a recipe and those of its tunings, in the order in which they are built, up to the stage `through`."""
    chain, parent = [recipe], recipe.name
    tasks = TUNINGS[: TUNINGS.index(through) + 1] if through in TUNINGS else ()
    for task in tasks:
        section: TuneSection | None = getattr(recipe, task)
        if section:
            chain.append(_tuning(recipe, section, f"{recipe.name}-{task}", parent))
            parent = chain[-1].name
    return chain


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
    chain: Sequence[Recipe],
    train: TrainStageOf,
    progress: Progress,
    options: RefreshOptions,
    *,
    wait: float = 0.0,
    run_id: str = "",
) -> RefreshResult:
    """Refresh a recipe and its tunings, one after the other. Raises the error of the first stage that fails."""
    stages = [train(recipe) for recipe in chain]
    options = _of_chain(options)
    steps: list[PlanStep] = []
    for recipe, stage in zip(chain, stages, strict=True):
        refreshed = chain_refresh.refresh(root, recipe, stage, progress, options, wait=wait, run_id=run_id)
        steps += _labelled(chain, recipe, refreshed.steps)
    return RefreshResult(tuple(steps), refreshed.last)


def plan(
    root: Path, chain: Sequence[Recipe], train: TrainStageOf, progress: Progress, options: RefreshOptions
) -> list[PlanStep]:
    """Plan a refresh of a recipe and its tunings. What follows a stale run is not known before that is trained."""
    options = _of_chain(options)
    steps: list[PlanStep] = []
    for recipe in chain:
        if steps and steps[-1].result == "stale":
            reason = f"{steps[-1].stage} is stale"
            steps.append(PlanStep(_task(chain, recipe), "stale", recipe.name, reason, None, None, None))
            continue
        parts = Chain(root, recipe, train(recipe), progress, options.jobs)
        planned = refresh_plan.plan(parts, options, _timings(root, recipe))
        steps += _labelled(chain, recipe, planned.steps)
    return steps


def _timings(root: Path, recipe: Recipe) -> Mapping[str, state.StageTiming]:
    return state.read(root, recipe.name).paces


def _of_chain(options: RefreshOptions) -> RefreshOptions:
    return dataclasses.replace(options, through=STAGES[-1]) if options.through in TUNINGS else options


def _task(chain: Sequence[Recipe], recipe: Recipe) -> str:
    return recipe.name.removeprefix(f"{chain[0].name}-")


def _labelled(chain: Sequence[Recipe], recipe: Recipe, steps: Sequence[PlanStep]) -> list[PlanStep]:
    """Return the steps, those of a tuning with its task before the stage."""
    if recipe is chain[0]:
        return list(steps)
    return [dataclasses.replace(step, stage=f"{_task(chain, recipe)} {step.stage}") for step in steps]
