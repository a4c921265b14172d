"""Detect the encoding of a text file, decode it, and refuse files that are not text.

A byte order mark is conclusive. Without one, bytes that are valid UTF-8 are UTF-8. Other bytes are decoded as GB18030,
Big5 and UTF-16 and scored by the fraction of common Chinese characters and of ，。: 18,000 extracts of novels and
poems, of 50 characters and more, score 0.2 to 1 in the right encoding and at most 0.08 in a wrong one. The first
encoding that decodes without an error is not enough, because GB18030 accepts the bytes of Big5. Without a clear winner,
ASCII with a few accented letters is read as cp1252; anything else is an error: no encoding is guessed.

In the order of this file: `read_text` reads a file, `detect` finds the encoding of its head, then the errors.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
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
from pipeline.readers.common_characters import COMMON_CHARACTERS
from pipeline.readers.compression import read_blocks
from pipeline.runtime.progress import Advance

AUTO = "auto"
HEAD_BYTES = 1 << 16  # from which the encoding is detected
_FIRST_LOOK = 1 << 13  # bytes of the head that are scored first; they decide most files
_CLEAR = 0.3  # minimum score of the right encoding, and its minimum lead over the others
_CERTAIN = 0.45  # a score that no Japanese or Korean text reaches
_MIN_HITS = 8  # common characters; with fewer the score is 0

_BIG5 = ("cp950", "big5hkscs")
_UTF_16 = ("utf-16-le", "utf-16-be")
# GB2312 and GBK are subsets of GB18030; cp950 is Big5 as used in practice, with 裏 and 恒
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "cp950"}
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),  # before the mark of UTF-16, which is its prefix
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
    (b"\x84\x31\x95\x33", "gb18030"),
)

_WESTERN = re.compile("[À-ÖØ-Ýß-öø-ýÿŒœ’‘“”„–—…£«»°§\xa0]")
_NEIGHBOURS, _MARK_IN_WORD = re.compile("[^\0-\x7f]{2}"), re.compile("[A-Za-z][“”„«»…£°§][A-Za-z]")
_NOT_ASCII, _ASCII = re.compile(rb"[\x80-\xff]"), re.compile(r"[\0-\x7f]+")
_RUNS = re.compile(r"[^\0-\x7f]{2,}")  # Latin text decoded as Chinese has isolated ones, between letters
_UNLIKELY = re.compile(  # controls, Greek and Cyrillic, Hangul, box drawing, kana and bopomofo, private use
    r"[\0-\x08\x0e-\x1f\x7f-\x9f\u0370-\u052f\u1100-\u11ff\u2500-\u259f\u3040-\u312f\uac00-\ud7af\ue000-\uf8ff\ufffd]"
)
_KANA, _HANGUL = re.compile("[\u3041-\u30ff]+"), re.compile("[\uac00-\ud7a3]+")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇]+")


@dataclass
class EncodingStats:
    """Encoding of a text file, filled while it is read; complete after the last piece of text."""

    encoding: str = ""
    byte_order_mark: bytes = b""  # the byte order mark, which is not part of the text
    truncated_bytes: bytes = b""  # bytes of a truncated last character, not part of the text either
    truncated_offset: int = 0  # their offset in the decompressed file
    nuls: int = 0  # NUL characters, which are not part of the text


def read_text(
    path: Path, stats: EncodingStats, *, encoding: str = AUTO, advance: Advance = lambda count: None
) -> Iterator[str]:
    """Yield the text of a file in pieces, some of them empty, and fill `stats`.

    A byte order mark overrides `encoding`. NUL characters are removed and counted if they are single ones and fewer
    than 1 in 1,000. Raises BadData if the file is empty, not text, has bytes that are invalid in its encoding, or if no
    encoding is detected; BadConfig if `encoding` does not exist.
    """
    yield from decode_blocks(read_blocks(path, advance), str(path), stats, encoding=encoding)


def decode_blocks(blocks: Iterator[bytes], label: str, stats: EncodingStats, *, encoding: str = AUTO) -> Iterator[str]:
    """Yield the text of a file that is read already, like `read_text`; `label` is its name in errors."""
    requested, nuls = codec_name(encoding), NulFilter()
    is_blank, size = True, 0
    try:
        for piece in _pieces(blocks, requested, stats, nuls):
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


def _pieces(blocks: Iterator[bytes], requested: str, stats: EncodingStats, nuls: NulFilter) -> Iterator[str]:
    current = ""
    decoder = codecs.getincrementaldecoder("ascii")()
    for offset, block in _detected_blocks(blocks, requested, stats):
        if current != stats.encoding:  # at the beginning, and at the first block that is not ASCII
            current = stats.encoding
            decoder = codecs.getincrementaldecoder(current)()
        pending = decoder.getstate()[0]
        start = offset - len(pending)
        try:
            piece = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            if block:
                before = error.object[: error.start].decode(current)
                nuls.remove(before, start, current)
                following = error.object[error.start :] + next(blocks, b"")
                if is_binary(following[:BINARY_WINDOW]) and (text := before_binary(before)) != before:
                    raise binary_error(start + len(text.encode(current, "replace"))) from None
                raise _invalid_bytes(current, start + error.start, following, requested) from None
            stats.truncated_bytes, stats.truncated_offset, piece = pending, start, ""
        yield nuls.remove(piece, start, current)
        stats.nuls = nuls.count


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
    return _byte_order_mark(head)[1] or _detect_unmarked(head, is_complete, 0)


def han_ratio(text: str) -> float:
    """Return the fraction of Han characters among those that are not white space, 0 if there are none."""
    size = sum(map(len, text.split()))
    return sum(map(len, _HAN.findall(text))) / size if size else 0.0


# Blocks of a file, with their encoding


def _detected_blocks(file_blocks: Iterator[bytes], requested: str, stats: EncodingStats) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, block), with an empty block last; `stats.encoding` is set before each."""
    head, is_complete = _read_head(file_blocks, HEAD_BYTES)
    stats.byte_order_mark, _ = _byte_order_mark(head)
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
        extra, is_complete = _read_at_least(file_blocks, _ascii_prefix(head) + HEAD_BYTES - len(head))
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


def _ascii_prefix(data: bytes) -> int:
    """Return the number of ASCII bytes at the beginning."""
    match = _NOT_ASCII.search(data)
    return match.start() if match else len(data)


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
    if marked := _byte_order_mark(head)[1]:
        return marked
    if requested.startswith("utf-8"):  # its decoder rejects other encodings by itself
        return requested
    try:
        detected = _detect_unmarked(head, is_complete, 0)
    except BadData:
        detected = ""
    if requested == "utf-16":
        if detected in _UTF_16:
            return detected
        raise BadData("UTF-16 without a byte order mark", hint="pass --encoding utf-16-le or utf-16-be")
    if detected in ("", "ascii", requested) or {detected, requested} <= {*_BIG5}:
        return requested
    if detected == "utf-8" and len(_NOT_ASCII.findall(head[:HEAD_BYTES])) < 4 * _MIN_HITS:  # too few bytes to be sure
        return requested
    raise BadData(
        f"--encoding {requested} was given, but the content is {detected}", hint="leave out --encoding for this file"
    )


def _detect_unmarked(head: bytes, is_complete: bool, offset: int) -> str:
    """Detect the encoding of a head without a mark, at `offset` of its file, after nothing but ASCII."""
    beginning = b"" if offset else head[:HEAD_BYTES]  # UTF-16 would have been detected from the first byte on
    if is_binary(without_few_nuls(beginning)):
        if name := _winner(_scores(beginning[:_FIRST_LOOK], b"")) or _winner(_scores(beginning, b"")):
            return name
        control = next(position for position, byte in enumerate(beginning) if byte in CONTROLS)
        invalid = _utf8_prefix(beginning[:control])
        raise binary_error(invalid if invalid >= BINARY_WINDOW else control)
    if head.isascii():
        if b"\x1b$" in beginning:
            raise BadData(
                "the text switches its encoding with escape sequences (ISO-2022)",
                hint="pass --encoding iso2022_jp or a similar name",
            )
        return "ascii"
    start = _ascii_prefix(head)
    sample = head[start : start + HEAD_BYTES]
    if _is_utf8(sample, is_complete and start + HEAD_BYTES >= len(head)):
        return "utf-8"
    scores = _scores(beginning[:_FIRST_LOOK], sample[:_FIRST_LOOK])
    if max(scores.values()) < _CERTAIN:
        scores = _scores(beginning, sample)
    name = _winner(scores)
    if max(scores.values()) < _CERTAIN and (foreign := _japanese_or_korean(sample)):
        raise BadData(f"the text is Japanese or Korean in {foreign}", hint=f"pass --encoding {foreign}")
    if name:
        return name
    if is_binary(sample[:BINARY_WINDOW]):
        raise binary_error(offset + start)
    if _is_western(sample):
        return "cp1252"
    raise _undetected_error(head, offset, start + _utf8_prefix(sample), scores)


def _is_utf8(sample: bytes, is_complete: bool) -> bool:
    """Return True if bytes that begin with one that is not ASCII are UTF-8.

    A truncated last character is allowed, and a few invalid ones among many valid.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoded = decoder.decode(sample)
    invalid = decoded.count("\ufffd")
    valid = _count_beyond_ascii(decoded) - invalid
    is_doubtful = invalid or (is_complete and decoder.getstate()[0])
    return valid >= max(16, 4 * invalid) if is_doubtful else bool(valid) or not is_complete


def _is_western(sample: bytes) -> bool:
    """Return True for ASCII with a few accented letters and typographic marks of Windows' Western encoding."""
    text = sample.decode("cp1252", "replace")
    count, western = _count_beyond_ascii(text), "".join(_WESTERN.findall(text))
    is_sparse = 8 * count <= len(text) and 3 * len(_NEIGHBOURS.findall(text)) <= count
    capitals = sum(map(str.isupper, western))
    return is_sparse and len(western) >= 0.98 * count >= 2 * capitals and not _MARK_IN_WORD.search(text)


def _utf8_prefix(data: bytes) -> int:
    """Return the number of bytes before the first that is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def _japanese_or_korean(sample: bytes) -> str:
    """Return the encoding in which the bytes decode to kana or Hangul without an error, or "".

    Decoded as GB18030 or Big5, such text may have as many common characters as some poems. Chinese text passes this
    test in none of the three encodings, except for a few words.
    """
    for name, script, least_ratio in (("euc_jp", _KANA, 0.2), ("shift_jis", _KANA, 0.2), ("euc_kr", _HANGUL, 0.85)):
        decoded = _decode(sample, name)
        count, han = (sum(map(len, pattern.findall(decoded))) for pattern in (script, _HAN))
        if "\ufffd" not in decoded and count >= max(_MIN_HITS, least_ratio * (count + han)):
            return name
    return ""


def _scores(beginning: bytes, sample: bytes) -> dict[str, float]:
    """Score each encoding, at most 1: how much the file looks like Chinese text, or any text for UTF-16.

    `beginning` is the beginning of the file, for UTF-16, and `sample` begins with its first byte that is not ASCII.
    """
    big5 = min(_BIG5, key=lambda name: _decode(sample, name).count("\ufffd"))
    candidates = [(name, sample) for name in ("gb18030", big5) if sample]
    candidates += [(name, beginning) for name in _UTF_16 if beginning]
    return {name: _score(_decode(data, name), name) for name, data in candidates}


def _decode(data: bytes, name: str) -> str:
    """Decode any bytes with replacement characters, without a truncated last character."""
    return codecs.getincrementaldecoder(name)("replace").decode(data)


def _score(decoded: str, name: str) -> float:
    size = _count_beyond_ascii(decoded)
    runs = "".join(_RUNS.findall(decoded))
    hits = len(runs) - len(_common_pattern().sub("", runs))
    if name in _UTF_16:  # where ASCII is evidence too: every second byte is a zero
        hits += sum(map(len, re.findall(r"[\t\n\r -~]+", decoded)))
        size = len(decoded)
    return (hits - len(_UNLIKELY.findall(decoded))) / size if hits >= _MIN_HITS else 0.0


def _count_beyond_ascii(text: str) -> int:
    return len(text) - sum(map(len, _ASCII.findall(text)))


@cache
def _common_pattern() -> re.Pattern[str]:
    return re.compile(f"[{COMMON_CHARACTERS}]+")


def _winner(scores: Mapping[str, float]) -> str:
    """Return the encoding with the best score, or "" if it is not clearly the best."""
    best = max(scores, key=lambda name: scores[name])
    second = max(score for name, score in scores.items() if name != best)
    return best if scores[best] >= _CLEAR and scores[best] - second >= _CLEAR else ""


def _byte_order_mark(head: bytes) -> tuple[bytes, str]:
    """Return the byte order mark at the beginning and its encoding, or two empty values."""
    return next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), (b"", ""))


# Errors


def _invalid_bytes(name: str, offset: int, following: bytes, requested: str) -> BadData:
    """Return the error for bytes that are invalid in the encoding `name`; `following` begins with them."""
    if is_binary(following[:BINARY_WINDOW]):
        return binary_error(offset)
    return BadData(
        f"not {name} text: byte {following[0]:#04x} at offset {offset:,}",
        hint=f"the text before it is {name}: repair the file there, or pass another --encoding"
        if requested == AUTO
        else "leave out --encoding, pass the right one (gb18030, big5, utf-16), or check that the file is text",
    )


def _undetected_error(head: bytes, offset: int, position: int, scores: Mapping[str, float]) -> BadData:
    """Return the error for an unknown encoding; `position` in `head` is the first byte that is not UTF-8."""
    ratios = ", ".join(f"{max(score, 0):.0%} as {name}" for name, score in scores.items())
    return BadData(
        f"the encoding was not detected: not UTF-8 (byte {head[position]:#04x} at offset {offset + position:,}), "
        f"and too few common Chinese characters ({ratios})",
        hint="pass it with --encoding, for example gb18030, big5, shift_jis, euc_jp, euc_kr, cp1252",
    )
