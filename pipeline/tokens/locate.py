"""Looking into token arrays: what they hold, and where one token came from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.readers import jsonl, readers
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import Input
from pipeline.tokenizers import Tokenizer
from pipeline.tokens import segments as tokens_segments
from pipeline.tokens import store as tokens

_AROUND = 40  # tokens shown before and after a place
_SHOWN = 200  # characters of a document
_COMPARED = 1 << 20  # tokens of the longest document that is encoded again to prove where it came from


@dataclass(frozen=True)
class Facts:
    """What a tokens artifact holds. `longest` is in tokens, end-of-text included; `first` is the first document."""

    counts: dict[str, Any]
    segments: dict[str, int]
    longest: int
    first: str


@dataclass(frozen=True)
class Location:
    """Where a token came from: `line` counts from 1, `offset` in bytes of the file's decompressed text."""

    split: str
    index: int
    token: str
    document: int
    place: int  # of the token in its document
    source: str
    path: str
    line: int
    offset: int
    title: str
    before: str
    after: str


def describe(found: Artifact) -> Facts:
    """Raises BadData when the artifact is damaged."""
    store = tokens.open_store(found)
    lengths = {split: tokens_segments.document_lengths(found, split) for split in tokens_segments.SPLITS}
    segments = {split: len(_segments(found, split)) for split in tokens_segments.SPLITS}
    first = store.train.read(0, min(int(lengths["train"][0]), 4 * _SHOWN))
    longest = max((int(each.max()) for each in lengths.values() if len(each)), default=0)
    return Facts(found.manifest.counts, segments, longest, store.tokenizer.decode(first)[:_SHOWN])


def locate(found: Artifact, index: int, split: str = "train") -> Location:
    """Where token `index` of a split came from: its document is looked up in the source, and compared with it.

    Raises BadConfig for an index outside the split, InputMissing when the source is gone, BadData when it changed.
    """
    store = tokens.open_store(found)
    array = store.train if split == "train" else store.val
    if not 0 <= index < len(array):
        raise BadConfig(f"there is no {split} token {index:,}", hint=f"0 to {len(array) - 1:,}")
    segment, document, start, end = _document(found, split, index)
    offsets = tokens_segments.source_offsets(found, segment)
    source, path = _source(found, int(segment.split("-")[1]))
    within = document - _documents_before(found, split, segment)
    line, record = _line_at(path, int(offsets[within]))
    ids = array.read(start, end)
    if len(ids) <= _COMPARED and not _is_text_of(store.tokenizer, ids, record.text):
        raise BadData(
            f"{path}: its line {line:,} is not what was tokenized", hint="it changed since; tokenize it again"
        )
    token = ids[index - start]
    text = store.tokenizer.decode([token])
    return Location(
        split=split,
        index=index,
        token="end of text" if token == store.tokenizer.end_of_text else text,
        document=document,
        place=index - start,
        source=source.name,
        path=str(path),
        line=line,
        offset=int(offsets[within]),
        title=record.title,
        before=store.tokenizer.decode(ids[max(0, index - start - _AROUND) : index - start]),
        after=store.tokenizer.decode(ids[index - start : index - start + _AROUND]),
    )


def _segments(found: Artifact, split: str) -> list[str]:
    names = (record.name for record in found.manifest.files)
    return [name.removesuffix(".idx") for name in names if name.startswith(f"{split}-") and name.endswith(".idx")]


def _lengths(found: Artifact, segment: str) -> np.ndarray:
    return tokens_segments.read_index(found.file(f"{segment}.idx"))


def _documents_before(found: Artifact, split: str, segment: str) -> int:
    segments = _segments(found, split)
    return sum(len(_lengths(found, each)) for each in segments[: segments.index(segment)])


def _document(found: Artifact, split: str, index: int) -> tuple[str, int, int, int]:
    """Segment, number in the split, and first and last place (exclusive) of the document that holds a token."""
    start, document = 0, 0
    for segment in _segments(found, split):
        lengths = _lengths(found, segment)
        size = int(lengths.sum(dtype=np.int64))
        if index < start + size:
            ends = start + np.cumsum(lengths, dtype=np.int64)
            within = int(np.searchsorted(ends, index, side="right"))
            return segment, document + within, int(ends[within] - lengths[within]), int(ends[within])
        start, document = start + size, document + len(lengths)
    raise BadData(f"{found.path}: its indexes hold fewer tokens than its segments", hint="`tokenize` it again")


def _source(found: Artifact, number: int) -> tuple[Input, Path]:
    """The input file of a segment, and where it lies now: in the store, or where it lay when it was read."""
    sources = [each for each in found.manifest.inputs if each.role in tokens_segments.SPLITS]
    if number >= len(sources):
        raise BadConfig(f"{found.ref} was made from no file", hint="locate tokens of what `tokenize` made")
    source = sources[number]
    root = found.path.parents[2]
    run: dict[str, Any] = msgspec.json.decode(found.file("run.json").read_bytes())
    places = [root / "raw" / source.name, root / source.name / "documents.jsonl.zst"]
    if isinstance(listed := run.get("inputs"), list):
        places.append(Path(listed[number]))
    for place in places:
        if place.is_file():
            return source, place
    raise InputMissing(f"{source.name}: the source is not there any more", hint=f"it was {places[-1]}")


def _line_at(path: Path, offset: int) -> tuple[int, jsonl.Record]:
    """The number, from 1, and the record of the line that begins at byte `offset` of a file's text."""
    blocks = readers.json_lines(path)
    position, number = 0, 1
    for block in blocks:
        before = block[: max(0, offset - position)]
        number += before.count(b"\n")
        position += len(before)
        if len(before) < len(block):
            _, line, _ = next(jsonl.lines(chain([block[len(before) :]], blocks)))
            if not isinstance(found := jsonl.parse(line), str):
                return number, found
            break
    raise BadData(
        f"{path}: no document begins at byte {offset:,} of its text", hint="it changed since it was tokenized"
    )


def _is_text_of(tokenizer: Tokenizer, ids: np.ndarray, text: str) -> bool:
    return np.array_equal(tokenizer.encode_batch([text])[0], ids[:-1])
