"""Evaluation on held-out conversations and pairs, packed into rows as in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.network import masks
from model.network.gpt import GPT
from model.training.dataloader import to_device
from model.training.distributed import World
from model.training.evaluate import CODE_POINT_BITS, Evaluation, batch_values
from model.training.tuning.objective import PreferenceLoss
from model.training.tuning.packing import Pieces
from model.training.tuning.rows import DIVISORS, PackedRows


@dataclass(frozen=True)
class PreferenceEvaluation:
    """Means over held-out pairs.

    loss, margin  in nats
    accuracy      fraction of the pairs with a margin above 0; a margin of 0, as before the first step, counts half
    kl            KL(network || reference), in nats per target of both answers
    """

    loss: float
    margin: float
    accuracy: float
    kl: float

    @property
    def columns(self) -> dict[str, float]:
        return {"val_loss": self.loss, "margin": self.margin, "accuracy": self.accuracy, "kl": self.kl}

    def __str__(self) -> str:
        return (
            f"held-out pairs: loss {self.loss:.3f}, margin {self.margin:.2f}, accuracy {self.accuracy:.0%}, "
            f"KL {self.kl:.3f}"
        )


AnyEvaluation = Evaluation | PreferenceEvaluation


def first_groups(pieces: Pieces, count: int) -> Pieces:
    """Return the first `count` pieces, or the first `count` pairs of pieces."""
    stop = count * pieces.width
    return replace(pieces, starts=pieces.starts[:stop], lengths=pieces.lengths[:stop], targets=pieces.targets[:stop])


@dataclass(frozen=True)
class HeldOutAnswers:
    """Held-out conversations, and the text of their answers. `unknown` of its characters are not in the vocabulary."""

    rows: PackedRows
    text: str
    unknown: int

    @classmethod
    def read(cls, rows: PackedRows, max_bytes: int) -> HeldOutAnswers:
        """Take the first conversations with `max_bytes` of answers, at least one; 0 takes all."""
        tokenizer, size, unknown = rows.documents.tokenizer, 0, 0
        texts: list[str] = []
        for _, ids in _answers(rows):
            text = tokenizer.decode(ids.tolist())
            size += len(text.encode(errors="replace"))
            if max_bytes and size > max_bytes and texts:
                break
            texts.append(text)
            unknown += 0 if tokenizer.unknown_id is None else int((ids == tokenizer.unknown_id).sum())
        return cls(replace(rows, pieces=first_groups(rows.pieces, len(texts))), "".join(texts), unknown)

    @property
    def unknown_bits(self) -> float:
        return self.unknown * CODE_POINT_BITS

    def evaluate(
        self, model: GPT, device: torch.device, precision: str, world: World, stopped: Callable[[], bool]
    ) -> Evaluation | None:
        """Return the mean loss of the targets, and bits per character of the answers; None if stopped early."""
        with _evaluating(model):
            sums = _summed(self.rows, device, precision, world, stopped, lambda rows: _answer_sums(model, rows))
        if sums is None:
            return None
        nats, targets = sums
        bits = nats / math.log(2) + self.unknown_bits
        size = max(len(self.text.encode(errors="replace")), 1)
        return Evaluation(nats / targets, bits / max(len(self.text), 1), bits / size)


@dataclass(frozen=True)
class HeldOutPairs:
    """Held-out pairs, and the loss to score them with."""

    rows: PackedRows
    loss: PreferenceLoss

    def evaluate(
        self, model: GPT, device: torch.device, precision: str, world: World, stopped: Callable[[], bool]
    ) -> PreferenceEvaluation | None:
        """Return the means over all pairs; None if stopped early."""
        with _evaluating(model):
            sums = _summed(self.rows, device, precision, world, stopped, self._sums(model))
        if sums is None:
            return None
        loss, margin, correct, pairs, kl, targets = sums
        return PreferenceEvaluation(loss / pairs, margin / pairs, correct / pairs, kl / targets)

    def _sums(self, model: GPT) -> Callable[[Tensor], Tensor]:
        def sums(rows: Tensor) -> Tensor:
            inputs, targets, divisors, positions, segments = rows.unbind(1)
            mask, is_target = masks.packed_mask(positions), divisors > 0
            networks = (model, self.loss.reference)
            logits, reference = (net(inputs, mask=mask, positions=positions)[is_target] for net in networks)
            log_p, log_ref = F.log_softmax(logits, -1), F.log_softmax(reference, -1)  # (N, V)
            kl = (log_p.exp() * (log_p - log_ref)).sum()
            ratios = torch.zeros(targets.shape, device=rows.device)
            ratios[is_target] = (log_p - log_ref).gather(-1, targets[is_target][:, None]).squeeze(-1)
            margins, is_pair = self.loss.margins(ratios, segments * is_target.any(1, keepdim=True))
            correct = (margins > 0) + 0.5 * (margins == 0)
            totals = [(value * is_pair).sum() for value in (F.softplus(-margins), margins, correct)]
            return torch.stack([*totals, is_pair.sum(), kl, is_target.sum()]).double()

        return sums


def answer_pairs(rows: PackedRows) -> tuple[np.ndarray, np.ndarray]:
    """Return the targets of all pieces, and for each the id before it: previous ids and targets, int64 (N,)."""
    previous, targets = zip(*_answers(rows), strict=True)
    return np.concatenate(previous), np.concatenate(targets)


def _answers(rows: PackedRows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    documents, pieces = rows.documents, rows.pieces
    for start, length in zip(pieces.starts.tolist(), pieces.lengths.tolist(), strict=True):
        ids = documents.ids.read(start, start + length + 1)
        is_target = documents.mask.read(start + 1, start + length + 1) > 0
        yield ids[:-1][is_target], ids[1:][is_target]


@contextmanager
def _evaluating(model: GPT) -> Iterator[None]:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)


def _answer_sums(model: GPT, rows: Tensor) -> Tensor:
    inputs, targets, divisors, positions, _ = rows.unbind(1)
    weights = (divisors > 0).float()
    losses = model(inputs, targets, masks.packed_mask(positions), positions, weights, summed=False)
    return torch.stack([losses.sum().double(), weights.sum().double()])


def _summed(
    rows: PackedRows,
    device: torch.device,
    precision: str,
    world: World,
    stopped: Callable[[], bool],
    sums: Callable[[Tensor], Tensor],
) -> list[float] | None:
    """Return the totals of `sums` over all rows, which are divided among the processes; None if stopped early.

    Rows without targets pad the work, so that all processes have equally many rows.
    """
    count = -(-len(rows.rows) // world.size)
    indices = np.arange(world.rank, count * world.size, world.size)
    vocab_size, block_size = rows.documents.tokenizer.vocab_size, rows.block_size
    size = max(1, batch_values(device) // (block_size * max(vocab_size, 4 * block_size)))
    totals, is_stopped = torch.zeros((), device=device), False
    for first in range(0, count, size):
        is_stopped = is_stopped or stopped()
        if is_stopped and world.size == 1:
            return None
        part = indices[first : first + size]
        batch = rows.read(part % len(rows.rows))
        batch[part >= len(rows.rows), DIVISORS] = 0
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            totals = totals + sums(to_device(batch, device))
    if world.any(is_stopped):
        return None
    return [world.all_reduce_sum(float(total)) for total in totals]
