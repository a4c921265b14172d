"""Status and verify: what there is, whether it is as it was published, and how the refreshes go. They only read."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BadData, InkstoneError
from pipeline.refresh import state
from pipeline.sources import cache, catalogue
from pipeline.store import artifact, files, locks
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import KINDS


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
    sources = sorted(path.parent for path in (root / "raw").glob(f"*/{catalogue.LOCK_FILE}"))
    rows = [_raw_row(root, folder) for folder in sources]
    for kind in KINDS:
        for shelf in sorted(path for path in (root / kind).glob("*") if path.is_dir()):
            link = shelf / "current"
            if link.is_symlink():
                rows.append(_current_row(link, f"{kind}/{shelf.name}"))
            if drafts := list(shelf.glob(".draft-*")):
                state = "in use" if locks.is_locked(shelf / ".lock") else "unfinished"
                key = drafts[0].name.removeprefix(".draft-")
                rows.append(Row(f"{kind}/{shelf.name}/{key}", state, _age(drafts[0]), files.bytes_below(drafts[0]), ""))
    return rows


def _current_row(link: Path, name: str) -> Row:
    key = os.readlink(link)
    try:
        row = _row(artifact.read(link.parent / key), link.parent)
    except InkstoneError as error:  # one that cannot be read must not hide the others
        row = Row(f"{name}/{key}", "damaged", _age(link), 0, error.what)
    if row.state == "damaged" and os.readlink(link) != key:  # it was replaced and pruned while it was looked at
        return _current_row(link, name)
    return row


def _row(found: Artifact, shelf: Path) -> Row:
    size = sum(record.size for record in found.manifest.files)
    state = "current" if not artifact.problems(found) else "damaged"
    older = len(list(shelf.glob(f"[!.]*/{artifact.MANIFEST}"))) - 2  # `current` is the same folder once more
    more = f", {older} older" if older > 0 else ""
    return Row(found.ref, state, _age(shelf / "current"), size, _summary(found) + more)


def _raw_row(root: Path, folder: Path) -> Row:
    try:
        pinned = cache.read_lock(root, folder.name)
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
    """Hours since a change; 0 of what went away meanwhile, as what is being built does."""
    with suppress(FileNotFoundError):
        return max(0.0, time.time() - path.lstat().st_mtime) / 3600
    return 0.0


def as_dict(row: Row) -> dict[str, Any]:
    return {
        "artifact": row.ref,
        "state": row.state,
        "age_hours": round(row.age_hours, 2),
        "bytes": row.bytes,
        "summary": row.summary,
    }


def age(hours: float) -> str:
    """A length of time as a person says it."""
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} d"


def duration(seconds: float | None) -> str:
    """How long something will take; "?" where nobody knows."""
    if seconds is None:
        return "?"
    return f"{seconds:.0f} s" if seconds < 90 else age(seconds / 3600)


def size(count: int | None) -> str:
    """A number of bytes in the largest unit that leaves a whole digit; "?" where nobody knows."""
    if count is None:
        return "?"
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "KB"))
    return next((f"{count / unit:,.1f} {name}" for unit, name in units if count >= unit), f"{count} B")


@dataclass(frozen=True)
class Refresh:
    """How the refreshes of one recipe go. `running` says who does it now, "" for nobody; ages are in hours."""

    recipe: str
    running: str
    result: str
    exit_code: int
    error: str
    hint: str
    ended_hours: float | None
    success_hours: float | None

    def lines(self) -> list[str]:
        head = f"refresh {self.recipe}: "
        if self.running:
            return [f"{head}running, {self.running}"]
        if self.result == "running":
            return [f"{head}the last one was killed; the next one goes on — run it again"]
        good = "never" if self.success_hours is None else f"{age(self.success_hours)} ago"
        if self.result != "failed":
            return [f"{head}{self.result or 'built'}, last success {good}"]
        when = age(self.ended_hours or 0.0)
        return [f"{head}failed {when} ago, exit {self.exit_code}: {self.error} — {self.hint}; last success {good}"]


def refreshes(root: Path) -> list[Refresh]:
    """How the refreshes of each recipe go, from their states; asks for no lock."""
    found = []
    for recipe in state.names(root):
        kept, lock = state.read(root, recipe), state.lock_of(root, recipe)
        ended, good = state.age_hours(kept.ended), state.age_hours(kept.last_success)
        running = str(locks.holder(lock) or "by a process that does not say more") if locks.is_locked(lock) else ""
        found.append(Refresh(recipe, running, kept.result, kept.exit_code, kept.error, kept.hint, ended, good))
    return found


@dataclass(frozen=True)
class Checked:
    """What a monitor is told: Nagios's code (0 ok, 1 warning, 2 critical, 3 unknown) and one line."""

    code: int
    line: str


def check(root: Path, max_age: float) -> Checked:
    """Whether every recipe was refreshed within `max_age` hours, and nothing that is current is damaged."""
    found = refreshes(root)
    if not found:
        return Checked(3, f"UNKNOWN - nothing was ever refreshed in {root}")
    told = [(2, f"{row.ref} is damaged") for row in status(root) if row.state == "damaged"]
    for each in found:
        good = "never" if each.success_hours is None else f"{age(each.success_hours)} ago"
        what = f"{each.recipe}: last success {good}"
        late = each.success_hours is None or each.success_hours > max_age
        failed = each.result == "failed" or (each.result == "running" and not each.running)
        why = f", {each.error or 'the last run was killed'}" if failed else ", running" if each.running else ""
        told.append((2 if late else 1 if failed else 0, what + why))
    code = max(code for code, _ in told)
    word = ("OK", "WARNING", "CRITICAL")[code]
    said = "; ".join(what for _, what in sorted(told, reverse=True))
    ages = " ".join(f"{each.recipe}={each.success_hours or -1:.2f}h;;{max_age:g}" for each in found)
    return Checked(code, f"{word} - {said} | {ages}")
