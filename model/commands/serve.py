"""The serve command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from model.commands.options import CHECKPOINT, DEVICE, PRECISION
from pipeline.commands.console import Command, Outcome, Settings, option_group
from pipeline.commands.options import find_artifact


@click.command(cls=Command)
@click.argument("reference", metavar="[RUN]", default="")
@option_group(
    "Server",
    click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        metavar="ADDRESS",
        help="Address to listen on; the default accepts connections from this machine only.",
    ),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        metavar="N",
        default=8000,
        show_default=True,
        help="Port to listen on; 0 picks a free one.",
    ),
    click.option(
        "--server-name",
        "server_names",
        multiple=True,
        metavar="NAME",
        help="Another host name of this server, such as host.docker.internal; repeatable.",
    ),
    click.option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File with keys, one a line; requests to the API must have one of them.",
    ),
    click.option(
        "--rows",
        type=click.IntRange(1, 256),
        metavar="N",
        default=8,
        show_default=True,
        help="Number of texts to generate in parallel.",
    ),
    click.option(
        "--queue",
        type=click.IntRange(0, 4096),
        metavar="N",
        default=64,
        show_default=True,
        help="Number of texts that may wait; more are refused.",
    ),
)
@option_group("Model", CHECKPOINT, PRECISION, DEVICE)
def serve(settings: Settings, reference: str, checkpoint: str, precision: str, device: str, **server: Any) -> Outcome:
    """Serve a model over HTTP.

    Serves a page to write with and OpenAI's completions and chat API until Ctrl-C or SIGTERM. Needs the extra
    [serve]. Without RUN, the newest run is served.

    \b
    Example:
      inkstone serve book --port 8080
    """
    from model.generation.session import Session
    from model.serving.server import ServerConfig
    from model.serving.server import serve as run_server

    run = find_artifact(settings, "runs", reference)
    with settings.progress.wait(f"loading {run.ref}"):
        session = Session(run, checkpoint, device, precision, settings.progress.note)
        session.load()
    served = run_server(session, ServerConfig(**server), settings.progress.note, settings.progress.stop)
    return Outcome(
        "unchanged",
        run.ref,
        run.path,
        {"texts": served.texts, "tokens": served.tokens},
        extra={"url": served.url},
        lines=[f"served {served.texts:,} texts, {served.tokens:,} tokens"],
    )
