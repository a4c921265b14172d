"""Lines: blank ones go, and where a document is a paragraph or a sentence, its end becomes the end of a document."""

from __future__ import annotations

import numpy as np

from pipeline.clean import sentences
from pipeline.clean.rule import Rule, Seen, units
from pipeline.clean.utf16 import (
    BLANKS,
    LINE_ENDS,
    LINE_KIND,
    SEPARATOR,
    Codes,
    inserted,
    is_chinese,
    kind_at,
    places,
    replaced,
    runs,
    spread,
    without,
)


def divide(page: Codes, unit: str, *, inside_quotes: bool = False) -> tuple[Codes, np.ndarray]:
    """The page without blank lines and without line ends at the ends of documents, divided into documents of the unit;
    and of each of these the number of the document that it is from.

    Paragraphs are parted by blank lines, or by every line end in a document that has none.
    """
    first, after = runs(places(page, LINE_ENDS))
    number = _documents_before(page, first)
    ending = _documents_before(page, after) > number  # runs in which a document ends
    ending |= (first == 0) | (after == len(page))
    gone = spread(first[ending], after[ending])
    first, after, number = first[~ending], after[~ending], number[~ending]
    parts, origin = first[:0], np.arange(len(places(page, SEPARATOR)) + 1)
    if unit in ("paragraph", "sentence"):
        parts = first
        if unit == "paragraph":
            blank = np.zeros(len(origin), bool)
            blank[number[after - first > 1]] = True
            parts = first[(after - first > 1) | ~blank[number]]
        page = replaced(page, parts, 0)
        origin = np.sort(np.concatenate((origin, number[np.isin(first, parts)])))
    page = without(page, np.sort(np.concatenate((gone[page.units[gone] != 0], spread(first + 1, after)))))
    if unit == "sentence":
        ends = sentences.ends(page, inside_quotes=inside_quotes)
        ends = ends[kind_at(page, ends) != LINE_KIND]
        origin = np.sort(np.concatenate((origin, origin[_documents_before(page, ends)])))
        page = _trimmed(inserted(page, ends, SEPARATOR))
    return page, origin


def _trimmed(page: Codes) -> Codes:
    """The page without spaces at the ends of lines: of sentences that have become documents."""
    first, after = runs(places(page, BLANKS))
    outer = (kind_at(page, first - 1) == LINE_KIND) | (kind_at(page, after) == LINE_KIND)
    return without(page, spread(first[outer], after[outer]))


def _documents_before(page: Codes, at: np.ndarray) -> np.ndarray:
    """How many documents end before each of the places."""
    return np.searchsorted(places(page, SEPARATOR), at)


INSIDE = "inside lines"  # how many runs were: by them the rules before looked at text that was torn


def delete(text: Codes, seen: Seen) -> Codes:
    """The page without the runs of spaces that touch Chinese text or a line's end on either side."""
    first, after = runs(places(text, BLANKS))
    before, behind = kind_at(text, first - 1), kind_at(text, after)
    goes = is_chinese(before) | is_chinese(behind) | (before == LINE_KIND) | (behind == LINE_KIND)
    gone = spread(first[goes], after[goes])
    seen[INSIDE] += int((goes & (before != LINE_KIND) & (behind != LINE_KIND)).sum())
    units = text.units[gone]
    for blank, name in zip(BLANKS, ("space", "tab", "no-break space", "ideographic space"), strict=True):
        seen[name] += int((units == ord(blank)).sum())
    return without(text, gone)


RULE = Rule("spaces", delete, units(BLANKS))
