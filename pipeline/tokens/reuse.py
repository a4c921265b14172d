"""Reuse units of earlier generations by hard links.

    tokens/<name>/<old key>/train-00002-0000.bin  ══ same inode ══▶  tokens/<name>/<new key>/train-00003-0000.bin

A unit is reused if its input file has the same content, name and role, if everything else that decides its bytes is
equal, if its record is the published one, and if its files still have the sha256 of that record. So after a change of
one file, only that file is encoded again. With `--dedup` or `--max-documents` a document depends on those before it,
and nothing is reused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import InkstoneError
from pipeline.runtime.terminal import counted
from pipeline.store import artifact, code, files
from pipeline.store.generations import draft_path, generation_keys
from pipeline.store.manifest import FileRecord, Identity, Input, Manifest
from pipeline.tokens.resume import REJECTS, UNITS, UnitRecord
from pipeline.tokens.segments import SPLITS

_TRAINS = "trains a tokenizer, whose fingerprint is part of the key"
CODE = code.Code(
    (
        *("pipeline/tokens", "pipeline/tokenizers", "pipeline/readers"),
        *("pipeline/runtime/ledger.py", "pipeline/runtime/workers.py"),
    ),
    code.HARMLESS
    | {
        "pipeline/tokenizers/byte_level.py": _TRAINS,
        "pipeline/tokenizers/sentencepiece_training.py": _TRAINS,
        "pipeline/tokenizers/stage.py": _TRAINS,
        "pipeline/tokenizers/training_text.py": _TRAINS,
        "pipeline/tokenizers/ranks.py": "fetches files whose hashes are checked",
        "pipeline/tokens/counting.py": "another stage",
        "pipeline/tokens/locate.py": "reads tokens",
        "pipeline/tokens/store.py": "reads tokens",
    },
)


def reuse_units(draft: Path, identity: Identity) -> list[UnitRecord]:
    """Link into `draft` every unit that another generation, or a damaged one in `draft` itself, already has.

    Returns the records of those units under their new file numbers. `TokenWriter` resumes after them as if this run
    had written them.
    """
    _remove_unlisted(draft)
    if not _is_reusable(identity):
        return []
    scratch = draft / artifact.SCRATCH
    scratch.mkdir(exist_ok=True)
    complete = {path.name for path in scratch.glob("unit-*.json")}
    reused: list[UnitRecord] = []

    for generation in _generations(draft, identity):
        old_files = {entry: index for index, entry in enumerate(_files_of(generation.manifest.inputs))}
        units = generation.units()
        for file, entry in enumerate(_files_of(identity.inputs)):
            for record in units.get(old_files[entry], []) if entry in old_files else []:
                renumbered = _renumber(record, file)
                if renumbered.name in complete:
                    continue
                previous = UnitRecord(file, record.unit - 1)
                follows = not record.unit or previous.name in complete
                if not follows or not generation.link_unit(record, renumbered, draft):
                    break  # units are written in order, so this one and those after it are encoded again
                (scratch / renumbered.name).write_bytes(msgspec.json.encode(renumbered))
                complete.add(renumbered.name)
                reused.append(renumbered)
    return reused


def describe(reused: Sequence[UnitRecord]) -> str:
    """Return which units are reused: "reusing 12 units of 4 unchanged files"."""
    files_of_units = {record.file for record in reused}
    return f"reusing {counted(len(reused), 'units')} of {counted(len(files_of_units), 'unchanged files')}"


def _remove_unlisted(draft: Path) -> None:
    """Delete files that the manifest does not list, if the draft is a published generation that was damaged."""
    with suppress(InkstoneError):
        for name in artifact.unlisted_files(artifact.read(draft)):
            (draft / name).unlink()


def remaining_fraction(root: Path, identity: Identity) -> float:
    """Return the fraction of the input files that no generation has units of: the work that remains."""
    entries = _files_of(identity.inputs)
    if not _is_reusable(identity) or not entries:
        return 1.0
    generations = _generations(draft_path(root, identity), identity)
    reusable = {entry for generation in generations for entry in _files_of(generation.manifest.inputs)}
    return sum(entry not in reusable for entry in entries) / len(entries)


def _is_reusable(identity: Identity) -> bool:
    """Return True if the units of one file do not depend on those of other files."""
    return identity.options["dedup"] == "no" and not identity.options["max_documents"]


def _files_of(inputs: Sequence[Input]) -> list[tuple[str, str, str]]:
    """Return role, name and digest of the input files, in the order of their numbers."""
    return [(entry.role, entry.name, entry.digest) for entry in inputs if entry.role in SPLITS]


class ReusableGeneration:
    """A generation whose units may be reused."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._reject_offsets: dict[str, int] = {}  # stem of a unit → offset of its rejects in the file of all rejects

    def units(self) -> dict[int, list[UnitRecord]]:
        """Return the units by file number; empty if their list cannot be read, or is not the published one."""
        try:
            data = (self.path / UNITS).read_bytes()
            records = [msgspec.json.decode(line, type=UnitRecord) for line in data.splitlines()]
            offset = (self.path / REJECTS).stat().st_size
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return {}
        published = {file.name: file.sha256 for file in self.manifest.files}
        if hashlib.sha256(data).hexdigest() != published.get(UNITS):
            return {}
        for record in reversed(records):
            if rejects := _rejects_of(record):
                offset -= rejects.size
                self._reject_offsets[record.stem] = offset
        units: dict[int, list[UnitRecord]] = {}
        for record in records:
            units.setdefault(record.file, []).append(record)
        return units

    def link_unit(self, record: UnitRecord, renumbered: UnitRecord, draft: Path) -> bool:
        """Link the files of a unit into `draft`. Returns False if they do not match its record."""
        rejects = _rejects_of(record)
        frames = self._read_rejects(record, rejects) if rejects else b""
        if rejects and hashlib.sha256(frames).hexdigest() != rejects.sha256:
            return False
        for old, new in zip(record.files, renumbered.files, strict=True):
            source, target = self.path / old.name, draft / new.name
            if files.file_size(source) != old.size or files.sha256_of(source) != old.sha256:
                return False
            if source != target:
                target.unlink(missing_ok=True)
                files.link_or_copy(source, target)
        if rejects:
            (draft / artifact.SCRATCH / f"rejects-{renumbered.stem}.jsonl.zst").write_bytes(frames)
        return True

    def _read_rejects(self, record: UnitRecord, rejects: FileRecord) -> bytes:
        with open(self.path / REJECTS, "rb") as handle:
            handle.seek(max(self._reject_offsets[record.stem], 0))
            return handle.read(rejects.size)


def _generations(draft: Path, identity: Identity) -> Iterator[ReusableGeneration]:
    """Yield the generations made with the same options, tokenizer, libraries and code, the newest first."""
    folder = draft.parent
    for path in (draft, *(folder / key for key in reversed(generation_keys(folder)))):
        try:
            manifest = artifact.read(path).manifest
        except InkstoneError:
            continue
        tools = (identity.tokenizer, identity.versions(), identity.code.edited)
        same_tools = (manifest.tokenizer, manifest.libraries, manifest.code) == tools
        if same_tools and _settings(manifest.options, manifest.inputs) == _settings(identity.options, identity.inputs):
            yield ReusableGeneration(path, manifest)


def _settings(options: Mapping[str, Any], inputs: Sequence[Input]) -> bytes:
    """Return the settings that decide the record of a unit.

    They include the validation files, because a record lists the validation texts that its unit trains on.
    """
    val = [entry.digest for entry in inputs if entry.role == "val"]
    settings = {name: value for name, value in options.items() if name != "files"}
    return msgspec.json.encode([settings, val], order="deterministic")


def _rejects_of(record: UnitRecord) -> FileRecord | None:
    return next((file for file in record.scratch if file.name.startswith("rejects-")), None)


def _renumber(record: UnitRecord, file: int) -> UnitRecord:
    """Return the record of the same unit under another file number."""
    renumbered = msgspec.structs.replace(record, file=file, taken_over=True)
    old, new = record.stem, renumbered.stem
    renumbered.files = [msgspec.structs.replace(entry, name=entry.name.replace(old, new)) for entry in record.files]
    renumbered.scratch = [msgspec.structs.replace(entry, name=entry.name.replace(old, new)) for entry in record.scratch]
    return renumbered
