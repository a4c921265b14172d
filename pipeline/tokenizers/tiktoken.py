"""OpenAI's encodings: tiktoken defines the ids, gigatoken computes the same ids many times faster."""

from __future__ import annotations

import functools
import hashlib
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store import files
from pipeline.tokenizers.boundaries import WORD_OR_LINE
from pipeline.tokenizers.gigatoken import choose_encoder, fast_encoder
from pipeline.tokenizers.ranks import definition as encoding_definition
from pipeline.tokenizers.tokenizer import (
    END_OF_TEXT,
    FlatIds,
    TokenizerCard,
    Unencodable,
    flat_ids,
    panics_as_unencodable,
    save_card,
)

ENCODINGS = ("gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base")

_RANKS = "ranks.tiktoken"


class Tiktoken:
    """One of OpenAI's encodings.

    Its ranks are saved with the tokenizer, in tiktoken's file format, so that artifacts can be opened without
    tiktoken's cache and without a network.
    """

    kind = "tiktoken"
    boundary = WORD_OR_LINE
    unknown_id = None
    normalizes = False

    def __init__(
        self, name: str, ranks: bytes, pattern: str, vocab_size: int, end_of_text: int, encoder: str = "auto"
    ) -> None:
        self.name, self.vocab_size, self.end_of_text = name, vocab_size, end_of_text
        self.encoder = choose_encoder(name, encoder)
        self._ranks, self.pattern = ranks, pattern
        definition = b"%d %d %s\n%s" % (vocab_size, end_of_text, pattern.encode(), ranks)
        self.fingerprint = f"tiktoken:{name}:{hashlib.sha256(definition).hexdigest()[:16]}"

    @classmethod
    def named(cls, name: str, encoder: str = "auto") -> Tiktoken:
        """Load an encoding, whose ranks come from a cache or the network; `ranks.py` lists the places.

        Raises TryAgain if no place has them, BadData if they are damaged.
        """
        definition = encoding_definition(name)
        special: dict[str, int] = definition["special_tokens"]
        pairs = sorted(definition["mergeable_ranks"].items(), key=lambda pair: pair[1])
        ranks = b"".join(b"%b %d\n" % (b2a_base64(token, newline=False), rank) for token, rank in pairs)
        size = max(pairs[-1][1], *special.values()) + 1
        return cls(name, ranks, definition["pat_str"], size, special[END_OF_TEXT], encoder)

    @classmethod
    def load(cls, folder: Path, card: TokenizerCard) -> Tiktoken:
        """Read the encoding that `save` wrote. Raises FileNotFoundError, and ValueError if the ranks are damaged."""
        ranks = (folder / _RANKS).read_bytes()
        return cls(card.name, ranks, card.pattern, card.vocab_size, card.end_of_text)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tiktoken, (self.name, self._ranks, self.pattern, self.vocab_size, self.end_of_text, self.encoder)

    def save(self, folder: Path) -> None:
        files.write_file(folder / _RANKS, self._ranks)
        save_card(self, folder, pattern=self.pattern)

    @functools.cached_property
    def ranks(self) -> dict[bytes, int]:
        pairs = (line.split() for line in self._ranks.splitlines())
        return {a2b_base64(token): int(rank) for token, rank in pairs}

    @functools.cached_property
    def _text_ids(self) -> frozenset[int]:
        """The ids that stand for text; some ids below `vocab_size` do not."""
        return frozenset(self.ranks.values())

    @functools.cached_property
    def _reference(self) -> Any:
        import tiktoken

        special = {END_OF_TEXT: self.end_of_text}
        return tiktoken.Encoding(self.name, pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=special)

    @functools.cached_property
    def _fast(self) -> Callable[[Sequence[str]], FlatIds]:
        return fast_encoder(self.name, self._ranks)

    def encode(self, text: str) -> list[int]:
        with panics_as_unencodable():
            ids: list[int] = self._encode_reference(text).tolist()
            return ids

    def encode_batch(self, texts: Sequence[str]) -> FlatIds:
        with panics_as_unencodable():
            if not texts or self.encoder == "tiktoken":
                return flat_ids([self._encode_reference(text) for text in texts])
            return self._fast(texts)

    def _encode_reference(self, text: str) -> np.ndarray:
        """Return the ids of tiktoken's `encode_ordinary` as uint32 of shape (ids,).

        `encode_ordinary` itself returns a list, and prints a backtrace before it fails on a text.
        """
        try:
            ids: np.ndarray = self._reference.encode_to_numpy(text, disallowed_special=())
            return ids
        except UnicodeEncodeError:  # an unpaired surrogate, which `encode_ordinary` replaces in this way
            return self._encode_reference(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        except ValueError as error:  # a million spaces exceed the limit of its regular expressions
            raise Unencodable(str(error)) from None

    def decode(self, ids: Iterable[int]) -> str:
        # A model early in training may sample an id without text.
        text: str = self._reference.decode([token for token in ids if token in self._text_ids])
        return text

    def token_bytes(self, token: int, after: int | None = None) -> bytes:
        return self._reference.decode_single_token_bytes(token) if token in self._text_ids else b""

    def unknown_characters(self, text: str) -> str:
        return ""

    def count_unknown(self, text: str) -> int:
        return 0

    def normalize(self, text: str) -> str:
        return text
