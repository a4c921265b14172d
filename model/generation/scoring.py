"""Log probabilities of the tokens of prompts, computed for several prompts in one forward pass.

Shapes in comments: B prompts, T tokens of the longest one, N tokens of all of them, C = width, V = vocabulary size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.network.gpt import GPT
from pipeline.errors import BadData

_BATCH_TOKENS = 4096  # of one forward pass, with padding
_LOGITS = 1 << 21  # at a time: 8 MB, which stay in the cache of a processor
_MIN_ROWS = 256  # at a time, even with a large vocabulary: a product of fewer rows is slow
LOG_ZERO = -9999.0  # OpenAI's value for the logarithm of a probability of 0


@dataclass(frozen=True)
class TokenScore:
    """A token of a prompt: its log probability given the tokens before it, and the most likely ids with their own."""

    token_id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class PromptScore:
    """The scores of a prompt's tokens, without its first one, and the logits (V,) of the token after it, on the CPU."""

    tokens: tuple[TokenScore, ...]
    next_logits: Tensor


def not_finite() -> BadData:
    """Return the error for logits that are not finite."""
    return BadData("the network's logits are not finite: its weights are damaged", hint="`verify --deep` the run")


@torch.inference_mode()
def score_prompts(
    model: GPT, prompts: Sequence[Sequence[int]], vocab_size: int, likeliest: int, batch_tokens: int = _BATCH_TOKENS
) -> list[PromptScore]:
    """Score prompts of at least one and at most `block_size` ids. Raises BadData if the logits are not finite.

    `likeliest` is the number of most likely ids of each token. Logits from `vocab_size` on are padding.
    """
    scores: dict[int, PromptScore] = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    while order:
        longest = len(prompts[order[-1]])
        count = max(batch_tokens // longest, 1)
        batch, order = order[-count:], order[:-count]
        batch_scores = _score_batch(model, [prompts[index] for index in batch], vocab_size, likeliest)
        scores.update(zip(batch, batch_scores, strict=True))
    return [scores[index] for index in range(len(prompts))]


def _score_batch(model: GPT, prompts: Sequence[Sequence[int]], vocab_size: int, likeliest: int) -> list[PromptScore]:
    device, lengths = model.embedding.weight.device, [len(prompt) for prompt in prompts]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    # A token does not attend to those after it, so the padding at the end changes nothing.
    states = model.hidden_states(ids.to(device))  # (B, T, C)
    next_logits = torch.stack([row[length - 1] for row, length in zip(states, lengths, strict=True)])
    next_logits = model.logits(next_logits).cpu()  # (B, V)
    if model.ngrams:
        next_logits = model.ngrams.mix(next_logits, prompts)
    next_logits = next_logits[:, :vocab_size]
    before = torch.cat([row[: length - 1] for row, length in zip(states, lengths, strict=True)])  # (N - B, C)
    targets = torch.tensor([token for prompt in prompts for token in prompt[1:]], dtype=torch.int64)
    order = model.ngrams.order if model.ngrams else 0
    contexts = [prompt[max(end - order, 0) : end] for prompt in prompts for end in range(1, len(prompt))]
    tokens = _score_tokens(model, before, contexts, targets, vocab_size, likeliest)
    scores, start = [], 0
    for length, logits in zip(lengths, next_logits, strict=True):
        scores.append(PromptScore(tuple(tokens[start : start + length - 1]), logits))
        start += length - 1
    return scores


def _score_tokens(
    model: GPT,
    states: Tensor,
    contexts: Sequence[Sequence[int]],
    targets: Tensor,
    vocab_size: int,
    likeliest: int,
) -> list[TokenScore]:
    """Score each of `targets` (M,) from the hidden state before it, in `states` (M, C), and from its context."""
    scores: list[TokenScore] = []
    size = max(_LOGITS // vocab_size, _MIN_ROWS)
    for start in range(0, len(targets), size):
        logits = model.logits(states[start : start + size])
        if model.ngrams:
            logits = model.ngrams.mix(logits, contexts[start : start + size])
        logprobs = logits[:, :vocab_size].log_softmax(-1)  # (M, V)
        ids = targets[start : start + size]
        target_logprobs = logprobs.gather(1, ids[:, None].to(logprobs.device))[:, 0]
        if not math.isfinite(float(target_logprobs.sum())):  # one logit that is not finite makes its row so
            raise not_finite()
        top = logprobs.topk(min(likeliest, vocab_size))
        top_ids, top_logprobs = top.indices.tolist(), top.values.clamp(min=LOG_ZERO).tolist()
        for token, logprob, row_ids, row_logprobs in zip(
            ids.tolist(), target_logprobs.clamp(min=LOG_ZERO).tolist(), top_ids, top_logprobs, strict=True
        ):
            scores.append(TokenScore(token, logprob, tuple(zip(row_ids, row_logprobs, strict=True))))
    return scores
