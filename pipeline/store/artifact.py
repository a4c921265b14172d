"""An artifact: a folder that a stage published once, whole, under a key that says exactly what it was made from.

    artifacts/<kind>/<name>/<key>/manifest.json     what it is; written last, so that a folder with it is complete
    artifacts/<kind>/<name>/<key>/...               its files
    artifacts/<kind>/<name>/<key>/run.json          how it came about: time, host, versions (never in the key)
    artifacts/<kind>/<name>/current -> <key>        the generation that readers get; older ones stay beside it

The key is a hash of everything that decides the bytes (`manifest.py`). So the same key means the same bytes, and a
stage whose key is already published has nothing to do. The folder of one name, with all its generations, is called
its shelf (`shelf.py`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import (
    BadConfig,
    BadData,
    InkstoneError,
    InputMissing,
    InternalError,
    TooManyRejects,
    TryAgain,
    UpstreamChanged,
)
from pipeline.store import files, locks
from pipeline.store.generations import (
    RUN,
    current_key,
    draft_path,
    generation_keys,
    is_rolled_back,
    rolled_back,
    run_of,
)
from pipeline.store.manifest import KINDS, MADE_BY, SCHEMA, FileRecord, Identity, Input, Manifest, check_name

MANIFEST = "manifest.json"
SCRATCH = ".work"  # in a draft: what its stage needs to go on after a kill; it is not published


class _Schema(msgspec.Struct):
    """The one field of a manifest that every version has."""

    schema: int


@dataclass(frozen=True)
class Content:
    """What a stage says of the files it wrote: its counts and its closed ledger.

    `hashed` are files whose sha256 was taken while they were written; the others are read once more. `run` goes to
    run.json, and so decides nothing.
    """

    counts: dict[str, Any]
    ledger: dict[str, Any] = field(default_factory=dict)
    hashed: Sequence[FileRecord] = ()
    run: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A published artifact. `digest` is the sha256 of its manifest, and so of everything in it."""

    path: Path
    manifest: Manifest
    digest: str

    @property
    def ref(self) -> str:
        return f"{self.manifest.kind}/{self.manifest.name}/{self.manifest.key}"

    def as_input(self, role: str) -> Input:
        return Input(role, self.ref, self.digest)

    def file(self, name: str) -> Path:
        return self.path / name


@dataclass(frozen=True)
class Built:
    """What became of a stage: `result` is "built" or "unchanged"."""

    artifact: Artifact
    result: str


def published(root: Path, identity: Identity) -> Artifact | None:
    """The artifact of this identity if it is already published, with all its files as they were, else None."""
    try:
        artifact = read(root / identity.kind / check_name(identity.name) / identity.key)
    except (InputMissing, BadData):  # never built, or its manifest is torn: to be built
        return None
    return None if problems(artifact) else artifact


def build(root: Path, identity: Identity, write: Callable[[Path], Content], *, keep_draft: bool = False) -> Built:
    """Publish the artifact that `identity` describes, unless it stands already.

    `write` fills an empty folder and says what it wrote. When it raises, nothing is published; with `keep_draft`
    its folder is left and handed to it again the next time, so that it can go on where it stopped. So is an artifact
    of this identity that was damaged after it was published.

    Raises UpstreamChanged when this generation was rolled back, TryAgain when another process builds on this shelf.
    """
    start = time.monotonic()
    shelf = root / identity.kind / check_name(identity.name)
    with locks.lock(shelf / ".lock", doing=f"{MADE_BY[identity.kind]} {identity.name}"):
        target, draft = shelf / identity.key, draft_path(root, identity)
        if is_rolled_back(root, identity):
            raise UpstreamChanged(
                f"{identity.kind}/{identity.name}/{identity.key} was rolled back",
                hint=f"`rollback {identity.kind}/{identity.name} --to {identity.key}` takes it again",
            )
        files.remove_temporaries(shelf, below=False)
        if artifact := published(root, identity):
            for useless in (target / SCRATCH, draft):  # where locks do nothing another may have left its draft
                files.remove_tree(useless)
            if current_key(shelf) != identity.key:
                files.point(shelf / "current", identity.key)
            return Built(artifact, "unchanged")
        if not keep_draft:
            files.remove_tree(draft)
        elif target.is_dir() and not draft.exists():
            files.publish_directory(target, draft)
        draft.mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(draft)
        if keep_draft:  # so that `prune` keeps what it needs to go on
            files.write_file(draft / RUN, msgspec.json.encode({"made_from": identity.inputs}))
        try:
            content = write(draft)
        except TooManyRejects as error:  # the draft stays: it holds the rejects that the person is asked to look at
            raise TooManyRejects(f"{draft}: {error.what}", hint=error.hint) from None
        except BaseException:
            if not keep_draft or not any(path.name != RUN for path in draft.iterdir()):
                files.remove_tree(draft)
            raise
        _write_manifest(draft, identity, content, start)
        made = _publish(root, identity, draft, target)
        files.point(shelf / "current", identity.key)
    return Built(made, "built")


def _publish(root: Path, identity: Identity, draft: Path, target: Path) -> Artifact:
    """Let the finished draft appear as `target`. Raises TryAgain when another process worked in the same draft.

    Two processes come so far only where locks do nothing. What the other has published meanwhile stays.
    """
    if target.is_dir() and not published(root, identity):  # damaged
        files.throw_away(target)
    files.publish_directory(draft, target)
    files.remove_tree(target / SCRATCH)
    made = read(target)
    if found := problems(made):
        files.throw_away(target)
        raise TryAgain(
            f"{found[0]}, as soon as it was published: another process builds it too",
            hint="when that has ended, run the same command again",
        )
    return made


def _write_manifest(draft: Path, identity: Identity, content: Content, start: float) -> None:
    before = generation_keys(draft.parent)
    run = {
        "seconds": round(time.monotonic() - start, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **content.run,
        "generation": 1 + max((run_of(draft.parent / key).generation for key in before), default=0),
    }
    files.write_file(draft / RUN, msgspec.json.format(msgspec.json.encode(run), indent=2))
    known = {(record.name, record.size): record for record in content.hashed}
    records = tuple(
        known.get((name, size := (draft / name).stat().st_size))
        or FileRecord(name, size, files.sha256_of(draft / name))
        for name in _names(draft)
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
    )
    data = msgspec.json.encode(manifest, order="deterministic")
    files.write_file(draft / MANIFEST, msgspec.json.format(data, indent=2))


def _names(folder: Path) -> list[str]:
    """Paths of the files below `folder` that a manifest lists, in a fixed order."""
    walk = os.walk(folder, onerror=_raise)  # which else leaves out, without a word, a folder that it cannot open
    found = (os.path.relpath(os.path.join(top, name), folder) for top, _, names in walk for name in names)
    return sorted(name for name in found if name not in (MANIFEST, RUN) and Path(name).parts[0] != SCRATCH)


def _raise(error: OSError) -> None:
    raise error


def read(path: Path) -> Artifact:
    """The artifact in the folder `path`. Raises InputMissing, BadData, or BadConfig for a newer schema."""
    try:
        data = (path / MANIFEST).read_bytes()
        if (schema := msgspec.json.decode(data, type=_Schema).schema) > SCHEMA:
            raise BadConfig(f"{path}: written by a newer version (schema {schema})", hint="upgrade this program")
        manifest = msgspec.json.decode(data, type=Manifest)
    except FileNotFoundError:
        raise InputMissing(f"{path}: no artifact here", hint="`status` lists what there is") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadData(f"{path / MANIFEST}: not a manifest: {error}", hint="run the stage again") from None
    return Artifact(path, manifest, hashlib.sha256(data).hexdigest())


def current(root: Path, kind: str, name: str) -> Artifact | None:
    """The current generation of an artifact, resolved once, or None.

    Raises BadData when there is one that cannot be read, and names the newest one that is whole: a reader may take
    that by its key, but is never given old data unasked.
    """
    shelf = root / kind / name
    link = shelf / "current"
    if not link.is_symlink() or not (link.exists() or generation_keys(shelf)):
        return None
    try:
        return read(link.resolve())
    except (InputMissing, BadData) as error:
        what = f"{error.what}; it is the current generation of {kind}/{name}"
        raise BadData(what, hint=_remedy(shelf, kind, besides=current_key(shelf))) from None


def _remedy(shelf: Path, kind: str, *, besides: str) -> str:
    """What to do when the generation `besides` is damaged: make it anew, or take the newest one that is whole."""
    again = f"`{MADE_BY[kind]}` it again"
    unwanted = {besides, *rolled_back(shelf)}
    for key in reversed([key for key in generation_keys(shelf) if key not in unwanted]):
        if is_whole(shelf / key):
            return f"{again}, or name {kind}/{shelf.name}/{key}, the newest that is whole"
    return again


def is_whole(folder: Path) -> bool:
    """Whether there is a generation in `folder` that can be read and has all its files."""
    try:
        return not problems(read(folder))
    except InkstoneError:
        return False


def names(root: Path, kind: str) -> list[str]:
    """Names of the artifacts of one kind that have a current generation."""
    return sorted(link.parent.name for link in (root / kind).glob("*/current") if link.exists())


def find(root: Path, kind: str, reference: str) -> Artifact:
    """The artifact that `reference` means: `name`, `name/key`, either with the kind before it, or a folder's path."""
    path = Path(reference)
    if path.parts[:1] == (kind,):
        reference = str(Path(*path.parts[1:]))
    name, _, key = reference.partition("/")
    if not key and (artifact := current(root, kind, name)):
        return artifact
    for folder in (root / kind / reference, path):
        if (folder / MANIFEST).exists():
            artifact = read(folder.resolve())
            if artifact.manifest.kind != kind:
                raise InputMissing(f"{path} is one of the {artifact.manifest.kind}, not of the {kind}")
            return artifact
    known = ", ".join(names(root, kind)) or "none yet"
    raise InputMissing(
        f"no {reference!r} among the {kind} in {root}", hint=f"there: {known}; `{MADE_BY[kind]}` makes one"
    )


def latest(root: Path, kind: str, *, besides: str = "") -> Artifact:
    """The artifact of a kind that was published last, not counting `besides`: what a command takes when told none."""
    links = [link for link in (root / kind).glob("*/current") if link.exists() and link.parent.name != besides]
    links.sort(key=lambda link: link.lstat().st_mtime_ns)
    found = current(root, kind, links[-1].parent.name) if links else None
    if not found:
        raise InputMissing(f"no {kind} in {root} yet", hint=f"`{MADE_BY[kind]}` makes one")
    return found


@contextmanager
def lease(artifact: Artifact) -> Iterator[None]:
    """Keep `artifact` from being pruned while the block reads it. Raises InputMissing when it was pruned before."""
    with ExitStack() as held:
        try:
            held.enter_context(locks.lease(artifact.file(MANIFEST)))
        except FileNotFoundError:
            raise InputMissing(
                f"{artifact.path}: it was pruned meanwhile", hint="run the same command again: it takes the current one"
            ) from None
        yield


def unfinished(root: Path, kind: str, name: str) -> Iterator[tuple[Path, tuple[Input, ...]]]:
    """The drafts of that name that a later run can go on with, each with what it is made from."""
    for draft in sorted((root / kind / check_name(name)).glob(".draft-*")):
        if (made_from := run_of(draft).made_from) is not None:
            yield draft, made_from


def generations(root: Path) -> Iterator[Path]:
    """The folder of every published generation of every kind below `root`."""
    for kind in KINDS:
        for manifest in sorted((root / kind).glob(f"*/[!.]*/{MANIFEST}")):
            if not manifest.parent.is_symlink():
                yield manifest.parent


def problems(artifact: Artifact, *, deep: bool = False, only: Callable[[str], bool] = lambda name: True) -> list[str]:
    """What is wrong with the files of an artifact: missing, or of another size or content than its manifest says.

    Files whose names are not among `only` are not looked at. Without `deep` only those files are hashed that were
    touched since the manifest was written. Published files are never modified, so for the others a look at their size
    is enough.
    """
    # What is as new as the manifest counts as touched: in a coarse clock a change may fall on the same moment. Links
    # to an earlier generation's files are older. A copy without the times (`cp -r` instead of `cp -a`) is hashed each
    # time. What changes with no new time, as bits that rot or a file moved in from elsewhere, is found with `deep`.
    try:
        published_at = artifact.file(MANIFEST).stat().st_mtime_ns
    except FileNotFoundError:
        return [f"{artifact.file(MANIFEST)}: missing"]
    found = []
    for record in artifact.manifest.files:
        path = artifact.path / record.name
        try:
            wrong = _wrong(path, record, deep, published_at) if only(record.name) else ""
        except (FileNotFoundError, NotADirectoryError):  # perhaps only just: somebody prunes
            wrong = "missing"
        if wrong:
            found.append(f"{path}: {wrong}")
    return found


def _wrong(path: Path, record: FileRecord, deep: bool, published_at: int) -> str:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return "missing"
    if status.st_size != record.size:
        return f"{status.st_size:,} bytes where the manifest says {record.size:,}"
    if (deep or status.st_mtime_ns >= published_at) and files.sha256_of(path) != record.sha256:
        return "content differs from the manifest's sha256"
    return ""


def unlisted(artifact: Artifact) -> list[str]:
    """Files in the folder of an artifact that its manifest does not list. Nobody reads them; `verify` may name them."""
    listed = {record.name for record in artifact.manifest.files}
    return [name for name in _names(artifact.path) if name not in listed]


def require_whole(artifact: Artifact) -> Artifact:
    """`artifact` itself, once its files are there as they were published; BadData otherwise."""
    if found := problems(artifact):
        manifest = artifact.manifest
        raise BadData(found[0], hint=_remedy(artifact.path.parent, manifest.kind, besides=manifest.key))
    if not artifact.manifest.files:
        raise InternalError(f"{artifact.path}: an artifact without files")
    return artifact
