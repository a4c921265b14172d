"""Whitespace: spaces in Chinese text and blank lines are removed, and pages are split into documents.

spaces        the rule that deletes spaces beside Chinese text and at the ends of lines, but not the gaps of text
              without marks, 床前明月光　疑是地上霜, nor wide ones in lines without marks, 静夜思　李白
blank-lines   `split_documents`, which removes blank lines; if a document is a paragraph or a sentence, it splits there
"""

from __future__ import annotations

from functools import partial

import numpy as np

from pipeline.clean import sentences
from pipeline.clean.rule import Counts, Rule, units
from pipeline.clean.utf16 import (
    BLANKS,
    HAN_KIND,
    LINE_ENDS,
    LINE_KIND,
    SENTENCE_ENDS,
    SEPARATOR,
    Utf16Text,
    count_distinct,
    delete_units,
    expand_ranges,
    insert_unit,
    is_chinese,
    is_common_han,
    is_member,
    is_one_of,
    kinds_at,
    positions_of,
    replace_units,
    run_bounds,
)

POLICIES = {"keep": "", "comma": "，", "newline": "\n", "drop": ""}  # for gaps, and what each puts in their place
# The key that counts runs of spaces inside lines. If there were any, the earlier rules ran on text with these spaces.
INSIDE_LINES = "inside lines"
GAPS_KEPT = "gaps kept"
_WIDE_GAPS_KEPT = "ideographic spaces kept in lines without marks"  # of text with marks
_BLANK_NAMES = dict(zip(BLANKS, ("space", "tab", "no-break space", "ideographic space"), strict=True))
_IDEOGRAPHIC_SPACE = 0x3000

_MARKS = "，、；" + SENTENCE_ENDS  # without ：, which follows 作者 in text without marks
_HAN_PER_MARK = 50  # of text without marks, at least; sutras with 。 only have about 25


def rule(gaps: str = "keep") -> Rule:
    """Return the rule that deletes spaces, and treats gaps by one of POLICIES.

    A gap is a space between two clauses of text without marks, where it is the only mark. A gap that is kept becomes
    one space. In text with marks, an ideographic space between two clauses of a line without marks stays too, unless
    gaps are dropped: it separates a title from its author, or the clauses of a verse.
    """
    return Rule("spaces", partial(_delete_spaces, gaps), units(BLANKS), produces=POLICIES[gaps])


def _delete_spaces(gaps: str, text: Utf16Text, counts: Counts) -> Utf16Text:
    """Delete the runs of spaces that touch Chinese text or a line end on either side, except for gaps."""
    first, after = run_bounds(positions_of(text, BLANKS))
    kind_before, kind_after = kinds_at(text, first - 1), kinds_at(text, after)
    at_line_end = (kind_before == LINE_KIND) | (kind_after == LINE_KIND)
    is_deleted = is_chinese(kind_before) | is_chinese(kind_after) | at_line_end
    is_gap = (kind_before == HAN_KIND) & (kind_after == HAN_KIND) & (gaps != "drop")
    is_wide = is_gap.copy()
    is_gap[is_gap], is_wide[is_wide] = _separates_clauses(text, first[is_gap], after[is_gap])
    text = _replace_gaps(gaps, text, first[is_gap], counts)
    counts[_WIDE_GAPS_KEPT] += int(is_wide.sum())
    is_kept = is_gap | is_wide
    deleted = expand_ranges((first + is_kept)[is_deleted], after[is_deleted])
    counts[INSIDE_LINES] += int((is_deleted & ~at_line_end & ~is_kept).sum())
    deleted_units = text.units[deleted]
    for blank, name in _BLANK_NAMES.items():
        counts[name] += int((deleted_units == ord(blank)).sum())
    return delete_units(text, deleted)


DELETE_SPACES = rule("drop")


def _replace_gaps(gaps: str, text: Utf16Text, at: np.ndarray, counts: Counts) -> Utf16Text:
    """Replace the first units of gaps by what the policy says. A kept gap is a space or an ideographic space."""
    if mark := POLICIES[gaps]:
        counts["gap → line end" if mark == "\n" else f"gap → {mark}"] += len(at)
        return replace_units(text, at, ord(mark))
    counts[GAPS_KEPT] += len(at)
    return replace_units(text, at[is_one_of(text.units[at], BLANKS[1:3])], ord(" "))


def _separates_clauses(text: Utf16Text, first: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of the runs between Han that part clauses of text without marks, and wide ones in other text.

    Neither the document nor the line has marks, or for wide ones the line; and both clauses have two characters or
    more: spaces between single characters are layout, as in 杜 甫.
    """
    is_between: np.ndarray = (kinds_at(text, first - 2) == HAN_KIND) & (kinds_at(text, after + 1) == HAN_KIND)
    is_wide = is_between & (text.units[first] == _IDEOGRAPHIC_SPACE)
    is_gap = is_between
    if not is_between.any():
        return is_gap, is_wide
    ends = np.append(positions_of(text, SEPARATOR), len(text))
    document = np.searchsorted(ends, first)
    # Most documents with marks have enough 。 for their length; others are counted exactly, which is slow.
    stop_count = np.diff(np.searchsorted(positions_of(text, "。"), ends), prepend=0)
    is_gap &= (stop_count * _HAN_PER_MARK < np.diff(ends, prepend=0))[document]
    if is_gap.any():
        is_gap[is_gap] = _are_unmarked(text, ends, document[is_gap], 1 / _HAN_PER_MARK)
    is_wide &= ~is_gap
    if (is_either := is_gap | is_wide).any():
        ends = np.append(positions_of(text, LINE_ENDS), len(text))
        is_in_line = np.zeros(len(first), bool)
        is_in_line[is_either] = _are_unmarked(text, ends, np.searchsorted(ends, first[is_either]), 0)
        is_gap &= is_in_line
        is_wide &= is_in_line
    return is_gap, is_wide


def _are_unmarked(text: Utf16Text, ends: np.ndarray, parts: np.ndarray, marks_per_han: float) -> np.ndarray:
    """Return True for each of the sorted indices `parts` that has few marks, or none. `ends` are those of all parts."""
    indices, _ = count_distinct(parts)
    starts = np.concatenate(([0], ends[:-1] + 1))[indices]
    part = text.units[expand_ranges(starts, ends[indices])]
    bounds = np.concatenate(([0], np.cumsum(ends[indices] - starts)))
    mark_count = np.diff(np.searchsorted(np.flatnonzero(is_one_of(part, _MARKS)), bounds))
    han_count = np.diff(np.searchsorted(np.flatnonzero(is_common_han(part)), bounds))
    is_unmarked: np.ndarray = (mark_count == 0) | (mark_count < han_count * marks_per_han)
    return is_unmarked[np.searchsorted(indices, parts)]


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
        origin = np.sort(np.concatenate((origin, document[is_member(first, boundaries)])))
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
