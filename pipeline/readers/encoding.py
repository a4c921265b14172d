"""Detect the encoding of a text file, decode it, and refuse files that are not text.

A byte order mark is conclusive. Without one, bytes that are valid UTF-8 are UTF-8. Other bytes are decoded as GB18030,
Big5 and UTF-16 and scored by the fraction of common Chinese characters and of ，。: 18,000 extracts of novels and
poems, of 50 characters and more, score 0.2 to 1 in the right encoding and at most 0.08 in a wrong one. The first
encoding that decodes without an error is not enough, because GB18030 accepts the bytes of Big5. Without a clear winner,
ASCII with accented letters, up to one character in five, is read as cp1252; anything else is an error.

Invalid bytes become U+FFFD and are counted, so that a bad byte does not reject a book. A file is refused if more than 1
in 1,000 of its bytes are invalid; in a short file, up to 3 bytes may be, but at most 1 in 32.

In the order of this file: `read_text` reads a file, `detect` finds the encoding of its head, then the errors.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadConfig, BadData
from pipeline.readers.binary import (
    BINARY_WINDOW,
    CONTROLS,
    NulFilter,
    before_binary,
    binary_error,
    is_binary,
    refuse_other_formats,
    without_few_nuls,
)
from pipeline.readers.compression import read_blocks
from pipeline.readers.detection.scores import (
    BIG5,
    CERTAIN,
    MIN_HITS,
    NOT_ASCII,
    UTF_16,
    ascii_prefix,
    byte_order_mark,
    cyrillic,
    is_utf8,
    is_western,
    japanese_or_korean,
    scores_of,
    utf8_prefix,
    winner,
)
from pipeline.runtime.progress import Advance

AUTO = "auto"
HEAD_BYTES = 1 << 16  # from which the encoding is detected
_FIRST_LOOK = 1 << 13  # bytes of the head that are scored first; they decide most files
# GB2312 and GBK are subsets of GB18030; cp950 is Big5 as used in practice, with 裏 and 恒
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "cp950"}
_STATEFUL = ("iso2022", "hz", "utf_7", "utf-7")  # prefixes of encodings in which an error may change all later text
_WIDE = ("utf-16", "utf_16", "utf-32", "utf_32")  # prefixes of encodings whose text has zeros, like binary data
_MAX_INVALID = 4  # invalid characters of such text in BINARY_WINDOW; random bytes have 16
_BYTES_PER_ERROR = 1_000  # minimum number of bytes for each invalid one,
_FEW_ERRORS, _BYTES_PER_FEW = 3, 32  # or so many errors in a short text, with at least so many bytes for each
_MANY_ERRORS = 100  # errors that are accepted before the size of the text is known


@dataclass
class EncodingStats:
    """Encoding of a text file, filled while it is read; complete after the last piece of text."""

    encoding: str = ""
    byte_order_mark: bytes = b""  # the byte order mark, which is not part of the text
    truncated_bytes: bytes = b""  # bytes of a truncated last character, not part of the text either
    truncated_offset: int = 0  # their offset in the decompressed file
    nuls: int = 0  # NUL characters, which are not part of the text
    errors: int = 0  # invalid bytes or characters, each of which is U+FFFD in the text
    error_offset: int = 0  # offset of the first in the decompressed file
    error_byte: int = 0  # its first byte


def read_text(
    path: Path, stats: EncodingStats, *, encoding: str = AUTO, advance: Advance = lambda count: None
) -> Iterator[str]:
    """Yield the text of a file in pieces, some of them empty, and fill `stats`.

    A byte order mark overrides `encoding`. NUL characters are removed and counted if they are single ones and fewer
    than 1 in 1,000. Raises BadData if the file is empty, not text, has too many invalid bytes, or if no encoding is
    detected; BadConfig if `encoding` does not exist.
    """
    yield from decode_blocks(read_blocks(path, advance), str(path), stats, encoding=encoding)


def decode_blocks(
    blocks: Iterator[bytes], label: str, stats: EncodingStats, *, encoding: str = AUTO, strict: bool = False
) -> Iterator[str]:
    """Yield the text of a file that is read already, like `read_text`; `label` is its name in errors.

    With `strict` the first invalid byte raises BadData.
    """
    requested, nuls = codec_name(encoding), NulFilter()
    is_blank, size = True, 0
    try:
        for piece in _pieces(_Blocks(blocks), requested, stats, nuls, strict=strict):
            is_blank = is_blank and (not piece or piece.isspace())
            size += len(piece)
            yield piece
        nuls.check_end()
        if is_blank:
            problem = "the file contains only white space" if size else "the file is empty"
            raise BadData(problem, hint="remove it from the input, or check where it comes from")
    except BadData as error:
        if error.message.startswith(f"{label}: "):  # an error of the decompression
            raise
        raise BadData(f"{label}: {error.message}", hint=error.hint) from None


class _Blocks(Iterator[bytes]):
    """Iterator over the blocks of a file that can peek at the next one."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._next = blocks, b""

    def __next__(self) -> bytes:
        block, self._next = self._next or next(self._blocks), b""
        return block

    def peek(self) -> bytes:
        """Return the next block without taking it, b"" at the end."""
        self._next = self._next or next(self._blocks, b"")
        return self._next


def _pieces(blocks: _Blocks, requested: str, stats: EncodingStats, nuls: NulFilter, *, strict: bool) -> Iterator[str]:
    current, offset = "", 0
    decoder = codecs.getincrementaldecoder("ascii")()
    for offset, block in _detected_blocks(blocks, requested, stats):
        if current != stats.encoding:  # at the beginning, and at the first block that is not ASCII
            current = stats.encoding
            decoder = codecs.getincrementaldecoder(current)()
        start, data = offset - len(decoder.getstate()[0]), block
        while True:
            pending = decoder.getstate()[0]
            try:
                piece = decoder.decode(data, final=not block)
            except UnicodeDecodeError as error:
                if not block:
                    stats.truncated_bytes, stats.truncated_offset = pending, start
                    break
                source, bad = error.object, slice(error.start, error.end)
                before, invalid, data = source[: bad.start], source[bad], source[bad.stop :]
                decoder.reset()
            else:
                yield nuls.remove(piece, start, current)
                break
            text = before.decode(current)
            yield nuls.remove(text, start, current)
            _refuse_binary(text, start, invalid + data + (b"" if len(data) > BINARY_WINDOW else blocks.peek()), current)
            if not stats.errors:
                stats.error_offset, stats.error_byte = start + len(before), invalid[0]
            stats.errors += 1
            yield "\ufffd"
            start += len(before) + len(invalid)
            is_too_many = stats.errors > _MANY_ERRORS + start // (_BYTES_PER_ERROR // 10)
            if strict or is_too_many or current.startswith(_STATEFUL):
                raise _invalid_bytes(stats, requested)
        stats.nuls = nuls.count
    if stats.errors > max(min(_FEW_ERRORS, offset // _BYTES_PER_FEW), offset // _BYTES_PER_ERROR):
        raise _invalid_bytes(stats, requested)


def _refuse_binary(text: str, start: int, following: bytes, encoding: str) -> None:
    """Raise BadData if binary data follows a text that begins at byte `start` of the file."""
    window = following[:BINARY_WINDOW]
    if encoding.startswith(_WIDE):
        decoded = window.decode(encoding, "replace")
        is_data = "\0" in decoded or decoded.count("\ufffd") > _MAX_INVALID
    else:
        is_data = is_binary(window)
    if is_data:
        raise binary_error(start + len(before_binary(text).encode(encoding, "replace")))


def is_text(head: bytes, *, is_complete: bool) -> bool:
    """Return True if the beginning of a file may be text in any encoding, False if it is binary data."""
    if not is_binary(without_few_nuls(head)):
        return True
    try:
        detect(head, is_complete=is_complete)
    except BadData:
        return False
    return True


def detect(head: bytes, *, is_complete: bool) -> str:
    """Return the encoding of a text from its `head`, or "ascii" if all bytes are ASCII.

    `is_complete`: the head is the complete text. Raises BadData, without the name of the file, if it is not text or if
    no encoding is detected.
    """
    refuse_other_formats(head)
    return byte_order_mark(head)[1] or _detect_unmarked(head, is_complete, 0)


# Blocks of a file, with their encoding


def _detected_blocks(file_blocks: Iterator[bytes], requested: str, stats: EncodingStats) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, block), with an empty block last; `stats.encoding` is set before each."""
    head, is_complete = _read_head(file_blocks, HEAD_BYTES)
    stats.byte_order_mark, _ = byte_order_mark(head)
    if requested == AUTO:
        stats.encoding = detect(head, is_complete=is_complete)
    else:
        stats.encoding = _check_requested(requested, head, is_complete)
    offset = len(stats.byte_order_mark)
    block = head[offset:]
    while block:
        yield offset, block
        offset += len(block)
        if requested == AUTO and stats.encoding == "ascii":
            block, is_complete = _read_head(file_blocks, 1)
            stats.encoding = _detect_unmarked(block, is_complete, offset)
        else:
            block = next(file_blocks, b"")
    yield offset, b""


def _read_head(file_blocks: Iterator[bytes], size: int) -> tuple[bytes, bool]:
    """Return at least `size` bytes, and HEAD_BYTES from the first that is not ASCII; True if the file ends there."""
    head, is_complete = _read_at_least(file_blocks, size)
    if not is_complete and not head.isascii():
        extra, is_complete = _read_at_least(file_blocks, ascii_prefix(head) + HEAD_BYTES - len(head))
        head += extra
    return head, is_complete


def _read_at_least(file_blocks: Iterator[bytes], size: int) -> tuple[bytes, bool]:
    """Return the next blocks, joined, of at least `size` bytes; True if the file ends there."""
    parts, missing = list[bytes](), size
    while missing > 0:
        if not (block := next(file_blocks, b"")):
            return b"".join(parts), True
        parts.append(block)
        missing -= len(block)
    return b"".join(parts), False


# Detection


def codec_name(encoding: str) -> str:
    """Return Python's name of an encoding, or of its superset if it has one. Raises BadConfig if it is unknown."""
    if encoding == AUTO:
        return AUTO
    try:
        "".encode(encoding)  # refuses codecs that are not text encodings, such as base64
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise BadConfig(
            f"unknown encoding {encoding!r}", hint="pass auto, utf-8, gb18030, big5 or another of Python's"
        ) from None
    return _SUPERSETS.get(name, name)


def _check_requested(requested: str, head: bytes, is_complete: bool) -> str:
    """Return the encoding to use for a requested one. Raises BadData if the text is clearly in another."""
    refuse_other_formats(head)
    if marked := byte_order_mark(head)[1]:
        return marked
    if requested.startswith("utf-8"):  # its decoder rejects other encodings
        return requested
    try:
        detected = _detect_unmarked(head, is_complete, 0)
    except BadData:
        detected = ""
    if requested == "utf-16":
        if detected in UTF_16:
            return detected
        raise BadData("UTF-16 without a byte order mark", hint="pass --encoding utf-16-le or utf-16-be")
    if detected in ("", "ascii", requested) or {detected, requested} <= {*BIG5}:
        return requested
    if detected == "utf-8" and len(NOT_ASCII.findall(head[:HEAD_BYTES])) < 4 * MIN_HITS:  # too few bytes to be sure
        return requested
    raise BadData(
        f"--encoding {requested} was given, but the content is {detected}", hint="leave out --encoding for this file"
    )


def _detect_unmarked(head: bytes, is_complete: bool, offset: int) -> str:
    """Detect the encoding of a head without a mark, at `offset` of its file, after nothing but ASCII."""
    beginning = b"" if offset else head[:HEAD_BYTES]  # UTF-16 would have been detected from the first byte on
    if is_binary(without_few_nuls(beginning)):
        if name := winner(scores_of(beginning[:_FIRST_LOOK], b"")) or winner(scores_of(beginning, b"")):
            return name
        control = next(position for position, byte in enumerate(beginning) if byte in CONTROLS)
        invalid = utf8_prefix(beginning[:control])
        raise binary_error(invalid if invalid >= BINARY_WINDOW else control)
    if head.isascii():
        if b"\x1b$" in beginning:
            raise BadData(
                "the text switches its encoding with escape sequences (ISO-2022)",
                hint="pass --encoding iso2022_jp or a similar name",
            )
        return "ascii"
    start = ascii_prefix(head)
    sample = head[start : start + HEAD_BYTES]
    if is_utf8(sample, is_complete and start + HEAD_BYTES >= len(head)):
        return "utf-8"
    scores = scores_of(beginning[:_FIRST_LOOK], sample[:_FIRST_LOOK])
    if max(scores.values()) < CERTAIN:
        scores = scores_of(beginning, sample)
    name = winner(scores)
    if max(scores.values()) < CERTAIN and (foreign := japanese_or_korean(sample)):
        raise BadData(f"the text is Japanese or Korean in {foreign}", hint=f"pass --encoding {foreign}")
    if name:
        return name
    if is_binary(sample[:BINARY_WINDOW]):
        raise binary_error(offset + start)
    if is_western(sample):
        return "cp1252"
    raise _undetected_error(head, offset, start + utf8_prefix(sample), scores)


# Errors


def _invalid_bytes(stats: EncodingStats, requested: str) -> BadData:
    """Return the error for a text with too many bytes that are invalid in its encoding."""
    count = f", and {stats.errors - 1:,} more" if stats.errors > 1 else ""
    return BadData(
        f"not {stats.encoding} text: byte {stats.error_byte:#04x} at offset {stats.error_offset:,}{count}",
        hint=f"the text before it is {stats.encoding}: repair the file there, or pass another --encoding"
        if requested == AUTO
        else "leave out --encoding, pass the right one (gb18030, big5, utf-16), or check that the file is text",
    )


def _undetected_error(head: bytes, offset: int, position: int, scores: Mapping[str, float]) -> BadData:
    """Return the error for an unknown encoding; `position` in `head` is the first byte that is not UTF-8."""
    ratios = ", ".join(f"{max(score, 0):.0%} as {name}" for name, score in scores.items())
    return BadData(
        f"the encoding was not detected: not UTF-8 (byte {head[position]:#04x} at offset {offset + position:,}), "
        f"and too few common Chinese characters ({ratios})",
        hint=f"it looks like Russian: pass --encoding {russian}"
        if (russian := cyrillic(head[position:][:HEAD_BYTES]))
        else "pass it with --encoding, for example gb18030, big5, shift_jis, euc_jp, euc_kr, cp1252, cp1251, koi8-r",
    )
