"""Containers: the markup in which a source wraps its texts, taken off, with what it says of title and author.

Each function takes the whole text of one document (lines end with "\\n") and counts in `seen` what it took out, by
kind. Text itself is never taken for markup: what is open and not closed nearby stays as it is, and is counted.
"""

from __future__ import annotations

import re

from pipeline.clean.markup.daizhige import daizhige, front_matter
from pipeline.clean.markup.kanripo import kanripo, org
from pipeline.clean.markup.parsed import Parsed
from pipeline.clean.markup.wikitext import wikitext_lite

__all__ = ("Parsed", "daizhige", "detect", "kanripo", "org", "wikitext_lite")

_MANDOKU = re.compile(r"# -\*-[^\n]*mandoku|(?:#[^\n]*\n){0,20}#\+PROPERTY:[ \t]*(?:ID|BASEEDITION)[ \t]")
_PAGES = re.compile(r"<pb:[A-Za-z0-9]+_[^<>\n]{1,60}>")
_ORG = re.compile(r"#\+[A-Za-z_]+:|# -\*-[^\n]*\borg\b[^\n]*-\*-")
_WIKI_PREAMBLE = re.compile(r"(?:\s+|__[A-Z]+__|<!--(?:(?!-->).){0,500}-->|</?[a-z][^<>\n]{0,200}>)+", re.DOTALL)
_WIKI_HEADER = re.compile(r"\{\{[^{}|\n]{0,30}header[^{}|\n]{0,20}\s*(?:\||\}\})", re.IGNORECASE)
_WIKI_SIGNS = (r"(?m)^==[^=\n]{1,80}==[ \t]*$", r"\[\[[^][\n]{1,80}\]\]", r"\{\{[^{}\n]{1,200}\}\}")


def detect(head: str) -> str:
    """The container of a text that begins with `head` (some thousand characters), by its own header, else "plain"."""
    head = head.lstrip("\ufeff \t\n")
    if _MANDOKU.match(head) or (_PAGES.search(head) and "¶" in head):
        return "kanripo"
    if _ORG.match(head):
        return "org"
    if (front := front_matter(head)) and any(key.partition(".")[0] == "title" for key in front[0]):
        return "daizhige"
    preamble = _WIKI_PREAMBLE.match(head)
    if _WIKI_HEADER.match(head, preamble.end() if preamble else 0):
        return "wikitext-lite"
    return "wikitext-lite" if all(re.search(sign, head) for sign in _WIKI_SIGNS) else "plain"
