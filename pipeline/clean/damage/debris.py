"""Debris of HTTP and HTML in a text: headers, scripts and tags. A line of debris goes; in other lines the debris alone.

中国诗歌库{Connection=[close],Content-Type=[text/html]}   goes with its line end
玄德大惊，<!--script>x=1;<script-->滚鞍下马。              玄德大惊，滚鞍下马。
"""

from __future__ import annotations

import re

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rule import Counts
from pipeline.clean.utf16 import HAN, LINE_ENDS, SENTENCE_ENDS

MARKS = "=/<"
_DEBRIS = lazy_pattern(
    r"Connection=\[|Content-Type=|HTTP/1\.[01] \d{3}|charset=|<html|<head|<(?:!--)?script|<!doctype", re.I
)
_WORDS = {  # by mark: `str` rules them out much faster than _DEBRIS
    "=": ("onnection=[", "ontent-type=", "ontent-Type=", "harset=", "ONNECTION=[", "ONTENT-TYPE=", "HARSET="),
    "/": ("http/1.", "HTTP/1."),
    "<": ("<html", "<head", "<script", "<!--script", "<!doctype", "<HTML", "<HEAD", "<SCRIPT", "<!DOCTYPE"),
}
_END_OF_SCRIPT = lazy_pattern("</?script[^<>\n]{0,20}>", re.IGNORECASE)
_MAX_SCRIPT = 2000  # characters, which may hold Han
_CODE, _CODE_BEFORE = lazy_pattern("[ -~]*"), lazy_pattern("[ -~]*$")
_COMMENT = "<!--"
_LINE = lazy_pattern("[^\n\0]*\n?")
_HAN = lazy_pattern(f"[{HAN}]")
_LITTLE_HAN = 20  # characters: a line with fewer, and without a stop, is debris
_STOP = lazy_pattern(f"[{SENTENCE_ENDS}，…”」]")


def may_hold_debris(text: str) -> bool:
    """Return False if a text surely holds no debris."""
    return any(word in text for mark, words in _WORDS.items() if mark in text for word in words)


def drop_debris(text: str, counts: Counts) -> str:
    """Return documents, separated by NUL, without debris."""
    pieces, copied = [], 0
    for match in _DEBRIS.finditer(text):
        if match.start() >= copied:
            start = max(copied, *(text.rfind(mark, copied, match.start()) + 1 for mark in LINE_ENDS))
            line = next(_LINE.finditer(text, start))[0]
            pieces += [text[copied:start], _clean_line(line, counts)]
            copied = start + len(line)
    return "".join([*pieces, text[copied:]])


def _clean_line(line: str, counts: Counts) -> str:
    pieces, copied = [], 0
    for match in _DEBRIS.finditer(line):
        if match.start() >= copied:
            start, end = _bounds(line, match)
            pieces.append(line[copied : max(start, copied)])
            copied = end
    remainder = "".join([*pieces, line[copied:]])
    if len(_HAN.findall(remainder)) < _LITTLE_HAN and not _STOP.search(remainder):
        counts["lines of debris"] += 1
        remainder = ""
    else:
        counts["debris in lines of text"] += 1
    counts["characters of debris"] += len(line) - len(remainder)
    return remainder


def _bounds(line: str, match: re.Match[str]) -> tuple[int, int]:
    """Return where the debris around a match begins and ends: a script, tags, or the code around a header."""
    code = _CODE.match(line, match.end())
    end = code.end() if code else match.end()
    if not match[0].startswith("<"):
        before = _CODE_BEFORE.search(line, max(0, match.start() - _MAX_SCRIPT), match.start())
        return before.start() if before else match.start(), end
    start = match.start() - len(_COMMENT) * line.endswith(_COMMENT, 0, match.start())
    if "script" in match[0].lower() and (close := _END_OF_SCRIPT.search(line, match.end(), match.end() + _MAX_SCRIPT)):
        return start, close.end()
    return start, line.rfind(">", match.end(), end) + 1 or end
