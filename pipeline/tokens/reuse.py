"""What an earlier generation has of the same input file goes into the new one as it is: hard links, no work.

    tokens/<name>/<old key>/train-00002-0000.bin  ══ same inode ══▶  tokens/<name>/<new key>/train-00003-0000.bin

A unit is taken over when its input file has the same content, name and role and everything else that decides its
bytes is equal, and when its files still have the sha256 that its record says. So one changed shard costs one shard.
Where a document depends on those before it (`--dedup`, `--max-documents`), nothing is taken over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import InkstoneError
from pipeline.store import artifact, files
from pipeline.store.generations import draft_path, generation_keys
from pipeline.store.manifest import FileRecord, Identity, Input, Manifest
from pipeline.tokens.units import REJECTS, UNITS, UnitRecord


def take_over(draft: Path, identity: Identity) -> list[UnitRecord]:
    """Put into `draft` every unit that a generation beside it, or a damaged one in `draft` itself, has already.

    Returns the records of those units, under their new numbers; `Assembly` finds them as if it had done them.
    """
    _forget_strangers(draft)
    if not _is_possible(identity):
        return []
    wanted = _files_of(identity.inputs)
    scratch = draft / artifact.SCRATCH
    scratch.mkdir(exist_ok=True)
    done = {path.name for path in scratch.glob("unit-*.json")}
    taken: list[UnitRecord] = []

    def is_done(file: int, unit: int) -> bool:
        return f"unit-{file:05d}-{unit:04d}.json" in done

    for donor in _donors(draft, identity):
        numbers = {entry: number for number, entry in enumerate(_files_of(donor.manifest.inputs))}
        records = donor.records()
        for new, entry in enumerate(wanted):
            old = numbers.get(entry)
            for record in records.get(old, []) if old is not None else []:
                if is_done(new, record.unit):
                    continue
                renumbered = _renumber(record, new)
                if (record.unit and not is_done(new, record.unit - 1)) or not donor.give(record, renumbered, draft):
                    break  # units are done in order: those after it are done anew with it
                data = msgspec.json.encode(renumbered)
                (scratch / f"unit-{renumbered.stem}.json").write_bytes(data)
                done.add(f"unit-{renumbered.stem}.json")
                taken.append(renumbered)
    return taken


def _forget_strangers(draft: Path) -> None:
    """Of a generation that was damaged after it was published, delete what somebody put there besides."""
    with suppress(InkstoneError):
        for name in artifact.unlisted(artifact.read(draft)):
            (draft / name).unlink()


def share_left(root: Path, identity: Identity) -> float:
    """The share of the input files of which no generation has the units: what is left to be done."""
    wanted = _files_of(identity.inputs)
    if not _is_possible(identity) or not wanted:
        return 1.0
    donors = _donors(draft_path(root, identity), identity)
    there = {entry for donor in donors for entry in _files_of(donor.manifest.inputs)}
    return sum(entry not in there for entry in wanted) / len(wanted)


def _is_possible(identity: Identity) -> bool:
    """Whether the units of one file do not depend on those of others."""
    return identity.options["dedup"] == "no" and not identity.options["max_documents"]


def _files_of(inputs: Sequence[Input]) -> list[tuple[str, str, str]]:
    """Role, name and digest of the input files, in the order of their numbers."""
    return [(each.role, each.name, each.digest) for each in inputs if each.role in ("train", "val")]


class _Donor:
    """A generation whose units may be taken over."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._rejects: dict[str, int] = {}  # where in the file of all rejects those of a unit begin

    def records(self) -> dict[int, list[UnitRecord]]:
        """Its units by the number of their file; none where it does not say, or says it in a torn file."""
        found: dict[int, list[UnitRecord]] = {}
        try:
            lines = (self.path / UNITS).read_bytes().splitlines()
            records = [msgspec.json.decode(line, type=UnitRecord) for line in lines]
            place = (self.path / REJECTS).stat().st_size
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return {}
        for record in reversed(records):
            if rejects := _rejects_of(record):
                place -= rejects.size
                self._rejects[record.stem] = place
        for record in records:
            found.setdefault(record.file, []).append(record)
        return found

    def give(self, record: UnitRecord, renumbered: UnitRecord, draft: Path) -> bool:
        """Link the files of a unit into `draft`. False where they are not as its record says."""
        try:
            rejects = self._read_rejects(record)
            for old, new in zip(record.files, renumbered.files, strict=True):
                source, target = self.path / old.name, draft / new.name
                if files.size_of(source) != old.size or files.sha256_of(source) != old.sha256:
                    return False
                if source != target:
                    target.unlink(missing_ok=True)
                    files.link_or_copy(source, target)
        except _Damaged:
            return False
        if rejects is not None:
            (draft / artifact.SCRATCH / f"rejects-{renumbered.stem}.jsonl.zst").write_bytes(rejects)
        return True

    def _read_rejects(self, record: UnitRecord) -> bytes | None:
        if (kept := _rejects_of(record)) is None:
            return None
        with open(self.path / REJECTS, "rb") as handle:
            handle.seek(max(self._rejects[record.stem], 0))
            data = handle.read(kept.size)
        if hashlib.sha256(data).hexdigest() != kept.sha256:
            raise _Damaged
        return data


class _Damaged(Exception):
    """What a record speaks of is not as it was."""


def _donors(draft: Path, identity: Identity) -> Iterator[_Donor]:
    """Generations made with the same options, tokenizer and libraries, the newest first."""
    shelf = draft.parent
    for folder in (draft, *(shelf / key for key in reversed(generation_keys(shelf)))):
        try:
            manifest = artifact.read(folder).manifest
        except InkstoneError:
            continue
        same = (manifest.tokenizer, manifest.libraries) == (identity.tokenizer, identity.versions())
        if same and _choices(manifest.options, manifest.inputs) == _choices(identity.options, identity.inputs):
            yield _Donor(folder, manifest)


def _choices(options: Mapping[str, Any], inputs: Sequence[Input]) -> bytes:
    """What was chosen that decides the bytes of a unit; with files to validate on, no other is divided."""
    has_val = any(each.role == "val" for each in inputs)
    chosen = {name: value for name, value in options.items() if name != "files"}
    return msgspec.json.encode([chosen, has_val], order="deterministic")


def _rejects_of(record: UnitRecord) -> FileRecord | None:
    return next((each for each in record.scratch if each.name.startswith("rejects-")), None)


def _renumber(record: UnitRecord, file: int) -> UnitRecord:
    """The record of the same unit of the same file under another number."""
    made = msgspec.structs.replace(record, file=file, taken_over=True)
    old, new = record.stem, made.stem
    made.files = [msgspec.structs.replace(each, name=each.name.replace(old, new)) for each in record.files]
    made.scratch = [msgspec.structs.replace(each, name=each.name.replace(old, new)) for each in record.scratch]
    return made
