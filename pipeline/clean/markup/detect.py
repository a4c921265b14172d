"""Detection of the markup of a text by its header or its tags, and the parsers themselves.

A parser takes the complete text of a document, with lines that end in "\\n", and a counter in which it counts what it
removes by kind. It never mistakes text for markup: markup that is opened but not closed nearby is counted and stays.
"""

from __future__ import annotations

import re

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.markup.cbeta import cbeta, is_cbeta
from pipeline.clean.markup.chat_log import chat_log, is_chat_log
from pipeline.clean.markup.daizhige import daizhige, front_matter
from pipeline.clean.markup.html import html, is_html
from pipeline.clean.markup.kanripo import kanripo, org
from pipeline.clean.markup.markdown import is_markdown, markdown
from pipeline.clean.markup.poems import is_poems
from pipeline.clean.markup.wikitext import wikitext_lite

__all__ = ("cbeta", "chat_log", "daizhige", "detect", "html", "kanripo", "markdown", "org", "wikitext_lite")

_MANDOKU = lazy_pattern(r"# -\*-[^\n]*mandoku|(?:#[^\n]*\n){0,20}#\+PROPERTY:[ \t]*(?:ID|BASEEDITION)[ \t]")
_PAGE_MARK = lazy_pattern(r"<pb:[A-Za-z0-9]+_[^<>\n]{1,60}>")
_ORG = lazy_pattern(r"#\+[A-Za-z_]+:|# -\*-[^\n]*\borg\b[^\n]*-\*-")
_WIKI_PREAMBLE = lazy_pattern(r"(?:\s+|__[A-Z]+__|<!--(?:(?!-->).){0,500}-->|</?[a-z][^<>\n]{0,200}>)+", re.DOTALL)
_WIKI_HEADER = lazy_pattern(r"\{\{[^{}|\n]{0,30}header[^{}|\n]{0,20}\s*(?:\||\}\})", re.IGNORECASE)
_WIKI_SIGNS = (r"(?m)^==[^=\n]{1,80}==[ \t]*$", r"\[\[[^][\n]{1,80}\]\]", r"\{\{[^{}\n]{1,200}\}\}")


def detect(head: str) -> str:
    """Return the name of the profile for a text that begins with `head` (some thousand characters), else "plain"."""
    head = head.lstrip("\ufeff \t\n")
    if _MANDOKU.match(head) or (_PAGE_MARK.search(head) and "¶" in head):
        return "kanripo"
    if _ORG.match(head):
        return "org"
    if (front := front_matter(head)) and any(key.partition(".")[0] == "title" for key in front[0]):
        return "markdown" if "title" in front[0] and is_markdown(head[front[1] :]) else "daizhige"
    preamble = _WIKI_PREAMBLE.match(head)
    if _WIKI_HEADER.match(head, preamble.end() if preamble else 0):
        return "wikitext-lite"
    if all(re.search(sign, head) for sign in _WIKI_SIGNS):
        return "wikitext-lite"
    tests = {
        "chat-log": is_chat_log,
        "cbeta": is_cbeta,
        "markdown": is_markdown,
        "html": is_html,
        "poems": is_poems,
    }
    return next((name for name, is_detected in tests.items() if is_detected(head)), "plain")
