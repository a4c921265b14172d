"""The original text of validation documents whose ids decode to another text.

    val-00000-0000.text.zst    JSON lines {"start", "stop", "text"}: the ids [start, stop) of the segment, of this text

Bits per character are over the original text. With unknown characters or a normalizer, some ids decode to another text;
for these ids the original is kept. All other ids decode to their original text.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import zstandard

from pipeline.errors import BadData
from pipeline.tokens.segments import segment_lengths, segment_names
from pipeline.tokens.store import TokenStore

SUFFIX = ".text.zst"
_BLOCK = 1 << 20


class Original(msgspec.Struct, frozen=True):
    """The original text of the ids `[start, stop)` of a segment."""

    start: int
    stop: int
    text: str


def encode_original(start: int, stop: int, text: str) -> bytes:
    """Return one line of the file."""
    return msgspec.json.encode(Original(start, stop, text)) + b"\n"


def has_originals(store: TokenStore) -> bool:
    """Return True if the ids of at least one validation document do not decode to its text."""
    return any(record.name.endswith(SUFFIX) for record in store.artifact.manifest.files)


def validation_documents(store: TokenStore) -> Iterator[tuple[np.ndarray, str]]:
    """Yield the ids (int64, with end-of-text) and the original text of each validation document, in order.

    Raises BadData if the file of original texts is damaged.
    """
    names = {record.name for record in store.artifact.manifest.files}
    begin = 0  # index of the first id of the segment in the split
    for segment in segment_names(store.artifact, "val"):
        name, start = f"{segment}{SUFFIX}", 0
        originals = _read(store.artifact.file(name)) if name in names else iter(())
        following = next(originals, None)
        for length in segment_lengths(store.artifact, segment).tolist():
            parts = []
            end = start + length
            while following and following.start < end:
                parts.append(following)
                following = next(originals, None)
            ids = store.val.read(begin + start, begin + end)
            yield ids, _text_of(store, ids, start, parts)
            start = end
        begin += start


def _text_of(store: TokenStore, ids: np.ndarray, start: int, originals: list[Original]) -> str:
    """Return the text of a document that begins at id `start` of its segment.

    Ids that one of the `originals` covers have that text; all others are decoded.
    """
    decode, texts, position = store.tokenizer.decode, [], start
    for original in originals:
        texts += [decode(ids[position - start : original.start - start].tolist()), original.text]
        position = original.stop
    return "".join((*texts, decode(ids[position - start :].tolist())))


def _read(path: Path) -> Iterator[Original]:
    decode = msgspec.json.Decoder(Original).decode
    try:
        with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
            yield from map(decode, io.BufferedReader(reader, _BLOCK))
    except (zstandard.ZstdError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadData(f"{path}: damaged: {error}", hint="`tokenize` it again") from None
