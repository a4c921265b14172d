"""Differences between a text and what its ids decode to: unknown characters, and those that a normalizer rewrites."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.tokenizers.sentencepiece import SentencePiece
from pipeline.tokenizers.tokenizer import FlatIds, Tokenizer, Unencodable, code_points

_UNTESTED, _SAME, _REWRITTEN, _LOST = range(4)  # states of a character; a lost one has no ids
_CODE_POINTS = 0x110000
# A character is tested between two equal ones of these, because tokenizers treat the ends of a text differently.
_ANCHORS = "a的0一xA。"
_SPACES = re.compile(" {2,}")


class Difference(NamedTuple):
    """Differences between a decoded text and the one encoded.

    `unknown` is the number of its characters that are not in the vocabulary, `rewritten` counts the rewrites of single
    characters ("， → ,"), and `text` is the original text, None if it need not be kept.
    """

    unknown: int
    rewritten: dict[str, int]
    text: str | None


class Roundtrip:
    """Compares texts with what the ids of a tokenizer decode to. Every character is tested once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # SentencePiece decodes ▁ as a space, also without a normalizer.
        self._tests_characters = tokenizer.normalizes or tokenizer.kind == SentencePiece.kind
        self._states = np.zeros(_CODE_POINTS if self._tests_characters else 0, np.uint8)
        self._rewrites: dict[int, str] = {}
        self._anchor = next((anchor for anchor in _ANCHORS if self._decoded(anchor) == anchor), "")
        self._joins_spaces = tokenizer.normalizes and self._between("  ") == " "

    def differences(self, texts: Sequence[str], encoded: FlatIds, *, keep_text: bool) -> dict[int, Difference]:
        """Return the differences by index of the text, without texts that have none.

        `encoded` holds the ids of the texts. With `keep_text`, the texts that decode to others are kept.
        """
        ids, lengths = encoded
        ends = np.cumsum(lengths)
        is_unknown = np.zeros(len(texts), bool)
        if self._tokenizer.unknown_id is not None:
            positions = np.flatnonzero(ids == self._tokenizer.unknown_id)
            is_unknown[np.searchsorted(ends, positions, side="right")] = True
        lost, rewritten = self._test_characters(texts)
        rows = {*np.flatnonzero(is_unknown).tolist(), *lost, *rewritten}
        if keep_text and self._tokenizer.normalizes:
            rows = set(range(len(texts)))
        differences = {}
        for row in sorted(rows):
            text = texts[row]
            unknown = (self._tokenizer.count_unknown(text) if is_unknown[row] else 0) + lost[row]
            is_kept = keep_text and self._tokenizer.decode(ids[ends[row] - lengths[row] : ends[row]]) != text
            if unknown or is_kept or row in rewritten:
                differences[row] = Difference(unknown, dict(rewritten.get(row, ())), text if is_kept else None)
        return differences

    def count_unknown(self, text: str) -> int:
        """Return the number of characters of `text` that are not in the vocabulary."""
        return self._tokenizer.count_unknown(text) + self._test_characters([text])[0][0]

    def _test_characters(self, texts: Sequence[str]) -> tuple[Counter[int], dict[int, Counter[str]]]:
        """Return the number of lost characters, and the rewritten ones, of each text that has any."""
        lost: Counter[int] = Counter()
        rewritten: dict[int, Counter[str]] = {}
        if not self._tests_characters:
            return lost, rewritten
        codes = code_points("".join(texts))
        states = self._states[codes]
        if not states.all():
            for code in np.unique(codes[states == _UNTESTED]).tolist():
                self._states[code] = self._test(code)
            states = self._states[codes]
        positions = np.flatnonzero(states > _SAME)
        rows = np.searchsorted(np.cumsum(list(map(len, texts))), positions, side="right")
        keys, counts = np.unique(rows * _CODE_POINTS + codes[positions], return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            row, code = divmod(key, _CODE_POINTS)
            if self._states[code] == _LOST:
                lost[row] += count
            else:
                rewritten.setdefault(row, Counter())[self._rewrites[code]] += count
        if self._joins_spaces:
            for row, text in enumerate(texts):
                if spaces := sum(len(match[0]) - 1 for match in _SPACES.finditer(text)):
                    rewritten.setdefault(row, Counter())["several spaces → one"] += spaces
        return lost, rewritten

    def _test(self, code: int) -> int:
        """Return the state of a character, and record its rewrite, if any. An unknown character is _SAME."""
        character = chr(code)
        try:
            ids = self._tokenizer.encode(character)
        except Unencodable:
            return _SAME
        alone = self._tokenizer.decode(ids)
        if self._tokenizer.unknown_id in ids or alone == character or self._between(character) == character:
            return _SAME
        decoded = alone or self._between(character)
        normalized = self._tokenizer.normalize(character)
        if not decoded and normalized and not normalized.isspace():
            return _LOST
        self._rewrites[code] = f"{_name(character)} → {_name(decoded)}"
        return _REWRITTEN

    def _between(self, text: str) -> str:
        """Return what `text` decodes to if it is encoded between two anchors."""
        anchor = self._anchor
        return self._decoded(anchor + text + anchor).removeprefix(anchor).removesuffix(anchor)

    def _decoded(self, text: str) -> str:
        try:
            return self._tokenizer.decode(self._tokenizer.encode(text))
        except Unencodable:
            return ""


def roundtrip_of(tokenizer: Tokenizer) -> Roundtrip | None:
    """Return the comparison for a tokenizer, None if every text decodes to itself. A process creates it once."""
    if tokenizer.unknown_id is None and not tokenizer.normalizes and tokenizer.kind != SentencePiece.kind:
        return None
    return _cached(_ByFingerprint(tokenizer))


class _ByFingerprint:
    """A tokenizer as the key of a cache."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __hash__(self) -> int:
        return hash(self.tokenizer.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByFingerprint) and self.tokenizer.fingerprint == other.tokenizer.fingerprint


@functools.lru_cache(8)
def _cached(key: _ByFingerprint) -> Roundtrip:
    return Roundtrip(key.tokenizer)


def _name(text: str) -> str:
    """Return a text for a report: itself, code points if it cannot be seen, or "nothing"."""
    is_visible = text.isprintable() and not text.isspace() and not unicodedata.combining(text[:1] or " ")
    return text if text and is_visible else " ".join(_names(text))


def _names(text: str) -> Iterator[str]:
    if not text:
        yield "nothing"
    for character in text:
        yield f"U+{ord(character):04X}"
