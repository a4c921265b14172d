"""What all commands share: the global options, the settings they make, and how an outcome is shown.

Commands return an `Outcome`; here it becomes the one JSON object of --json, or lines for a person. SIGTERM asks a
command to end at its next safe point; a second one ends it at once.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from pipeline import errors
from pipeline.runtime import progress
from pipeline.runtime.signals import _stopped_by_sigterm


@dataclass(frozen=True)
class Settings:
    """The options that every command takes."""

    root: Path
    quiet: bool
    json: bool
    progress: progress.Progress
    run_id: str


@dataclass
class Outcome:
    """What a command has to say: fields of the --json object, and the lines that a person sees instead."""

    result: str
    artifact: str | None = None
    path: Path | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    ledger: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    always: bool = False  # the lines are what was asked for: --quiet does not silence them
    exit_code: int = 0
    silent: bool = False  # another process says it

    def as_json(self, seconds: float) -> str:
        fields = {
            "result": self.result,
            "artifact": self.artifact,
            "path": str(self.path) if self.path else None,
            "counts": self.counts,
            "ledger": self.ledger,
            "seconds": round(seconds, 3),
            "exit_code": self.exit_code,
            **self.extra,
        }
        return json.dumps(fields, ensure_ascii=False)


def _global_options() -> list[click.Option]:
    where = "Folder of all artifacts (default: $INKSTONE_ARTIFACTS, or artifacts)."
    return [
        click.Option(["--artifacts"], type=click.Path(path_type=Path), metavar="DIR", help=where),
        click.Option(["-q", "--quiet"], is_flag=True, help="Say nothing on success."),
        click.Option(["--json"], is_flag=True, help="Print one JSON object at the end, and nothing else."),
        click.Option(["--log-json"], type=click.Path(path_type=Path), metavar="FILE", help="Append events to FILE."),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
    ]


class Command(click.Command):
    """A command that takes the global options too, hands `Settings` to its function, and prints the Outcome."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()

    def invoke(self, context: click.Context) -> None:
        start = time.monotonic()
        given = {name: context.params.pop(name) for name in ("artifacts", "quiet", "json", "log_json", "debug")}
        before = context.parent.params if context.parent else {}
        chosen = {name: value or before.get(name) for name, value in given.items()}
        stop = threading.Event()
        settings = _settings(chosen, stop)
        try:
            with _stopped_by_sigterm(stop):
                outcome: Outcome = self.callback(settings, **context.params) if self.callback else Outcome("unchanged")
        except BaseException as error:
            failed = explain(error)
            settings.progress.event("exit", result="failed", code=failed.exit_code, error=failed.what)
            raise
        settings.progress.event("exit", result=outcome.result, code=outcome.exit_code)
        outcome.extra.setdefault("run_id", settings.run_id)
        if outcome.silent:
            context.exit(outcome.exit_code)
        if settings.json:
            click.echo(outcome.as_json(time.monotonic() - start))
        elif outcome.lines and (outcome.always or not settings.quiet):
            click.echo("\n".join(outcome.lines))
        context.exit(outcome.exit_code)


class Group(click.Group):
    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the work, not of the alphabet


def _settings(chosen: dict[str, Any], stop: threading.Event) -> Settings:
    is_terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    kind = progress.Silent if chosen["quiet"] else progress.Bars if is_terminal else progress.Lines
    shown: progress.Progress = kind(stop)
    run_id = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
    if chosen["log_json"]:
        shown = progress.Logged(shown, chosen["log_json"], run_id)
    root = chosen["artifacts"] or Path(os.environ.get("INKSTONE_ARTIFACTS") or "artifacts")
    return Settings(root, bool(chosen["quiet"]), bool(chosen["json"]), shown, run_id)


def explain(error: BaseException) -> errors.InkstoneError:
    """What an error means for the person who ran the command."""
    if isinstance(error, click.ClickException):
        return _Usage(error.format_message(), hint="see --help")
    return errors.explain(KeyboardInterrupt() if isinstance(error, click.Abort) else error)


class _Usage(errors.InkstoneError):
    exit_code = 2
