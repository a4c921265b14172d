"""Unit records: what a complete unit of work wrote."""

from __future__ import annotations

import msgspec

from pipeline.runtime.ledger import Ledger
from pipeline.store.manifest import FileRecord

REJECTS = "rejects.jsonl.zst"
UNITS = "units.jsonl"


class UnitRecord(msgspec.Struct):
    """What was done of one unit. It is written last, so its presence says that the unit is done."""

    file: int
    unit: int
    after: str = ""  # the stem of the record before; not in what is published
    taken_over: bool = False  # from an earlier generation; not in what is published
    split: str = ""  # of the file: "train", "val" or "" for one that is divided
    last: bool = False  # of its file
    lines: int = 0
    input_bytes: int = 0
    compared: int = 0
    longest: int = 0  # tokens of its longest document
    tokens: dict[str, int] = {}
    documents: dict[str, int] = {}
    characters: dict[str, int] = {}
    sets: dict[str, int] = {}
    files: list[FileRecord] = []
    scratch: list[FileRecord] = []
    ledger: Ledger = msgspec.field(default_factory=Ledger)

    @property
    def stem(self) -> str:
        return f"{self.file:05d}-{self.unit:04d}"
