"""The loss on a fixed part of the validation text, in units that are comparable across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from model.network.gpt import GPT
from model.network.masks import document_mask
from model.network.ngrams import mixed
from model.training.distributed import World
from pipeline.errors import BadData
from pipeline.tokenizers import Tokenizer
from pipeline.tokens.originals import has_originals, validation_documents
from pipeline.tokens.roundtrip import roundtrip_of
from pipeline.tokens.store import TokenStore

CODE_POINT_BITS = math.log2(0x110000 - 0x800)  # of all code points but surrogates, which no text has
MAX_TOKEN_LOSSES = 1 << 18  # first tokens whose losses are recorded one by one
# Values in the widest layer of a batch, and logits computed at once, by device type: 64 MiB in fp32 on a CPU. On CUDA
# an evaluation then needs less memory than a step of one sequence, or 0.7 GB (tests/model/training/test_memory.py).
_BATCH_VALUES = {"cpu": 1 << 24, "cuda": 1 << 25}


@dataclass(frozen=True)
class ValidationSet:
    """The ids to score, after an end-of-text id that is not scored, and the size of the text that they encode.

    `unknown` is the number of characters that are not in the vocabulary. `documents` is the original text if the ids
    may decode to a different one.
    """

    ids: np.ndarray
    characters: int
    bytes: int
    unknown: int = 0
    documents: tuple[str, ...] = ()

    @property
    def unknown_bits(self) -> float:
        """Bits that the unknown characters cost besides their id: a uniform choice among the 1,112,064 code points.

        Without this cost a tokenizer with a smaller alphabet would seem better.
        """
        return self.unknown * CODE_POINT_BITS


@dataclass(frozen=True)
class Evaluation:
    """`loss` in nats per token; bits per character and per byte of the text that the scored tokens encode, with the
    cost of unknown characters.

    `token_losses` (T,) are the nats of the scored tokens, of the first 2**18 at most. `position_losses` (block_size,)
    are the mean nats at each position of a block, over all blocks that were computed; a token that is only context in
    one block is scored in another. NaN where no block reaches. Both are float32.
    """

    loss: float
    bits_per_char: float
    bits_per_byte: float
    token_losses: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32), compare=False, repr=False)
    position_losses: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32), compare=False, repr=False)

    @property
    def columns(self) -> dict[str, float]:
        """Values of a row of the metrics."""
        return {"val_loss": self.loss, "bits_per_char": self.bits_per_char, "bits_per_byte": self.bits_per_byte}

    def __str__(self) -> str:
        return f"validation {self.loss:.3f} nats/token, {self.bits_per_char:.3f} bits/char"


def validation_set(store: TokenStore, max_bytes: int = 0) -> ValidationSet:
    """Take the first `max_bytes` of validation text, for any tokenizer; 0 takes all of it.

    Raises BadData if there are no validation tokens.
    """
    count = len(store.val)
    if count < 1:
        raise BadData(f"{store.artifact.path}: there are no validation tokens", hint="raise --val-fraction")
    if has_originals(store):
        ids, texts = _original_text(store, max_bytes)
        return scored_set(store.tokenizer, ids, texts)
    ids = store.val.read(0, min(count, _max_ids(max_bytes)) if max_bytes else count)
    if max_bytes:
        ids = ids[: _count_within(store.tokenizer, ids, max_bytes)]
    return scored_set(store.tokenizer, ids)


def scored_set(tokenizer: Tokenizer, ids: np.ndarray, texts: Sequence[str] = ()) -> ValidationSet:
    """Score all of `ids` (int64, shape (T,)), as the beginning of a document.

    `texts` are the documents that they encode, () if the ids decode to them.
    """
    text = "".join(texts) if texts else tokenizer.decode(ids.tolist())
    roundtrip = roundtrip_of(tokenizer)
    if not roundtrip:
        unknown = 0
    elif texts:
        unknown = sum(map(roundtrip.count_unknown, texts))
    else:
        unknown = 0 if tokenizer.unknown_id is None else int((ids == tokenizer.unknown_id).sum())
    eos = np.array([tokenizer.end_of_text], ids.dtype)
    return ValidationSet(
        np.concatenate([eos, ids]),
        max(len(text), 1),
        max(len(text.encode(errors="replace")), 1),
        unknown,
        tuple(texts),
    )


def _original_text(store: TokenStore, max_bytes: int) -> tuple[np.ndarray, list[str]]:
    """Return the ids and the documents of the first `max_bytes` of the original validation text.

    The last document is cut and encoded again, since its ids do not show where its text can be cut.
    """
    rows: list[np.ndarray] = []
    texts: list[str] = []
    size = 0
    for ids, text in validation_documents(store):
        data = text.encode(errors="replace")
        if max_bytes and size + len(data) > max_bytes:
            beginning = data[: max_bytes - size].decode(errors="ignore") or ("" if texts else text[:1])
            if beginning:
                rows.append(np.array(store.tokenizer.encode(beginning), np.int64))
                texts.append(beginning)
            break
        rows.append(ids)
        texts.append(text)
        size += len(data)
    return np.concatenate(rows), texts


def encode_again(tokenizer: Tokenizer, validation: ValidationSet, other: Tokenizer) -> ValidationSet:
    """Encode the text of a validation set, which has the ids of `tokenizer`, with another tokenizer.

    Both sets have the same number of characters, so that their bits per character compare.
    """
    if other.fingerprint == tokenizer.fingerprint:
        return validation
    ids = validation.ids[1:]
    ends = np.flatnonzero(ids == tokenizer.end_of_text)
    documents = [document.tolist() for document in np.split(ids, ends + 1)]
    texts = list(validation.documents) or list(map(tokenizer.decode, documents))
    encoded: list[int] = []
    for text, document in zip(texts, documents, strict=False):  # after a last end-of-text there is no document
        encoded += other.encode(text)
        if document and document[-1] == tokenizer.end_of_text:
            encoded.append(other.end_of_text)
    scored = scored_set(other, np.array(encoded, np.int64), texts)
    return replace(scored, characters=validation.characters, bytes=validation.bytes)


def _count_within(tokenizer: Tokenizer, ids: np.ndarray, max_bytes: int) -> int:
    """Return how many of the first ids decode to at most `max_bytes` bytes, at least 1."""
    low, high = 1, min(len(ids), _max_ids(max_bytes))
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.decode(ids[:middle].tolist()).encode(errors="replace")) <= max_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def _max_ids(max_bytes: int) -> int:
    """Return an upper bound of the ids that decode to `max_bytes` bytes: all but end-of-text have at least one byte."""
    return max_bytes + max_bytes // 64 + 64


def windows(count: int, block_size: int) -> list[tuple[int, int]]:
    """Split `count` ids into windows of at most `block_size` inputs, each with the first input that it scores.

    Each input, whose target is the next id, is scored once, with at least half a block of context, or all of it near
    the start.
    """
    half = max(block_size // 2, 1)
    starts = [0, *range(half, max(count - 1 - (block_size - half), half), half)] if count - 1 > block_size else [0]
    return [(start, 0 if not start else start + block_size - half) for start in starts]


def batch_values(device: torch.device) -> int:
    """Return how many values the widest tensor of a batch may have on a device."""
    return _BATCH_VALUES.get(device.type, _BATCH_VALUES["cpu"])


@torch.no_grad()
def evaluate(
    model: GPT,
    validation: ValidationSet,
    device: torch.device,
    precision: str = "fp32",
    world: World | None = None,
    stopped: Callable[[], bool] = bool,
    mask_eos: int | None = None,
) -> Evaluation | None:
    """Score every id but the first. End-of-text ids count as tokens and as no text.

    With `mask_eos`, the end-of-text id, tokens do not attend to earlier documents, as in training with document masks.
    The processes of the world share the work. Return None if `stopped` returned True meanwhile.
    """
    world = world or World()
    block_size = model.config.block_size
    ids = torch.from_numpy(validation.ids)
    ngram_probabilities = torch.from_numpy(model.ngrams.probabilities(validation.ids)) if model.ngrams else None
    spans = windows(len(ids), block_size)
    # Padding that scores nothing gives all processes the same number of windows.
    spans += [(0, block_size)] * (-len(spans) % world.size)
    spans = spans[world.rank :: world.size]
    masks = 0 if mask_eos is None else 4 * block_size
    vocab_size, values = model.config.vocab_size, batch_values(device)
    is_sharded = isinstance(model, FSDPModule)  # it gathers its weights for `forward` only, which returns all logits
    width = max(vocab_size * is_sharded, model.config.hidden_width, masks)
    rows = min(max(1, values // (block_size * width)), len(spans))
    pieces = 1 if is_sharded else -(-rows * block_size * vocab_size // values)
    was_training = model.training
    model.eval()
    batches, losses, is_stopped = list[list[tuple[int, int]]](), list[torch.Tensor](), False
    for first in range(0, len(spans), rows):
        is_stopped = is_stopped or stopped()
        if is_stopped and world.size == 1:
            break
        batch = spans[first : first + rows]
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            losses.append(_score(model, ids, [start for start, _ in batch], device, mask_eos, pieces))
            batches.append(batch)
    model.train(was_training)
    if world.any(is_stopped):
        return None
    sums = _Sums(len(ids) - 1, block_size, ngram_probabilities)
    host_losses = torch.split(torch.cat(losses).cpu(), rows)
    for batch, batch_losses in zip(batches, host_losses, strict=True):
        sums.add(batch, batch_losses)
    nats, token_losses, position_losses = sums.totals(world)
    bits = nats / math.log(2) + validation.unknown_bits
    return Evaluation(
        nats / (len(ids) - 1),
        bits / validation.characters,
        bits / validation.bytes,
        token_losses,
        position_losses,
    )


class _Sums:
    """Losses of `count` tokens: their sum, the losses of the first tokens one by one, and sums by position in a window.

    `ngram_probabilities` (count + 1,) of the ids are mixed with those of the network, unless they are None.
    """

    def __init__(self, count: int, block_size: int, ngram_probabilities: torch.Tensor | None) -> None:
        self._count, self._ngram_probabilities = count, ngram_probabilities
        self._nats = torch.zeros((), dtype=torch.float64)
        self._tokens = torch.zeros(min(count, MAX_TOKEN_LOSSES), dtype=torch.float64)
        self._positions = torch.zeros(2, block_size, dtype=torch.float64)  # sums, and numbers of losses

    def add(self, spans: list[tuple[int, int]], losses: torch.Tensor) -> None:
        """Add the losses (B, T) of a batch of windows, on the CPU."""
        losses, length = losses.double(), losses.shape[1]
        starts, firsts = (torch.tensor(column)[:, None] for column in zip(*spans, strict=True))
        positions = starts + torch.arange(length)
        is_valid = (positions < self._count) & (firsts < starts + length)  # without padding
        if self._ngram_probabilities is not None:
            losses = -mixed(-losses, self._ngram_probabilities[(positions + 1).clamp(max=self._count)])
        self._positions[0, :length] += (losses * is_valid).sum(0)
        self._positions[1, :length] += is_valid.sum(0)
        is_scored = is_valid & (positions >= firsts)
        self._nats += losses[is_scored].sum()
        is_recorded = is_scored & (positions < len(self._tokens))
        self._tokens[positions[is_recorded]] = losses[is_recorded]

    def totals(self, world: World) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the sum, the losses of the first tokens and the mean losses by position. A collective."""
        tokens, positions = world.sum_tensor(self._tokens), world.sum_tensor(self._positions)
        means = positions[0] / positions[1]
        return world.all_reduce_sum(float(self._nats)), tokens.float().numpy(), means.float().numpy()


def _score(
    model: GPT, ids: torch.Tensor, starts: list[int], device: torch.device, mask_eos: int | None, pieces: int
) -> torch.Tensor:
    """Return the losses (B, T) in nats of a batch of windows, 0 after the last id, without waiting for the device.

    The logits are computed in `pieces` parts, since those of one long window may not fit into memory at once. Short
    windows are padded with ids that are not scored.
    """
    block_size = min(model.config.block_size, len(ids) - 1)
    positions = torch.tensor(starts)[:, None] + torch.arange(block_size)  # (B, T)
    inputs = ids[positions.clamp(max=len(ids) - 1)].to(device)
    targets = torch.where(positions < len(ids) - 1, ids[(positions + 1).clamp(max=len(ids) - 1)], -1).to(device)
    mask = None if mask_eos is None else document_mask(inputs, mask_eos)
    if pieces == 1:
        losses = _losses(model(inputs, mask=mask).flatten(0, 1), targets.flatten())
    else:
        states = model.hidden_states(inputs, mask).flatten(0, 1)
        parts = zip(states.chunk(pieces), targets.flatten().chunk(pieces), strict=True)
        losses = torch.cat([_losses(model.logits(part), part_targets) for part, part_targets in parts])
    return losses.view(positions.shape)


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none").float()
