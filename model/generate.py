"""Sampling: one token after another from a trained model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.gpt import GPT
from pipeline.errors import BadConfig
from pipeline.tokenizers import Tokenizer


@dataclass(frozen=True)
class SampleOptions:
    """How a token is chosen: `temperature` 0 or `greedy` takes the likeliest, `top_k` 0 and `top_p` 1 keep all."""

    max_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise BadConfig(
                "max-tokens must be 1 or more, temperature and top-k 0 or more, top-p above 0 and at most 1",
                hint="see sample --help",
            )


@dataclass(frozen=True)
class Sample:
    """A continuation: `text` and `token_ids` are what follows the prompt."""

    prompt: str
    text: str
    token_ids: list[int]
    seconds: float


def sample(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[tuple[str, list[int]]], options: SampleOptions
) -> list[Sample]:
    """Continue each prompt, given as its text and its ids. Sample i draws from a generator seeded by `seed` + i."""
    model.eval()
    return [
        _continue(model, tokenizer, text, ids, options, options.seed + number)
        for number, (text, ids) in enumerate(prompts)
    ]


@torch.inference_mode()
def _continue(model: GPT, tokenizer: Tokenizer, text: str, ids: list[int], options: SampleOptions, seed: int) -> Sample:
    start = time.monotonic()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    context = ids or [tokenizer.end_of_text]  # after an end of text a new one begins
    made: list[int] = []
    while len(made) < options.max_tokens:
        window = torch.tensor([(context + made)[-model.config.block_size :]], device=device)
        logits = model(window)[0, -1].float().cpu()[: tokenizer.vocab_size]  # ids beyond it are padding
        token = choose(logits, options, generator)
        if token == tokenizer.end_of_text:
            break
        made.append(token)
    return Sample(text, tokenizer.decode(made), made, round(time.monotonic() - start, 3))


def choose(logits: Tensor, options: SampleOptions, generator: torch.Generator) -> int:
    """One id from logits of shape (V,)."""
    if options.greedy or options.temperature == 0:
        return int(logits.argmax())
    logits = logits / options.temperature
    if 0 < options.top_k < len(logits):
        logits[logits < logits.topk(options.top_k).values[-1]] = -torch.inf
    probabilities = logits.softmax(-1)
    if options.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(0) - ordered  # mass of the likelier ones: the first is always kept
        probabilities[order[before >= options.top_p]] = 0
    return int(torch.multinomial(probabilities, 1, generator=generator))
