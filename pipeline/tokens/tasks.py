"""From the files to tokenize to the pieces of work that are left of them, in the order of the input."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

import msgspec

from pipeline.errors import BadData, from_os_error
from pipeline.readers import documents, readers, records
from pipeline.runtime.progress import Advance
from pipeline.sources import inputs as raw
from pipeline.tokens import chunks as pieces
from pipeline.tokens import worker as encode
from pipeline.tokens.chunks import Piece, Unbroken
from pipeline.tokens.worker import Job, Long, Task
from pipeline.tokens.writer import Assembly

_CHECK_FIRST = 8  # documents of each unit


def tasks(
    work: Sequence[tuple[raw.InputFile, Job]], boundary: re.Pattern[str] | None, assembly: Assembly, advance: Advance
) -> Iterator[Task]:
    """All pieces of all files that `assembly` does not have and still wants. `boundary` is the tokenizer's.

    What is wrong with a file comes as a task too, in its place: reading runs ahead of encoding, and whether a fault
    lies before or after the last document that is wanted must not depend on how far.
    """
    for number, (entry, job) in enumerate(work):
        first = assembly.next_unit(number)
        if first is None or assembly.is_full(job.split):
            advance(entry.path.stat().st_size)
            continue
        last = Task(job, number, first, 0)
        try:
            for task in _of_file(entry, last, boundary, advance):
                if assembly.is_full(job.split):
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
            f"{entry.path}: a text file is one document, and this one has more than {documents.MAX_LINE >> 20} MiB",
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
    except (Unbroken, *documents.UNREADABLE) as error:
        reason = "bad-unbroken" if isinstance(error, Unbroken) else documents.reason_of(error, line)
        yield msgspec.structs.replace(task, refused=reason, lines=line[: documents.SHOWN])
        return
    short = digest.digest()[: encode.DIGEST_BYTES]
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
