"""Shared by all commands: global options, the layout of --help, settings, and the printing of outcomes.

A command returns an `Outcome`. It is printed as the one JSON object of --json, or as lines for a person. The first
SIGTERM asks a command to stop at its next safe point, or ends it after 1.5 seconds; the second one ends it at once.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline import errors
from pipeline.runtime import progress, terminal
from pipeline.runtime.signals import stop_on_sigterm

_GLOBAL_OPTIONS = ("artifacts", "quiet", "json", "log_json", "debug")
_PUBLISHING = ("clean", "train-tokenizer", "tokenize", "train")  # commands that publish to a bucket
_READING = ("inspect", "report", "sample", "export")  # commands that only fetch from one
_SHORT_HELP = 60  # characters of a command's line in the list of commands
_OTHER_ROOT = "name another folder with --artifacts"
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Settings:
    """The global options, as every command receives them."""

    root: Path
    quiet: bool
    json: bool
    progress: progress.Progress
    run_id: str


@dataclass
class Outcome:
    """Result of a command: fields of the --json object, and the lines printed without --json."""

    result: str
    artifact: str | None = None
    path: Path | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    ledger: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    always: bool = False  # print the lines with --quiet too: they are the answer, not a report
    exit_code: int = 0
    silent: bool = False  # print nothing: another process of this run reports the outcome

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
        return terminal.json_line(fields, encoding=getattr(sys.stdout, "encoding", None) or "utf-8")


class Choice(click.Choice[str]):
    """A fixed set of values that --help lists and the shell completes, but that the stage checks.

    Recipes and Python callers pass the same values, so the stage validates them and a wrong one exits with
    BadConfig's code (78). A plain `click.Choice` would exit with 2.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)


class Word(click.Choice[str]):
    """A word that must be the first argument. `hint` ends the hint of its error: the command for other input."""

    def __init__(self, word: str, hint: str) -> None:
        super().__init__([word])
        self._hint = hint

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            word, command = self.choices[0], ctx.info_name if ctx else ""
            hint = f"`{command} {word} NAME` summarizes {word}; {self._hint}"
            raise errors.BadConfig(f"{command} must be followed by {word}, got {value}", hint=hint)
        return str(value)


class Number(click.types.FloatParamType):
    """A finite number. Click's own type accepts "nan" and "inf", which JSON cannot represent."""

    def __init__(self, low: float = -math.inf) -> None:
        self._low = low

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isfinite(number) and number >= self._low:
            return number
        option = param.opts[-1] if param else "the value"
        expected = "a finite number" if self._low == -math.inf else f"a number of {self._low:g} or more"
        raise errors.BadConfig(f"{option} must be {expected}, got {number:g}", hint=f"give {option} another value")


def option_group(heading: str, *options: Callable[[Any], Any]) -> Callable[[_Function], _Function]:
    """Add several click options to a command and list them under `heading` in its help."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
            function.__click_params__[-1].heading = heading
        return function

    return decorate


def _write_options(command: click.Command, context: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the options of a command, each below the heading of its group."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        if not isinstance(parameter, click.Option):
            continue
        is_global = parameter.name in _GLOBAL_OPTIONS or not {"--help", "--version"}.isdisjoint(parameter.opts)
        heading = "Global options" if is_global else getattr(parameter, "heading", "Options")
        if record := parameter.get_help_record(context):
            groups.setdefault(heading, []).append(record)
    for heading, records in groups.items():
        with formatter.section(heading):
            formatter.write_dl(records)


def _global_options() -> list[click.Option]:
    return [
        click.Option(
            ["--artifacts"],
            type=click.Path(),
            metavar="DIR",
            help="Folder of all artifacts, or s3://BUCKET/PREFIX (default: $INKSTONE_ARTIFACTS, or ./artifacts).",
        ),
        click.Option(["-q", "--quiet"], is_flag=True, help="Print nothing on success."),
        click.Option(["--json"], is_flag=True, help="Print one JSON object at the end and nothing else."),
        click.Option(
            ["--log-json"], type=click.Path(path_type=Path), metavar="FILE", help="Append JSON events to FILE."
        ),
        click.Option(["--debug"], is_flag=True, help="Print the traceback of an error."),
    ]


class Command(click.Command):
    """A command with the global options. Its function receives `Settings` and returns the Outcome to print."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_options(self, ctx, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = [*args]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if names := [word for word in words if word.startswith(error.option_name) and os.path.exists(word)]:
                raise _UsageError(error.format_message(), hint=f"for the file write ./{names[0]}") from None
            raise

    def invoke(self, ctx: click.Context) -> None:
        start = time.monotonic()
        stop = threading.Event()
        settings = _settings(_pop_global_options(ctx), stop, self.name or "")
        try:
            with stop_on_sigterm(stop):
                outcome: Outcome = self.callback(settings, **ctx.params) if self.callback else Outcome("unchanged")
        except BaseException as error:
            failure = _uncreatable(error, settings.root) or explain(error)
            settings.progress.event("exit", result="failed", code=failure.exit_code, error=failure.message)
            if isinstance(error, errors.Terminated):  # click would handle it as Ctrl-C
                raise failure from None
            if isinstance(error, FileNotFoundError):  # only here it is known whether it is the folder of the artifacts
                raise failure from error
            raise
        settings.progress.event("exit", result=outcome.result, code=outcome.exit_code)
        outcome.extra.setdefault("run_id", settings.run_id)
        if outcome.silent:
            ctx.exit(outcome.exit_code)
        if settings.json:
            terminal.write(f"{outcome.as_json(time.monotonic() - start)}\n")
        elif outcome.lines and (outcome.always or not settings.quiet):
            terminal.write("".join(f"{terminal.printable(line)}\n" for line in outcome.lines))
        ctx.exit(outcome.exit_code)


class Group(click.Group):
    """The command group, with its commands listed in sections. `sections` maps each heading to its commands."""

    command_class = Command

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[click.Command]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self.params += _global_options()
        for commands in sections.values():
            for command in commands:
                self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the sections, not of the alphabet

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        _write_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for heading, commands in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(f"{command.name:<{width}}", command.get_short_help_str(_SHORT_HELP)) for command in commands]
                )


def _pop_global_options(context: click.Context) -> dict[str, Any]:
    """Remove the global options from the parameters of the command; those before the command name count too."""
    inherited = context.parent.params if context.parent else {}
    return {name: context.params.pop(name) or inherited.get(name) for name in _GLOBAL_OPTIONS}


def _settings(options: Mapping[str, Any], stop: threading.Event, command: str) -> Settings:
    is_terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    kind = (
        progress.SilentProgress if options["quiet"] else progress.BarProgress if is_terminal else progress.LineProgress
    )
    reporter: progress.Progress = kind(stop)
    run_id = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.urandom(3).hex()}"
    if options["log_json"]:
        reporter = progress.JsonLogProgress(reporter, options["log_json"], run_id)
    artifacts = options["artifacts"] or os.environ.get("INKSTONE_ARTIFACTS") or "artifacts"
    return Settings(
        _root(artifacts, command, reporter), bool(options["quiet"]), bool(options["json"]), reporter, run_id
    )


def _root(artifacts: str, command: str, reporter: progress.Progress) -> Path:
    """Return the folder of all artifacts; for a bucket, its local mirror.

    Raises BadConfig if `command` has none, CannotCreate for a file.
    """
    if "://" not in artifacts:
        root = Path(artifacts)
        existing = next((path for path in (root, *root.parents) if os.path.exists(path)), None)
        if existing and not os.path.isdir(existing):
            raise errors.CannotCreate(f"{existing}: a file, not a folder for the artifacts", hint=_OTHER_ROOT)
        return root
    if command not in (*_PUBLISHING, *_READING):
        raise errors.BadConfig(
            f"{command} works on a local folder, and --artifacts names a bucket",
            hint=f"with a bucket: {', '.join((*_PUBLISHING, *_READING))}; `pull URL` lists what is there, and"
            " `pull URL KIND/NAME` copies an artifact to a local folder",
        )
    from pipeline.store import remote

    root = remote.open_mirror(artifacts)
    if command in _PUBLISHING and (note := remote.require_conditions(root)):
        reporter.note(note)
    return root


def _uncreatable(error: BaseException, root: Path) -> errors.CannotCreate | None:
    """Return the error for a folder of the artifacts that the system refuses to create, None for any other error."""
    if not isinstance(error, FileNotFoundError) or Path(error.filename or "") not in (root, *root.parents):
        return None
    return errors.CannotCreate(f"{root}: cannot create the folder of the artifacts here", hint=_OTHER_ROOT)


def explain(error: BaseException) -> errors.InkstoneError:
    """Return any error as an InkstoneError with message, hint and exit code; click's usage errors exit with 2."""
    if isinstance(error, click.ClickException):
        return _UsageError(error.format_message(), hint="see --help")
    return errors.to_inkstone_error(KeyboardInterrupt() if isinstance(error, click.Abort) else error)


class _UsageError(errors.InkstoneError):
    exit_code = 2
