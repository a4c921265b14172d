"""A run: what a training is made from, and what `sample` opens again. Imports no torch by itself.

runs/<name>/<key>/config.json       the preset with all its numbers
                  tokenizer.json    and the model file: sampling needs nothing outside this folder
                  checkpoints/      the last one, and the best one where that is another
                  metrics.csv       losses, rates and norms of gradients over the steps
                  log.jsonl         all that happened
                  samples.jsonl     a continuation at each evaluation
                  loss.png, .svg    the curve, over what simpler models would score
                  result.json       what it came to
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from pipeline import tokenizers
from pipeline.errors import BadData, InputMissing
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer

RESULT, CONFIG, CHECKPOINTS = "result.json", "config.json", "checkpoints"
Report = Callable[[str], None]


class Result(msgspec.Struct, frozen=True):
    """What a training came to. Losses in nats per token on the validation set, None of a run that was imported, and
    so was never evaluated here; the checkpoints by folder name.

    `mfu` is the share of the device's peak that was used, None where the peak is not known; `waited` the share of the
    time in which no batch was ready.
    """

    steps: int
    tokens: int
    parameters: int
    last: str
    best: str
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
    steps_before: int = 0  # of the runs that it went on from
    epochs: float = 0.0  # of the training split, those runs' included
    waited: float = 0.0


def read_preset_name(folder: Path) -> str:
    """The name of the preset whose numbers the run in `folder` has, as they are or with others in their place."""
    try:
        return str(msgspec.json.decode((folder / CONFIG).read_bytes(), type=dict[str, Any]).get("preset", ""))
    except (OSError, msgspec.DecodeError) as error:
        raise BadData(f"{folder / CONFIG}: {error}", hint="`train` it again") from None


def read_result(folder: Path) -> Result:
    """What the run in `folder` came to."""
    try:
        return msgspec.json.decode((folder / RESULT).read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError) as error:
        raise BadData(f"{folder / RESULT}: {error}", hint="`train` it again") from None


def require_whole(run: Artifact, checkpoint: Path) -> None:
    """Raise InputMissing or BadData where what is needed of a run, with one of its checkpoints, is not as it was
    published: before a library sees bytes that nobody vouches for."""
    folder = f"{checkpoint.relative_to(run.path)}/"

    def needed(name: str) -> bool:
        return (name.startswith(folder) and not name.endswith("optimizer.safetensors")) or "/" not in name

    if found := artifact.problems(run, deep=True, only=needed):
        kind = InputMissing if found[0].endswith(": missing") else BadData
        raise kind(found[0], hint="`train` it again, or name another run")


def open_tokenizer(run: Artifact) -> Tokenizer:
    """The tokenizer of a run. Raises BadData where it is not the one of its manifest."""
    made = tokenizers.open_folder(run.path)
    if made.fingerprint != run.manifest.tokenizer:
        what = f"{run.path}: the tokenizer is {made.fingerprint}, not {run.manifest.tokenizer}"
        raise BadData(what, hint="the files were mixed; train the run again")
    return made


def checkpoint_path(run: Artifact, which: str) -> Path:
    """The folder of the "best" or the "last" checkpoint."""
    result = read_result(run.path)
    return run.file(CHECKPOINTS) / (result.last if which == "last" else result.best)
