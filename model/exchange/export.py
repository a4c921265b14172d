"""Export of a run to another program: a new folder with the model in that program's format, and a model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from model.config import GPTConfig
from model.exchange import gguf, huggingface, model_card
from model.exchange.export_source import ExportSource
from model.runs import checkpoint, run
from pipeline.errors import BadConfig, export_mismatch
from pipeline.store import artifact, exports, files
from pipeline.store.artifact import Artifact
from pipeline.store.leftovers import require_new
from pipeline.tokenizers import Tokenizer

_SAMPLES = "samples.jsonl"
_NO_NGRAMS = "exported without n-grams, which no format supports; `sample` uses them (docs/training.md)"


@dataclass(frozen=True)
class ModelFormat:
    """A format of another program.

    library  name of the library that loads the format
    require  raises BadConfig for a network or tokenizer that the format cannot hold; called before weights are loaded
    weights  converts our weights to the names, shapes and precision of the format
    write    writes the model into a folder
    read     reads the weights back from that folder
    usage    example code for the model card
    suffix   of the file, if the model is one file beside the card
    types    of matrices that `--quantize` accepts
    """

    library: str
    require: Callable[[GPTConfig, Tokenizer], None]
    weights: Callable[[ExportSource], dict[str, Tensor]]
    write: Callable[[ExportSource, Path], None]
    read: Callable[[Path], dict[str, Tensor]]
    usage: Callable[[ExportSource], str]
    suffix: str = ""
    types: tuple[str, ...] = ()


FORMATS = {
    "hf": ModelFormat(
        "transformers",
        huggingface.require,
        huggingface.weights,
        huggingface.write,
        huggingface.read,
        huggingface.usage,
    ),
    "gguf": ModelFormat("gguf", gguf.require, gguf.weights, gguf.write, gguf.read, gguf.usage, ".gguf", gguf.TYPES),
}


@dataclass(frozen=True)
class ExportedModel:
    """Result of an export: `files` relative to `path`, their total size in `bytes`, and the checkpoint's `step`.

    `warning` says which part of the run the format cannot hold, "" if it holds all.
    """

    format: str
    path: Path
    files: tuple[str, ...]
    parameters: int
    step: int
    bytes: int
    verified: bool
    warning: str = ""


def export(
    run_artifact: Artifact,
    format_name: str,
    out: Path,
    checkpoint_name: str = "best",
    *,
    verify: bool = False,
    quantize: str = "",
) -> ExportedModel:
    """Write the "best" or the "last" checkpoint of a run to the new folder `out`, completely or not at all.

    `out` may also be the file itself, such as `book.gguf`; then there is no card. `quantize` is the type of the
    matrices in a GGUF file, "" for float32. With `verify` the weights are read back and compared before the folder
    appears. Raises BadConfig for an unknown format or type, or a network or tokenizer that the format cannot hold;
    CannotCreate if `out` exists; StorageFailed if there is no space; BadData if the run is damaged, if the exported
    tokenizer gives other ids than ours, or if weights differ when read back.
    """
    if format_name not in FORMATS:
        raise BadConfig(f"no format {format_name!r} for models", hint=f"use one of: {', '.join(FORMATS)}")
    model_format = FORMATS[format_name]
    if quantize and quantize not in model_format.types:
        raise BadConfig(f"--to {format_name} has no type {quantize!r} for matrices", hint="--to gguf --quantize q8_0")
    require_new(out, outside=run_artifact.path)
    path = run.checkpoint_path(run_artifact, checkpoint_name)
    run.require_intact(run_artifact, path)
    state, tokenizer = checkpoint.read_state(path), run.open_tokenizer(run_artifact)
    model_format.require(state.model, tokenizer)
    files.require_space(out.parent, 4 * state.model.parameters, option="--out")
    with artifact.lease(run_artifact), exports.new_export(out, model_format.suffix) as draft:
        model = checkpoint.load_network(path, torch.device("cpu"))
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        preset, result = run.read_preset_name(run_artifact.path), run.read_result(run_artifact.path)
        texts = _sample_texts(run_artifact)
        source = ExportSource(run_artifact, preset, result, state, tokenizer, weights, texts, quantize)
        model_format.write(source, draft)
        if verify:
            _require_equal(model_format.read(draft), model_format.weights(source))
        card = model_card.text(source, model_format.library, model_format.usage(source))
        (draft / "README.md").write_text(card, encoding="utf-8")
    names, size = exports.files_of(out)
    warning = _NO_NGRAMS if state.model.ngram else ""
    return ExportedModel(format_name, out, names, state.model.parameters, state.step, size, verify, warning)


def _require_equal(read: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in sorted(read.keys() | expected.keys()):
        if name not in read or name not in expected or not torch.equal(read[name], expected[name]):
            raise export_mismatch(name, "differs from what was written when read back")


def _sample_texts(run_artifact: Artifact) -> tuple[str, ...]:
    """The samples that were generated during training, with their prompts."""
    if not run_artifact.file(_SAMPLES).is_file():
        return ()
    records = map(msgspec.json.decode, run_artifact.file(_SAMPLES).read_bytes().splitlines())
    return tuple(f"{record['prompt']}{record['text']}" for record in records)
