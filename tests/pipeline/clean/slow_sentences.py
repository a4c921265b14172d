"""Sentences of Chinese text: units that end in 。！？ together with the quotes and brackets that close on them.

The exact meaning is reference/cleaning.md 4.3. The outer-quote flag is a boolean on purpose: real books lose a ” now
and then, and a depth counter would glue everything after the fault into one unit.
"""

from __future__ import annotations

import re

_CLOSERS = "”’」』）》〉】〕〗"
_CLUSTER = f"(?:…*+[。！？][。！？…]*+[{_CLOSERS}]*+|…++[{_CLOSERS}]++)+"  # “好。”。 is one end, not two
_EVENT = re.compile(f"{_CLUSTER}|[“「”」]")
_CONTINUES = "，、；："


def split(text: str, *, inside_quotes: bool = False) -> list[str]:
    """Sentences in order; joined, they are `text` without its newlines.

    A sentence does not end inside “…” or 「…」 unless `inside_quotes`. A newline always ends one.
    """
    return [unit for line in text.split("\n") for unit in _split_line(line, inside_quotes)]


def _split_line(line: str, inside_quotes: bool) -> list[str]:
    units: list[str] = []
    start, quoted = 0, False
    for event in _EVENT.finditer(line):
        mark, end = event[0], event.end()
        if mark in "“「":
            quoted = True
        elif mark in "”」":
            quoted = False
        else:
            if "”" in mark or "」" in mark:
                quoted = False
            if (inside_quotes or not quoted) and line[end : end + 1] not in (*_CONTINUES,):
                units.append(line[start:end])
                start = end
    if start < len(line):
        units.append(line[start:])
    return units
