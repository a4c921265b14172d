"""Quotes: ASCII quotes in Chinese text become “ ” ‘ ’ by their context, and all quotes get one style.

An ASCII quote opens at the start of a line and after ：; otherwise it is the counterpart of the quote before it in the
line. Quotes of other kinds are kept; curly ones count as opening or closing quotes.

`_curl` is a vectorised state machine. `quotes_of_line` in tests/pipeline/clean/rules/slow_rules.py does the same one
character at a time.
"""

from __future__ import annotations

import numpy as np

from pipeline.clean.rule import Counts, Rule, units
from pipeline.clean.rules.lacunae import SIGNS
from pipeline.clean.utf16 import (
    BLANKS,
    LINE_ENDS,
    LINE_KIND,
    Utf16Text,
    delete_units,
    is_chinese,
    is_one_of,
    kinds_at,
    positions_of,
    replace_units,
    run_bounds,
    units_at,
)

_KINDS = (('"', "“", "”"), ("'", "‘", "’"))
_BEFORE_OPENER = "：“‘"
_CURLY, _CORNER = "“”‘’", "「」『』"


def _curl_all(text: Utf16Text, counts: Counts) -> Utf16Text:
    """Make the ASCII quotes curly that touch Chinese text or a sign of a lacuna, with or without spaces between."""
    for ascii_quote, opener, closer in _KINDS:
        text = _curl(text, ascii_quote, opener, closer, counts)
    return text


def _curl(text: Utf16Text, ascii_quote: str, opener: str, closer: str, counts: Counts) -> Utf16Text:
    quotes = positions_of(text, ascii_quote)
    if not len(quotes):
        return text
    first, after = run_bounds(positions_of(text, ascii_quote + BLANKS))
    kind_before = kinds_at(text, first - 1)
    may_open = (kind_before == LINE_KIND) | is_one_of(units_at(text, first - 1), _BEFORE_OPENER)
    is_near_chinese = is_chinese(kind_before) | is_chinese(kinds_at(text, after))
    is_near_chinese |= is_one_of(units_at(text, first - 1), SIGNS) | is_one_of(units_at(text, after), SIGNS)
    first_quotes = np.append(quotes, len(text))[np.searchsorted(quotes, first)]  # the first quote of each run

    # The state after a mark: line ends, curly quotes and opening positions set it; other ASCII quotes toggle it.
    marks = positions_of(text, ascii_quote + LINE_ENDS + opener + closer)
    mark_units = text.units[marks]
    run = np.maximum(np.searchsorted(first, marks, side="right") - 1, 0)
    is_changed = (mark_units == ord(ascii_quote)) & is_near_chinese[run]
    opens = is_changed & may_open[run] & (marks == first_quotes[run])
    sets_state = (mark_units != ord(ascii_quote)) | opens
    latest_set = np.maximum.accumulate(np.where(sets_state, np.arange(len(marks)), -1))
    toggles = np.cumsum(is_changed & ~opens)
    toggles_since = toggles - np.where(latest_set >= 0, toggles[latest_set], 0)
    set_open = (latest_set >= 0) & (opens | (mark_units == ord(opener)))[latest_set]
    is_open = set_open ^ (toggles_since % 2 == 1)
    counts[f"{ascii_quote} → {opener}"] += int(is_open[is_changed].sum())
    counts[f"{ascii_quote} → {closer}"] += int((~is_open[is_changed]).sum())
    return replace_units(text, marks[is_changed], np.where(is_open[is_changed], ord(opener), ord(closer)))


CURL = Rule("quotes", _curl_all, units("\"'"), produces=_CURLY)


def style_rule(name: str) -> Rule:
    """Return the rule for a style: "curly" “ ” ‘ ’ or "corner" 「 」 『 』 for all quotes, "strip" to remove them."""
    if name == "strip":
        return Rule("quote-style", _strip, units(_CURLY + _CORNER))
    old, new = (_CORNER, _CURLY) if name == "curly" else (_CURLY, _CORNER)

    def restyle(text: Utf16Text, counts: Counts) -> Utf16Text:
        for old_quote, new_quote in zip(old, new, strict=True):
            positions = positions_of(text, old_quote)
            text = replace_units(text, positions, ord(new_quote))
            counts[f"{old_quote} → {new_quote}"] += len(positions)
        return text

    return Rule("quote-style", restyle, units(old), produces=new)


def _strip(text: Utf16Text, counts: Counts) -> Utf16Text:
    positions = positions_of(text, _CURLY + _CORNER)
    counts["stripped"] += len(positions)
    return delete_units(text, positions)


def count_unbalanced(text: Utf16Text) -> dict[str, int]:
    """Count unbalanced outer quotes, which are common in books.

    "reopened" counts those that open while another is open, "orphans" those that close while none is open.
    """
    quote_units = text.units[positions_of(text, "“”「」" + LINE_ENDS)]
    opens = (quote_units == ord("“")) | (quote_units == ord("「"))
    closes = (quote_units == ord("”")) | (quote_units == ord("」"))
    follows_opener = np.concatenate(([False], opens[:-1]))
    return {
        "reopened": int((opens & follows_opener).sum()),
        "orphans": int((closes & ~follows_opener).sum()),
    }
