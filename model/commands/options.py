"""Options that several commands of the model share."""

from __future__ import annotations

import os

import click

from model.generation.sampling import SampleOptions
from pipeline import errors
from pipeline.commands.console import Number, option_group

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
SAMPLING = option_group(
    "Sampling",
    click.option(
        "--max-tokens",
        type=int,
        metavar="N",
        default=SampleOptions.max_tokens,
        show_default=True,
        help="Maximum number of tokens to generate.",
    ),
    click.option(
        "--temperature",
        type=Number(),
        default=SampleOptions.temperature,
        show_default=True,
        help="Sampling temperature; 0 always takes the most likely token.",
    ),
    click.option(
        "--top-k",
        type=int,
        metavar="N",
        default=SampleOptions.top_k,
        show_default=True,
        help="Sample from the k most likely tokens; 0: from all.",
    ),
    click.option(
        "--top-p",
        type=Number(),
        default=SampleOptions.top_p,
        show_default=True,
        help="Sample from the fewest tokens whose probabilities sum to p.",
    ),
    click.option(
        "--min-p",
        type=Number(),
        default=SampleOptions.min_p,
        show_default=True,
        help="Exclude tokens less likely than p times the most likely one.",
    ),
    click.option(
        "--repetition-penalty",
        type=Number(),
        default=SampleOptions.repetition_penalty,
        show_default=True,
        help="Penalty on tokens already in the text; above 1 repeats less.",
    ),
    click.option("--greedy", is_flag=True, help="Always take the most likely token."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text (repeatable)."),
    click.option(
        "--seed",
        type=int,
        metavar="N",
        default=SampleOptions.seed,
        show_default=True,
        help="Seed of the random choices.",
    ),
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
