"""Sentences of Chinese text: units that end in 。！？ together with the quotes and brackets that close on them.

The exact meaning is reference/cleaning.md 4.3. The outer-quote flag is a boolean on purpose: real books lose a ” now
and then, and a depth counter would glue everything after the fault into one unit.
"""

from __future__ import annotations

import re

_CLOSERS = "”’」』）》〉】〕〗"
_CLUSTER = f"(?:…*+[。！？][。！？…]*+[{_CLOSERS}]*+|…++[{_CLOSERS}]++)+"  # “好。”。 is one end, not two
_EVENT = re.compile(f"{_CLUSTER}|[“「”」]")
_CONTINUES = "，、；："


def split(text: str, *, inside_quotes: bool = False) -> list[str]:
    """Sentences in order; joined, they are `text` without its newlines.

    A sentence does not end inside “…” or 「…」 unless `inside_quotes`. A newline always ends one.
    """
    return [unit for line in text.split("\n") for unit in _split_line(line, inside_quotes)]


def _split_line(line: str, inside_quotes: bool) -> list[str]:
    units: list[str] = []
    start, quoted = 0, False
    for event in _EVENT.finditer(line):
        mark, end = event[0], event.end()
        if mark in "“「":
            quoted = True
        elif mark in "”」":
            quoted = False
        else:
            if "”" in mark or "」" in mark:
                quoted = False
            if (inside_quotes or not quoted) and line[end : end + 1] not in (*_CONTINUES,):
                units.append(line[start:end])
                start = end
    if start < len(line):
        units.append(line[start:])
    return units


def limit(unit: str, max_bytes: int) -> list[str]:
    """`unit` in pieces of at most `max_bytes` of UTF-8: cut after ；, else after ，, else after a space, else anywhere.

    SentencePiece skips lines that are longer than its limit, so a long unit must be cut and never dropped.
    """
    pieces = [unit]
    for pattern in ("(?<=；)", "(?<=，)", "(?<= )", ""):
        if all(len(piece.encode()) <= max_bytes for piece in pieces):
            break
        pieces = [part for piece in pieces for part in _repack(piece, pattern, max_bytes)]
    return pieces


def _repack(piece: str, pattern: str, max_bytes: int) -> list[str]:
    """`piece` cut at `pattern`, with neighbouring parts joined again while they fit."""
    if len(piece.encode()) <= max_bytes:
        return [piece]
    packed: list[str] = []
    held: list[str] = []
    size = 0
    for part in re.split(pattern, piece) if pattern else piece:
        length = len(part.encode())
        if held and part and size + length > max_bytes:
            packed.append("".join(held))
            held, size = [], 0
        held.append(part)
        size += length
    return [*packed, "".join(held)]
