"""The chain of one recipe: its source, and for each stage after the download its identity and the call that runs it.

Stages run through the same functions as the single commands, with the recipe's options.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline import tokenizers
from pipeline.clean import stage as clean_stage
from pipeline.errors import BadConfig, BadData, InkstoneError
from pipeline.refresh import sources
from pipeline.refresh.recipe import Recipe
from pipeline.refresh.sources import SourceGroup
from pipeline.runtime.engines import OpenEngine
from pipeline.runtime.progress import Progress
from pipeline.sources import hub
from pipeline.sources import inputs as source_inputs
from pipeline.sources.catalogue import Source
from pipeline.sources.http import Network
from pipeline.sources.walk import note_left_out
from pipeline.store import artifact
from pipeline.store.artifact import Artifact, BuildResult
from pipeline.store.code import describe_changes, state_of
from pipeline.store.generations import current_key
from pipeline.store.manifest import Identity
from pipeline.tokenizers import Tokenizer
from pipeline.tokenizers import stage as tokenizers_stage
from pipeline.tokens import stage as tokens_stage

STAGES = ("download", "clean", "train-tokenizer", "tokenize", "train")
TUNINGS = ("sft", "dpo")  # after them, each a chain of its own


@dataclass(frozen=True)
class TrainStage:
    """The training stage, passed in by the caller because this package never imports the model.

    `check` raises BadConfig for an invalid training configuration, before any tokens exist. `identify` returns the
    identity of the run without training. If an earlier generation of this recipe has a run, `identify` and `run` both
    continue from it. `outlook` describes what a training on tokens would start from, "" if there is no run yet.
    """

    check: Callable[[], object]
    identify: Callable[[Artifact], Identity]
    run: Callable[[Artifact], BuildResult]
    outlook: Callable[[Artifact], str] = lambda tokens: ""


@dataclass(frozen=True)
class Stage:
    """A stage that publishes an artifact.

    `label` is its name, and for the second and later sources of a recipe also the source. `prepare` returns the
    artifact's identity and the function that builds it. `after` lists the labels of the stages that it reads from.
    `files` are the raw files that it cleans; empty for stages that read artifacts. `existing` is an artifact that the
    stage uses without building another one. `reason` is a note on it, or the reason why no existing one is used.
    """

    name: str
    label: str
    prepare: Callable[[], tuple[Identity, Callable[[], BuildResult]]]
    after: tuple[str, ...] = ()
    files: frozenset[str] = frozenset()
    existing: Artifact | None = None
    reason: str = ""


class Chain:
    """The stages of one recipe, in order. `artifacts` holds the results of earlier stages by label.

    With `rebuild` they build what is published too. `open_engine` opens the engine that cleans and tokenizes, if any.

    Raises BadConfig if any stage of the recipe is invalid.
    """

    def __init__(
        self,
        root: Path,
        recipe: Recipe,
        train: TrainStage,
        progress: Progress,
        jobs: int,
        *,
        rebuild: bool = False,
        open_engine: OpenEngine | None = None,
    ) -> None:
        self.root, self.recipe, self.train, self.progress, self.jobs = root, recipe, train, progress, jobs
        self.rebuild, self.open_engine = rebuild, open_engine
        self.artifacts: dict[str, Artifact] = {}
        train.check()
        self.source, self.groups = self._resolve()
        note_left_out(progress, self.source.left_out, len(self.source.files))

    def list_files(self, network: Network, *, update: bool) -> None:
        """Ask the hub for the files of its datasets; `update` asks again for those that are listed already."""

        def ask(source: Source) -> Source:
            return hub.list_source(self.root, source, network, self.progress, update=update)

        self.source, self.groups = self._resolve(ask)

    def _resolve(self, list_files: Callable[[Source], Source] | None = None) -> tuple[Source, tuple[SourceGroup, ...]]:
        recipe = self.recipe
        text_fields = recipe.clean.record_fields if recipe.clean else recipe.tokenize.text_fields
        return sources.resolve(recipe.name, recipe.download, self.root, list_files, text_fields)

    def stages(self, through: str) -> list[Stage]:
        """Return the stages after the download up to and including `through`. Raises BadConfig for an unknown one."""
        if through not in STAGES:
            raise BadConfig(f"no stage {through!r}", hint=f"stages: {', '.join(STAGES)}")
        raw: tuple[str, ...] = ("download",)
        stages: list[Stage] = []
        if self.recipe.clean:
            stages += [
                Stage("clean", _clean_label(group), functools.partial(self._clean, group), raw, group.names)
                for group in self.groups
            ]
            raw = tuple(stage.label for stage in stages)
        if not self.recipe.tokenizer.use:
            existing, reason = self._existing_tokenizer()
            stages.append(
                Stage(
                    "train-tokenizer", "train-tokenizer", self._train_tokenizer, raw, existing=existing, reason=reason
                )
            )
        stages.append(Stage("tokenize", "tokenize", self._tokenize, tuple(stage.label for stage in stages) or raw))
        stages.append(Stage("train", "train", self._train, ("tokenize",)))
        selected = STAGES[: STAGES.index(through) + 1]
        return [stage for stage in stages if stage.name in selected]

    def _existing_tokenizer(self) -> tuple[Artifact | None, str]:
        """Return the tokenizer that this recipe keeps, and a note if its code was edited since.

        If it has none, or the one it has is damaged or of another kind or size, return None and the reason.
        """
        section = self.recipe.tokenizer
        if not section.keep or not current_key(self.root / "tokenizers" / self.recipe.name):
            return None, ""
        try:
            trained = artifact.current(self.root, "tokenizers", self.recipe.name)
        except BadData as error:
            return None, error.message
        if trained is None:
            return None, ""
        if damage := artifact.find_problems(trained):
            return None, damage[0]
        if reason := tokenizers_stage.mismatch(trained, section.kind, section.vocab_size):
            return None, reason
        changes = describe_changes(trained.manifest.code, state_of(tokenizers_stage.CODE).edited)
        return trained, f"kept though {', '.join(changes)}; --retrain-tokenizer trains it again" if changes else ""

    def _raw_files(self, names: Collection[str] = ()) -> list[source_inputs.InputFile]:
        """Return the raw files with these names, by default all that this recipe selects; the cache may hold more."""
        selected = names or {file.name for file in self.source.files}
        return source_inputs.pinned_files(self.root, self.source.name, selected)

    def _corpora(self) -> list[Artifact]:
        return [self.artifacts[_clean_label(group)] for group in self.groups] if self.recipe.clean else []

    def _clean(self, group: SourceGroup) -> tuple[Identity, Callable[[], BuildResult]]:
        assert self.recipe.clean
        name, options = group.corpus_name(self.recipe.name), self.recipe.clean
        inputs = self._raw_files(group.names)
        held_out = clean_stage.held_out_files(self.root, options)
        identity = clean_stage.identify(name, inputs, options, held_out)
        return identity, lambda: clean_stage.clean(
            self.root,
            name,
            inputs,
            options,
            self.progress,
            jobs=self.jobs,
            rebuild=self.rebuild,
            held_out=held_out,
            open_engine=self.open_engine,
        )

    def _train_tokenizer(self) -> tuple[Identity, Callable[[], BuildResult]]:
        name, section = self.recipe.name, self.recipe.tokenizer
        texts = [tokenizers_stage.sentences_of(corpus) for corpus in self._corpora()]
        identity = tokenizers_stage.identify(name, texts, section.kind, section.vocab_size)
        return identity, lambda: tokenizers_stage.train(
            self.root, name, texts, section.kind, section.vocab_size, progress=self.progress, rebuild=self.rebuild
        )

    def _tokenize(self) -> tuple[Identity, Callable[[], BuildResult]]:
        name, options = self.recipe.name, self.recipe.tokenize
        corpora, trained = self._corpora(), self.artifacts.get("train-tokenizer")
        files = [file for corpus in corpora for file in source_inputs.corpus_inputs(corpus)] or self._raw_files()
        inputs = tokens_stage.assign_splits(files, [])
        if trained:
            tokenizer = tokenizers.open_folder(trained.path)
        else:
            tokenizer, trained = self._ready_tokenizer()
        identity = tokens_stage.identify(name, inputs, tokenizer, trained, options, root=self.root)
        return identity, lambda: tokens_stage.tokenize(
            self.root,
            name,
            inputs,
            tokenizer,
            trained,
            options,
            self.progress,
            jobs=self.jobs,
            rebuild=self.rebuild,
            open_engine=self.open_engine,
        )

    def _ready_tokenizer(self) -> tuple[Tokenizer, Artifact | None]:
        return tokenizers.find(self.root, self.recipe.tokenizer.use, self.recipe.tokenize.encoder)

    def train_outlook(self, stale: Collection[str]) -> str:
        """Describe what the training will start from, as far as it is known before the `stale` stages run.

        If the tokens are stale and their tokenizer stays, the current tokens are used in their place.
        """
        if not current_key(self.root / "runs" / self.recipe.name):
            return ""
        if self.recipe.train.parent:
            return f"starts from runs/{self.recipe.train.parent}"
        tokens = self.artifacts.get("tokenize")
        if tokens is None:
            try:
                tokens = artifact.current(self.root, "tokens", self.recipe.name)
                trained = self.artifacts.get("train-tokenizer")
                tokenizer = tokenizers.open_folder(trained.path) if trained else None
                if "train-tokenizer" not in stale:
                    tokenizer = tokenizer or self._ready_tokenizer()[0]
            except InkstoneError:  # the stage that needs it will raise it
                return ""
            if tokens is None or tokenizer is None or tokenizer.fingerprint != tokens.manifest.tokenizer:
                return "starts from scratch: the tokenizer changes"
            tokens = dataclasses.replace(tokens, digest="")
        return self.train.outlook(tokens)

    def _train(self) -> tuple[Identity, Callable[[], BuildResult]]:
        tokens = self.artifacts["tokenize"]
        return self.train.identify(tokens), lambda: self.train.run(tokens)


def _clean_label(group: SourceGroup) -> str:
    return f"clean {group.label}" if group.label else "clean"
