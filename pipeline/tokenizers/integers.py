"""Tokenizer of integers for the counting toy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import BadData
from pipeline.tokenizers.tokenizer import FlatIds, flat_ids, save_card


class Integers:
    """Integers below `vocab_size` as their own ids. 0 is end-of-text, also when it appears in a text."""

    kind = "integers"
    encoder = "integers"
    boundary = None
    unknown_id = None
    normalizes = False
    name = "integers"
    end_of_text = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.fingerprint = f"integers:{vocab_size}"

    def save(self, folder: Path) -> None:
        save_card(self, folder)

    def encode(self, text: str) -> list[int]:
        try:
            ids = [int(word) for word in text.replace(",", " ").split()]
        except ValueError:
            raise BadData(f"{text!r}: not a list of numbers", hint="for example 1,2,3") from None
        if invalid := [token for token in ids if not 0 <= token < self.vocab_size]:
            raise BadData(f"{invalid[0]} is out of range", hint=f"use numbers from 0 to {self.vocab_size - 1}")
        return ids

    def encode_batch(self, texts: Sequence[str]) -> FlatIds:
        return flat_ids([np.array(self.encode(text), np.uint32) for text in texts])

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(str(token) for token in ids if token != self.end_of_text)

    def token_bytes(self, token: int, after: int | None = None) -> bytes:
        if token == self.end_of_text:
            return b""
        return f"{token}".encode() if after is None else f" {token}".encode()

    def unknown_characters(self, text: str) -> str:
        return ""

    def count_unknown(self, text: str) -> int:
        return 0

    def normalize(self, text: str) -> str:
        return text
