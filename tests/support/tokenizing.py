"""What the tests of tokenizing share: small inputs, a run of the stage on them, and what it published."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.readers import compression, readers
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Silent
from pipeline.sources import inputs as raw
from pipeline.store.artifact import Artifact, Built
from pipeline.tokenizers import Characters, Tokenizer
from pipeline.tokens import chunks as pieces
from pipeline.tokens import stage as tokenize
from pipeline.tokens.segments import document_lengths
from pipeline.tokens.stage import Inputs, TokenizeOptions
from pipeline.tokens.store import open_store

LETTERS = Characters("".join(map(chr, range(32, 127))) + "\n砚山石水", "letters")
TEXTS = [f"document {number} of some" for number in range(200)]


def lines(path: Path, texts: Iterable[str], set_name: str = "") -> raw.InputFile:
    """A file of JSON lines, all of one set, as an input."""
    meta = {"pile_set_name": set_name} if set_name else None
    path.write_bytes(b"".join(msgspec.json.encode({"text": text, "meta": meta}) + b"\n" for text in texts))
    return given(path)


def given(path: Path) -> raw.InputFile:
    (found,) = raw.inputs(path.parent, str(path), corpora=False)
    return found


def some(folder: Path, texts: list[str] = TEXTS, files: int = 3) -> Inputs:
    """`texts` dealt out to a few files, to be divided by hash."""
    return Inputs(tuple(lines(folder / f"{n}.jsonl", texts[n::files]) for n in range(files)), ())


def all_train(folder: Path, *texts: str) -> Inputs:
    """`texts` as one file to train on, beside a file of one document to validate on."""
    return beside_val(lines(folder / "train.jsonl", texts))


def written(path: Path, content: str) -> Inputs:
    """A file of any content to train on, beside a file of one document to validate on."""
    path.write_text(content, encoding="utf-8")
    return beside_val(given(path))


def beside_val(train: raw.InputFile) -> Inputs:
    return Inputs((train,), (lines(train.path.parent / "val.jsonl", ["held out"]),))


def run(
    root: Path,
    inputs: Inputs,
    *,
    tokenizer: Tokenizer = LETTERS,
    trained: Artifact | None = None,
    jobs: int = 1,
    **options: Any,
) -> Built:
    """Tokenize as the artifact `some`; a tenth is held out unless there are files to validate on."""
    chosen = TokenizeOptions(**{"val_fraction": None if inputs.val else 0.1, **options})
    return tokenize.tokenize(root, "some", inputs, tokenizer, trained, chosen, Silent(), jobs=jobs)


def small_pieces(patch: pytest.MonkeyPatch, unit: int, piece: int, long_line: int = 1 << 30) -> None:
    """Make units, pieces and lines that count as long small, so that small inputs have many of them.

    Only this process cuts, so workers need no telling; every input is worth them.
    """
    patch.setattr(pieces, "UNIT_BYTES", unit)
    patch.setattr(pieces, "PIECE_BYTES", piece)
    patch.setattr(pieces, "LONG_LINE", long_line)
    patch.setattr(pieces, "PART_BYTES", max(16, long_line // 4))
    patch.setattr(tokenize, "_SMALL", 0)


def ids_of(made: Artifact, split: str) -> np.ndarray:
    array = {"train": open_store(made).train, "val": open_store(made).val}[split]
    return array.read(0, len(array))


def rows(made: Artifact, split: str) -> list[list[int]]:
    """The documents of a split, each with its end-of-text id."""
    ends = np.cumsum(document_lengths(made, split))
    return [part.tolist() for part in np.split(ids_of(made, split), ends[:-1])]


def texts_of(made: Artifact, split: str, tokenizer: Tokenizer = LETTERS) -> list[str]:
    found = rows(made, split)
    assert all(row[-1] == tokenizer.end_of_text for row in found)
    return [tokenizer.decode(row[:-1]) for row in found]


def texts_in(path: Path) -> list[str]:
    """The texts of a file of documents by the reader that knows no pieces, without the byte order mark it leaves."""
    return [each.text.removeprefix("\ufeff") for each in readers.read(path, Ledger(), print)]


def sums(made: Artifact) -> dict[str, str]:
    return {record.name: record.sha256 for record in made.manifest.files}


def rejects(made: Artifact) -> list[tuple[str, int, int, str]]:
    """File, line, byte offset and reason of everything that was set aside."""
    entries = b"".join(compression.blocks(made.file("rejects.jsonl.zst"))).splitlines()
    found = [msgspec.json.decode(entry) for entry in entries]
    return [(each["file"], each["line"], each["offset"], each["reason"]) for each in found]


def dropped(made: Artifact) -> dict[str, int]:
    """Documents dropped by reason, of a ledger that closes."""
    tally = made.manifest.ledger["documents"]
    found: dict[str, int] = tally["dropped"]
    assert tally["in"] == tally["out"] + sum(found.values())
    assert tally["out"] == made.manifest.counts["documents"]
    return found


def nothing_published(root: Path) -> bool:
    return not list(root.glob("tokens/some/[!.]*"))


def no_draft(root: Path) -> bool:
    return not list(root.glob("tokens/some/.draft-*"))
