"""The kinds that need no library: one id a character, and numbers that are their own ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store import files
from pipeline.tokenizers.tokenizer import Card, FlatIds, save_card

_CHARACTERS = "characters.txt"
_ANYWHERE = re.compile("(?s:(?<=.)(?=.))")


class Characters:
    """One id a character: 0 ends a text, 1 stands for any character that was not in the training text."""

    kind = "char"
    encoder = "characters"
    boundary = _ANYWHERE
    UNKNOWN = unknown_id = 1
    FIRST = 2

    def __init__(self, characters: str, name: str) -> None:
        self.name = name
        self.characters = characters
        self.end_of_text = 0
        self.vocab_size = self.FIRST + len(characters)
        self.fingerprint = f"char:{hashlib.sha256(characters.encode()).hexdigest()[:16]}"
        self._ids = np.full(0x110000, self.UNKNOWN, np.uint32)
        self._ids[_code_points(characters)] = np.arange(self.FIRST, self.vocab_size)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.characters, self.name)

    @classmethod
    def load(cls, folder: Path, card: Card) -> Characters:
        """The characters that `save` wrote. Raises FileNotFoundError, and ValueError when they are not UTF-8."""
        return cls((folder / _CHARACTERS).read_bytes().decode(), card.name)

    def save(self, folder: Path) -> None:
        files.write_file(folder / _CHARACTERS, self.characters.encode())
        save_card(self, folder)

    def encode(self, text: str) -> list[int]:
        return self._ids[_code_points(text)].tolist()

    def encode_batch(self, texts: Sequence[str]) -> FlatIds:
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        return self._ids[_code_points("".join(texts))], lengths

    def decode(self, ids: Iterable[int]) -> str:
        # □ is what editions print for a character that cannot be read.
        return "".join(
            "□" if token == self.UNKNOWN else self.characters[token - self.FIRST]
            for token in ids
            if token != self.end_of_text
        )

    def spell(self, token: int, after: int | None = None) -> bytes:
        return self.decode([token]).encode(errors="ignore")

    def unknown(self, text: str) -> str:
        known = set(self.characters)
        return "".join(dict.fromkeys(character for character in text if character not in known))


def _code_points(text: str) -> np.ndarray:
    """uint32 [number of characters]"""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
