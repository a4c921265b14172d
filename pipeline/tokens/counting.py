"""Toy data: the integers 1, 2, 3, … as a tokens artifact, for a model small enough to inspect."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.store import artifact, code
from pipeline.store.artifact import BuildResult, StageOutput
from pipeline.store.manifest import Identity
from pipeline.tokenizers import Integers
from pipeline.tokens import segments

SCHEMA = 2
CODE = code.Code(
    ("pipeline/tokens/counting.py", "pipeline/tokens/segments.py", "pipeline/tokenizers/integers.py"),
    code.HARMLESS
    | {
        "pipeline/runtime/workers.py": "starts no process here",
        "pipeline/tokenizers": "only the tokenizer of integers is used",
    },
)
VOCAB_SIZE = 100
_REPEATS = {"train": 100, "val": 5}


def build(root: Path) -> BuildResult:
    """Publish `tokens/counting`, whose documents all count from 1 to 99."""
    tokenizer = Integers(VOCAB_SIZE)
    options = {"stage": SCHEMA, "vocab_size": VOCAB_SIZE}
    identity = Identity("tokens", "counting", options, (), tokenizer.fingerprint, code=code.state_of(CODE))

    def write(draft: Path) -> StageOutput:
        tokenizer.save(draft)
        dtype = segments.dtype_for(VOCAB_SIZE)
        document = np.arange(1, VOCAB_SIZE)
        counts: dict[str, int | str] = {"dtype": dtype, "vocab_size": VOCAB_SIZE, "end_of_text": tokenizer.end_of_text}
        for split, repeats in _REPEATS.items():
            lengths = np.full(repeats, len(document))
            ids = segments.append_eos(np.tile(document, repeats), lengths, dtype, tokenizer.end_of_text)
            segment = segments.SegmentWriter(draft, f"{split}-00000-0000", dtype)
            segment.append(ids, lengths + 1, np.zeros(repeats))
            segment.close()
            counts |= {f"{split}_tokens": segment.tokens, f"{split}_documents": segment.documents}
        return StageOutput(counts)

    return artifact.build(root, identity, write)
