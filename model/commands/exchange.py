"""The export and import-model commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from model.commands.options import CHECKPOINT
from pipeline import errors
from pipeline.commands.console import Choice, Command, Outcome, Settings
from pipeline.commands.options import find_artifact, outcome_of, refuse_options
from pipeline.runtime.terminal import counted

if TYPE_CHECKING:
    from model.exchange.export import ExportedModel
    from pipeline.export.corpus import ExportedCorpus
    from pipeline.export.export import ExportedTokens

_FORMATS = {  # of each kind
    "corpus": ("parquet", "jsonl", "hf"),
    "tokens": ("nanogpt", "megatron", "llmc", "datatrove", "hdf5-int32", "litdata"),
    "model": ("hf", "gguf"),
}
_ARTIFACTS = {"corpus": "corpora", "tokens": "tokens", "model": "runs"}
_MAX_SHARD_TOKENS = 2_000_000_000  # the header of llm.c counts them in an int32


@click.command("import-model", cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", required=True, metavar="NAME", help="Name of the new run.")
@click.option(
    "--tokenizer",
    default="",
    metavar="NAME|FILE",
    help="Trained tokenizer, .model file of SentencePiece, tokenizer.json, or tiktoken encoding (default: DIR's).",
)
@click.option(
    "--end-of-text", default="", metavar="TOKEN", help="Token of a tokenizer.json that ends a text, if it is not clear."
)
@click.option(
    "--assume-tokenizer", is_flag=True, help="Accept a tokenizer without a file in DIR that it could be compared with."
)
@click.option(
    "--trust-checkpoint",
    is_flag=True,
    help="Accept a pickle (pytorch_model.bin, ckpt.pt) too; no code in it is run.",
)
def import_model(
    settings: Settings,
    folder: Path,
    name: str,
    tokenizer: str,
    end_of_text: str,
    assume_tokenizer: bool,
    trust_checkpoint: bool,
) -> Outcome:
    """Import GPT-2, NeoX, Llama or Qwen weights.

    DIR is a Hugging Face model folder, or a ckpt.pt of nanoGPT. The run can be sampled, trained further and exported.

    \b
    Example:
      inkstone import-model ~/models/gpt2 --name gpt2
    """
    from model.exchange import import_model as importer

    with settings.progress.wait(f"importing {folder}"):
        built = importer.import_model(
            settings.root,
            folder,
            name,
            tokenizer=tokenizer,
            trusted=trust_checkpoint,
            assumed=assume_tokenizer,
            end_of_text=end_of_text,
        )
    return outcome_of(built, ("parameters",), tokenizer=built.artifact.manifest.tokenizer)


@click.command(cls=Command)
@click.argument("kind", metavar="corpus|tokens|model", type=click.Choice(list(_FORMATS)))
@click.argument("reference", metavar="[NAME]", default="")
@click.option(
    "--to",
    "target_format",
    type=Choice(list(dict.fromkeys(name for names in _FORMATS.values() for name in names))),
    default="",
    metavar="FORMAT",
    help="Target format. " + " ".join(f"{kind.capitalize()}: {', '.join(names)}." for kind, names in _FORMATS.items()),
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="New output folder, or the file itself if it ends in .jsonl or .gguf "
    "(default: exports/NAME-FORMAT in the artifacts folder, for a corpus NAME-corpus-FORMAT).",
)
@click.option("--verify", is_flag=True, help="Read the export back and compare it before publishing.")
@click.option(
    "--shard-tokens",
    type=click.IntRange(0, _MAX_SHARD_TOKENS),
    default=0,
    metavar="N",
    help="Tokens in a file of llmc (default: at most 100 million, and two files for training).",
)
@click.option(
    "--quantize", type=Choice(["q8_0"]), default="", metavar="KIND", help="Store the matrices of a GGUF file as q8_0."
)
@CHECKPOINT
def export(
    settings: Settings,
    kind: str,
    reference: str,
    target_format: str,
    out: Path | None,
    verify: bool,
    shard_tokens: int,
    quantize: str,
    checkpoint: str,
) -> Outcome:
    """Export a corpus, tokens or a model.

    Without NAME, the newest corpus, token arrays or run is exported.

    \b
    Examples:
      inkstone export corpus book --to parquet
      inkstone export tokens book --to megatron --verify
      inkstone export model book --to hf
    """
    if not target_format:
        raise errors.BadConfig("--to must name a format to export to", hint=f"--to {', '.join(_FORMATS[kind])}")
    for option, value, needed in (("--shard-tokens", shard_tokens, "tokens"), ("--quantize", quantize, "model")):
        if value and kind != needed:
            raise errors.BadConfig(f"{option} is for `export {needed}`, not for `export {kind}`", hint="leave it out")
    if kind != "model":
        refuse_options(f"is for `export model`, not for `export {kind}`", "checkpoint")
    source = find_artifact(settings, _ARTIFACTS[kind], reference)
    name_parts = (source.manifest.name, "corpus" if kind == "corpus" else "", target_format, quantize)
    path = out or settings.root / "exports" / "-".join(filter(None, name_parts))
    wait = settings.progress.wait(f"exporting {source.ref}")
    if kind == "corpus":
        from pipeline.export import corpus

        with wait:
            rows = corpus.export(source, target_format, path, verify=verify)
        counts = {"documents": rows.documents, "characters": rows.characters, "bytes": rows.bytes}
        return _exported(source.ref, rows, counts, counted(rows.documents, "documents"))
    if kind == "tokens":
        from pipeline.export import export as token_export

        with wait:
            exported = token_export.export(source, target_format, path, verify=verify, shard_tokens=shard_tokens)
        if exported.warning:
            settings.progress.note(f"warning: {exported.warning}")
        counts = {"tokens": exported.tokens, "documents": exported.documents, "bytes": exported.bytes}
        return _exported(source.ref, exported, counts, counted(exported.tokens, "tokens"))

    with wait:
        from model.exchange import export as model_export

        model = model_export.export(source, target_format, path, checkpoint, verify=verify, quantize=quantize)
    if model.warning:
        settings.progress.note(f"warning: {model.warning}")
    counts = {"parameters": model.parameters, "step": model.step, "bytes": model.bytes}
    return _exported(source.ref, model, counts, f"{model.parameters:,} parameters of step {model.step:,}")


def _exported(
    source: str, exported: ExportedCorpus | ExportedTokens | ExportedModel, counts: dict[str, int], summary: str
) -> Outcome:
    verified = ", read back and equal" if exported.verified else ""
    return Outcome(
        "built",
        source,
        exported.path,
        counts,
        extra={"format": exported.format, "files": list(exported.files), "verified": exported.verified},
        lines=[f"built: {exported.path} ({summary} as {exported.format}{verified})"],
    )
