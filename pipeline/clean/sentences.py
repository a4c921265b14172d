"""Sentences of Chinese text: units that end in 。！？ together with the quotes and brackets that close on them.

The exact meaning is reference/cleaning.md 4.3. An end is a cluster: 。！？ with any … around them, and what closes
on them; or … with what closes on it. It ends a sentence unless ，、；： goes on, or an outer quote is still open. That
flag is a boolean on purpose: real books lose a ” now and then, and a depth counter would glue everything after the
fault into one unit.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pipeline.clean.utf16 import CONTINUES, ENDS, LINE_ENDS, UNITS, Codes, any_of, is_one_of, merged, unit_at

_ORDINARY, _END, _DOTS, _CLOSER, _OUTER_CLOSER, _OUTER_OPENER, _LINE = range(7)
_KINDS = {
    _END: ENDS,
    _DOTS: "…",
    _CLOSER: "’』）》〉】〕〗",
    _OUTER_CLOSER: "”」",
    _OUTER_OPENER: "“「",
    _LINE: LINE_ENDS,
}


@cache
def _kinds() -> np.ndarray:
    found = np.zeros(UNITS, np.uint8)
    for kind, characters in _KINDS.items():
        found[[ord(character) for character in characters]] = kind
    return found


def ends(text: Codes, *, inside_quotes: bool = False) -> np.ndarray:
    """Where sentences end: the place after the last unit of each that ends by its marks, in order.

    Line ends, which also end one, are not among them. With `inside_quotes` every cluster ends a sentence.
    """
    stops = np.flatnonzero(any_of(text.units, ENDS))
    others = text.odd[_kinds().take(text.odd_units) > _END]
    places = merged(stops, others)
    kind = _kinds().take(text.units[places])
    in_run = kind <= _OUTER_CLOSER
    linked = np.zeros(len(places) + 1, bool)  # to the mark before it, right behind which it stands
    linked[1:-1] = in_run[1:] & in_run[:-1] & (places[1:] - places[:-1] == 1)
    first, last = np.flatnonzero(in_run & ~linked[:-1]), np.flatnonzero(in_run & ~linked[1:])
    if not len(first):
        return first

    # A cluster begins with the first 。！？… of a run, and goes to its end: but … at the end that follow a closer
    # are none of it, and … alone are no cluster.
    begins, solid = first.copy(), last.copy()
    closers, dots = kind[first] > _DOTS, kind[last] == _DOTS
    if closers.any():
        begins[closers] = _next(kind <= _DOTS, first[closers])
    if dots.any():
        solid[dots] = _previous(kind != _DOTS, last[dots])
    tail = np.where(kind[solid] == _END, last, solid)[begins <= np.minimum(solid, last)]

    found: np.ndarray = places[tail] + 1
    is_end = ~is_one_of(unit_at(text, found), CONTINUES)
    if not inside_quotes:
        decides = kind >= _OUTER_CLOSER
        which = np.flatnonzero(decides)
        latest = np.cumsum(decides, dtype=np.int32)[tail] - 1  # before the end or in it; -1: none
        is_end[latest >= 0] &= kind[which[latest[latest >= 0]]] != _OUTER_OPENER
    return found[is_end]


def _next(mask: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The first index where `mask` is True, from each of `places` on; the length of `mask` where there is none."""
    found = np.append(np.flatnonzero(mask), len(mask))
    return found[np.searchsorted(found[:-1], places)]


def _previous(mask: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The last index where `mask` is True, up to each of `places`; -1 where there is none."""
    found = np.concatenate(([-1], np.flatnonzero(mask)))
    return found[np.searchsorted(found[1:], places, side="right")]
