"""The commands that look after what is there: status, verify, rollback, prune, schedule, doctor."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

import click

from pipeline import errors
from pipeline.commands.console import Command, Outcome, Settings

PROGRAM = Path(__file__).resolve().parents[2] / "cli.py"


@click.command(cls=Command)
@click.option(
    "--check", is_flag=True, help="For monitors: one line, exit 0 (ok), 1 (warning), 2 (critical), 3 (unknown)."
)
@click.option("--max-age", default="36h", show_default=True, help="With --check: how old the last success may be.")
def status(settings: Settings, check: bool, max_age: str) -> Outcome:
    """Show every source and artifact: what is current, how old, how large; and how the refreshes go."""
    from pipeline.maintenance import status as shelf
    from pipeline.store import files

    if check:
        found = shelf.check(settings.root, _hours(max_age))
        return Outcome("unchanged", path=settings.root, lines=[found.line], always=True, exit_code=found.code)
    rows, refreshes = shelf.status(settings.root), shelf.refreshes(settings.root)
    lines = [
        f"{row.ref:<48} {row.state:<10} {shelf.age(row.age_hours):>7} {shelf.size(row.bytes):>10}  {row.summary}"
        for row in rows
    ]
    free = files.free_space(settings.root)
    lines += [line for each in refreshes for line in each.lines()]
    nothing = [f"nothing in {settings.root} yet; `demo` fills it, and so does `download`"]
    return Outcome(
        "unchanged",
        path=settings.root,
        counts={"rows": len(rows), "disk_free": free},
        extra={"rows": [shelf.as_dict(row) for row in rows], "refreshes": [asdict(each) for each in refreshes]},
        lines=[*lines, f"{shelf.size(free)} are free on this disk"] if lines else nothing,
        always=True,
    )


def _hours(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text.strip())
    if not found:
        raise errors.BadConfig(f"--max-age {text}: no length of time", hint="for example 90m, 36h or 7d")
    return float(found[1]) * {"m": 1 / 60, "h": 1, "d": 24}[found[2]]


@click.command(cls=Command)
@click.argument("reference", metavar="[ARTIFACT]", default="")
@click.option("--deep", is_flag=True, help="Hash every byte; without it only what was touched since.")
def verify(settings: Settings, reference: str, deep: bool) -> Outcome:
    """Check that published files are as they were published."""
    from pipeline.maintenance import verify as maintenance_verify
    from pipeline.store import artifact

    checked = list(maintenance_verify.verify(settings.root, reference, deep=deep))
    found = [problem for _, problems in checked for problem in problems]
    if found:
        for problem in found[1:]:
            settings.progress.note(problem)
        more = f" (and {len(found) - 1} more, above)" if len(found) > 1 else ""
        raise errors.BadData(f"{found[0]}{more}", hint="delete that file, then run its stage or `refresh` again")
    for path in artifact.generations(settings.root):
        for name in artifact.unlisted(artifact.read(path)):
            settings.progress.note(f"{path / name}: in no manifest, and so read by nobody")
    how = "every byte" if deep else "every size"
    return Outcome(
        "unchanged", path=settings.root, counts={"checked": len(checked)}, lines=[f"{len(checked)} whole by {how}"]
    )


@click.command(cls=Command)
@click.argument("reference", metavar="KIND/NAME")
@click.option("--to", default="", metavar="KEY", help="The generation to go to (default: the one before).")
def rollback(settings: Settings, reference: str, to: str) -> Outcome:
    """Go back to an earlier generation, as tokens/pile; the next refresh does not take the newer one again."""
    from pipeline.maintenance import retention as generations

    done = generations.rollback(settings.root, reference, to=to)
    left = f", {done.left} is set aside" if done.left and done.result != "unchanged" else ""
    lines = [f"{done.result}: {done.artifact.ref} is current{left}"]
    return Outcome(done.result, done.artifact.ref, done.artifact.path, extra={"left": done.left}, lines=lines)


@click.command(cls=Command)
@click.option("--keep", type=int, default=2, show_default=True, help="Newest generations to keep of each artifact.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
def prune(settings: Settings, keep: int, dry_run: bool) -> Outcome:
    """Delete old generations that nothing needs: not current, not in use, not what a run was made from."""
    from pipeline.maintenance import retention as generations
    from pipeline.maintenance.status import size

    rows = generations.prune(settings.root, keep=keep, dry_run=dry_run)
    gone = [row for row in rows if row.removed]
    freed = sum(row.bytes for row in gone)
    verb = "would go" if dry_run else "gone"
    lines = [f"{verb if row.removed else 'stays':<8} {row.ref:<48} {size(row.bytes):>10}  {row.why}" for row in rows]
    return Outcome(
        "unchanged" if dry_run or not gone else "built",
        path=settings.root,
        counts={"removed": len(gone), "bytes": freed},
        extra={"rows": [asdict(row) for row in rows]},
        lines=[*lines, f"{len(gone)} {verb}, {size(freed)}"],
    )


@click.command(cls=Command)
@click.argument("recipe", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option("--at", default="03:30", show_default=True, metavar="HH:MM", help="When, each day.")
@click.option("--kind", type=click.Choice(["cron", "systemd"]), default="cron", show_default=True)
@click.option("--through", default="", metavar="STAGE", help="The last stage to run (default: train).")
@click.option("--ping-url", default="", metavar="URL", help="A monitor to tell; see `refresh`.")
def schedule(settings: Settings, recipe: Path, at: str, kind: str, through: str, ping_url: str) -> Outcome:
    """Print what makes cron or systemd refresh a recipe every day; installing it is left to you."""
    from pipeline.maintenance import schedule as plan
    from pipeline.refresh import recipe as recipes

    job = plan.Job(
        recipe=recipes.find(recipe),
        root=settings.root,
        python=Path(sys.executable),
        program=PROGRAM,
        at=at,
        through=through,
        ping_url=ping_url,
    )
    text = plan.cron(job) if kind == "cron" else plan.systemd(job)
    return Outcome("unchanged", extra={"text": text}, lines=[text.rstrip("\n")], always=True)


@click.command(cls=Command)
@click.option("--cron", is_flag=True, help="Look again as cron would: no terminal, and an empty environment.")
@click.option("--offline", is_flag=True, help="Do not ask the endpoint.")
def doctor(settings: Settings, cron: bool, offline: bool) -> Outcome:
    """Check whether this machine can be trusted with it: disk, locks, clock, network, versions."""
    from pipeline.maintenance import doctor as examination
    from pipeline.sources.catalogue import HUB
    from pipeline.sources.http import server_date

    if cron:
        options = ["--offline"] if offline else []
        command = [sys.executable, str(PROGRAM), "--artifacts", str(settings.root.absolute()), "doctor", *options]
        done = examination.under_cron(command)
        lines = (done.stdout + done.stderr).splitlines()
        result = "failed" if done.returncode else "unchanged"
        return Outcome(result, extra={"output": lines}, lines=lines, always=True, exit_code=done.returncode)
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    findings = examination.examine(settings.root, ask=None if offline else lambda: server_date(endpoint))
    failed = any(each.state == "fail" for each in findings)
    lines = [
        f"{each.state:<5} {each.name:<14} {each.what}" + (f" — {each.hint}" if each.hint else "") for each in findings
    ]
    return Outcome(
        "failed" if failed else "unchanged",
        path=settings.root,
        extra={"findings": [asdict(each) for each in findings]},
        lines=lines,
        always=True,
        exit_code=errors.BadConfig.exit_code if failed else 0,
    )
