"""An artifact: a folder that a stage published once, whole, under a key that says exactly what it was made from.

    artifacts/<kind>/<name>/<key>/manifest.json     what it is; written last, so that a folder with it is complete
    artifacts/<kind>/<name>/<key>/...               its files
    artifacts/<kind>/<name>/<key>/run.json          how it came about: time, host, versions (never in the key)
    artifacts/<kind>/<name>/current -> <key>        the newest generation; older ones stay beside it

The key is a hash of everything that decides the bytes. So the same key means the same bytes, and a stage whose key
is already published has nothing to do.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pipeline import files, locks
from pipeline.errors import BadConfig, BadData, InputMissing, InternalError, TooManyRejects

SCHEMA = 1
KINDS = ("corpora", "tokenizers", "tokens", "runs")
_MADE_BY = {"corpora": "clean", "tokenizers": "train-tokenizer", "tokens": "tokenize", "runs": "train"}
_NAME = re.compile(r"[^\W_][\w.+-]{0,79}")
MANIFEST, _RUN = "manifest.json", "run.json"
SCRATCH = ".work"  # in a draft: what its stage needs to go on after a kill; it is not published


class FileRecord(msgspec.Struct, frozen=True):
    """One published file: its path inside the artifact, its size in bytes, and the hex sha256 of its bytes."""

    name: str
    size: int
    sha256: str


class Input(msgspec.Struct, frozen=True):
    """Something an artifact was made from: its role, its name for people, and the digest of its content."""

    role: str
    name: str
    digest: str


class Manifest(msgspec.Struct, frozen=True):
    """What an artifact is. Equal inputs give an equal manifest: no time, host, path or worker count in it."""

    schema: int
    kind: str
    name: str
    key: str
    options: dict[str, Any]
    inputs: tuple[Input, ...]
    tokenizer: str
    libraries: dict[str, str]
    files: tuple[FileRecord, ...]
    counts: dict[str, Any]
    ledger: dict[str, Any]


class _Schema(msgspec.Struct):
    """The one field of a manifest that every version has."""

    schema: int


@dataclass(frozen=True)
class Identity:
    """What a stage is about to make: all that decides its bytes, before any work is done.

    `tokenizer` is the fingerprint of the tokenizer involved, "" where there is none; `libraries` names the packages
    whose version changes bytes.
    """

    kind: str
    name: str
    options: Mapping[str, Any]
    inputs: tuple[Input, ...]
    tokenizer: str = ""
    libraries: tuple[str, ...] = ()

    def versions(self) -> dict[str, str]:
        from importlib.metadata import version  # takes as long to load as all of this package

        return {name: version(name) for name in self.libraries}

    @property
    def key(self) -> str:
        """First 16 hex digits of the sha256 of this identity in canonical JSON."""
        content = {
            "schema": SCHEMA,
            "kind": self.kind,
            "options": dict(self.options),
            "inputs": [[entry.role, entry.digest] for entry in self.inputs],
            "tokenizer": self.tokenizer,
            "libraries": self.versions(),
        }
        return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:16]


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


def is_name(name: str) -> bool:
    """Whether `name` can name an artifact, and so a folder."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """`name` itself if it can name an artifact; BadConfig otherwise."""
    if not is_name(name):
        raise BadConfig(
            f"{name!r} cannot be an artifact's name",
            hint="use letters, digits, '.', '-', '_' and '+', at most 80, beginning with a letter or digit",
        )
    return name


def name_from(path_or_name: str) -> str:
    """An artifact name made from a path, a URL or a name: `../data/a b.jsonl.zst` → `a-b`."""
    stem = re.sub(r"(\.(txt|jsonl?|zst|gz))+$", "", path_or_name.rstrip("/").rsplit("/", 1)[-1])
    return check_name(re.sub(r"[^\w.+-]", "-", stem).lstrip("._+-")[:80] or "unnamed")


def draft_path(root: Path, identity: Identity) -> Path:
    """Where the artifact is built: beside its target, under a name that no reader resolves."""
    return root / identity.kind / check_name(identity.name) / f".draft-{identity.key}"


def published(root: Path, identity: Identity) -> Artifact | None:
    """The artifact of this identity if it is already published and whole by size, else None."""
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
    """
    start = time.monotonic()
    shelf = root / identity.kind / check_name(identity.name)
    with locks.lock(shelf / ".lock", doing=f"{_MADE_BY[identity.kind]} {identity.name}"):
        target, draft = shelf / identity.key, draft_path(root, identity)
        if artifact := published(root, identity):
            files.remove_tree(target / SCRATCH)
            if not _points_to(shelf / "current", identity.key):
                files.point(shelf / "current", identity.key)
            return Built(artifact, "unchanged")
        if not keep_draft:
            files.remove_tree(draft)
        elif target.is_dir() and not draft.exists():
            files.publish_directory(target, draft)
        draft.mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(shelf, below=False)
        files.remove_temporaries(draft)
        try:
            content = write(draft)
        except TooManyRejects as error:  # the draft stays: it holds the rejects that the person is asked to look at
            raise TooManyRejects(f"{draft}: {error.what}", hint=error.hint) from None
        except BaseException:
            if not keep_draft or not any(draft.iterdir()):
                files.remove_tree(draft)
            raise
        _write_manifest(draft, identity, content, start)
        files.remove_tree(target)  # if it stands, it is damaged
        files.publish_directory(draft, target)
        files.remove_tree(target / SCRATCH)
        files.point(shelf / "current", identity.key)
    return Built(read(target), "built")


def _points_to(link: Path, key: str) -> bool:
    return link.is_symlink() and os.readlink(link) == key


def _write_manifest(draft: Path, identity: Identity, content: Content, start: float) -> None:
    run = {
        "seconds": round(time.monotonic() - start, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **content.run,
    }
    files.write_file(draft / _RUN, msgspec.json.format(msgspec.json.encode(run), indent=2))
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
    found = (os.path.relpath(os.path.join(top, name), folder) for top, _, names in os.walk(folder) for name in names)
    return sorted(name for name in found if name not in (MANIFEST, _RUN) and Path(name).parts[0] != SCRATCH)


def read(path: Path) -> Artifact:
    """The artifact in the folder `path`. Raises InputMissing, BadData, or BadConfig for a newer schema."""
    try:
        data = (path / MANIFEST).read_bytes()
        if (schema := msgspec.json.decode(data, type=_Schema).schema) > SCHEMA:
            raise BadConfig(f"{path}: written by a newer version (schema {schema})", hint="upgrade this program")
        manifest = msgspec.json.decode(data, type=Manifest)
    except FileNotFoundError:
        raise InputMissing(f"{path}: no artifact here", hint="`status` lists what there is") from None
    except msgspec.DecodeError as error:
        raise BadData(f"{path / MANIFEST}: not a manifest: {error}", hint="run the stage again") from None
    return Artifact(path, manifest, hashlib.sha256(data).hexdigest())


def current(root: Path, kind: str, name: str) -> Artifact | None:
    """The current generation of an artifact, resolved once, or None."""
    link = root / kind / name / "current"
    return read(link.resolve()) if link.is_symlink() and link.exists() else None


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
        f"no {reference!r} among the {kind} in {root}", hint=f"there: {known}; `{_MADE_BY[kind]}` makes one"
    )


def latest(root: Path, kind: str, *, besides: str = "") -> Artifact:
    """The artifact of a kind that was published last, not counting `besides`: what a command takes when told none."""
    links = [link for link in (root / kind).glob("*/current") if link.exists() and link.parent.name != besides]
    links.sort(key=lambda link: link.lstat().st_mtime_ns)
    if not links:
        raise InputMissing(f"no {kind} in {root} yet", hint=f"`{_MADE_BY[kind]}` makes one")
    return read(links[-1].resolve())


def generations(root: Path) -> Iterator[Path]:
    """The folder of every published generation of every kind below `root`."""
    for kind in KINDS:
        for manifest in sorted((root / kind).glob(f"*/[!.]*/{MANIFEST}")):
            if not manifest.parent.is_symlink():
                yield manifest.parent


def problems(artifact: Artifact, *, deep: bool = False) -> list[str]:
    """What is wrong with the files of an artifact: missing or of another size; with `deep`, also of other content."""
    found = []
    for record in artifact.manifest.files:
        path = artifact.path / record.name
        if not path.is_file():
            found.append(f"{path}: missing")
        elif path.stat().st_size != record.size:
            found.append(f"{path}: {path.stat().st_size:,} bytes where the manifest says {record.size:,}")
        elif deep and files.sha256_of(path) != record.sha256:
            found.append(f"{path}: content differs from the manifest's sha256")
    return found


def require_whole(artifact: Artifact) -> Artifact:
    """`artifact` itself, once its files are there at their sizes; BadData otherwise."""
    if found := problems(artifact):
        raise BadData(found[0], hint=f"`{_MADE_BY[artifact.manifest.kind]}` it again")
    if not artifact.manifest.files:
        raise InternalError(f"{artifact.path}: an artifact without files")
    return artifact
