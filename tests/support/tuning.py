"""Small conversations and pairs about numbers as tokens, and a run with their tokenizer, to tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.runs.tuning import plan_tuning
from model.training import stage
from pipeline.store import artifact
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.manifest import Identity
from pipeline.tokenizers import Characters, ChatTokenizer
from pipeline.tokens import segments

BASE = Characters("".join(map(chr, range(32, 127))) + "\n砚山石水□", "letters")
CHAT = ChatTokenizer(BASE)


def messages(*texts: str) -> list[dict[str, str]]:
    """Return turns by the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def sums(count: int) -> list[list[dict[str, str]]]:
    """Return conversations about sums, of one to three rounds."""
    rounds = [(f"{n}+{n % 7}", f"= {n + n % 7}") for n in range(count + 2)]
    return [messages(*(text for pair in rounds[n : n + 1 + n % 3] for text in pair)) for n in range(count)]


def pairs(count: int) -> list[list[dict[str, str]]]:
    """Return chosen and rejected answers in turn: the rejected one says everything twice."""
    answers = [(f"{n}+{n % 7}", f"= {n + n % 7}") for n in range(count)]
    return [messages(question, answer * times) for question, answer in answers for times in (1, 2)]


def publish_tokens(root: Path, kind: str, train: Sequence[Any], val: Sequence[Any], name: str = "talk") -> Artifact:
    """Publish conversations as `tokenize` does: ids, index and mask of each split."""
    identity = Identity("tokens", name, {"chat": kind, "documents": [len(train), len(val)]}, (), CHAT.fingerprint)

    def write(draft: Path) -> StageOutput:
        CHAT.save(draft)
        dtype = segments.dtype_for(CHAT.vocab_size)
        counts: dict[str, Any] = {"dtype": dtype, "vocab_size": CHAT.vocab_size, "end_of_text": CHAT.end_of_text}
        for split, conversations in (("train", train), ("val", val)):
            encoded = [CHAT.encode_conversation(conversation) for conversation in conversations]
            ids = np.array([token for row, _ in encoded for token in (*row, CHAT.end_of_text)], dtype)
            mask = np.array([flag for _, row in encoded for flag in (*row, False)], "u1")
            lengths = np.array([len(row) + 1 for row, _ in encoded])
            segment = segments.SegmentWriter(draft, f"{split}-00000-0000", dtype)
            segment.append(ids, lengths, np.zeros(len(lengths)))
            segment.close()
            (draft / f"{split}-00000-0000.mask").write_bytes(mask.tobytes())
            counts |= {f"{split}_tokens": segment.tokens, f"{split}_documents": segment.documents}
        return StageOutput(counts)

    return artifact.build(root, identity, write).artifact


def tune(root: Path, tokens: Artifact, parent: Artifact, **settings: Any) -> Artifact:
    """Tune the parent run for some steps in fp32 on one thread's CPU."""
    values = {"steps": 6, "evaluations": 1, "precision": "fp32", "batch_size": 2, **settings}
    plan = plan_tuning(tokens, parent, name="tuned", settings=values)
    return stage.train(root, plan, device="cpu", resume=True, report=lambda line: None).artifact
