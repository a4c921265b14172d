"""The chain of one recipe: its source, and for each stage after the download its identity and the call that runs it.

Stages run through the same functions as the single commands, with the recipe's options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline import tokenizers
from pipeline.clean import stage as clean_stage
from pipeline.errors import BadConfig
from pipeline.refresh.recipe import Recipe
from pipeline.runtime.progress import Progress
from pipeline.sources import catalogue
from pipeline.sources import inputs as source_inputs
from pipeline.store.artifact import Artifact, BuildResult
from pipeline.store.manifest import Identity
from pipeline.tokenizers import stage as tokenizers_stage
from pipeline.tokens import stage as tokens_stage

STAGES = ("download", "clean", "train-tokenizer", "tokenize", "train")


@dataclass(frozen=True)
class TrainStage:
    """The training stage, passed in by the caller because this package never imports the model.

    `check` raises BadConfig for an invalid training configuration, before any tokens exist. `identify` returns the
    identity of the run without training. If an earlier generation of this recipe has a run, `identify` and `run` both
    continue from it.
    """

    check: Callable[[], object]
    identify: Callable[[Artifact], Identity]
    run: Callable[[Artifact], BuildResult]


@dataclass(frozen=True)
class Stage:
    """A stage that publishes an artifact. `prepare` returns the artifact's identity and the function that builds it."""

    name: str
    prepare: Callable[[], tuple[Identity, Callable[[], BuildResult]]]


class Chain:
    """The stages of one recipe, in order. `artifacts` holds the results of earlier stages by stage name.

    Raises BadConfig if any stage of the recipe is invalid.
    """

    def __init__(self, root: Path, recipe: Recipe, train: TrainStage, progress: Progress, jobs: int) -> None:
        self.root, self.recipe, self.train, self.progress, self.jobs = root, recipe, train, progress, jobs
        self.artifacts: dict[str, Artifact] = {}
        self._check()
        section = recipe.download
        self.source = catalogue.resolve_source(section.source, shards=section.shards, mirror=section.mirror)

    def _check(self) -> None:
        """Raise BadConfig for an invalid recipe now, before stages run that can take hours."""
        recipe = self.recipe
        if not recipe.clean and not recipe.tokenizer.use:
            raise BadConfig(
                "training a tokenizer needs a corpus, and this recipe has no [clean] section", hint="add [clean]"
            )
        tokenizers.check_encoder(recipe.tokenizer.use, recipe.tokenize.encoder)
        if not recipe.tokenizer.use:
            tokenizers_stage.check_options(recipe.tokenizer.kind, recipe.tokenizer.vocab_size)
        self.train.check()

    def stages(self, through: str) -> list[Stage]:
        """Return the stages after the download up to and including `through`. Raises BadConfig for an unknown one."""
        if through not in STAGES:
            raise BadConfig(f"no stage {through!r}", hint=f"stages: {', '.join(STAGES)}")
        enabled = {
            "clean": self._clean if self.recipe.clean else None,
            "train-tokenizer": None if self.recipe.tokenizer.use else self._train_tokenizer,
            "tokenize": self._tokenize,
            "train": self._train,
        }
        selected = STAGES[: STAGES.index(through) + 1]
        return [Stage(name, prepare) for name, prepare in enabled.items() if prepare and name in selected]

    def _raw_files(self) -> list[source_inputs.InputFile]:
        """Return the raw files that this recipe selects; the cache may hold more files of the same source."""
        return source_inputs.pinned_files(self.root, self.source.name, {file.name for file in self.source.files})

    def _clean(self) -> tuple[Identity, Callable[[], BuildResult]]:
        assert self.recipe.clean
        name, options = self.recipe.name, self.recipe.clean
        inputs = self._raw_files()
        identity = clean_stage.identify(name, inputs, options)
        return identity, lambda: clean_stage.clean(self.root, name, inputs, options, self.progress, jobs=self.jobs)

    def _train_tokenizer(self) -> tuple[Identity, Callable[[], BuildResult]]:
        name, section, corpus = self.recipe.name, self.recipe.tokenizer, self.artifacts["clean"]
        sentences, entry = corpus.file("sentences.txt"), corpus.as_input("corpus")
        identity = tokenizers_stage.identify(name, entry, section.kind, section.vocab_size)
        return identity, lambda: tokenizers_stage.train(
            self.root, name, sentences, entry, section.kind, section.vocab_size
        )

    def _tokenize(self) -> tuple[Identity, Callable[[], BuildResult]]:
        name, options = self.recipe.name, self.recipe.tokenize
        corpus, trained = self.artifacts.get("clean"), self.artifacts.get("train-tokenizer")
        inputs = tokens_stage.assign_splits([source_inputs.corpus_input(corpus)] if corpus else self._raw_files(), [])
        if trained:
            tokenizer = tokenizers.open_folder(trained.path)
        else:
            tokenizer, trained = tokenizers.find(self.root, self.recipe.tokenizer.use, options.encoder)
        identity = tokens_stage.identify(name, inputs, tokenizer, trained, options)
        return identity, lambda: tokens_stage.tokenize(
            self.root, name, inputs, tokenizer, trained, options, self.progress, jobs=self.jobs
        )

    def _train(self) -> tuple[Identity, Callable[[], BuildResult]]:
        tokens = self.artifacts["tokenize"]
        return self.train.identify(tokens), lambda: self.train.run(tokens)
