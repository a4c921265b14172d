"""Status and verify: what there is, and whether it is as it was published. They only read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline import artifact, files, raw
from pipeline.artifact import KINDS, Artifact


@dataclass(frozen=True)
class Row:
    """One name on the shelf. `state` is "current", "unfinished" (a draft was left) or "in use" (being built now)."""

    ref: str
    state: str
    age_hours: float
    bytes: int
    summary: str


def status(root: Path) -> list[Row]:
    """Every raw source and every artifact below `root` with its current generation."""
    rows = [_raw_row(root, folder.name) for folder in sorted((root / "raw").glob("*")) if folder.is_dir()]
    for kind in KINDS:
        for shelf in sorted(path for path in (root / kind).glob("*") if path.is_dir()):
            found = artifact.current(root, kind, shelf.name)
            if found:
                rows.append(_row(found, shelf))
            if drafts := list(shelf.glob(".draft-*")):
                state = "in use" if files.is_locked(shelf / ".lock") else "unfinished"
                key = drafts[0].name.removeprefix(".draft-")
                rows.append(Row(f"{kind}/{shelf.name}/{key}", state, _age(drafts[0]), _size(drafts[0]), ""))
    return rows


def _row(found: Artifact, shelf: Path) -> Row:
    size = sum(record.size for record in found.manifest.files)
    state = "current" if not artifact.problems(found) else "damaged"
    return Row(found.ref, state, _age(shelf / "current"), size, _summary(found))


def _raw_row(root: Path, source: str) -> Row:
    pinned = raw.read_lock(root, source)
    folder = raw.folder(root, source)
    size = sum(pin.size for pin in pinned.values())
    whole = all(
        (folder / name).is_file() and (folder / name).stat().st_size == pin.size for name, pin in pinned.items()
    )
    state = "current" if pinned and whole else "damaged" if pinned else "unfinished"
    return Row(f"raw/{source}", state, _age(folder), size, f"{len(pinned)} files")


def _summary(found: Artifact) -> str:
    counts = found.manifest.counts
    shown = {
        "corpora": ("documents", "characters"),
        "tokenizers": ("vocab_size",),
        "tokens": ("documents", "tokens"),
        "runs": ("steps", "parameters"),
    }[found.manifest.kind]
    return ", ".join(f"{counts[name]:,} {name}" for name in shown if name in counts)


def _age(path: Path) -> float:
    return max(0.0, time.time() - path.lstat().st_mtime) / 3600


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def verify(root: Path, reference: str = "", *, deep: bool = False) -> Iterator[tuple[str, list[str]]]:
    """(name, what is wrong) of the artifact that `reference` names, or of every raw source and every generation."""
    if reference:
        kind, _, rest = reference.partition("/")
        found = artifact.find(root, kind, rest) if kind in KINDS and rest else _any_kind(root, reference)
        yield found.ref, artifact.problems(found, deep=deep)
        return
    for folder in sorted((root / "raw").glob("*")):
        yield f"raw/{folder.name}", _raw_problems(root, folder, deep=deep)
    for found in artifact.generations(root):
        yield found.ref, artifact.problems(found, deep=deep)


def _any_kind(root: Path, reference: str) -> Artifact:
    """The newest artifact of this name, of whatever kind, or the one in the folder of this path."""
    for kind in reversed(KINDS):
        if artifact.current(root, kind, reference.partition("/")[0]):
            return artifact.find(root, kind, reference)
    return artifact.read(Path(reference))


def _raw_problems(root: Path, folder: Path, *, deep: bool) -> list[str]:
    found = []
    for name, pin in sorted(raw.read_lock(root, folder.name).items()):
        checked = msgspec.structs.replace(pin, mtime_ns=-1) if deep else pin
        if not raw.is_whole(folder / name, checked):
            found.append(f"{folder / name}: not the file that was downloaded")
    return found


def as_dict(row: Row) -> dict[str, Any]:
    return {
        "artifact": row.ref,
        "state": row.state,
        "age_hours": round(row.age_hours, 2),
        "bytes": row.bytes,
        "summary": row.summary,
    }
