"""Encode one task: parse its lines, filter and encode the documents, compare a sample with the reference encoder.

The result depends on the task alone. The writer decides everything that depends on other tasks (order, duplicates,
`--max-documents`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import BadData, InkstoneError
from pipeline.readers import jsonl
from pipeline.readers.documents import EXCERPT_CHARACTERS, Reject
from pipeline.runtime.ledger import Ledger
from pipeline.tokenizers import Tokenizer, Unencodable
from pipeline.tokens import segments
from pipeline.tokens.chunks import last_boundary
from pipeline.tokens.tasks import TokenizeTask, digest_of

_CHECK_EVERY = 1000
_CHECK_LENGTH = 1 << 16  # characters: only the beginning of a longer document is compared, which bounds the time


@dataclass
class Batch:
    """Encoded documents of one split, as columns."""

    split: str
    ids: np.ndarray  # in the dtype on disk: the ids of each document, then the end-of-text id
    lengths: np.ndarray  # int64, in tokens, end-of-text included
    offsets: np.ndarray  # int64, byte offset of the line in the file's text
    lines: np.ndarray  # int64, line of the chunk, from 0
    characters: np.ndarray  # int64
    sets: list[str]
    digests: list[bytes]


@dataclass
class Encoded:
    """Result of one task. `ledger` counts the documents read and those dropped here; rejects count lines from 0.

    `part` holds the ids of a part of a long document. A `fault` is raised only if the task is still wanted.
    """

    batches: list[Batch] = field(default_factory=list)
    part: np.ndarray | None = None
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


def encode(tokenizer: Tokenizer, task: TokenizeTask) -> Encoded:
    """Encode one task. A document that the fast and the reference encoder encode differently is a fault."""
    result = Encoded(fault=task.fault)
    try:
        if task.refused:
            _refuse(task, result)
        elif task.long:
            _encode_part(tokenizer, task, result)
        elif not task.fault:
            _encode_lines(tokenizer, task, result)
    except BadData as error:
        result.fault = error
    return result


def _encode_lines(tokenizer: Tokenizer, task: TokenizeTask, result: Encoded) -> None:
    spec = task.spec
    by_split: dict[str, list[_Document]] = {}
    rows = jsonl.decode_lines(bytes(task.lines), spec.file, task.offset, result.ledger, result.rejects.append)
    result.lines = len(rows)
    for line, (offset, text, set_name) in enumerate(rows):
        if text is None:
            continue
        if reason := spec.filter.drop_reason(len(text), set_name):
            result.drop(Reject(spec.file, line, offset, reason, text[:EXCERPT_CHARACTERS]), len(text))
            continue
        digest = digest_of(text) if spec.needs_digest else b""
        by_split.setdefault(spec.split_of(digest), []).append(_Document(text, offset, line, set_name, digest))
    for split in sorted(by_split):
        result.batches.append(_encode_batch(tokenizer, task, split, by_split[split], result))


@dataclass(slots=True)
class _Document:
    text: str
    offset: int
    line: int
    set_name: str
    digest: bytes


def _encode_batch(
    tokenizer: Tokenizer, task: TokenizeTask, split: str, documents: list[_Document], result: Encoded
) -> Batch:
    try:
        ids, lengths = tokenizer.encode_batch([document.text for document in documents])
    except Unencodable:
        documents = [document for document in documents if _is_encodable(tokenizer, document, task, result)]
        ids, lengths = tokenizer.encode_batch([document.text for document in documents])
    _compare(tokenizer, task, documents, ids, lengths, result)
    return Batch(
        split,
        segments.append_eos(ids, lengths, task.spec.dtype, tokenizer.end_of_text),
        lengths + 1,
        np.array([document.offset for document in documents], np.int64),
        np.array([document.line for document in documents], np.int64),
        np.array([len(document.text) for document in documents], np.int64),
        [document.set_name for document in documents],
        [document.digest for document in documents],
    )


def _is_encodable(tokenizer: Tokenizer, document: _Document, task: TokenizeTask, result: Encoded) -> bool:
    """Return True if the document can be encoded; otherwise reject it."""
    try:
        tokenizer.encode_batch([document.text])
    except Unencodable:
        excerpt = document.text[:EXCERPT_CHARACTERS]
        reject = Reject(task.spec.file, document.line, document.offset, "bad-not-encodable", excerpt)
        result.drop(reject, len(document.text))
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


def _encode_part(tokenizer: Tokenizer, task: TokenizeTask, result: Encoded) -> None:
    """Encode one part of a long document; the end-of-text id follows the last part."""
    try:
        ids, lengths = tokenizer.encode_batch([task.part])
    except Unencodable:
        raise BadData(
            f"{task.spec.file}: {tokenizer.encoder} cannot encode the document at byte {task.offset:,} of its text",
            hint="take the document out, or use another --encoder",
        ) from None
    if task.is_first_part:
        result.lines = 1
        _compare(tokenizer, task, [_Document(task.part, task.offset, 0, "", b"")], ids, lengths, result)
    eos = [tokenizer.end_of_text] if task.is_last_part else []
    result.part = np.append(ids, np.array(eos, ids.dtype)).astype(task.spec.dtype)


def _compare(
    tokenizer: Tokenizer,
    task: TokenizeTask,
    documents: Sequence[_Document],
    ids: np.ndarray,
    lengths: np.ndarray,
    result: Encoded,
) -> None:
    """Encode a sample of the documents again with the reference encoder. Raises BadData at the first difference."""
    ends = np.cumsum(lengths)
    for index, document in enumerate(documents):
        if index >= task.check_first and not _is_sampled(document.offset, task.unit):
            continue
        text, fast_ids = document.text, ids[ends[index] - lengths[index] : ends[index]]
        if len(text) > _CHECK_LENGTH:
            if not (tokenizer.boundary and (end := last_boundary(tokenizer.boundary, text[:_CHECK_LENGTH]))):
                continue
            text = text[:end]
        try:
            expected = tokenizer.encode(text)
        except Unencodable:
            continue
        is_complete = len(text) == len(document.text)
        if fast_ids[: len(expected)].tolist() != expected or (is_complete and len(fast_ids) != len(expected)):
            raise BadData(
                f"{task.spec.file}: the document at byte {document.offset:,} of its text is encoded differently by "
                f"{tokenizer.encoder} and by {tokenizer.kind}",
                hint="nothing was published; use the slower --encoder tiktoken, and please report the document",
            )
        result.compared += 1


def _is_sampled(offset: int, seed: int) -> bool:
    """Return True for one offset in 1,000, by a multiplicative hash (Knuth)."""
    return ((offset + seed) * 0x9E3779B97F4A7C15 % 2**64 >> 32) % _CHECK_EVERY == 0
