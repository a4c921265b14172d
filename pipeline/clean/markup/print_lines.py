"""Print lines of Kanripo texts: a newline of the file is that of a printed page, and ¶ marks it.

A wrapped line is full: it has as many characters as the print allows. It continues in a line of the same indent, as
commentary (注) does that is set below the text (經), or in a less indented one, as the first line of a paragraph does.
All else begins a paragraph. Some editions have a clause on each line instead: these are joined up to the next indent.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.markup.parsed import add_count
from pipeline.clean.rule import Counts
from pipeline.clean.rules import headings
from pipeline.clean.utf16 import BLANKS, CLAUSE_MARKS, CLOSERS, OPENERS, SENTENCE_ENDS

_MIN_WIDTH = 12  # characters of a full line; shorter ones are clauses or verse
_MIN_FULL_LINES = 2  # that are needed to determine the width of a print
_MIN_LINES = 20  # that are needed to conclude that no line is full
_RAGGED = sys.maxsize  # width of a text without full lines, such as a list
_INDENT = "\u3000"
_MARKS = SENTENCE_ENDS + CLAUSE_MARKS + CLOSERS + OPENERS  # added by editors: they take no room in the print
_SENTENCE_ENDS = tuple(SENTENCE_ENDS + CLOSERS)
_MARK = lazy_pattern(f"[{re.escape(_MARKS)}]")
_TWO_COLUMNS = lazy_pattern(r"\(([^()/]*)/([^()/]*)\)")
_NOTE = lazy_pattern(r"\(([^()/]*)\)")
_NOTE_END = lazy_pattern(r"\([^()]*\)$")
_GAIJI = lazy_pattern(r"&[A-Za-z0-9-]{1,12};")
_GAP = lazy_pattern(r"(?<=[^ \u3000]) *\u3000[ \u3000]*(?=[^ \u3000])")
_FORM = lazy_pattern(r"[ \t\u3000]*(?:@[A-Za-z]{1,8})+(?=[^A-Za-z@\n])")  # `@fw`: the line is set in large type


@dataclass(frozen=True, slots=True)
class _PrintLine:
    """One line of the file.

    text       without ¶
    body       without blanks around it
    indent     blanks before the body
    length     characters from top to bottom with the indent, or 0 if unknown; of a note the longer column counts
    gap        blank between two words
    is_apart   a heading, or a line that the file marks as one
    continues  its newline is one of the print
    """

    text: str
    body: str
    indent: int
    length: int
    gap: re.Match[str] | None
    is_apart: bool
    continues: bool


def join_print_lines(text: str, counts: Counts) -> str:
    """Join the print lines of a text, remove ¶, and count the changes.

    A line that begins a paragraph is indented, so that no other rule joins it. Names in a list, which blanks separate,
    become lines.
    """
    has_marks = "¶" in text
    lines = [_read_line(line, counts) for line in text.split("\n")]
    if not has_marks:
        return "\n".join(line.text for line in lines)
    layout = _Layout(lines)
    pieces = [lines[0].text]
    for index, (previous, line) in enumerate(pairwise(lines), 1):
        if layout.is_list_line(index):
            counts["U+3000 in a list"] += len(_GAP.findall(line.body))
            separator = "\n" + (line.text[: line.indent] or _INDENT)
            pieces.append(separator + _GAP.sub(separator, line.body))
        elif layout.is_wrapped(index - 1):
            add_count(counts, "indent", line.indent)
            pieces.append(line.text.lstrip(BLANKS))
        elif previous.body and line.body and not line.indent and not line.is_apart and previous.continues:
            add_count(counts, "short ¶ line", not previous.is_apart)
            pieces += ("\n", "" if previous.is_apart and not previous.indent else _INDENT, line.text)
        else:
            pieces += ("\n", line.text)
    return "".join(pieces)


def _read_line(line: str, counts: Counts) -> _PrintLine:
    text = line.replace("¶", "")
    is_apart = False
    if "@" in text and (form := _FORM.match(text)):
        counts["@ mark"] += 1
        text, is_apart = _INDENT + text[form.end() :], True
    body = text.strip(BLANKS)
    is_apart = is_apart or text.startswith("** ") or headings.parse_heading(text) is not None
    continues = is_apart or line.rstrip(" \t").endswith("¶") or not body.endswith(_SENTENCE_ENDS)
    gap = _GAP.search(body) if _INDENT in body else None
    return _PrintLine(text, body, len(text) - len(text.lstrip(BLANKS)), _length(text), gap, is_apart, continues)


def _length(line: str) -> int:
    line = _MARK.sub("", line.rstrip(BLANKS))
    if "&" in line:
        line = _GAIJI.sub("□", line)
    if "(" in line:
        line = _TWO_COLUMNS.sub(lambda note: "□" * max(len(note[1]), len(note[2])), line)
        line = _NOTE.sub(lambda note: "□" * ((len(note[1]) + 1) // 2), line)
    return 0 if "(" in line or ")" in line else len(line)


class _Layout:
    """Width of a print, and how its paragraphs are indented.

    width   characters of a full line; 0 if unknown, or if each line is a clause
    hangs   indents of first lines, which continue in a less indented line
    widths  the width of each line: a preface, for example, is narrower than the text
    """

    def __init__(self, lines: list[_PrintLine]) -> None:
        self._lines = lines
        texts = [line for line in lines if line.body and not line.is_apart]
        self.has_clauses = 2 * sum(line.body[-1] in _MARKS for line in texts) >= len(texts)
        self.width = 0 if self.has_clauses else _print_width(texts)
        self.widths = [self.width] * len(lines)
        same, less = Counter[int](), Counter[int]()
        for index, (line, following) in enumerate(pairwise(lines)):
            if line.body and following.body and self._is_full(index):
                same[line.indent] += following.indent == line.indent
                less[line.indent] += following.indent < line.indent
        self.hangs = {indent for indent in less if less[indent] > same[indent]}
        width = self.width
        for index, (line, following) in enumerate(pairwise(lines)):
            if line.indent or not line.body:
                width = self.width
            if line.indent in self.hangs and not following.indent:
                room = line.length - line.indent
                width = room if _MIN_WIDTH <= room == following.length else width
            self.widths[index] = min(width, self.width)

    def _is_full(self, index: int) -> bool:
        length = self._lines[index].length
        return self.width != _RAGGED and (not length or length >= self.widths[index])

    def is_wrapped(self, index: int) -> bool:
        """Return True if the line `index` continues in the next one."""
        line, following = self._lines[index], self._lines[index + 1]
        if not (line.continues and line.body and following.body) or line.is_apart or following.is_apart:
            return False
        if self.is_list_line(index) or self.is_list_line(index + 1):
            return False
        if not self.width:
            return not following.indent and (self.has_clauses or not line.indent)
        if following.indent == line.indent:
            # A commentary has no paragraphs within a block, so its line may lack a character that could not be typed.
            return self._is_full(index) or (line.indent > 0 and line.length == self.width - 1)
        return following.indent < line.indent and line.indent in self.hangs and self._is_full(index)

    def is_list_line(self, index: int) -> bool:
        """Return True if a blank separates words here and in a neighbouring line of the same indent.

        In full lines it must be at the same place: a blank shows respect, too, or a lost character. A line alone is a
        list if its words end in the same character, such as 佛.
        """
        line = self._lines[index]
        if not line.gap or line.is_apart:
            return False
        is_full = bool(self.width) and self._is_full(index)
        if not is_full and len({_NOTE_END.sub("", word)[-1:] for word in _GAP.split(line.body)}) == 1:
            return True
        neighbours = self._lines[max(index - 1, 0) : index] + self._lines[index + 1 : index + 2]
        return any(
            other.gap and other.indent == line.indent and (not is_full or other.gap.span() == line.gap.span())
            for other in neighbours
        )


def _print_width(lines: list[_PrintLine]) -> int:
    """Return the characters in a full line of the print, or 0 if unknown.

    At least a fifth of the lines must have this length, and at most a twentieth may be longer without their indent. In
    an uneven print, half of the lines must be at most two characters shorter than the longest. Lines with notes are not
    counted, and lines with gaps, which are often lists, are not counted as full.
    """
    measured = [line for line in lines if line.length and "(" not in line.text]
    lengths = sorted(line.length for line in measured)
    lines_by_length = Counter(line.length for line in measured if line.length >= _MIN_WIDTH and not line.gap)
    if not lines_by_length:
        return 0
    width = min(lines_by_length, key=lambda length: (-lines_by_length[length], length))
    full_lines = lines_by_length[width]
    longer_lines = sum(line.length - line.indent > width for line in measured)
    if full_lines >= _MIN_FULL_LINES and 5 * full_lines >= len(lengths) and 20 * longer_lines <= len(lengths):
        return width
    if len(lengths) < _MIN_LINES:
        return 0
    shortest_full = lengths[-1 - len(lengths) // 50] - 2
    return shortest_full if lengths[len(lengths) // 2] >= shortest_full >= _MIN_WIDTH else _RAGGED
