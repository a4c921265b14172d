"""The presets command."""

from __future__ import annotations

from typing import Any

import click

from model.commands.options import DEVICE
from pipeline.commands.console import Command, Outcome, Settings
from pipeline.commands.options import refuse_options

_EXPORTS = dict.fromkeys(("gpt2", "gpt_neox", "qwen3"), "transformers, GGUF") | {"fast": "transformers"}


@click.command(cls=Command)
@click.option(
    "--vocab-size",
    type=click.IntRange(1),
    metavar="N",
    default=8000,
    show_default=True,
    help="Number of token ids, for presets that leave it to the tokenizer.",
)
@click.option("--settings", "lists_settings", is_flag=True, help="List the settings that --set can change.")
@DEVICE
def presets(settings: Settings, vocab_size: int, lists_settings: bool, device: str) -> Outcome:
    """List the presets that `train` can use.

    With --settings, list the settings of a preset that `--set` can change.

    The minutes are those of the preset's own number of steps on this machine. They are estimated from the floating
    point operations of each preset and the speed of a training step of one of them, which is measured.

    \b
    Example:
      inkstone presets --vocab-size 50257
    """
    if lists_settings:
        refuse_options("has no effect beside --settings", "vocab_size", "device")
        return _list_settings()
    from model.presets import PRESETS

    with settings.progress.wait("measuring the speed of this machine"):
        from model.device import pick_device
        from model.training.trial import measure_flops

        picked = pick_device(device)
        rate = measure_flops(PRESETS["small"], picked)
    rows = [_row(name, vocab_size, rate) for name in PRESETS]
    header = f"{'preset':<15} {'parameters':>12} {'minutes':>12}  {'family':<8}  {'exports to':<18}  description"
    lines = [header]
    lines += [
        f"{row['name']:<15} {row['parameters'] / 1e6:>11,.2f}M {_minutes(row)}  {row['family']:<8}  "
        f"{row['exports']:<18}  {row['description']}"
        for row in rows
    ]
    lines.append(
        f"minutes: estimated from {rate / 1e9:,.0f} GFLOP/s in a training step of small, measured on {picked}; "
        f"* set by the preset. Vocabulary: {vocab_size:,}, or the preset's own"
    )
    return Outcome("unchanged", extra={"presets": rows, "flops_per_second": rate}, lines=lines, always=True)


def _list_settings() -> Outcome:
    """List every setting with its default, its values and its meaning."""
    from model.config import defaults
    from model.settings import SETTINGS

    rows = [
        {"name": name, "default": default, "values": setting.expected, "meaning": setting.meaning}
        for (name, setting), default in zip(SETTINGS.items(), defaults().values(), strict=True)
    ]
    lines = [f"{row['name']:<18} {row['meaning']} ({row['values']}; default {row['default']})" for row in rows]
    return Outcome("unchanged", extra={"settings": rows}, lines=lines, always=True)


def _row(name: str, vocab_size: int, rate: float) -> dict[str, Any]:
    """Describe a preset whose training does `rate` floating point operations a second."""
    from model.config import resolve_vocab_size
    from model.presets import get_preset

    preset = get_preset(name)
    train = preset.train
    model = resolve_vocab_size(preset.model, min(vocab_size, preset.model.vocab_size or vocab_size))
    seconds = train.steps * train.batch_size * model.block_size * model.flops_per_token / rate
    return {
        "name": name,
        "parameters": model.parameters,
        "minutes": train.minutes or float(f"{seconds / 60:.2g}"),
        "is_estimated": not train.minutes,
        "family": preset.family,
        "exports": _EXPORTS[preset.family],
        "tokenizer": preset.tokenizer,
        "description": preset.source,
    }


def _minutes(row: dict[str, Any]) -> str:
    marker = " " if row["is_estimated"] else "*"
    return f"{row['minutes']:>11,.{0 if row['minutes'] >= 10 else 1}f}{marker}"
