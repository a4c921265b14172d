"""From the files to tokenize to the pieces of work that are left of them, in the order of the input."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence

import msgspec

from pipeline.errors import BadData, InkstoneError, from_os_error
from pipeline.readers import jsonl, readers
from pipeline.readers import jsonl as records
from pipeline.runtime.progress import Advance
from pipeline.sources import inputs as raw
from pipeline.tokens import chunks as pieces
from pipeline.tokens.chunks import Piece, Unbroken

DIGEST_BYTES = 16

_CHECK_FIRST = 8  # documents of each unit


class Choice(msgspec.Struct, frozen=True):
    """Which documents are kept, by what can be seen on a document alone. Empty names no set; 0 no least length."""

    include_sets: tuple[str, ...] = ()
    exclude_sets: tuple[str, ...] = ()
    min_chars: int = 0

    def refuses(self, characters: int, set_name: str) -> str:
        """The reason to drop a document, "" for none."""
        if not characters:
            return "empty"
        if self.include_sets and set_name not in self.include_sets:
            return "set-not-included"
        if set_name in self.exclude_sets:
            return "set-excluded"
        return "too-short" if characters < self.min_chars else ""


class Job(msgspec.Struct, frozen=True):
    """What is the same for all pieces of a file.

    `split` is "train" or "val" when the whole file belongs there, "" to divide its documents by a hash of their text.
    `digests` asks for a hash of each document.
    """

    dtype: str
    file: str
    split: str
    val_fraction: float
    choice: Choice
    digests: bool

    @property
    def needs_digest(self) -> bool:
        return self.digests or bool(not self.split and self.val_fraction)

    def split_of(self, digest: bytes) -> str:
        return self.split or ("val" if is_validation(digest, self.val_fraction) else "train")


class Long(msgspec.Struct, frozen=True):
    """A document that is encoded in parts: all that is known of it before."""

    characters: int
    set_name: str
    digest: bytes
    split: str


class Task(msgspec.Struct, frozen=True):
    """One piece: lines that begin at byte `offset` of their file's text and are `size` bytes of it.

    `check_first` documents of it are compared, and one in 1,000 of the others. With `long` it is `part` of one
    document. With `refused` it is the beginning of a line that is not kept, and why. With `fault` the file could not
    be read on from there.
    """

    job: Job
    file: int
    unit: int
    offset: int
    size: int = 0
    lines: bytes | bytearray = b""
    check_first: int = 0
    long: Long | None = None
    part: str = ""
    first: bool = True
    final: bool = True
    refused: str = ""
    fault: InkstoneError | None = None


def digest_of(text: str) -> bytes:
    """The first 16 bytes of the sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).digest()[:DIGEST_BYTES]


def is_validation(digest: bytes, fraction: float) -> bool:
    """Whether a document is held out: by a hash of its content, so that adding others never moves it."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def tasks(
    work: Sequence[tuple[raw.InputFile, Job]],
    boundary: re.Pattern[str] | None,
    next_unit: Callable[[int], int | None],
    is_full: Callable[[str], bool],
    advance: Advance,
) -> Iterator[Task]:
    """Tasks of all files, in input order. `boundary` is the tokenizer's.

    `next_unit(file)` is the first unit still to do, None if there is none; `is_full(split)` ends a split early.

    What is wrong with a file comes as a task too, in its place: reading runs ahead of encoding, and whether a fault
    lies before or after the last document that is wanted must not depend on how far.
    """
    for number, (entry, job) in enumerate(work):
        first = next_unit(number)
        if first is None or is_full(job.split):
            advance(entry.path.stat().st_size)
            continue
        last = Task(job, number, first, 0)
        try:
            for task in _of_file(entry, last, boundary, advance):
                if is_full(job.split):
                    break
                yield task
                last = task
        except BadData as error:
            yield Task(job, number, last.unit, last.offset, fault=error)
        except OSError as error:
            yield Task(job, number, last.unit, last.offset, fault=from_os_error(error))


def _of_file(entry: raw.InputFile, start: Task, boundary: re.Pattern[str] | None, advance: Advance) -> Iterator[Task]:
    """The tasks of a file from unit `start.unit` on."""
    unit, lines = -1, 0
    for piece in pieces.cut(readers.json_lines(entry.path, advance)):
        if piece.unit < start.unit:
            continue
        if piece.unit != unit:
            raw.require_unchanged(entry)  # before the unit that ends here is recorded as done
            unit, lines = piece.unit, 0
        check = max(0, _CHECK_FIRST - lines)
        if check:
            lines += piece.data.count(b"\n")
        task = Task(start.job, start.file, unit, piece.offset, len(piece.data), check_first=check)
        if piece.overlong:
            yield _too_long(entry, task, piece)
        elif piece.long:
            yield from _parts(task, piece.data, boundary)
        else:
            yield msgspec.structs.replace(task, lines=piece.data)


def _too_long(entry: raw.InputFile, task: Task, piece: Piece) -> Task:
    if not readers.has_lines(entry.path):
        raise BadData(
            f"{entry.path}: a text file is one document, and this one has more than {jsonl.MAX_LINE >> 20} MiB",
            hint="split it into several, or write its documents as JSON lines",
        )
    return msgspec.structs.replace(task, refused="bad-too-long", lines=piece.data)


def _parts(task: Task, line: bytes | bytearray, boundary: re.Pattern[str] | None) -> Iterator[Task]:
    """One long document in parts, or the one task that says why it is not kept."""
    characters, digest = 0, hashlib.sha256()
    try:
        text = pieces.LongText(line)
        for part in text.parts(boundary):
            characters += len(part)
            digest.update(part.encode())
    except (Unbroken, *jsonl.UNREADABLE) as error:
        reason = "bad-unbroken" if isinstance(error, Unbroken) else jsonl.reason_of(error, line)
        yield msgspec.structs.replace(task, refused=reason, lines=line[: jsonl.SHOWN])
        return
    short = digest.digest()[:DIGEST_BYTES]
    name = records.set_name(text.meta)
    task = msgspec.structs.replace(task, long=Long(characters, name, short, task.job.split_of(short)))
    if reason := task.job.choice.refuses(characters, name):
        yield msgspec.structs.replace(task, refused=reason)
        return
    held: str | None = None
    first = True
    for part in text.parts(boundary):
        if held is not None:
            yield msgspec.structs.replace(task, part=held, first=first, final=False)
            first, task = False, msgspec.structs.replace(task, size=0)
        held = part
    yield msgspec.structs.replace(task, part=held or "", first=first)
