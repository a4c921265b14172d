"""Status and verify: what there is, and whether it is as it was published. They only read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from pipeline import artifact, files, locks, raw
from pipeline.artifact import KINDS, Artifact
from pipeline.errors import BadData, InkstoneError


@dataclass(frozen=True)
class Row:
    """One name on the shelf. `state`: "current", "damaged", "unfinished" (a draft was left), "in use" (being built)."""

    ref: str
    state: str
    age_hours: float
    bytes: int
    summary: str


def status(root: Path) -> list[Row]:
    """Every raw source and every artifact below `root` with its current generation."""
    sources = sorted(path.parent for path in (root / "raw").glob(f"*/{raw.LOCK_FILE}"))
    rows = [_raw_row(root, folder) for folder in sources]
    for kind in KINDS:
        for shelf in sorted(path for path in (root / kind).glob("*") if path.is_dir()):
            link = shelf / "current"
            if link.is_symlink():
                rows.append(_current_row(root, link, f"{kind}/{shelf.name}/{os.readlink(link)}"))
            if drafts := list(shelf.glob(".draft-*")):
                state = "in use" if locks.is_locked(shelf / ".lock") else "unfinished"
                key = drafts[0].name.removeprefix(".draft-")
                rows.append(Row(f"{kind}/{shelf.name}/{key}", state, _age(drafts[0]), _size(drafts[0]), ""))
    return rows


def _current_row(root: Path, link: Path, ref: str) -> Row:
    try:
        return _row(artifact.read(link.resolve()), link.parent)
    except InkstoneError as error:  # one that cannot be read must not hide the others
        return Row(ref, "damaged", _age(link), 0, error.what)


def _row(found: Artifact, shelf: Path) -> Row:
    size = sum(record.size for record in found.manifest.files)
    state = "current" if not artifact.problems(found) else "damaged"
    older = len(list(shelf.glob(f"[!.]*/{artifact.MANIFEST}"))) - 2  # `current` is the same folder once more
    more = f", {older} older" if older > 0 else ""
    return Row(found.ref, state, _age(shelf / "current"), size, _summary(found) + more)


def _raw_row(root: Path, folder: Path) -> Row:
    try:
        pinned = raw.read_lock(root, folder.name)
    except BadData as error:
        return Row(f"raw/{folder.name}", "damaged", _age(folder), 0, error.what)
    size = sum(pin.size for pin in pinned.values())
    whole = all(files.size_of(folder / name) == pin.size for name, pin in pinned.items())
    state = "current" if whole else "damaged"
    return Row(f"raw/{folder.name}", state, _age(folder), size, f"{len(pinned)} files")


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
    """(name, what is wrong) of every raw source and every generation, or of those that `reference` names.

    A reference is a name (`shuihu`, of whatever kind), a kind and a name, both and a key, or the path of an artifact.
    """
    wanted = reference.removesuffix("/").removeprefix("raw/")
    any_found = False
    for name, check in _everything(root, deep):
        kind, own, *_ = name.split("/")
        if not reference or wanted in (name, own, f"{kind}/{own}", kind):
            any_found = True
            yield name, check()
    if reference and not any_found:
        found = artifact.read(Path(reference))
        yield found.ref, artifact.problems(found, deep=deep)


def _everything(root: Path, deep: bool) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """The name of each raw source and each generation, with the function that checks it."""
    for folder in sorted(path for path in (root / "raw").glob("*") if path.is_dir()):
        yield f"raw/{folder.name}", partial(_problems, partial(_raw_problems, root, folder, deep=deep))
    for path in artifact.generations(root):
        yield path.relative_to(root).as_posix(), partial(_problems, partial(_artifact_problems, path, deep))


def _problems(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except InkstoneError as error:  # torn manifests and lock files are what verify looks for
        return [error.what]


def _artifact_problems(path: Path, deep: bool) -> list[str]:
    return artifact.problems(artifact.read(path), deep=deep)


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


def age(row: Row) -> str:
    """The age of a row as a person says it."""
    if row.age_hours < 1:
        return f"{row.age_hours * 60:.0f} min"
    return f"{row.age_hours:.1f} h" if row.age_hours < 48 else f"{row.age_hours / 24:.0f} d"


def size(row: Row) -> str:
    """The size of a row in the largest unit that leaves a whole digit."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "KB"))
    return next((f"{row.bytes / unit:,.1f} {name}" for unit, name in units if row.bytes >= unit), f"{row.bytes} B")
