"""The lines of sentences.txt: one sentence per line, none longer than a limit, with their lengths.

In order: the lines of Chinese documents, those of other documents, and the cutting of lines that are too long.

Chinese pages are encoded to UTF-8 once. The byte offset of a line follows from its unit offset: every unit takes three
bytes, except for some special ones that take fewer.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.clean import sentences
from pipeline.clean.utf16 import (
    CLAUSE_MARKS,
    CLOSERS,
    ELLIPSIS,
    LINE_ENDS,
    OPENERS,
    SENTENCE_ENDS,
    SEPARATOR,
    Utf16Text,
    class_table,
    decode_utf16,
    insert,
    is_one_of,
    merge_sorted,
    positions_of,
    units_at,
)
from pipeline.errors import BadConfig

MAX_CHARACTER_BYTES = 4  # of UTF-8
LEVELS = ("", "sentence", "semicolon", "comma", "space", "hard")  # of a cut, from none to the roughest
_TERMINATORS = SENTENCE_ENDS + ELLIPSIS + CLOSERS
_NOT_FIRST = SENTENCE_ENDS + CLAUSE_MARKS + CLOSERS + ELLIPSIS + "—"  # a piece should not begin with one of these
_NOT_LAST = OPENERS
_TAIL = f"[{_NOT_FIRST}]*+"
_CUT_AFTER = {
    "sentence": re.compile(f"[{SENTENCE_ENDS}]{_TAIL}"),
    "semicolon": re.compile(f"[；;]{_TAIL}"),
    "comma": re.compile(f"[，,]{_TAIL}"),
    "space": re.compile(f"[ \u3000]++(?![{_NOT_FIRST}])"),
}
_MAX_BACKTRACK = 16  # characters by which a hard cut may move back to keep marks with their text
_MIN_SLICE = 256  # bytes per line from which on joining slices is faster than copying by a mask


@dataclass(frozen=True)
class EncodedLines:
    """Lines as UTF-8. Each ends in a newline, which is not included in `characters` and `sizes` (bytes).

    `pieces` are the lines of each document, or of all documents in one piece.
    """

    pieces: list[bytes]
    characters: np.ndarray
    sizes: np.ndarray
    unterminated: int  # lines without a mark at their end
    resplit: Counter[str]  # cuts in lines that were too long, by level

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


def sentence_lines(
    page: Utf16Text, encoded: bytes, max_bytes: int, *, inside_quotes: bool = False, by_document: bool = False
) -> EncodedLines:
    """Return the sentences of Chinese documents as lines of at most `max_bytes`.

    The documents must not contain blank lines. `encoded` is the page as UTF-8. With `by_document` the lines of each
    document are a piece of their own.

    This computes all lines at once. tests/pipeline/clean/test_lines.py checks it against a loop over the sentences of
    tests/pipeline/clean/slow_sentences.py.
    """
    ends = sentences.end_positions(page, inside_quotes=inside_quotes)
    ends = ends[~is_one_of(units_at(page, ends), LINE_ENDS)]
    starts = merge_sorted(ends, positions_of(page, LINE_ENDS) + 1)  # of all lines but the first
    after_newline = is_one_of(page.units[starts - 1], LINE_ENDS)
    start_bytes = _byte_offsets(page, starts, np.cumsum(after_newline))
    start, stop = np.append(0, starts), np.append(starts - after_newline, len(page))
    start_bytes, stop_bytes = np.append(0, start_bytes), np.append(start_bytes - after_newline, len(encoded))

    cuts, cuts_bytes, resplit = [], [], Counter[str]()
    for line in np.flatnonzero(stop_bytes - start_bytes > max_bytes).tolist():
        pieces, level = cut_line(decode_utf16(page[start[line] : stop[line]]), max_bytes)
        resplit[level] += len(pieces) - 1
        offset, offset_bytes = start[line], start_bytes[line]
        for piece in pieces[:-1]:
            offset += len(piece.encode("utf-16-le")) // 2
            offset_bytes += len(piece.encode())
            cuts.append(offset)
            cuts_bytes.append(offset_bytes)
    if cuts:
        start, stop = (np.sort(np.append(offsets, cuts)) for offsets in (start, stop))
        start_bytes, stop_bytes = (np.sort(np.append(offsets, cuts_bytes)) for offsets in (start_bytes, stop_bytes))

    low_surrogates = page.special_positions[(page.special_units & 0xFC00) == 0xDC00]
    characters = stop - start
    if len(low_surrogates):
        characters -= np.bincount(np.searchsorted(stop, low_surrogates), minlength=len(stop))
    unterminated = int(np.count_nonzero(~is_one_of(page.units[stop - 1], _TERMINATORS)))
    cut_bytes = start_bytes[1:][start[1:] == stop[:-1]]
    if by_document:
        data = _insert_newlines(encoded + SEPARATOR.encode(), cut_bytes)
        documents = [document + b"\n" for document in data[:-1].split(SEPARATOR.encode())]
    else:
        documents = [_insert_newlines(encoded.replace(SEPARATOR.encode(), b"\n") + b"\n", cut_bytes)]
    return EncodedLines(documents, characters, stop_bytes - start_bytes, unterminated, resplit)


def _byte_offsets(page: Utf16Text, offsets: np.ndarray, line_ends: np.ndarray) -> np.ndarray:
    """Return the UTF-8 offsets of sorted unit offsets. `line_ends` is the number of line ends before each of them."""
    offsets_bytes: np.ndarray = 3 * offsets - 2 * line_ends
    saved = _saved_bytes().take(page.special_units)
    if len(short := np.flatnonzero(saved)):
        lines = np.searchsorted(offsets, page.special_positions[short], side="right")
        offsets_bytes -= np.cumsum(np.bincount(lines, saved[short], len(offsets) + 1)[:-1]).astype(int)
    return offsets_bytes


@cache
def _saved_bytes() -> np.ndarray:
    """Return the bytes by which the UTF-8 of each unit is shorter than three, 0 for line ends.

    A surrogate pair takes four bytes, so its second unit saves two.
    """
    return class_table((1, ((0, 0x7FF),)), (2, ((0, 0x7F), (0xDC00, 0xDFFF))), (0, LINE_ENDS))


def _insert_newlines(data: bytes, offsets: np.ndarray) -> bytes:
    """Return `data` with newlines at the sorted byte `offsets`."""
    if len(offsets) * _MIN_SLICE < len(data):
        cuts = offsets.tolist()
        return b"\n".join([data[start:end] for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True)])
    return insert(np.frombuffer(data, np.uint8), offsets, ord("\n")).tobytes()


def text_lines(page: Utf16Text, max_bytes: int, *, by_document: bool = False) -> EncodedLines:
    """Return the lines of documents in any language, without blank ones, cut to at most `max_bytes`.

    With `by_document` the lines of each document are a piece of their own.
    """
    text, lines, resplit = decode_utf16(page), list[str](), Counter[str]()
    pieces, first = list[bytes](), 0  # `first` is the index of the first line of a document
    for document in text.split(SEPARATOR) if by_document else [text.replace(SEPARATOR, "\n")]:
        for line in document.split("\n"):
            parts = [line]
            if len(line) * MAX_CHARACTER_BYTES > max_bytes:
                parts, level = cut_line(line, max_bytes)
                resplit[level] += len(parts) - 1
            lines += [part for part in parts if part and not part.isspace()]
        pieces.append("".join([line + "\n" for line in lines[first:]]).encode())
        first = len(lines)
    newlines = np.flatnonzero(np.frombuffer(b"".join(pieces), np.uint8) == ord("\n"))
    unterminated = sum(line[-1] not in _TERMINATORS for line in lines)
    characters = np.array([*map(len, lines)], int)
    return EncodedLines(pieces, characters, np.diff(newlines, prepend=-1) - 1, unterminated, resplit)


def cut_line(line: str, max_bytes: int) -> tuple[list[str], str]:
    """Cut a line into pieces of at most `max_bytes` of UTF-8. Return them and the roughest level of cut used.

    The line is cut after sentences. Pieces that are still too long are cut after ；, then after ，, then after spaces,
    then anywhere. Each piece takes as much as fits, and the pieces add up to the line.

    Raises BadConfig if `max_bytes` is less than one character may need.
    """
    if max_bytes < MAX_CHARACTER_BYTES:
        raise BadConfig(
            f"--max-bytes must be at least {MAX_CHARACTER_BYTES}, got {max_bytes}",
            hint=f"a character takes up to {MAX_CHARACTER_BYTES} bytes",
        )
    pieces, roughest = [line], ""
    for level in LEVELS[1:]:
        if all(_fits(piece, max_bytes) for piece in pieces):
            break
        cut: list[str] = []
        for piece in pieces:
            if _fits(piece, max_bytes):
                cut.append(piece)
            elif level == "hard":
                cut += _cut_anywhere(piece, max_bytes)
            else:
                cut += _cut_after(_CUT_AFTER[level], piece, max_bytes)
        if len(cut) > len(pieces):
            pieces, roughest = cut, level
    return pieces, roughest


def _fits(piece: str, max_bytes: int) -> bool:
    return len(piece) * MAX_CHARACTER_BYTES <= max_bytes or _size(piece) <= max_bytes


def _size(piece: str) -> int:
    return len(piece.encode("utf-8", "surrogatepass"))


def _cut_after(pattern: re.Pattern[str], piece: str, max_bytes: int) -> list[str]:
    """Cut after matches of `pattern`, joining neighbours while they fit into `max_bytes`."""
    pieces: list[str] = []
    start = end = size = 0  # size of piece[start:end] in bytes
    for stop in (*(match.end() for match in pattern.finditer(piece)), len(piece)):
        added = _size(piece[end:stop])
        if end > start and added and size + added > max_bytes:
            pieces.append(piece[start:end])
            start, size = end, 0
        end, size = stop, size + added
    return [*pieces, piece[start:]]


def _cut_anywhere(piece: str, max_bytes: int) -> list[str]:
    """Cut between any two characters, up to _MAX_BACKTRACK earlier if that keeps marks with their text."""
    pieces: list[str] = []
    start = 0
    while start < len(piece):
        window = piece[start : start + max_bytes].encode("utf-8", "surrogatepass")  # a character has at least a byte
        cut = min(max_bytes, len(window))
        while cut < len(window) and window[cut] & 0xC0 == 0x80:  # inside a character
            cut -= 1
        end = latest = start + len(window[:cut].decode("utf-8", "surrogatepass"))
        if latest < len(piece):
            while end > max(start + 1, latest - _MAX_BACKTRACK) and _tears(piece, end):
                end -= 1
            if _tears(piece, end):
                end = latest
        pieces.append(piece[start:end])
        start = end
    return pieces


def _tears(piece: str, cut: int) -> bool:
    """Return True if a cut separates a mark from the text that it belongs to."""
    return piece[cut] in _NOT_FIRST or piece[cut - 1] in _NOT_LAST
