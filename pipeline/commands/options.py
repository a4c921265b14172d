"""Options that several commands of the pipeline share."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import click

from pipeline import errors
from pipeline.commands.console import Outcome, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.sources.http import Network
    from pipeline.store.artifact import Artifact, Built


JOBS = click.option("--jobs", type=click.IntRange(0), default=0, help="Processes that work; 0 (default): one a core.")
NAME = click.option("--name", default="", help="Name of the artifact that is made.")
MAX_BAD = click.option(
    "--max-bad", type=float, default=0.001, show_default=True, help="Share of bad documents allowed."
)


def processes(jobs: int) -> int:
    """What --jobs means."""
    from pipeline.runtime import workers as engines

    return jobs or engines.default_jobs()


def NETWORK(command: Callable[..., Outcome]) -> Callable[..., Outcome]:  # noqa: N802 - as the options beside it
    """The options of commands that fetch."""
    for option in (
        click.option("--limit-rate", default="", metavar="BYTES", help="Bytes a second for all files, as 500k or 5M."),
        click.option(
            "--deadline", type=float, default=0.0, metavar="SECONDS", help="Fetch no longer than that; exit 75."
        ),
        click.option("--allow-host", "allow_hosts", multiple=True, metavar="HOST", help="Redirects may lead there."),
        click.option("--allow-shrink", is_flag=True, help="Take files that became smaller upstream."),
    ):
        command = option(command)
    return command


def network_of(settings: Settings, limit_rate: str, deadline: float, allow_hosts: tuple[str, ...]) -> Network:
    from pipeline.sources.http import Bandwidth, Network

    rate = _bytes(limit_rate, "--limit-rate") if limit_rate else 0.0
    until = time.monotonic() + deadline if deadline > 0 else None
    return Network(allow_hosts, Bandwidth(rate) if rate else None, until, settings.progress.stop)


def _bytes(text: str, option: str) -> float:
    """A number of bytes as curl and wget take it: 500k, 5M, 1.5G."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)(?:i?[bB])?", text.strip())
    if not found or not float(found[1]):
        raise errors.BadConfig(f"{option} {text}: no number of bytes", hint="for example 500k or 5M")
    return float(found[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[found[2].lower()]


def outcome_of(built: Built, shown: tuple[str, ...], **extra: Any) -> Outcome:
    found = built.artifact
    counts = found.manifest.counts
    summary = ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in shown if name in counts)
    lines = [f"{built.result}: {found.ref} ({summary})"]
    for what, tally in found.manifest.ledger.items():
        if tally["dropped"]:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in tally["dropped"].items())
            lines.append(f"dropped {what}: {reasons}")
    return Outcome(built.result, found.ref, found.path, counts, found.manifest.ledger, dict(extra), lines)


def newest(settings: Settings, kind: str, besides: str = "") -> Artifact:
    from pipeline.store import artifact

    found = artifact.latest(settings.root, kind, besides=besides)
    settings.progress.note(f"using {found.ref}, the newest")
    return found


def _stem(reference: str, kind: str) -> str:
    """The name that an artifact passes on to what is made from it: `corpora/shuihu/<key>` → shuihu."""
    from pipeline.store.manifest import is_name, name_from

    parts = reference.removeprefix(f"{kind}/").split("/")
    return parts[0] if is_name(parts[0]) else name_from(reference)
