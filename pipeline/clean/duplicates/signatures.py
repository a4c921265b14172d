"""MinHash signatures of documents, from which the Jaccard similarity of their shingles is estimated.

A shingle is five letters in a row. Of two signatures, the fraction of equal values estimates the Jaccard similarity of
the two sets of shingles: Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3. Signatures
depend on the text alone.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np

from pipeline.clean.duplicates.fingerprints import letters_of
from pipeline.clean.utf16 import Utf16Text
from pipeline.errors import BadConfig, install_command

SHINGLE = 5  # letters
VALUES = 128  # of a signature; the estimate is within 0.07 of the similarity in 19 of 20 cases
SIGNATURE = np.dtype("<u4")  # of a value
_SEED = 1
_SHINGLES_AT_ONCE = 1 << 16  # bounds the memory for shingles


def signatures(page: Utf16Text) -> np.ndarray:
    """Return the signature of each document of a page, of shape (documents, VALUES).

    Raises BadConfig if rensa is not installed.
    """
    minhash = load_rensa().RMinHash
    rows: list[list[int]] = []
    batch: list[list[bytes]] = []
    size = 0
    for raw in letters_of(page):
        count = max(len(raw) // 2 - SHINGLE, 0) + 1
        if batch and size + count > _SHINGLES_AT_ONCE:
            rows += minhash.digest_matrix_from_token_byte_sets(batch, VALUES, _SEED).to_rows()
            batch, size = [], 0
        if count > _SHINGLES_AT_ONCE:
            rows.append(_long_signature(minhash(num_perm=VALUES, seed=_SEED), raw, count))
        else:
            batch.append(_shingles(raw, 0, count))
            size += count
    if batch:
        rows += minhash.digest_matrix_from_token_byte_sets(batch, VALUES, _SEED).to_rows()
    return np.array(rows, SIGNATURE).reshape(-1, VALUES)


def _shingles(raw: bytes, start: int, stop: int) -> list[bytes]:
    """Return the shingles `start` to `stop` of letters in UTF-16; fewer letters than a shingle are one."""
    return [raw[2 * number : 2 * (number + SHINGLE)] for number in range(start, stop)]


def _long_signature(minhash: object, raw: bytes, count: int) -> list[int]:
    for start in range(0, count, _SHINGLES_AT_ONCE):
        minhash.update(_shingles(raw, start, min(start + _SHINGLES_AT_ONCE, count)))  # type: ignore[attr-defined]
    return minhash.digest()  # type: ignore[attr-defined, no-any-return]


def load_rensa() -> ModuleType:
    """Return the module. Raises BadConfig if it is not installed."""
    try:
        return importlib.import_module("rensa")
    except ImportError as error:
        raise BadConfig("--dedup near needs rensa", hint=install_command("dedup")) from error
