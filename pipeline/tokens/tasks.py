"""Read the files to tokenize into tasks, in input order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence

import msgspec

from pipeline.errors import BadData, InkstoneError, from_os_error
from pipeline.readers import jsonl, readers
from pipeline.runtime.progress import Advance
from pipeline.sources.inputs import InputFile, require_unchanged
from pipeline.tokens import chunks
from pipeline.tokens.chunks import Chunk, Unbroken

DIGEST_BYTES = 16

_CHECK_FIRST = 8  # documents of each unit


class DocumentFilter(msgspec.Struct, frozen=True):
    """Filter that judges each document by itself. An empty tuple names no set; `min_chars` 0 sets no minimum."""

    include_sets: tuple[str, ...] = ()
    exclude_sets: tuple[str, ...] = ()
    min_chars: int = 0

    def drop_reason(self, characters: int, set_name: str) -> str:
        """Return the reason to drop a document, "" to keep it."""
        if not characters:
            return "empty"
        if self.include_sets and set_name not in self.include_sets:
            return "set-not-included"
        if set_name in self.exclude_sets:
            return "set-excluded"
        return "too-short" if characters < self.min_chars else ""


class FileSpec(msgspec.Struct, frozen=True):
    """Settings that all tasks of one input file share.

    `split` is "train" or "val" if all documents of the file belong there, "" to divide them by a hash of their text.
    `digests` asks for a hash of each document.
    """

    dtype: str
    file: str
    split: str
    val_fraction: float
    filter: DocumentFilter
    digests: bool

    @property
    def needs_digest(self) -> bool:
        return self.digests or bool(not self.split and self.val_fraction)

    def split_of(self, digest: bytes) -> str:
        return self.split or ("val" if is_validation(digest, self.val_fraction) else "train")


class LongDocument(msgspec.Struct, frozen=True):
    """A document that is encoded in parts: its properties, known before the first part is encoded."""

    characters: int
    set_name: str
    digest: bytes
    split: str


class TokenizeTask(msgspec.Struct, frozen=True):
    """One chunk: `size` bytes of lines from byte `offset` of the text of input file `file`.

    The first `check_first` documents are compared with the reference encoder, and one in 1,000 of the others. With
    `long`, the task is one `part` of a document. With `refused`, `lines` is the beginning of a line that is rejected
    for that reason. With `fault`, the file could not be read beyond `offset`.
    """

    spec: FileSpec
    file: int
    unit: int
    offset: int
    size: int = 0
    lines: bytes | bytearray = b""
    check_first: int = 0
    long: LongDocument | None = None
    part: str = ""
    is_first_part: bool = True
    is_last_part: bool = True
    refused: str = ""
    fault: InkstoneError | None = None


def digest_of(text: str) -> bytes:
    """Return the first 16 bytes of the sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).digest()[:DIGEST_BYTES]


def is_validation(digest: bytes, fraction: float) -> bool:
    """Return True if a document is held out. Its hash decides alone, so adding other documents never moves it."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def tasks(
    files: Sequence[tuple[InputFile, FileSpec]],
    boundary: re.Pattern[str] | None,
    next_unit: Callable[[int], int | None],
    is_full: Callable[[str], bool],
    advance: Advance,
) -> Iterator[TokenizeTask]:
    """Yield the tasks of all files in input order. `boundary` is the tokenizer's.

    `next_unit(file)` is the first unit to do of a file, None if there is none; `is_full(split)` ends a split early.

    Input errors are yielded as tasks so that they are raised in input order: reading runs ahead of encoding, and an
    error after the last wanted document must not depend on how far ahead.
    """
    for index, (entry, spec) in enumerate(files):
        first_unit = next_unit(index)
        if first_unit is None or is_full(spec.split):
            advance(entry.path.stat().st_size)
            continue
        last = TokenizeTask(spec, index, first_unit, 0)
        try:
            for task in _file_tasks(entry, last, boundary, advance):
                if is_full(spec.split):
                    break
                yield task
                last = task
        except BadData as error:
            yield TokenizeTask(spec, index, last.unit, last.offset, fault=error)
        except OSError as error:
            yield TokenizeTask(spec, index, last.unit, last.offset, fault=from_os_error(error))


def _file_tasks(
    entry: InputFile, start: TokenizeTask, boundary: re.Pattern[str] | None, advance: Advance
) -> Iterator[TokenizeTask]:
    """Yield the tasks of a file from unit `start.unit` on."""
    unit, lines = -1, 0
    for chunk in chunks.split_chunks(readers.read_json_lines(entry.path, advance)):
        if chunk.unit < start.unit:
            continue
        if chunk.unit != unit:
            require_unchanged(entry)  # before the previous unit is recorded as complete
            unit, lines = chunk.unit, 0
        check = max(0, _CHECK_FIRST - lines)
        if check:
            lines += chunk.data.count(b"\n")
        task = TokenizeTask(start.spec, start.file, unit, chunk.offset, len(chunk.data), check_first=check)
        if chunk.overlong:
            yield _overlong_line(entry, task, chunk)
        elif chunk.long:
            yield from _long_document(task, chunk.data, boundary)
        else:
            yield msgspec.structs.replace(task, lines=chunk.data)


def _overlong_line(entry: InputFile, task: TokenizeTask, chunk: Chunk) -> TokenizeTask:
    if not readers.has_many_documents(entry.path):
        raise BadData(
            f"{entry.path}: a text file is one document, and this one exceeds {jsonl.MAX_LINE_BYTES >> 20} MiB",
            hint="split it into several, or write its documents as JSON lines",
        )
    return msgspec.structs.replace(task, refused="bad-too-long", lines=chunk.data)


def _long_document(
    task: TokenizeTask, line: bytes | bytearray, boundary: re.Pattern[str] | None
) -> Iterator[TokenizeTask]:
    """Yield one long document in parts, or a single task that refuses it.

    The text is decoded twice: its length, hash and validity decide on the document before its first part is encoded.
    """
    characters, sha256 = 0, hashlib.sha256()
    try:
        text = chunks.LongText(line)
        for part in text.parts(boundary):
            characters += len(part)
            sha256.update(part.encode())
    except (Unbroken, *jsonl.DECODE_ERRORS) as error:
        reason = "bad-unbroken" if isinstance(error, Unbroken) else jsonl.reject_reason(error, line)
        yield msgspec.structs.replace(task, refused=reason, lines=line[: jsonl.COUNTED_BYTES])
        return
    digest = sha256.digest()[:DIGEST_BYTES]
    set_name = jsonl.pile_set_name(text.meta)
    long = LongDocument(characters, set_name, digest, task.spec.split_of(digest))
    task = msgspec.structs.replace(task, long=long)
    if reason := task.spec.filter.drop_reason(characters, set_name):
        yield msgspec.structs.replace(task, refused=reason)
        return
    decoded = 0
    for part in text.parts(boundary):
        is_first_part, decoded = not decoded, decoded + len(part)
        is_last_part = decoded == characters
        yield msgspec.structs.replace(task, part=part, is_first_part=is_first_part, is_last_part=is_last_part)
        task = msgspec.structs.replace(task, size=0)  # counted with the first part
