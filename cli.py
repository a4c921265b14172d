"""The command line: register the commands, run one, turn errors into exit codes.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from model import commands as model_commands
from model.commands.options import follows
from pipeline import commands as pipeline_commands
from pipeline import errors
from pipeline.commands import console
from pipeline.commands.console import Command, Group, Outcome, Settings
from pipeline.runtime.redaction import redacted

_IDLE = 0.5  # processes that wanted to run in the last minute
_BENCHMARKS = Path(__file__).resolve().parent / "benchmarks" / "command.py"


@click.group(cls=Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="inkstone", prog_name="inkstone")
@click.pass_context
def cli(context: click.Context, **_: Any) -> None:
    """From raw text to a trained compact GPT, one stage at a time.

    Text: download, decompress, clean. Tokens: train-tokenizer, tokenize. Model: train, sample, serve.
    `refresh` runs all of it for a recipe, as far as it is stale; `demo` runs it on the text that comes along.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1)
def bench_without_checkout(settings: Settings, arguments: tuple[str, ...]) -> Outcome:
    """Measure this program beside others (needs a checkout of the source)."""
    raise errors.BadConfig(
        "bench needs the folder benchmarks/, which only a checkout of the source has",
        hint="clone the repository and run `python cli.py bench` there",
    )


def _bench() -> click.Command:
    if not _BENCHMARKS.is_file():
        return bench_without_checkout
    from benchmarks.command import bench

    return bench


for command in (*pipeline_commands.COMMANDS, *model_commands.COMMANDS):
    cli.add_command(command)
cli.add_command(_bench(), "bench")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. The one place where errors become messages and codes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    start = time.monotonic()
    # torch's threads spin while they wait unless told otherwise before it loads. On a machine that does anything else
    # that makes training several times slower, and sleeping at once a third where products are small: so they spin
    # for a moment, and longer where the machine is idle (benchmarks/NOTES.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        rounds = "10000" if os.getloadavg()[0] < _IDLE else "2000"
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", rounds)}
    try:
        return cli.main(arguments, prog_name="inkstone", standalone_mode=False) or 0
    except SystemExit:  # click's answer to a reader that went away, as `| head` does
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - nothing may end in a bare traceback
        if "--debug" in arguments:
            traceback.print_exc()
        failed = console.explain(error)
    met = isinstance(failed, (errors.TryAgain, errors.BadConfig, errors.TrainingDiverged))  # by all processes
    if follows() and (met or failed.told):
        return failed.exit_code
    what, hint = redacted(failed.what), redacted(failed.hint)
    with suppress(OSError, ValueError):  # nobody may be listening
        print(f"error: {what}" + (f" — {hint}" if hint else ""), file=sys.stderr, flush=True)
    if "--json" in arguments:
        failure = Outcome("failed", extra={"error": what, "hint": hint}, exit_code=failed.exit_code)
        print(failure.as_json(time.monotonic() - start))
    return failed.exit_code


if __name__ == "__main__":
    sys.exit(main())
