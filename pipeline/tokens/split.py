"""Divide text between training and validation: whole documents, or stretches of documents.

    mode "document"   a document is held out if the hash of its text is below the threshold
    mode "stretch"    a document is cut into stretches, and each is held out or not
    mode "marked"     a conversation is held out if its record says so

A stretch ends at the first paragraph end after `size` bytes of UTF-8 (`find_border`). Whether it is held out depends on
the hash of the stretch before it, and for the first stretch of a document on the hash of its first `size` bytes. So a
border, and the side of the text after it, depend only on the text before: text that is appended to a document, or
documents that are added, never move a stretch. A hash of the last stretch itself would change whenever it grows.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from pipeline.errors import BadData
from pipeline.runtime.terminal import counted

MODES = ("auto", "document", "stretch")
DIGEST_BYTES = 16
FEWEST_CHARACTERS = 200  # of validation text to judge a model by; with fewer, bits per character are off by 0.2 or more
_LITTLE = 1_000  # characters of validation text below which a warning is printed,
_LONG = 20_000  # if more characters than this are trained on, some of which could be held out
_UTF8 = 4  # bytes of a character, at most
_HASHES = 1 << 64  # number of values that the first eight bytes of a hash have
# Where a text without line ends is cut: after a blank, or after a Chinese full stop, exclamation or question mark.
_BLANK_OR_STOP = re.compile(rb"[ \t]|\xe3\x80\x82|\xef\xbc[\x81\x9f]")


class SplitRule(msgspec.Struct, frozen=True):
    """Rule that divides text; part of the key, and of the manifest's options as `split`.

    `size` is the size of a stretch in bytes, 0 for documents. Documents or stretches with a 64-bit hash below
    `threshold` are held out: about `fraction` of the text.
    """

    mode: str
    size: int
    threshold: int
    fraction: float

    def split_of(self, draw: int) -> str:
        """Return "val" or "train" for a hash of 64 bits."""
        return "val" if draw < self.threshold else "train"


MARKED = SplitRule("marked", 0, 0, 0.0)


def threshold_of(fraction: float) -> int:
    """Return the threshold that holds out `fraction` of all hashes."""
    return math.ceil(fraction * _HASHES)


def digest_of(text: str) -> bytes:
    """Return the first 16 bytes of the sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).digest()[:DIGEST_BYTES]


def draw_of(digest: bytes) -> int:
    """Return the first eight bytes of a hash as a number."""
    return int.from_bytes(digest[:8], "big")


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive stretches of one document on the same side, which are encoded as one document of their split."""

    split: str
    text: str
    stretches: int


def pieces(text: str, rule: SplitRule) -> list[Piece]:
    """Divide one document into pieces; their texts, joined, are the text."""
    joined: list[tuple[str, list[bytes]]] = []
    for split, _, stretch in drawn_stretches([text], rule):
        if not joined or joined[-1][0] != split:
            joined.append((split, []))
        joined[-1][1].append(stretch)
    if len(joined) == 1:
        return [Piece(joined[0][0], text, len(joined[0][1]))]
    return [Piece(split, b"".join(parts).decode(), len(parts)) for split, parts in joined]


def drawn_stretches(blocks: Iterable[str], rule: SplitRule) -> Iterator[tuple[str, int, bytes]]:
    """Yield the split, the hash and the text of each stretch of a document that arrives in blocks of any size."""
    previous = b""
    for stretch in stretches(blocks, rule.size):
        draw = draw_of(hashlib.sha256(previous or stretch[: rule.size]).digest())
        yield rule.split_of(draw), draw, stretch
        previous = stretch


def stretches(blocks: Iterable[str], size: int) -> Iterator[bytes]:
    """Yield the stretches of a document that arrives in blocks, in UTF-8. One block and one stretch are in memory."""
    buffer = b""
    for block in blocks:
        buffer += block.encode()
        start = 0
        while end := find_border(buffer, start, size):
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    if buffer:
        yield buffer


def find_border(data: bytes, start: int, size: int) -> int:
    """Return the end of the stretch that begins at `start`, 0 if it is beyond the data.

    After `size` bytes, the first of these ends it: a paragraph end in the next `size` bytes, a line end in the `size`
    bytes after those, a blank or a Chinese stop in the next `size` bytes, and then any character. A paragraph ends with
    an empty line if there is one among the first `size` bytes of the stretch, otherwise with the line.
    """
    earliest = start + size
    if len(data) < earliest:
        return 0
    if _find_empty_line(data, start, earliest):
        border = _find_empty_line(data, earliest - 3, earliest + size, earliest)
    else:
        border = data.find(b"\n", earliest - 1, earliest + size) + 1
    border = border or data.find(b"\n", earliest + size - 1, earliest + 2 * size) + 1
    if border or len(data) < earliest + 2 * size:
        return border
    if match := _BLANK_OR_STOP.search(data, earliest + 2 * size, earliest + 3 * size):
        return match.end()
    end = earliest + 3 * size
    if len(data) <= end:
        return 0
    while data[end] & 0xC0 == 0x80:  # within a character
        end -= 1
    return end


def _find_empty_line(data: bytes, start: int, stop: int, earliest: int = 0) -> int:
    """Return the first position from `earliest` on, after an empty line in `data[start:stop]`; 0 if there is none."""
    ends = []
    for pattern in (b"\n\n", b"\n\r\n"):
        position = data.find(pattern, max(start, earliest - len(pattern)), stop)
        if position >= 0:
            ends.append(position + len(pattern))
    return min(ends, default=0)


def rule_of(options: Mapping[str, Any]) -> SplitRule | None:
    """Return the rule in the options of a tokens manifest, None if its text was not divided."""
    try:
        if "split" in options:
            return msgspec.convert(options["split"], SplitRule | None)
        # Tokens before version 5 were divided by documents.
        fraction = msgspec.convert(options.get("val_fraction", 0.0), Annotated[float, msgspec.Meta(ge=0, lt=1)])
    except msgspec.ValidationError as error:
        raise BadData(f"the split in the manifest of tokens: {error}", hint="`tokenize` them again") from None
    return SplitRule("document", 0, threshold_of(fraction), fraction) if fraction else None


def warning_of(rule: SplitRule | None, counts: Mapping[str, Any]) -> str:
    """Return a warning if little of a long text is held out, else ""."""
    held_out, trained_on = counts["val_characters"], counts["train_characters"]
    if not rule or rule == MARKED or held_out >= _LITTLE or trained_on <= _LONG:
        return ""
    return (
        f"warning: only {held_out:,} of {held_out + trained_on:,} characters are held out, too few to judge a model "
        f"by: --val-fraction {max(0.1, min(2 * rule.fraction, 0.5)):g} (in a recipe `val_fraction` in [tokenize]) "
        "holds out more"
    )


_NOUNS = {"chat": "conversations", "preferences": "preference pairs"}


def summary(options: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    """Describe in a phrase what is held out, from the options and counts of a tokens manifest."""
    characters = counts["train_characters"] + counts["val_characters"]
    share = f"({100 * counts['val_characters'] / max(characters, 1):.1f} %)"
    count, noun = counts["val_documents"], _NOUNS.get(options.get("chat", ""), "documents")
    documents = counted(count // 2 if noun == _NOUNS["preferences"] else count, noun)
    rule = rule_of(options)
    if rule and rule.mode == "stretch":
        stretches = counted(counts["val_stretches"], "stretches")
        if _UTF8 * counts["val_characters"] < rule.size * counts["val_stretches"]:  # ends of texts, all or most of them
            return f"held out {stretches}, {counted(counts['val_characters'], 'characters')} {share}, chosen by hash"
        size = f"{rule.size >> 10} KiB" if rule.size >= 1 << 10 else f"{rule.size} bytes"
        return f"held out {stretches} of {size} {share}, chosen by hash"
    if rule:
        return f"held out {documents} {share}, {'as marked' if rule == MARKED else 'chosen by hash'}"
    if counts["val_documents"]:
        return f"held out {documents} of the validation text {share}"
    return "held out nothing: there is no validation part"
