"""Length of units: one that is too long is cut where that harms least, and never dropped.

SentencePiece skips lines that are longer than its limit, and says so only in a log.
"""

from __future__ import annotations

import re

from pipeline.clean.alphabet import CLOSERS, CONTINUES, DOTS, ENDS, OPENERS
from pipeline.errors import BadConfig

WIDEST = 4  # bytes that one character may need
LEVELS = ("", "sentence", "semicolon", "comma", "space", "hard")  # from what is no cut at all to the roughest one

_NOT_FIRST = ENDS + CONTINUES + CLOSERS + DOTS + "—"  # no piece begins with one of these if it can be helped
_NOT_LAST = OPENERS
_TAIL = f"[{_NOT_FIRST}]*+"
_GENTLE = {
    "sentence": re.compile(f"[{ENDS}]{_TAIL}"),
    "semicolon": re.compile(f"[；;]{_TAIL}"),
    "comma": re.compile(f"[，,]{_TAIL}"),
    "space": re.compile(f"[ \u3000]++(?![{_NOT_FIRST}])"),
}
_BACK = 16  # characters by which a hard cut may go back for the sake of the marks


def limit(unit: str, max_bytes: int) -> tuple[list[str], str]:
    """`unit` in pieces of at most `max_bytes` of UTF-8, and the roughest of the LEVELS that it took.

    It is cut behind sentences, what is still too long behind ；, then ，, then spaces, then anywhere; each piece takes
    all that fits. Joined, the pieces are the unit. Raises BadConfig where `max_bytes` cannot hold one character.
    """
    if max_bytes < WIDEST:
        raise BadConfig(f"max_bytes is {max_bytes}", hint=f"{WIDEST} or more: one character has to fit")
    pieces, used = [unit], ""
    for level in LEVELS[1:]:
        if all(_fits(piece, max_bytes) for piece in pieces):
            break
        cut: list[str] = []
        for piece in pieces:
            if _fits(piece, max_bytes):
                cut.append(piece)
            elif level == "hard":
                cut += _hard(piece, max_bytes)
            else:
                cut += _packed(piece, _GENTLE[level], max_bytes)
        if len(cut) > len(pieces):
            pieces, used = cut, level
    return pieces, used


def _fits(piece: str, max_bytes: int) -> bool:
    return len(piece) * WIDEST <= max_bytes or _bytes(piece) <= max_bytes


def _bytes(piece: str) -> int:
    return len(piece.encode("utf-8", "surrogatepass"))


def _packed(piece: str, gentle: re.Pattern[str], max_bytes: int) -> list[str]:
    """`piece` cut behind what `gentle` matches, and neighbours joined again while they fit."""
    packed: list[str] = []
    start = end = size = 0  # piece[start:end] is held, and is so many bytes
    for stop in (*(found.end() for found in gentle.finditer(piece)), len(piece)):
        more = _bytes(piece[end:stop])
        if end > start and more and size + more > max_bytes:
            packed.append(piece[start:end])
            start, size = end, 0
        end, size = stop, size + more
    return [*packed, piece[start:]]


def _hard(piece: str, max_bytes: int) -> list[str]:
    """`piece` cut between any two characters, but not at marks where a few characters less avoid it."""
    pieces: list[str] = []
    start = 0
    while start < len(piece):
        window = piece[start : start + max_bytes].encode("utf-8", "surrogatepass")  # no more characters than bytes fit
        cut = min(max_bytes, len(window))
        while cut < len(window) and window[cut] & 0xC0 == 0x80:  # inside a character
            cut -= 1
        end = full = start + len(window[:cut].decode("utf-8", "surrogatepass"))
        if full < len(piece):
            while end > max(start + 1, full - _BACK) and (piece[end] in _NOT_FIRST or piece[end - 1] in _NOT_LAST):
                end -= 1
            if piece[end] in _NOT_FIRST or piece[end - 1] in _NOT_LAST:
                end = full
        pieces.append(piece[start:end])
        start = end
    return pieces
