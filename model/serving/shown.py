"""A run as the clients of a server see it. All is read when the server begins: no request reaches the disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.generation.session import Session
from model.runs.run import read_result
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


def look(session: Session) -> Shown:
    """Read what is shown of a run."""
    run, tokenizer, result = session.run, session.tokenizer, read_result(session.run.path)
    facts = {
        "parameters": result.parameters,
        "steps": result.steps,
        "bits_per_char": result.best_bits_per_char if session.checkpoint == "best" else result.bits_per_char,
        "tokenizer": {"name": tokenizer.name, "kind": tokenizer.kind, "ids": tokenizer.vocab_size},
        "trained_on": next((entry.name for entry in run.manifest.inputs if entry.role == "tokens"), ""),
    }
    page, curve = Path(__file__).with_name("page.html"), run.file("loss.svg")
    drawn = curve.read_bytes() if curve.is_file() else None
    return Shown(run.manifest.name, run.ref, tokenizer, facts, page.read_bytes(), drawn, int(time.time()))
