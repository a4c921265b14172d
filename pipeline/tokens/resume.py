"""Resuming a killed tokenize run: a record of each complete unit, and which of them are still valid."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from pipeline.runtime.ledger import Ledger
from pipeline.store import files
from pipeline.store.manifest import FileRecord

REJECTS = "rejects.jsonl.zst"
UNITS = "units.jsonl"
OPEN = "open-"  # and the stem of a unit: the folder in which it is written


class UnitDifferences(msgspec.Struct):
    """Differences between the texts of a unit and what their ids decode to.

    `unknown` is the number of unknown characters of each split, `rewritten` counts the rewrites of characters, and
    `changed` the validation documents, or parts of long ones, whose original text is kept.
    """

    unknown: dict[str, int] = {}
    rewritten: dict[str, int] = {}
    changed: int = 0

    def add(self, other: UnitDifferences) -> None:
        for counts, added in ((self.unknown, other.unknown), (self.rewritten, other.rewritten)):
            for name, count in added.items():
                counts[name] = counts.get(name, 0) + count
        self.changed += other.changed


class UnitRecord(msgspec.Struct):
    """Contents of one unit. The record is written after the unit's files, so its presence marks the unit complete."""

    file: int
    unit: int
    after: str = ""  # stem of the previous record; not published
    taken_over: bool = False  # it does not depend on the records before it; not published
    split: str = ""  # of the file: "train", "val", or "" if its documents are divided
    last: bool = False  # last unit of its file
    lines: int = 0
    input_bytes: int = 0
    compared: int = 0
    longest: int = 0  # tokens of the longest document
    tokens: dict[str, int] = {}
    documents: dict[str, int] = {}  # rows of each split; a document that is divided gives several
    characters: dict[str, int] = {}
    stretches: dict[str, int] = {}
    overlap: list[int] = []  # numbers of the validation texts that are among its training documents
    sets: dict[str, int] = {}
    files: list[FileRecord] = []
    scratch: list[FileRecord] = []
    ledger: Ledger = msgspec.field(default_factory=Ledger)
    differences: UnitDifferences | msgspec.UnsetType = msgspec.UNSET  # unset if there are none
    losses: dict[str, int] | msgspec.UnsetType = msgspec.UNSET  # ids with a loss of each split, of conversations

    @property
    def stem(self) -> str:
        return f"{self.file:05d}-{self.unit:04d}"

    @property
    def name(self) -> str:
        """File name of the record in the scratch folder."""
        return f"unit-{self.stem}.json"


def complete_units(
    scratch: Path, path_of: Callable[[str], Path], verified: Collection[str] = (), file: int | None = None
) -> Iterator[UnitRecord]:
    """Yield the records of the units that an earlier run completed, up to the first that is missing or damaged.

    `path_of` maps the name of a published file to its path in the draft. Units that were taken over, from another
    generation or another node, do not depend on earlier units, so they count even after a damaged one. The files of
    units whose stem is in `verified` are not checked. With `file`, only the units of that file count.
    """
    previous, following = "", (0, 0)
    for path in sorted(scratch.glob("unit-*.json" if file is None else f"unit-{file:05d}-*.json")):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=UnitRecord)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        follows = record.unit == 0 or (record.file, record.unit) == following
        continues = record.taken_over or record.after == previous
        is_valid = record.stem in verified or (continues and _is_intact(record, scratch, path_of))
        if follows and is_valid:
            previous, following = record.stem, (record.file, record.unit + 1)
            yield record


def _is_intact(record: UnitRecord, scratch: Path, path_of: Callable[[str], Path]) -> bool:
    """Return True if the files of a unit are those of its record."""
    outputs = [(path_of(file.name), file) for file in record.files]
    outputs += [(scratch / file.name, file) for file in record.scratch]
    return all(files.file_size(path) == file.size and files.sha256_of(path) == file.sha256 for path, file in outputs)
