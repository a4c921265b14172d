"""Helpers of the tokenize tests: small inputs, a run of the stage, and what it published."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.readers import compression, readers
from pipeline.runtime.engines import OpenEngine
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import SilentProgress
from pipeline.sources import inputs as source_inputs
from pipeline.store.artifact import Artifact, BuildResult
from pipeline.tokenizers import Characters, Tokenizer
from pipeline.tokens import chunks
from pipeline.tokens import stage as tokens_stage
from pipeline.tokens.options import TokenizeOptions
from pipeline.tokens.segments import document_lengths
from pipeline.tokens.split import SplitRule, digest_of, draw_of, threshold_of
from pipeline.tokens.stage import TokenizeInputs
from pipeline.tokens.store import open_store

LETTERS = Characters("".join(map(chr, range(32, 127))) + "\n砚山石水", "letters")
TEXTS = [f"document {number} of some" for number in range(200)]


def lines(path: Path, texts: Iterable[str], set_name: str = "") -> source_inputs.InputFile:
    """Write a file of JSON lines, all of one set."""
    meta = {"pile_set_name": set_name} if set_name else None
    path.write_bytes(b"".join(msgspec.json.encode({"text": text, "meta": meta}) + b"\n" for text in texts))
    return input_file(path)


def input_file(path: Path) -> source_inputs.InputFile:
    (file,) = source_inputs.resolve_inputs(path.parent, str(path), corpora=False)
    return file


def some(folder: Path, texts: list[str] = TEXTS, files: int = 3) -> TokenizeInputs:
    """Distribute `texts` over a few files, to be divided by hash."""
    return TokenizeInputs(tuple(lines(folder / f"{n}.jsonl", texts[n::files]) for n in range(files)), ())


def train_inputs(folder: Path, *texts: str) -> TokenizeInputs:
    """`texts` as one training file, beside a validation file of one document."""
    return with_val(lines(folder / "train.jsonl", texts))


def content_inputs(path: Path, content: str) -> TokenizeInputs:
    """A training file of any content, beside a validation file of one document."""
    path.write_text(content, encoding="utf-8")
    return with_val(input_file(path))


def with_val(train: source_inputs.InputFile) -> TokenizeInputs:
    return TokenizeInputs((train,), (lines(train.path.parent / "val.jsonl", ["held out"]),))


def run(
    root: Path,
    inputs: TokenizeInputs,
    *,
    tokenizer: Tokenizer = LETTERS,
    trained: Artifact | None = None,
    jobs: int = 1,
    open_engine: OpenEngine | None = None,
    **options: Any,
) -> BuildResult:
    """Tokenize as the artifact `some`; a tenth of the documents is held out unless there are validation files."""
    defaults = {"val_fraction": None if inputs.val else 0.1, "val_split": "document"}
    settings = TokenizeOptions(**{**defaults, **options})
    return tokens_stage.tokenize(
        root, "some", inputs, tokenizer, trained, settings, SilentProgress(), jobs=jobs, open_engine=open_engine
    )


def shrink_chunks(patch: pytest.MonkeyPatch, unit: int, chunk: int, long_line: int = 1 << 30) -> None:
    """Shrink units, chunks and long lines, so that small inputs have many of them and are worth several workers.

    Only this process splits the input, so the workers need no patch.
    """
    patch.setattr(chunks, "UNIT_BYTES", unit)
    patch.setattr(chunks, "CHUNK_BYTES", chunk)
    patch.setattr(chunks, "LONG_LINE", long_line)
    patch.setattr(chunks, "PART_BYTES", max(16, long_line // 4))
    patch.setattr(tokens_stage, "_SMALL", 0)


def is_held_out(text: str, fraction: float) -> bool:
    """Return True if a rule for documents holds out this text."""
    return SplitRule("document", 0, threshold_of(fraction), fraction).split_of(draw_of(digest_of(text))) == "val"


def ids_of(tokens: Artifact, split: str) -> np.ndarray:
    array = {"train": open_store(tokens).train, "val": open_store(tokens).val}[split]
    return array.read(0, len(array))


def rows(tokens: Artifact, split: str) -> list[list[int]]:
    """Return the ids of each document of a split, end-of-text included."""
    ends = np.cumsum(document_lengths(tokens, split))
    return [part.tolist() for part in np.split(ids_of(tokens, split), ends[:-1])]


def texts_of(tokens: Artifact, split: str, tokenizer: Tokenizer = LETTERS) -> list[str]:
    documents = rows(tokens, split)
    assert all(row[-1] == tokenizer.end_of_text for row in documents)
    return [tokenizer.decode(row[:-1]) for row in documents]


def texts_in(path: Path) -> list[str]:
    """Read the texts of a file with the reader of documents; it leaves a byte order mark in the text."""
    return [document.text.removeprefix("\ufeff") for document in readers.read_documents(path, Ledger(), print)]


def checksums(tokens: Artifact) -> dict[str, str]:
    return {record.name: record.sha256 for record in tokens.manifest.files}


def rejects(tokens: Artifact) -> list[tuple[str, int, int, str]]:
    """Return file, line, byte offset and reason of every reject."""
    entries = b"".join(compression.read_blocks(tokens.file("rejects.jsonl.zst"))).splitlines()
    decoded = map(msgspec.json.decode, entries)
    return [(reject["file"], reject["line"], reject["offset"], reject["reason"]) for reject in decoded]


def dropped(tokens: Artifact) -> dict[str, int]:
    """Return the dropped documents by reason, after checking that the ledger adds up."""
    tally = tokens.manifest.ledger["documents"]
    reasons: dict[str, int] = tally["dropped"]
    assert tally["in"] == tally["out"] + sum(reasons.values())
    assert tally["out"] == tokens.manifest.counts["documents"]
    return reasons


def nothing_published(root: Path) -> bool:
    return not list(root.glob("tokens/some/[!.]*"))


def no_draft(root: Path) -> bool:
    return not list(root.glob("tokens/some/.draft-*"))
