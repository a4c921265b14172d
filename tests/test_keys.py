"""Artifact keys of the bundled sample, written down: a change of names or layout must not change them.

A key contains the versions of the libraries that decide the bytes, so it also changes with a pin in constraints.txt.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from model.runs import plan as plans
from pipeline.refresh import recipe as recipes
from pipeline.refresh import refresh
from pipeline.refresh.plan import RefreshOptions
from pipeline.refresh.stages import TrainStage
from pipeline.runtime.progress import SilentProgress
from pipeline.store import artifact
from pipeline.store.artifact import Artifact

KEYS = {
    "corpora": "17e97aa92d473db9",
    "tokenizers": "a93066944ed746f8",
    "tokens": "95ccfa1539c6756d",
    "runs": "881434b74af2ecac",
}


def unreachable(_: Artifact) -> NoReturn:
    raise AssertionError("nothing is trained")


def test_keys_of_the_sample_stay_the_same(tmp_path: Path) -> None:
    recipe = recipes.load("sample")
    no_training = TrainStage(check=lambda: None, identify=unreachable, run=unreachable)
    refresh.refresh(tmp_path, recipe, no_training, SilentProgress(), RefreshOptions(through="tokenize"))
    published = {kind: artifact.find(tmp_path, kind, "sample") for kind in ("corpora", "tokenizers", "tokens")}
    keys = {kind: generation.path.name for kind, generation in published.items()}
    plan = plans.make_plan(published["tokens"], recipe.train.preset, name="sample", settings=recipe.train.set)
    assert keys | {"runs": plans.identify(plan).key} == KEYS
