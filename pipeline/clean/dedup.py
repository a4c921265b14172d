"""Duplicate documents: of several equal or similar documents, the first in input order is kept.

Exact duplicates have the same letters: punctuation, spaces and case are ignored. Near duplicates have sets of
five-letter shingles whose Jaccard similarity reaches a threshold. MinHash estimates it, and LSH finds candidates
without comparing every pair: Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3.

Both depend on the text alone, so they are the same in every process and in every run.
"""

from __future__ import annotations

import importlib
import itertools
from functools import cache
from hashlib import blake2b, sha256
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from pipeline.clean.utf16 import LACUNA, SEPARATOR, UNIT_COUNT, Utf16Text, document_bounds, join_documents
from pipeline.errors import BadConfig, install_command

Sketch = Any  # rensa.RMinHash: 512 bytes, picklable

DIGEST_BYTES = 16  # the chance that two of a billion documents collide is 1 in 10**20
SHINGLE = 5  # letters
THRESHOLD = 0.8
_PERMUTATIONS = 128  # the estimate is within 0.07 of the similarity in 19 of 20 cases
_SEED = 1
_RECALL = 0.99  # fraction of pairs exactly at the threshold that must become candidates
_SHINGLES_AT_ONCE = 1 << 16  # bounds the memory for the shingles of a long document
_IGNORED = 0xFFFF  # a noncharacter: marks ignored units in the table of letters


def digests(page: Utf16Text) -> list[bytes]:
    """Return a 16-byte hash of the exact text of each document of a page: four times as fast as a fingerprint."""
    return [sha256(page.units[start:end].data).digest()[:DIGEST_BYTES] for start, end in document_bounds(page)]


def fingerprints(page: Utf16Text) -> list[bytes]:
    """Return a 16-byte hash of the letters of each document of a page."""
    return [blake2b(letters, digest_size=DIGEST_BYTES).digest() for letters in _letters_of(page)]


def _letters_of(page: Utf16Text) -> list[bytes]:
    """Return the letters of each document as UTF-16; the complete text of a document without letters."""
    mapped = _letter_table().take(page.units)
    letters = mapped[mapped != _IGNORED]
    raw, ends = letters.tobytes(), 2 * np.append(np.flatnonzero(letters == 0), len(letters))
    parts = [raw[start + 2 : end] for start, end in itertools.pairwise([-2, *ends.tolist()])]
    if not all(parts):
        texts = [page.units[start:end].tobytes() for start, end in document_bounds(page)]
        parts = [part or text for part, text in zip(parts, texts, strict=True)]
    return parts


@cache
def _letter_table() -> np.ndarray:
    """Map each unit to its lower case if it is a letter, digit, □, gaiji, surrogate or NUL, and to _IGNORED if not."""
    table = np.full(UNIT_COUNT, _IGNORED, "<u2")
    for unit in range(UNIT_COUNT):
        character = chr(unit)
        lower = character.lower() if len(character.lower()) == 1 else character
        if character.isalnum() or 0xD800 <= unit < 0xF900 or character in LACUNA + SEPARATOR:
            table[unit] = ord(lower)
    return table


class ExactIndex:
    """The digests of all documents so far, about 100 bytes each."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, digest: bytes) -> bool:
        """Add a document. Return True if it is a duplicate."""
        before = len(self._digests)
        self._digests.add(digest)
        return len(self._digests) == before


class Match(NamedTuple):
    """A near duplicate. Documents are named by their indices."""

    original: int
    duplicate: int
    similarity: float  # estimated Jaccard


def sketch(text: str) -> Sketch:
    """Return the MinHash sketch of a text. Raises BadConfig if rensa is not installed."""
    [raw] = _letters_of(join_documents([text]))
    minhash = _rensa().RMinHash(num_perm=_PERMUTATIONS, seed=_SEED)
    width = 2 * SHINGLE  # bytes
    last = max(len(raw) - width, 0)
    for start in range(0, last + 1, 2 * _SHINGLES_AT_ONCE):
        stop = min(start + 2 * _SHINGLES_AT_ONCE, last + 1)
        minhash.update([raw[offset : offset + width] for offset in range(start, stop, 2)])
    return minhash


class NearIndex:
    """The sketches of all documents kept so far, about 2.7 kB each."""

    def __init__(self, threshold: float = THRESHOLD) -> None:
        if not 0 < threshold <= 1:
            raise BadConfig(
                f"the similarity threshold must be in (0, 1], got {threshold}", hint=f"for example {THRESHOLD}"
            )
        self._threshold = threshold
        self._lsh = _rensa().RMinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, num_bands=bands(threshold))
        self._sketches: dict[int, Sketch] = {}

    def __len__(self) -> int:
        return len(self._sketches)

    def add(self, sketch: Sketch, index: int) -> Match | None:
        """Return the most similar document at or over the threshold, the first of several. Add the document if none.

        The caller chooses the index, and must use each only once.
        """
        candidates = [(self._sketches[key].jaccard(sketch), -key) for key in self._lsh.query(sketch)]
        similarity, key = max(candidates, default=(0.0, 0))
        if candidates and similarity >= self._threshold:
            return Match(-key, index, similarity)
        self._sketches[index] = sketch
        self._lsh.insert(index, sketch)
        return None


def bands(threshold: float) -> int:
    """Return the fewest LSH bands with which _RECALL of the pairs at the threshold agree in at least one band."""
    rows = _PERMUTATIONS
    while rows > 1 and 1 - (1 - threshold**rows) ** (_PERMUTATIONS // rows) < _RECALL:
        rows //= 2
    return _PERMUTATIONS // rows


def _rensa() -> ModuleType:
    try:
        return importlib.import_module("rensa")
    except ImportError as error:
        raise BadConfig("--dedup near needs rensa", hint=install_command("dedup")) from error
