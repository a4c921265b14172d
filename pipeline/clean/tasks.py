"""Files as tasks for cleaning: whole documents, as many as make up a piece, or one text in pieces of lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pipeline.clean import profiles
from pipeline.clean.options import CleanOptions
from pipeline.clean.utf16 import ENDS, join
from pipeline.readers import documents, readers
from pipeline.readers import encoding as decoding
from pipeline.readers.documents import Reject
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Advance
from pipeline.sources import inputs as raw

_HEAD, _FIRST = 100_000, 100  # characters by which a profile is told, and documents
PIECE = 350_000  # characters of a task: about a megabyte of Chinese
LONGEST_LINE = 16 << 20  # characters after which a piece is cut though no line ends


@dataclass
class Texts:
    """One file as tasks. What is bad goes to `ledger` and `on_reject`; `facts` and `profile` are known at its end."""

    entry: raw.InputFile
    options: CleanOptions
    ledger: Ledger
    on_reject: documents.OnReject
    facts: decoding.Facts = field(default_factory=decoding.Facts)
    profile: str = ""

    def tasks(self, advance: Advance) -> Iterator[Task]:
        if readers.has_lines(self.entry.path):
            yield from self._of_documents(advance)
        else:
            yield from self._of_text(advance)

    def _of_documents(self, advance: Advance) -> Iterator[Task]:
        """Whole documents, as many as make up a piece."""
        self.facts.encoding = "utf-8"
        found = readers.read(
            self.entry.path, self.ledger, self.on_reject, encoding=self.options.encoding, advance=advance
        )
        held: list[documents.Document] = []
        size = 0
        for document in found:
            held.append(document)
            size += len(document.text)
            if size >= PIECE:
                yield self._task(held)
                held, size = [], 0
        if held:
            yield self._task(held)

    def _task(self, held: Sequence[documents.Document]) -> Task:
        if not self.profile:
            head = "\n".join(each.text[:_HEAD] for each in held[:_FIRST])
            self.profile = profiles.of(self.entry.path.name, head, self.options.profile).name
        return Task(
            self.profile,
            self.entry.name,
            join([each.text for each in held]).units.tobytes(),
            sum(len(each.text) for each in held),
            [each.title for each in held],
            [each.meta for each in held],
            [each.line for each in held],
            [each.offset for each in held],
        )

    def _of_text(self, advance: Advance) -> Iterator[Task]:
        """One document, in pieces that end where a line does."""
        found = decoding.text(self.entry.path, self.facts, encoding=self.options.encoding, advance=advance)
        held, joint = "", "\n"
        continues = whole = False
        for piece in found:
            held = held + piece if held else piece
            if not self.profile and held.strip():
                chosen = profiles.of(self.entry.path.name, held[:_HEAD], self.options.profile)
                self.profile = chosen.name
                whole = _needs_all(chosen, self.options)
            begin = 0
            while len(held) - begin >= PIECE and not whole:
                cut = held.rfind("\n", begin, begin + PIECE) + 1 or held.find("\n", begin) + 1
                if not cut and len(held) - begin < LONGEST_LINE:
                    break
                cut = cut or max(held.rfind(mark, begin) for mark in ENDS) + 1 or len(held)
                yield self._piece(held[begin:cut], continues, joint, open=True)
                joint = "\n" if held[cut - 1] == "\n" and chosen.chinese else ""
                begin, continues = cut, True
            held = held[begin:]
        if self.facts.cut:
            self.ledger.documents.came += 1
            self.ledger.documents.drop("truncated-end", 1)
            excerpt = self.facts.cut.hex(" ")
            self.on_reject(Reject(self.entry.path.name, 0, self.facts.cut_at, "truncated-end", excerpt))
        if held or continues:
            yield self._piece(held, continues, joint, open=False)

    def _piece(self, text: str, continues: bool, joint: str, *, open: bool) -> Task:
        page = join([text]).units.tobytes()
        return Task(self.profile, self.entry.name, page, len(text), [""], [None], [1], [0], continues, joint, open)


def _needs_all(profile: profiles.Profile, options: CleanOptions) -> bool:
    """Whether a rule looks further than a line, so that a text cannot be cleaned in pieces."""
    unwraps = profile.unwrap if options.unwrap is None else options.unwrap
    return bool(
        profile.container
        or unwraps
        or profile.notes
        or options.notes
        or options.unit in ("paragraph", "sentence")  # which have the title of a heading that may be far before
        or options.verse != "inline"
        or options.dedup != "no"
    )


class Task(msgspec.Struct, frozen=True):
    """Texts of one file, column by column, the texts themselves as a page in UTF-16. `continues`: the first goes on
    where the task before stopped; `open`: the last goes on in the next."""

    profile: str
    file: str
    page: bytes
    characters: int  # of the texts, those of NUL too, which the page has not
    titles: list[str]
    metas: list[Any]
    lines: list[int]
    offsets: list[int]
    continues: bool = False
    joint: str = ""  # what stands between it and the text before, where it continues
    open: bool = False
