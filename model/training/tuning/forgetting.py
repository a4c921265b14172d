"""The end of a tuning: merge low-rank factors, and measure how much worse the base model's text is predicted."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from model.runs import checkpoint
from model.runs.checkpoint import CheckpointTensors
from model.runs.run import CHECKPOINTS, Result, read_result
from model.runs.tuning import base_tokens
from model.training import metrics
from model.training.evaluate import evaluate, validation_set
from model.training.tuning import lora
from pipeline.errors import InkstoneError
from pipeline.tokens.store import open_store


def conclude(folder: Path, records: Path, result: Result, parent: Path, device: torch.device) -> Result:
    """Merge low-rank factors into the checkpoints of a tuned run, and add the numbers of the tuning to its result.

    The folders are those of the run, of its metrics (`records`) and of the run that was tuned (`parent`).
    """
    merge(folder / CHECKPOINTS, {result.last, result.best})
    numbers = scores_before_and_after(records, checkpoint.step_of(result.best))
    try:
        before, after = measure(parent, folder / CHECKPOINTS / result.best, device)
        numbers |= {"base_before": before, "base_after": after}
        note = ""
    except InkstoneError as error:
        note = f"forgetting was not measured: {error.message}"
    return msgspec.structs.replace(result, tuning={name: round(value, 4) for name, value in numbers.items()}, note=note)


def merge(checkpoints: Path, names: set[str]) -> None:
    """Merge the low-rank factors of checkpoints into their weights, and drop the moments. A kill loses nothing."""
    for name in sorted(names):
        tensors = checkpoint.read(checkpoints / name)
        weights = lora.merged(tensors.weights)
        if weights.keys() != tensors.weights.keys():
            merged = CheckpointTensors(weights, {}, lora.merged(tensors.average))
            checkpoint.save(checkpoints, checkpoint.read_state(checkpoints / name), merged)


def scores_before_and_after(records: Path, best: int) -> dict[str, float]:
    """Return the scores on held-out conversations before the first step and at the step `best`."""
    rows = [row for row in metrics.read(records / metrics.METRICS) if row["val_loss"]]
    best_row = next((row for row in rows if int(row["step"]) == best), rows[-1] if rows else {})
    names = {"bits_per_char": "answers", "margin": "margin", "accuracy": "accuracy", "kl": "kl"}
    return {
        f"{label}_{moment}": float(row[column])
        for column, label in names.items()
        for moment, row in (("before", rows[0] if rows else {}), ("after", best_row))
        if row.get(column)
    }


def measure(parent: Path, tuned: Path, device: torch.device) -> tuple[float, float]:
    """Return the bits per character of the parent run and of the tuned checkpoint on the base model's validation text.

    The base model is the untuned run that the chain of tunings began with. Raises InkstoneError if its tokens are gone.
    """
    tokens, train = base_tokens(parent)
    store = open_store(tokens)
    validation = validation_set(store, train.eval_bytes)
    mask_eos = store.tokenizer.end_of_text if train.document_mask else None
    scores = []
    for path in (parent / CHECKPOINTS / read_result(parent).best, tuned):
        model = checkpoint.load_network(path, device)
        evaluation = evaluate(model, validation, device, mask_eos=mask_eos)
        assert evaluation is not None  # only a stopped evaluation returns None
        scores.append(evaluation.bits_per_char)
    return scores[0], scores[1]
