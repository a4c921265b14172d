"""Verse inside prose: 正是：黑甜一枕古祠中，梦里分明见鬼雄。

Verse is complete sentences of clauses that are all 5 or all 7 characters long: two or more clauses after words that
announce it (正是：), four or more elsewhere. Clauses of 4 characters are the usual form of classical prose: of the 457
runs of four or more of them in 水浒 hardly one is verse. So they count only if announced, and two of them only after
正是：, because 但见： introduces prose in pairs.

The search is vectorised. `verse` in tests/pipeline/clean/rules/slow_rules.py does the same one clause at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from pipeline.clean.rule import Counts, Rule, units
from pipeline.clean.rules.punctuation import LETTER_RANGES, LETTER_SIGNS
from pipeline.clean.utf16 import (
    UNIT_COUNT,
    Utf16Text,
    count_distinct,
    delete_units,
    expand_ranges,
    insert_unit,
    is_one_of,
    positions_of,
    units_at,
)
from pipeline.errors import BadConfig

POLICIES = ("inline", "own-unit", "drop")
_CLAUSE_ENDS, _SENTENCE_ENDS = "，。！？；", "。！？"
_LENGTHS = (4, 5, 7)  # characters of a clause
_OPENERS, _CLOSERS = "“‘「『\"'", "”’」』\"'"
_CONTINUES = "，、；："
_COUPLET = "正是"
_ANNOUNCE = (_COUPLET, "诗曰", "詩曰", "但见", "但見", "为证", "為證", "爲證", "偈曰", "赋曰", "賦曰", "词曰", "詞曰")
_BEFORE_COLON = "".join(words[-1] for words in _ANNOUNCE)
_REQUIRED_PREFIX = {"为证": "有诗", "為證": "有詩", "爲證": "有詩"}
_SENTENCE_STARTS = "\0\n。！？：" + _OPENERS + _CLOSERS
_UNITS_BEFORE, _UNITS_AFTER = 4, 600  # of a colon, that hold the announcing words and the longest song
_SEPARATOR_UNIT = np.zeros(1, "<u2")


@dataclass(frozen=True)
class _Runs:
    """The runs of verse of a page, as parallel arrays. Positions are in units."""

    start: np.ndarray
    end: np.ndarray  # behind the last mark
    clauses: np.ndarray  # their number
    length: np.ndarray  # characters of each clause
    is_announced: np.ndarray
    lead: np.ndarray  # start of the words that announce the run; equals `start` if nothing does


def rule(policy: str) -> Rule:
    """Return the rule for a policy: "inline" only counts verse, "own-unit" puts it on its own line, "drop" removes it.

    The words that announce verse are moved or removed with it. The rule counts runs by the length of their clauses,
    announced runs, and characters. "inline" searches only the text after announcing words. Raises BadConfig.
    """
    if policy not in POLICIES:
        raise BadConfig(f"--verse must be one of {', '.join(POLICIES)}, got {policy!r}", hint="choose one of these")
    makes = "\n" if policy == "own-unit" else ""
    return Rule("verse", partial(_apply, policy), triggers=units(_SENTENCE_ENDS), produces=makes)


def _apply(policy: str, page: Utf16Text, counts: Counts) -> Utf16Text:
    if policy == "inline":
        _count(_find(_announced_parts(page)), counts)
        return page
    verse = _find(page)
    while len(verse.start):
        _count(verse, counts)
        if policy == "own-unit":
            return _put_on_lines(page, verse)
        page = _drop(page, verse)
        verse = _find(page)  # clauses that the verse separated may be verse together
    return page


def _count(verse: _Runs, counts: Counts) -> None:
    for length, count in zip(*count_distinct(verse.length), strict=True):
        counts[f"runs of {length} characters a clause"] += int(count)
    counts["runs that are announced"] += int(np.count_nonzero(verse.is_announced))
    counts["characters of verse"] += int((verse.clauses * verse.length).sum())


def _announced_parts(page: Utf16Text) -> Utf16Text:
    """Return the parts of a page that may hold announced verse: counting need not search a complete book of prose."""
    colons = positions_of(page, "：")
    colons = colons[is_one_of(units_at(page, colons - 1), _BEFORE_COLON)]
    colons = colons[_is_any_pair(_pair_at(page, colons - 2), _ANNOUNCE)]
    if not len(colons):
        return page[:0]
    start = np.maximum(colons - _UNITS_BEFORE, 0)
    end = np.minimum(np.append(colons[1:] - _UNITS_BEFORE, len(page)), colons + _UNITS_AFTER)
    end = np.maximum(end, start)
    pieces = [
        piece
        for first, last in zip(start.tolist(), end.tolist(), strict=True)
        for piece in (page.units[first:last], _SEPARATOR_UNIT)
    ]
    return Utf16Text(np.concatenate(pieces))


def _put_on_lines(page: Utf16Text, verse: _Runs) -> Utf16Text:
    """Put each run on its own line, with the words that announce it and its quotes, unless its sentence continues."""
    start = verse.lead - _is_at(page, verse.lead - 1, _OPENERS)
    end = verse.end
    while (is_closer := _is_at(page, end, _CLOSERS)).any():
        end = end + is_closer
    is_separable = ~_is_at(page, end, _CONTINUES)
    is_break = np.zeros(len(page) + 1, bool)
    is_break[start[is_separable]] = is_break[end[is_separable]] = True
    breaks = np.flatnonzero(is_break)
    at_line_end = _is_at(page, breaks - 1, "\0\n") | _is_at(page, breaks, "\0\n")
    return insert_unit(page, breaks[~at_line_end], "\n")


def _drop(page: Utf16Text, verse: _Runs) -> Utf16Text:
    """Remove the runs and the words that announce them; of a pair of quotes both are removed, or neither."""
    is_opened, is_closed = _is_at(page, verse.start - 1, _OPENERS), _is_at(page, verse.end, _CLOSERS)
    quote_continues = is_opened & ~is_closed
    is_unannounced = verse.lead == verse.start
    start = np.where(quote_continues, verse.start, verse.lead - (is_opened & is_unannounced))
    end = verse.end + (is_opened & is_closed)
    fills_line = _is_at(page, start - 1, "\0\n") & _is_at(page, end, "\n")  # then its line end is removed too
    return delete_units(page, expand_ranges(start, end + fills_line))


def _find(page: Utf16Text) -> _Runs:
    """Find all verse of a page. For the search low surrogates are left out, so that a character is one unit."""
    if not ((page.special_units & 0xFC00) == 0xDC00).any():
        return _find_runs(page)
    positions = np.flatnonzero((page.units & 0xFC00) != 0xDC00)
    verse = _find_runs(Utf16Text(page.units[positions]))
    return _Runs(
        positions[verse.start],
        positions[verse.end - 1] + 1,
        verse.clauses,
        verse.length,
        verse.is_announced,
        positions[verse.lead],
    )


def _find_runs(page: Utf16Text) -> _Runs:
    marks = positions_of(page, _CLAUSE_ENDS)
    links, length = _links(page, marks)
    breaks = np.flatnonzero((np.diff(links) > 1) | (np.diff(length) != 0))
    first_link = np.append(0, breaks + 1)[: len(links)]
    last_link = np.append(breaks, len(links) - 1)[: len(links)]
    # Groups of equal clauses. `first` and `last` are the indices of the marks that end their first and last clause.
    first, last, length = links[first_link], links[last_link] + 1, length[first_link]
    is_long = (last - first > 2) & (length > 4)
    is_candidate = is_long | _is_at(page, marks[first] - length - 1, "：\n" + _OPENERS)
    first, last, length = first[is_candidate], last[is_candidate], length[is_candidate]
    lead, announcement = _announcements(page, marks[first] - length)

    # Shorten each group to complete sentences.
    sentence_marks = np.flatnonzero(_is_at(page, marks, _SENTENCE_ENDS))
    bounds = np.concatenate(([-1], sentence_marks, [len(marks)]))
    starts_sentence = (announcement > 0) | _is_at(page, marks[first] - length - 1, _SENTENCE_STARTS)
    first = np.where(starts_sentence, first, bounds[np.searchsorted(sentence_marks, first) + 1] + 1)
    last = bounds[np.searchsorted(sentence_marks, last, side="right")]
    clauses = last - first + 1

    never = len(page) + 1
    least_announced = np.where((length > 4) | (announcement == _COUPLET_KIND), 2, 4)
    least = np.where(announcement > 0, least_announced, np.where(length > 4, 4, never))
    is_verse = clauses >= least
    first, last, length = first[is_verse], last[is_verse], length[is_verse]
    start, is_announced = marks[first] - length, announcement[is_verse] > 0
    lead = np.where(is_announced, lead[is_verse], start)
    return _Runs(start, marks[last] + 1, clauses[is_verse], length, is_announced, lead)


def _links(page: Utf16Text, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the marks between two clauses of the same length, and that length, one of _LENGTHS.

    The second clause ends at the next mark; a line may end between the two.
    """
    if len(marks) < 2:
        return marks[:0], marks[:0]
    line_ends_after = units_at(page, marks[:-1] + 1) == ord("\n")
    size = np.diff(marks) - 1 - line_ends_after
    links = np.flatnonzero(((size > 3) & (size < 6)) | (size == 7))
    links = links[~_is_letter().take(units_at(page, marks[links] - size[links] - 1))]
    is_linked = np.zeros(len(links), bool)
    for length in _LENGTHS:
        indices = np.flatnonzero(size[links] == length)
        mark = marks[links[indices]]
        offsets = np.arange(length)
        next_clause = mark + 1 + line_ends_after[links[indices]]
        letters_before = _is_letter().take(units_at(page, mark[:, None] - length + offsets)).all(axis=1)
        letters_after = _is_letter().take(units_at(page, next_clause[:, None] + offsets)).all(axis=1)
        is_linked[indices] = letters_before & letters_after
    return links[is_linked], size[links[is_linked]]


_COUPLET_KIND, _OTHER_KIND = 1, 2


def _announcements(page: Utf16Text, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the words start that announce the clauses at `starts`, and their kind.

    The kind is _COUPLET_KIND for 正是, _OTHER_KIND for other words, 0 if nothing announces the clause.
    """
    colon = starts - 1
    colon = colon - _is_at(page, colon, "\n" + _OPENERS)
    colon = colon - _is_at(page, colon, "\n" + _OPENERS)
    pair = _pair_at(page, colon - 2)
    pair[~_is_at(page, colon, "：")] = 0
    kind = np.where(pair == _pair(_COUPLET), _COUPLET_KIND, np.where(_is_any_pair(pair, _ANNOUNCE), _OTHER_KIND, 0))
    has_prefix = np.zeros(len(starts), bool)
    pair_before = _pair_at(page, colon - 4)
    for words, prefix in _REQUIRED_PREFIX.items():
        has_prefix |= (pair == _pair(words)) & (pair_before == _pair(prefix))
    kind[_is_any_pair(pair, _REQUIRED_PREFIX) & ~has_prefix] = 0
    return colon - 2 - 2 * has_prefix, kind


def _pair(words: str) -> int:
    """Two units as one integer, for comparing them at once."""
    return ord(words[0]) << 16 | ord(words[1])


def _pair_at(page: Utf16Text, positions: np.ndarray) -> np.ndarray:
    pairs: np.ndarray = (units_at(page, positions).astype(np.uint32) << 16) | units_at(page, positions + 1)
    return pairs


def _is_any_pair(pairs: np.ndarray, words: Iterable[str]) -> np.ndarray:
    values = np.array([_pair(word) for word in words], np.uint32)
    is_any: np.ndarray = (pairs[:, None] == values).any(axis=1)
    return is_any


def _is_at(page: Utf16Text, positions: np.ndarray, characters: str) -> np.ndarray:
    """Return for each position True if one of `characters` is there. Outside the page there is NUL."""
    return is_one_of(units_at(page, positions), characters)


@cache
def _is_letter() -> np.ndarray:
    """Table over units: Chinese letters."""
    table = np.zeros(UNIT_COUNT, bool)
    for first, last in LETTER_RANGES:
        table[first : last + 1] = True
    table[[ord(sign) for sign in LETTER_SIGNS]] = True
    return table
