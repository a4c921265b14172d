"""The export and import-model commands."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline import errors
from pipeline.commands import tokens
from pipeline.commands.console import Command, Outcome, Settings
from pipeline.commands.options import newest, outcome_of


@click.command("import-model", cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the run that it becomes.")
@click.option("--tokenizer", default="", help="A trained one, a .model file, r50k_base, ... (default: GPT-2's, if so).")
@click.option("--trust-checkpoint", is_flag=True, help="Read a pickle too (pytorch_model.bin); its tensors alone.")
def import_model(settings: Settings, folder: Path, name: str, tokenizer: str, trust_checkpoint: bool) -> Outcome:
    """Make a run of a GPT-2 or a Qwen3 in a folder of Hugging Face's: to sample from, to train on, to export."""
    from model.exchange import import_model as adoption

    built = adoption.adopt(settings.root, folder, name, tokenizer=tokenizer, trusted=trust_checkpoint)
    return outcome_of(built, ("parameters",), tokenizer=built.artifact.manifest.tokenizer)


@click.command(cls=Command)
@click.argument("kind", metavar="tokens|model", type=click.Choice(["tokens", "model"]))
@click.argument("reference", metavar="[NAME]", default="")
@click.option(
    "--to",
    "layout",
    default="",
    help="nanogpt, megatron, llmc, datatrove, hdf5-int32 or litdata; of a model hf or gguf.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The new folder (default: exports/NAME-FORMAT below that of the artifacts).",
)
@click.option("--verify", is_flag=True, help="Read the tokens or the weights back and compare, before it is published.")
@click.option(
    "--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True, help="Of a model."
)
def export(
    settings: Settings, kind: str, reference: str, layout: str, out: Path | None, verify: bool, checkpoint: str
) -> Outcome:
    """Write token arrays, or a model, in another tool's format (the newest if none is named)."""
    if kind == "tokens":
        return tokens.export_tokens(settings, reference, layout, out, verify)

    from model.exchange import export as exports
    from pipeline.store import artifact

    if not layout:
        raise errors.BadConfig("no format to export to", hint=f"--to {', '.join(exports.FORMATS)}")
    found = artifact.find(settings.root, "runs", reference) if reference else newest(settings, "runs")
    target = out or settings.root / "exports" / f"{found.manifest.name}-{layout}"
    done = exports.export(found, layout, target, checkpoint, verify=verify)
    checked = ", read back and equal" if done.verified else ""
    counts = {"parameters": done.parameters, "step": done.step, "bytes": done.bytes}
    return Outcome(
        "built",
        found.ref,
        done.path,
        counts,
        extra={"format": done.format, "files": list(done.files), "verified": done.verified},
        lines=[f"built: {done.path} ({done.parameters:,} parameters of step {done.step:,} as {done.format}{checked})"],
    )
