"""Footnotes: marks such as ①, [1] or 〔一〕 in a text, and the lines that begin with the same mark.

`--notes footnotes=drop` removes both: ① in `通灵①之说`, and the line `①　通灵：指通灵宝玉。`. A circled mark without
its line stays, because prose counts with it. A mark in brackets without its line is removed if it belongs to a series
1, 2, 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rule import Counts, Rule, textual, units
from pipeline.clean.utf16 import BLANKS, LINE_ENDS, SEPARATOR
from pipeline.sources.order import parse_numeral

NAME, POLICIES = "footnotes", ("keep", "drop")
_CIRCLED = "①-⑳㉑-㉟㊱-㊿"
_NUMERAL = "(?:[0-9]{1,3}|[〇一二三四五六七八九十百]{1,4})"
_MARK = rf"(?:[{_CIRCLED}]|\[{_NUMERAL}\]|［{_NUMERAL}］|〔{_NUMERAL}〕|【[0-9]{{1,3}}】)"
_MARKS = lazy_pattern(_MARK)
NOTE_LINE = lazy_pattern(rf"[{BLANKS}]*({_MARK})[{BLANKS}]*(?=[^{BLANKS}{LINE_ENDS}])")
TRAILING_MARKS = lazy_pattern(rf"(?:{_MARK})+$")
NOTE_RULE = lazy_pattern(r"[ \t\u00a0\u3000]*[-—―─━_]{4,}[ \t\u00a0\u3000]*$")  # drawn between a page and its notes
_TITLE = lazy_pattern(r"\s*[【\[〔［]?(?:注释|注釋|脚注|腳注|註釋|注解|校注|注)[】\]〕］]?[：:]?\s*")
_MIN_SERIES = 3  # marks 1, 2, 3 that are footnotes without their lines


def rule() -> Rule:
    """Return the rule that removes footnotes and their marks."""
    circled = [(ord(first), ord(last)) for first, last in re.findall("(.)-(.)", _CIRCLED)]
    return textual(NAME, _remove, units("[［〔【", *circled))


def _remove(text: str, counts: Counts) -> str:
    return SEPARATOR.join(_remove_from(document, counts) for document in text.split(SEPARATOR))


def _remove_from(document: str, counts: Counts) -> str:
    lines = document.split("\n")
    note_lines, marks = _pairs(lines)
    marks |= _series(lines, note_lines)
    dropped = {*note_lines}
    for index in note_lines:
        title = index - 1
        while title >= 0 and not lines[title].strip():
            title -= 1
        if title >= 0 and (_TITLE.fullmatch(lines[title]) or NOTE_RULE.match(lines[title])):
            dropped.add(title)
    for index, start, end in sorted(marks, reverse=True):
        lines[index] = lines[index][:start] + lines[index][end:]
    counts["note lines"] += len(note_lines)
    counts["marks"] += len(marks)
    return "\n".join(line for index, line in enumerate(lines) if index not in dropped)


def _pairs(lines: Sequence[str]) -> tuple[set[int], set[tuple[int, int, int]]]:
    """Return the indices of the note lines, and the marks that refer to them as line, start and end.

    Marks and the lines that begin with them pair up in their order. A line may have more than one mark.
    """
    note_lines, marks = set[int](), set[tuple[int, int, int]]()
    pending: dict[str, list[tuple[int, int, int]]] = {}
    last_note: dict[str, int] = {}
    for index, line in enumerate(lines):
        note = NOTE_LINE.match(line)
        if note and pending.get(note[1]):
            note_lines.add(index)
            last_note[note[1]] = index
            marks.add(pending[note[1]].pop(0))
            continue
        for mark in _MARKS.finditer(line, note.end() if note else 0):
            pending.setdefault(mark[0], []).append((index, mark.start(), mark.end()))
    for label, index in last_note.items():
        marks |= {mark for mark in pending[label] if mark[0] < index}
    return note_lines, marks


def _series(lines: Sequence[str], note_lines: set[int]) -> set[tuple[int, int, int]]:
    """Return the marks in brackets inside lines that count from 1 without a gap."""
    series, run, expected = set[tuple[int, int, int]](), list[tuple[int, int, int]](), 1
    for index, line in enumerate(lines):
        note = NOTE_LINE.match(line)
        for mark in _MARKS.finditer(line, note.end() if note else 0) if index not in note_lines else ():
            number = parse_numeral(mark[0][1:-1]) if len(mark[0]) > 1 else None
            if number not in (1, expected):
                continue
            if number == 1:
                run, expected = [], 1
            run.append((index, mark.start(), mark.end()))
            expected += 1
            if len(run) >= _MIN_SERIES:
                series |= {*run}
    return series
