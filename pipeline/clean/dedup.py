"""Duplicates: documents that are like one before them. The first in the order of the inputs stays.

Two are equal when their letters are: punctuation, spaces and case are not looked at. Two are near when the sets of
their runs of five letters have more than a share in common (Jaccard), which MinHash estimates and LSH finds without
comparing every pair: Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3. Both are
computed from the text alone, so they are the same in every process and in every run.
"""

from __future__ import annotations

import importlib
import itertools
from functools import cache
from hashlib import blake2b, sha256
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from pipeline.clean.utf16 import LACUNA, SEPARATOR, UNITS, Codes, bounds, join
from pipeline.errors import BadConfig

Sketch = Any  # rensa.RMinHash: 512 bytes, can be pickled

DIGEST = 16  # bytes: two of a billion documents collide with a chance of 1 in 10**20
GRAM = 5  # letters
THRESHOLD = 0.8
_SLOTS = 128  # the estimate is within 0.07 of the share 19 times of 20
_SEED = 1
_RECALL = 0.99  # of pairs that are just as near as the threshold, the share to be found
_AT_ONCE = 1 << 16  # letters of a long document: their runs are objects, and many


_GONE = 0xFFFF  # no character: stands in the table for what does not count


def fingerprints(page: Codes) -> list[bytes]:
    """Of every document of a page (parted by NUL) 16 bytes, the same for those that have the same letters."""
    return [blake2b(each, digest_size=DIGEST).digest() for each in _compared(page)]


def digests(page: Codes) -> list[bytes]:
    """Of every document of a page 16 bytes, the same only for the same text: a quarter of the work."""
    return [sha256(page.units[start:end].data).digest()[:DIGEST] for start, end in bounds(page)]


def fingerprint(text: str) -> bytes:
    """The fingerprint of one document."""
    return fingerprints(join([text]))[0]


def _compared(page: Codes) -> list[bytes]:
    """What each document is compared by: its letters, as UTF-16; if it has none, all of it."""
    found = _letters().take(page.units)
    kept = found[found != _GONE]
    raw, ends = kept.tobytes(), 2 * np.append(np.flatnonzero(kept == 0), len(kept))
    parts = [raw[start + 2 : end] for start, end in itertools.pairwise([-2, *ends.tolist()])]
    if not all(parts):
        whole = [page.units[start:end].tobytes() for start, end in bounds(page)]
        parts = [part or full for part, full in zip(parts, whole, strict=True)]
    return parts


@cache
def _letters() -> np.ndarray:
    """What counts of each unit: letters and digits in lower case, □, gaiji, pairs, and NUL; _GONE for the rest."""
    table = np.full(UNITS, _GONE, "<u2")
    for unit in range(UNITS):
        character = chr(unit)
        small = character.lower() if len(character.lower()) == 1 else character
        if character.isalnum() or 0xD800 <= unit < 0xF900 or character in LACUNA + SEPARATOR:
            table[unit] = ord(small)
    return table


class Exact:
    """Which documents came before, about 100 bytes for each."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._seen)

    def has(self, digest: bytes) -> bool:
        """Whether a document with this fingerprint was asked for before; from now on it was."""
        before = len(self._seen)
        self._seen.add(digest)
        return len(self._seen) == before


class Match(NamedTuple):
    """Document number `dropped` is near number `kept`, which came before it."""

    kept: int
    dropped: int
    similarity: float  # estimated Jaccard


def sketch(text: str) -> Sketch:
    """The MinHash of a text, for Near. Raises BadConfig where rensa is not installed."""
    [raw] = _compared(join([text]))
    made = _rensa().RMinHash(num_perm=_SLOTS, seed=_SEED)
    width, last = 2 * GRAM, max(len(raw) - 2 * GRAM, 0)
    for start in range(0, last + 1, 2 * _AT_ONCE):
        stop = min(start + 2 * _AT_ONCE, last + 1)
        made.update([raw[at : at + width] for at in range(start, stop, 2)])
    return made


class Near:
    """Which documents were kept, about 2.7 kB for each."""

    def __init__(self, threshold: float = THRESHOLD) -> None:
        if not 0 < threshold <= 1:
            raise BadConfig(f"the threshold of near duplicates is {threshold}", hint="more than 0, at most 1")
        self._threshold = threshold
        self._index = _rensa().RMinHashLSH(threshold=threshold, num_perm=_SLOTS, num_bands=bands(threshold))
        self._kept: dict[int, Sketch] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def has(self, sketch: Sketch, number: int) -> Match | None:
        """The kept document that document `number` is nearest to, at the threshold or over it: the first of several.

        Where there is none, the document is kept. Numbers are the caller's, and each is given once.
        """
        near = [(self._kept[key].jaccard(sketch), -key) for key in self._index.query(sketch)]
        similarity, key = max(near, default=(0.0, 0))
        if near and similarity >= self._threshold:
            return Match(-key, number, similarity)
        self._kept[number] = sketch
        self._index.insert(number, sketch)
        return None


def bands(threshold: float) -> int:
    """Into how few bands the slots are cut so that a pair at the threshold agrees in one of them, 99 times of 100."""
    rows = _SLOTS
    while rows > 1 and 1 - (1 - threshold**rows) ** (_SLOTS // rows) < _RECALL:
        rows //= 2
    return _SLOTS // rows


def _rensa() -> ModuleType:
    try:
        return importlib.import_module("rensa")
    except ImportError as error:
        raise BadConfig("finding near duplicates needs rensa", hint="pip install 'inkstone[dedup]'") from error
