"""Options that several commands of the model share."""

from __future__ import annotations

import os

import click

from pipeline import errors

PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "int8"]),
    default="auto",
    show_default=True,
    help="Precision of the weights. auto: bf16 where it is faster than fp32; int8: CPU only, fastest for few texts.",
)
DEVICE = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="[auto|cuda|mps|cpu]",
    help="Device to compute on; auto uses the first of cuda, mps and cpu that is available.",
)
CHECKPOINT = click.option(
    "--checkpoint",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Checkpoint of the run: the one with the lowest validation loss, or the last one.",
)


def is_secondary_rank() -> bool:
    """Return True on every torchrun process except rank 0, which reports for all of them."""
    return os.environ.get("RANK", "0") != "0"


def parse_key_values(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the values of `--set KEY=VALUE` options by key. Raises BadConfig for one without an equals sign."""
    for pair in pairs:
        if "=" not in pair:
            raise errors.BadConfig(f"--set {pair}: not of the form key=value", hint="for example --set dropout=0.2")
    return dict(pair.split("=", 1) for pair in pairs)
