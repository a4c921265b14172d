"""Retention of published generations: return to an older one, and delete those that nothing needs.

    rollback   point `current` at an older generation; the newer one is not published again automatically
    prune      delete old generations and drafts, except those that are current, recent, in use, or inputs of a run

Both hold the artifact's lock and work in single steps. After each step `current` is valid and every generation is
complete, so after a kill at any moment the same command finishes the work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline.errors import BadConfig, BadData, InkstoneError, InputMissing, TryAgain
from pipeline.report import page, reports
from pipeline.store import artifact, files, locks
from pipeline.store.artifact import Artifact
from pipeline.store.generations import (
    ROLLED_BACK,
    current_key,
    generation_keys,
    promote,
    read_run_info,
    rolled_back_keys,
    set_current,
    shelves,
    unwanted_keys,
)
from pipeline.store.leftovers import leftovers
from pipeline.store.manifest import KINDS, MANIFEST, Input, is_valid_name, read_inputs
from pipeline.store.remote import PULL

_KILLED = "left by a killed command"


@dataclass(frozen=True)
class RollbackResult:
    """Result of a rollback.

    artifact  the current artifact afterwards
    previous  the `kind/name/key` that was current before, "" for none
    result    "rolled back" or "unchanged"
    """

    artifact: Artifact
    previous: str
    result: str


def rollback(root: Path, reference: str, *, to: str = "") -> RollbackResult:
    """Point `current` of an artifact, given as `kind/name`, at its previous generation or at the one with key `to`.

    `to` may be the beginning of a key.

    The previous generation is the last one published earlier that was not itself rolled back. If the new current
    generation is older, the key of the previous one is recorded in the file `rolled-back`. `artifact.build` refuses
    recorded keys, so the next nightly refresh does not undo the rollback; new data has another key and is published as
    usual. Naming a key with `to` removes it from the record. With `to`, running again after a kill gives the same
    result.

    Raises InputMissing if there is no such generation, BadConfig if several keys begin with `to`, BadData if the
    generation is damaged, TryAgain if the artifact is in use.
    """
    folder = _artifact_folder(root, reference)
    with locks.lock(folder / ".lock", action=f"rollback {reference}"):
        files.remove_temporaries(folder, recursive=False)
        keys, current, unwanted = generation_keys(folder), current_key(folder), rolled_back_keys(folder)
        target = (
            _complete_key(reference, keys, to) if to else _previous_key(reference, keys, current, unwanted_keys(folder))
        )
        generation = artifact.read(folder / target)
        if problems := artifact.find_problems(generation):
            alternatives = ", ".join(key for key in keys if key not in (current, target, *unwanted)) or "none"
            raise BadData(problems[0], hint=f"other generations for --to: {alternatives}")
        is_older = current in keys and keys.index(target) < keys.index(current)
        # Record the key first. A refresh in between then refuses the key instead of moving `current` forward again.
        _record_rolled_back(folder, ({*unwanted, current} if is_older else {*unwanted}) - {target})
        if current != target:
            promote(folder / target)
            set_current(folder, target)
    previous = f"{reference}/{current}" if current else ""
    return RollbackResult(generation, previous, "unchanged" if current == target else "rolled back")


def _artifact_folder(root: Path, reference: str) -> Path:
    """Return the folder of all generations of `kind/name`. Raises InputMissing if there is none."""
    kind, _, name = reference.partition("/")
    folder = root / kind / name
    if kind not in KINDS or not is_valid_name(name) or not folder.is_dir():
        existing = (
            ", ".join(f"{kind}/{name}" for kind in KINDS for name in artifact.list_names(root, kind)) or "none yet"
        )
        raise InputMissing(f"no artifact {reference!r} in {root}", hint=f"name one as KIND/NAME; existing: {existing}")
    return folder


def _complete_key(reference: str, keys: list[str], prefix: str) -> str:
    """Return the only one of `keys` that begins with `prefix`."""
    matches = [key for key in keys if key.startswith(prefix)]
    if not matches:
        raise InputMissing(f"{reference}: no generation {prefix}", hint=f"existing: {', '.join(keys) or 'none'}")
    if len(matches) > 1:
        raise BadConfig(
            f"{reference}: {len(matches)} generations begin with {prefix}", hint=f"name one: {', '.join(matches)}"
        )
    return matches[0]


def _previous_key(reference: str, keys: list[str], current: str, unwanted: set[str]) -> str:
    """Return the key of the generation before `current`; of the newest if `current` no longer exists."""
    earlier = [key for key in keys[: keys.index(current) if current in keys else None] if key not in unwanted]
    if not earlier:
        alternatives = ", ".join(key for key in keys if key != current) or "none"
        raise InputMissing(f"{reference}: no earlier generation", hint=f"other generations for --to: {alternatives}")
    return earlier[-1]


def _record_rolled_back(folder: Path, keys: set[str]) -> None:
    """Write the keys that were rolled back, if they changed."""
    if keys != {*rolled_back_keys(folder)}:
        files.write_file(folder / ROLLED_BACK, msgspec.json.encode(sorted(keys)))


@dataclass(frozen=True)
class PruneRow:
    """Result of pruning one generation or leftover.

    ref      path below the root
    removed  True if it was deleted, or would be without a dry run
    bytes    bytes freed; a file shared by several generations counts with the last of them
    why      the reason for keeping it, or a description of what was deleted
    """

    ref: str
    removed: bool
    bytes: int
    why: str


def prune(root: Path, *, keep: int = 2, dry_run: bool = False) -> list[PruneRow]:
    """Delete the generations that nothing needs, and the leftovers of killed commands.

    These generations of each artifact stay:

    - the current one
    - the `keep` newest; damaged and rolled-back ones do not count towards `keep`, but stay with the newest
    - those being read
    - direct and indirect inputs of runs that stay and of unfinished work

    If a run or an unfinished run does not name its inputs, everything stays. An artifact in use is skipped.

    Raises BadConfig unless `keep` is 1 or more.
    """
    if keep < 1:
        raise BadConfig(f"--keep must be 1 or more, got {keep}", hint="keep at least one generation")
    pruning = _Pruning(root, keep, dry_run)
    # From runs back to corpora, so that a generation is checked after everything that could need it.
    folders = sorted(shelves(root), key=lambda folder: KINDS.index(folder.parent.name), reverse=True)  # stable
    rows = [row for folder in folders for row in pruning.prune(folder)]
    return [*rows, *pruning.prune_reports(), *pruning.prune_leftovers(), *_quarantined(root)]


class _Pruning:
    """State of one prune: its options, and what was deleted so far, or would have been without a dry run."""

    def __init__(self, root: Path, keep: int, dry_run: bool) -> None:
        self.root, self.keep, self.dry_run = root, keep, dry_run
        self.removed: set[str] = set()
        self.links: Counter[tuple[int, int]] = Counter()  # deleted links of each (device, inode), in a dry run

    def prune(self, folder: Path) -> list[PruneRow]:
        """Prune the folder of one artifact."""
        try:
            with self._lock(folder):
                return [*self._leftovers(folder), *self._generations(folder)]
        except TryAgain as busy:
            return [PruneRow(self._ref(folder / key), False, 0, busy.message) for key in generation_keys(folder)]
        except BadData as error:  # an invalid `current`, lock or record of rollbacks: the other folders are pruned
            return [PruneRow(self._ref(folder), False, 0, error.message)]

    def prune_reports(self) -> Iterator[PruneRow]:
        """Delete the reports whose artifacts are all deleted."""
        for path in reports.paths(self.root):
            refs = page.refs_of(path.read_bytes())
            remaining = [ref for ref in refs if ref not in self.removed and (self.root / ref / MANIFEST).exists()]
            if remaining or not refs:
                yield PruneRow(self._ref(path), False, 0, f"about {remaining[0]}" if remaining else "about no artifact")
                continue
            freed = self._freed_bytes(path)
            if not self.dry_run:
                files.remove_any(path)
            yield PruneRow(self._ref(path), True, freed, "about generations that were deleted")

    def prune_leftovers(self) -> list[PruneRow]:
        """Delete what killed commands left outside the folders of artifacts: exports, downloads, states."""
        paths = [path for path in leftovers(self.root) if path.relative_to(self.root).parts[0] not in KINDS]
        rows = [PruneRow(self._ref(path), True, self._freed_bytes(path), _KILLED) for path in paths]
        if not self.dry_run:
            for path in paths:
                files.remove_any(path)
        return rows

    @contextmanager
    def _lock(self, folder: Path) -> Iterator[None]:
        """Hold the lock of an artifact. A dry run writes nothing, so it only checks that the lock is free."""
        if not self.dry_run:
            with locks.lock(folder / ".lock", action="prune"):
                yield
        elif locks.is_locked(folder / ".lock"):
            raise TryAgain(f"{folder}: in use by {locks.current_holder(folder / '.lock') or 'another process'}")
        else:
            yield

    def _leftovers(self, folder: Path) -> list[PruneRow]:
        temporaries = sorted(path for prefix in (files.TEMPORARY, files.TRASH) for path in folder.glob(f"{prefix}*"))
        drafts, pulls = self._superseded_drafts(folder), _unfinished_pulls(folder)
        rows = [
            PruneRow(self._ref(path), True, self._freed_bytes(path), reason)
            for paths, reason in (
                (temporaries, _KILLED),
                (pulls, "an unfinished copy from a bucket"),
                (drafts, "unfinished, and older than current"),
            )
            for path in paths
        ]
        self.removed |= {self._ref(draft) for draft in drafts}
        if not self.dry_run:
            files.remove_temporaries(folder, recursive=False)
            for path in (*drafts, *pulls):
                files.discard_folder(path)
        return rows

    def _superseded_drafts(self, folder: Path) -> list[Path]:
        """Return drafts that nothing has changed since the current generation was published.

        They will not be resumed, except the draft of a run that was also published early, with falling learning rates.
        """
        try:
            current = artifact.read(folder / "current")
        except InkstoneError:  # none, or damaged: a draft may be needed to rebuild it
            return []
        if "ended" in current.manifest.options:
            return []
        published_ns = current.file(MANIFEST).stat().st_mtime_ns
        return [path for path in sorted(folder.glob(".draft-*")) if _newest_ns(path) < published_ns]

    def _generations(self, folder: Path) -> Iterator[PruneRow]:
        required = _required_by(self.root, self.removed)
        keys, current = generation_keys(folder), current_key(folder)
        recent = self._recent_keys(folder, keys)
        for key in keys:
            generation = folder / key
            ref = self._ref(generation)
            if key == current:
                yield PruneRow(ref, False, 0, "current")
            elif ref in required.by:
                yield PruneRow(ref, False, 0, f"an input of {required.by[ref]}")
            elif key in recent:
                yield PruneRow(ref, False, 0, f"among the {self.keep} newest")
            elif required.unknown:
                yield PruneRow(ref, False, 0, required.unknown)
            elif generation.is_symlink():
                yield PruneRow(ref, False, 0, "a link to a folder elsewhere")
            else:
                yield self._remove_unless_read(generation, ref)
        if not self.dry_run:  # the record keeps only keys whose generation could be published again
            _record_rolled_back(folder, {*rolled_back_keys(folder)} & {*generation_keys(folder)})

    def _recent_keys(self, folder: Path, keys: list[str]) -> set[str]:
        """Return the newest keys, back to the `keep`-th that is neither damaged nor unwanted."""
        recent: set[str] = set()
        unwanted, usable = unwanted_keys(folder), 0
        for key in reversed(keys):
            if usable < self.keep:
                recent.add(key)
                usable += key not in unwanted and artifact.is_intact(folder / key)
        return recent

    def _remove_unless_read(self, generation: Path, ref: str) -> PruneRow:
        """Delete a generation unless a process reads it. No reader can get a lease until the generation is moved."""
        manifest = generation / MANIFEST
        if not manifest.is_file():  # without a manifest nothing can read it
            return self._remove(generation, ref)
        with locks.if_unleased(manifest) as is_free:
            return self._remove(generation, ref) if is_free else PruneRow(ref, False, 0, "being read")

    def _remove(self, generation: Path, ref: str) -> PruneRow:
        freed = self._freed_bytes(generation)
        self.removed.add(ref)
        if not self.dry_run:
            files.discard_folder(generation)
        return PruneRow(ref, True, freed, f"older than the {self.keep} newest")

    def _freed_bytes(self, path: Path) -> int:
        """Return the bytes freed by deleting `path`; in a dry run, after everything deleted before it."""
        links = self.links if self.dry_run else Counter[tuple[int, int]]()
        freed = 0
        for file in (path, *(path.rglob("*") if not path.is_symlink() else ())):
            if file.is_symlink() or not file.is_file():
                continue
            status = file.stat()
            inode = status.st_dev, status.st_ino
            links[inode] += 1
            freed += status.st_size if links[inode] == status.st_nlink else 0
        return freed

    def _ref(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class _RequiredBy:
    """Generations that must stay: `by` maps each kind/name/key to the artifact or draft that needs it.

    `unknown` is the reason why `by` may be incomplete, "" if it is complete.
    """

    by: dict[str, str]
    unknown: str


def _required_by(root: Path, removed: set[str]) -> _RequiredBy:
    """Return all direct and indirect inputs of runs, except those in `removed`, and of unfinished artifacts."""
    by: dict[str, str] = {}
    unknown = ""
    pending: list[tuple[str, tuple[Input, ...]]] = []
    # Drafts before runs: a draft published in between is then found among the runs.
    for draft in [path for kind in KINDS for path in sorted((root / kind).glob("*/.draft-*"))]:
        inputs, ref = read_run_info(draft).made_from, draft.relative_to(root).as_posix()
        if ref in removed:
            continue
        if inputs is not None:
            pending.append((ref, inputs))
        elif ref.startswith("runs/"):  # other stages can start again from other data
            unknown = f"{ref} may need it: finish that training, or delete its folder"
    runs = [f"runs/{folder.name}/{key}" for folder in (root / "runs").glob("*") for key in generation_keys(folder)]
    unvisited = [ref for ref in sorted(runs) if ref not in removed]
    while unvisited or pending:
        for ref in unvisited:
            try:
                pending.append((ref, read_inputs(root / ref)))
            except InkstoneError as error:
                unknown = f"{ref} may need it, and cannot be read: {error}"
        unvisited = []
        for ref, inputs in pending:
            for entry in inputs:
                if entry.role == "parent" and not _is_draft(ref):
                    continue  # a finished run no longer needs the weights it started from
                if entry.name not in by and _is_generation(root, entry.name):
                    by[entry.name] = ref
                    unvisited.append(entry.name)
        pending = []
    return _RequiredBy(by, unknown)


def _unfinished_pulls(folder: Path) -> list[Path]:
    """Return the folders of copies from a bucket that no process continues."""
    if locks.is_locked(folder / f"{PULL}lock"):
        return []
    return sorted(path for path in folder.glob(f"{PULL}*") if path.is_dir())


def _newest_ns(draft: Path) -> int:
    """Return the time of the last change in a draft."""
    return max(path.lstat().st_mtime_ns for path in (draft, *draft.rglob("*")))


def _is_draft(ref: str) -> bool:
    return ref.rpartition("/")[2].startswith(".draft-")


def _is_generation(root: Path, name: str) -> bool:
    """Return True if an input's name is that of a generation below `root`, not of a raw or local file."""
    kind, _, path = name.partition("/")
    artifact_name, _, key = path.partition("/")
    return kind in KINDS and is_valid_name(artifact_name) and key in generation_keys(root / kind / artifact_name)


def _quarantined(root: Path) -> list[PruneRow]:
    """List quarantined downloads that a later download replaced. They are never deleted from the raw cache."""
    rows = []
    for folder in sorted(path for path in (root / "raw").rglob("quarantine") if path.is_dir()):
        source = root / "raw" / folder.relative_to(root / "raw").parts[0]
        lock = source / "sources.lock.json"
        if lock.exists() and lock.stat().st_mtime_ns > folder.stat().st_mtime_ns:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            reason = f"{size:,} bytes of a bad download, replaced since: inspect it, then delete it"
            rows.append(PruneRow(folder.relative_to(root).as_posix(), False, 0, reason))
    return rows
