"""The serve command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model.commands.options import CHECKPOINT, DEVICE, PRECISION
from pipeline.commands.console import Command, Outcome, Settings, option_group
from pipeline.commands.options import find_artifact
from pipeline.errors import InkstoneError, to_inkstone_error
from pipeline.runtime.terminal import counted

if TYPE_CHECKING:
    from model.generation.session import Session
    from model.serving.model_info import PageContent
    from pipeline.store.artifact import Artifact

_HEAD = 20_000  # tokens from which beginnings are taken
_USER = "user\n"  # before a question, in the templates of ChatML and its relatives
_MAX_QUESTION = 60  # characters of a question to choose


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
    from model.serving.server import ServerConfig, require_packages
    from model.serving.server import serve as run_server

    require_packages()
    run = find_artifact(settings, "runs", reference)
    with settings.progress.wait(f"loading {run.ref}"):
        session = Session(run, checkpoint, device, precision, settings.progress.note)
        session.load()
        content = page_content(settings.root, session)
    served = run_server(session, ServerConfig(**server), content, settings.progress.note, settings.progress.stop)
    return Outcome(
        "unchanged",
        run.ref,
        run.path,
        {"texts": served.texts, "tokens": served.tokens},
        extra={"url": served.url},
        lines=[f"served {counted(served.texts, 'texts')}, {counted(served.tokens, 'tokens')}"],
    )


def page_content(root: Path, session: Session) -> PageContent:
    """Return the parts of the page that come from the training text of a run; fewer if its tokens were deleted."""
    from model.serving.model_info import PageContent
    from pipeline.report.page import stylesheet

    run, tokens = session.run, _tokens(root, session.run)
    counts = tokens.manifest.counts if tokens else {}
    return PageContent(
        style=stylesheet(),
        beginnings=_beginnings(tokens) if tokens else (),
        characters=sum(counts.get(f"{split}_characters", 0) for split in ("train", "val")),
        report=lambda code: _report(run, code),
    )


def _report(run: Artifact, code: str) -> bytes:
    from pipeline.report import reports
    from pipeline.report.languages import language_of

    try:
        return reports.render(run.manifest.name, [run], language_of(code))
    except (InkstoneError, OSError) as cause:
        error = to_inkstone_error(cause)
        error.message = error.message.replace(f"{run.path.parents[2]}/", "")  # hide the folder from clients
        raise error from None


def _tokens(root: Path, run: Artifact) -> Artifact | None:
    from pipeline.store import artifact
    from pipeline.store.manifest import path_of_ref

    reference = next((entry.name for entry in run.manifest.inputs if entry.role == "tokens"), "")
    try:
        return artifact.read(path_of_ref(root, reference)) if reference else None
    except InkstoneError:  # deleted, or never on this machine; not fetched for this
        return None


def _beginnings(tokens: Artifact) -> Sequence[str]:
    """Return beginnings of validation text, of training text if none was held out; of chats, questions of users."""
    from pipeline.start.survey import prompts
    from pipeline.tokenizers import ChatTokenizer
    from pipeline.tokens.store import open_store

    try:
        store = open_store(tokens)
    except InkstoneError:
        return ()
    tokenizer = store.tokenizer
    if tokenizer.kind == "integers":
        return ()
    ends = [tokenizer.end_of_text]
    if is_chat := isinstance(tokenizer, ChatTokenizer):
        ends.append(tokenizer.end_of_turn)
    texts, ids = [], list[int]()
    for token in (store.val if len(store.val) else store.train).read(0, _HEAD).tolist():
        if token in ends:
            texts.append(tokenizer.decode(ids))
            ids = []
        else:
            ids.append(token)
    if not is_chat:
        return prompts("\n".join([*texts, tokenizer.decode(ids)]))
    questions = (text.strip().removeprefix(_USER) for text in texts if text.strip().startswith(_USER))
    return list(dict.fromkeys(question for question in questions if len(question) <= _MAX_QUESTION))[:3]
