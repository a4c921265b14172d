"""The card of an exported model: what it was trained on, by what numbers, and how well it does, from the manifests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict

from model.exchange.export_source import Source
from model.runs.run import Result
from pipeline.errors import BadData, InputMissing
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import KINDS

_ARCHITECTURES = {"gpt2": "GPT-2", "qwen3": "Qwen3"}


def text(source: Source, library: str, usage: str) -> str:
    """The card as Markdown, with the header that Hugging Face's hub reads; `library` is what loads the model."""
    config = source.state.model
    return f"""---
library_name: {library}
pipeline_tag: text-generation
---

# {source.run.manifest.name}

A language model of {config.parameters:,} parameters in the architecture of {_ARCHITECTURES[config.family]}, made with
Inkstone. It goes on with a text; it was not taught to answer.

{usage}

## What it is

{_table(("", ""), _facts(source))}

## Made from

{_table(("", "", "sha256"), _inputs(source.run))}

## Numbers

{_table(("architecture", ""), asdict(config).items())}

{_table(("training", ""), asdict(source.state.train).items())}
"""


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = (head, tuple("---" for _ in head), *rows)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _facts(source: Source) -> Iterator[tuple[str, str]]:
    found, result, state, tokenizer = source.run, source.result, source.state, source.tokenizer
    yield "run", f"`{found.ref}`, digest `{found.digest}`, preset `{source.preset}`"
    yield "checkpoint", f"step {state.step:,} of {result.steps:,}, after {result.steps_before:,} of earlier runs"
    yield "trained on", f"{result.tokens:,} tokens, {result.epochs:g} epochs"
    yield "validation", _loss(state.val_loss, result)
    yield "tokenizer", f"{tokenizer.name}, {tokenizer.vocab_size:,} ids, `{tokenizer.fingerprint}`"
    if padding := state.model.vocab_size - tokenizer.vocab_size:
        yield "vocabulary", f"{state.model.vocab_size:,} rows, the last {padding:,} are padding"
    yield "context", f"{state.model.block_size:,} tokens"


def _loss(loss: float | None, result: Result) -> str:
    """A checkpoint's loss for a person: bits per character are known of the best checkpoint and of the last."""
    if loss is None:
        return "not evaluated"
    known = {result.val_loss: result.bits_per_char, result.best_val_loss: result.best_bits_per_char}
    nearest = min((each for each in known if each is not None), key=lambda each: abs(each - loss), default=None)
    bits = known[nearest] if nearest is not None and abs(nearest - loss) < 1e-4 else None  # they are kept rounded
    return f"{f'{bits:.3f} bits per character, ' if bits is not None else ''}{loss:.3f} nats per token"


def _inputs(found: Artifact) -> Iterator[tuple[str, str, str]]:
    """What the run was made from, and what that was made from, as far as it is still there."""
    for entry in found.manifest.inputs:
        yield entry.role, entry.name, f"`{entry.digest}`"
        if entry.name.partition("/")[0] not in KINDS:
            continue  # a file from elsewhere
        try:
            made = artifact.read(found.path.parents[2] / entry.name)
        except (InputMissing, BadData):
            continue
        for below in made.manifest.inputs:
            yield f"{entry.role}, {below.role}", below.name, f"`{below.digest}`"
