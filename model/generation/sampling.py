"""Sampling: choose the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import BadConfig

_SEEDS = 1 << 63
_COLDEST = 1e-6  # what fp32 can divide by


@dataclass(frozen=True)
class SampleOptions:
    """How a token is chosen, and when a text ends.

    temperature         0 (as anything below 1e-6), or `greedy`, takes the likeliest token
    top_k, top_p, min_p choose among the k likeliest (0: all), the fewest that make up p together (1: all), those at
                        least min_p times as likely as the likeliest (0: all)
    repetition_penalty  divides the logits of tokens that are there already, or multiplies them below zero (Keskar et
                        al. 2019); 1: not
    stop                texts that end a continuation; they are no part of it
    candidates          so many of the likeliest tokens are told at each step
    """

    max_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    greedy: bool = False
    seed: int = 1
    stop: tuple[str, ...] = ()
    candidates: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not 0 <= self.temperature < float("inf") or min(self.top_k, self.candidates) < 0:
            raise BadConfig("max-tokens must be 1 or more, temperature and top-k 0 or more", hint="see sample --help")
        if not (0 < self.top_p <= 1 and 0 <= self.min_p <= 1 and 0 < self.repetition_penalty < float("inf")):
            raise BadConfig(
                "top-p must be above 0 and at most 1, min-p from 0 to 1, the repetition penalty above 0",
                hint="see sample --help",
            )
        if not 0 <= self.seed < _SEEDS:
            raise BadConfig(f"the seed {self.seed} is no number from 0 to 2**63 - 1", hint="choose another --seed")
        if not all(self.stop):
            raise BadConfig("an empty text stops everything", hint="leave out --stop")


@dataclass(frozen=True)
class Candidate:
    """A token that might come next. `probability` is the network's own, before temperature and the like."""

    token_id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Token:
    """A token that was chosen, the `text` that may be shown now, and what else was likely where that was asked for."""

    chosen: Candidate
    text: str
    candidates: tuple[Candidate, ...] = ()


def choose(logits: Tensor, options: SampleOptions, generator: torch.Generator, context: Sequence[int] = ()) -> int:
    """One id from logits of shape (V,); `context` are the ids that came before."""
    if options.repetition_penalty != 1 and context:
        there = torch.tensor(sorted({token for token in context if token < len(logits)}))
        values, penalty = logits[there], options.repetition_penalty
        logits = logits.index_copy(0, there, torch.where(values > 0, values / penalty, values * penalty))
    if options.greedy or options.temperature < _COLDEST:
        return int(logits.argmax())
    ids = None  # of those that are chosen among: all of them, or the likeliest first
    if 0 < options.top_k < len(logits):
        logits, ids = logits.topk(options.top_k)
    elif options.top_p < 1:
        logits, ids = logits.sort(descending=True)
    probabilities = ((logits - logits.max()) / options.temperature).softmax(-1)
    if options.top_p < 1:
        before = probabilities.cumsum(0) - probabilities  # mass of the likelier ones; the first always stays
        probabilities[1:][before[1:] >= options.top_p] = 0
    if options.min_p:
        probabilities[probabilities < options.min_p * probabilities.max()] = 0
    # One draw a token, whatever the vocabulary: the first id by which as much probability has passed.
    passed = probabilities.double().cumsum(0)
    drawn = torch.rand((), generator=generator, dtype=torch.float64) * passed[-1]
    place = int(torch.searchsorted(passed, drawn, right=True).clamp(max=len(passed) - 1))
    return place if ids is None else int(ids[place])
