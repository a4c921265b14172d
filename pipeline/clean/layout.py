"""Lines: blank ones go, and where a document is a paragraph or a sentence, its end becomes the end of a document."""

from __future__ import annotations

import numpy as np

from pipeline.clean import sentences
from pipeline.clean.codes import BLANKS, LINE, LINE_ENDS, Codes, inserted, kind_at, places, runs, spread, without


def divide(array: Codes, unit: str, *, inside_quotes: bool = False) -> tuple[Codes, np.ndarray]:
    """The page without blank lines and without line ends at the ends of documents, divided into documents of the unit;
    and of each of these the number of the document that it is from.

    Paragraphs are parted by blank lines, or by every line end in a document that has none.
    """
    first, after = runs(places(array, LINE_ENDS))
    number = _documents_before(array, first)
    ending = _documents_before(array, after) > number  # runs in which a document ends
    ending |= (first == 0) | (after == len(array))
    gone = spread(first[ending], after[ending])
    first, after, number = first[~ending], after[~ending], number[~ending]
    parts, origin = first[:0], np.arange(np.count_nonzero(array == 0) + 1)
    if unit in ("paragraph", "sentence"):
        parts = first
        if unit == "paragraph":
            blank = np.zeros(len(origin), bool)
            blank[number[after - first > 1]] = True
            parts = first[(after - first > 1) | ~blank[number]]
        array = array.copy()
        array[parts] = 0
        origin = np.sort(np.concatenate((origin, number[np.isin(first, parts)])))
    array = without(array, np.concatenate((gone[array[gone] != 0], spread(first + 1, after))))
    if unit == "sentence":
        ends = _inside(array, sentences.ends(array, inside_quotes=inside_quotes))
        origin = np.sort(np.concatenate((origin, origin[_documents_before(array, ends)])))
        array = _trimmed(inserted(array, ends, "\0"))
    return array, origin


def _trimmed(array: Codes) -> Codes:
    """The page without spaces at the ends of lines: of sentences that have become documents."""
    first, after = runs(places(array, BLANKS))
    outer = (kind_at(array, first - 1) == LINE) | (kind_at(array, after) == LINE)
    return without(array, spread(first[outer], after[outer]))


def _documents_before(array: Codes, at: np.ndarray) -> np.ndarray:
    """How many documents end before each of the places."""
    return np.searchsorted(np.flatnonzero(array == 0), at)


def _inside(array: Codes, ends: np.ndarray) -> np.ndarray:
    """Those of the ends that are not the end of a line anyway."""
    ends = ends[ends < len(array)]
    found: np.ndarray = ends[(array[ends] != 0) & (array[ends] != ord("\n"))]
    return found


def lines(array: Codes, ends: np.ndarray) -> Codes:
    """The page with each sentence on a line of its own; `ends` are those of sentences.ends. No line is empty."""
    made = inserted(array, _inside(array, ends), "\n")
    made[made == 0] = ord("\n")
    broken = places(made, "\n")
    made = without(made, broken[np.diff(broken, prepend=-1) == 1])  # those of empty lines
    return made[:-1] if len(made) and made[-1] == ord("\n") else made
