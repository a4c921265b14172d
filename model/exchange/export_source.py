"""What every format of an exported model is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from model.runs.checkpoint import State
from model.runs.run import Result
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer


@dataclass(frozen=True)
class Source:
    """The run to export: the weights of one checkpoint (their average where there is one), and what is known of it.

    `texts` are what the model wrote while it was trained.
    """

    run: Artifact
    preset: str
    result: Result
    state: State
    tokenizer: Tokenizer
    weights: Mapping[str, Tensor]
    texts: tuple[str, ...]
