"""The serve command."""

from __future__ import annotations

from typing import Any

import click

from model.commands.options import DEVICE, PRECISION
from pipeline.commands.console import Command, Outcome, Settings
from pipeline.commands.options import newest


@click.command(cls=Command)
@click.argument("reference", metavar="[RUN]", default="")
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than this machine may reach other ones.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True)
@click.option("--rows", type=click.IntRange(1, 256), default=8, show_default=True, help="Texts written side by side.")
@click.option("--queue", type=click.IntRange(0, 4096), default=64, show_default=True, help="Texts that may wait.")
@PRECISION
@DEVICE
def serve(settings: Settings, reference: str, checkpoint: str, precision: str, device: str, **place: Any) -> Outcome:
    """Serve a trained model on this machine: a page to write with, and OpenAI's completions (extra [serve])."""
    from model.generation.session import Session
    from model.serving import server
    from pipeline.store import artifact

    found = artifact.find(settings.root, "runs", reference) if reference else newest(settings, "runs")
    session = Session(found, checkpoint, device, precision, settings.progress.note)
    done = server.serve(session, server.Place(**place), settings.progress.note, settings.progress.stop)
    return Outcome(
        "unchanged",
        found.ref,
        found.path,
        {"texts": done.texts, "tokens": done.tokens},
        extra={"url": done.url},
        lines=[f"served {done.texts:,} texts, {done.tokens:,} tokens"],
    )
