"""Markdown of books: front matter, fences, rules, emphasis, links, quotes, lists, tables, hard breaks and escapes.

`#` headings stay.
"""

from __future__ import annotations

import re

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.markup.daizhige import ESCAPE, HARD_BREAK, front_matter, without_front_matter
from pipeline.clean.markup.html import html, is_html
from pipeline.clean.markup.parsed import Parsed, replace
from pipeline.clean.rule import Counts

_MIN_SIGNS = 3  # fences, rules, emphasis and links of a text that has headings
_HEADING = lazy_pattern(r"^#{1,6}[ \t]+\S", re.MULTILINE)
_FENCE = lazy_pattern(r"^[ \t]*`{3,}[ \t]*[A-Za-z0-9+#-]*[ \t]*(?:\n|\Z)|`{3,}", re.MULTILINE)
_RULE = lazy_pattern(r"^[ \t]*(?:(?:-[ \t]*){3,}|(?:_[ \t]*){3,}|(?:\*[ \t]*){3,}|={3,}[ \t]*)(?:\n|\Z)", re.MULTILINE)
_STRONG = lazy_pattern(r"(\*{2,3}|__)(?=\S)([^*_\n]{1,300})(?<=\S)\1")
_IMAGE = lazy_pattern(r"!\[[^][\n]{0,300}\]\([^()\n]{0,1000}\)")
_LINK = lazy_pattern(r"(?<!!)\[([^][\n]{1,300})\]\((?=[!-~]*[:./#])[!-~]{0,1000}?(?: \"[^\"\n]*\")?\)")
_EMPHASIS = lazy_pattern(r"(?<![*A-Za-z0-9\\])\*(?=[^\s*])([^*\n]{1,300})(?<=[^\s*\\])\*(?![*A-Za-z0-9])")
_ITEM = lazy_pattern(r"^[ \t]*[-*+][ \t]+(?:\[[ xX]\][ \t]+)?(?=\S)", re.MULTILINE)
_CONTENTS = lazy_pattern(r"^[ \t]*\[(?:TOC|toc)\][ \t]*(?:\n|\Z)", re.MULTILINE)
_FOOTNOTE = lazy_pattern(r"\[\^([0-9]{1,3})\](:[ \t]*)?")
_TABLE_RULE = lazy_pattern(r"^[ \t]*\|?(?:[ \t]*:?-+:?[ \t]*\|)+(?:[ \t]*:?-+:?[ \t]*)?(?:\n|\Z)", re.MULTILINE)
_ROW = lazy_pattern(r"^[ \t]*\|(.*)\|[ \t]*$", re.MULTILINE)
_TAG = lazy_pattern(r"<(?:!--|br\b)")
_QUOTE = lazy_pattern(r"^[ \t]{0,3}>(?:[ \t]?>)*[ \t]?", re.MULTILINE)


def is_markdown(head: str) -> bool:
    """Return True if a text that begins with `head` is Markdown: it has code fences, a table, or headings and more."""
    if "```" in head or _TABLE_RULE.search(head):
        return True
    signs = (_RULE, _STRONG, _LINK, _IMAGE, _QUOTE, _TABLE_RULE, _FOOTNOTE)
    return bool(_HEADING.search(head)) and sum(len(sign.findall(head)) for sign in signs) >= _MIN_SIGNS


def markdown(text: str, counts: Counts) -> Parsed:
    """Remove the marks of Markdown and keep what they enclose; tags in it are those of HTML."""
    has_front = front_matter(text.lstrip("\ufeff\n")) is not None  # else `---` is a rule
    front = without_front_matter(text, counts) if has_front else Parsed(text)
    text = replace(_FENCE, front.text, "", "```", counts)
    text = replace(_RULE, text, "", "----", counts)
    text = replace(_STRONG, text, r"\2", "**", counts)
    text = replace(_IMAGE, text, "", "![]()", counts)
    text = replace(_LINK, text, r"\1", "[]()", counts)
    text = replace(_QUOTE, text, "", ">", counts)
    text = replace(_EMPHASIS, text, r"\1", "*", counts)
    text = replace(_CONTENTS, text, "", "[TOC]", counts)
    text = replace(_ITEM, text, "", "-", counts)
    text = replace(_FOOTNOTE, text, lambda mark: f"[{mark[1]}]", "[^1]", counts)
    if _TABLE_RULE.search(text):
        text = replace(_TABLE_RULE, text, "", "| --- |", counts)
        text = replace(_ROW, text, lambda row: re.sub(r"[ \t]*\|[ \t]*", "\n", row[1].strip()), "| row |", counts)
    text = replace(HARD_BREAK, text, "", "line break", counts)
    text = replace(ESCAPE, text, r"\1", "\\ escape", counts)
    inner = html(text, counts) if is_html(text) or _TAG.search(text) else Parsed(text)
    return Parsed(inner.text, front.title or inner.title, front.meta)
