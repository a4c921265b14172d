"""Inspect token arrays: their contents, and the source document of a token."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.errors import BadConfig, BadData, InkstoneError, InputMissing
from pipeline.readers import corpora, jsonl, readers
from pipeline.store.artifact import Artifact, read_ref
from pipeline.store.manifest import Input
from pipeline.tokenizers import ChatTokenizer, Tokenizer
from pipeline.tokens.segments import SPLITS, document_lengths, segment_lengths, segment_names, source_offsets
from pipeline.tokens.split import SplitRule, pieces, rule_of
from pipeline.tokens.store import open_store

_CONTEXT = 40  # tokens shown before and after the located one
_SHOWN = 200  # characters of a document
_COMPARED = 1 << 20  # tokens of the longest document that is encoded again to verify its source


@dataclass(frozen=True)
class TokensSummary:
    """Summary of a tokens artifact.

    `longest` is in tokens, end-of-text included. `lengths` has the numbers of documents of 1, 2 to 3, 4 to 7, … tokens.
    `first` is the first document.
    """

    counts: dict[str, Any]
    segments: dict[str, int]
    longest: int
    lengths: list[int]
    first: str


@dataclass(frozen=True)
class Location:
    """Source of a token: `line` counts from 1, `offset` is in bytes of the file's decompressed text.

    `document` and `place` count in the split, where a piece of a divided document counts as a document.
    `skipped` is the number of characters of the source document before that piece.
    """

    split: str
    index: int
    token: str
    document: int
    place: int  # index of the token in its document
    source: str
    path: str
    line: int
    offset: int
    title: str
    skipped: int
    before: str
    after: str


def summarize(artifact: Artifact) -> TokensSummary:
    """Return a summary of a tokens artifact. Raises BadData if the artifact is damaged."""
    store = open_store(artifact)
    lengths = {split: document_lengths(artifact, split) for split in SPLITS}
    segments = {split: len(segment_names(artifact, split)) for split in SPLITS}
    first = store.train.read(0, min(int(lengths["train"][0]), 4 * _SHOWN))
    longest = max((int(tokens.max()) for tokens in lengths.values() if len(tokens)), default=0)
    sizes = sum(np.bincount(_bit_lengths(tokens), minlength=64) for tokens in lengths.values())
    histogram = np.trim_zeros(np.asarray(sizes)[1:], "b").tolist()
    return TokensSummary(artifact.manifest.counts, segments, longest, histogram, store.tokenizer.decode(first)[:_SHOWN])


def _bit_lengths(numbers: np.ndarray) -> np.ndarray:
    """Return the number of binary digits of each: 1 for 1, 2 for 2 and 3, 3 for 4 to 7."""
    exponents: np.ndarray = np.frexp(numbers.astype(np.float64))[1]
    return exponents


def locate(artifact: Artifact, index: int, split: str = "train") -> Location:
    """Return the source of token `index` of a split, after comparing its document with the source text.

    Raises BadConfig if the index is outside the split, InputMissing if the source is gone, BadData if it changed.
    """
    store = open_store(artifact)
    array = store.train if split == "train" else store.val
    if not 0 <= index < len(array):
        raise BadConfig(f"there is no {split} token {index:,}", hint=f"name an index from 0 to {len(array) - 1:,}")
    document = _find_document(artifact, split, index)
    source, path = _source_file(artifact, int(document.segment.split("-")[1]))
    offsets = source_offsets(artifact, document.segment)
    offset = int(offsets[document.row])
    fields = tuple(artifact.manifest.options.get("text_fields", ()))
    line, data, record = _read_line(path, offset, fields)
    piece = int(np.count_nonzero(offsets[: document.row] == offset))
    ids = array.read(document.start, document.end)
    if store.chat:
        skipped, is_same = 0, _is_conversation(store.tokenizer, data, piece, ids)
    else:
        skipped, text = _find_piece(record.text, rule_of(artifact.manifest.options), split, piece)
        is_same = len(ids) > _COMPARED or _encodes_to(store.tokenizer, text, ids)
    if not is_same:
        raise BadData(
            f"{path}: line {line:,} differs from what was tokenized", hint="the file changed since; tokenize it again"
        )
    position = index - document.start
    token = int(ids[position])
    decode, end_of_text = store.tokenizer.decode, store.tokenizer.end_of_text
    return Location(
        split=split,
        index=index,
        token="end of text" if token == end_of_text else decode([token]),
        document=document.index,
        place=position,
        source=source.name,
        path=str(path),
        line=line,
        offset=offset,
        title=record.title,
        skipped=skipped,
        before=decode(ids[max(0, position - _CONTEXT) : position]),
        after=decode(ids[position : position + _CONTEXT]),
    )


@dataclass(frozen=True)
class _DocumentPosition:
    """Position of a document: its index in the split, its row in `segment`, its tokens `[start, end)`."""

    segment: str
    index: int
    row: int
    start: int
    end: int


def _find_document(artifact: Artifact, split: str, token: int) -> _DocumentPosition:
    """Return the document that holds a token of a split."""
    start, documents = 0, 0  # of the segment: its first token, and the documents before it
    for segment in segment_names(artifact, split):
        lengths = segment_lengths(artifact, segment)
        size = int(lengths.sum(dtype=np.int64))
        if token < start + size:
            ends = start + np.cumsum(lengths, dtype=np.int64)
            row = int(np.searchsorted(ends, token, side="right"))
            return _DocumentPosition(segment, documents + row, row, int(ends[row] - lengths[row]), int(ends[row]))
        start, documents = start + size, documents + len(lengths)
    raise BadData(f"{artifact.path}: the indexes list fewer tokens than the segments hold", hint="`tokenize` it again")


def _source_file(artifact: Artifact, file: int) -> tuple[Input, Path]:
    """Return an input file and its path: in the store, or where it was when it was read."""
    sources = [entry for entry in artifact.manifest.inputs if entry.role in SPLITS]
    if file >= len(sources):
        raise BadConfig(f"{artifact.ref} was not made from a file", hint="locate tokens that `tokenize` wrote")
    source = sources[file]
    root = artifact.path.parents[2]
    run: dict[str, Any] = msgspec.json.decode(artifact.file("run.json").read_bytes())
    paths = [root / "raw" / source.name]
    with suppress(InkstoneError):  # not a corpus, or one that was pruned
        number = [entry.name for entry in sources[:file]].count(source.name)
        paths.append(corpora.document_files(read_ref(root, source.name))[number])
    if isinstance(inputs := run.get("inputs"), list):
        paths.append(Path(inputs[file]))
    for path in paths:
        if path.is_file():
            return source, path
    raise InputMissing(f"{source.name}: the source no longer exists", hint=f"it was {paths[-1]}")


def _read_line(path: Path, offset: int, text_fields: tuple[str, ...]) -> tuple[int, bytes, jsonl.Record]:
    """Return the number, from 1, and the line that begins at byte `offset` of a file's text, also as a record."""
    blocks = readers.read_json_lines(path, text_fields=text_fields, note=lambda text: None)
    position, number = 0, 1
    for block in blocks:
        before = block[: max(0, offset - position)]
        number += before.count(b"\n")
        position += len(before)
        if len(before) < len(block):
            _, line, _ = next(jsonl.split_lines(chain([block[len(before) :]], blocks)))
            if not isinstance(record := jsonl.parse_line(line), str):
                return number, line, record
            break
    raise BadData(
        f"{path}: no document begins at byte {offset:,} of its text", hint="it changed since it was tokenized"
    )


def _find_piece(text: str, rule: SplitRule | None, split: str, number: int) -> tuple[int, str]:
    """Return the characters before piece `number` of a split, and the piece; a document that is not divided is one."""
    if not rule or rule.mode != "stretch":
        return 0, text
    skipped = 0
    for piece in pieces(text, rule):
        if piece.split == split:
            if not number:
                return skipped, piece.text
            number -= 1
        skipped += len(piece.text)
    return 0, ""  # equal to no ids: the source changed


def _is_conversation(tokenizer: Tokenizer, line: bytes, number: int, ids: np.ndarray) -> bool:
    """Return True if the ids are those of conversation `number` of a line, and the end-of-text id."""
    assert isinstance(tokenizer, ChatTokenizer)
    try:
        return np.array_equal(tokenizer.encode_messages(jsonl.parse_turns(line).conversations[number]), ids[:-1])
    except (*jsonl.DECODE_ERRORS, IndexError):
        return False


def _encodes_to(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> bool:
    """Return True if the ids are those of the text and the end-of-text id."""
    return np.array_equal(tokenizer.encode_batch([text])[0], ids[:-1])
