"""Artifacts: folders that a stage publishes once, atomically, under a key derived from everything they are made from.

    artifacts/<kind>/<name>/<key>/manifest.json     description; written last, so a folder that has it is complete
    artifacts/<kind>/<name>/<key>/...               the files
    artifacts/<kind>/<name>/<key>/run.json          time, host and versions of the build (never part of the key)
    artifacts/<kind>/<name>/current -> <key>        the generation that readers get; older ones stay beside it

The key is a hash of everything that decides the bytes (`manifest.py`): the same key means the same bytes, and a stage
whose key is already published has nothing to do. A published artifact is called a generation; the folder of one name,
with all its generations, is called a shelf (`generations.py`).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import (
    BadData,
    InkstoneError,
    InputMissing,
    InternalError,
    TooManyRejects,
    TryAgain,
    UpstreamChanged,
    suggestion,
)
from pipeline.store import files, locks, remote
from pipeline.store.drafts import finish_killed, prepare_draft, replace_generation, without_readers, write_run
from pipeline.store.generations import (
    RUN,
    current_key,
    draft_path,
    generation_keys,
    is_rolled_back,
    make_current,
    names_newest_first,
    require_links,
    shelves,
    unwanted_keys,
)
from pipeline.store.manifest import (
    BUILD_COMMANDS,
    MANIFEST,
    NO_FILE,
    SCHEMA,
    FileRecord,
    Identity,
    Input,
    Manifest,
    build_hint,
    check_name,
    path_of_ref,
    read_manifest,
)

SCRATCH = ".work"  # folder in a draft with what the stage needs to resume after a kill; it is not published


@dataclass(frozen=True)
class StageOutput:
    """Description of the files that a stage wrote: its counts and its closed ledger.

    `hashed` lists files whose sha256 was computed while they were written. `run` goes to run.json, not to the manifest.
    Without `promote` the generation is published but does not become current.
    """

    counts: dict[str, Any]
    ledger: dict[str, Any] = field(default_factory=dict)
    hashed: Sequence[FileRecord] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    promote: bool = True


StageWriter = Callable[[Path], StageOutput]


@dataclass(frozen=True)
class Artifact:
    """A published artifact. `digest` is the sha256 of its manifest, and therefore covers all its files."""

    path: Path
    manifest: Manifest
    digest: str

    @property
    def ref(self) -> str:
        return self.manifest.ref

    def as_input(self, role: str) -> Input:
        return Input(role, self.ref, self.digest)

    def file(self, name: str) -> Path:
        return self.path / name


@dataclass(frozen=True)
class BuildResult:
    """Outcome of `build`: `result` is "built" or "unchanged"; `rebuilt` is True if the key was published before."""

    artifact: Artifact
    result: str
    rebuilt: bool = False


def find_published(root: Path, identity: Identity) -> Artifact | None:
    """Return the artifact of this identity if it is already published and undamaged, else None."""
    remote.fetch(root, identity.kind, identity.name, identity.key)
    try:
        artifact = read(root / identity.kind / check_name(identity.name) / identity.key)
    except (InputMissing, BadData):  # never built, or its manifest is torn
        return None
    return None if find_problems(artifact) else artifact


def build(
    root: Path,
    identity: Identity,
    write: StageWriter,
    *,
    keep_draft: bool = False,
    accept: bool = False,
    rebuild: bool = False,
) -> BuildResult:
    """Publish the artifact that `identity` describes, unless it exists already.

    `write` fills an empty folder and describes what it wrote. When it raises, nothing is published. With `keep_draft`,
    the folder is then kept, and the next call of `write` resumes in it; a published artifact that was damaged later is
    resumed in the same way. With `accept`, the artifact becomes current even if its output has `promote` False. With
    `rebuild`, a published artifact is built again, and replaced unless the bytes are the same.

    Raises UpstreamChanged when this generation was rolled back, TryAgain when another process builds on this shelf.
    """
    start = time.monotonic()
    shelf = root / identity.kind / check_name(identity.name)
    with locks.lock(shelf / ".lock", action=f"{BUILD_COMMANDS[identity.kind]} {identity.name}"):
        target, draft = shelf / identity.key, draft_path(root, identity)
        if is_rolled_back(root, identity):
            raise UpstreamChanged(
                f"{identity.kind}/{identity.name}/{identity.key} was rolled back",
                hint=f"`rollback {identity.kind}/{identity.name} --to {identity.key}` makes it current again",
            )
        finish_killed(shelf, SCRATCH)
        published = find_published(root, identity)
        if published and not rebuild:
            return _keep_published(published, draft, accept=accept)
        require_links(shelf)
        with without_readers(published.file(MANIFEST) if published else None):
            prepare_draft(draft, target, identity, keep=keep_draft, rebuild=rebuild)
        try:
            content = write(draft)
        except TooManyRejects as error:  # keep the draft: it holds the rejects that the user should inspect
            raise TooManyRejects(error.message, hint=f"{error.hint}; the rejects are in {draft}") from None
        except BaseException:
            if not keep_draft or not any(path.name != RUN for path in draft.iterdir()):
                files.remove_tree(draft)
            raise
        write_run(draft, identity, start, content.run, promoted=content.promote)
        _write_manifest(draft, identity, content)
        if published and read(draft).digest == published.digest:
            return _keep_published(published, draft, accept=accept, rebuilt=True)
        with without_readers(published.file(MANIFEST) if published else None):
            artifact = _publish(root, identity, draft, target, replace=published is not None)
        make_current(target, accept=accept)
        return BuildResult(artifact, remote.publish(root, target), rebuilt=published is not None)


def _keep_published(artifact: Artifact, draft: Path, *, accept: bool, rebuilt: bool = False) -> BuildResult:
    """Make a published artifact the current one, and delete the draft of the same key."""
    files.remove_tree(draft)  # without working locks, another process may have left one
    files.remove_temporaries(artifact.path)
    make_current(artifact.path, accept=accept)
    remote.publish(artifact.path.parents[2], artifact.path)
    return BuildResult(artifact, "unchanged", rebuilt)


def _publish(root: Path, identity: Identity, draft: Path, target: Path, *, replace: bool) -> Artifact:
    """Rename the finished draft to `target`. Raises TryAgain when another process worked in the same draft.

    Two processes reach this point only where locks have no effect. A generation that the other one published is kept.
    """
    if target.is_dir() and not find_published(root, identity):  # damaged
        files.discard_folder(target)
    if replace:
        replace_generation(draft, target)
    else:
        files.publish_directory(draft, target)
    files.remove_tree(target / SCRATCH)
    artifact = read(target)
    if damage := find_problems(artifact):
        files.discard_folder(target)
        raise TryAgain(
            f"{damage[0]}, right after publishing: another process builds it too",
            hint="wait for it to end, then run the same command again",
        )
    return artifact


def _write_manifest(draft: Path, identity: Identity, content: StageOutput) -> None:
    hashed = {(record.name, record.size): record for record in content.hashed}
    sizes = {name: (draft / name).stat().st_size for name in _listed_paths(draft)}
    records = tuple(
        hashed.get((name, size)) or FileRecord(name, size, files.sha256_of(draft / name))
        for name, size in sizes.items()
    )
    manifest = Manifest(
        schema=SCHEMA,
        kind=identity.kind,
        name=identity.name,
        key=identity.key,
        options=dict(identity.options),
        inputs=identity.inputs,
        tokenizer=identity.tokenizer,
        libraries=identity.versions(),
        files=records,
        counts=content.counts,
        ledger=content.ledger,
        code=identity.code.edited,
    )
    files.write_file(draft / MANIFEST, manifest.encode())
    read(draft)  # raises now if the manifest could not be read after publishing


def _listed_paths(folder: Path) -> list[str]:
    """Return the paths of the files below `folder` that its manifest should list, sorted."""
    paths = (os.path.relpath(os.path.join(top, name), folder) for top, names in files.walk(folder) for name in names)
    return sorted(path for path in paths if path not in (MANIFEST, RUN) and Path(path).parts[0] != SCRATCH)


def read(path: Path) -> Artifact:
    """Return the artifact in the folder `path`. Raises as `read_manifest`."""
    return Artifact(path, *read_manifest(path))


def read_ref(root: Path, ref: str) -> Artifact:
    """Return the artifact `kind/name/key`, as a manifest names an input. Raises as `read`, BadData for another name."""
    folder = path_of_ref(root, ref)
    remote.fetch(root, *ref.split("/"))
    return read(folder)


def current(root: Path, kind: str, name: str) -> Artifact | None:
    """Return the current generation of an artifact, or None. The link is resolved once.

    Raises BadData when it is not a link or cannot be read. An older generation is never returned instead: the hint
    names the newest intact one, which a caller may request by its key.
    """
    shelf = root / kind / name
    remote.fetch(root, kind, name)
    key = current_key(shelf)
    if not key or not ((shelf / key).exists() or generation_keys(shelf)):
        return None
    try:
        return replace(read(shelf / key), path=(shelf / key).resolve())
    except (InputMissing, BadData) as error:
        message = f"{error.message}; it is the current generation of {kind}/{name}"
        raise BadData(message, hint=_repair_hint(shelf, kind, damaged=key)) from None


def _repair_hint(shelf: Path, kind: str, *, damaged: str) -> str:
    """Return the hint for a damaged generation: rebuild it, or name the newest intact one."""
    rebuild = f"`{BUILD_COMMANDS[kind]}` it again"
    excluded = {damaged, *unwanted_keys(shelf)}
    for key in reversed([key for key in generation_keys(shelf) if key not in excluded]):
        if is_intact(shelf / key):
            return f"{rebuild}, or name {kind}/{shelf.name}/{key}, the newest intact generation"
    return rebuild


def is_intact(folder: Path) -> bool:
    """Return True if `folder` holds a generation that can be read and has all its files."""
    try:
        return not find_problems(read(folder))
    except InkstoneError:
        return False


def list_names(root: Path, kind: str) -> list[str]:
    """Return the names of the artifacts of one kind that have a current generation, sorted."""
    return sorted(link.parent.name for link in (root / kind).glob("*/current") if link.exists())


def find(root: Path, kind: str, reference: str) -> Artifact:
    """Return the artifact that `reference` names.

    A reference is `name` (its current generation), `name/key`, either of them after `kind/`, or the path of a folder.
    Raises InputMissing when there is none, BadData when it is damaged.
    """
    path = Path(reference)
    if path.parts[:1] == (kind,):
        reference = str(Path(*path.parts[1:]))
    name, _, key = reference.partition("/")
    if not key and (artifact := current(root, kind, name)):
        return artifact
    remote.fetch(root, kind, name, key)
    for folder in (root / kind / reference, path):
        if (folder / MANIFEST).exists():
            artifact = replace(read(folder), path=folder.resolve())
            if artifact.manifest.kind != kind:
                raise InputMissing(f"{path}: expected an artifact of kind {kind}, got {artifact.manifest.kind}")
            return artifact
    names = list_names(root, kind)
    raise InputMissing(
        f"no {reference!r} among the {kind} in {root}",
        hint=f"{suggestion(name, names)}available: {', '.join(names) or 'none yet'}; {build_hint(kind)}",
    )


def latest(root: Path, kind: str, *, exclude: str = "") -> Artifact:
    """Return the artifact of a kind that was published last, except the one named `exclude`.

    Commands use it when the user names none. Raises InputMissing when there is none, BadData when it is damaged.
    """
    remote.require_name(root, kind)
    names = [name for name in names_newest_first(root, kind) if name != exclude]
    artifact = current(root, kind, names[0]) if names else None
    if not artifact:
        raise InputMissing(f"no {kind} in {root} yet", hint=build_hint(kind))
    return artifact


@contextmanager
def lease(artifact: Artifact) -> Iterator[None]:
    """Keep `artifact` from being pruned while the block reads it. Raises InputMissing when it was pruned before."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.lease(artifact.file(MANIFEST)))
        except FileNotFoundError:
            raise InputMissing(f"{artifact.path}: pruned meanwhile", hint="run the same command again") from None
        yield


def generations(root: Path) -> Iterator[Path]:
    """Yield the folder of every published generation below `root`. Raises OSError where it may not be read."""
    for shelf in shelves(root):
        folders = sorted(path for path in shelf.iterdir() if not (path.name.startswith(".") or path.is_symlink()))
        yield from (folder for folder in folders if (folder / MANIFEST).exists())


def find_problems(
    artifact: Artifact, *, deep: bool = False, include: Callable[[str], bool] = lambda name: True
) -> list[str]:
    """List the files of an artifact that are missing, or differ in size or content from its manifest.

    Only files whose names satisfy `include` are checked. Without `deep`, only files modified since the manifest was
    written are hashed. Published files are never modified, so checking the size of the others is enough.
    """
    # A file as new as the manifest counts as modified: on a coarse clock a change may get the same timestamp. Links to
    # an earlier generation's files are older. A copy that lost its timestamps (`cp -r`) is hashed each time. Only
    # `deep` finds a change that leaves the timestamp old: bit rot, or a file moved in.
    try:
        published_at = artifact.file(MANIFEST).stat().st_mtime_ns
    except FileNotFoundError:
        return [f"{artifact.file(MANIFEST)}: missing"]
    messages = []
    for record in artifact.manifest.files:
        path = artifact.path / record.name
        try:
            problem = _problem(path, record, deep, published_at) if include(record.name) else ""
        except OSError as error:  # may have been pruned concurrently
            if error.errno not in NO_FILE:
                raise
            problem = "missing"
        if problem:
            messages.append(f"{path}: {problem}")
    return messages


def _problem(path: Path, record: FileRecord, deep: bool, published_at: int) -> str:
    """Return how a file differs from its record; "" where it does not."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return "missing"
    if status.st_size != record.size:
        return f"{status.st_size:,} bytes where the manifest says {record.size:,}"
    if (deep or status.st_mtime_ns >= published_at) and files.sha256_of(path) != record.sha256:
        return "content differs from the manifest's sha256"
    return ""


def unlisted_files(artifact: Artifact) -> list[str]:
    """List the files in the folder of an artifact that its manifest does not list. They are never read."""
    listed = {record.name for record in artifact.manifest.files}
    return [name for name in _listed_paths(artifact.path) if name not in listed]


def require_intact(artifact: Artifact) -> Artifact:
    """Return `artifact` if its files are as they were published. Raises BadData otherwise."""
    manifest = artifact.manifest
    if damage := find_problems(artifact):
        raise BadData(damage[0], hint=_repair_hint(artifact.path.parent, manifest.kind, damaged=manifest.key))
    if not manifest.files:
        raise InternalError(f"{artifact.path}: the artifact has no files", hint="this is a bug")
    return artifact
