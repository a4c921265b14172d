"""daizhige texts: Markdown with YAML front matter."""

from __future__ import annotations

import re

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.markup.parsed import Parsed, replace
from pipeline.clean.rule import Counts

MAX_FRONT_MATTER = 200  # lines
_MAX_FRONT_LINE = 2000  # characters
_FRONT_LINE = lazy_pattern(r"([ \t]*)(?:- +)?(?:([A-Za-z_][\w-]*):(?:[ \t]+|$))?(.*)")
HARD_BREAK = lazy_pattern(r"(?<=[^\s])(?: {2,}|\\)(?=\n|\Z)")
ESCAPE = lazy_pattern(r"\\([!-/:-@\[-`{-~])")  # a mark of ASCII that Markdown is to print, as in \[穀\-禾\+牛\]
_LINE_BREAK = lazy_pattern(r"<br[ \t]*/?>\n?", re.IGNORECASE)


def daizhige(text: str, counts: Counts) -> Parsed:
    """Parse the Markdown of daizhige: YAML front matter, line breaks written as two spaces, and escapes.

    Every line is a paragraph or a row of a table. Indents, `#` headings, 【notes】 and 〔emendations〕 stay.
    """
    parsed = without_front_matter(text, counts)
    text = replace(HARD_BREAK, parsed.text, "", "line break", counts)
    text = replace(_LINE_BREAK, text, "\n", "line break", counts)
    text = replace(ESCAPE, text, r"\1", "\\ escape", counts)
    return Parsed(text, parsed.title, parsed.meta)


def without_front_matter(text: str, counts: Counts) -> Parsed:
    """Return `text` without its YAML front matter, whose values are its title and metadata."""
    body = text.lstrip("\ufeff\n")
    meta: dict[str, str] = {}
    if front := front_matter(body):
        meta, end = front
        text = body[end:].lstrip("\n")
        counts["--- front matter"] += 1
    elif body.startswith("---\n"):
        counts["unclosed ---"] += 1
    for name in ("title", "author"):  # either may have a form for each script
        forms = [value for key, value in meta.items() if key.startswith(name + ".")]
        meta.setdefault(name, meta.get(name + ".zh-hans", forms[0] if forms else ""))
    return Parsed(text, meta.pop("title"), {key: value for key, value in meta.items() if value})


def front_matter(text: str) -> tuple[dict[str, str], int] | None:
    """Return the values of the front matter of `text` and its end offset, or None if it is missing or incomplete.

    Nested names are joined by dots, lists by "; ".
    """
    if not text.startswith("---\n"):
        return None
    meta: dict[str, str] = {}
    parents: list[tuple[int, str]] = []  # indent and name of the keys that contain the line, and of its own
    offset = 4
    for _ in range(MAX_FRONT_MATTER):
        line, newline, _ = text[offset : offset + _MAX_FRONT_LINE].partition("\n")
        if line.rstrip() == "---":
            return meta, offset + len(line) + len(newline)
        if not newline:
            return None
        offset += len(line) + 1
        match = _FRONT_LINE.match(line)
        if not match or not line.strip() or line.lstrip().startswith("#"):
            continue
        indent, name, value = len(match[1]), match[2], match[3].strip().strip("'\"")
        is_item = line.lstrip().startswith("- ")
        if name and not is_item:
            parents = [parent for parent in parents if parent[0] < indent] + [(indent, name)]
        elif not is_item and (not indent or not parents):  # prose, not YAML
            return None
        elif name:  # an item `- name: value` of a list of objects, unlike `- ctp:123`, which has no name
            value = f"{name}: {value}"
        key = ".".join(name for _, name in parents)
        if value not in ("", "|", ">"):
            meta[key] = f"{meta[key]}; {value}" if key in meta else value
    return None
