"""What a worker does with one piece of text: parse its lines, choose documents, encode them, compare a sample.

Nothing here depends on other pieces: what does (order, duplicates, a largest number) is the assembly's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import BadData, InkstoneError
from pipeline.readers import documents, jsonl
from pipeline.readers import jsonl as records
from pipeline.readers.documents import Reject
from pipeline.runtime.ledger import Ledger
from pipeline.tokenizers import Tokenizer, Unencodable
from pipeline.tokens import chunks as pieces
from pipeline.tokens import segments
from pipeline.tokens.tasks import Task, digest_of

_CHECK_EVERY = 1000
_CHECK_LENGTH = 1 << 16  # characters: of a longer document its beginning is compared, which bounds the time


@dataclass
class Batch:
    """Documents of one split, encoded, column by column."""

    split: str
    ids: np.ndarray  # of the dtype on disk: the ids of each document and the end-of-text id
    lengths: np.ndarray  # int64, in tokens, end-of-text included
    offsets: np.ndarray  # int64, of the line in the file's text
    numbers: np.ndarray  # int64, of the line in the piece, from 0
    characters: np.ndarray  # int64
    sets: list[str]
    digests: list[bytes]


@dataclass
class Encoded:
    """What became of a piece. `ledger` has what came in and what was dropped here; rejects count lines from 0.

    `part` has the ids of a part of a long document. A `fault` counts only if the piece is wanted at all.
    """

    batches: list[Batch] = field(default_factory=list)
    part: np.ndarray | None = None
    fault: InkstoneError | None = None
    ledger: Ledger = field(default_factory=Ledger)
    rejects: list[Reject] = field(default_factory=list)
    lines: int = 0
    compared: int = 0


def encode(tokenizer: Tokenizer, task: Task) -> Encoded:
    """Encode one piece. A document that the fast way and the tokenizer's own library encode differently is a fault."""
    out = Encoded(fault=task.fault)
    try:
        if task.refused:
            _refuse(task, out)
        elif task.long:
            _encode_part(tokenizer, task, out)
        elif not task.fault:
            _encode_lines(tokenizer, task, out)
    except BadData as error:
        out.fault = error
    return out


def _encode_lines(tokenizer: Tokenizer, task: Task, out: Encoded) -> None:
    job = task.job
    columns: dict[str, list[_Kept]] = {}
    found = records.decode(bytes(task.lines), job.file, task.offset, out.ledger, out.rejects.append)
    out.lines = len(found)
    for number, (offset, text, name) in enumerate(found):
        if text is None:
            continue
        if reason := job.choice.refuses(len(text), name):
            _drop(out, Reject(job.file, number, offset, reason, text[: documents.EXCERPT]), len(text))
            continue
        digest = digest_of(text) if job.needs_digest else b""
        columns.setdefault(job.split_of(digest), []).append(_Kept(text, offset, number, name, digest))
    for split in sorted(columns):
        out.batches.append(_encode_batch(tokenizer, task, split, columns[split], out))


@dataclass(slots=True)
class _Kept:
    text: str
    offset: int
    line: int
    set_name: str
    digest: bytes


def _encode_batch(tokenizer: Tokenizer, task: Task, split: str, kept: list[_Kept], out: Encoded) -> Batch:
    try:
        ids, lengths = tokenizer.encode_batch([each.text for each in kept])
    except Unencodable:
        kept = [each for each in kept if _encodable(tokenizer, each, task, out)]
        ids, lengths = tokenizer.encode_batch([each.text for each in kept])
    _compare(tokenizer, task, kept, ids, lengths, out)
    return Batch(
        split,
        segments.with_ends(ids, lengths, task.job.dtype, tokenizer.end_of_text),
        lengths + 1,
        np.array([each.offset for each in kept], np.int64),
        np.array([each.line for each in kept], np.int64),
        np.array([len(each.text) for each in kept], np.int64),
        [each.set_name for each in kept],
        [each.digest for each in kept],
    )


def _encodable(tokenizer: Tokenizer, each: _Kept, task: Task, out: Encoded) -> bool:
    try:
        tokenizer.encode_batch([each.text])
    except Unencodable:
        reject = Reject(task.job.file, each.line, each.offset, "bad-not-encodable", each.text[: documents.EXCERPT])
        _drop(out, reject, len(each.text))
        return False
    return True


def _refuse(task: Task, out: Encoded) -> None:
    out.lines = 1
    if task.long:
        out.ledger.documents.came += 1
        out.ledger.characters.came += task.long.characters
        _drop(out, Reject(task.job.file, 0, task.offset, task.refused, ""), task.long.characters)
    else:
        line = bytes(task.lines)
        jsonl.reject_line(out.ledger, out.rejects.append, task.refused, line, task.job.file, 0, task.offset)


def _encode_part(tokenizer: Tokenizer, task: Task, out: Encoded) -> None:
    """Ids of one part of a long document, with the end-of-text id after its last."""
    try:
        ids, lengths = tokenizer.encode_batch([task.part])
    except Unencodable:
        raise BadData(
            f"{task.job.file}: {tokenizer.encoder} cannot encode the document at byte {task.offset:,} of its text",
            hint="take the document out, or use another --encoder",
        ) from None
    if task.first:
        out.lines = 1
        _compare(tokenizer, task, [_Kept(task.part, task.offset, 0, "", b"")], ids, lengths, out)
    ends = [tokenizer.end_of_text] if task.final else []
    out.part = np.append(ids, np.array(ends, ids.dtype)).astype(task.job.dtype)


def _drop(out: Encoded, reject: Reject, characters: int) -> None:
    """Account for a document that came in and is not kept."""
    out.ledger.documents.drop(reject.reason, 1)
    out.ledger.characters.drop(reject.reason, characters)
    out.rejects.append(reject)


def _compare(
    tokenizer: Tokenizer, task: Task, kept: Sequence[_Kept], ids: np.ndarray, lengths: np.ndarray, out: Encoded
) -> None:
    """Encode a sample of the documents again with the library that defines the ids; BadData at the first difference."""
    chosen = [each for each in range(len(kept)) if each < task.check_first or _drawn(kept[each].offset, task.unit)]
    ends = np.cumsum(lengths)
    for each in chosen:
        text, found = kept[each].text, ids[ends[each] - lengths[each] : ends[each]]
        if len(text) > _CHECK_LENGTH:
            if not (tokenizer.boundary and (place := pieces.last_boundary(tokenizer.boundary, text[:_CHECK_LENGTH]))):
                continue
            text = text[:place]
        try:
            expected = tokenizer.encode(text)
        except Unencodable:
            continue
        whole = len(text) == len(kept[each].text)
        if found[: len(expected)].tolist() != expected or (whole and len(found) != len(expected)):
            raise BadData(
                f"{task.job.file}: the document at byte {kept[each].offset:,} of its text is encoded differently by "
                f"{tokenizer.encoder} and by {tokenizer.kind}",
                hint="nothing was published; --encoder tiktoken is slower and right, and please report the document",
            )
        out.compared += 1


def _drawn(offset: int, seed: int) -> bool:
    """One in 1,000, by a multiplicative hash (Knuth) of where the document lies."""
    return ((offset + seed) * 0x9E3779B97F4A7C15 % 2**64 >> 32) % _CHECK_EVERY == 0
