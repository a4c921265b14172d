"""Kanripo (mandoku) texts, which are org files with print lines and page marks, and other org files."""

from __future__ import annotations

import re
from collections import Counter

from pipeline.clean.markup.parsed import Parsed, add_count, drop, replace
from pipeline.clean.rule import Counts
from pipeline.clean.rules import headings
from pipeline.clean.utf16 import BLANKS

MIN_FULL_LINES = 20  # that are needed to determine the width of a print
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


def kanripo(text: str, counts: Counts) -> Parsed:
    """Parse a mandoku file of the Kanseki Repository: `#` lines, page marks, print lines that end in ¶.

    A print line is joined to the next one unless that is blank, indented or a heading. If the width of the print can be
    determined, a print line that does not fill it ends its paragraph, and the next line is indented.
    """
    add_count(counts, "¶", text.count("¶"))
    text, meta = _without_hash_lines(text, counts, _HASH_LINE)
    text = drop(_TAG_LINE, text, lambda tag: f"<{tag.lstrip()[1:3]}:>", counts)
    text = drop(_TAGS, text, lambda tag: f"<{tag[1:3]}:>", counts)
    text = drop(_READING_LINE, text, lambda _: "@ line", counts)
    text = drop(_PROPERTY_LINE, text, lambda _: ": line", counts)
    text = drop(_VERSE_NUMBER, text, lambda _: "verse number", counts)
    return Parsed(_join_print_lines(_STARS.sub("**", text).split("\n"), counts), meta.pop("title", ""), meta)


def org(text: str, counts: Counts) -> Parsed:
    """Parse an org file: `#+KEY:` lines, `# ` comments, property drawers, links. `*` headings become `**` lines."""
    text, meta = _without_hash_lines(text, counts, _COMMENT_LINE)
    text = drop(_PROPERTY_LINE, text, lambda _: ": line", counts)
    text = replace(_ORG_LINK, text, lambda link: link[1] or link[2], "[[]]", counts)
    return Parsed(_STARS.sub("**", text), meta.pop("title", ""), meta)


def _without_hash_lines(text: str, counts: Counts, lines: re.Pattern[str]) -> tuple[str, dict[str, str]]:
    """Return the text without matches of `lines`, and their `#+KEY: value` and `#+PROPERTY: KEY value` pairs.

    The first value of a key counts.
    """
    meta: dict[str, str] = {}

    def read_line(line: re.Match[str]) -> str:
        counts["# line"] += 1
        if keyword := _KEYWORD.match(line[0]):
            name, value = keyword.groups()
            if name.upper() == "PROPERTY":
                name, _, value = value.partition(" ")
            if value.strip():
                meta.setdefault(name.lower(), value.strip())
        return ""

    return lines.sub(read_line, text), meta


def _join_print_lines(lines: list[str], counts: Counts) -> str:
    lengths = [_print_length(line) for line in lines]
    width = _print_width(lengths)
    pieces: list[str] = []
    joins_next = is_full = False
    for line, length in zip(lines, lengths, strict=True):
        plain = line.replace("¶", "")
        heading = (plain, "") if plain.startswith("** ") else headings.parse_heading(plain)
        if joins_next and plain and plain[0] not in BLANKS and not heading:
            pieces.append("" if is_full else "\n\u3000")
            add_count(counts, "short ¶ line", not is_full)
        elif pieces:
            pieces.append("\n")
        pieces.append(plain)
        joins_next = line.rstrip(" \t").endswith("¶") and bool(plain.strip()) and not (heading and not heading[1])
        is_full = not 0 < length < width
    return "".join(pieces)


def _print_width(lengths: list[int]) -> int:
    """Return the characters in a full line of the print, or 0 if unknown.

    At least a third of the lines must have this length, and at most a fiftieth may be longer.
    """
    lines_by_length = Counter(lengths)
    del lines_by_length[0]
    width, full_lines = lines_by_length.most_common(1)[0] if lines_by_length else (0, 0)
    total = lines_by_length.total()
    longer_lines = sum(count for length, count in lines_by_length.items() if length > width)
    is_clear = full_lines >= MIN_FULL_LINES and 3 * full_lines >= total and 50 * longer_lines <= total
    return width if is_clear else 0


def _print_length(line: str) -> int:
    """Return the characters of a print line from top to bottom with its indent, or 0 if unknown."""
    if "¶" not in line:
        return 0
    line = line.replace("¶", "").rstrip()
    if "&" in line:
        line = _GAIJI.sub("□", line)
    if "(" in line:
        line = _TWO_COLUMNS.sub(lambda note: "□" * max(len(note[1]), len(note[2])), line)
    return 0 if "(" in line or ")" in line else len(line)
