"""A run for other programs: one new folder in a format of theirs, with a card that says what the model is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from model.config import GPTConfig
from model.exchange import convert as exchange
from model.exchange import gguf, huggingface
from model.exchange import model_card as card
from model.exchange.architectures import family
from model.exchange.export_source import Source
from model.runs import checkpoint, run
from pipeline.errors import BadConfig, broken
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer

_SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Format:
    """`library` is what loads it. `require` raises BadConfig for a tokenizer that it cannot hold, before anything is
    loaded; `write` fills a folder with `weights` and more, and `read` gives those of a folder; `usage` is how the card
    says that it is used."""

    library: str
    require: Callable[[Tokenizer], None]
    weights: Callable[[GPTConfig, Mapping[str, Tensor]], dict[str, Tensor]]
    write: Callable[[Source, Path], None]
    read: Callable[[Path], dict[str, Tensor]]
    usage: Callable[[str], str]


FORMATS = {
    "hf": Format(
        "transformers",
        huggingface.require,
        exchange.for_huggingface,
        huggingface.write,
        huggingface.read,
        huggingface.usage,
    ),
    "gguf": Format("gguf", gguf.require, exchange.for_gguf, gguf.write, gguf.read, gguf.usage),
}


@dataclass(frozen=True)
class Exported:
    """What an export gave: `files` are paths inside `path`, `bytes` their size, `step` that of the checkpoint."""

    format: str
    path: Path
    files: tuple[str, ...]
    parameters: int
    step: int
    bytes: int
    verified: bool


def export(found: Artifact, to: str, out: Path, which: str = "best", *, verify: bool = False) -> Exported:
    """Write the "best" or the "last" checkpoint of a run in the format `to` as the new folder `out`, whole or not at
    all. With `verify` its weights are read back and compared first.

    Raises BadConfig for an unknown format, and a network or a tokenizer that it has no counterpart of; CannotCreate
    where `out` stands already; StorageFailed where there is no room; BadData when the run is damaged, when another
    program would make other ids of a text, or when what is read back differs.
    """
    if to not in FORMATS:
        raise BadConfig(f"no format {to!r} to export a model to", hint=f"formats: {', '.join(FORMATS)}")
    chosen = FORMATS[to]
    files.require_new(out, besides=found.path)
    path = run.checkpoint_path(found, which)
    run.require_whole(found, path)
    state, tokenizer = checkpoint.read_state(path), run.open_tokenizer(found)
    family(state.model)
    chosen.require(tokenizer)
    files.require_space(out.parent, 4 * state.model.parameters, option="--out")
    with files.new_folder(out) as draft, artifact.lease(found):
        model = checkpoint.load_model(path, torch.device("cpu"))
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        preset, result = run.read_preset_name(found.path), run.read_result(found.path)
        source = Source(found, preset, result, state, tokenizer, weights, _texts(found))
        chosen.write(source, draft)
        if verify:
            _require_same(chosen.read(draft), chosen.weights(state.model, weights))
        name = found.manifest.name
        (draft / "README.md").write_text(card.text(source, chosen.library, chosen.usage(name)), encoding="utf-8")
        paths = sorted(path for path in draft.rglob("*") if path.is_file())
        names = tuple(str(path.relative_to(draft)) for path in paths)
        size = sum(path.stat().st_size for path in paths)
        return Exported(to, out, names, state.model.parameters, state.step, size, verify)


def _require_same(read: Mapping[str, Tensor], written: Mapping[str, Tensor]) -> None:
    for name in sorted(read.keys() | written.keys()):
        if name not in read or name not in written or not torch.equal(read[name], written[name]):
            raise broken(name, "reads back as something else")


def _texts(found: Artifact) -> tuple[str, ...]:
    if not found.file(_SAMPLES).is_file():
        return ()
    lines = map(msgspec.json.decode, found.file(_SAMPLES).read_bytes().splitlines())
    return tuple(f"{line['prompt']}{line['text']}" for line in lines)
