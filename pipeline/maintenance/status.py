"""Status of the artifacts folder: sources, artifacts and refreshes, for people and for monitors. Only reads."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BadData, InkstoneError
from pipeline.refresh import state
from pipeline.refresh.state import RefreshState
from pipeline.sources import cache
from pipeline.sources.walk import LOCK_FILE
from pipeline.store import artifact, files, locks
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import KINDS


@dataclass(frozen=True)
class StatusRow:
    """Status of one source or artifact.

    `state` is "current", "damaged", "unfinished" (a draft without a running build) or "in use" (being built).
    """

    ref: str
    state: str
    age_hours: float
    bytes: int
    summary: str


def status(root: Path) -> list[StatusRow]:
    """Return the status of every raw source and of every artifact's current generation and drafts below `root`."""
    sources = sorted(path.parent for path in (root / "raw").glob(f"*/{LOCK_FILE}"))
    rows = [_source_row(root, folder) for folder in sources]
    for kind in KINDS:
        for folder in sorted(path for path in (root / kind).glob("*") if path.is_dir()):
            link = folder / "current"
            if link.is_symlink():
                rows.append(_current_row(link, f"{kind}/{folder.name}"))
            if drafts := list(folder.glob(".draft-*")):
                draft_state = "in use" if locks.is_locked(folder / ".lock") else "unfinished"
                ref = f"{kind}/{folder.name}/{drafts[0].name.removeprefix('.draft-')}"
                rows.append(StatusRow(ref, draft_state, _age_hours(drafts[0]), files.folder_size(drafts[0]), ""))
    return rows


def _current_row(link: Path, name: str) -> StatusRow:
    key = os.readlink(link)
    try:
        row = _artifact_row(artifact.read(link.parent / key), link.parent)
    except InkstoneError as error:  # one unreadable artifact must not hide the others
        row = StatusRow(f"{name}/{key}", "damaged", _age_hours(link), 0, error.message)
    if row.state == "damaged" and os.readlink(link) != key:  # replaced and pruned in the meantime
        return _current_row(link, name)
    return row


def _artifact_row(current: Artifact, folder: Path) -> StatusRow:
    size = sum(record.size for record in current.manifest.files)
    current_state = "current" if not artifact.find_problems(current) else "damaged"
    older = len(list(folder.glob(f"[!.]*/{artifact.MANIFEST}"))) - 2  # `current` matches as well as its target
    suffix = f", {older} older" if older > 0 else ""
    return StatusRow(current.ref, current_state, _age_hours(folder / "current"), size, _summary(current) + suffix)


def _source_row(root: Path, folder: Path) -> StatusRow:
    try:
        pins = cache.read_lock_file(root, folder.name)
    except BadData as error:
        return StatusRow(f"raw/{folder.name}", "damaged", _age_hours(folder), 0, error.message)
    size = sum(pin.size for pin in pins.values())
    is_complete = all(files.file_size(folder / name) == pin.size for name, pin in pins.items())
    source_state = "current" if is_complete else "damaged"
    return StatusRow(f"raw/{folder.name}", source_state, _age_hours(folder), size, f"{len(pins)} files")


def _summary(current: Artifact) -> str:
    counts = current.manifest.counts
    names = {
        "corpora": ("documents", "characters"),
        "tokenizers": ("vocab_size",),
        "tokens": ("documents", "tokens"),
        "runs": ("steps", "parameters"),
    }[current.manifest.kind]
    return ", ".join(f"{counts[name]:,} {name}" for name in names if name in counts)


def _age_hours(path: Path) -> float:
    """Return the hours since the last change of `path`, or 0 if it was deleted in the meantime."""
    with suppress(FileNotFoundError):
        return max(0.0, time.time() - path.lstat().st_mtime) / 3600
    return 0.0


def as_dict(row: StatusRow) -> dict[str, Any]:
    return {
        "artifact": row.ref,
        "state": row.state,
        "age_hours": round(row.age_hours, 2),
        "bytes": row.bytes,
        "summary": row.summary,
    }


def duration(seconds: float | None) -> str:
    """Format a duration, such as "2 hours and 5 minutes"; "?" for an unknown one."""
    from datetime import timedelta

    import humanize

    if seconds is None:
        return "?"
    unit = "seconds" if seconds < 60 else "minutes" if seconds < 86_400 else "hours"
    return humanize.precisedelta(timedelta(seconds=seconds), minimum_unit=unit, format="%.0f")


def age(hours: float | None) -> str:
    """Format the time since an event, such as "2 hours ago"; "never" for None."""
    return "never" if hours is None else f"{duration(hours * 3600)} ago"


def size(count: int | None) -> str:
    """Format a number of bytes, such as "1.5 MB"; "?" for an unknown one."""
    import humanize

    return "?" if count is None else humanize.naturalsize(count)


@dataclass(frozen=True)
class RefreshStatus:
    """Status of a recipe's refreshes. `running` describes the process that runs one now, "" for none."""

    recipe: str
    running: str
    result: str
    exit_code: int
    error: str
    hint: str
    ended_hours: float | None
    success_hours: float | None

    def line(self) -> str:
        prefix = f"refresh {self.recipe}: "
        if self.running:
            return f"{prefix}running, {self.running}"
        if self.result == "running":
            return f"{prefix}the last run was killed; run it again to resume"
        success = f"last success {age(self.success_hours)}"
        if self.result != "failed":
            return f"{prefix}{self.result or 'built'}, {success}"
        ended = age(self.ended_hours or 0.0)
        return f"{prefix}failed {ended}, exit {self.exit_code}: {self.error} — {self.hint}; {success}"


def refreshes(root: Path) -> list[RefreshStatus]:
    """Return the status of each recipe's refreshes. Takes no lock."""
    statuses = []
    for recipe in state.recipe_names(root):
        lock = state.lock_of(root, recipe)
        try:
            record = state.read(root, recipe)
        except BadData as error:  # one unreadable record must not hide the others
            record = RefreshState(
                recipe, result="failed", exit_code=error.exit_code, error=error.message, hint=error.hint
            )
        running = str(locks.current_holder(lock) or "by an unknown process") if locks.is_locked(lock) else ""
        statuses.append(
            RefreshStatus(
                recipe,
                running,
                record.result,
                record.exit_code,
                record.error,
                record.hint,
                state.age_hours(record.ended),
                state.age_hours(record.last_success),
            )
        )
    return statuses


@dataclass(frozen=True)
class CheckResult:
    """Result for a monitor: Nagios's code (0 ok, 1 warning, 2 critical, 3 unknown) and one line."""

    code: int
    line: str


def check(root: Path, max_age: float) -> CheckResult:
    """Check that every recipe was refreshed within `max_age` hours and that no current artifact is damaged."""
    recipes = refreshes(root)
    if not recipes:
        return CheckResult(3, f"UNKNOWN - nothing was ever refreshed in {root}")
    results = [(2, f"{row.ref} is damaged") for row in status(root) if row.state == "damaged"]
    for recipe in recipes:
        is_late = recipe.success_hours is None or recipe.success_hours > max_age
        has_failed = recipe.result == "failed" or (recipe.result == "running" and not recipe.running)
        cause = ""
        if has_failed:
            cause = f", {recipe.error or 'the last run was killed'}"
        elif recipe.running:
            cause = ", running"
        message = f"{recipe.recipe}: last success {age(recipe.success_hours)}{cause}"
        results.append((2 if is_late else 1 if has_failed else 0, message))
    code = max(code for code, _ in results)
    label = ("OK", "WARNING", "CRITICAL")[code]
    messages = "; ".join(message for _, message in sorted(results, reverse=True))
    # Performance data of the Nagios plugin guidelines: label=value;warning;critical.
    ages = " ".join(f"{recipe.recipe}={recipe.success_hours or -1:.2f}h;;{max_age:g}" for recipe in recipes)
    return CheckResult(code, f"{label} - {messages} | {ages}")
