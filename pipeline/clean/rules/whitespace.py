"""Whitespace: spaces in Chinese text and blank lines are removed, and pages are split into documents.

spaces        the rule that deletes spaces beside Chinese text and at the ends of lines
blank-lines   `split_documents`, which removes blank lines; if a document is a paragraph or a sentence, it splits there
"""

from __future__ import annotations

import numpy as np

from pipeline.clean import sentences
from pipeline.clean.rule import Counts, Rule, units
from pipeline.clean.utf16 import (
    BLANKS,
    LINE_ENDS,
    LINE_KIND,
    SEPARATOR,
    Utf16Text,
    delete_units,
    expand_ranges,
    insert_unit,
    is_chinese,
    kinds_at,
    positions_of,
    replace_units,
    run_bounds,
)

# The key that counts runs of spaces inside lines. If there were any, the rules before this one saw torn text.
INSIDE_LINES = "inside lines"
_BLANK_NAMES = dict(zip(BLANKS, ("space", "tab", "no-break space", "ideographic space"), strict=True))


def _delete_spaces(text: Utf16Text, counts: Counts) -> Utf16Text:
    """Delete the runs of spaces that touch Chinese text or a line end on either side."""
    first, after = run_bounds(positions_of(text, BLANKS))
    kind_before, kind_after = kinds_at(text, first - 1), kinds_at(text, after)
    at_line_end = (kind_before == LINE_KIND) | (kind_after == LINE_KIND)
    is_deleted = is_chinese(kind_before) | is_chinese(kind_after) | at_line_end
    deleted = expand_ranges(first[is_deleted], after[is_deleted])
    counts[INSIDE_LINES] += int((is_deleted & ~at_line_end).sum())
    deleted_units = text.units[deleted]
    for blank, name in _BLANK_NAMES.items():
        counts[name] += int((deleted_units == ord(blank)).sum())
    return delete_units(text, deleted)


DELETE_SPACES = Rule("spaces", _delete_spaces, units(BLANKS))


def split_documents(page: Utf16Text, unit: str, *, inside_quotes: bool = False) -> tuple[Utf16Text, np.ndarray]:
    """Remove blank lines and line ends at the ends of documents, and split the page into documents of the unit.

    Paragraphs are separated by blank lines, or by every line end in a document without blank lines. `inside_quotes`
    splits sentences inside quotes too.

    Returns the page, and for each of its documents the index of the old document that it is part of.
    """
    first, after = run_bounds(positions_of(page, LINE_ENDS))
    document = _documents_before(page, first)
    is_outer = _documents_before(page, after) > document  # runs in which a document ends
    is_outer |= (first == 0) | (after == len(page))
    removed = expand_ranges(first[is_outer], after[is_outer])
    first, after, document = first[~is_outer], after[~is_outer], document[~is_outer]
    boundaries, origin = first[:0], np.arange(len(positions_of(page, SEPARATOR)) + 1)
    if unit in ("paragraph", "sentence"):
        boundaries = first
        if unit == "paragraph":
            has_blank_lines = np.zeros(len(origin), bool)
            has_blank_lines[document[after - first > 1]] = True
            boundaries = first[(after - first > 1) | ~has_blank_lines[document]]
        page = replace_units(page, boundaries, 0)
        origin = np.sort(np.concatenate((origin, document[np.isin(first, boundaries)])))
    page = delete_units(
        page, np.sort(np.concatenate((removed[page.units[removed] != 0], expand_ranges(first + 1, after))))
    )
    if unit == "sentence":
        ends = sentences.end_positions(page, inside_quotes=inside_quotes)
        ends = ends[kinds_at(page, ends) != LINE_KIND]
        origin = np.sort(np.concatenate((origin, origin[_documents_before(page, ends)])))
        page = _strip_lines(insert_unit(page, ends, SEPARATOR))
    return page, origin


def _strip_lines(page: Utf16Text) -> Utf16Text:
    """Remove spaces at the ends of lines: the spaces between sentences that became documents."""
    first, after = run_bounds(positions_of(page, BLANKS))
    at_line_end = (kinds_at(page, first - 1) == LINE_KIND) | (kinds_at(page, after) == LINE_KIND)
    return delete_units(page, expand_ranges(first[at_line_end], after[at_line_end]))


def _documents_before(page: Utf16Text, positions: np.ndarray) -> np.ndarray:
    """Return the number of documents that end before each position."""
    return np.searchsorted(positions_of(page, SEPARATOR), positions)
