"""Kanripo (mandoku) texts, which are org files with print lines and page marks, and other org files."""

from __future__ import annotations

import re

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.markup.parsed import Parsed, add_count, replace
from pipeline.clean.markup.print_lines import join_print_lines
from pipeline.clean.rule import Counts

_HAN = r"\u3400-\u9fff\U00020000-\U0003ffff□&"  # in a character class: Han, and signs for missing Han
_HASH_LINE = lazy_pattern(r"^[ \t]*#[^\n]*(?:\n|\Z)", re.MULTILINE)
_COMMENT_LINE = lazy_pattern(r"^[ \t]*#(?:\+|[ \t]|$)[^\n]*(?:\n|\Z)", re.MULTILINE)
_KEYWORD = lazy_pattern(r"[ \t]*#\+([A-Za-z_]+):[ \t]*(.*)")
_TAG = r"<(?:pb|md|cb|lb):(?:[^<>\n]{0,120}>|[A-Za-z0-9_.-]*)"  # the second form was cut off before its >
_TAG_LINE = lazy_pattern(rf"^[ \t]*{_TAG}(?:[ \t]*{_TAG})*[ \t]*¶?[ \t]*(?:\n|\Z)", re.MULTILINE)
_TAGS = lazy_pattern(_TAG)
_READING_LINE = lazy_pattern(rf"^[^\s@]{{0,8}}@[A-Za-z\u00c0-\u024f][^\n{_HAN}]*(?:\n|\Z)", re.MULTILINE)
_PROPERTY_LINE = lazy_pattern(r"^[ \t]*:[A-Za-z_-]+:(?:[ \t][^\n]*)?(?:\n|\Z)", re.MULTILINE)
_NUMBER = r"[A-Z]?[0-9]{1,3}(?:\.[0-9]{1,3})"  # `14.1`, `A1.1.3`
_VERSE_NUMBER = lazy_pattern(
    r"^([ \t\u3000¶]*(?:@[A-Za-z]{1,8})*)"
    rf"(?:{_NUMBER}{{1,4}}[ \u3000¶]*(?=[《〈「『{_HAN}]|$)|[0-9]{{1,3}}(?=[《〈]))",
    re.MULTILINE,
)
_SECTION = lazy_pattern(
    rf"^[ \t\u3000]*{_NUMBER}{{0,4}}[ \u3000]*"
    r"([《〈][^《》〈〉\n¶]{1,30}[》〉](?:[ \u3000]*第?[一二三四五六七八九十百〇上中下]{1,6})?)[ \u3000]*¶?[ \t]*$",
    re.MULTILINE,
)
_SERIAL_LINE = lazy_pattern(rf"^[ \t\u3000]*No\. ?[0-9][^\n{_HAN}]*(?:\n|\Z)", re.MULTILINE)
_LINK_END = lazy_pattern(r"=>(?=[ \t]*¶?[ \t]*$)", re.MULTILINE)
_INNER_FORM = lazy_pattern(rf"(?<=¶)(?=@[A-Za-z]{{1,8}}[{_HAN}])")  # a newline is missing before `@fw`
_BARS = lazy_pattern(r"(?<![ \t\u3000])[ \t\u3000]*[|｜](?:[ \t\u3000¶]*[|｜])*[ \t\u3000]*")
_STARS = lazy_pattern(r"^\*+(?=[ \t])", re.MULTILINE)
_ORG_LINK = lazy_pattern(r"\[\[[^][\n]{1,300}\]\[([^][\n]{1,300})\]\]|\[\[([^][\n]{1,300})\]\]")


def kanripo(text: str, counts: Counts) -> Parsed:
    """Parse a mandoku file of the Kanseki Repository: `#` lines, page marks, print lines that end in ¶.

    Print lines are joined (print_lines.py). The cells of a table become lines. A numbered line that holds only the name
    of a section (`1《關雎》`) becomes a heading.
    """
    add_count(counts, "¶", text.count("¶"))
    text, meta = _without_hash_lines(text, counts, _HASH_LINE)
    for pattern in (_TAG_LINE, _TAGS):
        counts.update(f"<{match[0].lstrip()[1:3]}:>" for match in pattern.finditer(text))
        text = pattern.sub("", text)
    text = replace(_READING_LINE, text, "", "@ line", counts)
    text = replace(_PROPERTY_LINE, text, "", ": line", counts)
    text = replace(_SERIAL_LINE, text, "", "No. line", counts)
    text = replace(_LINK_END, text, "", "=>", counts)
    text = _INNER_FORM.sub("\n", text)
    add_count(counts, "|", text.count("|") + text.count("｜"))
    text = _BARS.sub("\n\u3000", _STARS.sub("**", text))
    text = replace(_SECTION, text, r"** \1", "section number", counts)
    text = replace(_VERSE_NUMBER, text, r"\1", "verse number", counts)
    return Parsed(join_print_lines(text, counts), meta.pop("title", ""), meta)


def org(text: str, counts: Counts) -> Parsed:
    """Parse an org file: `#+KEY:` lines, `# ` comments, property drawers, links. `*` headings become `**` lines."""
    text, meta = _without_hash_lines(text, counts, _COMMENT_LINE)
    text = replace(_PROPERTY_LINE, text, "", ": line", counts)
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
