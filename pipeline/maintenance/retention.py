"""Generations after they are published: going back to an older one, and deleting those that nobody needs.

    rollback   `current` names an older generation; the one it was taken from is not taken up again by itself
    prune      old generations and drafts go, but none that is current, recent, being read, or that a run was made from

Both hold the lock of the shelf, and go by single steps that each leave `current` valid and every generation whole:
after a kill at any moment the same command ends what was begun.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline.errors import BadConfig, BadData, InkstoneError, InputMissing, TryAgain
from pipeline.store import artifact, files, locks
from pipeline.store.artifact import MANIFEST, Artifact
from pipeline.store.generations import ROLLED_BACK, current_key, generation_keys, rolled_back, run_of
from pipeline.store.manifest import KINDS, Input, is_name


@dataclass(frozen=True)
class Rolled:
    """What became of a rollback: the artifact that is current now, the `kind/name/key` of the one that was before
    ("" if there was none), and a `result` of "rolled back" or "unchanged"."""

    artifact: Artifact
    left: str
    result: str


def rollback(root: Path, reference: str, *, to: str = "") -> Rolled:
    """Let `current` of the artifact `reference` (`kind/name`) name the generation before it, or the one with key `to`.

    The one before is the last that was published earlier and was not itself rolled back. The key that is left for an
    older one is remembered in the shelf's `rolled-back`: `artifact.build` then refuses to take it up again, so that
    the next nightly refresh does not undo this; new data has another key, and is published as ever. Naming a key
    with `to` takes it off that list. Run again after a kill, it ends with the same when it was given `to`.

    Raises InputMissing when there is no such generation, BadData when it is damaged, TryAgain when the shelf is in use.
    """
    shelf = _shelf(root, reference)
    with locks.lock(shelf / ".lock", doing=f"rollback {reference}"):
        files.remove_temporaries(shelf, below=False)
        order, now, unwanted = generation_keys(shelf), current_key(shelf), rolled_back(shelf)
        target = to or _before(reference, order, now, unwanted)
        if target not in order:
            raise InputMissing(f"{reference}: no generation {target}", hint=f"there: {', '.join(order) or 'none'}")
        found = artifact.read(shelf / target)
        if damage := artifact.problems(found):
            others = ", ".join(key for key in order if key not in (now, target, *unwanted)) or "none"
            raise BadData(damage[0], hint=f"other generations for --to: {others}")
        backwards = now in order and order.index(target) < order.index(now)
        # First the list: a refresh in between finds the key refused, and not `current` free to be moved forward.
        _remember(shelf, ({*unwanted, now} if backwards else {*unwanted}) - {target})
        if now != target:
            files.point(shelf / "current", target)
    left = f"{reference}/{now}" if now else ""
    return Rolled(found, left, "unchanged" if now == target else "rolled back")


def _shelf(root: Path, reference: str) -> Path:
    kind, _, name = reference.partition("/")
    shelf = root / kind / name
    if kind not in KINDS or not is_name(name) or not shelf.is_dir():
        there = ", ".join(f"{kind}/{name}" for kind in KINDS for name in artifact.names(root, kind)) or "none yet"
        raise InputMissing(f"no artifact {reference!r} in {root}", hint=f"name one as KIND/NAME; there: {there}")
    return shelf


def _before(reference: str, order: list[str], now: str, unwanted: tuple[str, ...]) -> str:
    """The key to go back to from `now`; from one that is not there any more, the newest."""
    earlier = [key for key in order[: order.index(now) if now in order else None] if key not in unwanted]
    if not earlier:
        there = ", ".join(key for key in order if key != now) or "none"
        raise InputMissing(f"{reference}: no generation to go back to", hint=f"others, for --to: {there}")
    return earlier[-1]


def _remember(shelf: Path, unwanted: set[str]) -> None:
    """Write the list of keys that were rolled back, if it is another now."""
    if unwanted != {*rolled_back(shelf)}:
        files.write_file(shelf / ROLLED_BACK, msgspec.json.encode(sorted(unwanted)))


@dataclass(frozen=True)
class Pruned:
    """What became of one generation, or of something that was left over, by its path below the root.

    `removed`: whether it went, or with a dry run would go; then `bytes` is what that frees. A file that other
    generations link to counts with the last of them. `why` says why it stays, or what it was.
    """

    ref: str
    removed: bool
    bytes: int
    why: str


def prune(root: Path, *, keep: int = 2, dry_run: bool = False) -> list[Pruned]:
    """Delete the generations that nobody needs, and what killed commands left on the shelves.

    Of each artifact these stay: the current generation, the `keep` newest (damaged ones and those that were rolled
    back do not count, but stay with them), those that somebody reads, and those that a run that stays, or anything
    unfinished, was made from, however indirectly. Where that cannot be known, because a run or an unfinished run
    does not say what it was made from, everything stays. A shelf in use is left alone.

    Raises BadConfig unless `keep` is 1 or more.
    """
    if keep < 1:
        raise BadConfig(f"--keep {keep} is no number of generations to keep", hint="1 or more")
    pruning = _Pruning(root, keep, dry_run)
    # Runs first, and so on backwards: what is asked of each shelf is whether something that still stands needs it.
    shelves = [shelf for kind in reversed(KINDS) for shelf in sorted((root / kind).glob("*")) if shelf.is_dir()]
    return [*(row for shelf in shelves for row in pruning.shelf(shelf)), *_set_aside(root)]


class _Pruning:
    """One prune: what was asked for, and what went so far, which in a dry run is still there."""

    def __init__(self, root: Path, keep: int, dry_run: bool) -> None:
        self.root, self.keep, self.dry_run = root, keep, dry_run
        self.gone: set[str] = set()
        self.links: Counter[tuple[int, int]] = Counter()  # of inodes

    def shelf(self, shelf: Path) -> list[Pruned]:
        try:
            with self._lock(shelf):
                return [*self._leftovers(shelf), *self._generations(shelf)]
        except TryAgain as busy:
            return [Pruned(self._ref(shelf / key), False, 0, busy.what) for key in generation_keys(shelf)]

    @contextmanager
    def _lock(self, shelf: Path) -> Iterator[None]:
        """The lock of a shelf; for a dry run, which writes nothing, only that nobody has it."""
        if not self.dry_run:
            with locks.lock(shelf / ".lock", doing="prune"):
                yield
        elif locks.is_locked(shelf / ".lock"):
            raise TryAgain(f"{shelf}: in use by {locks.holder(shelf / '.lock') or 'another process'}")
        else:
            yield

    def _leftovers(self, shelf: Path) -> list[Pruned]:
        left = sorted(path for prefix in (files.TEMPORARY, files.TRASH) for path in shelf.glob(f"{prefix}*"))
        found = [Pruned(self._ref(path), True, self._freed(path), "left by a killed command") for path in left]
        drafts = self._superseded(shelf)
        found += [
            Pruned(self._ref(path), True, self._freed(path), "unfinished, and older than current") for path in drafts
        ]
        if not self.dry_run:
            files.remove_temporaries(shelf, below=False)
            for draft in drafts:
                files.throw_away(draft)
        return found

    def _superseded(self, shelf: Path) -> list[Path]:
        """Unfinished work from before the current generation, which nobody will go on with; never a training."""
        now = shelf / "current" / MANIFEST
        if shelf.parent.name == "runs" or not now.exists():
            return []
        return [path for path in sorted(shelf.glob(".draft-*")) if path.stat().st_mtime_ns < now.stat().st_mtime_ns]

    def _generations(self, shelf: Path) -> Iterator[Pruned]:
        needed = _needed(self.root, self.gone)
        order, now = generation_keys(shelf), current_key(shelf)
        recent = self._recent(shelf, order)
        for key in order:
            folder = shelf / key
            ref = self._ref(folder)
            if key == now:
                yield Pruned(ref, False, 0, "current")
            elif ref in needed.by:
                yield Pruned(ref, False, 0, f"{needed.by[ref]} is made from it")
            elif key in recent:
                yield Pruned(ref, False, 0, f"among the {self.keep} newest")
            elif needed.unknown:
                yield Pruned(ref, False, 0, needed.unknown)
            elif folder.is_symlink():
                yield Pruned(ref, False, 0, "a link to a folder elsewhere")
            else:
                yield self._throw_away(folder, ref)
        if not self.dry_run:  # a key whose generation is gone has nothing that could be taken up again
            _remember(shelf, {*rolled_back(shelf)} & {*generation_keys(shelf)})

    def _recent(self, shelf: Path, order: list[str]) -> set[str]:
        """The newest keys, back to the last of `keep` that could be worked with."""
        recent: set[str] = set()
        unwanted, good = rolled_back(shelf), 0
        for key in reversed(order):
            if good < self.keep:
                recent.add(key)
                good += key not in unwanted and artifact.is_whole(shelf / key)
        return recent

    def _throw_away(self, folder: Path, ref: str) -> Pruned:
        """Delete a generation unless somebody reads it; nobody can begin to until it has another name."""
        manifest = folder / MANIFEST
        if not manifest.exists():  # so nobody can read it
            return self._gone(folder, ref)
        with locks.if_unleased(manifest) as free:
            return self._gone(folder, ref) if free else Pruned(ref, False, 0, "being read")

    def _gone(self, folder: Path, ref: str) -> Pruned:
        freed = self._freed(folder)
        self.gone.add(ref)
        if not self.dry_run:
            files.throw_away(folder)
        return Pruned(ref, True, freed, f"older than the {self.keep} newest")

    def _freed(self, path: Path) -> int:
        """Bytes that are free once `path` is deleted; in a dry run, after all that went before it."""
        gone = self.links if self.dry_run else Counter[tuple[int, int]]()
        freed = 0
        for each in (path, *(path.rglob("*") if not path.is_symlink() else ())):
            if each.is_symlink() or not each.is_file():
                continue
            status = each.stat()
            inode = status.st_dev, status.st_ino
            gone[inode] += 1
            freed += status.st_size if gone[inode] == status.st_nlink else 0
        return freed

    def _ref(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class _Needed:
    """`by`: what must stay, as kind/name/key, with what needs it. `unknown`: why that may not be all, "" if it is."""

    by: dict[str, str]
    unknown: str


def _needed(root: Path, gone: set[str]) -> _Needed:
    """Everything that runs, but those in `gone`, and unfinished artifacts were made from, however indirectly."""
    by: dict[str, str] = {}
    unknown = ""
    waiting: list[tuple[str, tuple[Input, ...]]] = []
    # Unfinished work before runs: what is published in between is then found among the runs.
    for draft in [path for kind in KINDS for path in sorted((root / kind).glob("*/.draft-*"))]:
        made_from, ref = run_of(draft).made_from, draft.relative_to(root).as_posix()
        if made_from is not None:
            waiting.append((ref, made_from))
        elif ref.startswith("runs/"):  # only a training cannot begin again from other data
            unknown = f"{ref} may be made from it: end that training, or delete its folder"
    runs = [f"runs/{shelf.name}/{key}" for shelf in (root / "runs").glob("*") for key in generation_keys(shelf)]
    read = [ref for ref in sorted(runs) if ref not in gone]
    while read or waiting:
        for ref in read:
            try:
                waiting.append((ref, artifact.read(root / ref).manifest.inputs))
            except InkstoneError as error:
                unknown = f"{ref} may be made from it, and cannot be read: {error}"
        read = []
        for needs, inputs in waiting:
            for entry in inputs:
                if entry.role == "parent" and not _is_draft(needs):
                    continue  # the run has the weights that it began with no need of any more
                if entry.name not in by and _is_generation(root, entry.name):
                    by[entry.name] = needs
                    read.append(entry.name)
        waiting = []
    return _Needed(by, unknown)


def _is_draft(ref: str) -> bool:
    return ref.rpartition("/")[2].startswith(".draft-")


def _is_generation(root: Path, name: str) -> bool:
    """Whether an input's name is that of a generation on these shelves, and not of a raw or of a local file."""
    kind, _, rest = name.partition("/")
    shelf, _, key = rest.partition("/")
    return kind in KINDS and is_name(shelf) and key in generation_keys(root / kind / shelf)


def _set_aside(root: Path) -> list[Pruned]:
    """Folders of downloads that were wrong, where a later one was right. Listed only: the raw cache is not ours."""
    found = []
    for folder in sorted(path for path in (root / "raw").rglob("quarantine") if path.is_dir()):
        source = root / "raw" / folder.relative_to(root / "raw").parts[0]
        done = source / "sources.lock.json"
        if done.exists() and done.stat().st_mtime_ns > folder.stat().st_mtime_ns:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            why = f"{size:,} bytes of a wrong download, right since: look at it, then delete it"
            found.append(Pruned(folder.relative_to(root).as_posix(), False, 0, why))
    return found
