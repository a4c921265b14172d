"""The options of `tokenize` that decide bytes."""

from __future__ import annotations

import msgspec

from pipeline.errors import BadConfig
from pipeline.runtime.ledger import DEFAULT_MAX_BAD
from pipeline.tokens.segments import FORMATS
from pipeline.tokens.split import MODES
from pipeline.tokens.tasks import DocumentFilter

DEDUP = ("no", "exact")


class TokenizeOptions(msgspec.Struct, frozen=True):
    """Options of the stage `tokenize`.

    `val_fraction` is the fraction of the text to hold out, chosen by a hash. None takes the fraction of the previous
    generation; the first generation takes 0.05, or 0 with a validation corpus. `val_split` is what is held out,
    "document" or "stretch"; "auto" takes the mode of the previous generation, and for the first one survey.py chooses.
    `allow_overlap` accepts a validation corpus even if most of it is trained on too, and `allow_unknown` a text with
    more than 5 % unknown characters. `max_documents` limits the training files and the validation files separately; 0
    sets no limit. `text_fields` names the fields that hold the text of a record; () chooses one. `dedup` "exact" keeps
    the first of equal texts in input order and takes about 110 bytes of memory per document.
    """

    format: str = "memmap"
    val_fraction: float | None = None
    max_bad: float = DEFAULT_MAX_BAD
    include_sets: tuple[str, ...] = ()
    exclude_sets: tuple[str, ...] = ()
    min_chars: int = 0
    max_documents: int = 0
    dedup: str = "no"
    val_split: str = "auto"
    allow_overlap: bool = False
    text_fields: tuple[str, ...] = ()
    allow_unknown: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise BadConfig(f"unknown format {self.format!r}", hint=f"formats: {', '.join(FORMATS)}")
        if not 0 <= (self.val_fraction or 0) < 1:
            raise BadConfig(f"--val-fraction must be in [0, 1), got {self.val_fraction}", hint="for example 0.05")
        for option, value in (("--min-chars", self.min_chars), ("--max-documents", self.max_documents)):
            if value < 0:
                raise BadConfig(f"{option} must be at least 0, got {value}", hint="pass 0 for no limit")
        if not 0 <= self.max_bad <= 1:
            raise BadConfig(f"--max-bad must be in [0, 1], got {self.max_bad:g}", hint="for example 0.01")
        if self.val_split not in MODES:
            raise BadConfig(
                f"--val-split must be one of {', '.join(MODES)}, got {self.val_split!r}", hint="omit it for auto"
            )
        if self.dedup not in DEDUP:
            raise BadConfig(
                f"--dedup must be one of {', '.join(DEDUP)}, got {self.dedup!r}", hint="omit it to keep duplicates"
            )
        if overlap := set(self.include_sets) & set(self.exclude_sets):
            raise BadConfig(f"{min(overlap)} is both included and excluded", hint="omit one of the two options")

    @property
    def document_filter(self) -> DocumentFilter:
        return DocumentFilter(tuple(sorted({*self.include_sets})), tuple(sorted({*self.exclude_sets})), self.min_chars)
