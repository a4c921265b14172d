"""Whitespace: spaces in Chinese text and blank lines are removed, and pages are split into documents.

spaces        the rule that deletes spaces beside Chinese text and at the ends of lines
blank-lines   `divide`, which removes blank lines; if a document is a paragraph or a sentence, it splits there
"""

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

# The key that counts runs of spaces inside lines. If there were any, the rules before this one saw torn text.
INSIDE = "inside lines"
_BLANK_NAMES = dict(zip(BLANKS, ("space", "tab", "no-break space", "ideographic space"), strict=True))


def _delete_spaces(text: Codes, counts: Seen) -> Codes:
    """Delete the runs of spaces that touch Chinese text or a line end on either side."""
    first, after = runs(places(text, BLANKS))
    kind_before, kind_after = kind_at(text, first - 1), kind_at(text, after)
    at_line_end = (kind_before == LINE_KIND) | (kind_after == LINE_KIND)
    is_deleted = is_chinese(kind_before) | is_chinese(kind_after) | at_line_end
    deleted = spread(first[is_deleted], after[is_deleted])
    counts[INSIDE] += int((is_deleted & ~at_line_end).sum())
    deleted_units = text.units[deleted]
    for blank, name in _BLANK_NAMES.items():
        counts[name] += int((deleted_units == ord(blank)).sum())
    return without(text, deleted)


RULE = Rule("spaces", _delete_spaces, units(BLANKS))


def divide(page: Codes, unit: str, *, inside_quotes: bool = False) -> tuple[Codes, np.ndarray]:
    """Remove blank lines and line ends at the ends of documents, and split the page into documents of the unit.

    Paragraphs are separated by blank lines, or by every line end in a document without blank lines. `inside_quotes`
    splits sentences inside quotes too.

    Returns the page, and for each of its documents the index of the old document that it is part of.
    """
    first, after = runs(places(page, LINE_ENDS))
    document = _documents_before(page, first)
    is_outer = _documents_before(page, after) > document  # runs in which a document ends
    is_outer |= (first == 0) | (after == len(page))
    removed = spread(first[is_outer], after[is_outer])
    first, after, document = first[~is_outer], after[~is_outer], document[~is_outer]
    boundaries, origin = first[:0], np.arange(len(places(page, SEPARATOR)) + 1)
    if unit in ("paragraph", "sentence"):
        boundaries = first
        if unit == "paragraph":
            has_blank_lines = np.zeros(len(origin), bool)
            has_blank_lines[document[after - first > 1]] = True
            boundaries = first[(after - first > 1) | ~has_blank_lines[document]]
        page = replaced(page, boundaries, 0)
        origin = np.sort(np.concatenate((origin, document[np.isin(first, boundaries)])))
    page = without(page, np.sort(np.concatenate((removed[page.units[removed] != 0], spread(first + 1, after)))))
    if unit == "sentence":
        ends = sentences.ends(page, inside_quotes=inside_quotes)
        ends = ends[kind_at(page, ends) != LINE_KIND]
        origin = np.sort(np.concatenate((origin, origin[_documents_before(page, ends)])))
        page = _strip_lines(inserted(page, ends, SEPARATOR))
    return page, origin


def _strip_lines(page: Codes) -> Codes:
    """Remove spaces at the ends of lines: the spaces between sentences that became documents."""
    first, after = runs(places(page, BLANKS))
    at_line_end = (kind_at(page, first - 1) == LINE_KIND) | (kind_at(page, after) == LINE_KIND)
    return without(page, spread(first[at_line_end], after[at_line_end]))


def _documents_before(page: Codes, positions: np.ndarray) -> np.ndarray:
    """Return the number of documents that end before each position."""
    return np.searchsorted(places(page, SEPARATOR), positions)
