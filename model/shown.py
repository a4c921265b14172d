"""A run as the clients of a server see it. All is read when the server begins: no request reaches the disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import run as runs
from pipeline.artifact import Artifact
from pipeline.tokenizers import Tokenizer


@dataclass(frozen=True)
class Shown:
    """The names of a run, what there is to say of it, its loss curve if it has one, and the page around all that."""

    name: str
    ref: str
    tokenizer: Tokenizer
    facts: Mapping[str, Any]
    page: bytes
    curve: bytes | None
    since: int


def look(run: Artifact, checkpoint: str) -> Shown:
    """Read what is shown of a run, of which the "best" or the "last" checkpoint is served."""
    result, tokenizer = runs.read_result(run.path), runs.open_tokenizer(run)
    facts = {
        "parameters": result.parameters,
        "steps": result.steps,
        "bits_per_char": result.best_bits_per_char if checkpoint == "best" else result.bits_per_char,
        "tokenizer": {"name": tokenizer.name, "kind": tokenizer.kind, "ids": tokenizer.vocab_size},
        "trained_on": next((entry.name for entry in run.manifest.inputs if entry.role == "tokens"), ""),
    }
    page, curve = Path(__file__).with_name("page.html"), run.file("loss.svg")
    drawn = curve.read_bytes() if curve.is_file() else None
    return Shown(run.manifest.name, run.ref, tokenizer, facts, page.read_bytes(), drawn, int(time.time()))
