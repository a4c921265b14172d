"""SentencePiece models: BPE and unigram."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from pipeline.errors import BadData
from pipeline.store import files
from pipeline.tokenizers.tokenizer import FlatIds, TokenizerCard, flat_ids, save_card

_MODEL = "tokenizer.model"
_NORMALIZED = (
    "a  a",
    " a",
    "a ",
    "a\na",
    "a\ta",
    "A",
    "Ａ",
    "，",
    "㈱",
    "ﬁ",
    "e\u0301",
    "a\u200ba",
)  # by most normalizers


class SentencePiece:
    """A SentencePiece model (BPE or unigram), from the bytes of its file. `processor` is the library's object."""

    kind = "sentencepiece"
    encoder = "sentencepiece"

    def __init__(self, model: bytes, name: str) -> None:
        """Raises BadData for bytes that are not a model, and for a model without an end-of-text piece."""
        import sentencepiece

        self.name = name
        self._model = model
        if not model:  # the library would wait for a model to be loaded later, and print an error to stderr
            raise BadData(f"{name}: not a SentencePiece model: the file is empty", hint="train it again")
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise BadData(f"{name}: not a SentencePiece model: {error}", hint="train it again") from None
        self.vocab_size = self.processor.get_piece_size()
        self.end_of_text = self.processor.eos_id()
        if self.end_of_text < 0:
            raise BadData(f"{name}: the model has no end-of-text (eos) piece", hint="train it with eos_id set")
        self.fingerprint = _fingerprint_of(model)

    @classmethod
    def load(cls, folder: Path, card: TokenizerCard) -> SentencePiece:
        """Read the model that `save` wrote. Raises FileNotFoundError, and BadData if it does not match its card."""
        model = (folder / _MODEL).read_bytes()
        if _fingerprint_of(model) != card.fingerprint:  # checked before the library parses it
            raise BadData(f"{folder / _MODEL}: does not match its card", hint="build the artifact again")
        return cls(model, card.name)

    def save(self, folder: Path) -> None:
        files.write_file(folder / _MODEL, self._model)
        save_card(self, folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return SentencePiece, (self._model, self.name)

    @property
    def unknown_id(self) -> int | None:
        has_bytes = any(self.processor.is_byte(token) for token in range(min(self.vocab_size, 512)))
        return None if has_bytes else self.processor.unk_id()

    @functools.cached_property
    def boundary(self) -> re.Pattern[str] | None:
        # A merge never crosses a pair of characters that no piece contains. The probes check that the model's
        # normaliser does not change the pair, and that no character is unknown, since those merge with their
        # neighbours. A unigram model has no boundary: its 32-bit scores let earlier text decide ties.
        if not self.is_bpe():
            return None
        try:
            pieces = self.pieces()
        except UnicodeDecodeError:
            return None
        patterns = []
        if not any(re.search("[^▁]▁", piece) for piece in pieces) and self._splits(ascii_lowercase, " cd"):
            patterns.append(r"(?<=[a-z])(?= [a-z])")
        if not any("\n" in piece for piece in pieces) and self._splits("ab\n", "cd") and self._splits("山\n", "石"):
            patterns.append(r"(?<=\S\n)(?=\S)")
        return re.compile("|".join(patterns)) if patterns else None

    def pieces(self) -> list[str]:
        """Return the text of every id. Raises UnicodeDecodeError if a piece is not valid UTF-8."""
        return [self.processor.id_to_piece(token) for token in range(self.vocab_size)]

    def is_bpe(self) -> bool:
        # BPE's scores are the ranks of its merges, 0, -1, -2, …; unigram's are log probabilities.
        scores = (self.processor.get_score(token) for token in range(self.vocab_size))
        return all(score == round(score) for score in scores)

    def _splits(self, left: str, right: str) -> bool:
        ids = self.encode(left + right)
        return self.encode(left) + self.encode(right) == ids and self.processor.unk_id() not in ids

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.processor.encode(text)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> FlatIds:
        return flat_ids(self.processor.encode(list(texts), num_threads=1, return_type="numpy"))

    def decode(self, ids: Iterable[int]) -> str:
        text: str = self.processor.decode([int(token) for token in ids if token != self.end_of_text])
        return text

    def token_bytes(self, token: int, after: int | None = None) -> bytes:
        if self.processor.is_byte(token):
            return bytes([int(self.processor.id_to_piece(token)[1:-1], 16)])  # <0xE5>
        if token == self.end_of_text or self.processor.is_control(token):
            return b""
        if after is None or self.processor.is_unknown(token):
            return self.decode([token]).encode()  # the model has its own rules for the beginning of a text
        return self.processor.id_to_piece(token).replace("▁", " ").encode()

    def unknown_characters(self, text: str) -> str:
        # This includes ▁, which SentencePiece decodes as a space.
        return "".join(
            character for character in dict.fromkeys(text) if self.decode(self.encode(character)) != character
        )

    @functools.cached_property
    def adds_prefix(self) -> bool:
        """True if the model puts a space before each text (add_dummy_prefix), which decoding removes."""
        return self.normalize("a") == " a"

    @functools.cached_property
    def normalizes(self) -> bool:
        prefix = " " if self.adds_prefix else ""
        return any(self.normalize(text) != prefix + text for text in _NORMALIZED)

    def count_unknown(self, text: str) -> int:
        unknown = self.unknown_id
        if unknown is None:
            return 0
        pieces = self.processor.encode(text, return_type="offset_mapping")  # a run of unknown characters is one piece
        runs = zip(pieces["ids"], pieces["offsets"], strict=True)
        # A normalizer may join a known character to an unknown one, so the characters of a run are tested one by one.
        return sum(
            max(sum(map(self._is_unknown, text[start:end])), 1) for token, (start, end) in runs if token == unknown
        )

    @functools.cached_property
    def _is_unknown(self) -> Callable[[str], bool]:
        return functools.cache(lambda character: self.processor.unk_id() in self.encode(character))

    def normalize(self, text: str) -> str:
        normalized: str = self.processor.normalize(text)
        return normalized.replace("▁", " ")


def _fingerprint_of(model: bytes) -> str:
    return f"sentencepiece:{hashlib.sha256(model).hexdigest()[:16]}"
