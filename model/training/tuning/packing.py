"""Conversations packed into rows of one block each.

The rows are a pure function of the store: conversations are sorted by length and put by best fit into rows, in which
masks hide them from one another (after Ding et al. 2024, "Fewer truncations improve language modeling"). The order of
the rows is another one each epoch.
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

_MOST_COMBINED = 1 << 13  # items: best fit leaves little space between more of them
_MOST_SUMS = 1 << 33  # items times the square of a row's capacity: about a second
_CHUNK_TOKENS = 1 << 22  # of the mask, read at once


@dataclass(frozen=True)
class Pieces:
    """Spans of a token array that are trained on: span i has the inputs [starts[i], starts[i] + lengths[i]).

    Its targets are the inputs moved by one, `targets[i]` of which have a loss; after the last of those the span ends.
    All are int64 (N,). `width` spans in a row belong together: 1, or 2 for the pairs of preferences. `cut` of the
    documents or pairs did not fit into a block and were cut, `dropped` had no answer within a block.
    """

    starts: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    width: int
    cut: int
    dropped: int


@dataclass(frozen=True)
class Documents:
    """The documents of a split: ids, a mask of the same length (1: a target with a loss), and lengths (N,) int64."""

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
    """Return the spans of conversations, of which those that are longer than a block are cut between exchanges.

    An exchange is an answer and the turns before it. One that is longer than a block ends within its answer, at the end
    of a character; without any of its answer in the block it is dropped.
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
    """Return the spans of pairs, chosen and rejected, which alternate in the store.

    Of a pair that is longer than a block each has half of it: they begin at a later exchange, the same in both. If the
    last one is too long, the answers end earlier, at the end of a character; without any of both the pair is dropped.
    """
    half, spans = block_size // 2, list(_spans(documents))
    pairs: list[_Span] = []
    cut = dropped = 0
    for pair in zip(spans[::2], spans[1::2], strict=True):
        if all(span.inputs for span in pair) and sum(span.inputs for span in pair) <= block_size:
            pairs += pair
            continue
        both = [_Exchanges.read(documents, span) for span in pair]
        first = _common_start(both, [span.inputs for span in pair], half)
        shortened = [one.span(first, span.inputs, half) for one, span in zip(both, pair, strict=True)]
        if all(span.inputs for span in shortened):
            pairs += shortened
            cut += 1
        else:
            dropped += 1
    return _pieces(pairs, 2, cut, dropped)


def exchange_starts(ids: np.ndarray, mask: np.ndarray, end_of_turn: int) -> list[int]:
    """Return where the exchanges of a conversation begin: at 0, and at the first turn after each answer.

    A turn begins with the same id as the conversation or, if no such id follows, right after the end of a turn.
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

    A few items are packed in two ways, of which the one with fewer rows is taken.
    """
    rows = best_fit(lengths, capacity)
    limit = min(_MOST_COMBINED, _MOST_SUMS // capacity**2)
    if len(lengths) > limit or len(rows) * capacity - lengths.sum() < capacity:
        return rows
    return min(rows, fullest_rows(lengths, capacity), key=len)


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack items longest first, each into the row with the least space that is enough.

    Raises BadData for an item that is longer than a row.
    """
    rows: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # rows with that much space
    spaces: list[int] = []  # sorted, those with rows
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        index = bisect.bisect_left(spaces, length)
        if index == len(spaces):
            if length > capacity:
                raise BadData(f"an item of {length} tokens for a block of {capacity}", hint="this is a bug")
            row, space = len(rows), capacity
            rows.append([])
        else:
            space = spaces[index]
            row = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[index]
        rows[row].append(item)
        if (rest := space - length) not in by_space:
            by_space[rest] = []
            bisect.insort(spaces, rest)
        by_space[rest].append(row)
    return rows


def fullest_rows(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack row after row: the longest item that is left, and the combination of others that fills the row best."""
    items: dict[int, list[int]] = {}  # by length, the first one last
    for item in range(len(lengths) - 1, -1, -1):
        items.setdefault(int(lengths[item]), []).append(item)
    rows: list[list[int]] = []
    while items:
        longest = max(items)
        row = _take(items, [longest])
        rows.append(row + _take(items, _fullest({length: len(items[length]) for length in items}, capacity - longest)))
    return rows


def _fullest(counts: Mapping[int, int], space: int) -> list[int]:
    """Return the lengths whose sum is closest to `space` and not above it, of at most `counts` of each length."""
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
    """Inputs [start, start + inputs) of a token array, and how many of their targets have a loss; 0 for none.

    `length` is that of the document.
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
        # As many documents as a chunk holds, at least one.
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
    """A document that is too long for a block: its start in the array, its ids and mask."""

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
        """Join exchanges as long as they fit; return each first index and that of its last target."""
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
        """Return the span from `first` on whose last target is `last`, or an earlier one to fit."""
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
    """Return the first exchange of a pair from which both fit, or else the last one that both have in common."""
    ids, other = (one.ids[: min(len(one.ids) for one in pair)] for one in pair)
    common = int(np.argmin(np.append(ids == other, False)))
    starts = [start for start in pair[0].starts if start <= common]
    return next((start for start in starts if max(lasts) - start <= capacity), starts[-1])


def _pieces(spans: list[_Span], width: int, cut: int, dropped: int) -> Pieces:
    starts, lengths, targets, _ = np.array(spans, np.int64).reshape(-1, 4).T
    return Pieces(starts, lengths, targets, width, cut, dropped)
