"""The command line: register the commands, run one, turn errors into exit codes.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from model.commands import chat, doctor, exchange, presets, recipe, refresh, sample, serve, start, train
from model.commands.options import is_secondary_rank
from pipeline import errors
from pipeline.commands import buckets, clean, console, data, maintenance, report, tokens
from pipeline.commands.console import Command, Group, Outcome, Settings
from pipeline.errors import DISTRIBUTION
from pipeline.runtime import terminal
from pipeline.runtime.redaction import redact
from pipeline.runtime.terminal import printable, printable_block

_IDLE_LOAD = 0.5  # average number of runnable processes in the last minute
_BENCHMARKS = Path(__file__).resolve().parent / "benchmarks" / "command.py"


@click.command("bench", cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1)
def bench_without_checkout(settings: Settings, arguments: tuple[str, ...]) -> Outcome:
    """Measure speed (needs a source checkout)."""
    raise errors.BadConfig(
        "bench needs the folder benchmarks/, which only a checkout of the source has",
        hint="clone the repository and run `python cli.py bench` there",
    )


def _bench() -> click.Command:
    if not _BENCHMARKS.is_file():
        return bench_without_checkout
    checkout = str(_BENCHMARKS.parents[1])
    if checkout not in sys.path:  # an editable install finds only `cli`, `model` and `pipeline`
        sys.path.append(checkout)
    from benchmarks.command import bench

    return bench


SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Everything at once": (start.start, refresh.demo),
    "Data": (data.download, data.decompress, clean.clean),
    "Tokens": (tokens.train_tokenizer, tokens.tokenize, tokens.inspect),
    "Model": (
        *(train.train, presets.presets, sample.sample, chat.chat, serve.serve),
        *(exchange.import_model, exchange.export),
    ),
    "Refresh and maintenance": (
        *(refresh.refresh, recipe.recipe, report.report, maintenance.status, maintenance.verify, maintenance.rollback),
        *(maintenance.prune, maintenance.schedule, doctor.doctor, buckets.push, buckets.pull),
    ),
    "Development": (_bench(),),
}


@click.group(
    cls=Group,
    sections=SECTIONS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name=DISTRIBUTION, prog_name="inkstone")
@click.pass_context
def cli(context: click.Context, /, **_: Any) -> None:
    """From raw text to a trained compact GPT, one stage at a time.

    `inkstone start TEXT` trains a model on any text, `inkstone demo` on a bundled one. `inkstone refresh RECIPE` runs
    the stages of a recipe that are out of date. `inkstone COMMAND --help` describes one command.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. All errors become messages and exit codes here."""
    arguments = sys.argv[1:] if arguments is None else arguments
    terminal.escape_unencodable()
    _set_thread_wait_policy()
    try:
        return _run(arguments)
    finally:
        terminal.flush_or_discard()


def _run(arguments: Sequence[str]) -> int:
    start = time.monotonic()
    try:
        return cli.main(list(arguments), prog_name="inkstone", standalone_mode=False) or 0
    except SystemExit:  # click raises it when the reader of the output closes the pipe, as `| head` does
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - a bare traceback must never reach the user
        if "--debug" in arguments:
            _print_error(printable_block(redact(traceback.format_exc().rstrip("\n"))))
        failure = console.explain(error)
    if not _is_reported_by_rank_0(failure):
        _report(failure, as_json="--json" in arguments, seconds=time.monotonic() - start)
    return failure.exit_code


def _set_thread_wait_policy() -> None:
    """Set how long torch's threads spin before they sleep; OpenMP reads it when torch is loaded.

    By default they spin while they wait. On a machine with any other load that makes training several times slower,
    and sleeping at once makes it a third slower if products are small. So they spin for a short time, and longer on an
    idle machine (benchmarks/NOTES.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        spins = "10000" if os.getloadavg()[0] < _IDLE_LOAD else "2000"
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", spins)}


def _is_reported_by_rank_0(failure: errors.InkstoneError) -> bool:
    """Return True if this process is a secondary torchrun rank and rank 0 reports the same failure.

    One process of each remaining node reports a lost node, since that may be the node of rank 0.
    """
    if isinstance(failure, errors.NodeLost):
        return os.environ.get("LOCAL_RANK", "0") != "0"
    affects_all_ranks = isinstance(failure, (errors.TryAgain, errors.BadConfig, errors.TrainingDiverged))
    return is_secondary_rank() and (affects_all_ranks or failure.already_reported)


def _report(failure: errors.InkstoneError, *, as_json: bool, seconds: float) -> None:
    message, hint = redact(failure.message), redact(failure.hint)
    _print_error(printable(f"error: {message}" + (f" — {hint}" if hint else "")))
    if as_json:
        outcome = Outcome("failed", extra={"error": message, "hint": hint}, exit_code=failure.exit_code)
        with suppress(OSError, errors.StorageFailed):  # standard output may be what failed
            terminal.write(f"{outcome.as_json(seconds)}\n")


def _print_error(text: str) -> None:
    with suppress(OSError, ValueError):  # standard error may be closed
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
