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
    help="Of the weights; auto: bf16 where that is faster; int8: on a CPU, the fastest for few texts.",
)
DEVICE = click.option("--device", default="auto", show_default=True, help="cuda, mps or cpu; auto: the first there is.")


def follows() -> bool:
    """Whether this is one of several processes of torchrun, and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def pairs_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """What `--set KEY=VALUE` was given, by its keys."""
    for pair in pairs:
        if "=" not in pair:
            raise errors.BadConfig(f"--set {pair}: not of the form key=value", hint="for example --set dropout=0.2")
    return dict(pair.split("=", 1) for pair in pairs)
