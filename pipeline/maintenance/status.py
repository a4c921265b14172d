"""Status of the artifacts folder: sources, artifacts and refreshes, for people and for monitors. Only reads."""

from __future__ import annotations

import csv
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pipeline.errors import BadData, InkstoneError, from_os_error
from pipeline.refresh import state
from pipeline.report import page, reports
from pipeline.runtime.regular_file import not_regular, read_regular
from pipeline.runtime.terminal import counted
from pipeline.sources import cache
from pipeline.sources.walk import LOCK_FILE
from pipeline.store import artifact, files, locks
from pipeline.store.artifact import Artifact
from pipeline.store.generations import current_key, read_run_info, shelves
from pipeline.store.leftovers import leftovers
from pipeline.store.manifest import MANIFEST


@dataclass(frozen=True)
class StatusRow:
    """Status of one source or artifact.

    `state` is "current", "damaged", "unfinished" (a draft without a running build), "in use" (being built) or
    "leftover" (of a killed command). `curve` are the bits per character at the evaluations of a run, in order.
    """

    ref: str
    state: str
    age_hours: float
    bytes: int
    summary: str
    curve: tuple[float, ...] = ()


def status(root: Path) -> list[StatusRow]:
    """Return the status of every raw source, every artifact's current generation and drafts, reports and leftovers.

    Raises OSError for a folder that may not be read.
    """
    raw = root / "raw"
    sources = sorted(path for path in raw.iterdir() if os.path.lexists(path / LOCK_FILE)) if raw.is_dir() else ()
    rows = [_source_row(root, folder) for folder in sources]
    for shelf in shelves(root):
        name = f"{shelf.parent.name}/{shelf.name}"
        link = shelf / "current"
        if link.is_symlink():
            rows.append(_current_row(link, name))
        elif os.path.lexists(link):
            error = not_regular(link, "a link to a generation")
            rows.append(StatusRow(name, "damaged", _age_hours(link), 0, error.message))
        if drafts := sorted(shelf.glob(".draft-*")):
            draft_state = "in use" if locks.is_locked(shelf / ".lock") else "unfinished"
            rows += [
                _leftover_row(draft, f"{name}/{draft.name.removeprefix('.draft-')}", draft_state) for draft in drafts
            ]
    rows += [_report_row(root, path) for path in reports.paths(root)]
    prune = "left by a killed command; `prune` deletes it"
    return rows + [_leftover_row(path, str(path.relative_to(root)), "leftover", prune) for path in leftovers(root)]


def _leftover_row(path: Path, ref: str, row_state: str, summary: str = "") -> StatusRow:
    size = files.folder_size(path) if path.is_dir() else files.file_size(path) or 0
    return StatusRow(ref, row_state, _age_hours(path), size, summary)


@dataclass(frozen=True)
class Publication:
    """A generation that was published in the last 24 hours."""

    ref: str
    age_hours: float


def publications(root: Path) -> list[Publication]:
    """Return the generations that were published in the last 24 hours, the newest first."""
    ages = ((folder, state.age_hours(read_run_info(folder).finished)) for folder in artifact.generations(root))
    recent = [Publication(folder.relative_to(root).as_posix(), hours) for folder, hours in ages if hours is not None]
    return sorted((entry for entry in recent if entry.age_hours < 24), key=lambda entry: entry.age_hours)


def store_size(root: Path) -> int:
    """Return the bytes of all files below `root`; a file with several hard links counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for top, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):  # deleted meanwhile
                file = os.lstat(Path(top, name))
                sizes[file.st_dev, file.st_ino] = file.st_size
    return sum(sizes.values())


def _current_row(link: Path, name: str) -> StatusRow:
    key = current_key(link.parent)
    try:
        row = _artifact_row(artifact.read(link.parent / key), link.parent)
    except InkstoneError as error:  # one unreadable artifact must not hide the others
        row = StatusRow(f"{name}/{key}", "damaged", _age_hours(link), 0, error.message)
    if row.state == "damaged" and current_key(link.parent) != key:  # replaced and pruned in the meantime
        return _current_row(link, name)
    return row


def _artifact_row(current: Artifact, folder: Path) -> StatusRow:
    size = sum(record.size for record in current.manifest.files)
    current_state = "current" if not artifact.find_problems(current) else "damaged"
    summary, curve = _summary(current), tuple[float, ...]()
    if current.manifest.kind == "runs" and current_state == "current":
        summary, curve = summary + _quality(current), _curve(current)
    older = len(list(folder.glob(f"[!.]*/{MANIFEST}"))) - 2  # `current` matches as well as its target
    suffix = f", {older} older" if older > 0 else ""
    return StatusRow(current.ref, current_state, _age_hours(folder / "current"), size, summary + suffix, curve)


def _report_row(root: Path, path: Path) -> StatusRow:
    """Return the row of a report; the summary says if a generation that it describes is no longer current."""
    ref = path.relative_to(root).as_posix()
    try:
        content = read_regular(path)
    except (OSError, BadData) as error:
        return StatusRow(ref, "damaged", _age_hours(path), 0, str(error))
    older = reports.outdated_refs(root, content)
    summary = f"about {', '.join(page.refs_of(content))}" + (f"; {len(older)} no longer current" if older else "")
    return StatusRow(ref, "current" if page.is_intact(content) else "damaged", _age_hours(path), len(content), summary)


def _source_row(root: Path, folder: Path) -> StatusRow:
    try:
        pins = cache.read_lock_file(root, folder.name)
    except BadData as error:
        return StatusRow(f"raw/{folder.name}", "damaged", _age_hours(folder), 0, error.message)
    size = sum(pin.size for pin in pins.values())
    is_complete = all(files.file_size(folder / name) == pin.size for name, pin in pins.items())
    source_state = "current" if is_complete else "damaged"
    return StatusRow(f"raw/{folder.name}", source_state, _age_hours(folder), size, counted(len(pins), "files"))


def _summary(current: Artifact) -> str:
    counts = current.manifest.counts
    names = {
        "corpora": ("documents", "characters"),
        "tokenizers": ("vocab_size",),
        "tokens": ("documents", "tokens"),
        "runs": ("steps", "parameters"),
    }[current.manifest.kind]
    nouns = {"vocab_size": "pieces"}
    summary = ", ".join(counted(counts[name], nouns.get(name, name)) for name in names if name in counts)
    if counts.get("unknown_characters"):
        from pipeline.tokens.totals import describe_unknown  # takes longer than the rest of `status`

        summary += f", {describe_unknown(counts)}"
    return summary


class _RunResult(msgspec.Struct):
    """The fields of a run's result.json that are shown."""

    seconds: Annotated[float, msgspec.Meta(ge=0, lt=1e10)] = 0.0
    bits_per_char: float | None = None
    best_bits_per_char: float | None = None
    tuning: dict[str, float] = {}


def _quality(run: Artifact) -> str:
    """Return the best and the last bits per character and the duration of a training; "" for an imported run."""
    try:
        result = msgspec.json.decode(read_regular(run.file("result.json")), type=_RunResult)
    except (OSError, BadData, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    bits = result.bits_per_char if result.best_bits_per_char is None else result.best_bits_per_char
    last = "" if result.bits_per_char in (None, bits) else f" (last {result.bits_per_char:.2f})"
    texts = [
        "" if bits is None else f"{bits:.2f} bits per character{last}{' of answers' * bool(result.tuning)}",
        f"{result.tuning['accuracy_after']:.0%} of pairs" if "accuracy_after" in result.tuning else "",
        f"base text {result.tuning['base_after']:.2f}" if "base_after" in result.tuning else "",
        duration(result.seconds) if result.seconds else "",
    ]
    return "".join(f", {text}" for text in texts if text)


def _curve(run: Artifact) -> tuple[float, ...]:
    """Return the bits per character at the evaluations of a run; () if it has none that can be read."""
    try:
        lines = read_regular(run.file("metrics.csv")).decode("ascii").splitlines()
        return tuple(float(text) for row in csv.DictReader(lines) if (text := row.get("bits_per_char")))
    except (OSError, BadData, ValueError, csv.Error):
        return ()


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
        "curve": list(row.curve),
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
    success_is_in_future: bool = False

    def last_success(self) -> str:
        if self.success_is_in_future:
            return "last success in the future: check the clock of this machine"
        return f"last success {age(self.success_hours)}"

    def line(self) -> str:
        prefix = f"refresh {self.recipe}: "
        if self.running:
            return f"{prefix}running, {self.running}"
        if self.result == "running":
            return f"{prefix}the last run was killed; run it again to resume"
        success = self.last_success()
        if self.result != "failed":
            return f"{prefix}{self.result or 'built'}, {success}"
        ended = age(self.ended_hours or 0.0)
        return f"{prefix}failed {ended}, exit {self.exit_code}: {self.error} — {self.hint}; {success}"


def refreshes(root: Path) -> list[RefreshStatus]:
    """Return the status of each recipe's refreshes. Takes no lock."""
    statuses = []
    for recipe in state.recipe_names(root):
        record, lock = state.read(root, recipe), state.lock_of(root, recipe)
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
                state.is_in_future(record.last_success),
            )
        )
    return statuses


@dataclass(frozen=True)
class CheckResult:
    """Result for a monitor: Nagios's code (0 ok, 1 warning, 2 critical, 3 unknown) and one line."""

    code: int
    line: str


def check(root: Path, max_age: float) -> CheckResult:
    """Check that every recipe was refreshed within `max_age` hours and that no current artifact is damaged.

    A last success in the future is critical: while the clock is wrong, nothing is ever late.
    """
    recipes = refreshes(root)
    if not recipes:
        return CheckResult(3, f"UNKNOWN - nothing was ever refreshed in {root}")
    try:
        results = [(2, f"{row.ref} is damaged") for row in status(root) if row.state == "damaged"]
    except OSError as error:
        return CheckResult(3, f"UNKNOWN - {from_os_error(error).message}")
    for recipe in recipes:
        is_late = recipe.success_is_in_future or recipe.success_hours is None or recipe.success_hours > max_age
        has_failed = recipe.result == "failed" or (recipe.result == "running" and not recipe.running)
        cause = ""
        if has_failed:
            cause = f", {recipe.error or 'the last run was killed'}"
        elif recipe.running:
            cause = ", running"
        message = f"{recipe.recipe}: {recipe.last_success()}{cause}"
        results.append((2 if is_late else 1 if has_failed else 0, message))
    code = max(code for code, _ in results)
    label = ("OK", "WARNING", "CRITICAL")[code]
    messages = "; ".join(message for _, message in sorted(results, reverse=True))
    # Performance data of the Nagios plugin guidelines: label=value;warning;critical.
    ages = " ".join(f"{recipe.recipe}={recipe.success_hours or -1:.2f}h;;{max_age:g}" for recipe in recipes)
    return CheckResult(code, f"{label} - {messages} | {ages}")
