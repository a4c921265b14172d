"""Options and helpers that several commands share."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pipeline import errors
from pipeline.commands.console import Choice, Number, Outcome, Settings, option_group
from pipeline.runtime.terminal import counted

if TYPE_CHECKING:
    from pipeline.runtime.engines import OpenEngine
    from pipeline.sources.http import Network
    from pipeline.store.artifact import Artifact, BuildResult

_MAX_NAMES = 8  # of artifacts in a line

JOBS = click.option(
    "--jobs",
    type=click.IntRange(0, 1024),
    metavar="N",
    default=0,
    help="Number of worker processes; 0 (default) uses one per core, fewer for small input.",
)
ENGINE = click.option(
    "--engine",
    default="local",
    show_default=True,
    metavar="ENGINE",
    help="Where the work is done: local, or on the nodes of a Ray cluster with ray or ray:HOST:PORT; then --jobs is "
    "the number of cores for each part or file (default 1).",
)
NAME = click.option(
    "--name", default="", metavar="NAME", help="Name of the new artifact (default: taken from its input)."
)
MAX_BAD = click.option(
    "--max-bad",
    type=Number(),
    default=0.001,
    show_default=True,
    metavar="FRACTION",
    help="Fail if more than this fraction of documents is rejected.",
)
INCLUDE = click.option(
    "--include",
    multiple=True,
    metavar="GLOB",
    help='Take only the files of a folder or dataset that match, whatever their suffix, e.g. "*.py" (repeatable).',
)
EXCLUDE = click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Leave out the files of a folder or dataset that match (repeatable).",
)
TEXT_FIELD = click.option(
    "--text-field",
    "text_fields",
    multiple=True,
    metavar="FIELD",
    help="Field of JSON records or column of tables that holds the text, e.g. content or data.body; "
    "several, repeated or joined by commas, are joined by a blank line (default: text, or the field that dominates).",
)
REBUILD = click.option("--rebuild", is_flag=True, help="Build again what is published, and replace it if bytes differ.")
STAGES = ("download", "clean", "train-tokenizer", "tokenize", "train", "sft", "dpo")
THROUGH = click.option(
    "--through",
    type=Choice(STAGES),
    default="dpo",
    show_default=True,
    metavar="STAGE",
    help=f"Last stage to run: {', '.join(STAGES)}.",
)
NETWORK = option_group(
    "Network",
    click.option(
        "--limit-rate",
        default="",
        metavar="BYTES",
        help="Limit all downloads together to this many bytes per second, e.g. 500k or 5M.",
    ),
    click.option(
        "--deadline",
        type=Number(0),
        default=0.0,
        metavar="SECONDS",
        help="Stop fetching after this time and exit with code 75.",
    ),
    click.option(
        "--allow-host",
        "allow_hosts",
        multiple=True,
        metavar="HOST",
        help="Allow redirects to this host too (repeatable).",
    ),
    click.option("--allow-shrink", is_flag=True, help="Accept files that became smaller upstream."),
)


def refuse_options(reason: str, *names: str) -> None:
    """Raise BadConfig, with `reason`, if the user set one of these parameters, which the command would ignore."""
    context = click.get_current_context()
    for option in context.command.params:
        if option.name in names and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
            raise errors.BadConfig(f"{option.opts[-1]} {reason}", hint="leave it out")


def worker_count(jobs: int) -> int:
    """Return the number of worker processes for a value of --jobs."""
    from pipeline.runtime import workers

    return jobs or workers.default_jobs()


def engine_of(engine: str, jobs: int) -> OpenEngine | None:
    """Return the function that opens the engine of --engine, with --jobs cores a file. Raises BadConfig."""
    from pipeline.runtime.engines import engine_named

    return engine_named(engine, jobs or 1)


def network_of(settings: Settings, limit_rate: str, deadline: float, allow_hosts: tuple[str, ...]) -> Network:
    """Return the network settings for the options of NETWORK. Raises BadConfig for a bad --limit-rate."""
    from pipeline.sources.http import BandwidthLimit, Network

    rate = _parse_bytes(limit_rate, "--limit-rate") if limit_rate else 0.0
    until = time.monotonic() + deadline if deadline > 0 else None
    return Network(allow_hosts, BandwidthLimit(rate) if rate else None, until, settings.progress.stop)


def _parse_bytes(text: str, option: str) -> float:
    """Return a number of bytes written as curl and wget accept it: 500k, 5M, 1.5G."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([kKmMgG]?)(?:i?[bB])?", text.strip())
    if not match or not float(match[1]):
        raise errors.BadConfig(f"{option} must be a number of bytes above 0, got {text}", hint="for example 500k or 5M")
    return float(match[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[match[2].lower()]


def outcome_of(built: BuildResult, summary_counts: tuple[str, ...], **extra: Any) -> Outcome:
    """Return the outcome of a stage: its artifact, the named counts, and one line for each kind of dropped item."""
    from pipeline.store.code import build_note

    published = built.artifact
    note = build_note(published.manifest.code, built.result, rebuilt=built.rebuilt)
    counts = published.manifest.counts
    summary = ", ".join(counted(counts[name], name.replace("_", " ")) for name in summary_counts if name in counts)
    lines = [f"{built.result}: {published.ref} ({summary}){note and f', {note}'}"]
    for item, tally in published.manifest.ledger.items():
        if tally["dropped"]:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in tally["dropped"].items())
            lines.append(f"dropped {item}: {reasons}")
    return Outcome(built.result, published.ref, published.path, counts, published.manifest.ledger, dict(extra), lines)


def find_artifact(settings: Settings, kind: str, reference: str, *, exclude: str = "") -> Artifact:
    """Return the artifact of `kind` that `reference` names; if it is "", the newest one not named `exclude`.

    The choice of the newest is reported to the user, with the names that were not chosen. Raises InputMissing if there
    is no such artifact.
    """
    from pipeline.store import artifact

    if reference:
        return artifact.find(settings.root, kind, reference)
    newest = artifact.latest(settings.root, kind, exclude=exclude)
    names = [name for name in artifact.list_names(settings.root, kind) if name not in (exclude, newest.manifest.name)]
    settings.progress.note(f"using {newest.ref}, the newest{f'; others: {_listed(names)}' if names else ''}")
    return newest


def _listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    omitted = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {omitted:,} more" if omitted > 0 else "")


def name_of(reference: str, kind: str) -> str:
    """Return the name for an artifact made from a reference: `corpora/shuihu/<key>` → shuihu, `data/a.txt` → a."""
    from pipeline.store.manifest import is_valid_name, name_from_path

    path = Path(reference)
    if path.exists() and ("/" in reference or path.suffix) and not reference.startswith(f"{kind}/"):
        return name_from_path(reference)
    parts = reference.removeprefix(f"{kind}/").split("/")
    return parts[0] if is_valid_name(parts[0]) else name_from_path(reference)
