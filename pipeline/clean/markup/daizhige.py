"""daizhige texts: Markdown with YAML front matter."""

from __future__ import annotations

import re

from pipeline.clean.markup.parsed import Parsed, replace
from pipeline.clean.rule import Seen

FRONT_MATTER = 200  # lines; a longer one is no front matter
_FRONT_LINE = re.compile(r"([ \t]*)(?:- +)?(?:([A-Za-z_][\w-]*):(?:[ \t]+|$))?(.*)")
_HARD_BREAK = re.compile(r"(?<=[^\s])(?: {2,}|\\)(?=\n|\Z)")
_LINE_BREAK = re.compile(r"<br[ \t]*/?>\n?", re.IGNORECASE)


def daizhige(text: str, seen: Seen) -> Parsed:
    """The Markdown of daizhige: YAML front matter, and line breaks written as two spaces.

    Every line is a paragraph or a row of a table; indents, `#` headings, 【notes】 and 〔emendations〕 stay.
    """
    body = text.lstrip("\ufeff\n")
    meta: dict[str, str] = {}
    if front := front_matter(body):
        meta, end = front
        text = body[end:].lstrip("\n")
        seen["--- front matter"] += 1
    elif body.startswith("---\n"):
        seen["unclosed ---"] += 1
    for name in ("title", "author"):  # either may have a form for each script
        forms = [value for key, value in meta.items() if key.startswith(name + ".")]
        meta.setdefault(name, meta.get(name + ".zh-hans", forms[0] if forms else ""))
    text = replace(_HARD_BREAK, text, "", "line break", seen)
    text = replace(_LINE_BREAK, text, "\n", "line break", seen)
    return Parsed(text, meta.pop("title"), {key: value for key, value in meta.items() if value})


def front_matter(text: str) -> tuple[dict[str, str], int] | None:
    """What a front matter at the head of `text` says, and where it ends; None where there is none, or no whole one.

    Nested names are joined by dots, lists by "; ".
    """
    if not text.startswith("---\n"):
        return None
    meta: dict[str, str] = {}
    path: list[tuple[int, str]] = []  # indent and name of what the line is in
    at = 4
    for _ in range(FRONT_MATTER):
        line, newline, _ = text[at : at + 2000].partition("\n")
        if line.rstrip() == "---":
            return meta, at + len(line) + len(newline)
        if not newline:
            return None
        at += len(line) + 1
        found = _FRONT_LINE.match(line)
        if not found or not line.strip() or line.lstrip().startswith("#"):
            continue
        indent, name, value = len(found[1]), found[2], found[3].strip().strip("'\"")
        is_item = line.lstrip().startswith("- ")
        if name and not is_item:
            path = [each for each in path if each[0] < indent] + [(indent, name)]
        elif not is_item and (not indent or not path):  # prose, not YAML
            return None
        elif name:  # `- ctp:123` is no name, `- name: value` is one of a list of objects
            value = f"{name}: {value}"
        key = ".".join(name for _, name in path)
        if value not in ("", "|", ">"):
            meta[key] = f"{meta[key]}; {value}" if key in meta else value
    return None
