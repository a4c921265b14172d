"""Encode one task: parse its lines, filter and encode the documents, compare a sample with the reference encoder.

The result depends on the task alone. The writer decides everything that depends on other tasks (order, duplicates,
`--max-documents`).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import BadData, InkstoneError
from pipeline.readers import jsonl
from pipeline.readers.documents import EXCERPT_CHARACTERS, Reject
from pipeline.runtime.ledger import Ledger
from pipeline.tokenizers import ChatTokenizer, FlatIds, Tokenizer, Unencodable
from pipeline.tokenizers.chat import Message
from pipeline.tokens import segments
from pipeline.tokens.chunks import last_boundary
from pipeline.tokens.roundtrip import Difference, roundtrip_of
from pipeline.tokens.split import Piece, digest_of, pieces
from pipeline.tokens.tasks import TokenizeTask

_CHECK_EVERY = 1000
CHECKSUM_CHARACTERS = 64  # characters that the checksum of a text covers, together with its length
_CHECK_LENGTH = 1 << 16  # characters: only the beginning of a longer document is compared, which bounds the time


@dataclass
class Batch:
    """Encoded rows of one split, as columns. A row is a document, with stretches a piece of one, or one of the two
    conversations of a preference pair.

    All rows of a document have its offset, line, set and digest. `documents` is 1 in its first row, over all batches of
    a task, and 0 in the others, so that each document counts once.
    """

    split: str
    ids: np.ndarray  # in the dtype on disk: the ids of each document, then the end-of-text id
    lengths: np.ndarray  # int64, in tokens, end-of-text included
    offsets: np.ndarray  # int64, byte offset of the line in the file's text
    lines: np.ndarray  # int64, line of the chunk, from 0
    characters: np.ndarray  # int64
    sets: list[str]
    digests: list[bytes]
    documents: np.ndarray  # int64
    stretches: np.ndarray  # int64
    differences: dict[int, Difference] = field(default_factory=dict)  # by row; without rows that have none
    mask: np.ndarray | None = None  # of conversations: uint8, 1 for each id with a loss


@dataclass
class Encoded:
    """Result of one task. `ledger` counts the documents read and those dropped here; rejects count lines from 0.

    `parts` holds the ids of each part of a long document, `differences` those of the parts that have any. A `fault` is
    raised only if the task is still wanted.
    """

    batches: list[Batch] = field(default_factory=list)
    parts: list[np.ndarray] = field(default_factory=list)
    differences: dict[int, Difference] = field(default_factory=dict)
    fault: InkstoneError | None = None
    ledger: Ledger = field(default_factory=Ledger)
    rejects: list[Reject] = field(default_factory=list)
    lines: int = 0
    compared: int = 0

    def drop(self, reject: Reject, characters: int) -> None:
        """Count a document as dropped and keep its reject record."""
        self.ledger.documents.record_dropped(reject.reason, 1)
        self.ledger.characters.record_dropped(reject.reason, characters)
        self.rejects.append(reject)


def encode(tokenizer: Tokenizer, task: TokenizeTask, val_checksums: AbstractSet[int] = frozenset()) -> Encoded:
    """Encode one task. A document that the fast and the reference encoder encode differently is a fault.

    `val_checksums` are the checksums of the validation documents: a training document with one of them gets its digest.
    """
    result = Encoded(fault=task.fault)
    try:
        if task.refused:
            _refuse(task, result)
        elif task.long:
            _encode_parts(tokenizer, task, result)
        elif not task.fault:
            _encode_lines(tokenizer, task, val_checksums, result)
    except BadData as error:
        result.fault = error
    return result


def document_digests(task: TokenizeTask) -> list[bytes]:
    """Return the hashes of the documents of a task that pass the filter. Raises the fault of the task."""
    if task.fault:
        raise task.fault
    if task.refused:
        return []
    if task.long:
        return [task.long.digest] if task.is_first else []
    spec = task.spec
    rows = jsonl.decode_lines(bytes(task.lines), spec.file, task.offset, Ledger(), lambda reject: None)
    texts = ((text, set_name) for _, text, set_name in rows if text is not None)
    return [digest_of(text) for text, set_name in texts if not spec.filter.drop_reason(len(text), set_name)]


def checksum_of(beginning: str, characters: int) -> int:
    """Return a 32-bit checksum of the beginning and the length of a text, much cheaper than its digest."""
    return zlib.crc32(beginning[:CHECKSUM_CHARACTERS].encode(), characters & 0xFFFFFFFF)


def _encode_lines(tokenizer: Tokenizer, task: TokenizeTask, val_checksums: AbstractSet[int], result: Encoded) -> None:
    spec = task.spec
    by_split: dict[str, list[_Row]] = {}
    rows = jsonl.decode_lines(bytes(task.lines), spec.file, task.offset, result.ledger, result.rejects.append)
    result.lines = len(rows)
    for line, (offset, text, set_name) in enumerate(rows):
        if text is None:
            continue
        if reason := spec.filter.drop_reason(len(text), set_name):
            result.drop(Reject(spec.file, line, offset, reason, text[:EXCERPT_CHARACTERS]), len(text))
            continue
        may_overlap = bool(val_checksums) and spec.split == "train" and checksum_of(text, len(text)) in val_checksums
        digest = digest_of(text) if spec.needs_digest or may_overlap else b""
        if spec.chat:
            _add_conversations(task, _Row(text, offset, line, set_name, digest), by_split, result)
            continue
        rule = spec.stretch_rule
        parts = pieces(text, rule) if rule else [Piece(spec.split_of(digest), text, 0)]
        for index, piece in enumerate(parts):
            row = _Row(piece.text, offset, line, set_name, digest, not index, piece.stretches)
            by_split.setdefault(piece.split, []).append(row)
    try:
        result.batches = _encode_batches(tokenizer, task, by_split, result)
    except Unencodable:
        encodable = _drop_unencodable(tokenizer, task, by_split, result)
        result.batches = _encode_batches(tokenizer, task, encodable, result)


@dataclass(slots=True)
class _Row:
    text: str
    offset: int
    line: int
    set_name: str
    digest: bytes
    is_first: bool = True
    stretches: int = 0
    messages: Sequence[Message] = ()


def _add_conversations(task: TokenizeTask, row: _Row, by_split: dict[str, list[_Row]], result: Encoded) -> None:
    """Add the conversation of a line, or both of a preference pair. The text of a pair is counted with the first."""
    start = row.offset - task.offset
    end = task.lines.find(b"\n", start)
    line = bytes(task.lines[start : end if end >= 0 else len(task.lines)])
    try:
        conversations, is_held_out = jsonl.parse_turns(line)
    except jsonl.DECODE_ERRORS:
        excerpt = row.text[:EXCERPT_CHARACTERS]
        result.drop(Reject(task.spec.file, row.line, row.offset, "bad-record", excerpt), len(row.text))
        return
    for index, messages in enumerate(conversations):
        text = "" if index else row.text
        own = dataclasses.replace(row, text=text, is_first=not index, messages=messages)
        by_split.setdefault(task.spec.split_of(row.digest, is_marked=is_held_out), []).append(own)


def _encode_batches(
    tokenizer: Tokenizer, task: TokenizeTask, by_split: dict[str, list[_Row]], result: Encoded
) -> list[Batch]:
    flat = {split: _encode_rows(tokenizer, rows) for split, rows in sorted(by_split.items())}
    batches = []
    for split, (ids, lengths, mask) in flat.items():
        rows = by_split[split]
        _compare(tokenizer, task, rows, ids, lengths, result)
        batches.append(
            Batch(
                split,
                segments.append_eos(ids, lengths, task.spec.dtype, tokenizer.end_of_text),
                lengths + 1,
                np.array([row.offset for row in rows], np.int64),
                np.array([row.line for row in rows], np.int64),
                np.array([len(row.text) for row in rows], np.int64),
                [row.set_name for row in rows],
                [row.digest for row in rows],
                np.array([row.is_first for row in rows], np.int64),
                np.array([row.stretches for row in rows], np.int64),
                _row_differences(tokenizer, rows, (ids, lengths), split),
                None if mask is None else segments.append_eos(mask, lengths, "u1", 0),
            )
        )
    return batches


def _encode_rows(tokenizer: Tokenizer, rows: Sequence[_Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the flat ids of the rows, the number of each, and of conversations the mask."""
    if not isinstance(tokenizer, ChatTokenizer) or not rows[0].messages:
        return *tokenizer.encode_batch([row.text for row in rows]), None
    return tokenizer.encode_conversations([row.messages for row in rows])


def _differences(tokenizer: Tokenizer, texts: Sequence[str], encoded: FlatIds, split: str) -> dict[int, Difference]:
    """Return how the texts differ from what their ids decode to. The original text is kept for validation only."""
    roundtrip = roundtrip_of(tokenizer.base if isinstance(tokenizer, ChatTokenizer) else tokenizer)
    return roundtrip.differences(texts, encoded, keep_text=split == "val") if roundtrip else {}


def _row_differences(tokenizer: Tokenizer, rows: Sequence[_Row], encoded: FlatIds, split: str) -> dict[int, Difference]:
    """Return the differences of rows. The text of a conversation is encoded again, without the template.

    It is not kept, because its ids are mixed with those of the template.
    """
    texts = [row.text for row in rows]
    if not any(row.messages for row in rows):
        return _differences(tokenizer, texts, encoded, split)
    return _differences(tokenizer, texts, tokenizer.encode_batch(texts), "train")


def _drop_unencodable(
    tokenizer: Tokenizer, task: TokenizeTask, by_split: dict[str, list[_Row]], result: Encoded
) -> dict[str, list[_Row]]:
    """Reject the documents with a row that cannot be encoded. Returns the rows of the others."""
    rows = sorted((row for group in by_split.values() for row in group), key=lambda row: not row.is_first)
    refused = {row.line for row in rows if not _is_encodable(tokenizer, row)}
    for row in rows:
        if row.line in refused and row.is_first:
            characters = sum(len(part.text) for part in rows if part.line == row.line)
            excerpt = row.text[:EXCERPT_CHARACTERS]
            result.drop(Reject(task.spec.file, row.line, row.offset, "bad-not-encodable", excerpt), characters)
    return {split: [row for row in group if row.line not in refused] for split, group in by_split.items()}


def _is_encodable(tokenizer: Tokenizer, row: _Row) -> bool:
    try:
        _encode_rows(tokenizer, [row])
    except Unencodable:
        return False
    return True


def _refuse(task: TokenizeTask, result: Encoded) -> None:
    result.lines = 1
    if task.long:
        result.ledger.documents.came += 1
        result.ledger.characters.came += task.long.characters
        result.drop(Reject(task.spec.file, 0, task.offset, task.refused, ""), task.long.characters)
    else:
        line = bytes(task.lines)
        jsonl.reject_line(result.ledger, result.rejects.append, task.refused, line, task.spec.file, 0, task.offset)


def _encode_parts(tokenizer: Tokenizer, task: TokenizeTask, result: Encoded) -> None:
    """Encode parts of a long document; the end-of-text id follows the last part of a row."""
    try:
        ids, lengths = tokenizer.encode_batch([part.text for part in task.parts])
    except Unencodable:
        raise BadData(
            f"{task.spec.file}: {tokenizer.encoder} cannot encode the document at byte {task.offset:,} of its text",
            hint="take the document out, or use another --encoder",
        ) from None
    if task.is_first:
        result.lines = 1
        _compare(tokenizer, task, [_Row(task.parts[0].text, task.offset, 0, "", b"")], ids, lengths[:1], result)
    ends = np.cumsum(lengths)
    for index, part in enumerate(task.parts):
        own = slice(int(ends[index] - lengths[index]), int(ends[index]))
        if difference := _differences(tokenizer, [part.text], (ids[own], lengths[index : index + 1]), part.split):
            result.differences[index] = difference[0]
    for part, part_ids in zip(task.parts, np.split(ids, ends[:-1]), strict=True):
        eos = [tokenizer.end_of_text] if part.ends_row else []
        result.parts.append(np.append(part_ids, np.array(eos, ids.dtype)).astype(task.spec.dtype))


def _compare(
    tokenizer: Tokenizer,
    task: TokenizeTask,
    rows: Sequence[_Row],
    ids: np.ndarray,
    lengths: np.ndarray,
    result: Encoded,
) -> None:
    """Encode a sample of the rows again with the reference encoder. Raises BadData at the first difference."""
    ends = np.cumsum(lengths)
    for index, row in enumerate(rows):
        if index >= task.check_first and not _is_sampled(row.offset, task.unit):
            continue
        text, fast_ids = row.text, ids[ends[index] - lengths[index] : ends[index]]
        if not row.messages and len(text) > _CHECK_LENGTH:
            if not (tokenizer.boundary and (end := last_boundary(tokenizer.boundary, text[:_CHECK_LENGTH]))):
                continue
            text = text[:end]
        try:
            expected = _encode_slowly(tokenizer, row, text)
        except Unencodable:
            continue
        is_complete = bool(row.messages) or len(text) == len(row.text)
        if fast_ids[: len(expected)].tolist() != expected or (is_complete and len(fast_ids) != len(expected)):
            raise BadData(
                f"{task.spec.file}: the document at byte {row.offset:,} of its text is encoded differently by "
                f"{tokenizer.encoder} and by {tokenizer.kind}",
                hint="nothing was published; use the slower --encoder tiktoken, and please report the document",
            )
        result.compared += 1


def _encode_slowly(tokenizer: Tokenizer, row: _Row, text: str) -> list[int]:
    """Return the ids of a row by the reference encoder. `text` is the beginning of the row that is compared."""
    if isinstance(tokenizer, ChatTokenizer) and row.messages:
        return tokenizer.encode_messages(row.messages)
    return tokenizer.encode(text)


def _is_sampled(offset: int, seed: int) -> bool:
    """Return True for one offset in 1,000, by a multiplicative hash (Knuth)."""
    return ((offset + seed) * 0x9E3779B97F4A7C15 % 2**64 >> 32) % _CHECK_EVERY == 0
