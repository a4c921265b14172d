"""The bench command: side-by-side measurements, run from a checkout."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from model.commands.options import pairs_of
from pipeline import errors
from pipeline.commands.console import Command, Outcome, Settings


@click.command(cls=Command, short_help="Measure speed against other tools.")
@click.argument("what", metavar="[download|clean|tokenize|batches|train|sample|loss]", default="")
@click.argument("given", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of which the median counts.")
@click.option("--size", type=click.IntRange(8), default=256, show_default=True, help="MB of text, of tokenize.")
@click.option("--minutes", type=float, default=5, show_default=True, help="Of training, of loss.")
@click.option("--preset", default="shuihu-fast", show_default=True, help="Of loss.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Override one number of the preset, of loss.")
@click.option("--tokenizer", default="", metavar="KIND-SIZE", help="As bpe-8000 or char, of loss (default: preset's).")
@click.option("--seed", type=int, default=1, show_default=True, help="Of loss.")
def bench(
    settings: Settings,
    what: str,
    given: tuple[Path, ...],
    rounds: int,
    size: int,
    minutes: float,
    preset: str,
    pairs: tuple[str, ...],
    tokenizer: str,
    seed: int,
) -> Outcome:
    """Measure this program beside other ways of doing the same, in turn, on this machine.

    `bench tokenize SHARD...` takes shards of its own; `bench loss TRAIN.txt VAL.txt` needs two texts, and says what a
    model trained on the one makes of the other.
    """
    known = ("download", "clean", "tokenize", "batches", "train", "sample", "loss")
    if what and what not in known:
        raise errors.BadConfig(f"there is no bench {what!r}", hint=f"one of {', '.join(known)}")
    if missing := [path for path in given if not path.is_file()]:
        raise errors.InputMissing(f"{missing[0]}: no such file", hint="check the path")
    rows = []
    if what in ("", "download"):
        from benchmarks import download as transfer

        rows += transfer.bench(rounds, report=settings.progress.note)
    if what in ("", "clean"):
        from benchmarks import clean as cleaning

        rows += cleaning.bench(rounds, report=settings.progress.note)
    if what in ("", "tokenize"):
        from benchmarks import tokenize as comparison

        rows += comparison.bench(rounds, shards=given, size=size, report=settings.progress.note)
    if what in ("", "batches"):
        from benchmarks import batches

        rows += batches.bench(rounds)
    if what in ("", "train"):
        from benchmarks import train as training

        rows += training.bench(rounds, report=settings.progress.note)
    if what in ("", "sample"):
        from benchmarks import sample as sampling

        rows += sampling.bench(rounds, report=settings.progress.note)
    if what == "loss":
        from benchmarks import loss

        if len(given) != 2:
            raise errors.BadConfig("bench loss needs two texts", hint="bench loss TRAIN.txt VAL.txt")
        rows += loss.bench(*given, minutes, preset, seed, settings.progress.note, pairs_of(pairs), tokenizer)
    return Outcome(
        "unchanged",
        extra={"rows": [asdict(row) | {"ratio": row.ratio} for row in rows]},
        lines=[row.line() for row in rows],
        always=True,
    )
