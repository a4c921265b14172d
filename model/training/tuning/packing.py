"""Pack conversations into rows of one block each.

Conversations are sorted by length and assigned to rows by best fit (Ding et al. 2024, "Fewer truncations improve
language modeling"). Masks hide the conversations of a row from one another. The rows are a pure function of the store.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.errors import BadData
from pipeline.tokenizers import Tokenizer
from pipeline.tokens.store import TokenArray

_MAX_ITEMS = 1 << 13  # for `fullest_rows`: best fit leaves little space with more
_MAX_WORK = 1 << 33  # of `fullest_rows`, as items times the square of the capacity: about a second
_CHUNK_TOKENS = 1 << 22  # of the mask that are read at once


@dataclass(frozen=True)
class Pieces:
    """Spans of a token array to train on. The first three are int64 (N,).

    starts   index of the first input of each span
    lengths  number of inputs of each span. The target of an input is the next id; the last target has a loss
    targets  number of targets with a loss
    width    number of consecutive spans that belong together: 1, or 2 for a preference pair
    cut      number of conversations or pairs that did not fit into a block and were cut
    dropped  number of conversations, parts of them, or pairs without an answer within a block
    """

    starts: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    width: int
    cut: int
    dropped: int


@dataclass(frozen=True)
class Documents:
    """The documents of a split: their ids, the mask of the ids with a loss, and their lengths, int64 (N,)."""

    ids: TokenArray
    mask: TokenArray
    lengths: np.ndarray
    tokenizer: Tokenizer
    end_of_turn: int

    @property
    def starts(self) -> np.ndarray:
        starts: np.ndarray = np.cumsum(self.lengths) - self.lengths
        return starts


def conversation_pieces(documents: Documents, block_size: int) -> Pieces:
    """Return the spans of conversations. One that is longer than a block is cut between exchanges.

    An exchange is an answer with the turns before it. If an exchange is longer than a block, its answer is cut after a
    character. An exchange without any part of its answer in the block is dropped.
    """
    spans: list[_Span] = []
    cut = dropped = 0
    for document in _spans(documents):
        if document.inputs <= block_size:
            spans += [document] if document.inputs else []
            dropped += not document.inputs
            continue
        exchanges = _Exchanges.read(documents, document)
        parts = [exchanges.span(first, last, block_size) for first, last in exchanges.grouped(block_size)]
        spans += [part for part in parts if part.inputs]
        cut += 1
        dropped += sum(not part.inputs for part in parts)
    return _pieces(spans, 1, cut, dropped)


def preference_pieces(documents: Documents, block_size: int) -> Pieces:
    """Return the spans of pairs; chosen and rejected conversations alternate in the store.

    If a pair is longer than a block, each of its conversations gets half a block. Both then begin at the same later
    exchange. If the last exchange is still too long, the answers are cut after a character. A pair is dropped if one of
    them has no part of its answer in its half.
    """
    half, spans = block_size // 2, list(_spans(documents))
    pairs: list[_Span] = []
    cut = dropped = 0
    for pair in zip(spans[::2], spans[1::2], strict=True):
        if all(span.inputs for span in pair) and sum(span.inputs for span in pair) <= block_size:
            pairs += pair
            continue
        exchanges = [_Exchanges.read(documents, span) for span in pair]
        first = _common_start(exchanges, [span.inputs for span in pair], half)
        shortened = [turns.span(first, span.inputs, half) for turns, span in zip(exchanges, pair, strict=True)]
        if all(span.inputs for span in shortened):
            pairs += shortened
            cut += 1
        else:
            dropped += 1
    return _pieces(pairs, 2, cut, dropped)


def exchange_starts(ids: np.ndarray, mask: np.ndarray, end_of_turn: int) -> list[int]:
    """Return the starts of the exchanges of a conversation: 0, and the first turn after each answer.

    A turn starts at the next id that equals the first one of the conversation; without such an id, right after the end
    of the turn before.
    """
    ends = np.flatnonzero((ids == end_of_turn) & (mask > 0))
    turns = np.flatnonzero(ids == ids[0])
    starts = [0]
    for end in ends.tolist():
        if not mask[end + 1 :].any():
            break
        following = turns[np.searchsorted(turns, end + 1) :]
        starts.append(int(following[0]) if len(following) else end + 1)
    return starts


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack items of these lengths into rows of `capacity`, and return the items of each row.

    If the items are few, two methods are tried, and the result with fewer rows is returned.
    """
    rows = best_fit(lengths, capacity)
    limit = min(_MAX_ITEMS, _MAX_WORK // capacity**2)
    if len(lengths) > limit or len(rows) * capacity - lengths.sum() < capacity:
        return rows
    return min(rows, fullest_rows(lengths, capacity), key=len)


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack items by best fit decreasing: the longest first, each into the fullest row that has space for it.

    Raises BadData for an item that is longer than a row.
    """
    rows: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # rows by their free space
    spaces: list[int] = []  # the keys of by_space, sorted
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        index = bisect.bisect_left(spaces, length)
        if index == len(spaces):
            if length > capacity:
                raise BadData(f"an item of {length} tokens does not fit in a row of {capacity}", hint="this is a bug")
            row, space = len(rows), capacity
            rows.append([])
        else:
            space = spaces[index]
            row = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[index]
        rows[row].append(item)
        if (remaining := space - length) not in by_space:
            by_space[remaining] = []
            bisect.insort(spaces, remaining)
        by_space[remaining].append(row)
    return rows


def fullest_rows(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack row after row: the longest remaining item, and the combination of others that fills the row best."""
    items: dict[int, list[int]] = {}  # by length, the first item last
    for item in range(len(lengths) - 1, -1, -1):
        items.setdefault(int(lengths[item]), []).append(item)
    rows: list[list[int]] = []
    while items:
        longest = max(items)
        row = _take(items, [longest])
        rows.append(row + _take(items, _fullest({length: len(items[length]) for length in items}, capacity - longest)))
    return rows


def _fullest(counts: Mapping[int, int], space: int) -> list[int]:
    """Return the lengths with the largest sum up to `space`, using each length at most `counts` times."""
    combinations: dict[int, list[int]] = {0: []}  # by sum
    for length in sorted(counts):
        for total in [total for total in combinations if total + length <= space]:
            for number in range(1, min(counts[length], (space - total) // length) + 1):
                combinations.setdefault(total + number * length, combinations[total] + [length] * number)
        if space in combinations:
            break
    return combinations[max(combinations)]


def _take(items: dict[int, list[int]], lengths: Sequence[int]) -> list[int]:
    taken = [items[length].pop() for length in lengths]
    for length in set(lengths):
        if not items[length]:
            del items[length]
    return taken


class _Span(NamedTuple):
    """A span of a document: its start in the token array, its number of inputs, and of targets with a loss.

    `length` is the length of the document.
    """

    start: int
    inputs: int
    targets: int
    length: int


def _spans(documents: Documents) -> Iterator[_Span]:
    """Yield the span of each document, up to its last target."""
    starts, lengths = documents.starts, documents.lengths
    first = 0
    while first < len(lengths):
        # As many documents as fit in a chunk, at least one.
        stop = max(int(np.searchsorted(starts, starts[first] + _CHUNK_TOKENS)), first + 1)
        begin = int(starts[first])
        mask = documents.mask.read(begin, int(starts[stop - 1] + lengths[stop - 1]))
        positions = np.where(mask > 0, np.arange(len(mask)), 0)
        offsets = starts[first:stop] - begin
        counts = np.maximum(np.maximum.reduceat(positions, offsets) - offsets, 0)
        targets = np.add.reduceat(mask, offsets)
        rows = (starts[first:stop], counts, targets, lengths[first:stop])
        yield from map(_Span._make, zip(*(row.tolist() for row in rows), strict=True))
        first = stop


@dataclass(frozen=True)
class _Exchanges:
    """A conversation that is too long for a block, to be cut between exchanges. It is at `start` in the token array."""

    start: int
    ids: np.ndarray
    mask: np.ndarray
    documents: Documents

    @classmethod
    def read(cls, documents: Documents, span: _Span) -> _Exchanges:
        bounds = (span.start, span.start + span.length)
        return cls(span.start, documents.ids.read(*bounds), documents.mask.read(*bounds), documents)

    @property
    def starts(self) -> list[int]:
        return exchange_starts(self.ids, self.mask, self.documents.end_of_turn)

    def grouped(self, capacity: int) -> list[tuple[int, int]]:
        """Group consecutive exchanges that fit together; return the first index and the last target of each group."""
        bounds = [*self.starts, len(self.ids)]
        groups: list[tuple[int, int]] = []
        for start, stop in pairwise(bounds):
            last = start + int(np.flatnonzero(self.mask[start:stop])[-1])
            if groups and last - groups[-1][0] <= capacity:
                groups[-1] = (groups[-1][0], last)
            else:
                groups.append((start, last))
        return groups

    def span(self, first: int, last: int, capacity: int) -> _Span:
        """Return the span from `first` to the target `last`, or to the last target that fits."""
        stop = last + 1
        if last - first > capacity:
            stop = first + capacity + 1
            while stop > first and not self._begins_character(stop):
                stop -= 1
        targets = np.flatnonzero(self.mask[first + 1 : stop])
        count = int(targets[-1]) + 1 if len(targets) else 0
        return _Span(self.start + first, count, len(targets), len(self.ids))

    def _begins_character(self, index: int) -> bool:
        data = self.documents.tokenizer.token_bytes(int(self.ids[index]), int(self.ids[index - 1]))
        return not data or data[0] & 0xC0 != 0x80


def _common_start(pair: Sequence[_Exchanges], lasts: Sequence[int], capacity: int) -> int:
    """Return the earliest common exchange from which both conversations fit, or else the last common one."""
    ids, other = (one.ids[: min(len(one.ids) for one in pair)] for one in pair)
    common = int(np.argmin(np.append(ids == other, False)))
    starts = [start for start in pair[0].starts if start <= common]
    return next((start for start in starts if max(lasts) - start <= capacity), starts[-1])


def _pieces(spans: list[_Span], width: int, cut: int, dropped: int) -> Pieces:
    starts, lengths, targets, _ = np.array(spans, np.int64).reshape(-1, 4).T
    return Pieces(starts, lengths, targets, width, cut, dropped)
