"""Files into tasks: a batch of complete documents, or a part of one long text.

A text file is cut at line ends into parts of about a megabyte, unless a rule needs all of it at once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from pipeline.clean import profiles, text_units
from pipeline.clean.chat.formats import HELD_OUT, Refused
from pipeline.clean.chat.kind import conversation_of
from pipeline.clean.chat.turns import TurnRole
from pipeline.clean.markup import titles
from pipeline.clean.options import CleanOptions
from pipeline.clean.profiles import HEAD_CHARACTERS
from pipeline.clean.rules import headings, order, print_layout, unwrap
from pipeline.clean.utf16 import SENTENCE_ENDS, join_documents
from pipeline.readers import documents, encoding, fields, readers
from pipeline.readers.fields import FieldChoice
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Advance
from pipeline.sources.inputs import InputFile

TASK_CHARACTERS = 350_000  # minimum of a task: about a megabyte of Chinese
MAX_LINE = 16 << 20  # characters after which a text without a line end is cut elsewhere


class CleanTask(msgspec.Struct, frozen=True):
    """Texts of one file, column by column. `page` is the texts as UTF-16, joined by NUL.

    If `by_document` is True, `profile` is for the Chinese texts, and the others have the profile `profiles.TEXT`.

    A text longer than a task is divided: `continues` is True if the first text continues that of the task before,
    `open` if the last text continues in the next task. `separator` is the text between a part and the part before it:
    the line end at which they were cut, or "".

    Of conversations, each turn is a text; `roles` has the role of each.
    """

    profile: str
    file: str
    page: bytes
    characters: int  # of the texts, including NULs, which the page does not contain
    titles: list[str]
    metas: list[Any]
    lines: list[int]
    offsets: list[int]
    continues: bool = False
    separator: str = ""
    open: bool = False
    by_document: bool = False
    roles: tuple[TurnRole, ...] = ()

    @property
    def starts(self) -> list[int]:
        """The indices of the texts with which a record begins."""
        if not self.roles:
            return list(range(len(self.lines)))
        return [index for index, role in enumerate(self.roles) if role.is_first]

    @property
    def records(self) -> int:
        """Number of records that begin in this task."""
        return 0 if self.continues else len(self.starts)


@dataclass
class TaskReader:
    """Reads one file into tasks. Bad documents go to `ledger` and `on_reject`.

    `stats` are complete once all tasks are read.
    """

    entry: InputFile
    options: CleanOptions
    ledger: Ledger
    on_reject: documents.OnReject
    note: documents.Note = documents.log_note
    stats: encoding.EncodingStats = field(default_factory=encoding.EncodingStats)

    def tasks(self, advance: Advance) -> Iterator[CleanTask]:
        """Yield the tasks of the file, and report the bytes that were read to `advance`."""
        if self.options.is_chat:
            yield from self._from_conversations(advance)
        elif readers.has_many_documents(self.entry.path):
            yield from self._from_documents(advance)
        else:
            yield from self._from_text(advance)

    @cached_property
    def _text_title(self) -> str:
        return titles.file_title(self.entry.path, self.entry.name)

    def _from_documents(self, advance: Advance) -> Iterator[CleanTask]:
        """Yield batches of complete documents."""
        batch: list[documents.Document] = []
        size = 0
        for document in self._documents(advance):
            batch.append(document)
            size += len(document.text)
            if size >= TASK_CHARACTERS:
                yield self._batch_task(batch)
                batch, size = [], 0
        if batch:
            yield self._batch_task(batch)

    def _documents(self, advance: Advance) -> Iterator[documents.Document]:
        self.stats.encoding = "utf-8"
        return readers.read_documents(
            self.entry.path,
            self.ledger,
            self.on_reject,
            encoding=self.options.encoding,
            text_fields=self.options.record_fields,
            members=self.entry.members,
            note=self.note,
            advance=advance,
        )

    def _from_conversations(self, advance: Advance) -> Iterator[CleanTask]:
        """Yield batches of conversations, each turn as a text. Raises BadData for a record of the other kind."""
        batch: list[documents.Document] = []
        roles: list[TurnRole] = []
        size = 0
        for record in self._documents(advance):
            location = f"{self.entry.path}, record {record.line:,}"
            try:
                turns = conversation_of(record.meta, self.options.profile, location)
            except Refused as reason:
                self._refuse(record, str(reason))
                continue
            meta, is_held_out = fields.meta_of(record.meta, FieldChoice()), record.meta.get(HELD_OUT) is True
            if is_held_out:
                meta = {**(meta if isinstance(meta, dict) else {"meta": meta} if meta else {}), HELD_OUT: True}
            for number, turn in enumerate(turns):
                batch.append(dataclasses.replace(record, text=turn.content, meta=meta))
                roles.append(TurnRole(turn.part, turn.role, not number, is_held_out))
                size += len(turn.content)
            if size >= TASK_CHARACTERS:
                yield msgspec.structs.replace(self._batch_task(batch), roles=tuple(roles))
                batch, roles, size = [], [], 0
        if batch:
            yield msgspec.structs.replace(self._batch_task(batch), roles=tuple(roles))

    def _refuse(self, record: documents.Document, reason: str) -> None:
        """Reject a record. The characters of its JSON are counted."""
        text = msgspec.json.encode(record.meta, enc_hook=str).decode()
        self.ledger.documents.record_dropped(reason, 1)
        self.ledger.characters.record_dropped(reason, len(text))
        excerpt = text[: documents.EXCERPT_CHARACTERS]
        self.on_reject(documents.Reject(record.file, record.line, record.offset, reason, excerpt))

    def _batch_task(self, batch: Sequence[documents.Document]) -> CleanTask:
        return CleanTask(
            profiles.for_records(self.options.profile, self.entry.path.name),
            self.entry.name,
            join_documents([document.text for document in batch]).units.tobytes(),
            sum(len(document.text) for document in batch),
            [document.title for document in batch],
            [document.meta for document in batch],
            [document.line for document in batch],
            [document.offset for document in batch],
            by_document=self.options.profile == "auto",
        )

    def _from_text(self, advance: Advance) -> Iterator[CleanTask]:
        """Yield one document in parts that end at line ends.

        Its profile follows from its first 100,000 characters, or from all of it if it is shorter.
        """
        blocks = encoding.read_text(self.entry.path, self.stats, encoding=self.options.encoding, advance=advance)
        head, blocks = _read_head(blocks)
        profile = profiles.PROFILES[profiles.for_text(self.options.profile, head.lstrip()[:HEAD_CHARACTERS])]
        is_indivisible = _needs_all(profile, self.options) or _is_wrapped(profile, self.options, head)
        text, separator, continues = "", "\n", False
        for block in itertools.chain([head], blocks):
            text = text + block if text else block
            start = 0
            if len(text) >= TASK_CHARACTERS and not (continues or is_indivisible) and profile.headings:
                is_indivisible = headings.has_weak_series(text[:TASK_CHARACTERS])
            while len(text) - start >= TASK_CHARACTERS and not is_indivisible:
                cut = text.rfind("\n", start, start + TASK_CHARACTERS) + 1 or text.find("\n", start) + 1
                if not cut and len(text) - start < MAX_LINE:
                    break
                cut = cut or max(text.rfind(mark, start) for mark in SENTENCE_ENDS) + 1 or len(text)
                yield self._part_task(profile, text[start:cut], continues, separator, open=True)
                separator = "\n" if text[cut - 1] == "\n" and profile.chinese else ""
                start, continues = cut, True
            text = text[start:]
        readers.count_losses(self.stats, self.entry.path.name, self.ledger, self.on_reject)
        if text or continues:
            yield self._part_task(profile, text, continues, separator, open=False)

    def _part_task(
        self, profile: profiles.Profile, text: str, continues: bool, separator: str, *, open: bool
    ) -> CleanTask:
        page = join_documents([text]).units.tobytes()
        return CleanTask(
            profile.name,
            self.entry.name,
            page,
            len(text),
            [self._text_title],
            [None],
            [1],
            [0],
            continues,
            separator,
            open,
        )


def _read_head(blocks: Iterator[str]) -> tuple[str, Iterator[str]]:
    """Return the blocks with the first `HEAD_CHARACTERS` after leading white space, joined, and the other blocks."""
    head: list[str] = []
    count = 0
    for block in blocks:
        head.append(block)
        count += len(block) if count else len(block.lstrip())
        if count >= HEAD_CHARACTERS:
            break
    return "".join(head), blocks


def _needs_all(profile: profiles.Profile, options: CleanOptions) -> bool:
    """Return True if a rule needs more context than a line, so that a text cannot be cleaned in parts."""
    unwraps = profile.unwrap if options.unwrap is None else options.unwrap
    return bool(
        profile.container
        or unwraps
        or profile.notes
        or options.notes
        or profile.unit_of(options.unit) in text_units.UNITS  # their titles and bounds depend on text far before them
        or options.verse != "inline"
        or options.dedup != "no"
        or options.decontaminate
    )


def _is_wrapped(profile: profiles.Profile, options: CleanOptions, head: str) -> bool:
    """Return True if the lines of a text that begins with `head` may be joined by default."""
    if unwrap.UNWRAP_WHERE_CLEAR not in order.before_headings(profile, options):
        return False
    head = head[:HEAD_CHARACTERS].replace("\r\n", "\n").replace("\r", "\n")
    return any(print_layout.suspects(join_documents([head])).values()) and print_layout.measure(head) is not None
