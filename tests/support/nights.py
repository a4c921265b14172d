"""A recipe with a local folder and a server, refreshed night after night with a training of seconds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from model.runs.run import Result, read_result
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from tests.support.faults import Command, Run
from tests.support.upstream import Hub, published, serving

RECIPE = """
name = "tales"
[download]
source = ["texts", "{url}/datasets/monology/pile-uncopyrighted/resolve/main/{news}"]
[tokenizer]
kind = "char"
[tokenize]
val_fraction = 0.2
[train]
preset = "mini"
steps = 20
[train.set]
vocab_size = 0
block_size = 32
precision = "fp32"
"""
NEWS = "news.txt"


def chapters(first: int, last: int) -> str:
    """Return numbered chapters of a short tale, 20 sentences each."""
    sentences = (f"却说阿渊来到第{number}座山下，见一老渔翁。渔翁说道，今日天晴。" for number in range(20))
    text = "\n".join(sentences)
    return "\n".join(f"第{number}回 渡江\n{text}" for number in range(first, last + 1))


@dataclass
class Nights:
    """A store and its recipe. Each refresh runs in a fork, with the options of cron."""

    root: Path
    texts: Path
    hub: Hub
    recipe: Path
    bits: list[float] = field(default_factory=list)

    def refresh(self, *options: object, kill_after: float | None = None) -> Run:
        return self.command(*options).run_forked(kill_after=kill_after)

    def command(self, *options: object, **constants: object) -> Command:
        words = ("--json", "refresh", self.recipe, "--jobs", 1, "--device", "cpu", *options)
        return Command(self.root, words, constants=constants)

    def expect(self, code: int, *options: object) -> tuple[dict[str, object], str]:
        """Refresh, and return the JSON object and all that was printed.

        Asserts that no worse run became current without a word.
        """
        run = self.refresh(*options)
        assert run.code == code, run.err
        bits = self.result().best_bits_per_char
        assert bits is not None
        if self.bits and bits > 1.01 * self.bits[-1]:
            assert re.search("bits per character|was rolled back", run.err + run.out), (
                "a worse run is current without a word"
            )
        self.bits.append(bits)
        return json.loads(run.out), run.err + run.out

    def run(self) -> Artifact:
        return artifact.find(self.root, "runs", "tales")

    @property
    def run_key(self) -> str:
        return self.run().path.name

    def result(self) -> Result:
        return read_result(self.run().path)

    @property
    def steps(self) -> int:
        """Steps that led to the current run, those of the runs before it included."""
        result = self.result()
        return result.steps_before + result.steps

    def tokenizer(self) -> str:
        return artifact.find(self.root, "tokenizers", "tales").ref

    def add_news(self, last: int) -> None:
        self.hub.put(NEWS, chapters(51, last).encode())


@contextmanager
def nights_in(folder: Path) -> Iterator[Nights]:
    """Yield nights in an empty folder, while the server runs."""
    texts = folder / "texts"
    texts.mkdir(parents=True)
    (texts / "a.txt").write_text(chapters(1, 6), encoding="utf-8")
    (texts / "b.txt").write_text(chapters(21, 24), encoding="utf-8")
    with serving(Hub()) as hub:
        recipe = folder / "tales.toml"
        recipe.write_text(RECIPE.format(url=hub.url, news=NEWS), encoding="utf-8")
        nights = Nights(folder / "artifacts", texts, hub, recipe)
        nights.add_news(53)
        yield nights


def data(root: Path) -> dict[str, str]:
    """Return the sha256 sums of everything but runs, whose logs hold times."""
    return {path: digest for path, digest in published(root).items() if not path.startswith("runs/")}
