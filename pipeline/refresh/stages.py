"""The chain of one recipe: its source, and of each stage after the download what it would make, and how.

These are the very functions that the single commands run, with the recipe's choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline import tokenizers
from pipeline.clean import stage as corpus
from pipeline.errors import BadConfig
from pipeline.refresh.recipe import Recipe
from pipeline.runtime.progress import Progress
from pipeline.sources import catalogue as sources
from pipeline.sources import inputs as raw
from pipeline.store.artifact import Artifact, Built
from pipeline.store.manifest import Identity
from pipeline.tokenizers import stage as train_tokenizer
from pipeline.tokens import stage as tokenize

STAGES = ("download", "clean", "train-tokenizer", "tokenize", "train")


@dataclass(frozen=True)
class TrainStage:
    """Training, handed in from above: this package never imports the model.

    `check` raises BadConfig for a training that cannot be, before anything is known of the tokens; `identify` does
    no work. Where a run of this recipe stands that was trained on an earlier generation, both go on from it.
    """

    check: Callable[[], object]
    identify: Callable[[Artifact], Identity]
    run: Callable[[Artifact], Built]


@dataclass(frozen=True)
class Stage:
    """A stage that publishes: `prepare` gives what it would make, and the function that makes it."""

    name: str
    prepare: Callable[[], tuple[Identity, Callable[[], Built]]]


class Chain:
    """The stages of one recipe in order. `made` holds what each has published, for those after it."""

    def __init__(self, root: Path, recipe: Recipe, train: TrainStage, progress: Progress, jobs: int) -> None:
        self.root, self.recipe, self.train, self.progress, self.jobs = root, recipe, train, progress, jobs
        self.made: dict[str, Artifact] = {}
        self._check()
        chosen = recipe.download
        self.source = sources.resolve(chosen.source, shards=chosen.shards, mirror=chosen.mirror)

    def _check(self) -> None:
        """Refuse a recipe that cannot be before any work, not when its turn comes hours later."""
        recipe = self.recipe
        if not recipe.clean and not recipe.tokenizer.use:
            raise BadConfig("a tokenizer is trained on a corpus, and this recipe cleans none", hint="add [clean]")
        recipe.tokenize.options()
        tokenizers.check_encoder(recipe.tokenizer.use, recipe.tokenize.encoder)
        if not recipe.tokenizer.use:
            train_tokenizer.check(recipe.tokenizer.kind, recipe.tokenizer.vocab_size)
        self.train.check()

    def stages(self, through: str) -> list[Stage]:
        """Those after the download, up to and including `through`."""
        wanted = {
            "clean": self._clean if self.recipe.clean else None,
            "train-tokenizer": None if self.recipe.tokenizer.use else self._train_tokenizer,
            "tokenize": self._tokenize,
            "train": self._train,
        }
        if through not in STAGES:
            raise BadConfig(f"no stage {through!r}", hint=f"stages: {', '.join(STAGES)}")
        reached = STAGES[: STAGES.index(through) + 1]
        return [Stage(name, prepare) for name, prepare in wanted.items() if prepare and name in reached]

    def _raw_files(self) -> list[raw.InputFile]:
        """The files of the source. The cache may hold more of it, for another recipe or by an earlier choice."""
        return raw.pinned(self.root, self.source.name, {file.name for file in self.source.files})

    def _clean(self) -> tuple[Identity, Callable[[], Built]]:
        assert self.recipe.clean
        name, options = self.recipe.name, self.recipe.clean
        inputs = self._raw_files()
        identity = corpus.identify(name, inputs, options)
        return identity, lambda: corpus.clean(self.root, name, inputs, options, self.progress, jobs=self.jobs)

    def _train_tokenizer(self) -> tuple[Identity, Callable[[], Built]]:
        name, choice, made_from = self.recipe.name, self.recipe.tokenizer, self.made["clean"]
        sentences, entry = made_from.file("sentences.txt"), made_from.as_input("corpus")
        identity = train_tokenizer.identify(name, entry, choice.kind, choice.vocab_size)
        return identity, lambda: train_tokenizer.train(
            self.root, name, sentences, entry, choice.kind, choice.vocab_size
        )

    def _tokenize(self) -> tuple[Identity, Callable[[], Built]]:
        name, options = self.recipe.name, self.recipe.tokenize.options()
        cleaned, trained = self.made.get("clean"), self.made.get("train-tokenizer")
        found = [raw.corpus_file(cleaned)] if cleaned else self._raw_files()
        inputs = tokenize.divide(found, [])
        tokenizer = tokenizers.open_folder(trained.path) if trained else None
        if tokenizer is None:
            tokenizer, trained = tokenizers.find(self.root, self.recipe.tokenizer.use, self.recipe.tokenize.encoder)
        identity = tokenize.identify(name, inputs, tokenizer, trained, options)
        return identity, lambda: tokenize.tokenize(
            self.root, name, inputs, tokenizer, trained, options, self.progress, jobs=self.jobs
        )

    def _train(self) -> tuple[Identity, Callable[[], Built]]:
        made_from = self.made["tokenize"]
        return self.train.identify(made_from), lambda: self.train.run(made_from)
