"""What a tokenizer is, the card that it is saved with, and the arrays that batches of ids come in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from pipeline.store import files

END_OF_TEXT = "<|endoftext|>"
CARD = "tokenizer.json"

FlatIds = tuple[np.ndarray, np.ndarray]
"""The ids of a batch of texts: (uint32 ids of all texts in order, int64 number of ids of each text)."""


class Unencodable(Exception):
    """The tokenizer's library gave up on a text."""


class Tokenizer(Protocol):
    """Text to ids and back. `end_of_text` is the id that follows every document; `vocab_size` counts all ids;
    `unknown_id` stands for whatever it cannot spell, None where it can spell everything.

    `encoder` names the library that encodes batches. `boundary` matches (with no width) where a text may be cut so
    that the ids of its parts, put together, are the ids of the whole; None where no such place is known.
    A tokenizer pickles, to travel to a worker.
    """

    kind: str
    name: str
    vocab_size: int
    end_of_text: int
    fingerprint: str
    encoder: str

    @property
    def unknown_id(self) -> int | None: ...

    @property
    def boundary(self) -> re.Pattern[str] | None: ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without the end-of-text id, by the library that defines them. Raises Unencodable."""

    def encode_batch(self, texts: Sequence[str]) -> FlatIds:
        """(flat uint32 ids of all texts in order, int64 number of ids of each text). Raises Unencodable."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; the end-of-text id gives nothing."""

    def spell(self, token: int, after: int | None = None) -> bytes:
        """The UTF-8 bytes that an id adds to a text, after the id `after` or at its beginning; they may be a part of a
        character. The end-of-text id, and ids that have no text, add nothing."""

    def unknown(self, text: str) -> str:
        """The characters of `text` that this tokenizer cannot represent."""

    def save(self, folder: Path) -> None:
        """Write what `open_folder` needs, the card last."""


class Card(msgspec.Struct, frozen=True):
    """`tokenizer.json`: enough to open a tokenizer again and to know it is the same one.

    `pattern` is the regular expression by which a tiktoken encoding splits text before it merges bytes.
    """

    kind: str
    name: str
    vocab_size: int
    end_of_text: int
    fingerprint: str
    pattern: str = ""


def save_card(tokenizer: Tokenizer, folder: Path, pattern: str = "") -> None:
    card = Card(
        tokenizer.kind, tokenizer.name, tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint, pattern
    )
    files.write_file(folder / CARD, msgspec.json.format(msgspec.json.encode(card), indent=2))


def flat_ids(rows: Sequence[np.ndarray]) -> FlatIds:
    """The rows, each the 32-bit ids of one text, as one array and their lengths."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.concatenate([np.empty(0, np.uint32), *(row.view(np.uint32) for row in rows)]), lengths
