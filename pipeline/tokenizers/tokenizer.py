"""The tokenizer interface, the card saved with each tokenizer, and the array form of a batch of ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
    """The tokenizer's library cannot encode a text."""


@contextmanager
def panics_as_unencodable() -> Iterator[None]:
    """Turn a panic of a Rust library, which is a BaseException, into Unencodable."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise Unencodable(str(error)) from None
        raise


class Tokenizer(Protocol):
    """Converts text to ids and back. Every tokenizer can be pickled, to be sent to a worker.

    `end_of_text` is the id that follows every document. `vocab_size` counts all ids. `fingerprint` identifies the
    vocabulary. `unknown_id` encodes the characters that are not in the vocabulary, None if every text can be encoded.
    `normalizes` is true if the ids of a text may decode to another one even if all its characters are known.
    `encoder` names the library that encodes batches. `boundary` matches, with zero width, the positions where a text
    can be cut so that the ids of its parts, concatenated, are the ids of the text; None if no such position is known.
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
    def normalizes(self) -> bool: ...

    @property
    def boundary(self) -> re.Pattern[str] | None: ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without end-of-text, by the library that defines them. Raises Unencodable."""

    def encode_batch(self, texts: Sequence[str]) -> FlatIds:
        """Return the flat ids of all texts and the number of ids of each. Raises Unencodable."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; the end-of-text id adds nothing."""

    def token_bytes(self, token: int, after: int | None = None) -> bytes:
        """Return the UTF-8 bytes that an id adds to a text, after the id `after` or at the beginning (None).

        They may be part of a character. The end-of-text id and ids without text add nothing.
        """

    def unknown_characters(self, text: str) -> str:
        """Return the characters of `text` that this tokenizer cannot represent, each once."""

    def count_unknown(self, text: str) -> int:
        """Return how many characters of `text`, counted one by one, `unknown_id` stands for."""

    def normalize(self, text: str) -> str:
        """Return the text that is encoded in place of `text`."""

    def save(self, folder: Path) -> None:
        """Write the files that `open_folder` reads, the card last."""


class TokenizerCard(msgspec.Struct, frozen=True):
    """Contents of `tokenizer.json`: how to open the tokenizer, and the fingerprint to verify it by.

    `pattern` is the regular expression with which a tiktoken encoding splits text before it merges bytes.
    """

    kind: str
    name: str
    vocab_size: int
    end_of_text: int
    fingerprint: str
    pattern: str = ""


def save_card(tokenizer: Tokenizer, folder: Path, pattern: str = "") -> None:
    card = TokenizerCard(
        tokenizer.kind, tokenizer.name, tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint, pattern
    )
    files.write_file(folder / CARD, msgspec.json.format(msgspec.json.encode(card), indent=2))


def texts_of_ids(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the text that each id adds inside a text, U+FFFD for parts of a character, END_OF_TEXT for its id."""
    texts = (tokenizer.token_bytes(token, token).decode(errors="replace") for token in range(tokenizer.vocab_size))
    return {**dict(enumerate(texts)), tokenizer.end_of_text: END_OF_TEXT}


def code_points(text: str) -> np.ndarray:
    """Return the code points of a text as uint32 of shape (characters,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def flat_ids(rows: Sequence[np.ndarray]) -> FlatIds:
    """Concatenate rows, each the 32-bit ids of one text, into one array and their lengths."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.concatenate([np.empty(0, np.uint32), *(row.view(np.uint32) for row in rows)]), lengths
