"""Chapter headings of Chinese books: where a new document begins.

A heading stands on a line of its own, or at the head of the line that holds the whole chapter
(`第二段  高俅奸佞虽堪恨，…`). In the second case only the heading goes; the body of the line stays.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = "[〇零一二三四五六七八九十百千两0-9０-９]+"
_HEADING = re.compile(
    rf"""[ \t\u3000]*
    (?: [^\s，。！？：；“”‘’「」、]{{0,8}} 第{_NUMBER}[回章节卷段折出篇则部集]
      | 卷之?(?:{_NUMBER}|[上中下])
      | 楔子 | 引首 | 序言? | 自序 | 跋 | 凡例 | 附录 )
    (?= [ \t\u3000] | $ )""",
    re.VERBOSE,
)
_MARKED = re.compile(r"[ \t\u3000]*(?:◎|\#+[ \t]|\*\*[ \t]|==)")
_BLANKS = re.compile(r"[ \t\u3000]*")
_STOP = re.compile("[，。！？：；、“”‘’「」…—]")
_TITLE_END = re.compile(r"[ \t\u3000]{2,}")
_TITLE_END_SINGLE = re.compile(r"\u3000")
MAX_TITLE = 40


@dataclass(frozen=True)
class Section:
    """A stretch of text under one heading. `removed` counts the characters of the heading and its spaces."""

    title: str
    text: str
    removed: int
    headed: bool


def sections(text: str) -> list[Section]:
    """The text cut at its headings. Without any heading: one section that is the whole text.

    Every character is in a section's `text`, or in a section's `removed`, or is a newline between two sections.
    """
    found: list[tuple[str, list[str], int, bool]] = [("", [], 0, False)]
    for line in text.split("\n"):
        if heading := match(line):
            title, body = heading
            found.append((title, [body], len(line) - len(body), True))
        else:
            found[-1][1].append(line)
    parts = [Section(title, "\n".join(lines), removed, headed) for title, lines, removed, headed in found]
    return parts if found[0][1] else parts[1:]


def match(line: str) -> tuple[str, str] | None:
    """(title, body) when `line` begins with a heading, else None. The body of an own-line heading is ""."""
    if _MARKED.match(line) and len(line) <= MAX_TITLE and not re.search("[。！？，]", line):
        title = _tidy(line.strip(" \t\u3000◎#*="))
        return (title, "") if title else None
    heading = _HEADING.match(line)
    if not heading:
        return None
    name = heading.group().strip(" \t\u3000")
    start = _end(_BLANKS.match(line, heading.end()))
    rest = line[start:]
    if len(rest) <= MAX_TITLE and not re.search("[。！？，]", rest):
        return _tidy(f"{name} {rest}"), ""
    # The title, if there is one, ends at a gap that comes before any punctuation.
    stop = _STOP.search(rest)
    limit = min(stop.start() if stop else len(rest), MAX_TITLE)
    gap = _TITLE_END.search(rest, 0, limit) or _TITLE_END_SINGLE.search(rest, 0, limit)
    if gap:
        return _tidy(f"{name} {rest[: gap.start()]}"), rest[gap.end() :]
    return name, rest


def _end(found: re.Match[str] | None) -> int:
    return found.end() if found else 0


def _tidy(title: str) -> str:
    return " ".join(title.split())
