"""Character tokenizer: one id per character."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store import files
from pipeline.tokenizers.tokenizer import FlatIds, TokenizerCard, code_points, save_card

_CHARACTERS = "characters.txt"
_ANYWHERE = re.compile("(?s:(?<=.)(?=.))")


class Characters:
    """One id per character: 0 is end-of-text, 1 any character that was not in the training text."""

    kind = "char"
    encoder = "characters"
    boundary = _ANYWHERE
    normalizes = False
    UNKNOWN = unknown_id = 1
    FIRST = 2

    def __init__(self, characters: str, name: str) -> None:
        self.name = name
        self.characters = characters
        self.end_of_text = 0
        self.vocab_size = self.FIRST + len(characters)
        self.fingerprint = f"char:{hashlib.sha256(characters.encode()).hexdigest()[:16]}"
        self._ids = np.full(0x110000, self.UNKNOWN, np.uint32)
        self._ids[code_points(characters)] = np.arange(self.FIRST, self.vocab_size)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.characters, self.name)

    @classmethod
    def load(cls, folder: Path, card: TokenizerCard) -> Characters:
        """Read the characters that `save` wrote. Raises FileNotFoundError, and ValueError if they are not UTF-8."""
        return cls((folder / _CHARACTERS).read_bytes().decode(), card.name)

    def save(self, folder: Path) -> None:
        files.write_file(folder / _CHARACTERS, self.characters.encode())
        save_card(self, folder)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._ids[code_points(text)].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> FlatIds:
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        return self._ids[code_points("".join(texts))], lengths

    def decode(self, ids: Iterable[int]) -> str:
        # Printed editions use □ for an illegible character.
        return "".join(
            "□" if token == self.UNKNOWN else self.characters[token - self.FIRST]
            for token in ids
            if token != self.end_of_text
        )

    def token_bytes(self, token: int, after: int | None = None) -> bytes:
        return self.decode([token]).encode(errors="ignore")

    def unknown_characters(self, text: str) -> str:
        vocabulary = set(self.characters)
        return "".join(dict.fromkeys(character for character in text if character not in vocabulary))

    def count_unknown(self, text: str) -> int:
        return int((self._ids[code_points(text)] == self.UNKNOWN).sum())

    def normalize(self, text: str) -> str:
        return text
