"""The folder of a published run: all that `sample` needs. This module does not import torch.

runs/<name>/<key>/config.json       the preset, with every number resolved
                  tokenizer.json    and the tokenizer's model file, so that sampling needs nothing outside this folder
                  checkpoints/      the last checkpoint, and the best one if it is a different one
                  metrics.csv       losses, learning rates, gradient norms and memory over the steps
                  log.jsonl         all events of the training
                  samples.jsonl     a generated text for each evaluation
                  losses.safetensors  the loss of each validation token at the end
                  loss.png, .svg    the loss curve, with the losses of simple baselines
                  result.json       final numbers (`Result`)
                  ngrams.npy        with the setting `ngram`: the ids of the training text, to be counted
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pipeline import tokenizers
from pipeline.errors import BadData, InputMissing
from pipeline.runtime.regular_file import read_regular
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer

RESULT, CONFIG, CHECKPOINTS, NGRAMS = "result.json", "config.json", "checkpoints", "ngrams.npy"
Report = Callable[[str], None]


# The folder of a checkpoint, and no other path.
CheckpointName = Annotated[str, msgspec.Meta(pattern=r"\Astep-[0-9]+\Z")]


class Result(msgspec.Struct, frozen=True):
    """Final numbers of a training.

    Losses are in nats per token on the validation set, and None for imported runs, which were never evaluated here.
    `last` and `best` are folder names of checkpoints. `mfu` is the fraction of the device's peak FLOP/s that was used,
    None if the peak is unknown. `waited` is the fraction of the training time spent waiting for batches. `baselines`
    are bits per character of simple models on the validation set, by name, and `val_characters` the characters of the
    validation set, 0 if they were not counted. `ended_early` is the reason why the training ended before its planned
    length, "" if it did not.

    `task` is "sft" or "dpo" for a tuned run, and `tuning` its numbers before and after: bits per character of held-out
    answers, or margin, accuracy and KL of held-out pairs; and bits per character of the text that the base model held
    out, unless the `note` says why that was not measured.
    """

    steps: int
    tokens: int
    parameters: int
    last: CheckpointName
    best: CheckpointName
    device: str = ""
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    mfu: float | None = None
    val_loss: float | None = None
    bits_per_char: float | None = None
    bits_per_byte: float | None = None
    first_bits_per_char: float | None = None
    best_val_loss: float | None = None
    best_bits_per_char: float | None = None
    steps_before: int = 0  # of the earlier runs that this one continues
    epochs: float = 0.0  # over the training split, including those of earlier runs
    waited: float = 0.0
    baselines: dict[str, float] = {}
    ended_early: str = ""
    task: str = ""
    tuning: dict[str, float] = {}
    note: str = ""
    val_characters: int = 0


def describe_tuning(result: Result) -> list[str]:
    """Describe the numbers of a tuning for a person; nothing for other trainings."""
    numbers, lines = result.tuning, []
    if "answers_after" in numbers:
        lines.append(f"answers {numbers['answers_before']:.3f} → {numbers['answers_after']:.3f} bits per character")
    if "accuracy_after" in numbers:
        lines.append(
            f"pairs: accuracy {numbers['accuracy_after']:.0%}, margin {numbers['margin_after']:.2f}, "
            f"KL {numbers['kl_after']:.3f} nats per token"
        )
    if "base_after" in numbers:
        before, after = numbers["base_before"], numbers["base_after"]
        lines.append(f"forgotten: the base model's validation text {before:.3f} → {after:.3f} bits per character")
    return lines + [result.note] * bool(result.note)


def read_preset_name(folder: Path) -> str:
    """Return the name of the preset that the run in `folder` was trained with; single numbers may differ from it."""
    try:
        return str(msgspec.json.decode(read_regular(folder / CONFIG), type=dict[str, Any]).get("preset", ""))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(f"{folder / CONFIG}: {error}", hint="`train` it again") from None


def read_result(folder: Path) -> Result:
    """Read the result of the run in `folder`. Raises BadData if it is missing or unreadable."""
    try:
        return msgspec.json.decode(read_regular(folder / RESULT), type=Result)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(f"{folder / RESULT}: {error}", hint="`train` it again") from None


def require_intact(run: Artifact, checkpoint: Path) -> None:
    """Verify the files of a run that are needed to load `checkpoint`, before any library parses them.

    Raises InputMissing if a file is missing and BadData if one has changed since it was published.
    """
    folder = f"{checkpoint.relative_to(run.path)}/"

    def is_needed(name: str) -> bool:
        return (name.startswith(folder) and not name.endswith("optimizer.safetensors")) or "/" not in name

    if problems := artifact.find_problems(run, deep=True, include=is_needed):
        error_type = InputMissing if problems[0].endswith(": missing") else BadData
        raise error_type(problems[0], hint="`train` it again, or name another run")


def open_tokenizer(run: Artifact) -> Tokenizer:
    """Open the tokenizer of a run. Raises BadData if its fingerprint differs from the manifest's."""
    tokenizer = tokenizers.open_folder(run.path)
    if tokenizer.fingerprint != run.manifest.tokenizer:
        raise BadData(
            f"{run.path}: the tokenizer is {tokenizer.fingerprint}, expected {run.manifest.tokenizer}",
            hint="files of different runs were mixed; train the run again",
        )
    return tokenizer


def checkpoint_path(run: Artifact, which: str) -> Path:
    """Return the folder of the "best" or the "last" checkpoint."""
    result = read_result(run.path)
    return run.file(CHECKPOINTS) / (result.last if which == "last" else result.best)
