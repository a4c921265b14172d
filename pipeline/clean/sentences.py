"""Sentence ends in Chinese text: 。！？ together with the quotes and brackets that close after them.

The exact definition is docs/design/cleaning.md 4.3. A cluster is 。！？ with any … around them and the closers after
them, or … with closers after it. A cluster ends a sentence unless ，、；： follows it or an outer quote is open.

"Open" is a boolean on purpose: real books sometimes lack a ”, and a depth counter would join everything after the
loss into one sentence.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pipeline.clean.utf16 import (
    CLAUSE_MARKS,
    LINE_ENDS,
    SENTENCE_ENDS,
    Utf16Text,
    class_table,
    is_one_of,
    merge_sorted,
    units_at,
)

_ORDINARY, _END, _DOTS, _CLOSER, _OUTER_CLOSER, _OUTER_OPENER, _LINE = range(7)


@cache
def _kinds() -> np.ndarray:
    return class_table(
        (_END, SENTENCE_ENDS),
        (_DOTS, "…"),
        (_CLOSER, "’』）》〉】〕〗"),
        (_OUTER_CLOSER, "”」"),
        (_OUTER_OPENER, "“「"),
        (_LINE, LINE_ENDS),
    )


def end_positions(text: Utf16Text, *, inside_quotes: bool = False) -> np.ndarray:
    """Return the sorted end positions (exclusive) of the sentences that end in a cluster.

    Line ends also end a sentence, but are not included. With `inside_quotes` every cluster ends a sentence.

    This is a vectorised state machine. tests/pipeline/clean/slow_sentences.py is the same as a plain loop.
    """
    stops = np.flatnonzero(is_one_of(text.units, SENTENCE_ENDS))
    other_marks = text.special_positions[_kinds().take(text.special_units) > _END]
    positions = merge_sorted(stops, other_marks)  # of all marks that matter
    kinds = _kinds().take(text.units[positions])
    last = _cluster_ends(positions, kinds)
    end_positions = positions[last] + 1
    is_end = ~is_one_of(units_at(text, end_positions), CLAUSE_MARKS)
    if not inside_quotes:
        # The last outer quote or line end up to the end of a cluster determines if a quote is open there.
        decides = kinds >= _OUTER_CLOSER
        deciding_kinds = kinds[decides]
        latest = np.cumsum(decides, dtype=np.int32)[last] - 1  # index into deciding_kinds; -1: none
        is_end[latest >= 0] &= deciding_kinds[latest[latest >= 0]] != _OUTER_OPENER
    result: np.ndarray = end_positions[is_end]
    return result


def _cluster_ends(positions: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return the index into `positions` of the last mark of each cluster."""
    in_run = kinds <= _OUTER_CLOSER
    linked = np.zeros(len(positions) + 1, bool)  # True if adjacent in the text to the mark before
    linked[1:-1] = in_run[1:] & in_run[:-1] & (positions[1:] - positions[:-1] == 1)
    first, last = np.flatnonzero(in_run & ~linked[:-1]), np.flatnonzero(in_run & ~linked[1:])
    if not len(first):
        return first

    # A cluster starts at the first 。！？… of a run and extends to its end. Trailing … after a closer do not belong to
    # it, and … alone are not a cluster.
    start, end = first.copy(), last.copy()
    after_closers, before_dots = kinds[first] > _DOTS, kinds[last] == _DOTS
    if after_closers.any():
        start[after_closers] = _next(kinds <= _DOTS, first[after_closers])
    if before_dots.any():
        end[before_dots] = _previous(kinds != _DOTS, last[before_dots])
    is_cluster = start <= np.minimum(end, last)
    return np.where(kinds[end] == _END, last, end)[is_cluster]


def _next(mask: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the first index >= each of `starts` where `mask` is True, or the length of `mask`."""
    indices = np.append(np.flatnonzero(mask), len(mask))
    return indices[np.searchsorted(indices[:-1], starts)]


def _previous(mask: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the last index <= each of `starts` where `mask` is True, or -1."""
    indices = np.concatenate(([-1], np.flatnonzero(mask)))
    return indices[np.searchsorted(indices[1:], starts, side="right")]
