"""Sampling of the next token from logits, its options, and the record of a sampled token.

torch is imported inside the function, so that a command can offer the options without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.settings import Range
from pipeline.errors import BadConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SEED_LIMIT = 1 << 63
_MIN_TEMPERATURE = 1e-6  # fp32 overflows below it
_MAX_COUNT = 1 << 31
RANGES = {  # the server accepts the same
    "max_tokens": Range(1, _MAX_COUNT),
    "temperature": Range(0.0, 100.0),
    "top_k": Range(0, _MAX_COUNT),
    "top_p": Range(0.0, 1.0),
    "min_p": Range(0.0, 1.0),
    "repetition_penalty": Range(0.1, 10.0),
    "frequency_penalty": Range(-2.0, 2.0),
    "presence_penalty": Range(-2.0, 2.0),
    "seed": Range(0, SEED_LIMIT - 1),
    "candidates": Range(0, _MAX_COUNT),
}


@dataclass(frozen=True)
class SampleOptions:
    """Options of sampling, and of when a generated text ends.

    The defaults are those of `sample`, recipes, the web page and the samples of a training: moderate randomness from
    the temperature, and min-p (Nguyen et al. 2024) against very unlikely tokens, which makes top-k and top-p redundant.

    temperature         0 (and anything below 1e-6), or `greedy`, takes the most likely token
    top_k               sample among the k most likely tokens; 0: all
    top_p               sample among the fewest most likely tokens whose probabilities add up to p; 1: all
    min_p               sample among the tokens at least min_p times as likely as the most likely one; 0: all
    repetition_penalty  divide positive logits of tokens that already occurred within the block size, and multiply
                        negative ones, by this (Keskar et al. 2019); 1: no penalty
    frequency_penalty   subtract this from the logit of a token for each time that it was generated; 0: no penalty
    presence_penalty    subtract this once from the logit of each token that was generated; 0: no penalty
    stop                texts that end a generated text, which does not include them
    candidates          number of most likely tokens to report at each step
    """

    max_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    greedy: bool = False
    seed: int = 1
    stop: tuple[str, ...] = ()
    candidates: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name, values in RANGES.items():
            if (value := getattr(self, name)) not in values:
                option = name.replace("_", "-")
                raise BadConfig(f"{option} must be {values}, got {value!s:.60}", hint=f"choose another --{option}")
        if not self.top_p:
            raise BadConfig(
                "top-p must be above 0", hint="1 samples from all tokens, a small number from the likeliest"
            )
        if not all(self.stop):
            raise BadConfig("a stop text must not be empty", hint="leave out --stop")


@dataclass(frozen=True)
class Candidate:
    """A possible next token. `probability` is the network's own, before temperature and truncation."""

    token_id: int
    text: str
    probability: float


@dataclass(frozen=True)
class SampledToken:
    """A sampled token, the `text` that it completes, and the most likely `candidates` if the options ask for them."""

    chosen: Candidate
    text: str
    candidates: tuple[Candidate, ...] = ()


def sample_token(
    logits: Tensor,
    options: SampleOptions,
    generator: torch.Generator,
    context: Sequence[int] = (),
    generated: Sequence[int] = (),
) -> int:
    """Return one id sampled from logits (V,).

    `context` are the earlier ids, for the repetition penalty; `generated` are the ids after the prompt, for the
    frequency and the presence penalty.
    """
    import torch

    if options.repetition_penalty != 1 and context:
        repeated = torch.tensor(sorted({token for token in context if token < len(logits)}))
        values, penalty = logits[repeated], options.repetition_penalty
        logits = logits.index_copy(0, repeated, torch.where(values > 0, values / penalty, values * penalty))
    if generated and (options.frequency_penalty or options.presence_penalty):
        counts = torch.bincount(torch.tensor(generated), minlength=len(logits))
        logits = logits - options.frequency_penalty * counts - options.presence_penalty * (counts > 0)
    if options.greedy or options.temperature < _MIN_TEMPERATURE:
        return int(logits.argmax())
    ids = None  # the ids of `logits`, after these are sorted by decreasing value
    if 0 < options.top_k < len(logits):
        logits, ids = logits.topk(options.top_k)
    elif options.top_p < 1:
        logits, ids = logits.sort(descending=True)
    probabilities = ((logits - logits.max()) / options.temperature).softmax(-1)
    if options.top_p < 1:
        mass_before = probabilities.cumsum(0) - probabilities  # of more likely tokens; the first token always stays
        probabilities[1:][mass_before[1:] >= options.top_p] = 0
    if options.min_p:
        probabilities[probabilities < options.min_p * probabilities.max()] = 0
    # Inverse transform sampling: one draw per token, for vocabularies of any size.
    cumulative = probabilities.double().cumsum(0)
    threshold = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
    index = int(torch.searchsorted(cumulative, threshold, right=True).clamp(max=len(cumulative) - 1))
    return index if ids is None else int(ids[index])
