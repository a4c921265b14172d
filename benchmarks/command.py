"""The bench command: side-by-side benchmarks, run from a checkout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.rows import Row
from model.commands.options import parse_key_values
from pipeline import errors
from pipeline.commands.console import Command, Number, Outcome, Settings


@dataclass(frozen=True)
class _Options:
    """The options of all benchmarks; each benchmark uses some of them."""

    files: tuple[Path, ...]
    rounds: int
    size: int  # MB
    minutes: float
    preset: str
    overrides: Mapping[str, str]
    tokenizer: str
    seed: int
    report: Callable[[str], None]


# A benchmark's libraries are imported only when it runs: `--help` must answer at once.


def _download(options: _Options) -> list[Row]:
    from benchmarks import download

    return download.bench(options.rounds, report=options.report)


def _clean(options: _Options) -> list[Row]:
    from benchmarks import clean

    return clean.bench(options.rounds, report=options.report)


def _tokenize(options: _Options) -> list[Row]:
    from benchmarks import tokenize

    return tokenize.bench(options.rounds, shards=options.files, size=options.size, report=options.report)


def _batches(options: _Options) -> list[Row]:
    from benchmarks import batches

    return batches.bench(options.rounds)


def _train(options: _Options) -> list[Row]:
    from benchmarks import train

    return train.bench(options.rounds, options.report)


def _tuning(options: _Options) -> list[Row]:
    from benchmarks import tuning

    return tuning.bench(options.rounds, options.report)


def _sample(options: _Options) -> list[Row]:
    from benchmarks import sample

    return sample.bench(options.rounds, options.report)


def _loss(options: _Options) -> list[Row]:
    if len(options.files) < 2:
        raise errors.BadConfig(
            f"bench loss needs 2 text files or more, got {len(options.files)}",
            hint="run `bench loss TRAIN.txt VAL.txt`",
        )
    from benchmarks import loss

    *train, val = options.files
    return loss.bench(
        train,
        val,
        options.minutes,
        options.preset,
        options.seed,
        options.report,
        options.overrides,
        options.tokenizer,
    )


_BENCHMARKS: dict[str, Callable[[_Options], list[Row]]] = {
    "download": _download,
    "clean": _clean,
    "tokenize": _tokenize,
    "batches": _batches,
    "train": _train,
    "tuning": _tuning,
    "sample": _sample,
    "loss": _loss,
}
_GPU = "gpu"  # claims about one device, instead of comparisons
_DEFAULT = [name for name in _BENCHMARKS if name != "loss"]  # loss needs two texts and minutes of training


class _BenchmarkName(click.Choice[str]):
    """A choice whose wrong value is a configuration error (exit code 78), not a usage error (2)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            raise errors.BadConfig(
                f"unknown benchmark {value!r}", hint=f"choose one of {', '.join(self.choices)}"
            ) from error


@click.command(cls=Command, short_help="Measure against other tools.")
@click.argument("name", type=_BenchmarkName([*_BENCHMARKS, _GPU]), required=False)
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each side; the median counts."
)
@click.option(
    "--size", type=click.IntRange(8), default=256, show_default=True, help="MB of text that tokenize generates."
)
@click.option("--minutes", type=Number(), default=5, show_default=True, help="Training time for loss.")
@click.option(
    "--preset",
    default="shuihu-fast",
    show_default=True,
    help="Preset that loss trains; auto: chosen; plain-loop: as nanoGPT.",
)
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Override one value of the preset for loss.")
@click.option(
    "--tokenizer",
    default="",
    metavar="KIND-SIZE",
    help="Tokenizer for loss, for example bpe-8000 or char (default: the preset's).",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Random seed for loss.")
@click.option("--device", default="cuda", show_default=True, help="Device that gpu checks.")
@click.option("--quick", is_flag=True, help="Leave out the claims of gpu that take more than half a minute.")
def bench(
    settings: Settings,
    name: str | None,
    files: tuple[Path, ...],
    rounds: int,
    size: int,
    minutes: float,
    preset: str,
    pairs: tuple[str, ...],
    tokenizer: str,
    seed: int,
    device: str,
    quick: bool,
) -> Outcome:
    """Compare Inkstone with other tools that do the same work, alternately on this machine.

    Without a name, all benchmarks except loss and gpu run. `bench tokenize SHARD...` measures your own shards, not
    generated ones. `bench loss TRAIN... VAL` trains on all texts but the last and reports the bits per character of the
    last. `bench gpu` checks what Inkstone claims about a GPU, one line per claim (docs/gpu.md).
    """
    if missing := [path for path in files if not path.is_file()]:
        raise errors.InputMissing(f"{missing[0]}: no such file", hint="check the path")
    report = settings.progress.note
    if name == _GPU:
        return _check_gpu(device, report, quick=quick)
    options = _Options(files, rounds, size, minutes, preset, parse_key_values(pairs), tokenizer, seed, report)
    rows = [row for benchmark in ([name] if name else _DEFAULT) for row in _BENCHMARKS[benchmark](options)]
    return Outcome(
        "unchanged",
        extra={"rows": [asdict(row) | {"ratio": row.ratio} for row in rows]},
        lines=[row.line() for row in rows],
        always=True,
    )


def _check_gpu(device: str, report: Callable[[str], None], *, quick: bool) -> Outcome:
    """Measure the claims about a device; exit with 1 if one of them fails."""
    from benchmarks.gpu import check

    verdicts, path = check.bench(device, report, quick=quick)
    counts = {kind: sum(row.verdict == kind for row in verdicts) for kind in ("PASS", "FAIL", "SKIP")}
    return Outcome(
        "failed" if counts["FAIL"] else "passed",
        path=path,
        counts=counts,
        extra={"claims": [row.fields() for row in verdicts]},
        lines=[*(row.line() for row in verdicts), f"{path}: {counts}"],
        always=True,
        exit_code=1 if counts["FAIL"] else 0,
    )
