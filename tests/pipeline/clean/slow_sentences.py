"""Slow reference of pipeline/clean/sentences.py: one loop over the marks of each line.

The exact definition of a sentence is docs/design/cleaning.md 4.3.
"""

from __future__ import annotations

import re

_CLOSERS = "”’」』）》〉】〕〗"
_CLUSTER = f"(?:…*+[。！？][。！？…]*+[{_CLOSERS}]*+|…++[{_CLOSERS}]++)+"  # “好。”。 is one cluster, not two
_MARK = re.compile(f"{_CLUSTER}|[“「”」]")
_CONTINUES = "，、；："


def split_sentences(text: str, *, inside_quotes: bool = False) -> list[str]:
    """Return the sentences. Joined, they are the text without its newlines.

    A sentence does not end inside “…” or 「…」 unless `inside_quotes`. A newline always ends one.
    """
    return [sentence for line in text.split("\n") for sentence in _split_line(line, inside_quotes)]


def _split_line(line: str, inside_quotes: bool) -> list[str]:
    result: list[str] = []
    start, quoted = 0, False
    for match in _MARK.finditer(line):
        mark, end = match[0], match.end()
        if mark in "“「":
            quoted = True
        elif mark in "”」":
            quoted = False
        else:
            if "”" in mark or "」" in mark:
                quoted = False
            if (inside_quotes or not quoted) and line[end : end + 1] not in (*_CONTINUES,):
                result.append(line[start:end])
                start = end
    if start < len(line):
        result.append(line[start:])
    return result
