"""The maintenance commands: status, verify, rollback, prune and schedule."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline import errors
from pipeline.commands.console import Choice, Command, Outcome, Settings
from pipeline.commands.options import STAGES, refuse_options

if TYPE_CHECKING:
    from pipeline.maintenance.status import Publication

PROGRAM = Path(__file__).resolve().parents[2] / "cli.py"
_MAX_NAMED = 8  # generations in the line of recent ones


@click.command(cls=Command)
@click.option(
    "--check",
    is_flag=True,
    help="Check for a monitor: print one line and exit 0 (ok), 1 (warning), 2 (critical) or 3 (unknown).",
)
@click.option(
    "--max-age",
    default="36h",
    show_default=True,
    metavar="AGE",
    help="With --check, the maximum age of the last success, e.g. 90m, 36h or 7d.",
)
def status(settings: Settings, check: bool, max_age: str) -> Outcome:
    """Show sources, artifacts and refreshes.

    Prints the state, age and size of each, what was published in the last 24 hours, the size of the store and the free
    disk space.

    \b
    Example:
      inkstone status --check --max-age 36h
    """
    from pipeline.maintenance import status as status_report
    from pipeline.runtime.terminal import sparkline, table
    from pipeline.store import files

    if check:
        result = status_report.check(settings.root, _hours(max_age))
        return Outcome("unchanged", path=settings.root, lines=[result.line], always=True, exit_code=result.code)
    refuse_options("has no effect without --check", "max_age")
    rows, refreshes = status_report.status(settings.root), status_report.refreshes(settings.root)
    cells = [
        (
            row.ref,
            row.state,
            status_report.duration(row.age_hours * 3600),
            status_report.size(row.bytes),
            f"{row.summary}  {sparkline(row.curve)}",
        )
        for row in rows
    ]
    lines = table([("artifact", "state", "age", "size", "content"), *cells], right=(2, 3)) if rows else []
    lines += [refresh.line() for refresh in refreshes]
    free, published = files.free_space(settings.root), status_report.publications(settings.root)
    with settings.progress.wait("adding up the sizes of all files"):
        used = status_report.store_size(settings.root)
    lines += _publication_lines(published)
    if lines:
        lines.append(f"{status_report.size(used)} in this store, {status_report.size(free)} free on this disk")
    else:
        lines = [f"nothing in {settings.root} yet; run `demo` or `download` to fill it"]
    return Outcome(
        "unchanged",
        path=settings.root,
        counts={"rows": len(rows), "bytes": used, "disk_free": free},
        extra={
            "rows": [status_report.as_dict(row) for row in rows],
            "published": [asdict(publication) for publication in published],
            "refreshes": [asdict(refresh) for refresh in refreshes],
        },
        lines=lines,
        always=True,
    )


def _publication_lines(published: list[Publication]) -> list[str]:
    """Return one line with what was published in the last 24 hours, none without any."""
    if not published:
        return []
    from pipeline.maintenance.status import age

    refs = ", ".join(f"{entry.ref} ({age(entry.age_hours)})" for entry in published[:_MAX_NAMED])
    more = f" and {len(published) - _MAX_NAMED} more" if len(published) > _MAX_NAMED else ""
    return [f"published in the last 24 hours: {refs}{more}"]


def _hours(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([mhd])", text.strip())
    if not match:
        raise errors.BadConfig(f"--max-age must be a duration, got {text}", hint="for example 90m, 36h or 7d")
    return float(match[1]) * {"m": 1 / 60, "h": 1, "d": 24}[match[2]]


@click.command(cls=Command)
@click.argument("reference", metavar="[ARTIFACT]", default="")
@click.option("--deep", is_flag=True, help="Hash every byte; by default, only files that were modified are hashed.")
def verify(settings: Settings, reference: str, deep: bool) -> Outcome:
    """Check published files for damage.

    ARTIFACT is a name, a kind, KIND/NAME, KIND/NAME/KEY or a path; without it, everything is checked.

    \b
    Example:
      inkstone verify tokens/book --deep
    """
    from pipeline.maintenance import verify as verification
    from pipeline.store import artifact

    checked = list(verification.verify(settings.root, reference, deep=deep, progress=settings.progress))
    if not checked:
        missing = "no artifacts and no sources here" if settings.root.is_dir() else "no such folder"
        raise errors.InputMissing(
            f"{settings.root}: {missing}", hint="name the folder of the artifacts with --artifacts"
        )
    problems = [problem for _, problems in checked for problem in problems]
    if problems:
        for problem in problems[1:]:
            settings.progress.note(problem)
        suffix = f" (and {len(problems) - 1} more, above)" if len(problems) > 1 else ""
        raise errors.BadData(f"{problems[0]}{suffix}", hint="delete that file, then run its stage or `refresh` again")
    for path in artifact.generations(settings.root):
        with suppress(errors.InkstoneError):  # one that cannot be read, when another one was named
            for name in artifact.unlisted_files(artifact.read(path)):
                settings.progress.note(f"{path / name}: in no manifest, so it is ignored")
    method = "every byte hashed" if deep else "sizes compared, modified files hashed"
    return Outcome(
        "unchanged", path=settings.root, counts={"checked": len(checked)}, lines=[f"{len(checked)} intact: {method}"]
    )


@click.command(cls=Command)
@click.argument("reference", metavar="KIND/NAME")
@click.option(
    "--to",
    default="",
    metavar="KEY",
    help="Key of the generation to return to, or its beginning (default: the previous one).",
)
def rollback(settings: Settings, reference: str, to: str) -> Outcome:
    """Return to an earlier generation.

    The next refresh does not publish the newer generation again. --to with its key brings it back.

    \b
    Example:
      inkstone rollback tokens/pile
    """
    from pipeline.maintenance import retention

    rolled = retention.rollback(settings.root, reference, to=to)
    suffix = f", {rolled.previous} is set aside" if rolled.previous and rolled.result != "unchanged" else ""
    return Outcome(
        rolled.result,
        rolled.artifact.ref,
        rolled.artifact.path,
        extra={"left": rolled.previous},
        lines=[f"{rolled.result}: {rolled.artifact.ref} is current{suffix}"],
    )


@click.command(cls=Command)
@click.option(
    "--keep",
    type=int,
    metavar="N",
    default=2,
    show_default=True,
    help="Number of newest generations to keep of each artifact.",
)
@click.option("--dry-run", is_flag=True, help="List what would be deleted and stop.")
def prune(settings: Settings, keep: int, dry_run: bool) -> Outcome:
    """Delete old generations.

    Keeps every generation that is current, among the newest, in use, or an input of a run that is kept.

    \b
    Example:
      inkstone prune --keep 3 --dry-run
    """
    from pipeline.maintenance import retention
    from pipeline.maintenance.status import size
    from pipeline.runtime.terminal import table

    with settings.progress.wait("finding the generations that nothing needs"):
        rows = retention.prune(settings.root, keep=keep, dry_run=dry_run)
    removed = [row for row in rows if row.removed]
    freed = sum(row.bytes for row in removed)
    verb = "would delete" if dry_run else "deleted"
    cells = [(verb if row.removed else "kept", row.ref, size(row.bytes), row.why) for row in rows]
    lines = table(cells, right=(2,))
    return Outcome(
        "unchanged" if dry_run or not removed else "built",
        path=settings.root,
        counts={"removed": len(removed), "bytes": freed},
        extra={"rows": [asdict(row) for row in rows]},
        lines=[*lines, f"{verb} {len(removed)}, {size(freed)}"],
    )


@click.command(cls=Command)
@click.argument("recipe", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option(
    "--at",
    metavar="HH:MM",
    help="Time of day to run at (default: between 03:00 and 03:59, at a minute that the recipe's name decides).",
)
@click.option(
    "--kind",
    type=click.Choice(["cron", "systemd"]),
    default="cron",
    show_default=True,
    help="Scheduler to print the configuration for.",
)
@click.option(
    "--through",
    type=Choice(STAGES),
    default="",
    metavar="STAGE",
    help=f"Last stage to run: {', '.join(STAGES)} (default: all).",
)
@click.option("--ping-url", default="", metavar="URL", help="Monitor to notify; see `refresh --help`.")
@click.option(
    "--check",
    is_flag=True,
    help="Run the command of the schedule with --dry-run in an empty environment, and print its exit code.",
)
def schedule(
    settings: Settings, recipe: Path, at: str | None, kind: str, through: str, ping_url: str, check: bool
) -> Outcome:
    """Print a cron or systemd schedule.

    The schedule refreshes RECIPE every day. Nothing is installed; the text says how to install it.

    \b
    Examples:
      inkstone schedule shuihu --at 02:15 --kind systemd
      inkstone schedule shuihu --check
    """
    from pipeline.maintenance import schedule as schedules
    from pipeline.refresh.recipe import find as find_recipe

    job = schedules.ScheduledRefresh(
        recipe=find_recipe(recipe),
        root=settings.root,
        python=Path(sys.executable),
        program=PROGRAM,
        at=at,
        through=through,
        ping_url=ping_url,
    )
    text = schedules.cron(job) if kind == "cron" else schedules.systemd(job)
    if check:
        with settings.progress.wait("running the command of the schedule with --dry-run"):
            process = schedules.check(job, kind)
        output = (process.stdout + process.stderr).splitlines()
        return Outcome(
            "failed" if process.returncode else "unchanged",
            extra={"output": output},
            lines=[f"exit code {process.returncode} in an empty environment: {output[-1] if output else 'no output'}"],
            always=True,
            exit_code=process.returncode,
        )
    return Outcome("unchanged", extra={"text": text}, lines=text.splitlines(), always=True)
