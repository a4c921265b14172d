"""Evaluation: the loss on a fixed stretch of the validation split, in units that compare across tokenizers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from model.gpt import GPT
from pipeline.errors import BadData
from pipeline.tokens import TokenStore

_BATCH_LOGITS = 1 << 24  # 64 MiB: more at once only waits for memory


@dataclass(frozen=True)
class ValidationSet:
    """The ids that are scored, and how much text they spell."""

    ids: np.ndarray
    characters: int
    bytes: int


@dataclass(frozen=True)
class Evaluation:
    """`loss` in nats per token; bits per character and per byte of the text that the scored tokens spell."""

    loss: float
    bits_per_char: float
    bits_per_byte: float


def validation_set(store: TokenStore, tokens: int) -> ValidationSet:
    """The first `tokens` ids of the validation split, all of it if it is shorter."""
    ids = store.val.read(0, min(tokens, len(store.val)))
    if len(ids) < 2:
        raise BadData(f"{store.artifact.path}: {len(ids)} validation tokens are too few", hint="raise --val-fraction")
    text = store.tokenizer.decode(ids[1:].tolist())
    return ValidationSet(ids, max(len(text), 1), max(len(text.encode(errors="replace")), 1))


@torch.no_grad()
def evaluate(model: GPT, chosen: ValidationSet, device: torch.device) -> Evaluation:
    """Score every id but the first, in consecutive blocks without overlap; the end-of-text ids count as tokens and
    as no text."""
    block = model.config.block_size
    ids = torch.from_numpy(chosen.ids)
    total = 0.0
    was_training = model.training
    model.eval()
    starts = range(0, len(ids) - 1, block)
    rows = max(1, _BATCH_LOGITS // (block * model.config.vocab_size))
    whole = [start for start in starts if start + block < len(ids)]
    for first in range(0, len(whole), rows):
        chunk = torch.stack([ids[start : start + block + 1] for start in whole[first : first + rows]])
        total += _nats(model, chunk, device)
    if len(whole) < len(starts):
        total += _nats(model, ids[starts[-1] :][None], device)
    model.train(was_training)
    bits = total / math.log(2)
    return Evaluation(total / (len(ids) - 1), bits / chosen.characters, bits / chosen.bytes)


def _nats(model: GPT, ids: torch.Tensor, device: torch.device) -> float:
    ids = ids.to(device)
    logits = model(ids[:, :-1]).float()
    return float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
