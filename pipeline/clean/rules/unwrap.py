"""Unwrapping: text that was broken into print lines is joined into paragraphs.

A line continues in the next one unless it ends a sentence (。！？：… or a closing mark), or the next line is blank,
starts with a space or is a heading. A heading on a line of its own is not joined.
`余乆擬西南遊\\n遷延` becomes `余乆擬西南遊遷延`.

If the width of the print is known (print_layout.py), only a full line continues, and page numbers, running heads and
footnotes may be between the two. By default documents of clear width are joined, and others are reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rule import Counts, Rule, textual, units
from pipeline.clean.rules import headings, print_layout
from pipeline.clean.rules.footnotes import NOTE_LINE, NOTE_RULE
from pipeline.clean.rules.print_layout import Layout
from pipeline.clean.utf16 import (
    BLANKS,
    CHINESE_MARKS,
    CLAUSE_MARKS,
    CLOSERS,
    ELLIPSIS,
    HAN,
    LACUNA,
    OPENERS,
    SENTENCE_ENDS,
    SEPARATOR,
    Utf16Text,
    join_documents,
    split_documents,
)

_NO_BEGIN = SENTENCE_ENDS + CLAUSE_MARKS + CLOSERS  # that no paragraph begins with
# ASCII marks included: this rule runs before they are widened.
_SENTENCE_ENDS = tuple(SENTENCE_ENDS + "：" + ELLIPSIS + CLOSERS + ".!?:" + "\"')]")
_CHINESE = lazy_pattern(f"[{HAN}{LACUNA}{CHINESE_MARKS}{CLAUSE_MARKS}{OPENERS}{CLOSERS}{ELLIPSIS}—・·]")


class _Lines:
    """The lines of a document, which are joined as they are added.

    layout  print layout, or None if its width is unknown: then each line continues unless it ends a sentence
    lines   added lines, each in pieces
    """

    def __init__(self, layout: Layout | None, counts: Counts) -> None:
        self._layout, self._counts = layout, counts
        self.lines: list[list[str]] = []
        self._target: int | None = None  # index of the line that may continue
        self._previous = ""  # its last print line
        self._previous_is_heading: bool | None = None  # None: not checked yet, because parsing a heading is slow
        self._note: tuple[int, str] | None = None  # index and text of the note line just before
        self._blank_lines, self._is_interrupted = 0, False

    def interrupt(self) -> None:
        """Note that a page ends here: a page number, a running head or the rule above its footnotes."""
        self._is_interrupted, self._note = True, None

    def add(self, line: str) -> None:
        """Add a line, or join it to the line that it continues."""
        if not line.strip(BLANKS):
            self._blank_lines += 1
            self._note = None
            self.lines.append([line])
        elif NOTE_LINE.match(line):
            self._add_note(line)
        elif NOTE_RULE.match(line):
            self.interrupt()
            self.lines.append([line])
        elif self._note and self._continues(self._note[1], line):
            self._join(self._note[0], self._note[1], line)
            self._note = self._note[0], line
        else:
            self._add_text(line)

    def _add_note(self, line: str) -> None:
        """Add the line of a footnote. The paragraph before it may continue after it."""
        self._note = len(self.lines), line
        self._is_interrupted = True
        self.lines.append([line])

    def _add_text(self, line: str) -> None:
        is_heading: bool | None = None
        target = self._target
        if target is not None and self._is_adjacent() and self._continues(self._previous, line):
            heading = headings.parse_heading(line)
            is_heading = _is_own_line(heading)
            if not heading and self._previous_is_heading is None:
                self._previous_is_heading = _is_own_line(headings.parse_heading(self._previous))
            if heading or self._previous_is_heading:
                target = None
        else:
            target = None
        if target is None:
            self._target = len(self.lines)
            self.lines.append([line])
        else:
            between = [pieces for pieces in self.lines[target + 1 :] if pieces[0].strip(BLANKS)]
            del self.lines[target + 1 :]
            if self._blank_lines:
                self._counts["blank lines"] += self._blank_lines
            self._join(target, self._previous, line)
            self.lines += between
        self._previous, self._previous_is_heading = line, is_heading
        self._note, self._blank_lines, self._is_interrupted = None, 0, False

    def _is_adjacent(self) -> bool:
        is_spaced = self._layout is not None and self._layout.is_double_spaced
        return self._blank_lines <= is_spaced or self._is_interrupted

    def _continues(self, previous: str, line: str) -> bool:
        layout = self._layout
        if not layout:
            return _is_open(previous) and line[0] not in BLANKS
        if not layout.is_full(previous) or print_layout.indent(line) != layout.indent:
            return False
        begins_with_mark = line.lstrip(BLANKS)[0] in _NO_BEGIN
        return layout.marks_paragraphs or begins_with_mark or print_layout.is_open(previous)

    def _join(self, target: int, previous: str, line: str) -> None:
        if self._layout:
            line = line.lstrip(BLANKS)
        is_chinese = previous[-1] in BLANKS or _CHINESE.match(previous[-1]) or _CHINESE.match(line)
        self.lines[target] += ("" if is_chinese else " ", line)
        self._counts["joins"] += 1


def unwrap(text: str, counts: Counts) -> str:
    """Join the print lines of the documents of `text`, which NUL separates, and count the joins.

    Between two words that are not Chinese the newline becomes a space.
    """
    return SEPARATOR.join(_join_lines(document, None, {}, counts) for document in text.split(SEPARATOR))


def _join_lines(document: str, layout: Layout | None, marks: Mapping[int, str], counts: Counts) -> str:
    """Join the print lines of a document. `marks` are what remains of the lines that its pages repeat."""
    joined = _Lines(layout, counts)
    for index, line in enumerate(document.split("\n")):
        if index in marks and not marks[index]:
            joined.interrupt()
        else:
            joined.add(marks.get(index, line))
    if marks:
        counts["page numbers, running heads"] += len(marks)
    return "\n".join(map("".join, joined.lines))


def unwrap_pages(text: str, counts: Counts) -> str:
    """Join print lines by the layout of each document, without page numbers and running heads."""
    documents = text.split(SEPARATOR)
    return SEPARATOR.join(_unwrap_print(document, print_layout.measure(document), counts) for document in documents)


def _unwrap_print(document: str, layout: Layout | None, counts: Counts) -> str:
    return _join_lines(document, layout, print_layout.page_marks(document.split("\n"), layout), counts)


def _unwrap_where_clear(page: Utf16Text, counts: Counts) -> Utf16Text:
    """Join the print lines of the documents and chapters that are clearly hard-wrapped. Count those that may be."""
    suspects = print_layout.suspects(page)
    if not suspects:
        return page
    documents, has_joins = split_documents(page), False
    for index, is_entire in suspects.items():
        text = documents[index]
        layout = print_layout.measure(text) if is_entire else None
        if layout and layout.is_clear:
            documents[index] = _unwrap_print(text, layout, counts)
        elif _has_wrapped_chapter(text):
            documents[index] = "\n".join(_unwrap_if_clear(chapter, counts) for chapter in _chapters(text))
        elif layout:
            counts[f"{KEPT}{layout.characters}"] += 1
        has_joins |= documents[index] is not text
    return join_documents(documents) if has_joins else page


def _unwrap_if_clear(chapter: str, counts: Counts) -> str:
    layout = print_layout.measure(chapter)
    return _unwrap_print(chapter, layout, counts) if layout and layout.is_clear else chapter


def _has_wrapped_chapter(text: str) -> bool:
    """Return True if a chapter is clearly hard-wrapped. This is fast for a text without such a chapter."""
    chapters = headings.split_at_headings(join_documents([text]), "boundary").page
    suspects = print_layout.suspects(chapters)
    texts = split_documents(chapters) if any(suspects.values()) else []
    layouts = (print_layout.measure(texts[index]) for index, is_entire in suspects.items() if is_entire)
    return len(texts) > 1 and any(layout is not None and layout.is_clear for layout in layouts)


def _chapters(text: str) -> list[str]:
    """Return the parts of a text that begin with a heading, and the part before the first."""
    lines = text.split("\n")
    starts = [index for index, line in enumerate(lines) if index and headings.parse_heading(line)]
    return ["\n".join(lines[start:end]) for start, end in pairwise((0, *starts, len(lines)))]


def _is_open(line: str) -> bool:
    """Return True if a line has text and does not end a sentence."""
    text = line.rstrip(BLANKS)
    return bool(text) and not text.endswith(_SENTENCE_ENDS)


def _is_own_line(heading: tuple[str, str] | None) -> bool:
    return heading is not None and not heading[1]


KEPT = "kept lines of "  # characters, in the counts of documents that may be hard-wrapped
UNWRAP = textual("unwrap", unwrap, units("\n"))
UNWRAP_PAGES = textual("unwrap", unwrap_pages, units("\n"))
UNWRAP_WHERE_CLEAR = Rule("unwrap", _unwrap_where_clear, units("\n"))
