"""Evaluation: the loss on a fixed stretch of the validation text, in units that compare across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from model.network.gpt import GPT
from model.network.masks import document_mask
from model.training.distributed import World
from pipeline.errors import BadData
from pipeline.tokenizers import Tokenizer
from pipeline.tokens.store import TokenStore

_CODE_POINT_BITS = math.log2(0x110000)
_BATCH_LOGITS = 1 << 24  # 64 MiB: more at once only waits for memory


@dataclass(frozen=True)
class ValidationSet:
    """The ids that are scored, after an end of text that is not, and how much text they spell.

    `unknown` of the characters have no id of their own.
    """

    ids: np.ndarray
    characters: int
    bytes: int
    unknown: int = 0

    @property
    def unknown_bits(self) -> float:
        """What those characters cost beside their id: the choice among all code points. Without that, a tokenizer that
        knows less would seem to do better."""
        return self.unknown * _CODE_POINT_BITS


@dataclass(frozen=True)
class Evaluation:
    """`loss` in nats per token; bits per character and per byte of the text that the scored tokens spell, with what the
    unknown characters cost."""

    loss: float
    bits_per_char: float
    bits_per_byte: float


def validation_set(store: TokenStore, most: int = 0) -> ValidationSet:
    """The ids of the first `most` bytes of validation text, whatever the tokenizer; 0: of all of it."""
    ids = store.val.read(0, len(store.val))
    if most:
        ids = ids[: _spelled(store.tokenizer, ids, most)]
    if len(ids) < 1:
        raise BadData(f"{store.artifact.path}: there are no validation tokens", hint="raise --val-fraction")
    text = store.tokenizer.decode(ids.tolist())
    before = np.array([store.tokenizer.end_of_text], ids.dtype)
    unknown = store.tokenizer.unknown_id
    return ValidationSet(
        np.concatenate([before, ids]),
        max(len(text), 1),
        max(len(text.encode(errors="replace")), 1),
        0 if unknown is None else int((ids == unknown).sum()),
    )


def _spelled(tokenizer: Tokenizer, ids: np.ndarray, most: int) -> int:
    """How many of the first ids spell no more than `most` bytes, but one at least."""
    low, high = 1, min(len(ids), most + most // 64 + 64)  # a token has a byte at least, but for ends of text
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.decode(ids[:middle].tolist()).encode(errors="replace")) <= most:
            low = middle
        else:
            high = middle - 1
    return low


def windows(count: int, block_size: int) -> list[tuple[int, int]]:
    """For `count` ids: where each window of at most `block_size` inputs begins, and the first input that it scores.

    Each input is scored once, the next id being its target, and sees at least half a block before it, or all there is.
    """
    half = max(block_size // 2, 1)
    starts = [0, *range(half, max(count - 1 - (block_size - half), half), half)] if count - 1 > block_size else [0]
    return [(start, 0 if not start else start + block_size - half) for start in starts]


@torch.no_grad()
def evaluate(
    model: GPT,
    chosen: ValidationSet,
    device: torch.device,
    precision: str = "fp32",
    world: World | None = None,
    stopped: Callable[[], bool] = bool,
    documents_end: int | None = None,
) -> Evaluation | None:
    """Score every id but the first. The end-of-text ids count as tokens and as no text; with `documents_end`, what came
    before a document is hidden after each id of that kind, as in a training with document masks.

    All processes of the world share the work. None where `stopped` came to be true meanwhile.
    """
    world = world or World()
    block = model.config.block_size
    ids = torch.from_numpy(chosen.ids)
    plan = windows(len(ids), block)
    plan += [(0, block)] * (-len(plan) % world.size)  # windows that score nothing: each process does as much
    plan = plan[world.rank :: world.size]
    wide = max(model.config.vocab_size, 0 if documents_end is None else 4 * block)  # logits, and masks for each head
    rows = max(1, _BATCH_LOGITS // (block * wide))
    was_training = model.training
    model.eval()
    total, ended = 0.0, False
    for first in range(0, len(plan), rows):
        ended = ended or stopped()
        if ended and world.size == 1:
            break
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            total += _nats(model, ids, plan[first : first + rows], device, documents_end)
    model.train(was_training)
    total = world.total(total)
    if world.any(ended):
        return None
    bits = total / math.log(2) + chosen.unknown_bits
    return Evaluation(total / (len(ids) - 1), bits / chosen.characters, bits / chosen.bytes)


def _nats(
    model: GPT, ids: torch.Tensor, plan: list[tuple[int, int]], device: torch.device, documents_end: int | None
) -> float:
    """Sum of the losses of what these windows score. Short ones are filled up with what is never scored."""
    block = min(model.config.block_size, len(ids) - 1)
    places = torch.tensor([start for start, _ in plan])[:, None] + torch.arange(block)  # (B, T)
    scored = (places >= torch.tensor([first for _, first in plan])[:, None]) & (places < len(ids) - 1)
    inputs = ids[places.clamp(max=len(ids) - 1)].to(device)
    targets = torch.where(scored, ids[(places + 1).clamp(max=len(ids) - 1)], -1).to(device)
    mask = None if documents_end is None else document_mask(inputs, documents_end)
    logits = model(inputs, mask=mask)
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum"))
