"""The sample command."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from model.commands.options import DEVICE, PRECISION
from pipeline import errors
from pipeline.commands.console import Command, Outcome, Settings
from pipeline.commands.options import newest
from pipeline.errors import BadConfig, BadData

if TYPE_CHECKING:
    from model.generation.engine import Sample
    from model.generation.sampling import SampleOptions
    from model.generation.session import Prompt, Session


_CANDIDATES = 5  # of each token that --explain shows


@click.command(cls=Command)
@click.argument("reference", metavar="[RUN]", default="")
@click.option("--prompt", "prompts", multiple=True, help="Text to continue (repeatable).")
@click.option("--prompt-ids", multiple=True, metavar="IDS", help="Token ids to continue, as 1,2,3 (repeatable).")
@click.option("--prompt-file", "prompt_files", multiple=True, metavar="FILE", help="A text to continue; -: piped in.")
@click.option("--max-tokens", type=int, default=100, show_default=True)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Choose among the k likeliest; 0: all.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Choose among the likeliest that make up p.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Leave out what is p times less likely.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: repeat less.")
@click.option("--greedy", is_flag=True, help="Always take the likeliest token.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text (repeatable).")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--num-samples", type=click.IntRange(1), default=1, show_default=True, help="Continuations of each prompt."
)
@click.option("--stream", is_flag=True, help="Show the text while it is written, one after another.")
@click.option("--interactive", is_flag=True, help="Ask for prompts until the end of the input.")
@click.option("--explain", is_flag=True, help="Show what else was likely at each token.")
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True)
@PRECISION
@DEVICE
def sample(
    settings: Settings,
    reference: str,
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
    """Continue prompts with a trained model (the newest run if none is named)."""
    from model.generation import session as sessions
    from pipeline.store import artifact

    if (stream or interactive) and (explain or settings.json):
        raise errors.BadConfig("--stream and --interactive only write text", hint="without --json and --explain")
    if interactive and (prompts or prompt_ids or prompt_files or num_samples > 1):
        raise errors.BadConfig("--interactive asks for the prompts", hint="leave out --prompt and --num-samples")
    found = artifact.find(settings.root, "runs", reference) if reference else newest(settings, "runs")
    session = sessions.Session(found, checkpoint, device, precision, settings.progress.note)
    asked = [session.prompt(text) for text in prompts]
    asked += [session.prompt_of_ids(text) for text in prompt_ids]
    asked += [session.prompt_of_file(path) for path in prompt_files]
    asked = [each for each in asked or [session.prompt("")] for _ in range(num_samples)]

    from model.generation.sampling import SampleOptions

    chosen = SampleOptions(**options, candidates=_CANDIDATES if explain else 0)
    done = Outcome("built", found.ref, found.path, {"samples": len(asked)}, always=True)
    if interactive:
        done.counts = {"samples": converse(session, chosen, settings.progress.stop)}
    elif stream:
        write(session, asked, chosen, settings.progress.stop)
    else:
        samples = session.samples(asked, chosen, settings.progress.stop)
        done.extra["samples"] = [as_fields(each) for each in samples]
        done.lines = ["\n\n".join(map(shown, asked, samples))]
    return done


def write(session: Session, prompts: Sequence[Prompt], options: SampleOptions, stopped: threading.Event) -> None:
    """Continue one prompt after another on the screen, each token as it comes."""
    for number, prompt in enumerate(prompts):
        click.echo(f"{chr(10) * bool(number)}{prompt.text}{prompt.joint}", nl=False)
        for text in session.stream(prompt, options, options.seed + number, stopped):
            click.echo(text, nl=False)
        click.echo()


def converse(session: Session, options: SampleOptions, stopped: threading.Event) -> int:
    """Ask for prompts and continue them, until the input ends; Ctrl-C ends a text. The number of texts."""
    count = 0
    asks = "› " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(asks)
        except EOFError:
            click.echo(nl=bool(asks))
            return count
        try:
            write(session, [session.prompt(text)], replace(options, seed=options.seed + count), stopped)
        except KeyboardInterrupt:
            click.echo()
        except (BadConfig, BadData) as error:  # a prompt that is none
            session.report(f"error: {error}")
        count += 1


def shown(prompt: Prompt, sample: Sample) -> str:
    """A sample for a person: prompt and continuation, and its tokens where they were asked for."""
    return "\n".join([f"{prompt.text}{prompt.joint}{sample.text}", *(table(sample) if sample.tokens else ())])


def table(sample: Sample) -> list[str]:
    """What was chosen at each step, with the network's probability of it, and what else was likely."""
    from rich.cells import cell_len

    rows = [("chosen", "p", "likeliest")]
    for token in sample.tokens:
        others = "  ".join(f"{_visible(each.text)} {each.probability:.3f}" for each in token.candidates)
        rows.append((_visible(token.chosen.text), f"{token.chosen.probability:.3f}", others))
    wide = max(cell_len(row[0]) for row in rows)
    return [f"  {text}{' ' * (wide - cell_len(text))}  {p:>5}  {others}" for text, p, others in rows]


def _visible(text: str) -> str:
    """A token's text so that it can be seen in a row of others."""
    shown = repr(text)[1:-1]
    return {"": "∅", " ": "␣"}.get(shown, shown)


def as_fields(sample: Sample) -> dict[str, Any]:
    """A sample for --json; its tokens only where they were asked for."""
    fields = asdict(sample)
    if not fields["tokens"]:
        del fields["tokens"]
    return fields
