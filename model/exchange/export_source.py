"""The input of every export format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from model.runs.checkpoint import TrainState
from model.runs.run import Result
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer


@dataclass(frozen=True)
class ExportSource:
    """A run and one of its checkpoints: `weights` are the moving average if there is one.

    `texts` are the samples from training, on which the exported tokenizer is compared with ours. `quantize` is the type
    of the exported matrices, "" for float32.
    """

    run: Artifact
    preset: str
    result: Result
    state: TrainState
    tokenizer: Tokenizer
    weights: Mapping[str, Tensor]
    texts: tuple[str, ...]
    quantize: str = ""
