"""The sample command."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from model.commands.options import CHECKPOINT, DEVICE, PRECISION, SAMPLING
from model.generation.sampling import SampleOptions
from pipeline import errors
from pipeline.commands.console import Command, Outcome, Settings, option_group
from pipeline.commands.options import find_artifact
from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.runtime.signals import stop_on_sigterm
from pipeline.runtime.terminal import counted, printable_block, write

if TYPE_CHECKING:
    from model.generation.engine import Sample
    from model.generation.session import EncodedPrompt, Session
    from pipeline.store.artifact import Artifact


_PROMPT_GRACE = 0.01  # seconds: nothing is lost while a prompt is typed
_CANDIDATES = 5  # alternatives that --explain prints for each token


@click.command(cls=Command)
@click.argument("reference", metavar="[RUN]", default="")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@option_group(
    "Prompts",
    click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Text to continue (repeatable)."),
    click.option("--prompt-ids", multiple=True, metavar="IDS", help="Token ids to continue, e.g. 1,2,3 (repeatable)."),
    click.option(
        "--prompt-file",
        "prompt_files",
        multiple=True,
        metavar="FILE",
        help="File with a text to continue, or - for standard input (repeatable).",
    ),
    click.option(
        "--num-samples",
        type=click.IntRange(1, 65_536),
        metavar="N",
        default=1,
        show_default=True,
        help="Number of continuations of each prompt.",
    ),
)
@SAMPLING
@option_group(
    "Output",
    click.option("--stream", is_flag=True, help="Print each token as it is generated, one text after another."),
    click.option("--interactive", is_flag=True, help="Read prompts from the terminal until end of input."),
    click.option("--explain", is_flag=True, help="Print the most likely alternatives to each token."),
)
@option_group("Model", CHECKPOINT, PRECISION, DEVICE)
def sample(
    settings: Settings,
    reference: str,
    texts: tuple[str, ...],
    prompts: tuple[str, ...],
    prompt_ids: tuple[str, ...],
    prompt_files: tuple[str, ...],
    num_samples: int,
    stream: bool,
    interactive: bool,
    explain: bool,
    checkpoint: str,
    precision: str,
    device: str,
    **options: Any,
) -> Outcome:
    """Continue prompts with a trained model.

    Each TEXT is a prompt, as with --prompt; - reads one from standard input. Without RUN, the newest run is used.
    Without a prompt, the model begins a new text.

    \b
    Examples:
      inkstone sample book 话说 --max-tokens 200
      echo 话说 | inkstone sample book -
      inkstone sample book --interactive
    """
    from model.generation.session import Session

    if (stream or interactive) and (explain or settings.json):
        raise errors.BadConfig("--stream and --interactive print text only", hint="leave out --json and --explain")
    if interactive and (texts or prompts or prompt_ids or prompt_files or num_samples > 1):
        raise errors.BadConfig(
            "--interactive reads its prompts from the terminal", hint="leave out the prompt options and --num-samples"
        )
    run = _find_run(settings, reference)
    with settings.progress.wait(f"verifying {run.ref}"):
        session = Session(run, checkpoint, device, precision, settings.progress.note)
    parsed = [session.prompt_from_file("-") if text == "-" else session.encode_prompt(text) for text in texts]
    parsed += [session.encode_prompt(text) for text in prompts]
    parsed += [session.prompt_from_ids(text) for text in prompt_ids]
    parsed += [session.prompt_from_file(path) for path in prompt_files]
    repeated = [prompt for prompt in parsed or [session.encode_prompt("")] for _ in range(num_samples)]

    sample_options = SampleOptions(**options, candidates=_CANDIDATES if explain else 0)
    outcome = Outcome("built", run.ref, run.path, {"samples": len(repeated)}, always=True)
    with settings.progress.wait(f"loading {run.ref}"):
        session.load()
    if interactive:
        outcome.counts = {"samples": converse(session, sample_options, settings.progress.stop)}
    elif stream:
        stream_samples(session, repeated, sample_options, settings.progress.stop)
    else:
        work = f"writing {counted(len(repeated), 'texts')} of up to {counted(sample_options.max_tokens, 'tokens')}"
        with settings.progress.wait(work):
            samples = session.sample(repeated, sample_options, settings.progress.stop)
        outcome.extra["samples"] = [as_fields(sample) for sample in samples]
        outcome.lines = "\n\n".join(map(format_sample, repeated, samples)).split("\n")
    return outcome


def _find_run(settings: Settings, reference: str) -> Artifact:
    """Return the run. If there is no such run, the hint shows where a prompt belongs."""
    from pipeline.store import artifact

    try:
        return find_artifact(settings, "runs", reference)
    except InputMissing as error:
        names = artifact.list_names(settings.root, "runs")
        if not (reference and names):
            raise
        prompt = shlex.quote(reference)
        hint = f"runs: {', '.join(names)}; for a prompt, name the run first: `inkstone sample {names[0]} {prompt}`"
        raise InputMissing(error.message, hint=hint) from None


def stream_samples(
    session: Session, prompts: Sequence[EncodedPrompt], options: SampleOptions, stopped: threading.Event
) -> None:
    """Stream one continuation after another to standard output, token by token."""
    for index, prompt in enumerate(prompts):
        write(printable_block(f"{chr(10) * bool(index)}{prompt.text}{prompt.separator}"))
        for text in session.stream(prompt, options, options.seed + index, stopped):
            write(printable_block(text))
        write("\n")


def converse(session: Session, options: SampleOptions, stopped: threading.Event) -> int:
    """Read prompts and stream their continuations until end of input; Ctrl-C ends one text. Return their number."""
    count = 0
    marker = "› " if sys.stdin.isatty() else ""
    while True:
        try:
            with stop_on_sigterm(stopped, grace=_PROMPT_GRACE):
                text = input(marker)
        except EOFError:
            write("\n" if marker else "")
            return count
        try:
            stream_samples(session, [session.encode_prompt(text)], replace(options, seed=options.seed + count), stopped)
        except KeyboardInterrupt:
            write("\n")
        except (BadConfig, BadData) as error:  # a bad prompt does not end the session
            session.report(f"error: {error}")
        count += 1


def format_sample(prompt: EncodedPrompt, sample: Sample) -> str:
    """Format a sample as text: prompt, continuation and, with --explain, the table of its tokens."""
    return "\n".join(
        [f"{prompt.text}{prompt.separator}{sample.text}", *(_token_table(sample) if sample.tokens else ())]
    )


def _token_table(sample: Sample) -> list[str]:
    """Format the token chosen at each step with its probability and the most likely alternatives."""
    from rich.cells import cell_len

    rows = [("chosen", "p", "likeliest")]
    for token in sample.tokens:
        alternatives = "  ".join(
            f"{_visible(candidate.text)} {candidate.probability:.3f}" for candidate in token.candidates
        )
        rows.append((_visible(token.chosen.text), f"{token.chosen.probability:.3f}", alternatives))
    width = max(cell_len(text) for text, _, _ in rows)
    return [
        f"  {text}{' ' * (width - cell_len(text))}  {probability:>5}  {alternatives}"
        for text, probability, alternatives in rows
    ]


def _visible(text: str) -> str:
    """Return a token's text with spaces, newlines and an empty text made visible."""
    escaped = repr(text)[1:-1]
    return {"": "∅", " ": "␣"}.get(escaped, escaped)


def as_fields(sample: Sample) -> dict[str, Any]:
    """Return a sample as fields for --json, without `tokens` unless --explain recorded them."""
    fields = asdict(sample)
    if not fields["tokens"]:
        del fields["tokens"]
    return fields
