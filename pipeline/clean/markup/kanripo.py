"""Kanripo (mandoku) texts, which are org files with print lines and pages, and org files of any other kind."""

from __future__ import annotations

import re
from collections import Counter

from pipeline.clean.markup.parsed import Parsed, count, drop, replace
from pipeline.clean.rule import Seen
from pipeline.clean.rules import headings
from pipeline.clean.utf16 import BLANKS

PRINT_LINES = 20  # full lines that it takes to tell the width of a print
_HASH_LINE = re.compile(r"^[ \t]*#[^\n]*(?:\n|\Z)", re.MULTILINE)
_COMMENT_LINE = re.compile(r"^[ \t]*#(?:\+|[ \t]|$)[^\n]*(?:\n|\Z)", re.MULTILINE)
_KEYWORD = re.compile(r"[ \t]*#\+([A-Za-z_]+):[ \t]*(.*)")
_TAG = r"<(?:pb|md|cb|lb):(?:[^<>\n]{0,120}>|[A-Za-z0-9_.-]*)"  # the second form was cut off before its >
_TAG_LINE = re.compile(rf"^[ \t]*{_TAG}(?:[ \t]*{_TAG})*[ \t]*¶?[ \t]*(?:\n|\Z)", re.MULTILINE)
_TAGS = re.compile(_TAG)
_READING_LINE = re.compile(r"^[^\s@]{0,8}@[A-Za-z\u00c0-\u024f][^\n\u3400-\u9fff]*(?:\n|\Z)", re.MULTILINE)
_PROPERTY_LINE = re.compile(r"^[ \t]*:[A-Za-z_-]+:(?:[ \t][^\n]*)?(?:\n|\Z)", re.MULTILINE)
_VERSE_NUMBER = re.compile(r"^[0-9]{1,3}\.[0-9]{1,3}(?=[「『\u3400-\u9fff])", re.MULTILINE)
_STARS = re.compile(r"^\*+(?=[ \t])", re.MULTILINE)
_TWO_COLUMNS = re.compile(r"\(([^()/]*)/([^()/]*)\)")
_GAIJI = re.compile(r"&[A-Za-z0-9-]{1,12};")
_ORG_LINK = re.compile(r"\[\[[^][\n]{1,300}\]\[([^][\n]{1,300})\]\]|\[\[([^][\n]{1,300})\]\]")


def kanripo(text: str, seen: Seen) -> Parsed:
    """Mandoku files of the Kanseki Repository: `#` lines, page marks, print lines that end in ¶.

    A print line is joined to the next one unless that begins with a space, is blank or is a heading. Where the width
    of the print is plain to see, a line that does not fill it ends its paragraph: the next one is given an indent.
    """
    count(seen, "¶", text.count("¶"))
    text, meta = _without_hash_lines(text, seen, _HASH_LINE)
    text = drop(_TAG_LINE, text, lambda found: f"<{found.lstrip()[1:3]}:>", seen)
    text = drop(_TAGS, text, lambda found: f"<{found[1:3]}:>", seen)
    text = drop(_READING_LINE, text, lambda _: "@ line", seen)
    text = drop(_PROPERTY_LINE, text, lambda _: ": line", seen)
    text = drop(_VERSE_NUMBER, text, lambda _: "verse number", seen)
    return Parsed(_joined(_STARS.sub("**", text).split("\n"), seen), meta.pop("title", ""), meta)


def org(text: str, seen: Seen) -> Parsed:
    """Plain org files: `#+KEY:` lines, `# ` comments, property drawers, links; `*` headings become `**` lines."""
    text, meta = _without_hash_lines(text, seen, _COMMENT_LINE)
    text = drop(_PROPERTY_LINE, text, lambda _: ": line", seen)
    text = replace(_ORG_LINK, text, lambda found: found[1] or found[2], "[[]]", seen)
    return Parsed(_STARS.sub("**", text), meta.pop("title", ""), meta)


def _without_hash_lines(text: str, seen: Seen, lines: re.Pattern[str]) -> tuple[str, dict[str, str]]:
    """The text without them, and what `#+KEY: value` and `#+PROPERTY: KEY value` say. The first of a name counts."""
    meta: dict[str, str] = {}

    def drop(found: re.Match[str]) -> str:
        seen["# line"] += 1
        if keyword := _KEYWORD.match(found[0]):
            name, value = keyword.groups()
            if name.upper() == "PROPERTY":
                name, _, value = value.partition(" ")
            if value.strip():
                meta.setdefault(name.lower(), value.strip())
        return ""

    return lines.sub(drop, text), meta


def _joined(lines: list[str], seen: Seen) -> str:
    cells = [_cells(line) for line in lines]
    width = _print_width(cells)
    out: list[str] = []
    joins = full = False
    for line, number in zip(lines, cells, strict=True):
        plain = line.replace("¶", "")
        heading = (plain, "") if plain.startswith("** ") else headings.match(plain)
        if joins and plain and plain[0] not in BLANKS and not heading:
            out.append("" if full else "\n\u3000")
            count(seen, "short ¶ line", not full)
        elif out:
            out.append("\n")
        out.append(plain)
        joins = line.rstrip(" \t").endswith("¶") and bool(plain.strip()) and not (heading and not heading[1])
        full = not 0 < number < width
    return "".join(out)


def _print_width(cells: list[int]) -> int:
    """Characters in a full line of the print, or 0: a third of the lines and more have it, next to none has more."""
    lines = Counter(cells)
    del lines[0]
    width, number = lines.most_common(1)[0] if lines else (0, 0)
    total, wider = lines.total(), sum(lines[each] for each in lines if each > width)
    return width if number >= PRINT_LINES and 3 * number >= total and 50 * wider <= total else 0


def _cells(line: str) -> int:
    """Characters of a print line from top to bottom, its indent among them; 0 when it is none, or cannot be told."""
    if "¶" not in line:
        return 0
    line = line.replace("¶", "").rstrip()
    if "&" in line:
        line = _GAIJI.sub("□", line)
    if "(" in line:
        line = _TWO_COLUMNS.sub(lambda note: "□" * max(len(note[1]), len(note[2])), line)
    return 0 if "(" in line or ")" in line else len(line)
