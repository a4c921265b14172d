"""Spaces: Chinese text has none. Those next to a Chinese character or mark go, and those at the ends of lines."""

from __future__ import annotations

from pipeline.clean.rule import Rule, Seen, units
from pipeline.clean.utf16 import BLANKS, LINE, Codes, is_chinese, kind_at, places, runs, spread, without

INSIDE = "inside lines"  # how many runs were: by them the rules before looked at text that was torn


def delete(text: Codes, seen: Seen) -> Codes:
    """The page without the runs of spaces that touch Chinese text or a line's end on either side."""
    first, after = runs(places(text, BLANKS))
    before, behind = kind_at(text, first - 1), kind_at(text, after)
    goes = is_chinese(before) | is_chinese(behind) | (before == LINE) | (behind == LINE)
    gone = spread(first[goes], after[goes])
    seen[INSIDE] += int((goes & (before != LINE) & (behind != LINE)).sum())
    units = text.units[gone]
    for blank, name in zip(BLANKS, ("space", "tab", "no-break space", "ideographic space"), strict=True):
        seen[name] += int((units == ord(blank)).sum())
    return without(text, gone)


RULE = Rule("spaces", delete, units(BLANKS))
