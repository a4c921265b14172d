"""Model card of an exported run: its data, configuration and evaluation, from the manifests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict

from model.exchange.export_source import ExportSource
from model.runs.run import Result
from pipeline.errors import BadData, InputMissing
from pipeline.runtime.terminal import counted
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import KINDS

_ARCHITECTURES = {
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "fast": "Inkstone (family `fast`)",
}


def text(source: ExportSource, library: str, usage: str) -> str:
    """Return the card as Markdown, with the header for Hugging Face's hub; `library` loads the model."""
    config = source.state.model
    return f"""---
library_name: {library}
pipeline_tag: text-generation
---

# {source.run.manifest.name}

A language model of {config.parameters:,} parameters in the architecture of {_ARCHITECTURES[config.family]}, exported by
Inkstone. It continues a text; it was not trained to follow instructions.

{usage}

## Training

{_table(("", ""), _training_rows(source))}

## Inputs

{_table(("", "", "sha256"), _input_rows(source.run))}

## Configuration

{_table(("architecture", ""), asdict(config).items())}

{_table(("training", ""), asdict(source.state.train).items())}
"""


def _table(header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = (header, tuple("---" for _ in header), *rows)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _training_rows(source: ExportSource) -> Iterator[tuple[str, str]]:
    run, result, state, tokenizer = source.run, source.result, source.state, source.tokenizer
    yield "run", f"`{run.ref}`, digest `{run.digest}`, preset `{source.preset}`"
    yield "checkpoint", f"step {state.step:,} of {result.steps:,}, after {result.steps_before:,} of earlier runs"
    yield "trained on", f"{result.tokens:,} tokens, {counted(result.epochs, 'epochs')}"
    yield "validation", _loss(state.val_loss, result)
    if state.model.ngram:
        yield "n-grams", "not exported; the validation loss of the network alone is higher"
    yield "tokenizer", f"{tokenizer.name}, {tokenizer.vocab_size:,} ids, `{tokenizer.fingerprint}`"
    if padding := state.model.vocab_size - tokenizer.vocab_size:
        yield "vocabulary", f"{state.model.vocab_size:,} rows, the last {padding:,} are padding"
    yield "context", f"{state.model.block_size:,} tokens"


def _loss(loss: float | None, result: Result) -> str:
    """Format a checkpoint's validation loss, with bits per character if it is the best or the last checkpoint."""
    if loss is None:
        return "not evaluated"
    bits_by_loss = {result.val_loss: result.bits_per_char, result.best_val_loss: result.best_bits_per_char}
    losses = (val_loss for val_loss in bits_by_loss if val_loss is not None)
    nearest = min(losses, key=lambda val_loss: abs(val_loss - loss), default=None)
    # The result holds rounded losses.
    bits = bits_by_loss[nearest] if nearest is not None and abs(nearest - loss) < 1e-4 else None
    return f"{f'{bits:.3f} bits per character, ' if bits is not None else ''}{loss:.3f} nats per token"


def _input_rows(run: Artifact) -> Iterator[tuple[str, str, str]]:
    """Inputs of the run, each followed by its own inputs if it still exists."""
    for entry in run.manifest.inputs:
        yield entry.role, entry.name, f"`{entry.digest}`"
        if entry.name.partition("/")[0] not in KINDS:
            continue  # not an artifact
        try:
            source = artifact.read_ref(run.path.parents[2], entry.name)
        except (InputMissing, BadData):
            continue
        for parent in source.manifest.inputs:
            yield f"{entry.role}, {parent.role}", parent.name, f"`{parent.digest}`"
