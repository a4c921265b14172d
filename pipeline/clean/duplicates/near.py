"""Duplicates among all documents of a corpus: of several equal or similar ones, the first in input order is kept.

A document is an exact duplicate if an earlier one has the same fingerprint, kept or not, and a near duplicate if an
earlier *kept* one has an estimated similarity of at least THRESHOLD. So a document that resembles only a dropped one
stays: in a chain of versions, each similar to the one before, not all are lost.

Signatures are cut into BANDS bands. Two that differ in at most MAX_DIFFERENCES values, one fewer than there are bands,
agree in at least one band, so candidates are those that agree in a band, and no pair at the threshold is missed:

1. Exact duplicates by sorting the fingerprints.
2. For each band, its keys are sorted; documents with the same key are a group. Groups can be computed in any order by
   any number of processes.
3. One pass in input order compares a document with those kept so far in its groups.

Sizes: 528 bytes of disk a document for fingerprint and signature, 208 for the groups it is in, and at most 156 for
their members; 28 bytes of memory, in steps 1 and 2. Step 3 reads signatures and members through memory maps, which the
system may evict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.clean.duplicates.signatures import SIGNATURE, VALUES
from pipeline.clean.report.report import MAX_EXAMPLES
from pipeline.runtime import workers

THRESHOLD = 0.8
MIN_EQUAL = 103  # values of two similar signatures: ceil(THRESHOLD * VALUES)
MAX_DIFFERENCES = VALUES - MIN_EQUAL
BANDS = MAX_DIFFERENCES + 1
ROWS = VALUES // BANDS  # values of a band
MAX_COMPARED = 1000  # documents of one group that another is compared with, the earliest ones
NEAR_REASON = "near-duplicate"  # of the rejects
FINGERPRINT = np.dtype("S16")
_BLOCK = 1 << 12  # documents read at once
_SPREAD_FROM = 200_000  # documents from which further processes pay for their start
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Match(NamedTuple):
    """A near duplicate. Documents are named by their numbers in input order."""

    original: int
    duplicate: int
    similarity: float  # estimated Jaccard


@dataclass
class Duplicates:
    """The documents to drop, as masks over all documents, and counts of the comparisons.

    compared    pairs whose signatures were compared
    similar     those of them that are similar
    uncompared  pairs left out, because more than MAX_COMPARED kept documents agree in one band; a pair that agrees in
                several counts for each
    examples    the first near duplicates, each with the most similar original
    """

    exact: np.ndarray
    near: np.ndarray
    compared: int = 0
    similar: int = 0
    uncompared: int = 0
    examples: list[Match] = field(default_factory=list)

    def reasons(self, start: int, stop: int) -> list[str]:
        """Return the reason to drop each of the documents `start` to `stop`, "" for those that stay."""
        names = {(True, False): "duplicate", (False, True): NEAR_REASON}
        masks = zip(self.exact[start:stop].tolist(), self.near[start:stop].tolist(), strict=True)
        return [names.get(mask, "") for mask in masks]

    def counts(self) -> dict[str, int]:
        """Return the counts of pairs by name."""
        return {"compared": self.compared, "similar": self.similar, "uncompared": self.uncompared}


def find_duplicates(
    fingerprints: Sequence[Path],
    signatures: Sequence[Path],
    scratch: Path,
    *,
    jobs: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> Duplicates:
    """Return the duplicates among the documents of some pairs of files, which follow each other in input order.

    `scratch` is an empty folder for the groups. The result is the same for any number of jobs, and for the same
    documents in more or fewer files. The bytes of signatures done are reported to `advance`.
    """
    stored = SignatureFiles(signatures)
    exact = equal_to_earlier(np.concatenate([np.fromfile(path, FINGERPRINT) for path in fingerprints]))
    result = Duplicates(exact, np.zeros(len(exact), bool))
    if not len(exact):
        return result
    with open(scratch / "members", "wb") as file:
        file.truncate(4 * (BANDS * _slots(len(exact)) + 1))
    _write_keys(stored, scratch)
    spread = jobs if len(exact) >= _SPREAD_FROM else 1
    for _ in workers.map_ordered(BandGroups(scratch, len(exact)), iter(range(BANDS)), jobs=spread):
        pass
    members = np.memmap(scratch / "members", "<u4", "r+")
    _decide(stored, [scratch / f"band-{band}" for band in range(BANDS)], members, result, advance)
    return result


def equal_to_earlier(fingerprints: np.ndarray) -> np.ndarray:
    """Return a mask of the documents that have the same fingerprint as an earlier one."""
    mask = np.zeros(len(fingerprints), bool)
    order = np.argsort(fingerprints, kind="stable")
    for start in range(0, len(order), _BLOCK):
        part = order[start : start + _BLOCK + 1]
        values = fingerprints[part]
        mask[part[1:][values[1:] == values[:-1]]] = True
    return mask


class SignatureFiles:
    """Signatures in files that follow each other, read through memory maps."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = [path for path in paths if path.stat().st_size]
        self._maps = [np.memmap(path, SIGNATURE, "r").view(np.ndarray).reshape(-1, VALUES) for path in self._paths]
        self._starts = np.cumsum([0, *map(len, self._maps)])

    def blocks(self) -> Sequence[np.ndarray]:
        """Return all signatures in order, in arrays of at most _BLOCK rows."""
        return [part[start : start + _BLOCK] for part in self._maps for start in range(0, len(part), _BLOCK)]

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Return the signatures of the documents with these numbers, of shape (documents, VALUES)."""
        if len(self._maps) == 1:
            rows: np.ndarray = self._maps[0][numbers]
            return rows
        rows = np.empty((len(numbers), VALUES), SIGNATURE)
        files = np.searchsorted(self._starts, numbers, side="right") - 1
        for file in np.unique(files).tolist():
            mask = files == file
            rows[mask] = self._maps[file][numbers[mask] - self._starts[file]]
        return rows


def _slots(count: int) -> int:
    """Return the maximum number of places for the groups of one band.

    A group takes a counter and a place for each of its members, two or more.
    """
    return count + count // 2


def _write_keys(stored: SignatureFiles, scratch: Path) -> None:
    """Write the keys of each band into a file of its own. A collision only costs a comparison."""
    files = [open(scratch / f"band-{band}", "wb") for band in range(BANDS)]  # noqa: SIM115 - closed below
    try:
        for block in stored.blocks():
            pairs = block[:, : BANDS * ROWS].copy().view("<u8").reshape(len(block), BANDS, ROWS // 2)
            keys = pairs[:, :, 0] * _MIX
            keys ^= keys >> np.uint64(29)
            keys = (keys + pairs[:, :, 1]) * _MIX
            for file, column in zip(files, keys.T, strict=True):
                file.write(column.tobytes())
    finally:
        for file in files:
            file.close()


@dataclass(frozen=True)
class BandGroups:
    """Callable that replaces the keys of a band by the places of groups in `members`, 0 for a document without one.

    A group has a counter and then a place for each member.
    """

    scratch: Path
    count: int  # of documents

    def __call__(self, band: int) -> None:
        path = self.scratch / f"band-{band}"
        keys = np.fromfile(path, "<u8")
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        is_first = np.append(True, keys[1:] != keys[:-1])
        del keys
        is_shared = ~(is_first & np.append(is_first[1:], True))
        documents, is_first = order[is_shared], is_first[is_shared]
        del order
        places = np.flatnonzero(is_first)
        places += np.arange(1 + band * _slots(self.count), 1 + band * _slots(self.count) + len(places))
        group_of = np.cumsum(is_first)
        group_of -= 1
        places = places[group_of]
        del group_of
        groups = np.zeros(self.count, "<u8")
        groups[documents] = places
        groups.tofile(path)


def _decide(
    stored: SignatureFiles,
    bands: Sequence[Path],
    members: np.ndarray,
    result: Duplicates,
    advance: Callable[[int], None],
) -> None:
    """Compare each document with those kept so far in its groups. `members` begin as zeros."""
    members = members.view(np.ndarray)
    for start in range(0, len(result.exact), _BLOCK):
        columns = [np.fromfile(path, "<u8", _BLOCK, offset=8 * start) for path in bands]
        table = np.stack(columns, axis=1).astype(np.int64)
        is_open = table.any(axis=1) & ~result.exact[start : start + _BLOCK]
        for row in np.flatnonzero(is_open).tolist():
            places = table[row]
            places = places[places > 0]
            counts = members[places]
            number = start + row
            if counts.any() and (match := _most_similar(stored, number, members, places, counts, result)):
                result.near[number] = True
                if len(result.examples) < MAX_EXAMPLES:
                    result.examples.append(match)
                continue
            members[places] = counts + 1
            members[places + counts + 1] = number
        advance(len(table) * VALUES * SIGNATURE.itemsize)


def _most_similar(
    stored: SignatureFiles,
    number: int,
    members: np.ndarray,
    places: np.ndarray,
    counts: np.ndarray,
    result: Duplicates,
) -> Match | None:
    """Return the most similar of the members of some groups, the first of several; None if none is similar."""
    limits = np.minimum(counts, MAX_COMPARED)
    result.uncompared += int((counts - limits).sum())
    groups = [members[place + 1 : place + 1 + count] for place, count in zip(places, limits, strict=True)]
    candidates = np.unique(np.concatenate(groups)).astype(np.int64)
    rows = stored.take(np.append(candidates, number))
    equal = np.count_nonzero(rows[:-1] == rows[-1], axis=1)
    best = int(equal.argmax())
    result.compared += len(candidates)
    result.similar += int(np.count_nonzero(equal >= MIN_EQUAL))
    if equal[best] < MIN_EQUAL:
        return None
    return Match(int(candidates[best]), number, int(equal[best]) / VALUES)
