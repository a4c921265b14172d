"""The export and import-model commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from model.commands.options import CHECKPOINT
from pipeline import errors
from pipeline.commands.console import Choice, Command, Outcome, Settings
from pipeline.commands.options import find_artifact, outcome_of

if TYPE_CHECKING:
    from model.exchange.export import ExportedModel
    from pipeline.export.export import ExportedTokens

_TOKEN_FORMATS = ("nanogpt", "megatron", "llmc", "datatrove", "hdf5-int32", "litdata")
_MODEL_FORMATS = ("hf", "gguf")


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
@click.argument("kind", metavar="tokens|model", type=click.Choice(["tokens", "model"]))
@click.argument("reference", metavar="[NAME]", default="")
@click.option(
    "--to",
    "target_format",
    type=Choice([*_TOKEN_FORMATS, *_MODEL_FORMATS]),
    default="",
    metavar="FORMAT",
    help=f"Target format. Tokens: {', '.join(_TOKEN_FORMATS)}. Models: {', '.join(_MODEL_FORMATS)}.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New output folder (default: exports/NAME-FORMAT in the artifacts folder).",
)
@click.option(
    "--verify", is_flag=True, help="Read the exported tokens or weights back and compare them before publishing."
)
@CHECKPOINT
def export(
    settings: Settings, kind: str, reference: str, target_format: str, out: Path | None, verify: bool, checkpoint: str
) -> Outcome:
    """Export tokens or a model to another format.

    Without NAME, the newest token arrays or the newest run are exported.

    \b
    Examples:
      inkstone export tokens book --to megatron --verify
      inkstone export model book --to hf
    """
    formats = _TOKEN_FORMATS if kind == "tokens" else _MODEL_FORMATS
    if not target_format:
        raise errors.BadConfig("--to must name a format to export to", hint=f"--to {', '.join(formats)}")
    source = find_artifact(settings, "tokens" if kind == "tokens" else "runs", reference)
    folder = out or settings.root / "exports" / f"{source.manifest.name}-{target_format}"
    if kind == "tokens":
        from pipeline.export import export as token_export

        exported = token_export.export(source, target_format, folder, verify=verify)
        counts = {"tokens": exported.tokens, "documents": exported.documents, "bytes": exported.bytes}
        return _exported(source.ref, exported, counts, f"{exported.tokens:,} tokens")

    from model.exchange import export as model_export

    model = model_export.export(source, target_format, folder, checkpoint, verify=verify)
    counts = {"parameters": model.parameters, "step": model.step, "bytes": model.bytes}
    return _exported(source.ref, model, counts, f"{model.parameters:,} parameters of step {model.step:,}")


def _exported(source: str, exported: ExportedTokens | ExportedModel, counts: dict[str, int], summary: str) -> Outcome:
    verified = ", read back and equal" if exported.verified else ""
    return Outcome(
        "built",
        source,
        exported.path,
        counts,
        extra={"format": exported.format, "files": list(exported.files), "verified": exported.verified},
        lines=[f"built: {exported.path} ({summary} as {exported.format}{verified})"],
    )
