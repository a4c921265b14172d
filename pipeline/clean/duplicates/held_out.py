"""Held-out text: documents that share passages with a validation or test corpus must not be trained on.

Text is compared as tokens: each Han character is a token, and so is each maximal run of other letters and digits, in
lower case; punctuation, spaces and all else only separate tokens. □ and characters without an encoding count as
letters. This is the normalisation of `--dedup`, cut into words. Sequences of NGRAM tokens within a document are
compared by their 64-bit hashes.

A document is contaminated if it has MIN_SHARED different sequences in common with all held-out documents together, or
the same letters as one of them. One passage of 20 tokens has 8 sequences of 13: a poem of four lines of five characters
is dropped, a quoted couplet of 14 characters, an idiom or a common phrase is not.

Sequences of 13 are those of GPT-3 (Brown et al. 2020, appendix C) and of EleutherAI's evaluation harness
(docs/decontamination.md). There, one shared sequence is enough; GPT-3 ignores those that match more than ten times, and
removes a window around the others. We drop complete documents, one at a time, so we require a longer passage.
docs/design/cleaning.md, section 4.5, has what 1 to 16 of them would drop.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.clean.duplicates.fingerprints import IGNORED, fingerprints, letter_table
from pipeline.clean.report.report import EXAMPLE_CHARACTERS
from pipeline.clean.utf16 import (
    HAN_HIGH_SURROGATES,
    HAN_UNITS,
    UNIT_COUNT,
    Utf16Text,
    class_table,
    decode_utf16,
    join_documents,
)
from pipeline.errors import BadConfig

REASON = "contaminated"  # of the rejects
NGRAM = 13  # tokens
MIN_SHARED = 8  # sequences
MAX_NGRAMS = 1 << 27  # of the held-out text: 1 GiB
_SEPARATOR_UNIT, _WORD_UNIT, _HAN_UNIT, _LOW_SURROGATE = range(4)
_PAGE_CHARACTERS = 1 << 20  # of held-out text that is hashed at once
_BASE, _NGRAM_BASE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_MAX_FILTER_BITS = 27


class Tokens(NamedTuple):
    """The tokens of a page: their hashes, the positions of their first units, and the number of their document."""

    hashes: np.ndarray
    positions: np.ndarray
    documents: np.ndarray


def tokens(page: Utf16Text) -> Tokens:
    """Return the tokens of a page. Two tokens have the same hash if they have the same letters."""
    kinds = _unit_kinds().take(page.units)
    low = np.flatnonzero(kinds == _LOW_SURROGATE)
    kinds[low] = kinds[low - 1]
    is_start = (kinds == _HAN_UNIT) | ((kinds == _WORD_UNIT) & (np.append(_SEPARATOR_UNIT, kinds[:-1]) != _WORD_UNIT))
    is_start[low] = False
    is_letter = kinds != _SEPARATOR_UNIT
    letters, starts = letter_table().take(page.units[is_letter]), np.flatnonzero(is_start[is_letter])
    positions = np.flatnonzero(is_start)
    if not len(starts):
        return Tokens(np.zeros(0, np.uint64), positions, positions)
    lengths = np.diff(np.append(starts, len(letters)))
    offsets = np.arange(len(letters)) - np.repeat(starts, lengths)
    hashes = np.add.reduceat(_unit_hashes().take(letters) * _powers(_BASE, int(lengths.max())).take(offsets), starts)
    documents = np.searchsorted(np.flatnonzero(page.units == 0), positions)
    return Tokens(_mix(hashes), positions, documents)


def ngrams(page_tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of all sequences of NGRAM tokens within a document, and the numbers of their first tokens."""
    count = len(page_tokens.hashes) - NGRAM + 1
    if count < 1:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    hashes = np.zeros(count, np.uint64)
    for offset, factor in enumerate(_powers(_NGRAM_BASE, NGRAM)):
        hashes += page_tokens.hashes[offset : offset + count] * factor
    documents = page_tokens.documents
    firsts = np.flatnonzero(documents[:count] == documents[NGRAM - 1 :])
    return _mix(hashes[firsts]), firsts


@functools.cache
def _unit_kinds() -> np.ndarray:
    kinds = np.where(letter_table() == IGNORED, _SEPARATOR_UNIT, _WORD_UNIT).astype(np.uint8)
    kinds[0] = _SEPARATOR_UNIT
    kinds[class_table((1, (*HAN_UNITS, HAN_HIGH_SURROGATES))).astype(bool)] = _HAN_UNIT
    kinds[0xDC00:0xE000] = _LOW_SURROGATE
    return kinds


@functools.cache
def _unit_hashes() -> np.ndarray:
    return _mix(np.arange(1, UNIT_COUNT + 1, dtype=np.uint64))


def _powers(base: np.uint64, count: int) -> np.ndarray:
    return np.cumprod(np.append(np.uint64(1), np.full(count - 1, base)), dtype=np.uint64)


def _mix(values: np.ndarray) -> np.ndarray:
    """Return the values after the last steps of SplitMix64 (Steele, Lea, Flood 2014), which spread all bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


class HeldOutCounts(NamedTuple):
    """The held-out text: its documents, those without a sequence of NGRAM tokens, and its different sequences."""

    documents: int
    short: int
    ngrams: int


def write_index(texts: Iterable[str], folder: Path) -> HeldOutCounts:
    """Write the sequences and the fingerprints of held-out documents into a folder, as sorted arrays.

    Raises BadConfig if there are more than MAX_NGRAMS sequences.
    """
    merged, parts, prints = np.zeros(0, np.uint64), [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    count = short = 0
    for batch in _batches(texts):
        page = join_documents(batch)
        page_tokens = tokens(page)
        hashes, firsts = ngrams(page_tokens)
        parts.append(hashes)
        prints.append(_fingerprints(page))
        count += len(batch)
        short += len(batch) - len(np.unique(page_tokens.documents[firsts]))
        if sum(map(len, parts)) > max(len(merged), _PAGE_CHARACTERS):
            merged, parts = _merge([merged, *parts]), []
    merged = _merge([merged, *parts])
    np.save(folder / "ngrams.npy", merged)
    np.save(folder / "prints.npy", np.unique(np.concatenate(prints)))
    return HeldOutCounts(count, short, len(merged))


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _PAGE_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _merge(parts: Sequence[np.ndarray]) -> np.ndarray:
    merged = np.unique(np.concatenate(parts))
    if len(merged) > MAX_NGRAMS:
        raise BadConfig(
            f"--decontaminate: the held-out text must have at most {MAX_NGRAMS:,} different sequences of "
            f"{NGRAM} words, got more",
            hint="name a smaller validation or test corpus",
        )
    return merged


def _fingerprints(page: Utf16Text) -> np.ndarray:
    return np.frombuffer(b"".join(fingerprints(page)), "<u8")[::2]


class Contamination(NamedTuple):
    """The number of different sequences that a document shares with held-out ones, and the first shared passage."""

    shared: int
    passage: str


@dataclass(frozen=True)
class HeldOutIndex:
    """Sorted hashes of the held-out text. `present` is a table over their highest bits, to exclude most others."""

    ngrams: np.ndarray
    fingerprints: np.ndarray
    present: np.ndarray
    shift: np.uint64

    def find(self, page: Utf16Text) -> dict[int, Contamination]:
        """Return the contaminated documents of a page by their number."""
        page_tokens = tokens(page)
        hashes, firsts = ngrams(page_tokens)
        possible = np.flatnonzero(self.present[hashes >> self.shift])
        possible = possible[_is_in(hashes[possible], self.ngrams)]
        hashes, firsts = hashes[possible], firsts[possible]
        owners = page_tokens.documents[firsts]
        counts: dict[int, int] = {}
        for number in np.unique(owners).tolist():
            counts[number] = len(np.unique(hashes[owners == number]))
        equal = np.flatnonzero(_is_in(_fingerprints(page), self.fingerprints)).tolist()
        numbers = sorted({number for number, count in counts.items() if count >= MIN_SHARED} | {*equal})
        contaminated = {}
        for number in numbers:
            mine = np.flatnonzero(owners == number)
            first = firsts[mine[0]] if len(mine) else np.searchsorted(page_tokens.documents, number)
            start = int(page_tokens.positions[first]) if first < len(page_tokens.positions) else 0
            passage = decode_utf16(page[start : start + 2 * EXAMPLE_CHARACTERS]).split("\0")[0]
            contaminated[number] = Contamination(counts.get(number, 0), passage[:EXAMPLE_CHARACTERS])
        return contaminated


def _is_in(values: np.ndarray, array: np.ndarray) -> np.ndarray:
    if not len(array):
        return np.zeros(len(values), bool)
    mask: np.ndarray = array[np.minimum(np.searchsorted(array, values), len(array) - 1)] == values
    return mask


@functools.cache
def open_index(folder: Path) -> HeldOutIndex:
    """Return the index in a folder. Processes share its arrays, which are mapped into memory."""
    sequences = np.load(folder / "ngrams.npy", mmap_mode="r").view(np.ndarray)
    bits = min(max(16, (8 * len(sequences)).bit_length()), _MAX_FILTER_BITS)
    shift = np.uint64(64 - bits)
    present = np.zeros(1 << bits, bool)
    present[sequences >> shift] = True
    return HeldOutIndex(sequences, np.load(folder / "prints.npy"), present, shift)
