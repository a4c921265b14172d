"""Read the files to tokenize into tasks, in input order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence

import msgspec

from pipeline.errors import BadData, InkstoneError, from_os_error
from pipeline.readers import jsonl, readers
from pipeline.readers.documents import Note, log_note
from pipeline.runtime.progress import Advance
from pipeline.sources.inputs import InputFile, require_unchanged
from pipeline.tokens import chunks
from pipeline.tokens.chunks import Chunk, LongText, Unbroken, last_boundary
from pipeline.tokens.split import DIGEST_BYTES, MARKED, SplitRule, draw_of, drawn_stretches

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

    `split` is "train" or "val" if all documents of the file belong there, "" to divide them by `rule`. With `digests`,
    each document gets its hash. `chat` is "chat" or "preferences" if documents are conversations or pairs of them.
    """

    dtype: str
    file: str
    split: str
    rule: SplitRule | None
    filter: DocumentFilter
    digests: bool
    chat: str = ""

    @property
    def stretch_rule(self) -> SplitRule | None:
        """The rule if it divides documents into stretches, else None."""
        return self.rule if self.rule and self.rule.mode == "stretch" and not self.split else None

    @property
    def needs_digest(self) -> bool:
        return self.digests or bool(not self.split and self.rule and self.rule.mode == "document")

    def split_of(self, digest: bytes, *, is_marked: bool = False) -> str:
        """Return the split of a complete document with this hash; `is_marked` if its record says to hold it out."""
        if self.rule and self.rule.mode == MARKED.mode and not self.split:
            return "val" if is_marked else "train"
        return self.split or (self.rule.split_of(draw_of(digest)) if self.rule else "train")


class LongDocument(msgspec.Struct, frozen=True):
    """A document that is encoded in parts: its properties, known before the first part is encoded."""

    characters: int
    set_name: str
    digest: bytes


class Part(msgspec.Struct, frozen=True):
    """Part of a long document, in one split. The last part of a row, a document of that split, is followed by
    end-of-text and counts the stretches of the row.
    """

    split: str
    text: str
    ends_row: bool = False
    stretches: int = 0


class TokenizeTask(msgspec.Struct, frozen=True):
    """One chunk: `size` bytes of lines from byte `offset` of the text of input file `file`.

    The first `check_first` documents are compared with the reference encoder, and one in 1,000 of the others. With
    `long`, the task is `parts` of a document. With `refused`, `lines` is the beginning of a line that is rejected
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
    parts: tuple[Part, ...] = ()
    is_first: bool = True  # of the tasks of a long document
    is_last: bool = True
    refused: str = ""
    fault: InkstoneError | None = None


def tasks(
    files: Sequence[tuple[int, InputFile, FileSpec]],
    boundary: re.Pattern[str] | None,
    next_unit: Callable[[int], int | None],
    is_full: Callable[[str], bool],
    advance: Advance,
    text_fields: tuple[str, ...] = (),
    note: Note = log_note,
) -> Iterator[TokenizeTask]:
    """Yield the tasks of all files, each with its number, in order. `boundary` is the tokenizer's, `text_fields` hold
    the texts.

    `next_unit(file)` is the first unit to do of a file, None if there is none; `is_full(split)` ends a split early.

    Input errors are yielded as tasks so that they are raised in input order: reading runs ahead of encoding, and an
    error after the last wanted document must not depend on how far ahead.
    """
    for index, entry, spec in files:
        first_unit = next_unit(index)
        if first_unit is None or is_full(spec.split):
            advance(entry.path.stat().st_size)
            continue
        last = TokenizeTask(spec, index, first_unit, 0)
        try:
            blocks = readers.read_json_lines(
                entry.path, advance, text_fields=text_fields, members=entry.members, note=note
            )
            for task in _file_tasks(entry, last, boundary, blocks):
                if is_full(spec.split):
                    break
                yield task
                last = task
        except BadData as error:
            yield TokenizeTask(spec, index, last.unit, last.offset, fault=error)
        except OSError as error:
            yield TokenizeTask(spec, index, last.unit, last.offset, fault=from_os_error(error))


def _file_tasks(
    entry: InputFile, start: TokenizeTask, boundary: re.Pattern[str] | None, blocks: Iterator[bytes]
) -> Iterator[TokenizeTask]:
    """Yield the tasks of a file from unit `start.unit` on."""
    unit, lines = -1, 0
    for chunk in chunks.split_chunks(blocks):
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
        elif chunk.long and task.spec.chat:  # a conversation is not encoded in parts
            yield msgspec.structs.replace(task, refused="bad-too-long", lines=chunk.data[: jsonl.COUNTED_BYTES])
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
        text = LongText(line)
        for part in _whole_parts(text, task.spec, boundary):
            characters += len(part)
            sha256.update(part.encode())
    except (Unbroken, *jsonl.DECODE_ERRORS) as error:
        reason = "bad-unbroken" if isinstance(error, Unbroken) else jsonl.reject_reason(error, line)
        yield msgspec.structs.replace(task, refused=reason, lines=line[: jsonl.COUNTED_BYTES])
        return
    set_name, digest = jsonl.pile_set_name(text.meta), sha256.digest()[:DIGEST_BYTES]
    task = msgspec.structs.replace(task, long=LongDocument(characters, set_name, digest))
    if reason := task.spec.filter.drop_reason(characters, set_name):
        yield msgspec.structs.replace(task, refused=reason)
        return
    decoded = 0
    for parts in _grouped(_parts(text, task.spec, digest, boundary)):
        is_first, decoded = not decoded, decoded + sum(len(part.text) for part in parts)
        yield msgspec.structs.replace(task, parts=parts, is_first=is_first, is_last=decoded == characters)
        task = msgspec.structs.replace(task, size=0)  # counted with the first part


def _whole_parts(text: LongText, spec: FileSpec, boundary: re.Pattern[str] | None) -> Iterator[str]:
    """Yield a text in parts, to learn whether it can be encoded in parts. Raises as `_parts` does."""
    if boundary or not (rule := spec.stretch_rule):
        return text.parts(boundary)
    return (part.text for part in _divided_parts(text, rule, boundary))


def _parts(text: LongText, spec: FileSpec, digest: bytes, boundary: re.Pattern[str] | None) -> Iterator[Part]:
    """Yield a long document in parts that end at a boundary of the tokenizer or at the end of a row.

    Raises Unbroken, and msgspec.DecodeError or UnicodeDecodeError for an invalid string.
    """
    if rule := spec.stretch_rule:
        yield from _divided_parts(text, rule, boundary)
        return
    split, previous = spec.split_of(digest), ""
    for part in text.parts(boundary):
        if previous:
            yield Part(split, previous)
        previous = part
    if previous:
        yield Part(split, previous, ends_row=True)


def _divided_parts(text: LongText, rule: SplitRule, boundary: re.Pattern[str] | None) -> Iterator[Part]:
    """Yield a long document in the rows of its stretches: consecutive ones of one split are a row."""
    split, count = "", 0  # of the open row: its split and its stretches
    row: list[str] = []  # its text after the last part
    characters = searched = 0  # of `row`: all, and those without a boundary
    for side, _, stretch in drawn_stretches(text.blocks(), rule):
        if row and side != split:
            yield Part(split, "".join(row), ends_row=True, stretches=count)
            row, count, characters, searched = [], 0, 0, 0
        elif boundary and characters - searched >= _part_characters():  # more of this row follows, so it may be cut
            joined = "".join(row)
            if end := last_boundary(boundary, joined):
                yield Part(split, joined[:end])
            row, characters = [joined[end:]], characters - end
            searched = characters
        elif not boundary and characters > chunks.MAX_UNBROKEN:
            raise Unbroken
        split = side
        row.append(stretch.decode())
        count, characters = count + 1, characters + len(row[-1])
    if row:
        yield Part(split, "".join(row), ends_row=True, stretches=count)


def _grouped(parts: Iterator[Part]) -> Iterator[tuple[Part, ...]]:
    """Group short parts, so that a task is worth sending to a worker."""
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if sum(len(part.text) for part in group) >= _part_characters():
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)


def _part_characters() -> int:
    """Return the minimum number of characters of a task; four or more escaped bytes of JSON may be one character."""
    return chunks.PART_BYTES // 4
